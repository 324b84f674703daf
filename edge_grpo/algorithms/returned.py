"""Calls of the strategies, with what they return held against what is expected: the one place that checks it."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs, checked_advantages
from edge_grpo.allocations.base import Allocation, Ask, Draw, Pool
from edge_grpo.corrections.base import Corrected, Correction, CorrectionTools
from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import GroupFilter, Groups
from edge_grpo.importance_corrections.base import ImportanceCorrection, Mismatch, Weighed
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.token_filters.base import TokenFilter, TokenFilterInputs
from edge_grpo.types.returned import check_tensor, described, pair, who
from edge_grpo.types.rollouts import ScoredRollout

log = logging.getLogger(__name__)


class Checked:
    """The strategies of one update.

    Shapes, types and devices are looked at in each call. What depends on values (NaN, infinite, negative) is computed
    where the values are and read once, by `tell`: no step of the update waits for it.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, bool, Tensor]] = []

    def advantages(self, strategy: Advantage, inputs: AdvantageInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Advantages [N, 1] or [N, T], and reports.

        Raises:
            UserError: something else.
        """
        advantages, reports = checked_advantages(strategy, inputs)
        advantages = advantages if advantages.ndim == 2 else advantages[:, None]
        mask = inputs.completion_mask
        read = [values for values in (inputs.entropy, inputs.logprobs) if values is not None]
        sound = torch.stack([torch.where(mask, v.detach(), 0.0).isfinite().all() for v in read]).all() if read else True
        bad = ~torch.where(mask, advantages.detach(), 0.0).isfinite().all() & sound
        told = (
            f"{who('advantage', strategy)} returned advantages that are NaN or infinite, of finite rewards, entropies "
            "and log-probs: in a group of equal rewards the spread is 0, and nothing may be divided by it"
        )
        self._found.append((told, False, bad))
        return advantages, reports

    def factors(self, strategy: TokenFilter, inputs: TokenFilterInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Factors [N, T], and reports.

        Raises:
            UserError: something else.
        """
        name, trained = who("token_filter", strategy), inputs.trained
        factors, reports = pair(name, strategy(inputs), "factors [N, T]")
        check_tensor(name, "factors", factors, {"[N, T]": tuple(trained.shape)}, "float", trained)
        of_trained = torch.where(trained, factors, 0.0)
        bad = ~(of_trained.isfinite() & (of_trained >= 0)).all()
        self._found.append((f"{name} returned factors that are negative, NaN or infinite", True, bad))
        return factors, reports

    def weighed(self, strategy: ImportanceCorrection, mismatch: Mismatch) -> Weighed:
        """See `Weighed`.

        Raises:
            UserError: something else.
        """
        name, weighed = who("importance_correction", strategy), strategy(mismatch)
        if not isinstance(weighed, Weighed):
            raise UserError(f"{name} returned {described(weighed)}, expected Weighed(weights [N, T], capped [N, T])")
        shape = {"[N, T]": tuple(mismatch.known.shape)}
        check_tensor(name, "weights", weighed.weights, shape, "float", mismatch.known)
        check_tensor(name, "capped", weighed.capped, shape, "bool", mismatch.known)
        return weighed

    def loss(self, strategy: Loss, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss [], with graph where log-probs have one, and reports.

        Raises:
            UserError: something else.
        """
        name = who("loss", strategy)
        loss, reports = pair(name, strategy(inputs, size), "the micro-batch's loss, one number with its graph")
        check_tensor(name, "the micro-batch's loss", loss, {"[], one number": ()}, "float", inputs.logprobs)
        if inputs.logprobs.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
            raise UserError(
                f"{name} returned a loss without a graph, so that nothing would be learnt: it must come from "
                "LossInputs.logprobs or entropy without detach(), item() or torch.no_grad()"
            )
        return loss, reports

    def tell(self, *, first: bool) -> None:
        """Read what depends on values, once.

        Args:
            first: whether this is the run's first update. Advantages that are not finite end the run there: they are
                the strategy's fault, not a divergence's. Later the step is skipped, and a warning names the strategy.

        Raises:
            UserError: something was found.
        """
        flags = torch.stack([flag for *_, flag in self._found]).tolist() if self._found else []
        for message, always, _ in [one for one, bad in zip(self._found, flags, strict=True) if bad]:
            if first or always:
                raise UserError(message)
            log.warning("%s", message)
            return


def groups_kept(strategy: GroupFilter, groups: Groups) -> Tensor:
    """[P] bool, see `GroupFilter`.

    Raises:
        UserError: something else.
    """
    kept = strategy(groups)
    check_tensor(who("group_filter", strategy), "which groups to keep", kept, {"[P]": (len(groups.rewards),)}, "bool")
    return kept


def corrected_rows(strategy: Correction, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
    """See `Corrected`.

    Raises:
        UserError: something else, or another number of groups or rows.
    """
    name, done = who("correction", strategy), strategy(scored, tools)
    if not isinstance(done, Corrected):
        raise UserError(f"{name} returned {described(done)}, expected Corrected(scored, branches, reports)")
    found, expected = done.scored.rollout, scored.rollout
    if (len(found.problems), found.num_rows) != (len(expected.problems), expected.num_rows):
        raise UserError(
            f"{name} returned {len(found.problems)} groups of {found.num_rows} rows in all, expected as many as it was "
            f"given: {len(expected.problems)} of {expected.num_rows}"
        )
    if len(done.branches) != expected.num_rows:
        raise UserError(f"{name} returned {len(done.branches)} branches, expected one a row: {expected.num_rows}")
    return done


def asks(strategy: Allocation, pool: Pool | None, draw: Draw) -> Sequence[Ask]:
    """The asks of the next round; `pool` is None before the first.

    Raises:
        UserError: no asks, or none in the first round.
    """
    wanted = strategy.first(draw) if pool is None else strategy.more(pool, draw)
    name, method = who("allocation", strategy), "first" if pool is None else "more"
    if not isinstance(wanted, Sequence) or not all(isinstance(ask, Ask) for ask in wanted):
        raise UserError(f"{name}: {method} returned {described(wanted)}, expected a list of Ask(problem, rows)")
    if pool is None and not wanted:
        raise UserError(f"{name}: first returned no Ask, expected at least one")
    candidates = 0 if pool is None else len(pool.problems)
    for ask in wanted:
        if ask.rows < 1 or (ask.of is not None and not 0 <= ask.of < candidates):
            raise UserError(
                f"{name}: {method} returned an Ask of rows={ask.rows} and of={ask.of}, expected at least 1 row, and "
                f"None or one of the {candidates} candidates"
            )
    return wanted


def groups_chosen(strategy: Allocation, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
    """The rows of each group to train on, see `Allocation.select`.

    Raises:
        UserError: something else than whole groups.
    """
    chosen = strategy.select(pool, draw)
    check_groups(who("allocation", strategy), chosen, pool, draw)
    return chosen


def check_groups(name: str, chosen: Sequence[Sequence[int]], pool: Pool, draw: Draw) -> None:
    """Hold the choice of an allocation to be whole groups.

    Raises:
        UserError: it is none.
    """
    expected = f"expected 1 to {draw.groups} groups of {draw.num_generations} different rows of one problem"
    if not isinstance(chosen, Sequence) or not all(isinstance(rows, Sequence) for rows in chosen):
        raise UserError(f"{name}: select returned {described(chosen)}, {expected}, as lists of row numbers")
    there = range(len(pool.candidate))
    if any(row not in there for rows in chosen for row in rows):
        raise UserError(f"{name}: select returned rows that are not among the {len(there)} of the pool, {expected}")
    of = [{int(pool.candidate[row]) for row in rows} for rows in chosen]
    sizes_fit = all(len(set(rows)) == len(rows) == draw.num_generations for rows in chosen)
    if not 1 <= len(chosen) <= draw.groups or not sizes_fit or any(len(candidates) != 1 for candidates in of):
        sizes = sorted({len(rows) for rows in chosen})
        raise UserError(f"{name}: select returned {len(chosen)} groups of {sizes} rows, {expected}")
