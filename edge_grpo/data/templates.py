"""Question, behind the earlier turns of its chat -> prompt text."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from jinja2 import TemplateError

from edge_grpo.errors import UserError
from edge_grpo.types.problems import Turn

log = logging.getLogger(__name__)


class EarlierTurnsError(UserError):
    """A chat that a template has no place for."""

    def __init__(self, roles: Sequence[str]) -> None:
        self.found = f"a chat with earlier turns ({', '.join(roles)})"
        self.expected = "a question alone, as data/template is a fixed text (chat, chat_user and question take a chat)"
        super().__init__(f"the prompt is {self.found}, expected {self.expected}")


class ChatTemplate:
    """The tokenizer's own chat template.

    The turns of the data come first, as they are. An instruction that stands in its place already is not repeated.

    Args:
        instruction: such as "put your final answer within \\\\boxed{}."; empty for none.
        instruction_role: its place: the "system" turn (behind the data's own system prompt, on a new line), or behind
            the question in the "user" turn (Llama).
    """

    def __init__(self, instruction: str, instruction_role: Literal["system", "user"]) -> None:
        self.instruction, self.instruction_role = instruction, instruction_role

    def __call__(self, question: str, tokenizer: Any, turns: Sequence[Turn] = ()) -> str:
        """The prompt up to where the assistant's turn begins.

        Raises:
            UserError: a tokenizer without a chat template, or one that refuses or leaves out the instruction or the
                data's system prompt.
        """
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: choose data/template=plain, qwen_math or r1")
        chat = self._with_instruction([*turns, Turn("user", question)])
        try:
            text = tokenizer.apply_chat_template(
                [turn._asdict() for turn in chat], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise UserError(
                f"the tokenizer's chat template refuses the prompt ({error}): {self._way_out(turns)}"
            ) from error
        wanted = [("the instruction", self.instruction)]
        wanted += [("the system prompt of the data", prompt) for prompt in _system(turns)]
        for what, written in wanted:
            if written.strip() not in text:
                raise UserError(f"the tokenizer's chat template leaves out {what}: {self._way_out(turns)}")
        return text

    def _with_instruction(self, chat: list[Turn]) -> list[Turn]:
        if not self.instruction:
            return chat
        place = -1
        if self.instruction_role == "system":
            if chat[0].role != "system":
                return [Turn("system", self.instruction), *chat]
            place = 0
        if self.instruction not in chat[place].content:
            chat[place] = Turn(chat[place].role, f"{chat[place].content}\n{self.instruction}")
        return chat

    def _way_out(self, turns: Sequence[Turn]) -> str:
        if _system(turns):
            return (
                "the data has system prompts; choose data/template=plain, qwen_math or r1, which put them before the "
                "question, or take them out of the data"
            )
        if self.instruction and self.instruction_role == "system":
            return "choose data/template=chat_user, which puts the instruction behind the question"
        return "choose data/template=plain, qwen_math or r1"


def _system(turns: Sequence[Turn]) -> list[str]:
    return [turn.content for turn in turns if turn.role == "system"]


class TextTemplate:
    """A fixed text around the question, behind the token that begins a text where the tokenizer adds one (Llama's BOS).

    A model whose tokenizer adds it has seen no text without it. A template that writes it out itself gets no second.
    A system prompt of the data stands before the question, with an empty line between them.

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

    def __call__(self, question: str, tokenizer: Any, turns: Sequence[Turn] = ()) -> str:
        """The prompt.

        >>> TextTemplate("Q: {question} in \\\\boxed{}")("1 + 1", None)
        'Q: 1 + 1 in \\\\boxed{}'
        >>> TextTemplate("Q: {question}")("1 + 1", None, [Turn("system", "Think.")])
        'Q: Think.\\n\\n1 + 1'

        Raises:
            EarlierTurnsError: turns of the user or the assistant before the question.
        """
        system = _system(turns)
        if len(system) < len(turns):
            raise EarlierTurnsError([turn.role for turn in turns])
        question = "\n\n".join([*system, question])
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
