"""The whole update against loops over rows and tokens that share no code with it: losses, gradients and reports."""

import functools
import math
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.metrics import update_metrics
from edge_grpo.algorithms.rows import computed_rows, kept_rows, minibatches
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.keep import Keep
from edge_grpo.importance_corrections.masked import Masked
from edge_grpo.importance_corrections.truncated import Truncated
from edge_grpo.losses.base import UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import Step

G, EPOCHS, STEP, TEMPERATURE = 3, 2, 0.3, 0.8
LOW, HIGH, CLAMP, EPS, MAX_TOKENS = 0.1, 0.2, 1.02, 1e-4, 9
WEIGHTS = {Provenance.SAMPLED: 1.0, Provenance.INJECTED: 0.5, Provenance.REFERENCE: 0.0}
PROMPTS = ((65, 66, 67, 68), (70, 71), (72,), (73, 74, 75))
# Who wrote each token: 0 the policy, 1 a phrase, 2 the reference. The third row of the second group trains nothing.
WROTE = ("00000", "01", "0001112", "0", "000011", "222", "00", "0012", "000", "001", "00000", "02")
# Groups: two mixed, one of equal rewards above 0, one all wrong.
REWARDS = (1.0, 0.0, 0.0, 2.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0)
# Off-policy rows: the log-prob with which each token was sampled, and gamma, both exact in float32. Row 0 is shaped and
# has A > 0, row 2 is shaped and has A < 0, row 4 has the loss's ratio and clip.
OFF_POLICY = {0: (-4.0, 0.125), 2: (-5.5, 0.25), 4: (-5.0, 0.0)}
# The log-prob with which the engine drew a token of an on-policy row, exact in float32: w is on both sides of 1 and of
# the bounds that follow.
DRAWN = (-4.5, -6.25, -5.0)
CAP, LOWEST, HIGHEST = 1.5, 0.75, 1.25
ONE, MANY = 1000, 24  # bounds on a micro-batch: everything, or about a group


@dataclass(frozen=True)
class Case:
    beta: float
    kl: str
    refresh: str
    entropy_of: str
    microbatch_tokens: int
    packing: bool = True
    off_policy: bool = False
    weighs: str = ""


CASES = {
    "kl, eda once, one micro-batch": Case(0.3, "k3", "rollout", "response", ONE),
    "kl, eda every epoch, cut, padded": Case(0.2, "k2", "update", "sampled", MANY, packing=False),
    "no kl, eda once, cut": Case(0.0, "k3", "rollout", "response", MANY),
    "kl, eda every epoch, groups above the bound": Case(0.2, "k3", "update", "response", 8),
    "kl, eda once, groups cut": Case(0.2, "k1", "rollout", "sampled", 8),
    "kl, eda once, cut, off-policy": Case(0.3, "k3", "rollout", "response", MANY, off_policy=True),
    "no kl, eda once, groups cut, off-policy": Case(0.0, "k3", "rollout", "response", 8, off_policy=True),
    "kl, truncated, off-policy": Case(0.3, "k3", "rollout", "response", MANY, off_policy=True, weighs="truncated"),
    "no kl, masked by response, one micro-batch": Case(0.0, "k3", "rollout", "response", ONE, weighs="masked"),
}


def models():
    """A policy in float64, not so flat as a new one is, and a reference beside it."""
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 261, "bos_token_id": 0, "eos_token_id": 260}
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).double()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(10.0)
    frozen = deepcopy(model).requires_grad_(False)
    for parameter in frozen.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return model, frozen


def responses():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (len(wrote),), generator=generator).tolist() for wrote in WROTE]


# The reference.


def statistics(model, row):
    """Log-prob and entropy of each response token, from one forward of the row alone."""
    prompt, response = PROMPTS[row // G], responses()[row]
    logits = model(torch.tensor([[*prompt, *response]])).logits[0] / TEMPERATURE
    logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    chosen = [logp[t, token] for t, token in enumerate(response)]
    return chosen, (-(logp.exp() * logp).sum(-1)).tolist()


@functools.cache
def statistics_before():
    """Log-probs and entropies of every row before any step, by the policy and by its reference, which never moves."""
    with torch.no_grad():
        return [[statistics(model, row) for row in range(len(WROTE))] for model in models()]


def reference_advantages(entropies, entropy_of):
    """(r - mean) / (std + eps), times mean(P) / P up to the clamp."""
    found = []
    for first in range(0, len(REWARDS), G):
        group = range(first, first + G)
        rewards = [REWARDS[row] for row in group]
        mean = sum(rewards) / G
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (G - 1))
        counted = {
            row: [
                h for h, who in zip(entropies[row], WROTE[row], strict=True) if entropy_of == "response" or who == "0"
            ]
            for row in group
        }
        p = [sum(counted[row]) / max(len(counted[row]), 1) for row in group]
        for reward, of_row in zip(rewards, p, strict=True):
            multiplier = min(sum(p) / G / max(of_row, 1e-8), CLAMP)
            found.append((reward - mean) / (deviation + EPS) * multiplier)
    return found


def reference_kl(d, estimator):
    return {"k1": -d, "k2": d * d / 2, "k3": torch.exp(d) - d - 1}[estimator]


def drawn(row, t):
    return DRAWN[(row + t) % len(DRAWN)]


def reference_weights(old, case):
    """What each token weighs, by the log-probs before the update."""
    found = []
    for row, wrote in enumerate(WROTE):
        on_policy = not (case.off_policy and row in OFF_POLICY)
        known = [t for t, who in enumerate(wrote) if who == "0" and on_policy and case.weighs]
        w = {t: math.exp(old[row][t] - drawn(row, t)) for t in known}
        if case.weighs == "truncated":
            w = {t: min(value, CAP) for t, value in w.items()}
        elif known:
            mean = math.prod(w.values()) ** (1 / len(known))
            w = dict.fromkeys(known, mean if LOWEST <= mean <= HIGHEST else 0.0)
        found.append([w.get(t, 1.0) for t in range(len(wrote))])
    return found


def reference_loss(model, old, advantages, aggregation, case, microbatches, chosen):
    """The loss of the chosen rows with graph, and counts over trained tokens: clipped below, above, KL, below where
    A = 0."""
    weights, (_, frozen) = reference_weights(old, case), statistics_before()
    rows, told = [], {"tokens": 0, "low": 0, "high": 0, "kl": 0.0, "idle": 0, "clippable": 0}
    for row in range(len(WROTE)):
        if row not in chosen:
            rows.append([])
            continue
        logprobs, _ = statistics(model, row)
        ref, _ = frozen[row]
        terms = []
        for t, logprob in enumerate(logprobs):
            weight, w = WEIGHTS[Provenance(int(WROTE[row][t]))], weights[row][t]
            a = advantages[row] if w else 0.0
            if weight == 0:
                continue
            sampled, gamma = OFF_POLICY[row] if case.off_policy and row in OFF_POLICY else (old[row][t], 0.0)
            ratio = torch.exp(logprob - sampled)
            bounded = 1 - LOW if ratio < 1 - LOW else 1 + HIGH if ratio > 1 + HIGH else ratio
            surrogate = ratio * a if ratio * a <= bounded * a else bounded * a
            if gamma:
                surrogate = a * ratio / (ratio + gamma)
            kl = reference_kl(ref[t] - logprob, case.kl)
            terms.append(weight * (-w * surrogate + case.beta * kl))
            told["tokens"] += 1
            told["clippable"] += not gamma
            told["low"] += bool(ratio < 1 - LOW and a < 0 and not gamma)
            told["high"] += bool(ratio > 1 + HIGH and a > 0 and not gamma)
            told["idle"] += bool(ratio < 1 - LOW and a == 0)
            told["kl"] += float(kl.detach())
        rows.append(terms)
    trained = [terms for terms in rows if terms]
    total = sum(sum(terms) for terms in trained)
    if aggregation == "grpo":
        return sum(sum(terms) / len(terms) for terms in trained) / len(trained), told
    if aggregation == "bnpo":
        parts = [[term for row in part for term in rows[row]] for part in microbatches]
        return sum(sum(part) / max(len(part), 1) for part in parts) / len(parts), told
    if aggregation == "dapo":
        return total / told["tokens"], told
    return total / (len(trained) * MAX_TOKENS), told


def reference_run(model, aggregation, case, steps):
    """(loss, gradient, counts) of each optimiser step; the model is moved down the gradient from what `models` made.

    Args:
        steps: (rows, micro-batches) of each step of an epoch.
    """
    before, _ = statistics_before()
    old = [[float(x) for x in logprobs] for logprobs, _ in before]
    advantages = reference_advantages([entropies for _, entropies in before], case.entropy_of)
    found = []
    for step, (chosen, microbatches) in enumerate(steps * EPOCHS):
        if step and case.refresh == "update":
            with torch.no_grad():
                entropies = [statistics(model, row)[1] for row in range(len(WROTE))]
            advantages = reference_advantages(entropies, case.entropy_of)
        loss, told = reference_loss(model, old, advantages, aggregation, case, microbatches, chosen)
        model.zero_grad()
        loss.backward()
        found.append((float(loss.detach()), descend(model), told))
    return found


def descend(model):
    """The gradient; the model takes a step of length `STEP` down it."""
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    with torch.no_grad():
        for p in model.parameters():
            p -= STEP / gradient.norm().clamp(min=1e-12) * p.grad
    return gradient


# The project's.


def rollout(off_policy=False):
    of_row = lambda row: torch.tensor([drawn(row, t) if who == "0" else 0.0 for t, who in enumerate(WROTE[row])])  # noqa: E731
    made = [
        Response(
            torch.tensor(ids), of_row(row), torch.zeros(len(ids)),
            torch.tensor([int(who) for who in wrote], dtype=torch.int8), "length",
        )
        for row, (ids, wrote) in enumerate(zip(responses(), WROTE, strict=True))
    ]  # fmt: skip
    for row, (logprob, gamma) in OFF_POLICY.items() if off_policy else ():
        sampled = torch.full((len(made[row]),), logprob)
        made[row] = replace(made[row], sampling_logprobs=sampled, off_policy=True, shaping=gamma)
    problems = tuple(Problem(str(i), "?", ("1",), prompt_ids=ids) for i, ids in enumerate(PROMPTS))
    return Rollout(problems, tuple(made), G)


IMPORTANCE = {
    "": None,
    "truncated": Truncated(level="token", cap=CAP),
    "masked": Masked(level="geometric", lowest=LOWEST, highest=HIGHEST),
}


class Weighted(Keep):
    token_weight = WEIGHTS


def update_of(model, frozen, aggregation, case, kept=(True, True, True, True), groups=None):
    policy = Policy(model=model, tokenizer=byte_tokenizer())
    batch = kept_rows(rollout(case.off_policy), torch.tensor(kept), Weighted(), policy, torch.device("cpu"))
    rewards = torch.tensor(REWARDS, dtype=torch.float64)[batch.row_ids]
    advantage = EntropyDriven(Vanilla(EPS), CLAMP, True, "group", case.entropy_of, case.refresh)
    loss = ClippedLoss(
        aggregation=aggregation,
        epsilon_low=LOW,
        epsilon_high=HIGH,
        beta=case.beta,
        kl=case.kl,
        max_response_tokens=MAX_TOKENS,
    )
    return GRPOUpdate(
        model=model,
        reference=frozen if case.beta else None,
        batch=batch,
        rewards=rewards,
        computed=computed_rows(batch, rewards, advantage, loss, G),
        advantage=advantage,
        loss=loss,
        num_generations=G,
        forward=MicrobatchForward(TEMPERATURE, case.microbatch_tokens, chunk_tokens=5, packing=case.packing),
        importance_correction=IMPORTANCE[case.weighs],
        minibatches=None if groups is None else minibatches(batch, rollout(), groups * G, lambda value: [value]),
    )


def project_run(update):
    """Steps and gradients of each epoch."""
    gradients = []

    def optimise(microbatch_losses):
        update.model.zero_grad()
        losses = [microbatch_loss() for microbatch_loss in microbatch_losses]
        for loss in losses:
            loss.backward()
        gradients.append(descend(update.model))
        return Step(sum(float(loss.detach()) for loss in losses), float(gradients[-1].norm()))

    update.prepare()
    return update.run(EPOCHS, [UpdateSize(*size) for size in update.sizes()], optimise), gradients


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_losses_gradients_and_reports_of_two_epochs(aggregation, case):
    model, frozen = models()
    update = update_of(deepcopy(model), frozen, aggregation, case)
    steps, gradients = project_run(update)
    # bnpo depends on the cut by definition, so the reference is told it: all rows, or those of the groups that differ.
    cut = [rows.tolist() for rows in update.microbatches]
    expected = reference_run(model, aggregation, case, [(range(12), cut)])
    assert (len(cut) > 1) == (case.microbatch_tokens != ONE)
    assert sorted(row for rows in cut for row in rows) == list(range(12 if case.beta or aggregation == "bnpo" else 6))
    for step, gradient, (loss, reference, _) in zip(steps, gradients, expected, strict=True):
        assert float(reference.norm()) > 1e-2
        assert step.loss == pytest.approx(loss, abs=1e-10)
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-10 * float(reference.norm()))
    first, told = (told for *_, told in expected)
    assert (first["low"] + first["high"] > 0) == case.off_policy  # otherwise the first epoch clips nothing
    assert min(told["low"], told["high"], told["idle"]) > 0
    if case.beta:
        metrics = update_metrics(update, steps)
        for name, of in (("clip_ratio/low_mean", "low"), ("clip_ratio/high_mean", "high")):
            share = sum(epoch[of] for *_, epoch in expected) / told["clippable"] / EPOCHS
            assert metrics[f"train/{name}"] == pytest.approx(share, abs=1e-9)
        kl = sum(epoch["kl"] / epoch["tokens"] for *_, epoch in expected) / EPOCHS
        assert metrics["train/kl"] == pytest.approx(kl, abs=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_losses_gradients_and_reports_of_minibatches(aggregation, case, groups):
    # Four steps of one group, or one of three groups and one of the last. The last two groups have collapsed: where no
    # KL term reaches them the last step has nothing to compute, and the first group stands in for it.
    model, frozen = models()
    update = update_of(deepcopy(model), frozen, aggregation, case, groups=groups)
    steps, gradients = project_run(update)
    cuts = [[rows.tolist() for rows in step] for step in update.steps]
    chosen = [range(first * G, min(first + groups, 4) * G) for first in range(0, 4, groups)]
    expected = reference_run(model, aggregation, case, list(zip(chosen, cuts, strict=True)))
    assert len(steps) == EPOCHS * len(chosen)
    for step, gradient, (loss, reference, _) in zip(steps, gradients, expected, strict=True):
        assert step.loss == pytest.approx(loss, abs=1e-10)
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-10 * max(float(reference.norm()), 1e-2))
    assert float(expected[0][1].norm()) > 1e-2
    assert (float(expected[-1][1].norm()) > 1e-3) == (case.beta > 0)
    metrics = update_metrics(update, steps)
    computed = [told for _, _, told in expected if case.beta or aggregation == "bnpo"]
    for name, of in (("clip_ratio/low_mean", "low"), ("clip_ratio/high_mean", "high"), ("kl", "kl")):
        if computed and (case.beta or of != "kl"):
            over = "tokens" if of == "kl" else "clippable"
            mean = sum(told[of] for told in computed) / sum(told[over] for told in computed)
            assert metrics[f"train/{name}"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("name", ["kl, truncated, off-policy", "no kl, masked by response, one micro-batch"])
def test_weights_of_the_reference_are_within_their_bounds_and_at_them(name):
    old = [[float(x) for x in logprobs] for logprobs, _ in statistics_before()[0]]
    weights = reference_weights(old, CASES[name])
    if CASES[name].off_policy:
        assert all(weights[row] == [1.0] * len(WROTE[row]) for row in OFF_POLICY)
    weighed = {
        w for row, who in zip(weights, WROTE, strict=True) for w, one in zip(row, who, strict=True) if one == "0"
    }
    bound, lowest = (CAP, 0.0) if CASES[name].weighs == "truncated" else (0.0, LOWEST)
    assert bound in weighed
    assert any(lowest < w < 1 for w in weighed)
    assert any(1 < w < HIGHEST for w in weighed)


def test_minibatches_that_hold_everything_are_the_whole_batch():
    case = CASES["kl, eda once, one micro-batch"]
    model, frozen = models()
    whole, one = (
        project_run(update_of(deepcopy(model), frozen, "grpo", case, groups=groups))[1] for groups in (None, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, one, strict=True))


def test_a_minibatch_whose_groups_are_dropped_takes_no_step():
    model, frozen = models()
    update = update_of(model, frozen, "dapo", CASES["no kl, eda once, cut"], kept=(False, True, True, False), groups=1)
    assert [rows.tolist() for rows in update.minibatches] == [[], [0, 1, 2], [3, 4, 5], []]
    assert update.batch.row_ids.tolist() == [3, 4, 5, 6, 7, 8]
    # Trained tokens of the rows 3 to 8: 1 6 0 and 2 3 3, see below.
    assert [size[:2] for size in update.sizes()] == [(0, 0), (2, 7), (3, 8), (0, 0)]
    steps, gradients = project_run(update)
    assert len(gradients) == 2 * EPOCHS
    assert [step.loss == 0 for step in steps] == [True, False, True, True] * EPOCHS


def test_bad_micro_batches_are_counted_over_the_steps_of_an_epoch():
    update = update_of(models()[0], None, "grpo", CASES["no kl, eda once, cut"], groups=1)
    assert [len(step) for step in update.steps] == [1, 1, 1, 1]
    update.prepare()
    answers = iter([None, (0,), (), None, None, None, (0,), None])
    sizes = [UpdateSize(*size) for size in update.sizes()]
    steps = update.run(EPOCHS, sizes, lambda losses: Step(0.0, 0.0, next(answers)))
    assert [step.bad for step in steps] == [None, (1,), (), None, None, None, (2,), None]


def test_masked_truncated_responses_leave_the_loss_and_its_denominators():
    # Every third row ended by itself. Trained tokens row by row: 5 2 6, 1 6 0, 2 3 3, 3 5 1.
    whole = rollout()
    ends = ("length", "length", "stop") * 4
    responses = tuple(replace(r, finish_reason=end) for r, end in zip(whole.responses, ends, strict=True))
    policy = Policy(model=models()[0], tokenizer=byte_tokenizer())
    kept, device = torch.tensor([True, False, True, True]), torch.device("cpu")
    cut = replace(whole, responses=responses)
    batch = kept_rows(cut, kept, Weighted(), policy, device, mask_truncated=True)
    plain = kept_rows(cut, kept, Weighted(), policy, device)
    assert (batch.token_weights > 0).sum(1).tolist() == [0, 0, 6, 0, 0, 3, 0, 0, 1]
    assert torch.equal(batch.token_weights[2::3], plain.token_weights[2::3])
    assert torch.equal(batch.completion_mask, plain.completion_mask)  # entropies still are of all tokens


def test_the_size_counts_what_trains():
    # One of 12 rows has weight 0 throughout. Tokens of who wrote 0 or 1, row by row: 5 2 6, 1 6 0, 2 3 3, 3 5 1.
    update = update_of(models()[0], None, "grpo", CASES["no kl, eda once, cut"])
    assert update.sizes()[0][:2] == (11, 5 + 2 + 6 + 1 + 6 + 2 + 3 + 3 + 3 + 5 + 1)


def test_where_every_group_is_dropped_the_stand_in_weighs_nothing():
    model, frozen = models()
    update = update_of(model, frozen, "grpo", CASES["kl, eda once, one micro-batch"], kept=(False,) * 4)
    assert update.batch.row_ids.tolist() == [0, 1, 2]
    assert update.sizes() == [(0, 0, 1)]
    before = deepcopy(model.state_dict())
    steps, gradients = project_run(update)
    assert [(step.loss, step.grad_norm) for step in steps] == [(0.0, 0.0)] * EPOCHS
    assert gradients == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
