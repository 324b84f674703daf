"""The loss of supervised fine-tuning against one forward of each reference."""

from dataclasses import replace

import pytest
import torch
from small_runs import SMALL, composed

from edge_grpo.command_line.check import instantiate
from edge_grpo.programs.train_run import build_module
from edge_grpo.runs.trainer import build_trainer


def test_the_loss_is_the_token_mean_over_references_that_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg, _ = composed("sft", *SMALL, "data.problems_per_iteration=4")
    module, data = build_module(cfg), instantiate(cfg.data)
    data.load_prepared(
        module.policy.tokenizer,
        required_fields=module.required_fields,
        grade=module.grade,
        ungradable=module.ungradable,
    )
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
