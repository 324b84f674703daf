"""Question -> prompt."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from edge_grpo.command_line.check import instantiate
from edge_grpo.data.templates import ChatTemplate, TextTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer

CONF = Path(__file__).parents[1] / "conf"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def configured(name: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(f"data/template/{name}").data.template)


def test_the_chat_template_puts_the_instruction_where_it_is_told() -> None:
    tokenizer = byte_tokenizer()
    assert ChatTemplate("Box it.", "system")("1+1", tokenizer) == "<|system|>Box it.<|user|>1+1<|assistant|>"
    assert ChatTemplate("Box it.", "user")("1+1", tokenizer) == "<|user|>1+1\nBox it.<|assistant|>"


@pytest.mark.parametrize("role", ["system", "user"])
def test_an_empty_instruction_adds_nothing(role: Any) -> None:
    assert ChatTemplate("", role)("1+1", byte_tokenizer()) == "<|user|>1+1<|assistant|>"


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="data/template=plain"):
        ChatTemplate("", "system")("1+1", tokenizer)


def test_braces_of_latex_stay_as_they_are() -> None:
    template = TextTemplate("{question} in \\boxed{}")
    assert template("\\frac{1}{2} and {0}", None) == "\\frac{1}{2} and {0} in \\boxed{}"
    # A question that talks about placeholders is not expanded again.
    assert template("{question}", None) == "{question} in \\boxed{}"


@pytest.mark.parametrize("text", ["no place", "{question} {question}"])
def test_a_text_must_hold_the_question_once(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.template\.text"):
        TextTemplate(text)


def test_the_configured_templates() -> None:
    tokenizer = byte_tokenizer()
    assert configured("chat")("Q", tokenizer) == f"<|system|>{BOXED}<|user|>Q<|assistant|>"
    assert configured("chat_user")("Q", tokenizer) == f"<|user|>Q\n{BOXED}<|assistant|>"
    assert configured("qwen_math")("Q", tokenizer) == (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    )
    r1 = configured("r1")("Q", tokenizer)
    assert r1.endswith("\\boxed{}.\nUser: Q\nAssistant: <think>")
    assert configured("plain")("Q", tokenizer).strip() == "Q"
