"""Configs composed as the command line composes them, and the smallest runs that still do everything."""

import csv
import functools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from forks import Forks, Program
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from safetensors.torch import load_file
from wandb.proto import wandb_internal_pb2

from edge_grpo.command_line.check import check_config
from edge_grpo.command_line.compose import key_of, parse
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.programs import train_reports
from edge_grpo.programs.train import INJECTED
from edge_grpo.programs.train_run import run_experiment

REPO = Path(__file__).resolve().parent.parent

# What a run imports: in part only once it is at work.
PRELOAD = (
    "edge_grpo.programs.train_run",
    "edge_grpo.command_line.run",
    "edge_grpo.algorithms.grpo",
    "edge_grpo.policy.tiny",
    "edge_grpo.rewards.accuracy",
    "edge_grpo.runs.trainer",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.processing_utils",
)
SMALL_MODEL = (
    "model=tiny_random",
    "model.hidden_size=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=32",
)
SMALL = (
    "data.train_count=8",
    "data.held_out_count=4",
    "data.problems_per_iteration=2",
    "data.max_correctness_rate=null",
    "data.correctness_rates=null",
    *SMALL_MODEL,
    "rollout.max_new_tokens=8",
    "trainer=cpu",
    "trainer.max_iterations=2",
    "checkpoint.every_n_iterations=1",
    "logger=csv",
)
SMALL_GRPO = (*SMALL, "algorithm.num_generations=2")
# Reflections of 256 tokens would be most of the time of a run; 128 hold every branch: 8 + 85 for the answer's.
SHORT = ("correction.reflection_tokens=8", "correction.max_response_tokens=128")


@functools.cache
def _of_choices(config_name: str, choices: tuple[str, ...]) -> bytes:
    """The config of these options of groups, composed once: that is nearly all of what composing costs.

    Pickled, which is copied five times as fast as by `copy`.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return pickle.dumps(compose(config_name, list(choices), return_hydra_config=True))


def _chooses(override: str) -> bool:
    """Whether it is about an option of a group, or about Hydra, and not about a setting."""
    group = key_of(override).partition("@")[0]
    return group.startswith("hydra") or (config_dir() / group).is_dir()


def composed(config_name: str, *overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """The resolved config as a task gets it, and which option of each group it chose."""
    cfg = pickle.loads(_of_choices(config_name, tuple(filter(_chooses, overrides))))
    settings = parse([override for override in overrides if not _chooses(override)])
    ConfigLoaderImpl._apply_overrides_to_config(settings, cfg)  # as `compose` does, after the options
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = "run"
        cfg.hydra.job.update(num=0, id="0", name=config_name)
    choices = dict(cfg.hydra.runtime.choices)
    HydraConfig.instance().set_config(cfg)
    try:
        job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        OmegaConf.resolve(job)
    finally:
        HydraConfig.instance().cfg = None
    return job, choices


def run_small(folder: Path, *overrides: str, config_name: str = "train", figure: bool = False) -> Path:
    """One run in this process; its folder. Without `figure` training.png is not drawn: a third of its time."""
    settings = SMALL if config_name == "sft" else SMALL_GRPO
    cfg, _ = composed(config_name, *settings, *overrides, f"paths.run_dir={folder}")
    check_config(cfg, INJECTED)
    with nullcontext() if figure else patch.object(train_reports, "draw_training_figure"):
        run_experiment(cfg)
    return folder


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
PROGRAMS = Forks(PRELOAD, ENVIRONMENT, shared=True)
"""processes that have what a run imports"""


def command(*argv: str, path: Path | None = None, cwd: Path = REPO) -> Program:
    """`python -m edge_grpo.programs.train` as a process of its own, which begins with a run's imports."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{REPO}:{path}" if path else str(REPO)}
    return PROGRAMS.start("-m", "edge_grpo.programs.train", *argv, cwd=cwd, env=environment)


def command_from_scratch(*argv: str, path: Path | None = None) -> "subprocess.Popen[str]":
    """The same as a shell starts it: for what is about signals, imports or several ranks."""
    return subprocess.Popen(
        [sys.executable, "-m", "edge_grpo.programs.train", *argv],
        cwd=REPO,
        env={**ENVIRONMENT, "PYTHONPATH": f"{REPO}:{path}" if path else str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported weights of a run."""
    return load_file(folder / "model" / "model.safetensors")


def equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics_rows(folder: Path, *, timed: bool = True) -> list[dict[str, Any]]:
    """metrics.csv, on demand without what the clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if timed or not k.startswith(("timing_s/", "perf/"))} for row in rows]


def offline_history(folder: Path) -> list[dict[str, Any]]:
    """The rows that the run's W&B offline files hold, without W&B's own columns; tables as None."""
    return [row for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for row in _history(path)]


def _history(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, once W&B's service has written its end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = wandb_records(path.read_bytes())
        if records and records[-1].WhichOneof("record_type") == "exit":
            found = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
            return [dict(_value(item) for item in items if item.nested_key[0][0] != "_") for items in found]
        time.sleep(0.05)
    raise TimeoutError(f"{path} has no end")


def _value(item: Any) -> tuple[str, Any]:
    return item.nested_key[0], json.loads(item.value_json) if len(item.nested_key) == 1 else None


def wandb_records(content: bytes) -> list[wandb_internal_pb2.Record]:
    """The records that a .wandb file holds whole; W&B's service may be writing the next one."""
    return [wandb_internal_pb2.Record.FromString(data) for data in _whole_records(content)]


def _whole_records(content: bytes) -> Iterator[bytes]:
    """A header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, []
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if place + 7 + length > len(content):
            return
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []
