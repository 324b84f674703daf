"""A group as it is read: its responses before and after correction, and what training made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edge_grpo.rewards.boxed import last_boxed


@dataclass(frozen=True)
class Version:
    """A response before or after correction.

    Args:
        correct, unparsed: the grader's verdict, and whether it could read no answer; None where nobody asked.
        reward: weighted sum of `parts`; None in an evaluation.
        parts: reward -> value before weighting.
        tokens: number of tokens.
        finish_reason: "stop" or "length".
        pieces: (who wrote it, text) in order: sampled, injected or reference; None where the texts were dropped.
        characters: of each token in the text; empty where tokens were not kept, as the next two.
        entropies: of each token, nats; None for one that is not finite.
    """

    correct: bool | None
    unparsed: bool | None
    reward: float | None
    parts: Mapping[str, float | None]
    tokens: int
    finish_reason: str
    pieces: tuple[tuple[str, str], ...] | None
    characters: tuple[int, ...] = ()
    entropies: tuple[float | None, ...] = ()

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces or ())

    @property
    def answer(self) -> str | None:
        """Content of the last box."""
        return last_boxed(self.text)

    def tokens_of_text(self) -> Iterator[tuple[str, str, float | None]]:
        """(who wrote it, text, entropy in nats) of every token that has text; whole pieces where none were kept.

        Only the entropy of a token that the policy sampled is known.
        """
        if not self.characters or not self.entropies:
            yield from ((by, text, None) for by, text in self.pieces or ())
            return
        text, at = self.text, 0
        writers = [by for by, piece in self.pieces or () for _ in piece]
        for length, entropy in zip(self.characters, self.entropies, strict=True):
            if length:
                by = writers[at]
                yield by, text[at : at + length], entropy if by == "sampled" else None
                at += length


@dataclass(frozen=True)
class Response:
    """One response of a group.

    Args:
        row: its number in the group.
        before, after: correction; `after` is None where it was left alone.
        branch: of the correction; "" for none.
        base_advantage: before entropies changed it; None where the strategy reads none.
        advantage: mean over the tokens; None where the row was not in the update.
        multiplier: of the entropy-driven advantage; None where there is none.
        clamped: whether it is at its bound.
    """

    row: int
    before: Version
    after: Version | None = None
    branch: str = ""
    base_advantage: float | None = None
    advantage: float | None = None
    multiplier: float | None = None
    clamped: bool = False

    @property
    def trained(self) -> Version:
        """What entered the update."""
        return self.before if self.after is None else self.after


@dataclass(frozen=True)
class Group:
    """The responses to one problem in one iteration, or of one evaluation.

    Args:
        section: the iteration, or the benchmark.
        problem: its id.
        question, answers: None and empty where the texts were dropped.
        responses: in order.
        marks: the filters that it passes (`filters.FILTERS`).
        replaced_by: what a replay put in its place: id and question.
    """

    section: int | str
    problem: str
    question: str | None
    answers: tuple[str, ...]
    responses: tuple[Response, ...]
    marks: frozenset[str] = field(default_factory=frozenset)
    replaced_by: tuple[str, str] | None = None
