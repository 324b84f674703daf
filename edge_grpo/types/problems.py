"""Problems: what is asked, and what any arm may read of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class Turn(NamedTuple):
    """One message of a chat; as JSON it is [role, content]."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """One question with all that any arm may read of it."""

    id: str
    question: str
    """what is asked; of a chat its last user turn"""
    answers: tuple[str, ...]
    """gold answers; a response that matches any one of them is right"""
    solution: str | None = None
    """worked reference solution"""
    correctness_rate: float | None = None
    """share of right samples under the policy that measured the difficulty, in [0, 1]"""
    origin: str = ""
    """`file:row`, for error messages"""
    solution_passes: bool = True
    """False where the reference fails the project's own grading: it is never trained on"""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """what a special scorer needs (reasoning_gym's entry)"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """the row's columns besides the question's, as they stand in the table, for rewards that read them"""
    turns: tuple[Turn, ...] = ()
    """what stands before the question in its chat: a system prompt, earlier turns"""
    is_chat: bool = False
    """whether the question stands in the table as a chat, so that rewards in TRL's style get messages"""
    prompt: str = ""
    """the whole prompt as text, special tokens written out, set once by the data module"""
    prompt_ids: tuple[int, ...] = ()
    """the prompt as tokens, set with it"""
    solution_ids: tuple[int, ...] = ()
    """the reference as tokens without EOS, set once by the data module; empty if there is none"""

    def __getstate__(self) -> dict[str, Any]:
        """Whatever a reader of tables gave as columns, such as a view that nobody can write to, as a dict."""
        return {**self.__dict__, "columns": dict(self.columns)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, columns=MappingProxyType(state["columns"]))

    @property
    def transcript(self) -> str:
        """The question for people; behind its earlier turns, if there are any, each with its role.

        >>> Problem("a", "1 + 1?", ("2",), turns=(Turn("system", "Think."),)).transcript
        'system: Think.\\n\\nuser: 1 + 1?'
        """
        if not self.turns:
            return self.question
        return "\n\n".join(f"{role}: {content}" for role, content in (*self.turns, ("user", self.question)))


class ProblemBatch:
    """The problems of one iteration, as Lightning's batch.

    Not a dataclass or sequence: Lightning walks into those to move and cast tensors, and refuses frozen ones.

    Args:
        problems: of this iteration, where every iteration takes as many as the others.
        at: position -> problem of this rank's endless stream, of which `problems` is a stretch.
    """

    def __init__(self, problems: Sequence[Problem], at: Callable[[int], Problem]) -> None:
        self.problems, self.at = tuple(problems), at
