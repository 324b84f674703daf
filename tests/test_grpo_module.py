"""The update against hand-worked numbers, and its invariance to how it is cut into micro-batches."""

import io
from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from small_runs import SMALL_GRPO, composed

from edge_grpo.advantages.base import Grading, RewardAdvantage, UpdateGroups
from edge_grpo.advantages.dr_grpo import DrGRPO
from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.metrics import update_metrics
from edge_grpo.algorithms.rows import computed_rows, grading_of, kept_rows
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected
from edge_grpo.errors import UserError
from edge_grpo.losses.adaptive_entropy import AdaptiveEntropyLoss
from edge_grpo.losses.base import UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.gvpo import GVPOLoss
from edge_grpo.losses.real import REALLoss
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.tiny import random_tiny_policy
from edge_grpo.programs.train_run import build_module
from edge_grpo.token_filters.base import TokenFilterInputs
from edge_grpo.token_filters.clip_cov import ClipCov
from edge_grpo.token_filters.top_entropy import TopEntropy
from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response, written_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores
from edge_grpo.types.update import Step

G = 3
PROMPTS = ((65, 66, 67, 68), (70, 71))
LENGTHS = (5, 2, 7, 1, 6, 3)
REWARDS = (1.0, 0.0, 0.0, 0.0, 2.0, 1.0)
# 9, 6, 11, 3, 8, 5 tokens a row with its prompt. Packed, the groups have 4 + 14 and 2 + 10 tokens: one micro-batch
# holds 30, two hold a group each, and with a bound of 11 groups are cut.
MANY, FEW, ONE = 11, 18, 66


@pytest.fixture
def model():
    """A float64 policy, not so flat as a freshly initialised one."""
    policy = random_tiny_policy(0, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(4.0)
    return exact(policy.model)


def exact(model):
    """In float64 throughout: Qwen2's own norm rounds to float32 inside, whatever its weights are."""
    for name, module in list(model.named_modules()):
        if "norm" in name.rsplit(".", 1)[-1]:
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.to(torch.float64)


def batch():
    generator = torch.Generator().manual_seed(0)
    responses = tuple(
        Response(
            torch.randint(0, 256, (length,), generator=generator),
            torch.zeros(length),
            torch.zeros(length),
            torch.full((length,), Provenance.SAMPLED, dtype=torch.int8),
            "length",
        )
        for length in LENGTHS
    )
    problems = tuple(Problem(str(i), "?", ("1",), prompt_ids=ids) for i, ids in enumerate(PROMPTS))
    rows = range(len(LENGTHS))
    device = torch.device("cpu")
    return to_update_batch(
        Rollout(problems, responses, G), rows, token_weight=UNIFORM_WEIGHT, pad_id=260, device=device
    )


def clipped(aggregation="grpo", beta=0.0, epsilon=0.2):
    return ClippedLoss(
        aggregation=aggregation, epsilon_low=epsilon, epsilon_high=epsilon, beta=beta, kl="k3", max_response_tokens=10
    )


def eda(**official):
    settings = {"clamp": 10.0, "detach": True, "scope": "group", "mask": "response", "refresh": "rollout"}
    return EntropyDriven(Vanilla(eps=1e-4), **(settings | official))


@dataclass(frozen=True)
class Given(RewardAdvantage):
    """The rewards themselves."""

    def __call__(self, inputs):
        return inputs.rewards, {}


class Gradients:
    """An `optimise` that keeps the gradients and takes a plain gradient step of size `lr`."""

    def __init__(self, model, lr=0.0):
        self.model, self.lr = model, lr
        self.seen = []

    def __call__(self, microbatch_losses):
        self.model.zero_grad()
        total = 0.0
        for microbatch_loss in microbatch_losses:
            loss = microbatch_loss()
            loss.backward()
            total += float(loss.detach())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradient = torch.cat([p.grad.flatten() for p in trained])
        self.seen.append(gradient)
        with torch.no_grad():
            for p in trained:
                p -= self.lr * p.grad
        return Step(total, float(gradient.norm()))


def recorded_of(rows):
    """What a rollout could have recorded of the batch."""
    generator = torch.Generator().manual_seed(1)
    entropy, logprobs = torch.rand(2, *rows.token_weights.shape, generator=generator)
    return TokenFilterInputs(
        entropy=entropy,
        sampling_logprobs=-3 * logprobs,
        trained=rows.completion_mask,
        sampled=rows.sampled_mask,
        advantages=None,
        over_ranks=lambda values: values,
        generator=lambda: torch.Generator().manual_seed(2),
    )


def run(
    model,
    loss,
    advantage,
    microbatch_tokens=ONE,
    epochs=1,
    lr=0.0,
    reference=None,
    packing=True,
    rewards=REWARDS,
    token_filter=None,
):
    """Gradients of each epoch, metrics, and the number of micro-batches."""
    rows, rewards = batch(), torch.tensor(rewards)
    groups = rewards.view(-1, G)
    groups = UpdateGroups(groups, groups >= 1, torch.full((len(groups),), G), {})
    update = GRPOUpdate(
        model=model,
        reference=reference,
        batch=rows,
        rewards=rewards,
        computed=computed_rows(rows, rewards, advantage, loss, G),
        advantage=advantage,
        loss=loss,
        num_generations=G,
        forward=MicrobatchForward(0.8, microbatch_tokens, chunk_tokens=5, packing=packing),
        grading=Grading(rewards >= 1, {}, {}, 2.0, groups),
        token_filter=token_filter,
        recorded=recorded_of(rows),
    )
    update.prepare()
    gradients = Gradients(model, lr)
    steps = update.run(epochs, [UpdateSize(*size) for size in update.sizes()], gradients)
    return gradients.seen, update_metrics(update, steps), len(update.microbatches)


class Seen(RewardAdvantage):
    """The rewards; keeps the sums of the log-probs that it gets."""

    reads_entropy = True

    def __init__(self, inside_update):
        self.inside_update, self.seen = inside_update, []

    def zero_advantage_groups(self, inputs):
        return torch.zeros(len(inputs.grouped_rewards), dtype=torch.bool)

    def __call__(self, inputs):
        self.seen.append((inputs.logprobs * inputs.completion_mask).sum())
        return inputs.rewards, {}


@pytest.mark.parametrize("inside_update", [False, True])
def test_an_advantage_gets_the_log_probs_of_the_policy_before_the_update(model, inside_update):
    # Once over whole groups in the first epoch, once by a pass of its own, where one response is a micro-batch.
    before = [p.detach().clone() for p in model.parameters()]
    seen = {}
    for tokens in (ONE, FEW, MANY):
        strategy = Seen(inside_update)
        run(model, clipped(), strategy, tokens, epochs=2, lr=0.1)
        with torch.no_grad():
            for p, value in zip(model.parameters(), before, strict=True):
                p.copy_(value)
        seen[tokens] = strategy.seen
    assert all(not value.requires_grad for values in seen.values() for value in values)
    epochs = 2 if inside_update else 1
    totals = [sum(map(float, part)) for values in seen.values() for part in torch.stack(values).chunk(epochs)]
    assert totals[0] < -1
    assert totals == pytest.approx([totals[0]] * 3 * epochs, rel=1e-5)


@pytest.mark.parametrize("advantage", [Vanilla(eps=1e-4), eda()], ids=["vanilla", "eda"])
@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
def test_the_gradient_does_not_depend_on_the_micro_batches(model, aggregation, advantage):
    runs = [run(model, clipped(aggregation), advantage, tokens) for tokens in (ONE, FEW, MANY)]
    runs.append(run(model, clipped(aggregation), advantage, MANY, packing=False))
    assert [count for *_, count in runs] == [1, 2, 4, 6]
    ((whole,), metrics, _), *others = runs
    assert whole.norm() > 1e-3
    for (gradient,), other_metrics, _ in others:
        torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12 * float(whole.norm()))
        assert other_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-7)


GROUP_LOSSES = [GVPOLoss(kl_weight=0.1), REALLoss(tau=0.5)]


@pytest.mark.parametrize("loss", GROUP_LOSSES, ids=["gvpo", "real"])
def test_a_loss_of_whole_groups_is_never_given_a_part_of_one(model, loss):
    start = [p.detach().clone() for p in model.parameters()]
    runs = []
    for tokens, packing in ((ONE, True), (FEW, True), (MANY, True), (MANY, False)):
        with torch.no_grad():
            for p, value in zip(model.parameters(), start, strict=True):
                p.copy_(value)
        runs.append(run(model, loss, DrGRPO(), tokens, epochs=2, lr=0.1, packing=packing))
    assert [count for *_, count in runs] == [1, 2, 2, 2]
    (first, whole), *others = (gradients for gradients, *_ in runs)
    assert first.norm() > 1e-3
    assert not torch.allclose(first, whole, rtol=1e-2)  # the second epoch is not at ratio 1
    for _, gradient in others:
        torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12 * float(whole.norm()))


FILTERS = [TopEntropy(top_share=0.4, over="update"), ClipCov(share=0.2, lowest=0.1, highest=5.0)]


@pytest.mark.parametrize("advantage", [Vanilla(eps=1e-4), eda()], ids=["vanilla", "eda"])
@pytest.mark.parametrize("token_filter", FILTERS, ids=["top_entropy", "clip_cov"])
def test_what_a_token_filter_takes_does_not_depend_on_the_micro_batches(model, token_filter, advantage):
    runs = [run(model, clipped(), advantage, tokens, token_filter=token_filter) for tokens in (ONE, FEW, MANY)]
    ((whole,), metrics, _), *others = runs
    (unfiltered,), *_ = run(model, clipped(), advantage)
    assert (whole - unfiltered).norm() > 1e-2 * unfiltered.norm()
    for (gradient,), other_metrics, _ in others:
        torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12 * float(whole.norm()))
        assert other_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-7)


@dataclass(frozen=True)
class Constant:
    """One factor for all tokens."""

    factor: float
    reads_advantages = False

    def __call__(self, inputs):
        return torch.full_like(inputs.entropy, self.factor), {}


def test_a_factor_scales_the_advantage_and_leaves_denominators_and_the_kl_term(model):
    frozen = deepcopy(model)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.mul_(0.9)
    of = lambda beta, factor: run(  # noqa: E731
        model, clipped(beta=beta), Vanilla(eps=1e-4), reference=frozen if beta else None, token_filter=Constant(factor)
    )[0][0]
    policy = of(0.0, 1.0)
    torch.testing.assert_close(of(0.0, 0.5), policy / 2, rtol=0, atol=1e-12 * float(policy.norm()))
    kl = of(0.5, 0.0)
    assert kl.norm() > 1e-4
    torch.testing.assert_close(of(0.5, 1.0), policy + kl, rtol=0, atol=1e-12 * float(policy.norm()))


def test_the_entropy_bonus_has_the_gradient_of_the_entropies(model):
    # alpha is 0.002 in the second iteration below the target. The bonus alone, by a forward pass of its own: rewards
    # of 0 leave no other gradient, and then every row has to be computed for it.
    loss = AdaptiveEntropyLoss(
        aggregation="dapo", epsilon_low=0.2, epsilon_high=0.2, beta=0.0, kl="k3", max_response_tokens=10,
        target_entropy=9.0, step=0.002, max_coefficient=0.005,
    )  # fmt: skip
    zeros = (0.0,) * 6
    assert run(model, loss, DrGRPO(), rewards=zeros)[0][0].norm() == 0
    for _ in range(2):
        loss.observe(SimpleNamespace(mean_entropy=1.0))
    assert loss.coefficient == 0.002
    rows = batch()
    total = 0.0
    for row in range(rows.num_rows):
        start, length = int(rows.prompt_lengths[row]), int(rows.response_lengths[row])
        logits = model(rows.tokens[row : row + 1, : start + length]).logits[0, start - 1 : -1] / 0.8
        total = total + torch.distributions.Categorical(logits=logits).entropy().sum()
    expected = torch.autograd.grad(-0.002 * total / sum(LENGTHS), list(model.parameters()))
    expected = torch.cat([part.flatten() for part in expected])
    for tokens in (ONE, MANY):
        gradient = run(model, loss, DrGRPO(), tokens, rewards=zeros)[0][0]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10 * float(expected.norm()))


def test_collapsed_groups_are_not_computed_and_nothing_else_changes(model):
    # The first group is all wrong. With a KL term of weight 1e-300 every row is computed.
    rewards = (0.0, 0.0, 0.0, 0.0, 2.0, 1.0)
    for advantage in (Vanilla(eps=1e-4), eda()):
        (skipping,), metrics, cut = run(model, clipped(), advantage, FEW, rewards=rewards)
        (computing,), others, all_cut = run(
            model, clipped(beta=1e-300), advantage, FEW, rewards=rewards, reference=model
        )
        assert (cut, all_cut) == (1, 2)
        assert metrics["perf/skipped_tokens"] == 9 + 6 + 11
        assert others["perf/skipped_tokens"] == 0
        torch.testing.assert_close(skipping, computing, rtol=0, atol=1e-12 * float(computing.norm()))
        assert metrics["train/loss"] == pytest.approx(others["train/loss"], rel=1e-9)


def test_where_every_group_collapsed_the_gradient_is_zero_and_not_missing(model):
    (gradient,), metrics, cut = run(model, clipped(), Vanilla(eps=1e-4), FEW, rewards=(1.0,) * 6)
    assert (cut, float(gradient.norm()), metrics["train/loss"]) == (1, 0.0, 0.0)


def test_bnpo_depends_on_the_micro_batches_by_definition(model):
    ((whole,), *_), ((cut,), *_) = (run(model, clipped("bnpo"), Vanilla(eps=1e-4), t) for t in (ONE, MANY))
    assert (whole - cut).norm() > 1e-2 * whole.norm()


def test_kl_gradient_does_not_depend_on_the_micro_batches(model):
    reference = random_tiny_policy(1, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64)
    reference = exact(reference.model)
    loss = clipped(beta=0.5)
    ((whole,), metrics, _), ((cut,), *_) = (
        run(model, loss, Vanilla(eps=1e-4), tokens, reference=reference) for tokens in (ONE, MANY)
    )
    assert metrics["train/kl"] > 0
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12 * float(whole.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratio_is_exactly_one_at_the_first_epoch(model, dtype):
    # Every ratio is 1, so a row's token mean of -ratio A is -A, and the mean over rows is
    # -(1 + 0 + 0 + 0 + 2 + 1) / 6 = -2 / 3. A clip range of width 0 would catch any other ratio.
    _, metrics, _ = run(model.to(dtype), clipped(epsilon=0.0), Given(), FEW)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert metrics["train/loss"] == pytest.approx(-2 / 3, abs=tolerance)
    assert (metrics["train/clip_ratio/low_mean"], metrics["train/clip_ratio/high_mean"]) == (0, 0)


def test_the_ratio_leaves_one_at_the_second_epoch(model):
    gradients, metrics, _ = run(model, clipped(epsilon=0.0), Given(), FEW, epochs=2, lr=1e-2)
    assert metrics["train/clip_ratio/high_mean"] > 0  # a step up the gradient makes tokens with A > 0 likelier
    assert (gradients[0] - gradients[1]).norm() > 0
    # Epsilon 0 clips every token that the step improved: less gradient is left.
    assert gradients[1].norm() < gradients[0].norm()


def test_eda_with_its_gradient_has_the_same_loss_and_another_gradient(model):
    (detached,), one, _ = run(model, clipped(), eda())
    (attached,), two, _ = run(model, clipped(), eda(detach=False))
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-6)
    assert (attached - detached).norm() > 1e-3 * detached.norm()


def test_taking_eda_again_in_the_update_changes_nothing_at_the_first_epoch(model):
    (once,), *_ = run(model, clipped(), eda(), FEW)
    (again,), *_ = run(model, clipped(), eda(refresh="update"), FEW)
    # Entropies of the update's own forward pass are those taken before it, up to the float32 they were kept in.
    torch.testing.assert_close(again, once, rtol=0, atol=1e-6 * float(once.norm()))


def test_metrics_of_the_update_by_hand(model):
    _, metrics, _ = run(model, clipped(), Given())
    # Row advantages 1, 0, 0, 0, 2, 1: mean 2/3, squares' mean 6/6, variance 1 - 4/9; three rows are not 0.
    assert metrics["train/advantage_var"] == pytest.approx(5 / 9, rel=1e-6)
    assert metrics["train/effective_rows"] == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.num_generations=1", "algorithm.num_generations=1: a group needs at least 2 responses"),
        ("advantage=pass_at_k", "algorithm.num_generations=2: this advantage needs groups of at least 3 responses"),
        ("algorithm.update_epochs=0", "algorithm.update_epochs=0 must be at least 1"),
        ("algorithm.minibatch_rows=3", "algorithm.minibatch_rows=3 must be a multiple of algorithm.num_generations=2"),
        ("algorithm.minibatch_rows=0", "algorithm.minibatch_rows=0 must be a multiple of algorithm.num_generations=2"),
        ("algorithm.microbatch_tokens=0", "algorithm.microbatch_tokens=0 must be above 0"),
        ("algorithm.chunk_tokens=0", "algorithm.chunk_tokens=0 must be above 0"),
        ("algorithm.max_grad_norm=0.0", "algorithm.max_grad_norm=0.0 must be above 0"),
        ("rollout.temperature=0.0", "rollout.temperature=0: greedy responses of a group are all equal"),
    ],
)
def test_values_out_of_range_are_refused(override, message):
    cfg, _ = composed("train", *SMALL_GRPO, override)
    with pytest.raises(UserError) as caught:
        build_module(cfg)
    assert message in str(caught.value)


@pytest.mark.parametrize("advantage", ["maxrl", "dgpo", "entropy_driven advantage@advantage.base=pass_at_k"])
def test_what_estimates_the_pass_rate_is_refused_on_corrected_rows(advantage):
    # `SMALL_GRPO` has the default correction, guided; four responses, which pass_at_k needs.
    settings = (*SMALL_GRPO, *f"advantage={advantage}".split(), "algorithm.num_generations=4")
    with pytest.raises(UserError) as caught:
        build_module(composed("train", *settings)[0])
    name = {"maxrl": "MaxRL", "dgpo": "DGPO"}.get(advantage, "PassAtK")
    assert str(caught.value) == (
        f"algorithm: advantage ({name}) estimates the policy's success rate by the share of right rows, which "
        "correction (GuidedCorrection) changes: set correction=none"
    )
    build_module(composed("train", *settings, "correction=none")[0])


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("vanilla", []),
        ("ngrpo", []),
        ("unlikeliness", ["EntropyDriven over Unlikeliness"]),
        ("rl_zvp", ["EntropyDriven over ZeroVariancePrompts"]),
    ],
)
def test_entropy_that_counts_twice_is_warned_of_once(base, told, caplog):
    build_module(composed("train", *SMALL_GRPO, f"advantage@advantage.base={base}")[0])
    ending = " both follow the policy's entropy (or likelihood), which counts twice"
    assert [text for text in caplog.messages if text.endswith(ending)] == [f"advantage: {n}{ending}" for n in told]


def test_rows_that_the_group_filter_keeps_have_their_own_rewards():
    # Of two groups of two the first is all wrong and is dropped: rows 2 and 3 with rewards 0 and 1 are left.
    cfg, _ = composed("train", *SMALL_GRPO, "experiment=vanilla", "group_filter=drop_zero_variance")
    module = build_module(cfg)
    response = Response(*torch.zeros(3, 1), torch.zeros(1, dtype=torch.int8), "stop")
    response = replace(response, token_ids=torch.tensor([65]))
    problems = tuple(Problem(name, "?", ("1",), prompt_ids=(65, 66)) for name in "ab")
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0])
    scored = ScoredRollout(Rollout(problems, (response,) * 4, 2), ("",) * 4, Scores(rewards, {}, rewards == 1))
    update = module.update_of(Corrected(scored, (None,) * 4))
    assert update.batch.row_ids.tolist() == [2, 3]
    update.prepare()
    assert update.advantages[:, 0].sign().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("settings", "finished", "trained"),
    [
        ((), "length", 4),
        (("algorithm.mask_truncated=true",), "length", 3),
        (("group_filter=drop_same_outcome",), "length", 4),
        # No group has right and wrong rows: the first one stands in, with weight 0.
        (("group_filter.low=0.6", "group_filter=drop_same_outcome"), "stop", 0),
    ],
)
def test_trained_tokens_are_those_that_the_loss_is_over(settings, finished, trained):
    cfg, _ = composed("train", *SMALL_GRPO, "experiment=vanilla", *settings)
    module = build_module(cfg)
    module._trainer = SimpleNamespace(world_size=1)
    one = written_response(torch.tensor([65]), Provenance.SAMPLED, "stop")
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0])
    problems = tuple(Problem(name, "?", ("1",), prompt_ids=(65, 66)) for name in "ab")
    rollout = Rollout(problems, (one, one, one, replace(one, finish_reason=finished)), 2)
    scored = ScoredRollout(rollout, ("",) * 4, Scores(rewards, {}, rewards == 1))
    counted = module.counts(module.update_of(Corrected(scored, (None,) * 4)))
    assert counted["train/num_tokens"] == trained


def graded_groups(kept):
    """Two groups of two, of which the filter keeps some, as a batch with scores."""
    response = Response(*torch.zeros(3, 2), torch.zeros(2, dtype=torch.int8), "stop")
    response = replace(response, token_ids=torch.tensor([65, 66]))
    short = Response(*(value[:1] for value in (response.token_ids, *torch.zeros(2, 1), response.provenance)), "stop")
    problems = tuple(Problem(name, "?", ("1",), prompt_ids=(65, 66)) for name in "ab")
    rollout = Rollout(problems, (response, response, response, short), 2)
    parts = {"accuracy": torch.tensor([0.0, 1, 1, 0]), "format": torch.tensor([1.0, 0, 1, 0])}
    scores = Scores(parts["accuracy"] + parts["format"], parts, parts["accuracy"] == 1)
    policy, correction = SimpleNamespace(pad_id=0), SimpleNamespace(token_weight=UNIFORM_WEIGHT)
    batch = kept_rows(rollout, torch.tensor(kept), correction, policy, torch.device("cpu"))
    return batch, ScoredRollout(rollout, ("",) * 4, scores)


def graded(kept, gathered, weight=1.0):
    batch, scored = graded_groups(kept)
    batch = replace(batch, token_weights=batch.token_weights * weight)
    rewards = SimpleNamespace(weights={"accuracy": 1.0, "format": 1.0}, max_reward=2.0)
    return grading_of(batch, scored, rewards, History(), gathered, stands_in=not any(kept))


def test_an_advantage_gets_the_verdicts_of_the_rows_that_are_kept():
    grading = graded([False, True], lambda value: [value])
    assert grading.correct.tolist() == [True, False]
    assert grading.parts["format"].tolist() == [1, 0]
    assert (grading.weights, grading.max_reward) == ({"accuracy": 1.0, "format": 1.0}, 2.0)
    assert grading.select(torch.tensor([1])).correct.tolist() == [False]
    assert grading.update.rewards.tolist() == [[2, 0]]
    assert grading.update.tokens.tolist() == [3]


def test_an_update_is_the_groups_of_every_rank_without_those_that_stand_in():
    def with_another_rank(value):
        return [graded([True, True], lambda own: [own]).update, value]

    both = graded([False, True], with_another_rank).update
    assert both.rewards.tolist() == [[1, 1], [2, 0], [2, 0]]
    assert both.correct.tolist() == [[False, True], [True, False], [True, False]]
    assert both.parts["accuracy"].tolist() == [[0, 1], [1, 0], [1, 0]]
    assert both.tokens.tolist() == [4, 3, 3]
    # Nothing is kept on this rank: its first group only takes part so that the rank does.
    grading = graded([False, False], with_another_rank)
    assert grading.update.rewards.tolist() == [[1, 1], [2, 0]]
    assert grading.correct.tolist() == [False, True]
    # Rows that weigh 0 for another reason, such as mask_truncated, are kept ones.
    assert graded([False, True], with_another_rank, weight=0.0).update.rewards.tolist() == [[1, 1], [2, 0], [2, 0]]


def test_where_no_rank_keeps_a_group_all_see_those_that_stand_in():
    # Statistics of nothing would be NaN, and of one rank's own group each rank would keep another state.
    theirs = replace(graded([False, False], lambda value: [value]).update, rewards=torch.tensor([[0.0, 0.0]]))

    def of_two_ranks(rank):
        def gathered(value):
            other = None if value is None else theirs
            return [value, other] if rank == 0 else [other, value]

        return gathered

    assert graded([False, False], of_two_ranks(0)).update.rewards.tolist() == [[1, 1], [0, 0]]
    assert graded([False, False], of_two_ranks(1)).update.rewards.tolist() == [[0, 0], [1, 1]]


def test_the_verdicts_are_in_the_checkpoint():
    cfg, _ = composed("train", *SMALL_GRPO, "reward.rewards.accuracy.verifier.workers=1")
    module, resumed = build_module(cfg), build_module(cfg)
    half = [Problem("p", "?", ("0.5",))] * 2
    texts = [r"\boxed{\frac{2}{4}}", r"\boxed{\frac{2}{5}}"]
    assert module.grade(half, texts).tolist() == [True, False]
    checkpoint: dict = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    resumed.on_load_checkpoint(torch.load(buffer, weights_only=True))
    assert resumed.grade(half, texts).tolist() == [True, False]
    assert resumed.rewards.counts["cached"] == 2


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that are kept for the backward pass."""

    def __init__(self):
        self.bytes = 0
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor):
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize("packing", [True, False])
def test_gradient_checkpointing_keeps_fewer_bytes_and_changes_no_gradient(model, packing):
    model.eval()  # as a model comes from its files
    seen = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with (kept := Kept()):
            gradients, _, _ = run(model, clipped(), eda(), packing=packing)
        seen[checkpointing] = gradients[0], kept.bytes
    torch.testing.assert_close(seen[True][0], seen[False][0], rtol=1e-12, atol=1e-12)
    assert seen[True][1] < 0.5 * seen[False][1]
    assert not model.training


def test_dropout_is_in_the_update_and_in_no_pass_without_a_gradient(model):
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(layer.training))
    reference = exact(random_tiny_policy(0, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2).model)
    reference.model.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(layer.training))
    run(
        model.eval(), clipped(beta=0.1), eda(), MANY, reference=reference.eval()
    )  # groups are cut: EDA has its own pass
    assert seen[0] is False
    assert seen[-1] is True
    assert seen == sorted(seen)
