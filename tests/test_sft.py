"""The loss of supervised fine-tuning against one forward of each reference."""

from dataclasses import replace

import pytest
import torch
from pytorch_lightning import Callback
from small_runs import SMALL, composed

from edge_grpo.command_line.check import instantiate
from edge_grpo.programs.train_run import build_module
from edge_grpo.runs.trainer import build_trainer


def prepared(*settings):
    """A module, and its data."""
    cfg, _ = composed("sft", *SMALL, *settings)
    module, data = build_module(cfg), instantiate(cfg.data)
    data.load_prepared(
        module.policy.tokenizer,
        required_fields=module.required_fields,
        grade=module.grade,
        ungradable=module.ungradable,
    )
    return module, data


def test_the_loss_is_the_token_mean_over_references_that_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, data = prepared("data.problems_per_iteration=4")
    failing = data.problems_at(0)[1].id
    data.train_problems = tuple(replace(p, solution_passes=p.id != failing) for p in data.train_problems)
    total, tokens = 0.0, 0
    for problem in data.problems_at(0):
        if problem.id == failing:
            continue
        reference = [*problem.solution_ids, module.policy.eos_ids[0]]
        logits = module.model(torch.tensor([[*problem.prompt_ids, *reference]])).logits[0]
        logp = logits.detach().log_softmax(-1)[len(problem.prompt_ids) - 1 : -1]
        total -= sum(float(logp[t, token]) for t, token in enumerate(reference))
        tokens += len(reference)
    trainer = build_trainer(1, None, "cpu", 1, 1, "auto", "32-true", False, callbacks=[], loggers=[])
    trainer.fit(module, datamodule=data)
    assert module.metrics["sft/loss"] == pytest.approx(total / tokens, rel=1e-5)


class Weights(Callback):
    """The embedding after every iteration."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *args):
        self.seen.append(module.model.get_input_embeddings().weight.detach().clone())


def test_without_a_reference_that_passes_the_momentum_does_not_move_the_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, data = prepared("data.problems_per_iteration=4", "scheduler=constant")
    good = {problem.id for problem in data.problems_at(0)}  # the 8 training problems are two iterations
    data.train_problems = tuple(replace(p, solution_passes=p.id in good) for p in data.train_problems)
    weights = Weights()
    before = module.model.get_input_embeddings().weight.detach().clone()
    trainer = build_trainer(2, None, "cpu", 1, 1, "auto", "32-true", False, callbacks=[weights], loggers=[])
    trainer.fit(module, datamodule=data)
    first, second = weights.seen
    assert not torch.equal(before, first)
    assert torch.equal(first, second)
    assert module.metrics["sft/loss"] == module.metrics["train/grad_norm"] == 0.0
