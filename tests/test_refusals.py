"""What is wrong with a run is said before its model is loaded, and before its data where they say nothing of it."""

import json
from contextlib import nullcontext

import pytest
from small_runs import SMALL, SMALL_GRPO, composed

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.errors import UserError
from edge_grpo.programs import context, train_run

FOUR_BIT = "model=hf model.path=nowhere model.load_in_4bit=true"
WITHOUT_DATA = [
    ("advantage=maxrl", "estimates the policy's success rate by the share of right rows"),
    ("advantage=pass_at_k", "this advantage needs groups of at least 3 responses"),
    ("algorithm.num_generations=1", "a group needs at least 2 responses"),
    ("allocation=speed", "algorithm.num_generations=2: allocation.screen_rows=4 must be below it"),
    ("algorithm.minibatch_rows=3", "must be a multiple of algorithm.num_generations=2: a group is never split"),
    ("loss=gvpo algorithm.minibatch_rows=1", "a group is never split"),
    ("correction=guided_official loss.beta=0.1", "loss.beta=0.1: "),
    ("token_filter=clip_cov advantage.refresh=update", "reads the advantages before the update"),
    ("rollout.temperature=0.0", "rollout.temperature=0: greedy responses"),
    ("algorithm.chunk_tokens=0", "algorithm.chunk_tokens=0 must be above 0"),
    ("trainer.max_iterations=0", "trainer.max_iterations=0 must be at least 1"),
    ("trainer.max_generated_tokens=0", "trainer.max_generated_tokens=0 must be at least 1"),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed is none of"),
    (
        "trainer.strategy=deepspeed_stage_2",
        "trainer.strategy=deepspeed_stage_2 is none of auto, ddp, fsdp2: other",
    ),
    ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn is none of auto, ddp, fsdp2"),
    ("trainer.strategy=fsdp2", "fsdp2 spreads the policy over ranks, and here is one"),
    ("trainer.strategy=fsdp2 trainer.devices=2 trainer.precision=64-true", "precision=64-true does not go with"),
    ("trainer.strategy=fsdp2 trainer.devices=2 model.lora.r=4", "set trainer=ddp, or model.lora.r=null"),
    ("optimizer.lr=-1", "optimizer.lr=-1 must be at least 0 and finite"),
    ("optimizer.lr=nan", "optimizer.lr=nan must be at least 0"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1 must be at least 0"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0] must be at least 0 and below 1"),
    ("optimizer=adamw_8bit optimizer.lr=-1", "optimizer.lr=-1 must be at least 0"),
    ("optimizer=adamw_offload optimizer.lr=inf", "optimizer.lr=inf must be at least 0"),
    ("optimizer=adamw_kahan optimizer.eps=-1", "optimizer.eps=-1 must be at least 0"),
    ("optimizer=adamw_fused +optimizer.foreach=true", "optimizer: `fused` and `foreach` cannot be `True` together."),
    ("scheduler=cosine scheduler.num_warmup_steps=-1", "scheduler.num_warmup_steps=-1 must be at least 0"),
    ("scheduler=phased_decay scheduler.phases=[{iterations:3,factor:1}]", "scheduler: no 'decay'"),
    ("trainer.strategy=fsdp2 trainer.devices=2 optimizer=adamw_8bit", "set optimizer=adamw"),
    ("trainer.strategy=fsdp2 trainer.devices=2 optimizer=adamw_kahan", "knows whole tensors alone"),
    ("trainer.strategy=fsdp2 trainer.devices=2 optimizer=adamw_offload", "knows whole tensors alone"),
    ("optimizer=adamw_kahan optimizer.betas=[0.9,0.999]", "a mean of squares hardly moves beyond 0.99"),
    ("trainer.strategy=fsdp2 trainer.devices=2 callbacks=gradient_shares", "set callbacks.gradient_shares=null"),
    (f"{FOUR_BIT} model.lora.r=4 trainer.devices=2", "every rank would quantise its model on its node's first GPU"),
    (f"{FOUR_BIT} model.lora.r=4 trainer.strategy=fsdp2 trainer.devices=2", "leaves nothing to shard: set trainer=gpu"),
    (f"{FOUR_BIT} model.lora.r=null", "adapters must be trained: set model.lora.r=16"),
    ("trainer.devices=2 trainer.num_nodes=2", "but this process was started alone: start it with srun or torchrun"),
    ("checkpoint.keep=0", "keep=0 must be at least 1"),
    ("trainer.devices=2 algorithm.minibatch_rows=2", "times the 2 ranks"),
    ("trainer.devices=4", "data.problems_per_iteration=2 must be a multiple of the 4 ranks"),
    ("experiment=sft trainer.max_generated_tokens=9", "SFTModule generates nothing"),
    ("experiment=sft callbacks=collapse_watch", "SFTModule samples no groups"),
    ("experiment=sft evaluation.correct=true", "this algorithm has no correction"),
]


@pytest.fixture
def touched(monkeypatch):
    """What was loaded; of a model nothing is."""
    seen = []
    instantiate, load = train_run.instantiate, ProblemDataModule.check_fields

    def built(node, **kwargs):
        if node._get_full_key(None) == "model":
            seen.append("model")
            raise AssertionError("the model is loaded")
        return instantiate(node, **kwargs)

    def checked(self, required_fields):
        seen.append("data")
        load(self, required_fields)

    monkeypatch.setattr(train_run, "instantiate", built)
    monkeypatch.setattr(ProblemDataModule, "check_fields", checked)
    return seen


def refused(folder, *overrides):
    """The error of a run."""
    settings = SMALL if "experiment=sft" in overrides else SMALL_GRPO
    if "data=file" in overrides:
        settings = [s for s in settings if not s.startswith(("data.train_count", "data.correctness_rates"))]
    if "model=hf" in overrides:
        settings = [s for s in settings if not s.startswith("model")]
    cfg, _ = composed("train", *settings, *overrides, f"paths.run_dir={folder}")
    with pytest.raises(UserError) as caught:
        train_run.run_experiment(cfg)
    return str(caught.value)


@pytest.mark.parametrize(("overrides", "message"), WITHOUT_DATA)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(tmp_path, touched, overrides, message):
    assert message in refused(tmp_path, *overrides.split())
    assert touched == []


def test_a_field_that_no_row_has_is_refused_before_the_model_is_loaded(tmp_path, touched):
    assert "no column `hints`, nor in any other of 8 problems" in refused(tmp_path, "correction=scaf_grpo")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": i + 1}) + "\n" for i in range(3)))
    data = ("data=file", f"data.path={rows}", "data.held_out_count=1")
    assert "no `solution`, nor in any other of 3 problems" in refused(tmp_path / "b", *data, "correction=hpt")
    assert touched == ["data", "data"]


def test_a_benchmark_that_is_not_there_is_refused_before_the_model_is_loaded(tmp_path, touched):
    missing = ("evaluation=file", "evaluation.benchmarks.file.path=nowhere.jsonl")
    assert "nowhere.jsonl" in refused(tmp_path, *missing)
    assert touched == []


def test_a_setting_that_is_right_comes_as_far_as_the_model(tmp_path, touched):
    cfg, _ = composed("train", *SMALL_GRPO, f"paths.run_dir={tmp_path}")
    with pytest.raises(AssertionError, match="the model is loaded"):
        train_run.run_experiment(cfg)
    assert touched == ["data", "model"]


def test_a_warm_up_that_does_not_end_is_told(tmp_path, touched, caplog):
    for steps, told in ((2, True), (1, False)):  # two iterations
        caplog.clear()
        cfg, _ = composed(
            "train",
            *SMALL_GRPO,
            "scheduler=linear",
            f"scheduler.num_warmup_steps={steps}",
            "trainer.max_iterations=2",
            f"paths.run_dir={tmp_path / str(steps)}",
        )
        with pytest.raises(AssertionError, match="the model is loaded"):
            train_run.run_experiment(cfg)
        assert ("the learning rate rises to the end" in caplog.text) == told


def test_four_bits_are_not_made_on_a_gpu_to_be_moved_to_the_cpu(monkeypatch):
    monkeypatch.setattr(context, "check_four_bit", lambda adapters: None)
    for trainer, refused in (("cpu", True), ("gpu", False)):
        cfg, _ = composed("train", *FOUR_BIT.split(), "model.lora.r=4", f"trainer={trainer}")
        with pytest.raises(UserError, match="accelerator=cpu: set trainer=gpu") if refused else nullcontext():
            context.check_base_weights(cfg)
