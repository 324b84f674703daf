"""Question -> prompt."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from tokenizers.processors import TemplateProcessing

from edge_grpo.command_line.check import instantiate
from edge_grpo.data.base import with_prompt
from edge_grpo.data.templates import ChatTemplate, TextTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.types.problems import Problem, Turn


def prompt_ids(question: str, template: Any, tokenizer: Any) -> tuple[int, ...]:
    return with_prompt(Problem("p", question, ()), template, tokenizer).prompt_ids


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


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
FORGETS = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("written", "why"), [(REFUSES + FORGETS, "System role not supported"), (FORGETS, "leaves out")]
)
def test_a_chat_template_without_a_system_turn_is_told_the_template_that_needs_none(written: str, why: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = written
    with pytest.raises(UserError, match=rf"^the tokenizer's chat template .*{why}.*: choose data/template=chat_user, "):
        configured("chat")("1+1", tokenizer)
    assert configured("chat_user")("1+1", tokenizer) == f"1+1\n{BOXED}"
    assert configured("question")("1+1", tokenizer) == "1+1"


def test_a_chat_template_that_takes_no_prompt_at_all_is_told_the_templates_without_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('use the processor') }}"
    with pytest.raises(UserError, match=r"\(use the processor\): choose data/template=plain, qwen_math or r1$"):
        configured("chat_user")("1+1", tokenizer)


THINK = Turn("system", "Think.")
EARLIER = (THINK, Turn("user", "1+0"), Turn("assistant", "1"))


def test_a_chat_goes_through_the_chat_template_turn_by_turn() -> None:
    tokenizer = byte_tokenizer()
    bare = "<|system|>Think.<|user|>1+0<|assistant|>1<|user|>1+1<|assistant|>"
    assert ChatTemplate("", "system")("1+1", tokenizer, EARLIER) == bare
    # The data's system prompt stays the one system turn, and the first turn of the user as it was.
    assert ChatTemplate("Box it.", "system")("1+1", tokenizer, EARLIER) == bare.replace("Think.", "Think.\nBox it.")
    assert ChatTemplate("Box it.", "user")("1+1", tokenizer, EARLIER) == bare.replace("1+1", "1+1\nBox it.")
    without_system = ChatTemplate("Box it.", "system")("1+1", tokenizer, EARLIER[1:])
    assert without_system == bare.replace("Think.", "Box it.")


def test_an_instruction_that_is_in_its_place_is_not_repeated() -> None:
    tokenizer = byte_tokenizer()
    told = Turn("system", "Think. Box it.")
    assert ChatTemplate("Box it.", "system")("Q", tokenizer, [told]) == "<|system|>Think. Box it.<|user|>Q<|assistant|>"
    assert ChatTemplate("Box it.", "user")("Q Box it.", tokenizer) == "<|user|>Q Box it.<|assistant|>"
    # In another place it is another thing.
    assert ChatTemplate("Box it.", "user")("Q", tokenizer, [told]).endswith("<|user|>Q\nBox it.<|assistant|>")


@pytest.mark.parametrize("written", [REFUSES + FORGETS, FORGETS])
def test_a_system_prompt_of_the_data_that_the_chat_template_does_not_take_is_refused(written: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = written
    for name in ("chat", "chat_user", "question"):
        with pytest.raises(UserError, match=r"data has system prompts; choose data/template=plain, qwen_math or r1"):
            configured(name)("1+1", tokenizer, [THINK])
    # A chat without one is no matter.
    assert configured("question")("1+1", tokenizer, EARLIER[1:]) == "1+011+1"


@pytest.mark.parametrize("name", ["plain", "qwen_math", "r1", "llama"])
def test_a_fixed_text_puts_a_system_prompt_before_the_question_and_takes_no_other_turn(name: str) -> None:
    template = configured(name)
    assert template("1+1", None, [THINK]) == template("Think.\n\n1+1", None)
    with pytest.raises(UserError, match=r"a chat with earlier turns \(system, user, assistant\), expected a question"):
        template("1+1", None, EARLIER)


def bos_tokenizer(adds: bool) -> Any:
    """As Llama's, whose post-processor puts the BOS before every text; or one that only knows such a token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    if adds:
        bos = ("<|begin_of_text|>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


@pytest.mark.parametrize("name", ["plain", "qwen_math", "r1"])
def test_a_text_begins_with_the_bos_that_the_tokenizer_adds_and_only_then(name: str, caplog: Any) -> None:
    adds, knows = bos_tokenizer(True), bos_tokenizer(False)
    template = configured(name)
    with caplog.at_level("INFO"):
        ids = [prompt_ids(question, template, adds) for question in ("Q", "1+1")]
    assert caplog.messages == ["prompts begin with <|begin_of_text|>, which the tokenizer adds to every text"]
    # The same ids as of the official programs, which hand the tokenizer the text.
    assert ids[0] == tuple(adds(configured(name)("Q", None))["input_ids"])
    assert [row.count(adds.bos_token_id) for row in ids] == [1, 1]
    assert ids[0][1:] == prompt_ids("Q", template, knows)


def test_a_bos_that_is_written_out_is_not_doubled() -> None:
    tokenizer = bos_tokenizer(True)
    ids = prompt_ids("Q", configured("llama"), tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    tokenizer.chat_template = "<|begin_of_text|>{{ messages[0]['content'] }}"
    assert prompt_ids("Q", configured("question"), tokenizer).count(tokenizer.bos_token_id) == 1


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
