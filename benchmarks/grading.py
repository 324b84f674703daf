r"""How often graders are wrong, in both directions, and how fast they are.

    python benchmarks/grading.py [--quick] [--shared ../shared] [--rows 0]

Pairs of response and gold answer, each right or wrong by the judgement of a mathematician or by construction:

    field    FOLDER/field/grading.jsonl, answers of the kinds that people report about graders (skipped where absent)
    written  `grading_pairs.jsonl`, more of the same kinds, beside this file
    forms    the gold answers of DeepScaleR-Hard-1K and of the five evaluation sets in FOLDER/data (skipped where
             absent), each in other forms (right) and near it (wrong): see `forms` (`--quick`: 600 of them)

Graders: `reward=boxed`; math-verify by itself (`parse` and `verify` as its README shows, dollars around the gold
answer); and, where they are installed, mathruler (the grader of PRM800K) and verl's `math_reward` (MATH's own string
comparison). The others run in one process each, which is killed after 5 s; that is wrong. "per_s" is the speed of
`reward=boxed` alone, every pair graded once, without what an earlier call has cached.

Last, the gold answers that `reward=boxed` cannot read whole and compares as text, by set.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
from common import parser
from hydra.utils import instantiate
from math_verify import parse, verify
from omegaconf import OmegaConf

from edge_grpo.command_line.run import config_dir
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.types.problems import Problem

LIMIT_S = 5.0
Grader = Callable[[str, str], bool]


@dataclass(frozen=True)
class Pair:
    """One answer: `right` is the truth."""

    source: str
    kind: str
    response: str
    gold: str
    right: bool


def read_pairs(path: Path, source: str) -> list[Pair]:
    """Rows of a JSONL file with response, gold and right."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Pair(source, row.get("kind", ""), row["response"], row["gold"], row["right"]) for row in rows]


def gold_answers(data: Path) -> dict[str, list[str]]:
    """Set -> its different gold answers."""
    sets: dict[str, list[str]] = {}
    hard = data / "deepscaler_hard-1k.json"
    if hard.exists():
        sets["DeepScaleR-Hard-1K"] = [str(row["answer"]) for row in json.loads(hard.read_text(encoding="utf-8"))]
    if (data / "evaluation_suite").exists():
        for name, rows in datasets.load_from_disk(str(data / "evaluation_suite")).items():
            sets[str(name)] = [g for a in rows["answer"] for g in (a if isinstance(a, list) else [a])]
    return {name: list(dict.fromkeys(str(gold).strip() for gold in golds)) for name, golds in sets.items()}


def forms(gold: str) -> Iterator[tuple[str, str, bool]]:
    r"""(kind, another writing of the gold answer, whether it is still right); by text alone, without a parser.

    >>> {kind: text for kind, text, _ in forms("12")}["off by one"]
    '13'
    >>> {kind: text for kind, text, _ in forms("(1, 2)")}["swapped"]
    '(2,1)'
    """
    bare = re.sub(
        r"\\boxed\{(.*)\}", r"\1", gold.replace("\\(", "").replace("\\)", "").replace("$", " ").strip()
    ).strip()
    yield "spaces", f"  {bare} ", True
    yield "full stop", f"{bare}.", True
    yield "dollars", f"${bare}$" if "$" not in gold else bare, True
    yield "display", rf"\displaystyle {bare}", True
    yield from _number_forms(bare)
    yield from _fraction_forms(bare)
    yield from _list_forms(bare)
    if re.search(r"\d", bare):
        *_, last = re.finditer(r"\d+", bare)
        if re.search(r"_\{?$|\\pmod\{$", bare[: last.start()]) is None and len(last[0]) < 16:
            yield "off by one", f"{bare[: last.start()]}{int(last[0]) + 1}{bare[last.end() :]}", False
        if re.fullmatch(r"\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\}|\d*\\sqrt\{\d+\}|\d*\\pi", bare) and re.search(
            "[1-9]", bare
        ):
            yield "sign", f"-{bare}", False
            yield "twice", rf"2 \cdot {bare}", False
    if (words := re.fullmatch(r"\\text\{([A-Za-z]+)\}", bare)) and len(words[1]) > 2:
        yield "word", words[1], True
        yield "letters", words[1][::-1], words[1].lower() == words[1][::-1].lower()


def _number_forms(bare: str) -> Iterator[tuple[str, str, bool]]:
    if not re.fullmatch(r"-?\d{1,12}", bare):
        return
    value = int(bare)
    yield "decimal", f"{value}.0", True
    yield "thousands", f"{value:,}", True
    yield "fraction", rf"\frac{{{6 * value}}}{{6}}", True
    yield "name", f"x = {value}", True
    yield "sum", f"{value - 7} + 7", True
    yield "bold", rf"\mathbf{{{value}}}", True
    yield "full width", "".join(chr(ord(char) + 0xFEE0) if char.isdigit() else char for char in bare), True
    yield "noun", f"{value} apples", True
    yield "list", f"{value}, {value + 1}", False
    yield "ellipsis", rf"{value}, {value + 1}, \ldots", False
    if 0 < value < 1000:
        yield "factorial of", f"{value + 3}!", False
    yield "unknown command", rf"\foo{{2}} {value}", False
    yield "hedge", rf"{value} \text{{ or }} {value + 2}", False


def _fraction_forms(bare: str) -> Iterator[tuple[str, str, bool]]:
    match = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", bare)
    if not match:
        return
    sign, over, under = match[1], int(match[2]), int(match[3])
    yield "slash", f"{sign}{over}/{under}", True
    yield "expanded", rf"{sign}\tfrac{{{3 * over}}}{{{3 * under}}}", True
    yield "power", rf"{sign}{over} \cdot {under}^{{-1}}", True
    rest = under
    while rest % 2 == 0:
        rest //= 2
    while rest % 5 == 0:
        rest //= 5
    if rest == 1 and under <= 10**6:
        yield "decimal", f"{sign}{Decimal(over) / Decimal(under)}", True
    elif over < 10**6:
        yield "rounded", f"{sign}{over / under:.4f}", False
    if over != under:
        yield "upside down", rf"{sign}\frac{{{under}}}{{{over}}}", False


def _list_forms(bare: str) -> Iterator[tuple[str, str, bool]]:
    number = r"\s*-?\d+\s*"
    if re.fullmatch(rf"{number}(?:,{number})+", bare) and not re.fullmatch(r"\d{1,3}(,\d{3})+", bare):
        items = [item.strip() for item in bare.split(",")]
        yield "another order", ", ".join(reversed(items)), True
        if len(set(items)) == len(items):
            yield "braces", rf"\{{{', '.join(items)}\}}", True
        yield "and", ", ".join(items[:-1]) + rf" \text{{ and }} {items[-1]}", True
        yield "subset", ", ".join(items[:-1]), False
        yield "last", items[-1], False
    if re.fullmatch(rf"\({number}(?:,{number})+\)", bare):
        items = [item.strip() for item in bare[1:-1].split(",")]
        yield "left right", rf"\left({', '.join(items)}\right)", True
        if items != items[::-1]:
            yield "swapped", f"({','.join(reversed(items))})", False
        yield "last", items[-1], False


def math_verify_alone(response: str, gold: str) -> bool:
    """As its README shows."""
    golds = parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$", parsing_timeout=None)
    return bool(verify(golds, parse(response, parsing_timeout=None), timeout_seconds=None))


def peers() -> dict[str, Grader]:
    """Name and version -> the graders that are installed besides ours."""
    found: dict[str, Grader] = {f"math-verify {version('math-verify')}": math_verify_alone}
    if importlib.util.find_spec("mathruler"):
        from mathruler.grader import extract_boxed_content, grade_answer  # type: ignore[import-not-found]

        found[f"mathruler {version('mathruler')}"] = lambda response, gold: bool(
            grade_answer(extract_boxed_content(response), gold)
        )
    try:  # one file of it, which needs nothing of the rest
        folder = Path(next(iter(importlib.util.find_spec("verl").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
        spec = importlib.util.spec_from_file_location(
            "math_reward", folder / "utils" / "reward_score" / "math_reward.py"
        )
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        found[f"verl {version('verl')} math_reward"] = lambda response, gold: module.compute_score(response, gold) >= 1
    except (AttributeError, PackageNotFoundError, OSError):
        pass
    return found


def _serve(name: str, connection: Any) -> None:
    logging.disable(logging.CRITICAL)
    grader = peers()[name]
    while True:
        pair = connection.recv()
        try:
            connection.send(grader(*pair))
        except Exception:
            connection.send(False)


def verdicts_of(name: str, pairs: Sequence[Pair]) -> tuple[list[bool], int]:
    """Verdicts of a peer in a process that is killed when it takes too long, and how often that was."""
    context = multiprocessing.get_context("fork")
    verdicts: list[bool] = []
    late, process, ours = 0, None, None
    for pair in pairs:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(name, theirs), daemon=True)
            process.start()
        ours.send((pair.response, pair.gold))  # type: ignore[union-attr]
        if ours.poll(LIMIT_S):  # type: ignore[union-attr]
            verdicts.append(bool(ours.recv()))  # type: ignore[union-attr]
            continue
        verdicts.append(False)
        late += 1
        process.kill()
        process = None
    if process is not None:
        process.kill()
    return verdicts, late


def rates(pairs: Sequence[Pair], verdicts: Sequence[bool]) -> tuple[int, int, int, int]:
    """false right, wrong pairs, false wrong, right pairs."""
    both = list(zip(pairs, verdicts, strict=True))
    return (
        sum(verdict and not pair.right for pair, verdict in both),
        sum(not pair.right for pair in pairs),
        sum(pair.right and not verdict for pair, verdict in both),
        sum(pair.right for pair in pairs),
    )


def main(arguments: argparse.Namespace) -> None:
    """Print the tables and the line."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("edge_grpo").setLevel(logging.ERROR)
    here = Path(__file__).resolve().parent
    pairs = read_pairs(here / "grading_pairs.jsonl", "written")
    field = arguments.shared / "field" / "grading.jsonl"
    if field.exists():
        pairs = read_pairs(field, "field") + pairs
    sets = gold_answers(arguments.shared / "data")
    made = [
        Pair("forms", kind, rf"The answer is $\boxed{{{text}}}$.", gold, right)
        for golds in sets.values()
        for gold in golds
        for kind, text, right in forms(gold)
    ]
    if arguments.rows and len(made) > arguments.rows:
        made = random.Random(0).sample(made, arguments.rows)
    pairs += made

    rewards: WeightedRewards = instantiate(OmegaConf.load(config_dir() / "reward" / "boxed.yaml"))
    rewards([Problem("0", "?", ("1/2",))], [r"\boxed{0.51}"])  # the workers start
    began = time.perf_counter()
    problems = [Problem(str(row), "?", (pair.gold,)) for row, pair in enumerate(pairs)]
    ours = rewards(problems, [pair.response for pair in pairs]).correct.tolist()
    per_s = len(pairs) / (time.perf_counter() - began)

    table = {f"reward=boxed ({per_s:.0f} a second)": (ours, rewards.counts["timeout"])}
    for name in peers():
        start = time.perf_counter()
        verdicts, late = verdicts_of(name, pairs)
        table[f"{name} ({len(pairs) / (time.perf_counter() - start):.0f} a second)"] = (verdicts, late)
    sources = sorted({pair.source for pair in pairs})
    print(f"{'':46}" + "".join(f"{source:>28}" for source in sources))
    print(f"{'':46}" + f"{'false right    false wrong':>28}" * len(sources))
    for name, (verdicts, late) in table.items():
        cells = []
        for source in sources:
            chosen = [i for i, pair in enumerate(pairs) if pair.source == source]
            fr, wrong, fw, right = rates([pairs[i] for i in chosen], [verdicts[i] for i in chosen])
            cells.append(f"{f'{fr}/{wrong}':>14}{f'{fw}/{right}':>14}")
        print(f"{name:46}" + "".join(cells) + (f"  {late} took over {LIMIT_S:.0f} s" if late else ""))
    print_mistakes(pairs, ours)
    print_unread(rewards, sets)
    false_right, _, false_wrong, right = rates(pairs, ours)
    peer_false_right = rates(pairs, next(v for k, (v, _) in table.items() if k.startswith("math-verify")))[0]
    print(
        f"pairs={len(pairs)} false_right={false_right} false_wrong_rate={false_wrong / max(1, right):.4f} "
        f"mathverify_false_right={peer_false_right} per_s={per_s:.0f}"
    )


def print_mistakes(pairs: Sequence[Pair], verdicts: Sequence[bool]) -> None:
    """Ours by source and kind, and every one of the first two sources."""
    kinds: dict[tuple[str, str, str], int] = defaultdict(int)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict == pair.right:
            continue
        mistake = "false right" if verdict else "false wrong"
        kinds[mistake, pair.source, pair.kind] += 1
        if kinds[mistake, pair.source, pair.kind] <= 3:
            print(f"  {mistake}: {pair.source} {pair.kind}: {pair.response!r} for {pair.gold!r}")
    for (mistake, source, kind), count in sorted(kinds.items()):
        if count > 3:
            print(f"  {count} {mistake} in all: {source} {kind}")


def print_unread(rewards: WeightedRewards, sets: dict[str, list[str]]) -> None:
    """The gold answers that are compared as text."""
    verifier: Any = rewards.rewards["accuracy"].verifier  # type: ignore[attr-defined]
    for name, golds in sets.items():
        text = [gold for gold, unread in zip(golds, verifier.unreadable(golds), strict=True) if unread]
        print(f"{name}: {len(golds)} different gold answers, {len(text)} compared as text" + (":" if text else ""))
        for gold in text:
            print(f"    {gold[:110]}")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options.add_argument("--rows", type=int, default=None, help="forms of gold answers to try, 0 for all")
    parsed = options.parse_args()
    parsed.rows = parsed.rows if parsed.rows is not None else (600 if parsed.quick else 0)
    main(parsed)
