"""Correctness rate of every training problem under a policy."""

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from edge_grpo.command_line.check import instantiate
from edge_grpo.data.bad_rows import report_bad_rows
from edge_grpo.errors import UserError
from edge_grpo.evaluation.sampling import sample
from edge_grpo.evaluation.subject import on_device
from edge_grpo.policy.precision import check_precision, computing_in
from edge_grpo.programs.context import check_context, warn_of_small_budget
from edge_grpo.rewards.base import score_rollout
from edge_grpo.runs.quiet import silence_expected_warnings
from edge_grpo.types.problems import Problem, Turn

log = logging.getLogger(__name__)


def measure_difficulty(cfg: DictConfig) -> float:
    """Write all problems of the training source with `correctness_rate`, the share right of `num_samples` responses.

    Writes `<run_dir>/problems.jsonl`, which `data=file` reads (columns id, question, answer, solution,
    correctness_rate), and `<run_dir>/correctness_rates.json`, question -> rate.

    A problem's samples depend on the seed, its id and nothing else: not on `problems_per_batch`, say.

    Returns:
        Share of problems without a right response.

    Raises:
        UserError: fewer than one sample or problem a batch, or no such precision.
    """
    if cfg.num_samples < 1 or cfg.problems_per_batch < 1:
        raise UserError(
            f"num_samples={cfg.num_samples} and problems_per_batch={cfg.problems_per_batch} must be at least 1"
        )
    check_precision("precision", cfg.precision)
    silence_expected_warnings()
    data, engine, rewards = instantiate(cfg.data), instantiate(cfg.rollout), instantiate(cfg.reward)
    policy = on_device(instantiate(cfg.model), cfg.accelerator, cfg.precision)
    data.load_prepared(
        policy.tokenizer,
        required_fields=frozenset(),
        grade=lambda problems, texts: rewards(problems, texts).correct,
        ungradable=rewards.ungradable,
        hold_out=False,
    )
    folder = Path(cfg.paths.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report_bad_rows(data.bad_rows, folder)
    problems: tuple[Problem, ...] = data.train_problems
    budget = engine.max_new_tokens
    way_out, bound = "lower rollout.max_new_tokens, or drop the row", getattr(engine, "max_model_len", None)
    check_context(problems, policy, [budget] * len(problems), way_out, bound)
    warn_of_small_budget(data, budget)
    rates: list[float] = []
    for start in range(0, len(problems), cfg.problems_per_batch):
        batch = problems[start : start + cfg.problems_per_batch]
        with computing_in(cfg.precision, policy.model.device):
            rollout = sample(
                engine,
                policy,
                batch,
                num_samples=cfg.num_samples,
                sampling=engine.sampling,
                max_new_tokens=budget,
                seed=cfg.seed,
                stage="difficulty",
            )
        right = score_rollout(rollout, rewards, policy.decode).scores.correct
        rates += right.view(-1, cfg.num_samples).float().mean(1).tolist()
        log.info("%d/%d problems", start + len(batch), len(problems))
    _write(folder, problems, rates)
    none = sum(rate == 0 for rate in rates) / len(rates)
    log.info("mean %.1f %% right, %.1f %% of problems never right", 100 * sum(rates) / len(rates), 100 * none)
    return none


def _write(folder: Path, problems: tuple[Problem, ...], rates: list[float]) -> None:
    rows = [
        {
            **p.columns,
            "id": p.id,
            "question": [turn._asdict() for turn in (*p.turns, Turn("user", p.question))]
            if p.turns or p.is_chat
            else p.question,
            "answer": list(p.answers),
            "solution": p.solution,
            "correctness_rate": rate,
        }
        for p, rate in zip(problems, rates, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    # A half of a surrogate pair in a column that nobody reads becomes its escape, as JSON has it.
    (folder / "problems.jsonl").write_bytes(text.encode("utf-8", errors="backslashreplace"))
    by_question = {p.question: rate for p, rate in zip(problems, rates, strict=True)}
    (folder / "correctness_rates.json").write_text(json.dumps(by_question, indent=0) + "\n")
    log.info("written to %s", folder)
