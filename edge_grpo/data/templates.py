"""Question -> prompt text."""

from typing import Any, Literal

from edge_grpo.errors import UserError


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
            UserError: a tokenizer without a chat template.
        """
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: choose data/template=plain, qwen_math or r1")
        turns = []
        if self.instruction and self.instruction_role == "system":
            turns.append({"role": "system", "content": self.instruction})
        elif self.instruction:
            question = f"{question}\n{self.instruction}"
        turns.append({"role": "user", "content": question})
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


class TextTemplate:
    """A fixed text around the question.

    Args:
        text: holds `{question}` once; other braces are literal, so LaTeX is safe.

    Raises:
        UserError: `{question}` absent or repeated.
    """

    def __init__(self, text: str) -> None:
        if text.count("{question}") != 1:
            raise UserError(f"data.template.text={text!r} must hold {{question}} once")
        self.text = text

    def __call__(self, question: str, tokenizer: Any) -> str:
        """
        >>> TextTemplate("Q: {question} in \\\\boxed{}")("1 + 1", None)
        'Q: 1 + 1 in \\\\boxed{}'
        """
        return self.text.replace("{question}", question)
