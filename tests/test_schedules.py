"""The phased schedule by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_grpo.algorithms.schedules import phased_decay

PHASES = [{"iterations": 4, "factor": 1.0, "decay": 0.5}, {"iterations": 2, "factor": 0.25, "decay": 1.0}]


def scheduled(phases, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, phased_decay(optimizer, phases)


def rates(phases, iterations, lr=1.0):
    """The rate that each iteration uses."""
    optimizer, scheduler = scheduled(phases, lr)
    used = []
    for _ in range(iterations):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_two_phases_by_hand():
    # Phase 1: 1 until half of its 4 iterations are left, then left / 2: 2/2, 1/2. Phase 2: a quarter of left / 2.
    # Beyond the last phase the rate is 0.
    assert rates(PHASES, 8, lr=0.1) == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025, 0.0125, 0, 0])


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"iterations": st.integers(1, 20), "factor": st.floats(0.01, 1), "decay": st.floats(0.01, 1)}
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_phase_starts_at_its_factor_and_never_rises(phases):
    used = rates(phases, sum(p["iterations"] for p in phases))
    start = 0
    for phase in phases:
        within = used[start : start + phase["iterations"]]
        assert within[0] == pytest.approx(phase["factor"])
        assert within == sorted(within, reverse=True)
        assert min(within) > 0  # 0 is reached only where the phase is over
        start += phase["iterations"]


def test_a_resumed_schedule_goes_on():
    # Three steps, saved and loaded into a fresh schedule, then the fourth.
    optimizer, scheduler = scheduled(PHASES)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    _, other = scheduled(PHASES)
    other.load_state_dict(scheduler.state_dict())
    scheduler.step()
    other.step()
    assert other.get_last_lr() == scheduler.get_last_lr() == [0.25]
