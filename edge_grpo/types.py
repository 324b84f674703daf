"""What flows between the stages, and the letters of every shape in the project.

    P  problems of an iteration (on one rank)
    G  responses a problem (`num_generations`)
    N  rows, N = P * G; row p * G + g is response g of problem p, so a group is a run of G rows
    S  prompt length in tokens
    T  response length in tokens (of the longest response where padded)
    V  vocabulary

Tokens go in and tokens come out: text is decoded for graders and people and is never encoded again
(`correction=guided_official` is the deliberate exception).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


class Provenance(IntEnum):
    """Who wrote a response token."""

    SAMPLED = 0
    """drawn from the policy"""
    INJECTED = 1
    """a phrase that a correction appended"""
    REFERENCE = 2
    """the data set's reference solution"""


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


@dataclass(frozen=True)
class Response:
    """One response, with the EOS that the policy wrote (or the token that completed a stop string), if any.

    Args:
        token_ids: [L] int64.
        sampling_logprobs: [L] float32, log-probability under the distribution that was really sampled from
            (temperature and truncation included); 0 for injected and reference tokens, which were put there
            with probability one.
        entropies: [L] float32, nats, full-vocabulary entropy of the policy at the rollout temperature where the
            token was sampled, before truncation; 0 for injected and reference tokens, for which none was computed.
            None where the engine tells none of its tokens (`RolloutEngine.records_entropies`).
        provenance: [L] int8, values of `Provenance`.
        finish_reason: "stop" if an EOS or a stop string ended it, "length" if the budget did.
        prompt_ids: the prompt that it is trained under, where that is not its problem's (a hint in the user turn).
        off_policy: whether something else than the policy of this iteration under this prompt wrote it. The importance
            ratio of its tokens is then taken against `sampling_logprobs`.
        shaping: gamma of the ratio rho / (rho + gamma) that the tokens of an off-policy response weigh, without a
            clip (LUFFY, 2504.14945); 0 leaves them to the loss.
        advantage: of all its tokens, whatever the rewards: with 1 the policy gradient is that of supervised
            fine-tuning, with 0 the response leaves the loss and its denominators. None leaves it to the strategy.
    """

    token_ids: Tensor
    sampling_logprobs: Tensor
    entropies: Tensor | None
    provenance: Tensor
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...] | None = None
    off_policy: bool = False
    shaping: float = 0.0
    advantage: float | None = None

    def __post_init__(self) -> None:
        tensors = (self.token_ids, self.sampling_logprobs, self.entropies, self.provenance)
        shapes = {tuple(x.shape) for x in tensors if x is not None}
        if len(shapes) != 1 or self.token_ids.ndim != 1:
            raise ValueError(f"a response's tensors must share one shape [L], got {sorted(shapes)}")

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def as_sampled(self) -> bool:
        """Whether the policy of this iteration wrote all of it under its problem's prompt, and nobody changed it."""
        own = bool((self.provenance == Provenance.SAMPLED).all())
        return own and self.prompt_ids is None and self.advantage is None and not self.off_policy


@dataclass(frozen=True)
class Rollout:
    """G responses to each of P problems; `responses[p * G + g]` answers `problems[p]`."""

    problems: tuple[Problem, ...]
    responses: tuple[Response, ...]
    num_generations: int

    def __post_init__(self) -> None:
        expected = len(self.problems) * self.num_generations
        if len(self.responses) != expected:
            raise ValueError(
                f"{len(self.problems)} problems x {self.num_generations} generations need {expected} "
                f"responses, got {len(self.responses)}"
            )

    def problem_of(self, row: int) -> Problem:
        return self.problems[row // self.num_generations]

    def prompt_of(self, row: int) -> tuple[int, ...]:
        """The prompt that the row is trained under."""
        own = self.responses[row].prompt_ids
        return self.problem_of(row).prompt_ids if own is None else own

    @property
    def num_rows(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class Scores:
    """What grading says of n responses.

    Args:
        rewards: [n] float32, weighted sum of the parts.
        parts: name -> [n] float32, before weighting.
        correct: [n] bool, by the accuracy reward alone.
    """

    rewards: Tensor
    parts: dict[str, Tensor]
    correct: Tensor

    def __post_init__(self) -> None:
        n = self.rewards.shape[0]
        wrong = {k: tuple(v.shape) for k, v in self.parts.items() if tuple(v.shape) != (n,)}
        if wrong or tuple(self.correct.shape) != (n,):
            raise ValueError(f"scores of {n} rows with parts {wrong}, correct {tuple(self.correct.shape)}")

    def selected(self, rows: list[int]) -> "Scores":
        """The scores of some rows, in that order."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return Scores(self.rewards[rows], parts, self.correct[rows])

    def replaced(self, rows: list[int], new: "Scores") -> "Scores":
        """These scores with `rows` taken from `new` (one entry a row, in that order)."""

        def put(old: Tensor, values: Tensor) -> Tensor:
            out = old.clone()
            out[rows] = values
            return out

        return Scores(
            rewards=put(self.rewards, new.rewards),
            parts={name: put(part, new.parts[name]) for name, part in self.parts.items()},
            correct=put(self.correct, new.correct),
        )


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with its texts (N, for graders and people) and scores (N).

    Args:
        drawn: [P], of each group the rewards [n] of all responses that were drawn for it, kept or not, as sampled;
            empty where nobody counted.
    """

    rollout: Rollout
    texts: tuple[str, ...]
    scores: Scores
    drawn: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        n = self.rollout.num_rows
        if self.drawn and len(self.drawn) != len(self.rollout.problems):
            raise ValueError(f"rewards drawn for {len(self.drawn)} of {len(self.rollout.problems)} groups")
        if len(self.texts) != n or self.scores.rewards.shape[0] != n:
            raise ValueError(f"{n} rows, {len(self.texts)} texts, {self.scores.rewards.shape[0]} rewards")


class Step(NamedTuple):
    """One optimiser step.

    Args:
        loss: sum of the micro-batch losses on this rank.
        grad_norm: global norm before clipping.
        bad: indices of the micro-batches on this rank whose loss or gradient is not finite; None if the step was
            taken. An empty tuple: skipped for another rank's sake.
    """

    loss: float
    grad_norm: float
    bad: tuple[int, ...] | None = None


@dataclass(frozen=True)
class UpdateBatch:
    """Rows as tensors: prompt and response back to back, padded on the right.

    Right padding needs neither position ids nor a causal model that knows about it, and a response never
    loses a token to a longer neighbour's prompt.

    Args:
        tokens: [N, W] int64, prompt then response then padding.
        prompt_lengths: [N] int64.
        response_lengths: [N] int64.
        token_weights: [N, T] float32, loss weight by provenance; 0 outside the response.
        sampled_mask: [N, T] bool, tokens that the policy itself sampled.
        row_ids: [N] int64, the row's index in its `Rollout`.
        problem_ids: [N] int64, the row's group.
        prompt_keys: [N] int64; rows with the same key have the same prompt, which a packed forward computes once.
        sampling_logprobs: [N, T] float32, see `Response`; 0 outside the response.
        off_policy: [N] bool, see `Response`.
        shaping: [N] float32, see `Response`.
        fixed_advantages: [N] float32, see `Response.advantage`; NaN where the strategy decides.
        pad_id: fills `tokens`.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    token_weights: Tensor
    sampled_mask: Tensor
    row_ids: Tensor
    problem_ids: Tensor
    prompt_keys: Tensor
    sampling_logprobs: Tensor
    off_policy: Tensor
    shaping: Tensor
    fixed_advantages: Tensor
    pad_id: int

    def __post_init__(self) -> None:
        n, width = self.tokens.shape
        of_rows = (self.prompt_lengths, self.response_lengths, self.row_ids, self.problem_ids, self.prompt_keys)
        shapes = [tuple(x.shape) for x in (*of_rows, self.off_policy, self.shaping, self.fixed_advantages)]
        of_tokens = {tuple(x.shape) for x in (self.token_weights, self.sampled_mask, self.sampling_logprobs)}
        if any(shape != (n,) for shape in shapes) or len(of_tokens) != 1:
            raise ValueError(f"batch of {n} rows with values of rows {shapes}, of tokens {sorted(of_tokens)}")
        if self.token_weights.shape[0] != n or (n and int((self.prompt_lengths + self.response_lengths).max()) > width):
            raise ValueError(f"rows do not fit {tuple(self.tokens.shape)}")

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def completion_mask(self) -> Tensor:
        """[N, T] bool, true on response tokens (EOS included)."""
        t = torch.arange(self.token_weights.shape[1], device=self.tokens.device)
        return t[None, :] < self.response_lengths[:, None]

    @property
    def trained(self) -> Tensor:
        """[N, T] bool, the tokens that the loss is over."""
        return self.completion_mask & (self.token_weights > 0)

    @property
    def attention_mask(self) -> Tensor:
        """[N, W] int64, 1 on prompt and response."""
        w = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (w[None, :] < (self.prompt_lengths + self.response_lengths)[:, None]).long()

    @property
    def predicting_positions(self) -> Tensor:
        """[N, T] int64: the position in `tokens` whose hidden state predicts response token t."""
        t = torch.arange(self.token_weights.shape[1], device=self.tokens.device)
        return self.prompt_lengths[:, None] - 1 + t[None, :]

    @property
    def response_tokens(self) -> Tensor:
        """[N, T] int64, padded with `pad_id`."""
        position = (self.predicting_positions + 1).clamp(max=self.tokens.shape[1] - 1)
        return torch.where(self.completion_mask, self.tokens.gather(1, position), self.pad_id)

    def with_own_advantages(self, advantages: Tensor) -> Tensor:
        """[N, 1] or [N, T] advantages of a strategy -> [N, T], where rows that bring their own have that."""
        own = self.fixed_advantages[:, None].to(advantages.dtype)
        return torch.where(own.isnan(), advantages, own).expand(self.token_weights.shape)

    def select(self, rows: Tensor) -> "UpdateBatch":
        """The given rows [M], with padding cut to the longest of them."""
        prompts, responses = self.prompt_lengths[rows], self.response_lengths[rows]
        width, length = int((prompts + responses).max()), int(responses.max())
        return UpdateBatch(
            tokens=self.tokens[rows, :width],
            prompt_lengths=prompts,
            response_lengths=responses,
            token_weights=self.token_weights[rows, :length],
            sampled_mask=self.sampled_mask[rows, :length],
            row_ids=self.row_ids[rows],
            problem_ids=self.problem_ids[rows],
            prompt_keys=self.prompt_keys[rows],
            sampling_logprobs=self.sampling_logprobs[rows, :length],
            off_policy=self.off_policy[rows],
            shaping=self.shaping[rows],
            fixed_advantages=self.fixed_advantages[rows],
            pad_id=self.pad_id,
        )
