"""`edge-grpo-evaluate`: sample, grade, keep every completion, write the scores."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from edge_grpo.command_line.again import again
from edge_grpo.command_line.check import instantiate, to_dict
from edge_grpo.errors import Stopped, UserError, first_lines
from edge_grpo.evaluation.completions import CompletionStore, read_completions
from edge_grpo.evaluation.golds import grade_golds
from edge_grpo.evaluation.grading import graded
from edge_grpo.evaluation.pace import Pace
from edge_grpo.evaluation.reflection import spontaneous
from edge_grpo.evaluation.results import reflection_line, results_markdown, summarise
from edge_grpo.evaluation.subject import identify, load_subject, precision_of, reward_functions
from edge_grpo.evaluation.suite import Evaluation
from edge_grpo.policy.precision import computing_in
from edge_grpo.rewards.base import WeightedRewards, score_rollout
from edge_grpo.runs.directory import alone_in
from edge_grpo.runs.provenance import run_info
from edge_grpo.runs.quiet import silence_expected_warnings
from edge_grpo.runs.settings import changes, differences, is_free
from edge_grpo.runs.status import write_whole
from edge_grpo.statistics.bootstrap import Bootstrap
from edge_grpo.types.problems import Problem

log = logging.getLogger(__name__)

RESULTS, TABLE, CONFIG, POLICY = "results.json", "results.md", "config.yaml", "policy.json"

# Settings that change no completion: how fast they are made, and what is computed from them.
FREE = (
    *("paths", "run", "accelerator", "problems_per_batch", "bootstrap", "allowed_targets", "name"),
    *("evaluation.average", "entropy.microbatch_tokens", "entropy.chunk_tokens"),
    *("rollout.max_batch_rows", "rollout.kv_cache_gb"),
)


def run_evaluation(cfg: DictConfig, typed: Callable[..., bool]) -> float:
    """Evaluate as `cfg` says; avg@n of the total.

    Args:
        cfg: conf/evaluate.yaml.
        typed: whether one of these settings or groups was typed: those of a run or a file give way to it.

    Raises:
        UserError: anything the user can mend, before anything is sampled.
    """
    silence_expected_warnings()
    folder = Path(cfg.paths.run_dir)
    if cfg.problems_per_batch < 1:
        raise UserError(f"problems_per_batch={cfg.problems_per_batch} must be at least 1")
    instantiate(cfg.bootstrap)  # refuses what is out of range before anything is sampled
    asked = {"run": cfg.run, "model": cfg.get("model"), "from_file": cfg.from_file, "grade_golds": cfg.grade_golds}
    given = [key for key, value in asked.items() if value]
    if len(given) > 1 and given != ["run", "model"]:  # of these two `identify` says more
        raise UserError(f"{' and '.join(given)} are given: one evaluation has one of them")
    if not cfg.evaluation.benchmarks and cfg.from_file is None:
        raise UserError(f"evaluation={cfg.name} holds no benchmark: set evaluation=arithmetic, paper or file")
    with alone_in(folder):
        if cfg.grade_golds:
            return grade_golds(instantiate(cfg.evaluation), instantiate(cfg.reward), folder)
        if cfg.from_file is not None:
            return _write_again(cfg, folder, typed)
        return _Run(cfg, folder, own_template=typed("data/template", "data.template")).run()


class _Run:
    """One evaluation of one policy, which goes on where an earlier one in the folder was stopped."""

    def __init__(self, cfg: DictConfig, folder: Path, *, own_template: bool) -> None:
        self.cfg, self.folder, self.own_template = cfg, folder, own_template
        self.store = CompletionStore(folder)

    def run(self) -> float:
        cfg, about = self.cfg, identify(self.cfg)
        cfg.precision = precision_of(cfg)
        self.evaluation: Evaluation = instantiate(cfg.evaluation)
        if self.own_template:
            self.evaluation.template = None
        self._check_earlier(about)
        self.store.check(self.evaluation.read())
        if self.store.path.exists():
            log.info("%s is evaluated already", about["policy"])
            return _write(read_completions(self.folder), cfg, self.folder, about)
        self.rewards: WeightedRewards = instantiate(cfg.reward)
        self.engine = instantiate(cfg.rollout)
        self.reflection = None if cfg.get("reflection") is None else instantiate(cfg.reflection)
        self.entropy = None if cfg.get("entropy") is None else instantiate(cfg.entropy)
        self.policy, template = load_subject(cfg, own_template=self.own_template, precision=cfg.precision)
        if self.entropy is not None:
            self.entropy.check(self.policy)
        self.evaluation.load(self.policy, template)
        self._tell_ungradable()
        self._tell_own_reward(about["run"])
        write_whole(self.folder / POLICY, json.dumps(about | {"info": run_info()}, indent=1) + "\n")
        write_whole(self.folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
        with computing_in(cfg.precision, self.policy.model.device), _telling_how_to_go_on():
            self._sample()
        sets = self.evaluation.sets
        completions = self.store.finish([(name, p.id) for name, problems in sets.items() for p in problems])
        return _write(completions, cfg, self.folder, about)

    def _check_earlier(self, about: dict[str, Any]) -> None:
        """Refuse to mix completions of different weights or settings."""
        path = self.folder / CONFIG
        if path.exists() and not (self.folder / POLICY).exists():
            raise UserError(
                f"{path} is of no evaluation ({POLICY} is not beside it) and would be overwritten: choose another "
                "folder (name or hydra.run.dir)"
            )
        if not path.exists() or self.store.load().empty:
            return
        before, now = to_dict(DictConfig(OmegaConf.load(path))), to_dict(self.cfg)
        weights = json.loads((self.folder / POLICY).read_text())["weights"], about["weights"]
        changed = {key: pair for key, pair in differences(before, now).items() if not is_free(key, FREE)}
        changed |= {} if weights[0] == weights[1] else {"SHA-256 of the weights": weights}
        if changed:
            raise UserError(
                f"{self.folder} holds completions that were made under other settings:\n{changes(changed)}\n"
                "choose another name=... (or hydra.run.dir=...), or delete the folder"
            )

    def _tell_ungradable(self) -> None:
        problems = [p for of in self.evaluation.sets.values() for p in of]
        complaints = zip(problems, self.rewards.ungradable(problems), strict=True)
        found = [f"{problem.origin}: {text.partition(':')[0]}" for problem, text in complaints if text is not None]
        if found:
            log.warning(
                "%d problems are right by the text of their gold answer only:\n%s", len(found), first_lines(found)
            )

    def _tell_own_reward(self, run: str | None) -> None:
        functions = None if run is None else reward_functions(Path(run))
        if functions and functions != to_dict(self.cfg.reward).get("function"):
            text = functions if isinstance(functions, str) else f"[{','.join(functions)}]"
            log.warning(
                "the run was rewarded by reward.function=%s, and this evaluation grades otherwise; to grade by it too: "
                "reward=python reward.function=%s",
                text,
                text,
            )

    def _sample(self) -> None:
        there = self.store.load()
        done = set(zip(there["benchmark"], there["problem"], strict=True))
        if done:
            log.info("%d problems are there already", len(done))
        pace = Pace(sum(len(problems) for problems in self.evaluation.sets.values()) - len(done))
        for name, problems in self.evaluation.sets.items():
            # Prompts of similar length together: attention reads as much of every row as of the longest.
            left = sorted((p for p in problems if (name, p.id) not in done), key=lambda p: len(p.prompt_ids))
            right = list(there["correct"][there["benchmark"] == name])
            for batch in _batches(left, self.cfg.problems_per_batch):
                rows = self._completions(name, batch)
                self.store.append(rows)
                right += list(rows["correct"])
                count = len(right) // self.evaluation.num_samples
                share = 100 * sum(right) / len(right)
                told = pace.after(len(batch), int(rows["tokens"].sum()))
                log.info("%s  %d/%d problems  %.1f %% right  %s", name, count, len(problems), share, told)

    def _completions(self, name: str, problems: list[Problem]) -> pd.DataFrame:
        """The rows of one batch."""
        policy, evaluation = self.policy, self.evaluation
        scored = score_rollout(evaluation.sample(self.engine, policy, problems), self.rewards, policy.decode)
        rows = pd.concat([graded(scored, self.rewards), spontaneous(scored, self.rewards)], axis=1)
        prompts = {p.id: policy.tokenizer.decode(p.prompt_ids) for p in problems}
        rows = rows.assign(benchmark=name, prompt=rows["problem"].map(prompts))
        if self.entropy is not None:
            rows["entropy"] = self.entropy(policy, scored.rollout)
        if self.reflection is not None:
            forced = self.reflection(scored, self.engine, policy, self.rewards, evaluation.sampling, evaluation.seed)
            rows = pd.concat([rows, forced], axis=1)
        return rows


@contextmanager
def _telling_how_to_go_on() -> Iterator[None]:
    """Inside, Ctrl-C loses the batch at work alone: the same command goes on behind it."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("stopped by SIGINT; to go on: %s", again())
        raise Stopped(signal.SIGINT) from None


def _batches(problems: list[Problem], size: int) -> Iterator[list[Problem]]:
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def _write_again(cfg: DictConfig, folder: Path, typed: Callable[..., bool]) -> float:
    """The scores of a file, under the name and with the average that it was made with, unless others were typed."""
    file = Path(cfg.from_file)
    beside = (file if file.is_dir() else file.parent) / CONFIG
    if beside.exists():
        recorded = OmegaConf.load(beside)
        if not typed("name"):
            cfg.name = recorded.name
        if not typed("evaluation"):
            cfg.evaluation.average = recorded.evaluation.average
    about = {"policy": str(file), "run": None, "iteration": None}
    return _write(read_completions(file), cfg, folder, about)


def _num_samples(completions: pd.DataFrame, source: str) -> int:
    """n, the same for all problems.

    Raises:
        UserError: it is not.
    """
    sizes = completions.groupby(["benchmark", "problem"], sort=False).size()
    n, odd = int(sizes.iloc[0]), sizes[sizes != sizes.iloc[0]]
    if len(odd):
        raise UserError(f"{source}: {odd.iloc[0]} completions of problem {odd.index[0]}, {n} of {sizes.index[0]}")
    return n


def _write(completions: pd.DataFrame, cfg: DictConfig, folder: Path, about: dict[str, Any]) -> float:
    """results.json and results.md; avg@n of the total."""
    n = _num_samples(completions, about["policy"])
    average = cfg.evaluation.average
    bootstrap: Bootstrap = instantiate(cfg.bootstrap)
    scores = summarise(completions, average=None if average is None else list(average), bootstrap=bootstrap)
    sampling = {key: cfg.evaluation[key] for key in ("temperature", "top_p", "max_new_tokens")}
    settings = {"name": cfg.name, "num_samples": n, "confidence": bootstrap.confidence, "seed": cfg.seed}
    settings |= {"sampling": sampling} if cfg.from_file is None else {}  # a file does not tell it
    results = {**settings, **about, **scores}
    write_whole(folder / RESULTS, json.dumps(results, indent=1) + "\n")
    heading = f"{about['policy']}: {cfg.name}, [{100 * bootstrap.confidence:g} % bootstrap intervals over problems]"
    text = "\n\n".join(filter(None, [heading, results_markdown(results), reflection_line(completions)]))
    write_whole(folder / TABLE, text + "\n")
    log.info("%s", text)
    log.info("written to %s; entropy and reflection: edge-grpo-analyze source=%s", folder, folder)
    return float(results["total"]["metrics"][f"avg@{n}"]["value"])
