"""What TRL, verl and people call our settings: for "did you mean", and for the table in docs/how_to.md."""

from collections.abc import Collection, Mapping

OTHER_NAMES: Mapping[str, str] = {
    "trainer.max_iterations=": "iterations max_steps num_steps steps total_training_steps epochs num_epochs "
    "num_train_epochs total_epochs max_epochs",
    "data.problems_per_iteration=": "batch_size per_device_train_batch_size train_batch_size generation_batch_size",
    "algorithm.num_generations=": "num_generations G group_size n num_samples num_return_sequences",
    "algorithm.update_epochs=": "num_iterations mu ppo_epochs",
    "algorithm.minibatch_rows=": "mini_batch_size ppo_mini_batch_size steps_per_generation",
    "algorithm.microbatch_tokens=": "gradient_accumulation_steps ppo_micro_batch_size_per_gpu micro_batch_size "
    "ppo_max_token_len_per_gpu",
    "algorithm.max_grad_norm=": "max_grad_norm grad_clip gradient_clip_val",
    "algorithm.mask_truncated=": "mask_truncated_completions",
    "optimizer.lr=": "learning_rate lr",
    "optimizer.weight_decay=": "weight_decay",
    "optimizer.betas=": "adam_beta1 adam_beta2",
    "optimizer.eps=": "adam_epsilon",
    "scheduler=": "lr_scheduler_type lr_warmup_type",
    "scheduler.num_warmup_steps=": "warmup_steps lr_warmup_steps warmup_ratio lr_warmup_steps_ratio",
    "rollout.max_new_tokens=": "max_completion_length max_response_length max_new_tokens max_tokens",
    "rollout.temperature=": "temperature",
    "rollout.top_p=": "top_p",
    "rollout.top_k=": "top_k",
    "rollout.min_p=": "min_p",
    "rollout=vllm": "use_vllm",
    "data.max_prompt_tokens=": "max_prompt_length",
    "loss=": "loss_type",
    "loss.aggregation=": "loss_agg_mode",
    "loss.beta=": "beta kl_coef kl_loss_coef",
    "loss.epsilon_low=": "epsilon clip_ratio clip_ratio_low cliprange clip_range",
    "loss.epsilon_high=": "epsilon_high clip_ratio_high",
    "advantage=": "scale_rewards adv_estimator",
    "model=hf model.path=": "model_name_or_path model_name model_path model_id",
    "model.gradient_checkpointing=": "gradient_checkpointing enable_gradient_checkpointing",
    "model.lora.r=": "lora_r lora_rank",
    "model.lora.alpha=": "lora_alpha",
    "data=file data.path=": "dataset train_files train_dataset",
    "data=file data.held_out_path=": "val_files eval_dataset",
    "data=hub data.name=": "dataset_name",
    "reward=python reward.function=": "reward_func reward_funcs reward_fn custom_reward_function",
    "trainer.precision=": "bf16 fp16",
    "trainer.devices=": "n_gpus_per_node num_gpus gpus",
    "trainer.num_nodes=": "nnodes",
    "checkpoint.every_n_iterations=": "save_steps save_freq",
    "checkpoint.keep=": "save_total_limit max_actor_ckpt_to_keep",
    "evaluation.every_n_iterations=": "eval_steps test_freq",
    "hydra.run.dir=": "output_dir default_local_dir",
    "resume=": "resume_from_checkpoint",
    "name=": "run_name experiment_name",
    "logger=": "report_to",
}
"""ours, as it is typed to edge-grpo-train -> the last part of theirs"""


def ours_of(key: str, there: Collection[str]) -> str:
    """How our setting of that other name is typed; "" where it has none, or the program has no such setting.

    A key of ours that only another option of its group has is found too, and where it was typed below a group that
    has such a setting of its own, that one.

    >>> ours_of("trainer.max_steps", ["trainer.max_iterations"]), ours_of("max_steps", ["evaluation"])
    ('trainer.max_iterations=', '')
    >>> ours_of("evaluation.max_tokens", ["rollout.max_new_tokens", "evaluation.max_new_tokens"])
    'evaluation.max_new_tokens='
    >>> ours_of("data.path", ["data"])
    'data=file data.path='
    """
    name = key.rpartition(".")[2]
    by_option = [ours for ours in OTHER_NAMES if ours.endswith(f" {key}=")]
    by_name = [ours for ours, theirs in OTHER_NAMES.items() if name in theirs.split()]
    found = next(iter(by_option + by_name), "")
    own = ".".join(filter(None, (key.rpartition(".")[0], found.partition("=")[0].rpartition(".")[2])))
    if own in there and "." in own:
        return f"{own}="
    return found if found and found.partition("=")[0] in there else ""
