"""Token filters against numbers worked by hand, on one rank and on several."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from small_runs import SMALL_GRPO, composed

from edge_grpo.errors import UserError
from edge_grpo.programs.train_run import build_module
from edge_grpo.token_filters.base import TokenFilterInputs
from edge_grpo.token_filters.clip_cov import ClipCov
from edge_grpo.token_filters.top_entropy import TopEntropy, quantile


def made(entropy, *, logprobs=None, advantages=None, trained=None, sampled=None, seed=0):
    """Inputs of one rank."""
    entropy = torch.as_tensor(entropy, dtype=torch.float64)
    everywhere = torch.ones(entropy.shape, dtype=torch.bool)
    like = lambda values: torch.as_tensor(values, dtype=torch.float64).expand(entropy.shape)  # noqa: E731
    return TokenFilterInputs(
        entropy=entropy,
        sampling_logprobs=like(0.0 if logprobs is None else logprobs),
        trained=everywhere if trained is None else torch.as_tensor(trained),
        sampled=everywhere if sampled is None else torch.as_tensor(sampled),
        advantages=like(0.0 if advantages is None else advantages),
        over_ranks=lambda values: values,
        generator=lambda: torch.Generator().manual_seed(seed),
    )


def filter_inputs():
    """6 rows of unequal lengths; a correction wrote the head of one, and one is not trained."""
    rand = lambda: torch.rand(6, 5, generator=generator, dtype=torch.float64)  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3, 1, 4, 5])[:, None]
    trained = mask & (torch.arange(6) != 2)[:, None]
    sampled = mask & ~((torch.arange(6) == 4)[:, None] & (torch.arange(5) < 2)[None])
    return made(rand(), logprobs=-4 * rand(), advantages=4 * rand() - 2, trained=trained, sampled=sampled)


def rows_of_filter(inputs, rows):
    """Some rows of them, as a rank has them."""
    names = ("entropy", "sampling_logprobs", "trained", "sampled", "advantages")
    return replace(inputs, **{name: getattr(inputs, name)[rows] for name in names})


def on_ranks(built, parts):
    """The factors of each rank's trained tokens; the ranks are threads that wait for each other where they gather."""
    barrier, given = threading.Barrier(len(parts)), [None] * len(parts)

    def rank(number):
        def over_ranks(values):
            given[number] = values
            barrier.wait(timeout=10)
            joined = torch.cat(given)
            barrier.wait(timeout=10)
            return joined

        part = replace(parts[number], over_ranks=over_ranks, generator=lambda: torch.Generator().manual_seed(number))
        return built(part)[0][part.trained]

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(rank, range(len(parts))))


# --- top entropy ---------------------------------------------------------------------------------------------------

ENTROPY = [[1.0, 2.0, 3.0, 4.0, 5.0], [0.5, 0.1, 0.2, 9.0, 9.0]]
TRAINED = [[True] * 5, [True, True, True, False, False]]


def counted(share, over, **given):
    return (TopEntropy(share, over)(made(ENTROPY, trained=TRAINED, **given))[0] == 1).tolist()


def test_top_entropy_by_hand():
    # In order: .1 .2 .5 1 2 3 4 5. The 80 % quantile is 0.8 * 7 = 5.6 places up, 3 + 0.6 = 3.6: 4 and 5 count. What is
    # not trained keeps 1, since no loss reads it.
    assert counted(0.2, "update") == [[False, False, False, True, True], [False, False, False, True, True]]
    # Of each response: 1 + 0.8 * 4 = 4.2, and of .1 .2 .5, 1.6 places up, 0.2 + 0.6 * 0.3 = 0.38.
    assert counted(0.2, "response") == [[False, False, False, False, True], [True, False, False, True, True]]
    # A share of 40 %: at least 1 + 0.6 * 4 = 3.4, and 1.2 places up, 0.2 + 0.2 * 0.3 = 0.26.
    assert counted(0.4, "response") == [[False, False, False, True, True], [True, False, False, True, True]]


def test_tokens_that_nobody_sampled_are_in_no_quantile_and_count():
    # Without 4 and 5: .1 .2 .5 1 2 3, 4 places up: 2 and 3 count.
    sampled = [[True, True, True, False, False], [True] * 5]
    assert counted(0.2, "update", sampled=sampled) == [
        [False, True, True, True, True],
        [False, False, False, True, True],
    ]
    # A response of a correction alone keeps all its tokens.
    assert counted(0.2, "response", sampled=[[False] * 5, [True] * 5])[0] == [True] * 5


def test_top_entropy_counts_the_tokens_of_all_ranks():
    inputs = made(ENTROPY, trained=TRAINED)
    first, second = on_ranks(TopEntropy(0.2, "update"), [rows_of_filter(inputs, [row]) for row in (0, 1)])
    assert (first.tolist(), second.tolist()) == ([0, 0, 0, 1, 1], [0, 0, 0])
    # A rank whose groups were all dropped has none, and no rank may have any.
    nothing = replace(inputs, trained=torch.zeros(2, 5, dtype=torch.bool))
    first, second = on_ranks(TopEntropy(0.2, "update"), [inputs, nothing])
    assert (first.tolist(), second.tolist()) == ([0, 0, 0, 1, 1, 0, 0, 0], [])
    assert (TopEntropy(0.2, "update")(nothing)[0] == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    entropy=npst.arrays("float64", (3, 4), elements=st.floats(0, 6)),
    share=st.floats(0.05, 1),
    over=st.sampled_from(["update", "response"]),
)
def test_at_least_the_share_counts_and_equal_entropies_all_do(entropy, share, over):
    factors = TopEntropy(share, over)(made(entropy))[0]
    (least,) = {"update": [factors.sum() / 12], "response": [factors.mean(1).min()]}[over]
    n = 12 if over == "update" else 4
    assert least >= (share * (n - 1)) // 1 / n  # what lies above the quantile, and no less than one token
    assert factors.sum() >= 1
    assert (TopEntropy(share, over)(made(0 * torch.as_tensor(entropy)))[0] == 1).all()
    assert (TopEntropy(1.0, over)(made(entropy))[0] == 1).all()


@given(values=npst.arrays("float64", st.integers(1, 9), elements=st.floats(-5, 5)), q=st.floats(0, 1))
def test_the_quantile_is_torchs(values, q):
    values = torch.as_tensor(values)
    torch.testing.assert_close(quantile(values, q), torch.quantile(values, q), rtol=0, atol=1e-12)


# --- clip-cov ------------------------------------------------------------------------------------------------------

# Means 0 and -1.05: (1)(.95), (1)(-.95), (-1)(.95), (-1)(-.95).
COV = {"advantages": [[1.0, 1, -1, -1]], "logprobs": [[-0.1, -2, -0.1, -2]]}


def cut(share, lowest, highest, **given):
    return (ClipCov(share, lowest, highest)(made(torch.zeros(1, 4), **(COV | given)))[0] == 0).flatten().tolist()


def test_clip_cov_by_hand():
    _, reports = ClipCov(0.0002, 1.0, 5.0)(made(torch.zeros(1, 4), **COV))
    expected = torch.tensor([[0.95, -0.95, -0.95, 0.95]], dtype=torch.float64)
    torch.testing.assert_close(reports["train/clip_cov/covariance"], expected, rtol=0, atol=1e-12)
    assert cut(1.0, 0.5, 5.0) == [True, False, False, True]
    assert cut(0.5, 0.5, 5.0) == [True, False, False, True]  # floor(0.5 * 4) = 2
    for share in (0.25, 0.49, 0.0002):  # floor(0.49 * 4) = 1, and one at least
        assert cut(share, 0.5, 5.0) in ([True, False, False, False], [False, False, False, True])
    assert not any(cut(1.0, 1.0, 5.0))  # .95 is below
    assert not any(cut(1.0, 0.5, 0.9))  # and above


def test_clip_cov_draws_at_random_and_again_with_the_same_seed():
    drawn = [cut(0.25, 0.5, 5.0, seed=seed) for seed in range(60)]
    first = sum(tokens[0] for tokens in drawn)
    assert 15 < first < 45  # of a fair coin 60 times, beyond 3.8 standard deviations
    assert cut(0.25, 0.5, 5.0, seed=7) == drawn[7]


def test_clip_cov_takes_its_means_and_draws_over_all_ranks():
    # Each rank alone has one advantage, so all its covariances would be 0; together 2 of 4 tokens are drawn, and with
    # a share of a quarter 1.
    inputs = made(torch.zeros(2, 2), advantages=[[1.0, 1], [-1, -1]], logprobs=[[-0.1, -2], [-0.1, -2]])
    parts = [rows_of_filter(inputs, [row]) for row in (0, 1)]
    assert [part.tolist() for part in on_ranks(ClipCov(0.5, 0.5, 5.0), parts)] == [[0, 1], [1, 0]]
    assert sum(int((part == 0).sum()) for part in on_ranks(ClipCov(0.25, 0.5, 5.0), parts)) == 1


def test_clip_cov_counts_the_tokens_that_are_trained_and_sampled():
    # Without the last two tokens both advantages are 1: no covariance. floor(0.5 * 4) of the tokens, not of all 6.
    assert not any(cut(1.0, 0.1, 5.0, trained=[[True, True, False, False]]))
    assert not any(cut(1.0, 0.1, 5.0, sampled=[[True, True, False, False]]))
    six = made(
        torch.zeros(1, 6),
        advantages=[[1.0, 1, -1, -1, 9, 9]],
        logprobs=[[-0.1, -2, -0.1, -2, 0, 0]],
        sampled=[[True] * 4 + [False] * 2],
    )
    assert int((ClipCov(0.4, 0.5, 5.0)(six)[0] == 0).sum()) == 1


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (
            TopEntropy,
            {"top_share": 0.2, "over": "update"},
            {"top_share": 0.0},
            "top_share=0.0 must be above 0 and at mo",
        ),
        (
            TopEntropy,
            {"top_share": 0.2, "over": "update"},
            {"top_share": 1.1},
            "top_share=1.1 must be above 0 and at mo",
        ),
        (
            ClipCov,
            {"share": 0.1, "lowest": 1.0, "highest": 5.0},
            {"share": 0.0},
            "share=0.0 must be above 0 and at most",
        ),
        (ClipCov, {"share": 0.1, "lowest": 1.0, "highest": 5.0}, {"lowest": -1.0}, "lowest=-1.0 must not be negative"),
        (
            ClipCov,
            {"share": 0.1, "lowest": 1.0, "highest": 5.0},
            {"highest": 1.0},
            "highest=1.0 must be above token_fi",
        ),
    ],
)
def test_values_out_of_range_are_refused(kind, good, bad, message):
    with pytest.raises(UserError, match=rf"^token_filter\.{message}"):
        kind(**(good | bad))


def test_a_filter_that_reads_advantages_refuses_one_that_is_taken_inside_the_update():
    module = lambda *overrides: build_module(composed("train", *SMALL_GRPO, *overrides)[0])  # noqa: E731
    with pytest.raises(
        UserError, match=r"^algorithm: token_filter \(ClipCov\) .* \(EntropyDriven\) is taken anew inside it"
    ):
        module("token_filter=clip_cov", "advantage=entropy_driven_official")
    module("token_filter=clip_cov", "advantage=entropy_driven")
    module("token_filter=top_entropy", "advantage=entropy_driven_official")
