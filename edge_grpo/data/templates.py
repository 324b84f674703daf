"""Question -> prompt text."""

import logging
from typing import Any, Literal

from jinja2 import TemplateError

from edge_grpo.errors import UserError

log = logging.getLogger(__name__)


class ChatTemplate:
    """The tokenizer's own chat template.

    Args:
        instruction: such as "put your final answer within \\\\boxed{}."; empty for none.
        instruction_role: its place: a "system" turn, or behind the question in the "user" turn (Llama).
    """

    def __init__(self, instruction: str, instruction_role: Literal["system", "user"]) -> None:
        self.instruction, self.instruction_role = instruction, instruction_role

    def __call__(self, question: str, tokenizer: Any) -> str:
        """The prompt up to where the assistant's turn begins.

        Raises:
            UserError: a tokenizer without a chat template, or one that refuses or leaves out the instruction.
        """
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: choose data/template=plain, qwen_math or r1")
        turns = []
        if self.instruction and self.instruction_role == "system":
            turns.append({"role": "system", "content": self.instruction})
        elif self.instruction:
            question = f"{question}\n{self.instruction}"
        turns.append({"role": "user", "content": question})
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UserError(f"the tokenizer's chat template refuses the prompt ({error}): {self._way_out}") from error
        if self.instruction.strip() not in text:
            raise UserError(f"the tokenizer's chat template leaves out the instruction: {self._way_out}")
        return text

    @property
    def _way_out(self) -> str:
        if self.instruction and self.instruction_role == "system":
            return "choose data/template=chat_user, which puts the instruction behind the question"
        return "choose data/template=plain, qwen_math or r1"


class TextTemplate:
    """A fixed text around the question, behind the token that begins a text where the tokenizer adds one (Llama's BOS).

    A model whose tokenizer adds it has seen no text without it. A template that writes it out itself gets no second.

    Args:
        text: holds `{question}` once; other braces are literal, so LaTeX is safe.

    Raises:
        UserError: `{question}` absent or repeated.
    """

    def __init__(self, text: str) -> None:
        if text.count("{question}") != 1:
            raise UserError(f"data.template.text={text!r} must hold {{question}} once")
        self.text = text
        self._told = False

    def __call__(self, question: str, tokenizer: Any) -> str:
        """
        >>> TextTemplate("Q: {question} in \\\\boxed{}")("1 + 1", None)
        'Q: 1 + 1 in \\\\boxed{}'
        """
        begin = _added_bos(tokenizer)
        if not begin or self.text.startswith(begin):
            begin = ""
        elif not self._told:
            log.info("prompts begin with %s, which the tokenizer adds to every text", begin)
            self._told = True
        return begin + self.text.replace("{question}", question)


def _added_bos(tokenizer: Any) -> str:
    """The token that the tokenizer puts before a text; empty where it adds none."""
    if tokenizer is None or tokenizer.bos_token is None:
        return ""
    return tokenizer.bos_token if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""
