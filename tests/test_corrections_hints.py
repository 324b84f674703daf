"""Corrections that give a hint in the user turn, and chains of corrections."""

import json
from dataclasses import replace

import pytest
import torch
from small_runs import composed, metrics_rows, run_small
from test_corrections import (
    ANSWER,
    REFLECT,
    RIGHT,
    WRONG,
    decode,
    encode,
    guided,
    official,
    sampled,
    scored,
    tools,
)

from edge_grpo.command_line.check import instantiate
from edge_grpo.corrections.chain import Chain
from edge_grpo.corrections.groups import sampled_groups
from edge_grpo.corrections.hint_cascade import HintCascade
from edge_grpo.corrections.keep import Keep
from edge_grpo.corrections.sage import Sage, read_hints, reveals
from edge_grpo.corrections.scaf_grpo import ScafGRPO
from edge_grpo.errors import UserError
from edge_grpo.types.history import History, Visit
from edge_grpo.types.metric import StrategyMetric
from edge_grpo.types.responses import Provenance

QUESTION, SOLUTION = "3 + 4 = ?", "3 + 4 = 7\n\\boxed{7}"  # of `scored`


def text_of(prompt):
    return decode(torch.tensor(prompt))


def told(*rounds, **changes):
    """Tools whose calls of `generate` give the texts of one round after the other; and the calls."""
    calls, left = [], list(rounds)

    def generate(prefixes, budgets, temperature=None):
        calls.append(([text_of(prefix) for prefix in prefixes], budgets))
        texts = left.pop(0)
        assert len(texts) == len(prefixes)
        return [sampled(text) for text in texts]

    return replace(tools(), generate=generate, **changes), calls


def with_drawn(before):
    """As the allocation hands it over: two rows more than were kept, both wrong, for every group."""
    rewards = before.scores.rewards.view(len(before.rollout.problems), -1)
    return replace(before, drawn=tuple(torch.cat([own, torch.zeros(2)]) for own in rewards))


def prompts_of(after):
    return [text_of(after.scored.rollout.prompt_of(row)) for row in range(after.scored.rollout.num_rows)]


def same(values, expected):
    """[N] reports, None for NaN."""
    assert [None if number != number else number for number in values.tolist()] == pytest.approx(expected)


def cascade(levels=(0.25, 0.5, 0.75), hint=" {hint}"):
    return HintCascade(list(levels), hint)


def sage(hint=" {hint}"):
    return Sage("{question}|{solution}", 64, hint)


def scaf(**changes):
    settings = {"column": "hints", "hint": " {hint}", "replace_hint_prompt": False, "warmup_iterations": 0}
    return ScafGRPO(**(settings | changes))


# --- hint_cascade --------------------------------------------------------------------------------------------------


def test_a_cascade_hints_the_groups_that_are_still_all_wrong():
    # 19 characters of the solution: round(4.75) = 5, round(9.5) = 10 and round(14.25) = 14.
    levels = [f"{QUESTION} {SOLUTION[:n]}" for n in (5, 10, 14)]
    before = with_drawn(scored([WRONG] * 4 + [WRONG, RIGHT, WRONG, WRONG] + [WRONG] * 4))
    lent, calls = told([WRONG, RIGHT, WRONG, RIGHT] + ["x"] * 4, [WRONG] * 4, [WRONG] * 3 + ["y"])
    after = cascade()(before, lent)
    assert calls == [(levels[:1] * 8, [200] * 8), (levels[1:2] * 4, [200] * 4), (levels[2:] * 4, [200] * 4)]
    assert after.scored.texts == (
        *(WRONG, RIGHT, WRONG, RIGHT),
        *(WRONG, RIGHT, WRONG, WRONG),
        *(WRONG, WRONG, WRONG, "y"),
    )
    assert prompts_of(after) == levels[:1] * 4 + [QUESTION] * 4 + levels[2:] * 4
    assert after.branches == ("hint_1",) * 4 + (None,) * 4 + ("hint_3",) * 4
    assert after.scored.rollout.responses[4:8] == before.rollout.responses[4:8]  # the same objects
    assert after.scored.scores.rewards.tolist() == [0, 1, 0, 1] + [0, 1, 0, 0] + [0] * 4
    # Rows of the hinted prompt have a baseline of their own; the group in between keeps what was drawn for it.
    assert [rewards.tolist() for rewards in after.scored.drawn] == [[0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [0] * 4]
    for row in (*range(4), *range(8, 12)):
        response = after.scored.rollout.responses[row]
        assert (response.provenance == Provenance.SAMPLED).all()
        assert not response.off_policy


def test_what_a_cascade_reports():
    before = scored([WRONG] * 4 + [WRONG, RIGHT, WRONG, WRONG] + [WRONG] * 4)
    # One problem for all groups: it was all wrong at iteration 3, so all rows count as those of a hinted problem.
    history = History()
    history.record([("p", Visit(3, 4, 0, 0.0, 0.0))])
    lent, _ = told([WRONG, RIGHT, WRONG, RIGHT] + ["x"] * 4, [WRONG] * 3 + [RIGHT], history=history)
    reports = cascade()(before, lent).reports
    nothing = [None] * 4
    same(reports["hint_cascade/hinted"], [1] * 4 + [0] * 4 + [1] * 4)
    same(reports["hint_cascade/level"], [1] * 4 + nothing + [2] * 4)
    same(reports["hint_cascade/solved"], [1] * 4 + nothing + [1] * 4)
    same(reports["hint_cascade/solved_1"], [1] * 4 + nothing + [0] * 4)
    same(reports["hint_cascade/solved_2"], nothing * 2 + [1] * 4)
    same(reports["hint_cascade/solved_3"], nothing * 3)
    same(reports["hint_cascade/unhinted_accuracy"], [0] * 5 + [1] + [0] * 6)  # of what was sampled
    assert set(reports) == set(cascade().metrics)
    history = History()
    history.record([("p", Visit(3, 4, 1, 0.25, 0.4))])
    fresh = cascade()(before, told([RIGHT] * 8, history=history)[0]).reports
    same(fresh["hint_cascade/unhinted_accuracy"], [None] * 12)


def test_a_hint_without_room_in_the_context_is_not_given():
    # Prompts of level 1 and 2 have 9 + 1 + 5 and 9 + 1 + 10 tokens, the budget 200.
    before = scored([WRONG] * 4)
    lent, calls = told(context_length=214)
    after = cascade()(before, lent)
    assert (after.scored, after.branches, calls) == (before, ("no_room",) * 4, [])
    same(after.reports["hint_cascade/hinted"], [0] * 4)
    lent, calls = told([WRONG] * 4, context_length=219)
    assert cascade()(before, lent).branches == ("hint_1",) * 4
    assert len(calls) == 1
    assert cascade()(before, told([WRONG] * 4, [RIGHT] * 4, context_length=220)[0]).branches == ("hint_2",) * 4


@pytest.mark.parametrize("make", [cascade, sage])
def test_a_reference_that_fails_or_is_missing_is_no_hint(make):
    before = scored([WRONG] * 4)
    for changes in ({"solution_passes": False}, {"solution": None}):
        problems = tuple(replace(p, **changes) for p in before.rollout.problems)
        poor = replace(before, rollout=replace(before.rollout, problems=problems))
        lent, calls = told()
        after = make()(poor, lent)
        assert (after.scored, after.branches, calls) == (poor, (None,) * 4, [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cascade(levels=()), r"correction\.levels=\[\] must ascend"),
        (lambda: cascade(levels=(0.0, 0.5)), "correction.levels"),
        (lambda: cascade(levels=(0.5, 0.5)), "correction.levels"),
        (lambda: cascade(levels=(0.5, 1.1)), "correction.levels"),
        (lambda: cascade(hint="x"), r"correction\.hint='x' must hold \{hint\} once"),
        (lambda: cascade(hint="{hint}{hint}"), "correction.hint"),
        (lambda: sage(hint="x"), "correction.hint"),
        (lambda: Sage("{question}", 64, "{hint}"), r"correction\.request='\{question\}' must hold \{solution\} once"),
        (lambda: Sage("{question}{solution}", 0, "{hint}"), "correction.request_tokens=0"),
        (lambda: scaf(hint="x"), "correction.hint"),
        (lambda: scaf(column=""), "correction.column"),
        (lambda: scaf(warmup_iterations=-1), "correction.warmup_iterations=-1"),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_key(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- sage ----------------------------------------------------------------------------------------------------------


def hints(one="Add.", two="Count on.", three="Count on from 3 by 4."):
    return json.dumps({"level_1": one, "level_2": two, "level_3": three})


def test_sage_asks_for_hints_and_gives_those_that_do_not_hold_the_answer():
    before = with_drawn(scored([WRONG] * 4 + [RIGHT] * 4))
    lent, calls = told([f"Here:\n```json\n{hints(two='It is 7.')}\n```"], [WRONG] * 4, [WRONG, RIGHT, WRONG, WRONG])
    after = sage()(before, lent)
    assert calls == [
        ([f"{QUESTION}|{SOLUTION}"], [64]),
        ([f"{QUESTION} Add."] * 4, [200] * 4),
        ([f"{QUESTION} Count on from 3 by 4."] * 4, [200] * 4),
    ]
    assert after.branches == ("hint_3",) * 4 + (None,) * 4
    assert prompts_of(after) == [f"{QUESTION} Count on from 3 by 4."] * 4 + [QUESTION] * 4
    assert [rewards.tolist() for rewards in after.scored.drawn] == [[0, 1, 0, 0], [1, 1, 1, 1, 0, 0]]
    nothing = [None] * 4
    same(after.reports["sage/readable"], [1] * 4 + nothing)
    same(after.reports["sage/revealing"], [1 / 3] * 4 + nothing)
    same(after.reports["sage/level"], [3] * 4 + nothing)
    same(after.reports["sage/solved_1"], [0] * 4 + nothing)
    same(after.reports["sage/solved_2"], nothing * 2)
    assert set(after.reports) == set(sage().metrics)


def test_sage_leaves_a_group_alone_whose_hints_it_cannot_use_and_says_why():
    before = scored([WRONG] * 12)
    lent, calls = told(["no JSON", hints("7", "is 7.", "$7$"), hints()], [RIGHT] * 4)
    after = sage()(before, lent)
    assert after.branches == ("unreadable",) * 4 + ("revealing",) * 4 + ("hint_1",) * 4
    assert len(calls) == 2
    assert after.scored.rollout.responses[:8] == before.rollout.responses[:8]
    same(after.reports["sage/readable"], [0] * 4 + [1] * 8)
    same(after.reports["sage/revealing"], [None] * 4 + [1] * 4 + [0] * 4)
    # 9 + 1 + 19 tokens ask, 64 are for the hints.
    cramped, calls = told(context_length=29 + 63)
    assert sage()(scored([WRONG] * 4), cramped).branches == ("no_room",) * 4
    assert calls == []


def test_values_are_not_read_as_templates():
    before = scored([WRONG] * 4)
    problems = tuple(replace(p, question="{solution}?") for p in before.rollout.problems)
    lent, calls = told(["none"])
    sage()(replace(before, rollout=replace(before.rollout, problems=problems)), lent)
    assert calls[0][0] == [f"{{solution}}?|{SOLUTION}"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 5000,
        '{"level_1":' * 1200,
        hints()[:-1],
        json.dumps({"level_1": "a", "level_2": "b"}),
        json.dumps({"level_1": "a", "level_2": "b", "level_3": 3}),
        hints(" "),
        '{"level_1": "a", "level_2": "b", "level_3": "\\ud800"}',
        '{"level_1": "a", "level_2": "b", "level_3": ' + "9" * 5000 + "}",
    ],
)
def test_what_holds_no_three_hints_cannot_be_read(text):
    assert read_hints(text) is None


def test_latex_in_hints_is_read_escaped_or_not():
    for written in (r"\\(x\\) \\times \\frac12 \\underline{x}", r"\(x\) \times \frac12 \underline{x}"):
        text = f'{{"x": {{}}}} {{"level_1": "{written}", "level_2": "a\nb", "level_3": "\\u00e9"}}'
        assert read_hints(text) == [r"\(x\) \times \frac12 \underline{x}", "a\nb", "é"]


@pytest.mark.parametrize(
    ("hint", "answer", "found"),
    [
        ("The answer is 7.", "7", True),
        ("so x=7", "7", True),
        ("17 and 72 and 7.5 and 0.7", "7", False),
        ("use \\frac{1}{2} of it", "\\frac{1}{2}", True),
        ("then 12,000 people", "12000", True),
        ("The Red  car", "red car", True),
        ("reduce it", "red", False),
        ("__import__('os')", "7", False),
        ("anything", "$ $", False),
    ],
)
def test_answers_in_hints_are_found_as_texts(hint, answer, found):
    assert reveals(hint, ["nothing of this", answer]) is found


# --- scaf_grpo -----------------------------------------------------------------------------------------------------


def test_scaf_puts_one_right_row_of_the_lowest_level_into_an_all_wrong_group():
    # Rewards (0, 0, 0, 0) become (1, 0, 0, 0): the standard example. The third group is never solved.
    before = with_drawn(scored([WRONG] * 4 + [WRONG, RIGHT, WRONG, WRONG] + [WRONG] * 4))
    lent, calls = told([WRONG, "x"], [RIGHT, "y"], ["z"])
    after = scaf()(before, lent)
    levels = [
        f"{QUESTION} Add.",
        f"{QUESTION} Add.\nCount on.",
        f"{QUESTION} Add.\nCount on.\nCount on from 3 by 4.",
    ]
    assert calls == [(levels[:1] * 2, [200] * 2), (levels[1:2] * 2, [200] * 2), (levels[2:], [200])]
    assert after.scored.texts == (RIGHT, *before.texts[1:])
    assert prompts_of(after) == [levels[1]] + [QUESTION] * 11
    assert after.branches == ("hint_2",) + (None,) * 7 + ("unsolved",) + (None,) * 3
    assert after.scored.scores.rewards.tolist() == [1, 0, 0, 0] + [0, 1, 0, 0] + [0] * 4
    changed = [a is not b for a, b in zip(after.scored.rollout.responses, before.rollout.responses, strict=True)]
    assert changed == [True] + [False] * 11
    # All that was drawn for the group, hinted or not.
    assert [len(rewards) for rewards in after.scored.drawn] == [6 + 2, 6, 6 + 3]
    assert [rewards.sum() for rewards in after.scored.drawn] == [1, 1, 0]
    same(after.reports["scaf_grpo/level"], [2] * 4 + [None] * 4 + [3] * 4)
    same(after.reports["scaf_grpo/solved"], [1] * 4 + [None] * 4 + [0] * 4)
    assert set(after.reports) == set(scaf().metrics)


def test_scaf_can_train_the_new_row_under_the_plain_prompt():
    lent, _ = told([RIGHT])
    after = scaf(replace_hint_prompt=True)(scored([WRONG] * 4), lent)
    assert prompts_of(after) == [QUESTION] * 4
    assert after.scored.texts == (RIGHT, WRONG, WRONG, WRONG)
    assert not after.scored.rollout.responses[0].off_policy
    # Its log-probs are those under the hint, so a replay behind it in a chain must not store them for the plain prompt.
    assert [response.as_sampled for response in after.scored.rollout.responses] == [False, True, True, True]
    assert sampled_groups(after.scored) == []


def test_scaf_warms_up():
    history = History()
    history.record([("p", Visit(1, 4, 0, 0.0, 0.0))])
    lent, calls = told(iteration=1, history=history)
    after = scaf(warmup_iterations=2)(scored([WRONG] * 4), lent)
    assert (after.branches, calls) == ((None,) * 4, [])
    same(after.reports["scaf_grpo/unhinted_accuracy"], [None] * 4)  # it was all wrong before there were hints
    lent, _ = told([RIGHT], iteration=2, history=history)
    assert scaf(warmup_iterations=2)(scored([WRONG] * 4), lent).branches[0] == "hint_1"


def test_scaf_refuses_hints_that_are_no_list_of_texts():
    (problem,) = scored([WRONG] * 4).rollout.problems
    assert scaf().required_fields == {"columns.hints"}
    assert scaf().longest_response(problem, 200, encode) == 200
    for wrong in ("Add.", [1], ["Add.", " "]):
        with pytest.raises(UserError, match=r"^t:3: column hints is .*, expected a list of texts$"):
            scaf().longest_response(replace(problem, origin="t:3", columns={"hints": wrong}), 200, encode)


# --- chain ---------------------------------------------------------------------------------------------------------


def test_guided_continues_a_row_under_its_hinted_prompt():
    before = scored([WRONG] * 4 + [RIGHT] * 4)
    chain = Chain({"first": cascade(levels=(0.25,)), "second": guided(probabilities=(1, 0, 0))})
    lent, calls = told([WRONG, RIGHT, WRONG, WRONG], [" so " + RIGHT] * 3)
    after = chain(before, lent)
    hinted = f"{QUESTION} {SOLUTION[:5]}"
    assert calls == [([hinted] * 4, [200] * 4), ([hinted + WRONG + REFLECT] * 3, [64] * 3)]
    assert after.branches == ("reflect", "hint_1", "reflect", "reflect") + (None,) * 4
    assert prompts_of(after) == [hinted] * 4 + [QUESTION] * 4
    assert after.scored.scores.correct.all()
    same(after.reports["hint_cascade/solved"], [1] * 4 + [None] * 4)
    assert chain.metrics == cascade(levels=(0.25,)).metrics
    # The context holds prompts of 15 tokens, 40 of a reflection's beginning and 5 new ones.
    lent, calls = told([WRONG] * 4, [RIGHT[:5]] * 4, context_length=15 + 40 + 5, max_new_tokens=45)
    assert chain(scored([WRONG] * 4), lent).branches == ("reflect",) * 4
    assert calls[1][1] == [5] * 4


def test_a_chain_of_one_step_is_that_step():
    before = scored([WRONG, RIGHT, WRONG, WRONG] * 8)
    one, chained = (make(before, tools(seed=4)) for make in (guided(), Chain({"only": guided()})))
    assert chained.branches == one.branches
    assert chained.scored.texts == one.scored.texts
    assert Chain({"only": guided()}).longest_response(before.rollout.problems[0], 200, encode) == 264


def test_a_chain_asks_for_what_its_steps_ask_for():
    chain = Chain({"a": scaf(), "b": guided(probabilities=(1, 0, 0)), "c": cascade()})
    assert chain.required_fields == {"columns.hints", "solution"}
    assert chain.refuses_reference == ""
    refusing = guided()
    refusing.refuses_reference = "no"
    assert Chain({"a": cascade(), "b": refusing}).refuses_reference == "no"
    # The answer phrase is 84 + EOS: a second step can add it to what the first one made.
    (problem,) = scored([WRONG] * 4).rollout.problems
    adding = guided(probabilities=(0, 1, 0), max_response_tokens=1000)
    assert Chain({"a": adding, "b": adding, "c": Keep()}).longest_response(problem, 200, encode) == 200 + 2 * 85


def test_a_chain_takes_the_last_branch_of_a_row():
    everything = Chain({"a": guided(probabilities=(0, 1, 0)), "b": guided(probabilities=(0, 0, 1)), "c": Keep()})
    after = everything(scored([WRONG, RIGHT, WRONG, WRONG]), tools())
    assert after.branches == ("answer", None, "answer", "answer")  # nothing was left for the second step
    assert after.scored.texts[0] == WRONG + ANSWER.replace("{answer}", "7")


class Reporting(Keep):
    @property
    def metrics(self):
        return {"hint_cascade/level": StrategyMetric("1", "something else")}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "correction.steps is empty"),
        ({"a": cascade(), "b": official()}, r"^correction\.steps\.b: guided_official encodes the prompt"),
        (
            {"a": cascade(), "b": guided(loss_weights={"sampled": 1.0, "injected": 0.5, "reference": 1.0})},
            r"correction\.steps\.a and correction\.steps\.b weigh tokens differently .*injected 0\.5",
        ),
        ({"a": Reporting(), "b": cascade()}, r"steps\.a and correction\.steps\.b both report hint_cascade/level"),
    ],
)
def test_steps_that_do_not_go_together_are_refused_by_name(steps, message):
    with pytest.raises(UserError, match=message):
        Chain(steps)


def test_a_chain_is_written_on_the_command_line():
    cfg, _ = composed(
        "train",
        "model=tiny_random",
        "correction=chain",
        "correction@correction.steps.first=sage",
        "correction.steps.second.trigger=all_wrong",
        "+correction@correction.steps.third=forced_reflection",
    )
    steps = instantiate(cfg.correction).steps
    assert [type(step).__name__ for step in steps.values()] == ["Sage", "GuidedCorrection", "GuidedCorrection"]
    assert list(steps) == ["first", "second", "third"]
    assert steps["second"].trigger == "all_wrong"


# --- runs ----------------------------------------------------------------------------------------------------------


def test_scaf_is_refused_before_the_rollout_where_the_data_have_no_hints(tmp_path):
    with pytest.raises(UserError, match=r"no column `hints`, nor in any other of \d+ problems, .*add the column"):
        run_small(tmp_path / "run", "correction=scaf_grpo", "rollout.max_new_tokens=4")


def test_a_chain_trains_on_hinted_rows_and_reports(tmp_path):
    # A random model is never right, so every group goes up all levels and is then given the reference.
    folder = run_small(
        tmp_path / "run",
        "correction=chain",
        "correction.steps.second.probabilities={reflect:0,answer:0,solution:1}",
        "correction.steps.second.trigger=leave_one_wrong",
        "model.context_length=512",
    )
    first, second = (row for row in metrics_rows(folder) if row.get("hint_cascade/hinted"))
    for row in (first, second):
        assert float(row["hint_cascade/hinted"]) == 1
        assert float(row["hint_cascade/level"]) == 3
        assert float(row["correction/solution/count"]) == 2
        assert float(row["correction/hint_3/count"]) == 2
        assert float(row["train/skipped_steps"]) == 0
        assert float(row["train/effective_rows"]) == 1
    # 2 problems of 2 rows, and 3 levels of 4 rows, in each of two iterations.
    assert float(second["train/num_rollouts"]) == 2 * (4 + 12)
