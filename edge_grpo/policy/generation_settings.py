"""What a model's generation config asks of `generate`, held against what the rollout engines do."""

from collections.abc import Sequence
from typing import Any

from edge_grpo.errors import UserError

OFF: dict[str, tuple[Any, ...]] = {
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "stop_strings": (None,),
}
"""settings that change the logits or end a response -> the values that do nothing"""


def refuse_settings(model: Any) -> None:
    """Refuse a generation config that changes the logits before a token is drawn, or ends responses by itself.

    No engine applies such a setting: the responses would come from another distribution than the policy that is
    trained, and old log-probs of the update's own forward would not be theirs. How tokens are drawn (do_sample,
    temperature, top_k, top_p, min_p, beams) is `rollout`'s alone, and the model's own values are not read.

    Raises:
        UserError: names the setting and its value.
    """
    config = model.generation_config
    for name, off in OFF.items():
        value = getattr(config, name, None)
        if value not in off and value != []:
            raise UserError(
                f"its generation_config.json sets {name}={_shown(value)}, which no rollout engine applies: "
                f"go without it by model.ignored_generation_settings=[{name}]"
                + (", and set rollout.stop_strings" if name == "stop_strings" else "")
            )


def ignore_settings(model: Any, names: Sequence[str]) -> None:
    """Drop these settings of the model's generation config.

    Raises:
        UserError: a name that is none of `OFF`.
    """
    for name in names:
        if name not in OFF:
            raise UserError(f"model.ignored_generation_settings: {name} is none of {', '.join(OFF)}")
        setattr(model.generation_config, name, OFF[name][-1])


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:60]}..." if len(text) > 60 else text
