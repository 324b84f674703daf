"""The gradient of a batch does not depend on how it is cut: into micro-batches, or over two real processes."""

import contextlib
import socket

import ddp_gradients
import pytest
import torch
from ddp_gradients import BOUNDS, PRECISIONS, OfFourGroups, cases_of, gradient, minibatch_gradients
from small_runs import ENVIRONMENT, PROGRAMS, REPO, SMALL_GRPO, composed

from edge_grpo.algorithms import grpo, grpo_base
from edge_grpo.algorithms.checks import check_minibatches
from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError

TOLERANCE = {"64-true": 1e-12, "32-true": 1e-5}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """precision -> (loss, advantage) -> (gradient, micro-batches of a rank)."""
    folder = tmp_path_factory.mktemp("ranks")
    out = folder / "gradients.pt"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Both begin with the imports done, so Lightning is told that somebody else has started them.
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": f"{REPO}:{REPO / 'tests'}"}
    started = [
        PROGRAMS.start(
            ddp_gradients.__file__, str(out), cwd=folder, env={**ENVIRONMENT, **meeting, "LOCAL_RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    for program in started:
        output, _ = program.communicate(180)
        assert program.wait() == 0, output
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module", params=PRECISIONS)
def runs(request, on_two_ranks, tmp_path_factory):
    """Gradients on one rank (with the wanted number of micro-batches), on two ranks, and the tolerance."""
    folder = tmp_path_factory.mktemp("gradients")
    with contextlib.chdir(folder):  # Lightning's own checkpoints go there
        one = {
            (*case, count): gradient(*case, 1, request.param, bound)
            for case in cases_of(request.param)
            for count, bound in BOUNDS.items()
        }
    return one, on_two_ranks[request.param], TOLERANCE[request.param]


def difference(a, b):
    assert float(b.norm()) > 1e-3
    return float((a - b).norm() / b.norm())


def test_one_two_or_seven_micro_batches_one_or_two_ranks(runs):
    one, two, tolerance = runs
    assert {count for _, count in one.values()} == {1, 2, 7}
    for (loss, advantage, wanted), (found, count) in one.items():
        assert count == wanted
        if loss != "bnpo":
            assert difference(found, one[loss, advantage, 1][0]) < tolerance, (loss, advantage, count)
    for case, (found, count) in two.items():
        assert count == 1
        if case[0] != "bnpo":
            assert difference(found, one[*case, 1][0]) < tolerance, case


def test_several_micro_batches_on_each_of_two_ranks(on_two_ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, count = on_two_ranks["cut"]
    assert count > 1
    assert difference(found, gradient("grpo", "vanilla", 1, "64-true", BOUNDS[1])[0]) < TOLERANCE["64-true"]


def test_a_sharded_model_has_the_gradient_of_ddp(on_two_ranks):
    found = on_two_ranks["sharded"]
    (whole, count), (sharded, same), (cut, more) = (found[kind] for kind in ("ddp", "fsdp2", "fsdp2 cut"))
    assert count == same == 1
    assert more > 1
    assert difference(sharded, whole) < 1e-6
    assert difference(cut, whole) < TOLERANCE["32-true"]


@pytest.mark.parametrize("case", ["whole", "dropped"])
def test_minibatches_on_two_ranks(case, on_two_ranks, tmp_path, monkeypatch):
    # Groups 0 and 1 are rank 0's, 2 and 3 rank 1's: a step takes 0 and 2, then 1 and 3. Where group 2 is dropped, rank
    # 1 has nothing in the first step and takes part all the same.
    def across(batch, rollout, minibatch_rows, gathered):
        assert (minibatch_rows, len(gathered(0)), len(rollout.problems)) == (2 * rollout.num_generations, 1, 4)
        return [(batch.problem_ids % 2 == step).nonzero().flatten() for step in (0, 1)]

    monkeypatch.setattr(grpo, "minibatches", across)
    monkeypatch.chdir(tmp_path)
    stages = {"group_filter": OfFourGroups(1)} if case == "dropped" else {}
    one, two = minibatch_gradients(1, **stages), on_two_ranks["minibatches"][case]
    assert len(one) == len(two) == 4
    assert max(difference(a, b) for a, b in zip(two, one, strict=True)) < TOLERANCE["64-true"]
    assert difference(one[2], one[0]) > 1e-3  # the policy has moved


def test_groups_change_ranks_for_the_same_gradient(on_two_ranks):
    moved, drawn = on_two_ranks["balance"][True], on_two_ranks["balance"][False]
    assert len(moved[0]) == len(drawn[0]) == 2
    for a, b in zip(moved[0], drawn[0], strict=True):
        assert difference(a, b) < TOLERANCE["64-true"]
    here, there = ([list(rank) for rank in groups] for _, groups in (moved, drawn))
    assert here != there
    for step in (slice(0, 2), slice(2, 4)):  # the same groups, on whichever rank
        assert {name for rank in here for name in rank[step]} == {name for rank in there for name in rank[step]}
    fullest = [max(sum(rank.values()) for rank in groups) for _, groups in (moved, drawn)]
    assert fullest[0] < fullest[1]


def test_minibatches_that_two_ranks_cannot_share_are_refused():
    check_minibatches(None, 2, 2)
    check_minibatches(4, 2, 2)
    with pytest.raises(UserError, match=r"minibatch_rows=2 must be a multiple of .*=2 times the 2 ranks"):
        check_minibatches(2, 2, 2)


def test_a_fit_checks_its_minibatches_with_its_ranks(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(grpo_base, "check_minibatches", lambda *settings: asked.append(settings))
    monkeypatch.chdir(tmp_path)
    minibatch_gradients(1)
    assert [(rows % generations, ranks) for rows, generations, ranks in asked] == [(0, 1)]


def test_bnpo_depends_on_the_cut_by_definition(runs):
    one, two, _ = runs
    whole = one["bnpo", "entropy_driven", 1][0]
    assert difference(one["bnpo", "entropy_driven", 7][0], whole) > 0.01
    assert difference(two["bnpo", "entropy_driven"][0], whole) > 0.01


def test_groups_never_span_ranks():
    cfg, _ = composed("train", *SMALL_GRPO)
    data = instantiate(cfg.data)
    with pytest.raises(UserError, match=r"data\.problems_per_iteration=2 must be a multiple of the 3 ranks"):
        data.problems_at(0, rank=0, world_size=3)
