"""Reward functions of somebody else: each signature, what they return wrongly, the sandbox, and a run."""

import asyncio
import functools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import ENVIRONMENT, PROGRAMS, SHORT, SMALL_GRPO, composed, equal_weights, metrics_rows, weights
from test_corrections import encode, score, scored, tools

from edge_grpo.command_line.check import instantiate
from edge_grpo.corrections.guided import rescored
from edge_grpo.errors import Stopped, UserError
from edge_grpo.rewards.accuracy import Accuracy
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.function import FunctionReward, _is_reply
from edge_grpo.rewards.python import PythonRewards
from edge_grpo.types.problems import Problem, Turn
from edge_grpo.types.responses import Provenance, reference_response, written_response

REPO = Path(__file__).resolve().parent.parent
EXAMPLES = REPO / "tests" / "examples"
COLUMNS = {
    "level": 3,
    "answer": "#### 2",
    "prompt": [{"role": "user", "content": "1 + 1 = ?"}],
    "data_source": "mine/sums",
    "reward_model": {"style": "rule", "ground_truth": "two"},
    "extra_info": {"index": 7},
}
SUM = Problem("p", "1 + 1 = ?", ("2",), solution="1 + 1 = 2", origin="f.json:3", columns=COLUMNS)
PRODUCT = Problem("q", "2 * 3 = ?", ("6",), origin="f.json:4", columns={**COLUMNS, "level": 4})
BARE = Problem("b", "3 - 1 = ?", ("2", "two"), solution="3 - 1 = 2")
RESPONSES = [
    reference_response([5, 6]),
    written_response(torch.tensor([7]), Provenance.REFERENCE, "length"),
]


def seen_by(make, problems=(SUM, PRODUCT), texts=("2", "7"), responses=RESPONSES, **settings):
    """What the function was called with, call by call."""
    calls = []
    FunctionReward(make(calls), **settings)(problems, texts, responses=responses)
    return calls


def test_a_function_of_one_response_gets_what_it_names():
    def make(calls):
        def mine(question, answer, response, finish_reason, solution, columns, level, unknown="default"):
            calls.append((question, answer, response, finish_reason, solution, columns["data_source"], level, unknown))
            return 0.0

        return mine

    assert seen_by(make) == [
        ("1 + 1 = ?", "2", "2", "stop", "1 + 1 = 2", "mine/sums", 3, "default"),
        ("2 * 3 = ?", "6", "7", "length", None, "mine/sums", 4, "default"),
    ]


def test_a_function_of_all_responses_gets_lists():
    def make(calls):
        def mine(questions, answers, responses, finish_reasons, level):
            calls.append((questions, answers, responses, finish_reasons, level))
            return [0.0] * len(responses)

        return mine

    lists = (["1 + 1 = ?", "2 * 3 = ?"], ["2", "6"], ["2", "7"])
    assert seen_by(make) == [(*lists, ["stop", "length"], [3, 4])]
    # Of a text that nobody generated there is no reason why it ends.
    assert seen_by(make, responses=None) == [(*lists, [None, None], [3, 4])]


def test_a_trl_function_gets_what_trl_hands_it():
    def make(calls):
        def mine(prompts, completions, **kwargs):
            calls.append((prompts, completions, kwargs))
            return [0.0] * len(completions)

        return mine

    ((prompts, completions, kwargs),) = seen_by(make)
    assert (prompts, completions) == (["1 + 1 = ?", "2 * 3 = ?"], ["2", "7"])
    # Every other column as it stands in the data: TRL knows no gold answer that was read out of one.
    assert kwargs == {
        "level": [3, 4],
        "answer": ["#### 2"] * 2,
        "solution": ["1 + 1 = 2", None],
        "data_source": ["mine/sums"] * 2,
        "reward_model": [COLUMNS["reward_model"]] * 2,
        "extra_info": [{"index": 7}] * 2,
        "completion_ids": [[5, 6], [7]],
    }


def test_a_trl_function_of_chats_gets_messages():
    def make(calls):
        def mine(prompts, completions):
            calls.append((prompts, completions))
            return [0.0]

        return mine

    ((prompts, completions),) = seen_by(make, [SUM], ["2"], None, conversational=True)
    assert prompts == [[{"role": "user", "content": "1 + 1 = ?"}]]
    assert completions == [[{"role": "assistant", "content": "2"}]]


def test_questions_that_are_chats_in_the_data_are_chats_to_trl_unless_it_is_said_otherwise():
    chat = Problem("c", "1 + 1 = ?", ("2",), turns=(Turn("system", "Be brief."),), is_chat=True)
    seen = []

    def mine(prompts, completions):
        seen.append((prompts, completions))
        return [0.0] * 2

    FunctionReward(mine)([chat, SUM], ["2", "3"])
    FunctionReward(mine, conversational=False)([chat, SUM], ["2", "3"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?"}]
    assert seen[0] == ([messages, "1 + 1 = ?"], [[{"role": "assistant", "content": "2"}], "3"])
    assert seen[1] == (["1 + 1 = ?"] * 2, ["2", "3"])


def test_a_trl_function_of_tokens_alone_is_one():
    def overlong(completion_ids, **kwargs):
        return [-1.0 if len(ids) > 1 else 0.0 for ids in completion_ids]

    assert FunctionReward(overlong)([SUM, SUM], ["", ""], responses=RESPONSES).tolist() == [-1.0, 0.0]
    assert FunctionReward(overlong)([SUM, SUM], ["", ""]).tolist() == [0.0, 0.0]  # references have no tokens


def test_a_verl_function_gets_what_verl_hands_it():
    def make(calls):
        def compute_score(data_source, solution_str, ground_truth, extra_info=None):
            calls.append((data_source, solution_str, ground_truth, dict(extra_info)))
            extra_info["index"] = 8
            return {"score": 0.5, "acc": False}

        return compute_score

    assert seen_by(make) == [("mine/sums", "2", "two", {"index": 7}), ("mine/sums", "7", "two", {"index": 7})]
    assert COLUMNS["extra_info"] == {"index": 7}  # its changes are its own
    # Data that is not verl's: the gold answers one by one.
    assert seen_by(make, [BARE], ["2"], None) == [("", "2", "2", {}), ("", "2", "two", {})]


def test_a_verl_function_of_batches_gets_lists():
    def compute_score(data_sources, solution_strs, ground_truths, extra_infos):
        assert (data_sources, ground_truths, extra_infos) == (["mine/sums"] * 2, ["two"] * 2, [{"index": 7}] * 2)
        return [{"score": float(text == "2")} for text in solution_strs]

    assert FunctionReward(compute_score)([SUM, PRODUCT], ["2", "7"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda answer, response: float(answer == response),
        lambda answers, responses: [float(a == r) for a, r in zip(answers, responses, strict=True)],
        lambda completions, answer: [float(a == c) for a, c in zip(answer, completions, strict=True)],
        lambda solution_str, ground_truth: float(solution_str == ground_truth),
        lambda solution_strs, ground_truths: [float(s == g) for s, g in zip(solution_strs, ground_truths, strict=True)],
    ],
    ids=["response", "batch", "trl", "verl", "verl_batch"],
)
def test_the_best_of_several_gold_answers_counts_in_every_style(function):
    three = Problem("p", "?", ("a", "b"))
    one = Problem("q", "?", ("c",))
    assert FunctionReward(function)([three, one, three, one], ["b", "c", "c", "a"]).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_function_that_reads_no_gold_answer_is_called_once_a_response():
    def make(calls):
        def mine(response):
            calls.append(response)
            return 0.0

        return mine

    assert seen_by(make, [BARE], ["x"], None) == ["x"]


def test_none_in_a_list_is_not_judged_and_counts_as_nothing(caplog):
    def some(completions, **kwargs):
        return [1.0, None]

    rewards = WeightedRewards({"accuracy": FunctionReward(some)}, {"accuracy": 1.0})
    scores = rewards([SUM, SUM], ["", ""])
    assert scores.rewards.tolist() == [1.0, 0.0]
    assert scores.correct.tolist() == [True, False]
    assert rewards.counts["not_finite"] == 0
    assert not caplog.records
    FunctionReward(lambda completions: [None, None])([SUM, SUM], ["", ""])
    (record,) = caplog.records
    assert "judged none of 2 responses" in record.message


def test_async_functions_run_side_by_side():
    met = []

    async def judge(response):
        met.append(response)
        while len(met) < 2:  # waits for the other call
            await asyncio.sleep(0)
        return 1.0

    async def judges(completions, **kwargs):
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    assert FunctionReward(judge)([SUM, SUM], ["a", "b"]).tolist() == [1.0, 1.0]
    assert FunctionReward(judges)([SUM, SUM], ["a", "b"]).tolist() == [0.5, 0.5]

    async def fails(response):
        raise KeyError(response)

    with pytest.raises(UserError, match=r"fails, problem f\.json:3: raised KeyError: 'a' \(test_reward_functions\.py"):
        FunctionReward(fails)([SUM, SUM], ["a", "b"])


def test_the_place_of_an_error_is_a_line_of_the_functions_own_file():
    def reads(response):
        return json.loads(response)  # raises in json/decoder.py

    class Reads:
        def __call__(self, response):
            return json.loads(response)

    for function in (reads, Reads(), functools.partial(reads)):
        with pytest.raises(UserError, match=r"raised JSONDecodeError: .* \(test_reward_functions\.py:\d+\)$"):
            FunctionReward(function)([SUM], ["no JSON"])


def test_a_function_that_exits_is_one_that_fails():
    def leaves(response):
        sys.exit(response)

    with pytest.raises(UserError, match=r"leaves, problem f\.json:3: raised SystemExit: bye \(test_reward_functions"):
        FunctionReward(leaves)([SUM], ["bye"])

    def stopped(response):
        raise Stopped(15)

    with pytest.raises(Stopped):
        FunctionReward(stopped)([SUM], [""])


def test_an_exception_in_a_reward_of_somebodys_own_is_one_line():
    class Mine:
        def __call__(self, problems, texts):
            return json.loads(texts[0])

    class Refuses:
        def __call__(self, problems, texts):
            raise UserError("no such answer")

    told = r"^reward accuracy \(Mine\) raised JSONDecodeError: .* \(test_reward_functions\.py:\d+\)$"
    with pytest.raises(UserError, match=told):
        WeightedRewards({"accuracy": Mine()}, {"accuracy": 1.0})([SUM], ["no JSON"])
    with pytest.raises(UserError, match=r"^no such answer$"):
        WeightedRewards({"accuracy": Refuses()}, {"accuracy": 1.0})([SUM], [""])
    # A fault of the project's own keeps its traceback.
    with pytest.raises(TypeError):
        WeightedRewards({"accuracy": Accuracy(None)}, {"accuracy": 1.0})([SUM], [""])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None, expected a list of 2 numbers, one a response"),
        (0.5, "returned 0.5, expected a list of 2 numbers, one a response"),
        ("ab", "returned 'ab', expected a list of 2 numbers, one a response"),
        ([1.0], "returned 1 values for 2 responses"),
        (torch.zeros(3), "returned 3 values for 2 responses"),
        (torch.zeros(2, 1), "returned [0.0] at place 0, expected a number"),
        ([1.0, "high"], "returned 'high' at place 1, expected a number"),
        ([1.0, {"acc": 1}], "returned {'acc': 1} at place 1, expected a number, or a dict with one under `score`"),
        ([1.0, 10**400], "returned a number at place 1 that no float holds"),
        (ValueError("no\nluck"), "raised ValueError: no luck (test_reward_functions.py:"),
    ],
)
def test_what_a_function_of_lists_returns_wrongly_is_told(returned, message):
    def mine(responses):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(UserError, match=r"^reward function .*mine, 2 responses, the first to problem f\.json:3: ") as e:
        FunctionReward(mine)([SUM, PRODUCT], ["", ""])
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_numbers_of_any_kind_are_taken_and_nan_is_counted():
    values = [True, 2, torch.tensor(0.5).double(), math.nan]
    reward = FunctionReward(lambda responses: values)
    rewards = WeightedRewards({"accuracy": reward}, {"accuracy": 1.0})
    scores = rewards([SUM] * 4, [""] * 4)
    assert scores.rewards.tolist() == [1.0, 2.0, 0.5, 0.0]
    assert scores.correct.tolist() == [True, True, False, False]
    assert rewards.counts["not_finite"] == 1
    assert FunctionReward(lambda responses: torch.tensor([1, 0]))([SUM] * 2, ["", ""]).tolist() == [1.0, 0.0]
    assert FunctionReward(lambda responses: values)([], []).tolist() == []


def test_a_trl_function_that_reads_messages_is_told_how_to_get_them():
    def of_chats(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    told = r"it got texts: if it reads chat messages, set reward\.conversational=true$"
    with pytest.raises(UserError, match=rf"raised TypeError: .*; {told}"):
        FunctionReward(of_chats)([SUM], ["2"])
    told = r"it got chat messages: if it reads texts, set reward\.conversational=false$"
    with pytest.raises(UserError, match=rf"raised AttributeError: .*; {told}"):
        FunctionReward(lambda completions: [float(c.strip()) for c in completions], True)([SUM], ["2"])
    assert FunctionReward(of_chats, conversational=True)([SUM], ["234"]).tolist() == [3.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 0.0, "takes no argument; there are question, answer, "),
        (lambda response, /: 0.0, "takes response by position only; arguments are handed by name"),
        (
            lambda completions, trainer_state: 0.0,
            "takes trainer_state, which only TRL's trainer has: give it a default",
        ),
        (
            lambda solution_str, grund_truth: 0.0,
            "takes grund_truth, which is none of data_source, solution_str, ground_truth, extra_info "
            "and no column that verl hands; did you mean ground_truth?",
        ),
    ],
)
def test_a_signature_that_cannot_be_served_is_refused_when_it_is_built(function, message):
    with pytest.raises(UserError) as caught:
        FunctionReward(function)
    assert message in str(caught.value)


def test_a_column_that_no_row_has_is_refused_and_one_that_some_lack_makes_them_bad_rows():
    def mine(response, levl):
        return 0.0

    columns = "answer, data_source, extra_info, level, prompt, reward_model"
    with pytest.raises(UserError) as caught:
        FunctionReward(mine).ungradable([SUM, BARE])
    assert "mine takes levl, which is none of question, answer, response, finish_reason" in str(caught.value)
    assert f"and no column of the data ({columns}); did you mean level?" in str(caught.value)

    def graded(response, level):
        return 0.0

    content, needy = FunctionReward(lambda response: 0.0), FunctionReward(graded)
    for accuracy, more in ((content, needy), (needy, content)):
        rewards = WeightedRewards({"accuracy": accuracy, "more": more}, {"accuracy": 1, "more": 1})
        first, second = rewards.ungradable([SUM, BARE])
        assert first is None
        assert second is not None
        assert second.startswith("no column 'level', which reward function")


# Finding the function


def write(folder, text, name="mine.py"):
    (folder / name).write_text(text)
    return folder / name


def test_modules_are_found_in_the_working_directory_and_files_beside_their_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    write(tmp_path, "def score(response):\n    return 0.25\n", "rewards_of_the_folder.py")
    assert FunctionReward("rewards_of_the_folder:score")([SUM], [""]).tolist() == [0.25]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", "VALUE = 0.5\n", "neighbour_of_the_reward.py")
    write(tmp_path / "a", "from neighbour_of_the_reward import VALUE\ndef score(response):\n    return VALUE\n")
    write(tmp_path / "b", "def score(response):\n    return 0.75\n")
    values = [FunctionReward(f"{place}/mine.py:score")([SUM], [""]).tolist() for place in "ab"]
    assert values == [[0.5], [0.75]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "reward function 'mine': expected module:function or path/to/file.py:function"),
        ("mine.py:", "expected module:function"),
        ("broken_mine:score", "no module broken_mine in {folder}, on PYTHONPATH or installed; did you mean broken_min"),
        ("gone/mine.py:score", "no file gone/mine.py (the working directory is {folder})"),
        ("broken_min:score", "importing broken_min raised ModuleNotFoundError: No module named 'not_there'"),
        ("syntax.py:score", "importing syntax.py raised SyntaxError: "),
        ("mine.py:scor", "mine.py has no scor; did you mean score?"),
        ("mine.py:VALUE", "VALUE is no function"),
        ("mine.py:Score", "Score is a class: name a function, or an object that the module holds"),
    ],
)
def test_a_function_that_is_not_found_is_told_with_the_way_out(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, "VALUE = 1\nclass Score: pass\ndef score(response):\n    return 0.0\n")
    write(tmp_path, "import not_there\n", "broken_min.py")
    write(tmp_path, "def score(:\n", "syntax.py")
    with pytest.raises(UserError) as caught:
        FunctionReward(name)
    assert message.replace("{folder}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


# Several functions


def python_rewards(function, weights=None, **changes):
    settings = {"conversational": None, "sandbox": False, "workers": 1, "timeout_s": 5.0, "memory_limit_gb": 2.0}
    return PythonRewards(function, weights, **{**settings, **changes})


def test_of_several_functions_the_first_decides_what_is_right():
    names = [f"{EXAMPLES}/my_rewards.py:{name}" for name in ("exact", "in_time")]
    rewards = python_rewards(names, [1.0, 0.5])
    scores = rewards([SUM, SUM], ["it is 2", "it is 3"], RESPONSES[::-1])
    # exact 1 and 0; in_time 0 (cut off) and 1, at half the weight
    assert scores.rewards.tolist() == [1.0, 0.5]
    assert scores.correct.tolist() == [True, False]
    assert set(scores.parts) == {"accuracy", "in_time"}
    assert python_rewards(names[1]).weights == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("function", "weights", "message"),
    [
        ([], None, "reward.function=[]: expected at least one module:function"),
        (["{file}:exact"], [1.0, 2.0], "reward.weights=[1.0, 2.0]: expected 1 of them"),
        (["{file}:exact", "{file}:exact"], None, "twice: set its weight in reward.weights instead"),
    ],
)
def test_functions_and_weights_that_do_not_fit_are_refused(function, weights, message):
    with pytest.raises(UserError) as caught:
        python_rewards([name.replace("{file}", f"{EXAMPLES}/my_rewards.py") for name in function], weights)
    assert message in str(caught.value)


# What a reward gets of the responses


def test_only_a_reward_that_declares_responses_by_keyword_gets_them():
    seen = {}

    class Old:
        def __call__(self, problems, responses):  # its texts, under that name
            seen["old"] = responses
            return [0.0] * len(problems)

    class New:
        def __call__(self, problems, texts, *, responses):
            seen["new"] = responses
            return [0.0] * len(problems)

    rewards = WeightedRewards({"accuracy": Old(), "new": New()}, {"accuracy": 1, "new": 1})
    rewards([SUM, SUM], ["a", "b"], RESPONSES)
    assert seen == {"old": ["a", "b"], "new": RESPONSES}
    rewards([SUM, SUM], ["a", "b"])
    assert seen["new"] is None


def test_columns_are_copies_whatever_the_function_does_to_them():
    problem = Problem("p", "?", ("2",), columns={"extra_info": {"index": 7}, "tags": ["a"]})

    def one(response, columns, tags):
        columns["extra_info"]["index"] += 1
        tags.append("b")
        return float(columns["extra_info"]["index"])

    def trl(completions, **kwargs):
        kwargs["tags"][0].append("b")
        return [float(len(kwargs["tags"][0]))]

    assert [FunctionReward(one)([problem], [""]).tolist() for _ in range(2)] == [[8.0]] * 2
    assert [FunctionReward(trl)([problem], [""]).tolist() for _ in range(2)] == [[2.0]] * 2


def test_a_correction_hands_the_responses_that_it_has_edited():
    texts = ["a \\boxed{1}", "b \\boxed{7}"]
    before = scored(texts, g=2)
    seen = []

    def score_and_keep(problems, texts, responses=None):
        seen.append((texts, responses))
        return score(problems, texts)

    edited = {1: written_response(torch.tensor(encode("cut")), Provenance.REFERENCE, "length")}
    rescored(before, edited, replace(tools(), score=score_and_keep))
    assert seen == [(["cut"], [edited[1]])]


# The sandbox

SANDBOXED = """
import os, time

def score(answer, response):
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(1)
    if response == "write":
        open("trace", "w")
    if response == "connect":
        import socket
        socket.create_connection(("127.0.0.1", 9))
    return float(eval(response) == int(answer))

def scores(responses):
    return [0.1 * len(response) for response in responses]

def breaks(response):
    return [][0]

async def judge(response):
    return 1.0
"""


@pytest.fixture
def sandboxed(tmp_path, monkeypatch):
    """name -> the function of `SANDBOXED` as a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, SANDBOXED)
    made = []

    def get(name, **settings):
        made.append(FunctionReward(f"mine.py:{name}", sandbox=True, workers=1, **settings))
        return made[-1]

    yield get
    for reward in made:
        reward.close()


def test_in_the_sandbox_no_response_can_hang_kill_or_write_anything(sandboxed, tmp_path, caplog):
    reward = sandboxed("score", timeout_s=2.0)
    texts = ["1 + 1", "3", "hang", "die", "write", "connect", "2"]
    assert reward([SUM] * 7, texts).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    counts = reward.counts
    assert (counts["total"], counts["timeout"], counts["crash"], counts["error"]) == (7, 1, 1, 2)
    assert reward([SUM], ["2"]).tolist() == [1.0]
    assert reward.counts == {**counts, "total": 8}
    assert not (tmp_path / "trace").exists()
    assert "which counts as 0" not in caplog.text
    told = [record.message.partition("mine.py:score ")[2] for record in caplog.records if "mine.py" in record.message]
    assert told == [
        "did not end within timeout_s=2 in 1 of 7 calls; in the sandbox that counts as 0 and in verifier/timeout_rate",
        "ended its process in 1 of 7 calls, or went beyond its memory; in the sandbox that counts as 0 and in "
        "verifier/error_rate",
        told[2],
    ]
    assert told[2].startswith("raised PermissionError: ")
    assert told[2].endswith("; in the sandbox that counts as 0 and in verifier/error_rate")


def test_in_the_sandbox_a_batch_of_any_size_is_one_call(sandboxed):
    reward = sandboxed("scores")
    values = reward([SUM] * 1000, ["x" * (row % 7) for row in range(1000)])
    assert values.tolist() == pytest.approx([0.1 * (row % 7) for row in range(1000)])
    assert reward.counts["total"] == 1000
    assert reward.counts["error"] == 0


def test_a_function_that_fails_for_every_response_from_the_start_is_refused_in_the_sandbox_too(sandboxed):
    with pytest.raises(UserError, match=r"mine\.py:breaks, problem f\.json:3: raised IndexError: .*\(mine\.py:\d+\)"):
        sandboxed("breaks")([SUM, PRODUCT], ["", ""])


def test_what_cannot_run_in_the_sandbox_is_refused(sandboxed):
    with pytest.raises(UserError, match=r"judge is async, which needs sockets: set sandbox=false"):
        sandboxed("judge")
    with pytest.raises(UserError, match="sandbox=true needs function=module:function, as text"):
        FunctionReward(lambda response: 0.0, sandbox=True)


@pytest.mark.parametrize(
    "reply",
    [[1.0], [1.0] * 3, [1.0, "1"], [True, 1.0], {"failed": 1}, {"failed": "x" * 1001}, {"failed": "", "a": 1}, 1.0],
)
def test_in_the_sandbox_a_reply_of_another_form_is_none(reply):
    assert not _is_reply(reply, size=2)
    assert _is_reply([1.0, None], size=2)
    assert _is_reply({"failed": "raised"}, size=2)


# Runs

TRAINED = """
import json

def correct_reward(prompts, completions, answer, **kwargs):
    assert all(isinstance(prompt, str) for prompt in prompts)
    assert len(kwargs["completion_ids"]) == len(completions)
    return [1.0 if str(a) in completion else None for a, completion in zip(answer, completions)]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": len(solution_str) % 3 / 2, "acc": ground_truth in solution_str}

def ended(questions, responses, finish_reasons):
    with open("reasons.jsonl", "a") as file:
        file.write(json.dumps(finish_reasons) + "\\n")
    return [0.0 if reason == "length" else 1.0 for reason in finish_reasons]
"""


def train(folder, *argv):
    """The command line in a folder that Python does not search by itself."""
    environment = {**ENVIRONMENT, "PYTHONSAFEPATH": "1"}
    return PROGRAMS.start("-m", "edge_grpo.programs.train", *argv, cwd=folder, env=environment)


def finished(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def test_functions_of_trl_and_verl_train_unchanged_and_resume_to_the_same_bits(tmp_path):
    write(tmp_path, TRAINED, "their_rewards.py")
    functions = "reward.function=[their_rewards:correct_reward,their_rewards:compute_score,./their_rewards.py:ended]"
    settings = (*SMALL_GRPO, *SHORT, "reward=python", functions, "reward.weights=[1,0.5,0.25]")
    settings += ("evaluation.every_n_iterations=1",)  # else a run that ends evaluates where the other does not
    whole = train(tmp_path, *settings, "hydra.run.dir=whole")
    cut = train(tmp_path, *settings, "trainer.max_iterations=1", "hydra.run.dir=cut")
    told = finished(whole)
    finished(cut)
    assert "their_rewards:correct_reward decides what is right: 1 and above" in told
    finished(train(tmp_path, "resume=cut", "trainer.max_iterations=2"))
    rows = metrics_rows(tmp_path / "whole", timed=False)
    assert {"train/rewards/compute_score/mean", "train/rewards/ended/mean"} <= rows[0].keys()
    assert metrics_rows(tmp_path / "cut", timed=False) == rows
    assert equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    reasons = {reason for line in (tmp_path / "reasons.jsonl").read_text().splitlines() for reason in json.loads(line)}
    assert reasons == {None, "stop", "length"}  # references; corrected and sampled responses


def test_a_reward_that_is_added_to_another_one_needs_no_file(tmp_path):
    added = "+reward.rewards.brief={_target_: edge_grpo.rewards.function.FunctionReward, function: 'mine:brief'}"
    write(tmp_path, "def brief(response):\n    return 1 / (1 + len(response))\n")
    finished(train(tmp_path, *SMALL_GRPO, "correction=none", added, "+reward.weights.brief=0.1", "hydra.run.dir=run"))
    assert float(metrics_rows(tmp_path / "run")[0]["train/rewards/brief/mean"]) > 0


def test_the_page_shows_this_file():
    assert (EXAMPLES / "my_rewards.py").read_text().strip() in (REPO / "docs" / "rewards.md").read_text()


def first_function(page):
    """What the first Python block of a page defines first."""
    block = re.search(r"^```python\n(.*?)^```", (REPO / page).read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(block[1], names)
    return names[re.findall(r"^def (\w+)", block[1], re.MULTILINE)[0]]


@pytest.mark.parametrize("page", ["docs/how_to.md", "docs/rewards.md"])
def test_the_first_example_of_a_page_grades_the_default_task(page):
    cfg, _ = composed("train", "experiment=edge_grpo")
    reward, (problems, _) = FunctionReward(first_function(page)), instantiate(cfg.data).load()
    phrase = cfg.correction.answer_phrase
    solutions = [problem.solution for problem in problems]
    assert reward(problems, solutions).eq(1).all()
    assert reward(problems, ["1" + phrase.replace("{answer}", p.answers[0]) for p in problems]).eq(1).all()
    assert not reward(problems, [solution.replace("{", "{1") for solution in solutions]).any()
