"""Corrections that put references, perturbed prompts' responses or rows of other iterations into groups."""

import math
import signal
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import SMALL_GRPO, composed, metrics_rows, run_small
from test_corrections import EOS, RIGHT, WRONG, decode, encode, sampled, score, scored, tools
from test_loss_strategies import remarks
from test_resume import assert_same, signal_once
from test_update_reference import CASES, OFF_POLICY, models, project_run, rollout, statistics, update_of

from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.metrics import off_policy_metrics
from edge_grpo.algorithms.rows import computed_rows, kept_rows
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.exgrpo import ExGRPO
from edge_grpo.corrections.hpt import HybridPostTraining
from edge_grpo.corrections.keep import Keep
from edge_grpo.corrections.lope import PASSAGE, PromptPerturbation
from edge_grpo.corrections.reference_row import ReferenceRow
from edge_grpo.corrections.replay_group import ReplayGroup
from edge_grpo.errors import Stopped, UserError
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.gspo import GSPOLoss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.programs.train_run import build_module
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance
from edge_grpo.types.rollouts import Rollout, ScoredRollout
from edge_grpo.types.update import Step

SOLUTION = "3 + 4 = 7\n\\boxed{7}"
SHARED = {"aggregation": "dapo", "beta": 0.0, "kl": "k3", "max_response_tokens": 8}


def of_problems(entropies=None, **texts):
    """A scored rollout: problem -> its four texts; and the mean entropy of a response by its row."""
    problems = tuple(Problem(name, "3 + 4 = ?", ("7",), prompt_ids=encode("3 + 4 = ?")) for name in texts)
    flat = [text for group in texts.values() for text in group]
    responses = [sampled(text) for text in flat]
    for row, value in (entropies or {}).items():
        responses[row] = replace(responses[row], entropies=torch.full((len(responses[row]),), value))
    made = Rollout(problems, tuple(responses), 4)
    scores = score([made.problem_of(row) for row in range(len(flat))], flat)
    return ScoredRollout(made, tuple(flat), scores, tuple(scores.rewards.view(-1, 4)))


def at(iteration, **changes):
    return replace(tools(**changes), iteration=iteration)


def lone(report):
    """The numbers that a report has, of groups of four rows."""
    return [value for value in report.view(-1, 4)[:, 0].tolist() if not math.isnan(value)]


# --- the shaped ratio ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "fraction", "weight"),
    # f = rho / (rho + 0.1); the weight of grad log pi is 0.1 rho / (rho + 0.1)^2: 0.1 / 1.21, 0.001 / 0.0121, 1 / 4.
    [(1.0, 1 / 1.1, 0.1 / 1.21), (0.01, 1 / 11, 0.001 / 0.0121), (0.1, 0.5, 0.25)],
)
@pytest.mark.parametrize("kind", ["clipped", "gspo"])
def test_the_gradient_of_a_shaped_row_by_hand(rho, fraction, weight, kind):
    settings = SHARED | {"epsilon_low": 0.2, "epsilon_high": 0.2}
    loss = ClippedLoss(**settings) if kind == "clipped" else GSPOLoss(**settings, level="sequence")
    logprobs = torch.full((2, 2), math.log(rho) - 1.0, dtype=torch.float64).requires_grad_()
    ones, old = torch.ones(2, 2, dtype=torch.float64), torch.full((2, 2), -1.0, dtype=torch.float64)
    inputs = LossInputs(
        logprobs, old, 3.0 * ones, ones.bool(), ones, ones, shaping=torch.tensor([0.1, 0.0], dtype=torch.float64)
    )
    value, reports = loss(inputs, UpdateSize(rows=2, tokens=4, microbatches=1))
    gradient = torch.autograd.grad(value, logprobs)[0]
    torch.testing.assert_close(gradient[0], -3.0 * weight * ones[0] / 4, rtol=1e-12, atol=0)
    # A = 3 > 0: below the clip the other row's token is rho A, its gradient too.
    torch.testing.assert_close(gradient[1], -3.0 * rho * ones[0] / 4, rtol=1e-12, atol=0)
    assert float(value.detach()) == pytest.approx(-3.0 * (2 * fraction + 2 * rho) / 4, rel=1e-12)
    assert all(bool(told[0].isnan().all()) and not told[1].isnan().any() for told in reports.values())


def test_metrics_of_off_policy_tokens():
    # The rows 0, 2 and 4 are off-policy, 0 and 2 are shaped. The reference's tokens weigh 0 and do not count.
    model, frozen = models()
    update = update_of(deepcopy(model), frozen, "grpo", CASES["kl, eda once, cut, off-policy"])
    project_run(update)
    with torch.no_grad():
        own = {row: [float(x) for x in statistics(model, row)[0]] for row in OFF_POLICY}
    counted = {0: 5, 2: 6, 4: 6}  # of 00000, 0001112 and 000011
    ratios = [math.exp(own[row][t] - OFF_POLICY[row][0]) for row, n in counted.items() for t in range(n)]
    told = off_policy_metrics(update)
    assert told["train/off_policy/ratio_mean"] == pytest.approx(sum(ratios) / 17, rel=1e-6)
    assert told["train/off_policy/ratio_max"] == pytest.approx(max(ratios), rel=1e-6)
    assert told["train/off_policy/shaped"] == pytest.approx(11 / 17)
    assert told["train/off_policy/tokens"] == pytest.approx(17 / (5 + 2 + 6 + 1 + 6 + 2 + 3 + 3 + 3 + 5 + 1))
    on_policy = update_of(deepcopy(model), frozen, "grpo", CASES["kl, eda once, one micro-batch"])
    project_run(on_policy)
    assert off_policy_metrics(on_policy) == {}


def test_the_remark_on_the_ratio_of_one_is_not_told_of_off_policy_rows():
    for option in ("reference_row", "lope", "replay_group", "exgrpo"):
        assert remarks("loss=dapo", f"correction={option}") == []
    assert len(remarks("loss=dapo", "correction=hpt")) == 1


# --- references ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["replay_group", "exgrpo", "lope"])
def test_ratios_against_a_truncated_distribution_are_refused(correction):
    settings = (*SMALL_GRPO, f"correction={correction}")
    with pytest.raises(UserError, match=r"rollout.top_p=0.9, rollout.min_p=0.1: correction \(\w+\) takes importance"):
        build_module(composed("train", *settings, "rollout.top_p=0.9", "rollout.min_p=0.1")[0])
    steps = ("correction=chain", f"correction@correction.steps.second={correction}")
    with pytest.raises(UserError, match=r"rollout.top_k=5: correction"):
        build_module(composed("train", *SMALL_GRPO, *steps, "rollout.top_k=5")[0])
    # A reference was put there with probability 1, whatever the rollout does.
    build_module(composed("train", *SMALL_GRPO, "correction=reference_row", "rollout.top_p=0.9")[0])


def test_a_reference_row_is_the_reference_in_a_row_drawn_uniformly():
    texts = [RIGHT, WRONG, WRONG, WRONG] * 500
    after = ReferenceRow("always", 0.1)(scored(texts, solution=SOLUTION), tools(seed=1))
    rows = [row for row, branch in enumerate(after.branches) if branch == "reference"]
    assert [row // 4 for row in rows] == list(range(500))
    # 125 each, with a deviation of sqrt(500 * 1/4 * 3/4) = 9.7. The right row leaves as often as another.
    assert all(count == pytest.approx(125, abs=39) for count in Counter(row % 4 for row in rows).values())
    for row in rows[:8]:
        response = after.scored.rollout.responses[row]
        assert response.token_ids.tolist() == [*encode(SOLUTION), EOS]
        assert set(response.provenance.tolist()) == {Provenance.REFERENCE}
        assert (response.off_policy, response.shaping, response.sampling_logprobs.abs().sum()) == (True, 0.1, 0)
        assert after.scored.texts[row] == SOLUTION
    # Three of four groups keep their right row beside the reference.
    assert after.scored.scores.correct.sum() == 500 + sum(row % 4 != 0 for row in rows)
    assert after.reports["reference_row/groups"].mean() == 1


def test_a_reference_row_of_all_wrong_groups_only():
    before = scored([RIGHT, WRONG, WRONG, WRONG] + [WRONG] * 4 + [RIGHT] * 4, solution=SOLUTION)
    after = ReferenceRow("all_wrong", 0.1)(before, tools())
    assert [branch is None for branch in after.branches].count(False) == 1
    assert after.scored.scores.correct.view(-1, 4).sum(1).tolist() == [1, 1, 4]
    assert after.reports["reference_row/groups"].mean() == pytest.approx(1 / 3)
    failing = replace(before.rollout.problems[0], solution_passes=False)
    without = replace(before, rollout=replace(before.rollout, problems=(failing,) * 3))
    after = ReferenceRow("all_wrong", 0.1)(without, tools())
    assert Counter(after.branches) == {None: 11, "no_reference": 1}
    assert after.scored is without


def test_hpt_drops_the_rows_of_a_failed_group_and_brings_its_reference():
    before = scored([RIGHT, WRONG, WRONG, WRONG] + [WRONG] * 4, solution=SOLUTION)
    after = HybridPostTraining(0, 0.5)(before, tools())
    assert after.branches == (None,) * 4 + ("reference", "dropped", "dropped", "dropped")
    responses = after.scored.rollout.responses
    assert [r.advantage for r in responses] == [None] * 4 + [0.5, 0.0, 0.0, 0.0]
    assert responses[4].token_ids.tolist() == [*encode(SOLUTION), EOS]
    assert not any(r.off_policy for r in responses)
    assert after.reports["hpt/groups"].mean() == 0.5
    # Two right rows are beyond gate 1, one is not.
    two = scored([RIGHT, RIGHT, WRONG, WRONG, RIGHT, WRONG, WRONG, WRONG], solution=SOLUTION)
    branches = HybridPostTraining(1, 1.0)(two, tools()).branches
    assert branches == (None,) * 4 + ("reference", "dropped", "dropped", "dropped")
    assert HybridPostTraining(-1, 1.0)(before, tools()).scored.rollout == before.rollout


@pytest.mark.parametrize("advantage", ["vanilla", "eda", "eda, groups cut"])
def test_the_gradient_of_a_row_that_brings_its_advantage_is_that_of_sft(advantage):
    # The last group has equal rewards. Its first row, of three tokens, brings 0.5, the others 0: they leave the
    # denominators, so the loss is -0.5 times the mean log-prob of the first row's tokens.
    model, _ = models()
    responses = list(rollout().responses)
    for row, value in ((9, 0.5), (10, 0.0), (11, 0.0)):
        responses[row] = replace(responses[row], advantage=value)
    policy = Policy(model=model, tokenizer=byte_tokenizer())
    made = replace(rollout(), responses=tuple(responses))
    batch = kept_rows(made, torch.tensor([False, False, True, True]), Keep(), policy, torch.device("cpu"))
    rewards = torch.tensor([0.5] * 3 + [0.0] * 3, dtype=torch.float64)
    built = Vanilla(1e-4)
    if advantage != "vanilla":
        built = EntropyDriven(built, 10.0, True, "group", "response", "rollout")
    loss = ClippedLoss(**(SHARED | {"aggregation": "grpo"}), epsilon_low=0.2, epsilon_high=0.2)
    # The group of equal rewards without such a row is skipped.
    computed = computed_rows(batch, rewards, built, loss, 3)
    assert computed.tolist() == [3, 4, 5]
    forward = MicrobatchForward(0.8, 5 if "cut" in advantage else 1000, chunk_tokens=5, packing=True)
    update = GRPOUpdate(model, None, batch, rewards, computed, built, loss, 3, forward)
    assert update.sizes()[0][:2] == (3 + 1, 2 + 4 + 3 + 3)
    gradients = []

    def optimise(microbatch_losses):
        model.zero_grad()
        for microbatch_loss in microbatch_losses:
            microbatch_loss().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return Step(0.0, 0.0)

    update.prepare()
    update.run(1, [UpdateSize(*size) for size in update.sizes()], optimise)
    logprobs, _ = statistics(model, 9)
    model.zero_grad()
    (-0.5 * torch.stack(logprobs).mean() / 4).backward()  # the mean is over the four rows that are trained
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], expected, rtol=0, atol=1e-10 * float(expected.norm()))
    assert update.advantages[3:, 0].tolist() == [0.5, 0.0, 0.0]


# --- perturbed prompts ---------------------------------------------------------------------------------------------


def lope(**changes):
    settings = {"rows": 6, "rows_per_prompt": 1, "min_words": 3, "max_words": 5, "shaping": 0.1, "reference": False}
    return PromptPerturbation(**(settings | changes))


def test_lope_puts_right_responses_to_perturbed_prompts_under_the_plain_one():
    calls = []
    before = of_problems(a=[WRONG] * 4, b=[RIGHT, WRONG, WRONG, WRONG], c=[RIGHT] * 4)
    after = lope()(before, tools(calls=calls))
    ((prefixes, budgets),) = calls
    assert budgets == [200] * 6
    texts = [decode(torch.tensor(prefix)).split("\n\n") for prefix in prefixes]
    assert {question for _, question in texts} == {"3 + 4 = ?"}
    words = [words.split() for words, _ in texts]
    assert all(3 <= len(some) <= 5 and set(some) <= set(PASSAGE.split()) for some in words)
    assert len({tuple(some) for some in words}) == 6
    # All six are right, three of them find a place: one wrong row stays.
    assert after.branches == ("perturbed",) * 3 + (None,) * 9
    for row in range(3):
        response = after.scored.rollout.responses[row]
        assert (response.off_policy, response.shaping, response.prompt_ids) == (True, 0.1, None)
        assert torch.equal(response.sampling_logprobs, sampled(" so \\boxed{7}").sampling_logprobs)
        assert after.scored.texts[row] == " so \\boxed{7}"
    assert after.scored.scores.rewards[:4].tolist() == [1, 1, 1, 0]
    assert [own.tolist() for own in after.scored.drawn] == [[0] * 4 + [1] * 6, [1, 0, 0, 0], [1] * 4]
    assert all(a is b for a, b in zip(after.scored.rollout.responses[3:], before.rollout.responses[3:], strict=True))
    assert after.reports["lope/groups"].mean() == pytest.approx(1 / 3)
    assert lone(after.reports["lope/right"]) == [1.0]


def test_rows_of_lope_share_perturbed_prompts():
    calls = []
    before = of_problems(a=[WRONG] * 4, b=[WRONG] * 4)
    after = lope(rows_per_prompt=3)(before, tools(calls=calls))
    ((prefixes, _),) = calls  # one call for all groups: of each group two prompts of three rows
    assert [prefixes[i] for i in range(0, 12, 3) for _ in range(3)] == prefixes
    assert len({tuple(prefix) for prefix in prefixes}) == 4
    assert [len(own) for own in after.scored.drawn] == [10, 10]
    assert after.branches == ("perturbed",) * 3 + (None,) + ("perturbed",) * 3 + (None,)


def test_lope_without_a_right_response_or_room_for_one():
    before = scored([WRONG] * 8, solution=SOLUTION)
    after = lope()(before, tools(continuation=" so \\boxed{5}"))
    assert after.branches == (None,) * 8
    assert lone(after.reports["lope/right"]) == [0.0, 0.0]
    helped = lope(reference=True)(before, tools(continuation=" so \\boxed{5}"))
    assert helped.scored.scores.correct.view(-1, 4).sum(1).tolist() == [1, 1]
    assert Counter(helped.branches) == {None: 6, "reference": 2}
    right = [r for r in helped.scored.rollout.responses if r.off_policy]
    assert [(r.shaping, set(r.provenance.tolist())) for r in right] == [(0.1, {Provenance.REFERENCE})] * 2
    # The shortest prompt has 3 words of 2 letters, 2 spaces, 2 line ends and 9 of the question: 19 tokens.
    calls = []
    after = lope()(before, tools(calls=calls, context_length=18))
    assert (calls, set(after.branches)) == ([], {"no_room"})
    lope()(before, tools(calls=calls, context_length=60))
    ((prefixes, budgets),) = calls
    assert 0 < len(prefixes) <= 12
    assert [len(p) + b for p, b in zip(prefixes, budgets, strict=True)] == [60] * len(prefixes)


# --- replay of groups ----------------------------------------------------------------------------------------------


def test_a_dead_group_is_replaced_by_a_stored_one_with_all_that_was_recorded():
    built = ReplayGroup(64)
    first = of_problems(a=[WRONG] * 4)
    after = built(first, at(0))
    assert (after.branches, after.scored.rollout) == ((None,) * 4, first.rollout)  # nothing is stored yet
    live = of_problems({row: 0.1 * row for row in range(4)}, b=[RIGHT, WRONG, WRONG, WRONG])
    live = replace(live, drawn=(torch.tensor([1.0, 0, 0, 0, 0, 0]),))
    assert built(live, at(3)).branches == (None,) * 4
    dead = of_problems(a=[WRONG] * 4, c=[RIGHT] * 4)
    after = built(dead, at(8))
    assert after.branches == ("replayed",) * 8
    assert [problem.id for problem in after.scored.rollout.problems] == ["b", "b"]  # fewer stored than dead: again
    for row, response in enumerate(after.scored.rollout.responses):
        was = live.rollout.responses[row % 4]
        assert response.off_policy
        assert response.shaping == 0
        for name in ("token_ids", "sampling_logprobs", "entropies", "provenance"):
            assert torch.equal(getattr(response, name), getattr(was, name))
    assert after.scored.scores.rewards.tolist() == [1, 0, 0, 0] * 2
    assert after.scored.texts == live.texts * 2
    assert [own.tolist() for own in after.scored.drawn] == [[1, 0, 0, 0, 0, 0]] * 2
    assert lone(after.reports["replay_group/age"]) == [5, 5]
    assert lone(after.reports["replay_group/stored"]) == [1, 1]
    # What was replayed, and what a correction made, is not stored again.
    assert lone(built(after.scored, at(9)).reports["replay_group/stored"]) == [1, 1]
    corrected = ReferenceRow("always", 0.1)(scored([WRONG] * 4, solution=SOLUTION), tools()).scored
    assert lone(built(corrected, at(9)).reports["replay_group/stored"]) == [1]


def test_a_full_store_gives_up_its_lowest_score_for_a_higher_one():
    # Scores: (1, 0, 0, 0) 1.4997. (1, 1, 0, 0): s = 1 / sqrt(3), abs(A) = 0.8659, so 4 * 0.8659 / sqrt(3) = 1.9997.
    low, high = [RIGHT, WRONG, WRONG, WRONG], [RIGHT, RIGHT, WRONG, WRONG]
    built = ReplayGroup(2)
    for iteration, (name, texts) in enumerate([("a", low), ("b", low), ("c", low), ("d", high), ("e", low)]):
        built(of_problems(**{name: texts}), at(iteration))
    stored = [(score, group["problem_id"]) for score, _, group in built.state_dict()["heap"]]
    # c and e are not higher than the lowest; d drives out a, the older of the two lowest.
    assert [name for _, name in stored] == ["b", "d"]
    assert [score for score, _ in stored] == pytest.approx([1.49970006, 1.99965358], abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    names = Counter(built._drawn(1, generator)[0].problem_id for _ in range(2000))
    # 1.4997 / 3.4994 = 0.4286, with a deviation of 0.011.
    assert names["b"] / 2000 == pytest.approx(0.4286, abs=0.04)
    assert {group.problem_id for group in built._drawn(2, generator)} == {"b", "d"}


# --- replay of responses -------------------------------------------------------------------------------------------


def exgrpo(**changes):
    return ExGRPO(**({"share": 0.5, "start_accuracy": 0.25, "shaping": 0.1, "capacity": 100} | changes))


def stored(built):
    """Problem -> bucket, iteration and tokens of what is stored."""
    return {name: (k, i, decode(r["token_ids"])) for name, k, i, r in built.state_dict()["stored"]}


def test_exgrpo_stores_the_surest_right_response_of_problems_that_are_neither_easy_nor_hopeless():
    built, other = exgrpo(), "again " + RIGHT
    built(of_problems({0: 0.5, 1: 0.2, 2: 0.1}, a=[RIGHT, other, WRONG, WRONG], b=[WRONG] * 4, c=[RIGHT] * 4), at(0))
    assert stored(built) == {"a": (2, 0, other)}
    assert built.state_dict()["retired"] == ["c"]
    # Visited again: another bucket, and the response that was surer stays; then one that is surer still.
    built(of_problems({0: 0.3}, a=[RIGHT, WRONG, WRONG, WRONG]), at(1))
    assert stored(built) == {"a": (1, 0, other)}
    built(of_problems({0: 0.1}, a=[RIGHT, WRONG, WRONG, WRONG]), at(2))
    assert stored(built) == {"a": (1, 2, RIGHT)}
    # All wrong changes nothing, all right retires for good.
    built(of_problems(a=[WRONG] * 4), at(3))
    assert stored(built) == {"a": (1, 2, RIGHT)}
    for texts in ([RIGHT] * 4, [RIGHT, WRONG, WRONG, WRONG]):
        built(of_problems(a=texts), at(4))
        assert stored(built) == {}
    # The visit that is longest ago gives way; a corrected group is no visit.
    small, mixed = exgrpo(capacity=2), [RIGHT, WRONG, WRONG, WRONG]
    for name in "abac":
        small(of_problems(**{name: mixed}), at(0))
    assert list(stored(small)) == ["a", "c"]
    small(ReferenceRow("always", 0.1)(scored([WRONG] * 4, solution=SOLUTION), tools()).scored, at(1))
    assert list(stored(small)) == ["a", "c"]


def test_exgrpo_replays_a_stored_response_among_fresh_ones():
    calls, built = [], exgrpo()
    built(of_problems(a=[RIGHT, WRONG, WRONG, WRONG]), at(2))
    before = of_problems(b=[WRONG] * 4, c=[RIGHT] * 4, d=[RIGHT, RIGHT, WRONG, WRONG])
    after = built(before, at(6, calls=calls, continuation=" so \\boxed{7}"))
    ((prefixes, budgets),) = calls
    assert (prefixes, budgets) == ([list(encode("3 + 4 = ?"))] * 3, [200] * 3)
    names = [problem.id for problem in after.scored.rollout.problems]
    place = names.index("a")  # one of the two dead groups: half of three, rounded up, are two, but one is stored
    assert place in (0, 1)
    assert after.branches.count("replayed") == 1
    group = slice(4 * place, 4 * place + 4)
    assert after.branches[group] == ("replayed", "fresh", "fresh", "fresh")
    rows = after.scored.rollout.responses[group]
    assert [(r.off_policy, r.shaping) for r in rows] == [(True, 0.1)] + [(False, 0.0)] * 3
    assert torch.equal(rows[0].sampling_logprobs, sampled(RIGHT).sampling_logprobs)
    assert after.scored.texts[group] == (RIGHT,) + (" so \\boxed{7}",) * 3
    assert lone(after.reports["exgrpo/age"]) == [4]
    assert after.reports["exgrpo/groups"].mean() == pytest.approx(1 / 3)
    # All three fresh ones are right, so the problem retires; d was visited.
    assert built.state_dict()["retired"] == ["a", "c"]
    assert {name: k for name, (k, *_) in stored(built).items()} == {"d": 2}


def test_exgrpo_waits_for_its_accuracy_and_never_stops_again():
    mixed, dead = [RIGHT, WRONG, WRONG, WRONG], [WRONG] * 4
    built = exgrpo(start_accuracy=0.5, share=0.1)
    built(of_problems(a=mixed, e=mixed), at(0))
    assert "replayed" not in built(of_problems(b=dead, c=dead), at(1)).branches
    built(of_problems(c=[RIGHT, RIGHT, WRONG, WRONG]), at(2))  # one half is right
    after = built(of_problems(b=dead, a=dead), at(3, continuation="no"))
    # A tenth of two groups, rounded up, is one. Problem a is in the batch, so it is c or e.
    assert after.branches.count("replayed") == 1
    assert {problem.id for problem in after.scored.rollout.problems} & {"c", "e"}


def test_exgrpo_draws_buckets_by_a_normal_weight():
    built = exgrpo()
    built(of_problems(a=[RIGHT, WRONG, WRONG, WRONG], b=[RIGHT, RIGHT, WRONG, WRONG]), at(0))
    built(of_problems(c=[RIGHT, WRONG, WRONG, WRONG]), at(0))
    generator = torch.Generator().manual_seed(0)
    names = Counter(built._drawn(1, 4, (), generator)[0] for _ in range(2000))
    # Buckets 1 and 2 of 4 weigh exp(-1/2) and 1: 0.3775 and 0.6225, with a deviation of 0.011; a and c share the first.
    assert [names[name] / 2000 for name in "abc"] == pytest.approx([0.189, 0.6225, 0.189], abs=0.035)
    assert sorted(built._drawn(9, 4, (), generator)) == ["a", "b", "c"]


# --- runs and bad values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [("replay_group",), ("exgrpo", "correction.start_accuracy=0")], ids=lambda s: s[0])
def test_a_replay_goes_on_bit_for_bit_after_a_stop(settings, tmp_path, monkeypatch):
    name, *others = settings
    run = (
        "experiment=vanilla", f"correction={name}", *others, "trainer.max_iterations=4", "optimizer.lr=0.01",
        "data.problems_per_iteration=4", "algorithm.num_generations=2", "rollout.max_new_tokens=4", "reward=python",
        f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum",
    )  # fmt: skip
    whole = run_small(tmp_path / "whole", *run)
    with monkeypatch.context() as patch:
        signal_once(patch, PolicyModule, "optimise", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_small(tmp_path / "cut", *run)
    run_small(tmp_path / "cut", *run)
    assert_same(tmp_path / "cut", whole)
    logged = [row for row in metrics_rows(whole) if row.get(f"{name}/groups")]
    # Rows of before the stop come again after it, and their ratio is not 1.
    assert max(float(row[f"{name}/age"] or 0) for row in logged[2:]) >= 1
    assert any(abs(float(row["train/off_policy/ratio_mean"] or 1) - 1) > 1e-3 for row in logged[2:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReferenceRow("always", 0.0), r"correction\.shaping=0\.0 must be above 0"),
        (lambda: ReferenceRow("never", 0.1), r"correction\.when=never: expected always or all_wrong"),
        (lambda: HybridPostTraining(-2, 1.0), r"correction\.gate=-2 must be at least -1"),
        (lambda: HybridPostTraining(0, 0.0), r"correction\.coefficient=0\.0 must be above 0"),
        (lambda: lope(rows=0), r"correction\.rows=0 must be above 0"),
        (lambda: lope(rows_per_prompt=4), r"correction\.rows=6 must be a multiple of correction\.rows_per_prompt=4"),
        (lambda: lope(min_words=6), r"correction\.min_words=6 and correction\.max_words=5"),
        (lambda: lope(shaping=math.nan), r"correction\.shaping=nan must be above 0"),
        (lambda: ReplayGroup(0), r"correction\.capacity=0 must be at least 1"),
        (lambda: exgrpo(share=1.5), r"correction\.share=1\.5 must be at most 1"),
        (lambda: exgrpo(share=0), r"correction\.share=0 must be above 0"),
        (lambda: exgrpo(start_accuracy=-0.1), r"correction\.start_accuracy=-0\.1 must be in \[0, 1\]"),
        (lambda: exgrpo(capacity=0), r"correction\.capacity=0 must be above 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=f"^{message}"):
        make()
