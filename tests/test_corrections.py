"""Guided error correction: branches, tokens, provenance, bounds."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from edge_grpo.corrections.base import UNIFORM_WEIGHT, CorrectionTools, longest_responses
from edge_grpo.corrections.guided import BRANCHES, GuidedCorrection
from edge_grpo.corrections.guided_official import OfficialGuidedCorrection
from edge_grpo.corrections.keep import Keep
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
REFLECT = " Wait! Something is wrong here."
ANSWER = "\nWait! Something is wrong here. After verification, the correct answer is \\boxed{{answer}}."


def encode(text):
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def decode(ids):
    return TOKENIZER.decode(ids.tolist(), skip_special_tokens=True)


def sampled(text, eos=True):
    ids = torch.tensor([*encode(text), *([EOS] if eos else [])])
    ones = torch.ones(len(ids))
    return Response(ids, -ones, ones, torch.zeros(len(ids), dtype=torch.int8), "stop" if eos else "length")


def score(problems, texts, responses=None):
    """Right if the gold answer stands in a box at the end."""
    right = torch.tensor(
        [t.rstrip(".").endswith(f"\\boxed{{{p.answers[0]}}}") for p, t in zip(problems, texts, strict=True)]
    )
    return Scores(rewards=right.float(), parts={"accuracy": right.float()}, correct=right)


def tools(
    seed=0, continuation=" so \\boxed{7}", calls=None, max_new_tokens=200, context_length=None, pad_id=None, iteration=0
):
    def generate(prefixes, budgets, temperature=None):
        if calls is not None:
            calls.append((prefixes, budgets))
        return [replace_length(sampled(continuation), budget) for budget in budgets]

    return CorrectionTools(
        generate=generate,
        score=score,
        encode=encode,
        decode=decode,
        eos_ids=(EOS,),
        pad_id=EOS if pad_id is None else pad_id,
        generator=torch.Generator().manual_seed(seed),
        max_new_tokens=max_new_tokens,
        max_reward=1.0,
        prompt=lambda problem, question: encode(question),
        problem=lambda problem_id: Problem(problem_id, "3 + 4 = ?", ("7",), prompt_ids=encode("3 + 4 = ?")),
        history=History(),
        iteration=iteration,
        context_length=context_length,
    )


def replace_length(response, budget):
    if len(response) <= budget:
        return response
    fields = (response.token_ids, response.sampling_logprobs, response.entropies, response.provenance)
    return Response(*(x[:budget] for x in fields), "length")


def scored(texts, g=4, solution="3 + 4 = 7\n\\boxed{7}", eos=True):
    question = "3 + 4 = ?"
    prompt = {"prompt": question, "prompt_ids": encode(question)}
    columns = {"hints": ["Add.", "Count on.", "Count on from 3 by 4."]}
    problem = Problem("p", question, ("7",), solution, columns=columns, **prompt, solution_ids=encode(solution))
    rollout = Rollout((problem,) * (len(texts) // g), tuple(sampled(t, eos) for t in texts), g)
    problems = [rollout.problem_of(row) for row in range(len(texts))]
    return ScoredRollout(rollout, tuple(texts), score(problems, texts))


def guided(cls=GuidedCorrection, probabilities=(0.5, 0.25, 0.25), **changes):
    settings = {
        "reflect_phrase": REFLECT,
        "answer_phrase": ANSWER,
        "trigger": "every_wrong",
        "reflection_tokens": 64,
        "max_response_tokens": None,
        "keep_eos": True,
        "loss_weights": {"sampled": 1.0, "injected": 1.0, "reference": 1.0},
    }
    names = ("reflect", "answer", "solution")
    return cls(probabilities=dict(zip(names, probabilities, strict=True)), **(settings | changes))


def official(probabilities=(0.5, 0.25, 0.25), **changes):
    settings = {"keep_eos": False, "max_batch_prompt_tokens": 256, "batch": "iteration"}
    return guided(OfficialGuidedCorrection, probabilities, **(settings | changes))


WRONG, RIGHT = "\\boxed{5}", "\\boxed{7}"


def test_branch_frequencies():
    # 4,000 wrong rows: standard deviation of a share of 1/2 is 0.008; the seed is fixed.
    branches = guided()(scored([WRONG] * 4000), tools()).branches
    counts = Counter(branches)
    assert counts["reflect"] / 4000 == pytest.approx(0.5, abs=0.02)
    assert counts["answer"] / 4000 == pytest.approx(0.25, abs=0.02)
    assert counts["solution"] / 4000 == pytest.approx(0.25, abs=0.02)


def test_right_rows_are_untouched():
    before = scored([RIGHT, WRONG, RIGHT, WRONG])
    after = guided()(before, tools())
    for row in (0, 2):
        assert after.scored.rollout.responses[row] is before.rollout.responses[row]
        assert after.branches[row] is None
    # Right is what accuracy says, however low the reward is.
    poor = replace(before, scores=replace(before.scores, rewards=before.scores.rewards / 2))
    assert [branch is None for branch in guided()(poor, tools()).branches] == [True, False, True, False]


def test_deterministic_per_seed():
    runs = [guided()(scored([WRONG] * 64), tools(seed)).branches for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("probabilities", "text", "kinds", "ends"),
    [
        ((1, 0, 0), WRONG + REFLECT + " so \\boxed{7}", "0" * 9 + "1" * 31 + "0" * 14, "stop"),
        ((0, 1, 0), WRONG + ANSWER.replace("{answer}", "7"), "0" * 9 + "1" * 85, "stop"),
        ((0, 0, 1), "3 + 4 = 7\n\\boxed{7}", "2" * 20, "stop"),
    ],
    ids=["reflect", "answer", "solution"],
)
def test_tokens_and_provenance_of_a_branch(probabilities, text, kinds, ends):
    # Lengths: the wrong guess has 9 bytes, the phrase 31, the continuation 13 + EOS; the answer phrase
    # 31 + 43 + 9 + 1 + EOS; the reference 19 + EOS.
    after = guided(probabilities=probabilities)(scored([WRONG] * 4), tools())
    response = after.scored.rollout.responses[0]
    assert decode(response.token_ids) == after.scored.texts[0] == text
    assert "".join(str(k) for k in response.provenance.tolist()) == kinds
    assert response.token_ids[-1] == EOS
    assert (response.token_ids == EOS).sum() == 1
    assert response.finish_reason == ends
    written = response.provenance != Provenance.SAMPLED
    assert (response.sampling_logprobs[written] == 0).all()  # put there with probability one
    assert after.scored.scores.correct.all()


@pytest.mark.parametrize("probabilities", [(0, 1, 0), (0, 0, 1)])
def test_without_keep_eos_a_branch_ends_without_it(probabilities):
    after = guided(probabilities=probabilities, keep_eos=False)(scored([WRONG] * 4), tools())
    assert not any(EOS in response.token_ids.tolist() for response in after.scored.rollout.responses)


def test_a_response_that_was_cut_keeps_its_last_token():
    after = guided(probabilities=(0, 1, 0))(scored([WRONG] * 4, eos=False), tools())
    assert after.scored.texts == (WRONG + ANSWER.replace("{answer}", "7"),) * 4


def test_only_rows_that_reflect_are_generated():
    calls = []
    guided(probabilities=(1, 0, 0))(scored([RIGHT, WRONG, RIGHT, WRONG]), tools(calls=calls))
    ((prefixes, budgets),) = calls
    assert prefixes == [[*encode("3 + 4 = ?" + WRONG + REFLECT)]] * 2
    assert budgets == [64, 64]


def test_total_length_is_bounded():
    # 9 + 31 tokens stand before the reflection: 60 leave room for 20.
    calls = []
    after = guided(probabilities=(1, 0, 0), max_response_tokens=60)(
        scored([WRONG] * 4), tools(calls=calls, continuation="x" * 100)
    )
    assert calls[0][1] == [20] * 4
    assert {len(r) for r in after.scored.rollout.responses} == {60}


def test_a_branch_without_room_passes_its_probability_on():
    # 40 tokens hold neither the reflection (40 + 1) nor the answer (94), but do hold the reference (20).
    after = guided(max_response_tokens=40)(scored([WRONG] * 64), tools())
    assert set(after.branches) == {"solution"}
    assert guided(max_response_tokens=15)(scored([WRONG] * 4), tools()).branches == ("no_room",) * 4


@pytest.mark.parametrize(("probabilities", "tokens"), [((1, 0, 0), 9 + 31 + 1), ((0, 1, 0), 9 + 85), ((0, 0, 1), 20)])
def test_a_branch_is_taken_where_it_just_fits(probabilities, tokens):
    # A reflection needs one token to continue with; lengths as above, EOS included.
    for limit, fits in ((tokens, True), (tokens - 1, False)):
        correction = guided(probabilities=probabilities, max_response_tokens=limit)
        after = correction(scored([WRONG] * 4), tools())
        assert ("no_room" not in after.branches) == fits
        assert max(len(response) for response in after.scored.rollout.responses) == (tokens if fits else 10)


def test_a_branch_without_room_in_the_models_context_is_not_taken():
    # The prompt has 9 tokens. A reflection needs 40 and one to continue with, the answer 94, the reference 20.
    for context, branches in ((9 + 94, set(BRANCHES)), (9 + 93, {"reflect", "solution"}), (9 + 40, {"solution"})):
        assert set(guided()(scored([WRONG] * 64), tools(context_length=context)).branches) == branches
    assert guided()(scored([WRONG] * 4), tools(context_length=28)).branches == ("no_room",) * 4
    # Behind 9 + 40 tokens of 60 a reflection of 64 has room for 11.
    calls = []
    after = guided(probabilities=(1, 0, 0))(scored([WRONG] * 4), tools(calls=calls, context_length=60))
    assert after.branches == ("reflect",) * 4
    assert calls[0][1] == [11] * 4


def test_official_continues_the_rows_that_have_room_in_the_context():
    # A right row of 41 tokens fills the context behind the prompt's 9 and cannot be continued; a wrong one has 40.
    calls = []
    texts = [WRONG, "x" * 31 + RIGHT + ".", RIGHT, WRONG]
    after = official((1, 0, 0))(scored(texts), tools(calls=calls, context_length=9 + 41))
    assert after.branches == ("reflect", None, None, "reflect")
    assert calls[0][1] == [1, 41 - 9, 1]  # RIGHT has 9 bytes, and is continued without its EOS
    without_room = official((1, 0, 0))(scored([WRONG] * 4), tools(context_length=9 + 40))
    assert without_room.branches == ("no_room",) * 4
    assert without_room.scored.texts == (WRONG,) * 4


def bound(correction, max_new_tokens=200, **changes):
    (problem,) = {p.id: p for p in scored([WRONG] * 4).rollout.problems}.values()
    return longest_responses(correction, [replace(problem, **changes)], max_new_tokens, encode)


def test_how_long_a_response_can_become():
    # Phrase 31, answer phrase 31 + 43 + 9 + 1, reference 19, EOS 1, reflection 64; a response cut at 200 has no EOS.
    assert bound(Keep()) == [200]
    assert bound(guided(probabilities=(0, 1, 0), max_response_tokens=1000)) == [200 + 84 + 1]
    assert bound(guided(probabilities=(1, 0, 0), max_response_tokens=1000)) == [200 + 31 + 64]
    assert bound(guided()) == [200 + 64]  # its own bound
    assert bound(guided(probabilities=(0, 0, 1))) == [200]
    assert bound(guided(probabilities=(0, 0, 1)), max_new_tokens=10) == [20]
    assert bound(guided(probabilities=(0, 0, 1)), max_new_tokens=10, solution_passes=False) == [10]
    assert bound(official()) == [200 + 31 + 64]
    assert bound(official((0, 1, 0))) == [200 + 84]


@pytest.mark.parametrize("probabilities", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.25, 0.25)])
@pytest.mark.parametrize("limit", [None, 100, 60])
def test_no_response_becomes_longer_than_was_said(probabilities, limit):
    correction = guided(probabilities=probabilities, max_response_tokens=limit)
    longest = 30  # a right response is left alone
    for length in range(1, 31):
        after = correction(scored(["x" * length] * 16, eos=False), tools(continuation="y" * 100, max_new_tokens=30))
        longest = max(longest, *map(len, after.scored.rollout.responses))
    (said,) = bound(correction, max_new_tokens=30)
    assert longest <= said
    assert longest == said or limit is not None  # the bound is reached where nothing else bounds


def test_a_correction_that_does_not_say_how_long_it_gets_works_and_is_told_of(caplog):
    class Mine:
        token_weight, required_fields = UNIFORM_WEIGHT, frozenset()

    with caplog.at_level("INFO"):
        assert bound(Mine()) == [200]
    (message,) = caplog.messages
    assert message.startswith("Mine has no method longest_response")


def test_a_failing_reference_is_never_used_and_its_probability_passed_on():
    before = scored([WRONG] * 1000)
    problems = tuple(replace(p, solution_passes=False) for p in before.rollout.problems)
    before = replace(before, rollout=replace(before.rollout, problems=problems))
    counts = Counter(guided()(before, tools()).branches)
    assert set(counts) == {"reflect", "answer"}
    # 1/2 of 3/4; the standard deviation of the share is 0.015.
    assert counts["reflect"] / 1000 == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("trigger", "corrected"),
    [("every_wrong", [4, 3, 1, 0]), ("all_wrong", [4, 0, 0, 0]), ("leave_one_wrong", [3, 2, 0, 0])],
)
def test_triggers(trigger, corrected):
    groups = [[WRONG] * 4, [RIGHT, WRONG, WRONG, WRONG], [RIGHT, RIGHT, WRONG, RIGHT], [RIGHT] * 4]
    branches = guided(trigger=trigger)(scored([t for g in groups for t in g]), tools()).branches
    assert [sum(b is not None for b in branches[i : i + 4]) for i in range(0, 16, 4)] == corrected


def test_the_wrong_response_that_is_left_is_drawn():
    branches = guided(trigger="leave_one_wrong")(scored([WRONG] * 4 * 32), tools()).branches
    left = [row % 4 for row, branch in enumerate(branches) if branch is None]
    assert len(left) == 32
    assert set(left) == {0, 1, 2, 3}


def test_required_fields():
    assert guided().required_fields == {"answers", "solution"}
    assert guided(probabilities=(0.5, 0.5, 0)).required_fields == {"answers"}
    assert guided(probabilities=(1, 0, 0)).required_fields == set()  # what a reward reads, the reward checks


def test_keep_changes_nothing():
    before = scored([WRONG, RIGHT, WRONG, RIGHT])
    assert Keep()(before, tools()).scored is before


def two_prompts(texts):
    """Two groups of four with these texts; the second one's prompt is a token longer."""
    group = scored(texts)
    longer = replace(group.rollout.problems[0], prompt="3 + 4 = ? ", prompt_ids=encode("3 + 4 = ? "))
    rollout = Rollout((*group.rollout.problems, longer), group.rollout.responses * 2, 4)
    return ScoredRollout(rollout, group.texts * 2, score([rollout.problem_of(r) for r in range(8)], group.texts * 2))


def ids_of(after):
    return [tuple(response.token_ids.tolist()) for response in after.scored.rollout.responses]


def test_official_loses_every_eos_and_leading_tokens():
    calls = []
    after = official((1, 0, 0))(two_prompts([WRONG, RIGHT, WRONG, WRONG]), tools(calls=calls))
    # The longest row of the batch is a corrected one behind the longer prompt; its EOS is lost, of nothing is left.
    assert ids_of(after)[4] == encode(WRONG + REFLECT + " so \\boxed{7}")
    # The first group's prompts are one token shorter: its responses lose their first token.
    assert ids_of(after)[0] == (*encode(WRONG + REFLECT + " so \\boxed{7}")[1:], EOS)
    assert ids_of(after)[1] == (*encode(RIGHT)[1:], EOS)
    assert ids_of(after)[5] == (*encode(RIGHT), EOS)
    # What is graded is the whole text all the same.
    assert after.scored.texts[1] == after.scored.texts[5] == RIGHT
    assert after.branches[1] is None
    # The whole batch is continued, from text: the right row without its EOS.
    assert [bytes(prefix) for prefix in calls[0][0][:2]] == [
        bytes(encode("3 + 4 = ?" + WRONG + REFLECT)),
        bytes(encode("3 + 4 = ?" + RIGHT)),
    ]
    assert len(calls[0][0]) == 8


def test_official_padding_is_trained_where_it_is_not_eos():
    pad = TOKENIZER.pad_token_id
    assert pad != EOS
    after = official((0, 0, 1))(scored([RIGHT, WRONG, RIGHT, WRONG]), tools(pad_id=pad))
    # The reference has 19 tokens, a right response 9 and ten of padding.
    assert ids_of(after) == [(*encode(RIGHT), *[pad] * 10), encode("3 + 4 = 7\n\\boxed{7}")] * 2
    right, reference = after.scored.rollout.responses[:2]
    assert right.provenance.tolist() == [Provenance.SAMPLED] * 9 + [Provenance.INJECTED] * 10
    assert reference.provenance.tolist() == [Provenance.REFERENCE] * 19
    assert (right.finish_reason, reference.finish_reason) == ("length", "length")
    # Where it is, the first one ends the response.
    ended = official((0, 0, 1))(scored([RIGHT, WRONG, RIGHT, WRONG]), tools())
    assert ids_of(ended) == [(*encode(RIGHT), EOS), encode("3 + 4 = 7\n\\boxed{7}")] * 2
    assert ended.scored.rollout.responses[0].finish_reason == "stop"


def test_official_rows_alone_are_neither_padded_nor_cut():
    after = official((0, 0, 1), batch="row")(two_prompts([RIGHT, WRONG, RIGHT, WRONG]), tools())
    assert ids_of(after) == [encode(RIGHT), encode("3 + 4 = 7\n\\boxed{7}")] * 4
    # Each row has its own bound on the prompt: the second group's has 10 tokens.
    calls = []
    before = two_prompts([RIGHT, WRONG, RIGHT, WRONG])
    after = official((0, 0, 1), batch="row", max_batch_prompt_tokens=10)(before, tools(calls=calls))
    assert after.branches == (None, "solution", None, "solution") + (None,) * 4
    assert after.scored.rollout.responses[4:] == before.rollout.responses[4:]
    assert [len(prefixes) for prefixes, _ in calls] == [4]


def test_official_generates_even_when_no_row_reflects():
    for texts, branches in (([RIGHT] * 4, (None,) * 4), ([WRONG] * 4, ("answer",) * 4)):
        calls = []
        after = official((0, 1, 0))(scored(texts), tools(calls=calls, continuation=" \\boxed{5}"))
        assert after.branches == branches
        assert [len(prefixes) for prefixes, _ in calls] == [4]
        assert after.scored.scores.correct.all()  # the continuations are thrown away


def test_official_encodes_prompt_and_response_as_one_text():
    """A newline at the end of the prompt takes up the one that a reference begins with."""

    def join_newlines(text):  # as Qwen2's tokenizer does: two newlines are one token, 256 here
        return tuple(256 if piece == "\n\n" else ord(piece) for piece in re.findall("\n\n|.|\n", text))

    before = scored([WRONG] * 4, solution="\nSo \\boxed{7}")
    problem = replace(before.rollout.problems[0], prompt="?\n", prompt_ids=join_newlines("?\n"))
    before = replace(before, rollout=replace(before.rollout, problems=(problem,)))
    after = official((0, 0, 1))(before, replace(tools(), encode=join_newlines))
    # Of ("?", "\n\n", "S", ...) two tokens are the prompt's.
    assert ids_of(after) == [join_newlines("So \\boxed{7}")] * 4
    assert after.scored.texts == ("\nSo \\boxed{7}",) * 4


def test_official_wrong_is_what_has_less_than_the_highest_reward():
    before = scored([RIGHT] * 4)
    poor = replace(before.scores, rewards=torch.tensor([1.0, 0.5, 1.0, 1.0]))
    assert official((0, 1, 0))(replace(before, scores=poor), tools()).branches == (None, "answer", None, None)


def test_official_keeps_the_spaces_of_a_text():
    text = f" \n {RIGHT}"
    assert ids_of(official()(scored([text] * 4), tools())) == [encode(text)] * 4


def test_official_responses_end_with_the_tokenizers_own_eos():
    # The model's generation config has a second one, which the released code does not look for.
    second = replace(tools(), eos_ids=(EOS, ord("b")))
    assert ids_of(official((0, 0, 1))(scored([RIGHT, WRONG, RIGHT, WRONG]), second))[0] == (*encode(RIGHT), EOS)


def test_official_skips_batches_with_a_long_prompt():
    correction = official(max_batch_prompt_tokens=9)  # "3 + 4 = ?" has 9
    before = scored([WRONG] * 4)
    assert correction(before, tools()).scored is before


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_eos": True},
        {"max_response_tokens": 100},
        {"loss_weights": {"sampled": 1.0, "injected": 0.5, "reference": 1.0}},
    ],
)
def test_official_refuses_what_the_released_code_does_not_know(changes):
    with pytest.raises(UserError, match=r"guided_official needs .*keep_eos=false.*null.*loss_weights of 1"):
        official(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"probabilities": (1.5, -0.5, 0)}, r"in \[0, 1\]"),
        ({"answer_phrase": "no gold"}, "answer_phrase"),
        ({"reflection_tokens": 0}, "reflection_tokens=0"),
        ({"max_response_tokens": 0}, "max_response_tokens=0"),
        ({"loss_weights": {"sampled": 1.0}}, "loss_weights needs exactly"),
        ({"loss_weights": {"sampled": 1.0, "injected": -1.0, "reference": 1.0}}, "negative"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        guided(**changes)
