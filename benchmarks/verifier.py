"""Grading of 10,000 hostile and ordinary completions, as a training run would grade them.

    python benchmarks/verifier.py [--quick] [--n 10000] [--timeout-s 1]

`conf/reward/boxed.yaml` (accuracy and format; `completions.py` makes the texts) in batches of 128. The time-out is 1 s
in place of the config's 5 s, so that the 2 % that are made to cost a time-out take a few minutes in all (`--quick`: 600
completions). On the last line:

    hangs       calls that took longer than their time-outs explain: the limit and 2 s for a new worker for each of
                them, shared among the workers, and once the limit and 10 s for everything else
    executions  canary files that exist afterwards; every text that asks for one names its own
    escapes     attempts of `escapes.py` that left a trace, evaluated as reasoning_gym's scorers evaluate an answer; of
                those that succeed where nothing protects, as is tried first. Where this kernel offers no Landlock, the
                attempts to read a file succeed and are counted
    crashes     calls that raised, and gradings whose worker died

Before that, the agreement with plain math-verify (`parse` and `verify` with their own settings, in this process, on the
whole ordinary completion) by kind, beside the truth: "should" of the answers are right by construction.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import parser, report
from completions import CANARY, Completion, completions
from escapes import ESCAPES, NEXT, Surroundings, Unprotected
from hydra.utils import instantiate
from math_verify import parse, verify
from omegaconf import DictConfig, OmegaConf

from edge_grpo.command_line.run import config_dir
from edge_grpo.rewards import _grade as grading
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.pool import KillablePool
from edge_grpo.types.problems import Problem

BATCH = 128
REPLACE_S, SLACK_S = 2.0, 10.0


def reward_config(timeout_s: float) -> DictConfig:
    """The reward of conf/ with another time-out."""
    return OmegaConf.merge(
        OmegaConf.load(config_dir() / "reward" / "boxed.yaml"),
        {"rewards": {"accuracy": {"verifier": {"timeout_s": timeout_s}}}},
    )


def grade(rewards: WeightedRewards, made: Sequence[Completion], timeout_s: float, workers: int) -> dict[str, Any]:
    """Verdicts, seconds of each call, and what went wrong."""
    verdicts: list[bool] = []
    seconds: list[float] = []
    lost: list[int] = []
    hangs = raised = 0
    for start in range(0, len(made), BATCH):
        batch = made[start : start + BATCH]
        problems = [Problem(str(start + i), "?", c.golds) for i, c in enumerate(batch)]
        before, began = rewards.counts["timeout"], time.perf_counter()
        try:
            verdicts += rewards(problems, [c.text for c in batch]).correct.tolist()
        except Exception:
            logging.exception("the call for completions %d and following raised", start)
            raised += 1
            verdicts += [False] * len(batch)
        seconds.append(time.perf_counter() - began)
        lost.append(rewards.counts["timeout"] - before)
        hangs += seconds[-1] > lost[-1] * (timeout_s + REPLACE_S) / workers + timeout_s + SLACK_S
    return {"verdicts": verdicts, "seconds": seconds, "lost": lost, "hangs": hangs, "raised": raised}


def plain_verdict(completion: Completion) -> bool:
    """What math-verify says by itself."""
    answer = parse(completion.text)
    golds = [gold if "$" in gold else f"${gold}$" for gold in completion.golds]
    return any(verify(parse(gold), answer) for gold in golds)


def with_canaries(made: Sequence[Completion], folder: Path) -> list[Completion]:
    """Each text asks for a file of its own in `folder`."""
    return [
        Completion(c.kind, c.text.replace(CANARY, str(folder / f"canary-{row}")), c.golds, c.is_hostile, c.is_right)
        for row, c in enumerate(made)
    ]


def executions(folder: Path) -> int:
    """Canaries in `folder`, which is checked to be one where they can appear."""
    found = len(list(folder.iterdir()))
    eval(f"__import__('os').system('touch {folder}/control')")  # what the workers must not do
    assert (folder / "control").exists(), "no canary could have appeared"
    return found


def escapes(memory_limit_gb: float) -> tuple[int, int]:
    """How many attempts left a trace, and how many would have, had nothing protected."""
    pool = KillablePool(1, timeout_s=5.0, memory_limit_gb=memory_limit_gb, preload=(grading.__name__,))
    left = possible = 0
    with Surroundings() as surroundings:
        unprotected = Unprotected()
        for attempt in ESCAPES:
            if attempt.is_controlled:
                possible += bool(surroundings.traces(*unprotected.run(surroundings.source(attempt)), wait_s=2.0))
                surroundings.restore()
            result, after = pool.map(eval, [surroundings.source(attempt)], _any)[0], pool.map(eval, [NEXT], _any)[0]
            if traces := surroundings.traces(result, after):
                print(f"escape: {attempt.name}: {traces}")
                surroundings.restore()
                left += 1
        unprotected.close()
    pool.close()
    return left, possible


def _any(value: object) -> bool:
    return True


def by_kind(made: Sequence[Completion], verdicts: Sequence[bool], plain: dict[int, bool]) -> list[dict[str, Any]]:
    """A row a kind; `plain`: row -> verdict of math-verify alone, of the ordinary ones."""
    rows = []
    for _, kind in sorted({(c.is_hostile, c.kind) for c in made}):
        members = [row for row, c in enumerate(made) if c.kind == kind]
        known = [row for row in members if row in plain]
        rows.append(
            {
                "kind": kind,
                "n": len(members),
                "should": sum(made[row].is_right for row in members),
                "right": sum(verdicts[row] for row in members),
                "wrongly judged": sum(verdicts[row] != made[row].is_right for row in members),
                "plain right": sum(plain[row] for row in known) if known else None,
                "agree": sum(plain[row] == verdicts[row] for row in known) if known else None,
            }
        )
    return rows


def summary(made: Sequence[Completion], graded: dict[str, Any], plain: dict[int, bool], counts: dict[str, int]) -> None:
    """What the last line does not say."""
    differing = sorted({made[row].kind for row, verdict in plain.items() if verdict != graded["verdicts"][row]})
    agree = sum(verdict == graded["verdicts"][row] for row, verdict in plain.items())
    print("  ".join(f"{name}={n}" for name, n in counts.items()))
    seconds, lost = max(zip(graded["seconds"], graded["lost"], strict=True))
    print(f"slowest call of {BATCH}: {seconds:.1f} s, {lost} time-outs")
    print(f"agreement with plain math-verify: {agree} of {len(plain)} ordinary; differing kinds: {differing}")


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--n", type=int, help="completions; default 10,000, or 600 with --quick")
    options.add_argument("--timeout-s", type=float, default=1.0)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    n = args.n or (600 if args.quick else 10_000)
    cfg = reward_config(args.timeout_s)
    rewards = instantiate(cfg)
    path = (args.json or Path("outputs") / "benchmarks" / "verifier.json").absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that a file made by a relative name counts too; the workers inherit it
        made = with_canaries(completions(n, args.seed), Path(folder))
        graded = grade(rewards, made, args.timeout_s, cfg.rewards.accuracy.verifier.workers)
        rewards.rewards["accuracy"].verifier.close()  # its workers live in the folder that goes away
        executed = executions(Path(folder))
        os.chdir("/")
    escaped, possible = escapes(memory_limit_gb=0.5)
    print(f"attempts to escape: {len(ESCAPES)}, of which {possible} leave a trace where nothing protects")
    plain = {row: plain_verdict(c) for row, c in enumerate(made) if not c.is_hostile}
    counts = rewards.counts
    rows = by_kind(made, graded["verdicts"], plain)
    summary(made, graded, plain, counts)
    result = {
        "n": n,
        "hangs": graded["hangs"],
        "executions": executed,
        "escapes": escaped,
        "crashes": graded["raised"] + counts["crash"],
        "per_s": n / sum(graded["seconds"]),
    }
    report("verifier", rows, result, path)


if __name__ == "__main__":
    main()
