"""Whose tokens an update's gradient comes from, against one plain forward a row; and that a probe changes nothing."""

from copy import deepcopy

import pytest
import test_update_reference as reference
import torch
from small_runs import equal_weights, metrics_rows, run_small, weights
from test_optimisation import SCRIPTED
from test_update_reference import ONE, REWARDS, WROTE, Case, G, models, reference_advantages, statistics, update_of

from edge_grpo.algorithms.provenance import gradient_norms, gradient_through, provenance_of
from edge_grpo.callbacks.gradient_shares import GradientShares
from edge_grpo.errors import UserError
from edge_grpo.losses.base import UpdateSize
from edge_grpo.types.responses import Provenance

WEIGHTS = {Provenance.SAMPLED: 1.0, Provenance.INJECTED: 0.5, Provenance.REFERENCE: 0.25}


@pytest.fixture(autouse=True)
def every_writer_is_trained(monkeypatch):
    monkeypatch.setattr(reference.Weighted, "token_weight", WEIGHTS)


def prepared(case, groups=None):
    """An update as a probe gets it, and the sizes of its steps."""
    model, frozen = models()
    update = update_of(model, frozen, "dapo", case, groups=groups)
    update.prepare()
    return update, [UpdateSize(*size) for size in update.sizes()]


def test_the_norms_are_those_of_each_writers_tokens():
    # At ratio 1 a token's gradient is -weight A d log pi / n, n all response tokens of the twelve rows.
    case = Case(0.0, "k3", "rollout", "response", ONE)
    update, sizes = prepared(case)
    model = deepcopy(update.model)
    for parameter in update.model.parameters():
        parameter.grad = torch.ones_like(parameter)  # of the step before, which the head's gradient must not join
    found = gradient_norms(update, reference.rollout(), sizes, lambda part: part)
    rows = [statistics(model, row) for row in range(len(WROTE))]
    advantages = reference_advantages([entropies for _, entropies in rows], "response")
    tokens = sum(map(len, WROTE))
    for writer in Provenance:
        loss = sum(
            -WEIGHTS[writer] * advantages[row] * logprob / tokens
            for row, (logprobs, _) in enumerate(rows)
            for logprob, who in zip(logprobs, WROTE[row], strict=True)
            if int(who) == writer
        )
        model.zero_grad()
        loss.backward(retain_graph=True)
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        assert found[writer] == pytest.approx(float(expected), rel=1e-9)
    assert len(REWARDS) == len(WROTE) == 4 * G


def counted(strategy, calls):
    """The same strategy, which writes down that it was called: in itself, so that a copy has a list of its own."""
    plain = type(strategy).__call__

    class Counting(type(strategy)):
        def __call__(self, *args):
            self.__dict__["calls"].append(1)
            return plain(self, *args)

    object.__setattr__(strategy, "__class__", Counting)
    strategy.__dict__["calls"] = calls


def test_a_probe_works_on_copies_of_the_strategies():
    update, sizes = prepared(reference.CASES["kl, eda every epoch, groups above the bound"])
    calls = [], []
    counted(update.loss, calls[0])
    counted(update.advantage, calls[1])
    gradient_norms(update, reference.rollout(), sizes, lambda part: part)
    assert calls == ([], [])
    update.microbatch_loss(update.steps[0][0], size=sizes[0], step=0, epoch=0)
    assert calls == ([1], [1])


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("case", reference.CASES.values(), ids=reference.CASES)
def test_the_parts_add_up_to_the_gradient_and_the_update_stays_as_it_was(case, groups):
    update, sizes = prepared(case, groups)
    parameters = list(update.model.parameters())
    before = {name: value.clone() for name, value in vars(update).items() if isinstance(value, torch.Tensor)}
    provenance = provenance_of(update.batch, reference.rollout())
    parts = [gradient_through(update, provenance == writer, parameters, sizes) for writer in Provenance]
    assert all(p.grad is None for p in parameters)
    assert all(torch.equal(value, getattr(update, name)) for name, value in before.items())
    assert update.of_loss.reduced() == {}
    with update.forward.on(update.model, training=True):
        for step, size in enumerate(sizes):
            for rows in update.steps[step]:
                update.microbatch_loss(rows, size=size, step=step, epoch=0).backward()
    for parameter, *of in zip(parameters, *parts, strict=True):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(sum(of), gradient, rtol=0, atol=1e-10)


def test_a_probed_run_is_the_same_bit_for_bit(tmp_path):
    # Three of four responses are wrong and are answered for: injected and reference tokens, entropies, a loss that
    # keeps something, several steps an iteration.
    arm = (
        "experiment=edge_grpo", *SCRIPTED, "loss=adaptive_entropy", "algorithm.update_epochs=2",
        "algorithm.minibatch_rows=4", "correction.max_response_tokens=256", "trainer.max_iterations=3",
    )  # fmt: skip
    plain = run_small(tmp_path / "plain", *arm)
    probed = run_small(
        tmp_path / "probed", *arm, "callbacks=gradient_shares", "callbacks.gradient_shares.every_n_iterations=2"
    )
    assert equal_weights(weights(plain), weights(probed))
    rows = metrics_rows(probed, timed=False)
    gradients = [{k: row.pop(k) for k in list(row) if k.startswith("gradient/")} for row in rows]
    assert rows == metrics_rows(plain, timed=False)
    shares = [{k: float(v) for k, v in of.items() if k.endswith("/share") and v} for of in gradients]
    assert [len(of) for of in shares] == [3, 0, 3, 0]  # the last row is the evaluation's
    assert sum(shares[0].values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in shares[0].values())
    assert metrics_rows(probed)[0]["timing_s/probe"] != ""


def test_what_a_run_without_corrections_and_a_bad_value_say(tmp_path):
    run = run_small(tmp_path, "experiment=vanilla", *SCRIPTED, "callbacks=gradient_shares", "trainer.max_iterations=1")
    row = metrics_rows(run)[0]
    shares = [float(row[f"gradient/{writer.name.lower()}/share"]) for writer in Provenance]
    assert shares == [1, 0, 0]
    # One step, at the policy before it: the norm is the gradient's own.
    assert float(row["gradient/sampled/norm"]) == pytest.approx(float(row["train/grad_norm"]), rel=1e-5)
    with pytest.raises(UserError, match=r"every_n_iterations=0 must be at least 1"):
        GradientShares(0)
    with pytest.raises(UserError, match="Module trains on references alone"):
        GradientShares(1).check_module(torch.nn.Module())
