import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_runs import composed

from edge_grpo.errors import UserError
from edge_grpo.rewards.accuracy import Accuracy
from edge_grpo.rewards.always_one import AlwaysOne
from edge_grpo.rewards.base import GRADING_COUNTS, WeightedRewards
from edge_grpo.rewards.boxed_format import BoxedFormat
from edge_grpo.rewards.official import OfficialVerifier
from edge_grpo.rewards.soft_overlong import SoftOverlong
from edge_grpo.rewards.verifier import Pair
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response

CONF = sorted((Path(__file__).parents[1] / "conf" / "reward").glob("*.yaml"))
BOXED = next(path for path in CONF if path.stem == "boxed")
TIMEOUT_S, MEMORY_GB = 2.0, 2.0


@contextmanager
def boxed_within(timeout_s: float) -> Iterator[WeightedRewards]:
    """The reward of conf/, with another patience."""
    cfg = OmegaConf.load(BOXED)
    cfg.rewards.accuracy.verifier.update(timeout_s=timeout_s, memory_limit_gb=MEMORY_GB)
    rewards = instantiate(cfg)
    yield rewards
    rewards.rewards["accuracy"].verifier.close()


@pytest.fixture(scope="module")
def boxed() -> Iterator[WeightedRewards]:
    with boxed_within(TIMEOUT_S) as rewards:
        yield rewards


@pytest.fixture
def patient() -> Iterator[WeightedRewards]:
    """Where the machine is busy, easy answers take a second too."""
    with boxed_within(4 * TIMEOUT_S) as rewards:
        yield rewards


class SameText:
    """A verifier that wants the gold text itself and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Pair]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        self.calls.append(pairs)
        return [answer in golds for answer, golds in pairs]


def problem(*answers: str) -> Problem:
    return Problem(id="p", question="?", answers=answers, origin="data.json:3")


PROBLEMS = [problem("5"), problem("5"), problem("5"), problem("6", "5")]
TEXTS = [r"\boxed{4} no, \boxed{5}", r"\boxed{6}", "5", r"\boxed{5}"]


def test_accuracy_grades_the_last_box_of_each_text_in_one_call() -> None:
    verifier = SameText()
    scores = Accuracy(verifier)(PROBLEMS, TEXTS)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert verifier.calls == [[("5", ("5",)), ("6", ("5",)), (None, ("5",)), ("5", ("6", "5"))]]


def test_accuracy_refuses_a_problem_without_gold() -> None:
    with pytest.raises(UserError, match=r"data\.json:3"):
        Accuracy(SameText())([problem()], [r"\boxed{5}"])


def test_accuracy_refuses_texts_that_do_not_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        Accuracy(SameText())(PROBLEMS, TEXTS[:2])


def test_format_asks_for_a_box_and_the_official_one_for_nothing() -> None:
    assert BoxedFormat()(PROBLEMS, TEXTS).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert AlwaysOne()(PROBLEMS, TEXTS).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert AlwaysOne()([], []).dtype == torch.float32


def test_weighted_sum_and_right_by_accuracy_alone() -> None:
    rewards = WeightedRewards(
        {"accuracy": Accuracy(SameText()), "format": BoxedFormat()}, {"accuracy": 2.0, "format": 0.5}
    )
    scores = rewards(PROBLEMS, TEXTS)
    assert scores.rewards.tolist() == [2.5, 0.5, 0.0, 2.5]  # 2 * accuracy + 0.5 * format
    assert scores.correct.tolist() == [True, False, False, True]  # the second has a box and is still wrong
    assert rewards.max_reward == 2.5
    generous = WeightedRewards(
        {"accuracy": Accuracy(SameText()), "format": BoxedFormat()}, rewards.weights | {"format": 9}
    )
    assert generous(PROBLEMS, TEXTS).correct.tolist() == [True, False, False, True]  # a reward of 9 is not right either


def responses_of(*lengths: int) -> list[Response]:
    zeros = [torch.zeros(n) for n in lengths]
    return [Response(some.long(), some, some, some.to(torch.int8), "stop") for some in zeros]


def test_the_penalty_of_long_responses_by_hand() -> None:
    # A budget of 10 tokens, the last 4 of which cost a quarter each; a correction may go beyond.
    reward = SoftOverlong(max_tokens=10, share=0.4)
    penalties = reward([], [""] * 7, responses=responses_of(0, 6, 7, 8, 9, 10, 13))
    assert penalties.tolist() == pytest.approx([0, 0, -0.25, -0.5, -0.75, -1, -1])
    assert penalties.dtype == torch.float32
    assert reward([], ["", ""]).tolist() == [0.0, 0.0]  # nobody generated them


def test_a_penalty_takes_nothing_from_what_is_right_and_is_no_part_of_the_highest_reward() -> None:
    rewards = WeightedRewards(
        {"accuracy": Accuracy(SameText()), "overlong": SoftOverlong(max_tokens=4, share=0.5)},
        {"accuracy": 1.0, "overlong": 0.5},
    )
    scores = rewards(PROBLEMS, TEXTS, responses_of(2, 3, 4, 4))
    assert scores.rewards.tolist() == [1.0, -0.25, -0.5, 0.5]
    assert scores.correct.tolist() == [True, False, False, True]
    assert rewards.max_reward == 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"share": 0.0}, "share=0.0 must be above 0 and at most 1"),
        ({"share": 1.5}, "share=1.5 must be above 0 and at most 1"),
    ],
)
def test_a_penalty_out_of_range_is_refused(bad: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SoftOverlong(**({"max_tokens": 10, "share": 0.2} | bad))


def test_no_rows_are_no_scores() -> None:
    scores = WeightedRewards({"accuracy": Accuracy(SameText())}, {"accuracy": 1.0})([], [])
    assert scores.rewards.shape == (0,)


def test_names_must_match_and_hold_accuracy() -> None:
    with pytest.raises(UserError, match="accuracy"):
        WeightedRewards({"format": BoxedFormat()}, {"format": 1.0})
    with pytest.raises(UserError, match="weights"):
        WeightedRewards({"accuracy": Accuracy(SameText())}, {"accuracy": 1.0, "format": 1.0})


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_every_config_builds_a_weighted_reward(path: Path) -> None:
    if path.stem == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    function = f"reward.function={Path(__file__).parent}/examples/my_rewards.py:exact"
    cfg, _ = composed("train", f"reward={path.stem}", *([function] if path.stem == "python" else []))
    rewards = instantiate(cfg.reward)
    assert isinstance(rewards, WeightedRewards)
    assert type(rewards.rewards) is dict
    assert all(weight == 1.0 for weight in rewards.weights.values())
    if path.stem == "soft_overlong":  # rollout.max_new_tokens is 128 by default
        assert rewards.rewards["overlong"]([], [""], responses=responses_of(128)).tolist() == [-1.0]
        assert -0.04 < rewards.rewards["overlong"]([], [""], responses=responses_of(103)).item() < 0  # 102.4 are free


def test_official_config_rewards_the_format_of_anything() -> None:
    path = next(path for path in CONF if path.stem == "official")
    scores = instantiate(OmegaConf.load(path))([problem("5")] * 2, [r"\boxed{5}", "no box"])
    assert scores.rewards.tolist() == [2.0, 1.0]
    assert scores.correct.tolist() == [True, False]


OFFICIAL_PAIRS = (  # answer, gold answer, right?
    ("5", r"\text{5}", True),
    (r"\frac12", r"\frac{1}{2}", True),
    ("0.5", r"\frac{1}{2}", True),
    ("5", "5.", True),
    (r"\frac{1}{2}", r"\frac{1}{2}.", False),
    ("MONDAY", r"\text{Monday}", True),
    ("Tuesday", r"\text{Monday}", False),
    ("5", "x = 5", True),
    ("y=5", "x = 5", True),
    ("6", "x = 5", False),
    ("5 cm", "5", True),
    (r"50\%", "50", True),
    ("5", r"\boxed{5}", True),
    ("3", r"3 \mid n", True),  # a fragment, as it is released
    ("(1, 2)", "(2, 1)", False),
)


def test_the_official_grader_is_as_lenient_as_the_released_one() -> None:
    rewards = instantiate(OmegaConf.load(next(path for path in CONF if path.stem == "official")))
    problems = [problem(gold) for _, gold, _ in OFFICIAL_PAIRS]
    texts = [rf"so \boxed{{{answer}}}" for answer, _, _ in OFFICIAL_PAIRS]
    assert rewards(problems, texts).correct.tolist() == [right for _, _, right in OFFICIAL_PAIRS]
    assert not any(rewards.unparsed(problems, texts))
    assert rewards(problems[:1], [r"$x=\boxed{5}$, $y=\boxed{6}$"]).correct.tolist() == [False]  # the last box alone
    assert rewards.ungradable([problem("(1,")]) == [None]


def test_what_the_official_grader_evaluates_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr("edge_grpo.rewards.verifier.KillablePool", lambda *settings, **_: made.append(settings))
    OfficialVerifier(3, 1.0, 100, 2.0)
    assert made == [(3, 1.0, 2.0, 1)]  # workers, seconds, GiB, answers a process


def test_without_its_extra_the_official_grader_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reward=official needs mathruler: pip install 'edge-grpo\[official\]'"):
        OfficialVerifier(1, 1.0, 100, 1.0)


class Given:
    """A reward of given values."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor(self.values)


def test_values_that_are_not_finite_count_as_nothing_and_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    nan, inf = float("nan"), float("inf")
    rewards = WeightedRewards(
        {"accuracy": Given(1.0, inf, nan, 0.0), "style": Given(0.5, 0.5, -inf, nan)}, {"accuracy": 2.0, "style": 1.0}
    )
    for _ in range(2):
        scores = rewards(PROBLEMS, TEXTS)
        assert scores.rewards.tolist() == [2.5, 0.5, 0.0, 0.0]
        assert scores.correct.tolist() == [True, False, False, False]
        assert scores.parts["style"].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert {name: rewards.counts[name] for name in ("values", "not_finite")} == {"values": 16, "not_finite": 8}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "accuracy" in record.message
    assert "data.json:3" in record.message


def test_a_zero_weight_does_not_let_a_nan_through() -> None:
    rewards = WeightedRewards({"accuracy": Given(1.0), "x": Given(float("nan"))}, {"accuracy": 1.0, "x": 0.0})
    assert rewards(PROBLEMS[:1], TEXTS[:1]).rewards.tolist() == [1.0]


def test_counts_and_state_of_rewards_that_keep_none() -> None:
    rewards = WeightedRewards({"accuracy": Accuracy(SameText()), "format": BoxedFormat()}, {"accuracy": 1, "format": 1})
    rewards(PROBLEMS, TEXTS)
    assert rewards.counts == dict.fromkeys(GRADING_COUNTS, 0) | {"values": 8, "not_finite": 0}
    assert rewards.state_dict() == {}
    rewards.load_state_dict({"accuracy": {"cache": []}, "gone": {}})  # of a run with other rewards
    assert WeightedRewards({"accuracy": Given(1.0)}, {"accuracy": 1.0}).ungradable(PROBLEMS) == [None] * 4


def test_the_verdicts_travel_through_the_weighted_rewards(boxed: WeightedRewards) -> None:
    half = [problem("0.5")] * 2
    texts = [r"\boxed{\frac{2}{4}}", r"\boxed{\frac{2}{5}}"]
    assert boxed(half, texts).correct.tolist() == [True, False]
    resumed = instantiate(OmegaConf.load(BOXED))
    resumed.load_state_dict(boxed.state_dict())
    assert resumed(half, texts).correct.tolist() == [True, False]
    assert [resumed.counts[name] for name in ("total", "cached", "values")] == [2, 2, 4]


def test_ungradable_names_what_is_wrong_and_what_was_expected(
    boxed: WeightedRewards, caplog: pytest.LogCaptureFixture
) -> None:
    problems = [problem("5"), problem(), problem("(1,"), problem("(1,", r"\frac{1}{2}"), problem(r"\text{Even}")]
    assert boxed.ungradable(problems) == [
        None,
        "no gold answer: expected at least one",
        r"gold answer '(1,' is blank or cut off: expected a number, LaTeX such as \frac{1}{2}, or words",
        None,
        None,
    ]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("1 of 4 different gold answers are no mathematics, or none that can be read whole, and are")
    assert told.endswith(r"only the same words match: '\\text{Even}'")
    assert Accuracy(SameText()).ungradable(problems[:3]) == [None, "no gold answer: expected at least one", None]


HOSTILE = [
    "__import__('os').system('touch {canary}')",
    r"\text{{__import__('os').system('touch {canary}')}}",
    "(lambda: open('{canary}', 'w'))()",
    "{" * 50_000 + "}" * 50_000,  # 100 kB
    "{" * 450 + "1" + "}" * 450,  # as deep as the length allows
    "(" * 450 + "1" + ")" * 450,
    r"\frac{1}{" * 90 + "1" + "}" * 90,
    "10**10**10",
    "10^{10^{10}}",
    r"\input{/etc/passwd}",
    "41\0",
    "\0" * 900,
    r"\frac{1}{\left(2",
    r"\} \{ \right] \sqrt[",
    "\u202e24",  # shown as 42
    "\u202e" * 900,
]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and the memory limit is Linux's")
def test_hostile_completions_are_wrong_run_nothing_and_stay_within_time_and_memory(
    boxed: WeightedRewards, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    texts = [rf"So \boxed{{{answer.replace('{canary}', str(canary))}}}" for answer in HOSTILE]
    texts += [r"\boxed{41} " * 10_000, r"\boxed{41} " * 10_000 + r"\boxed{42}", r"\boxed{\frac{84}{2}}"]
    before = boxed.counts
    with Peak() as peak:
        start = time.perf_counter()
        scores = boxed([problem("42")] * len(texts), texts)
        seconds = time.perf_counter() - start
    assert scores.correct.tolist() == [False] * (len(HOSTILE) + 1) + [True, True]
    assert not canary.exists()
    lost = {name: n - before[name] for name, n in boxed.counts.items() if name in ("timeout", "error", "crash")}
    assert lost["crash"] == 0
    assert seconds < TIMEOUT_S * (2 + lost["timeout"])  # two workers: half of it, and the time to replace them
    assert 0 < peak.gb <= MEMORY_GB


def test_workers_killed_in_the_middle_of_a_batch_cost_the_answers_they_held(patient: WeightedRewards) -> None:
    texts = [rf"\boxed{{\frac{{{42 * k}}}{{{k}}}}}" for k in range(2, 12)]
    texts.insert(4, r"\boxed{42^{10^{10}}}")  # would hold a worker until its time-out
    patient([problem("42")], [r"\boxed{\frac{504}{12}}"])  # the workers are there
    before = patient.counts
    with ThreadPoolExecutor(1) as caller:
        scores = caller.submit(patient, [problem("42")] * len(texts), texts)
        time.sleep(1.5 * TIMEOUT_S)
        for worker in workers(patient):
            os.kill(worker, signal.SIGKILL)
        verdicts = scores.result().correct.tolist()
    assert verdicts == [True] * 4 + [False] + [True] * 6
    assert patient.counts["crash"] - before["crash"] == 1
    assert patient([problem("42")], [r"\boxed{\frac{546}{13}}"]).correct.tolist() == [True]


def workers(rewards: WeightedRewards) -> list[int]:
    servers = rewards.rewards["accuracy"].verifier._pool._servers
    return [server.pid for server in servers if server is not None]


def descendants(pid: int) -> list[int]:
    """All processes that have it for an ancestor (Linux)."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children + [further for child in children for further in descendants(child)]


class Peak:
    """The largest address space of any process that this one starts while it is entered, in GiB."""

    gb = 0.0

    def __enter__(self) -> "Peak":
        self._of_others = {*descendants(os.getpid())}  # the fork server of other tests, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            for pid in {*descendants(os.getpid())} - self._of_others:
                with suppress(OSError):  # it may be gone by now
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    sizes = [int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmPeak")]
                    self.gb = max(self.gb, *sizes, 0.0)
