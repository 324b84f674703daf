"""Which groups enter the update, by hand."""

import pytest
import torch

from edge_grpo.errors import UserError
from edge_grpo.group_filters.accuracy_band import AccuracyBand
from edge_grpo.group_filters.base import Groups
from edge_grpo.group_filters.drop_zero_variance import DropZeroVariance

# Rewards with a format bonus: all wrong with one bonus; one, two and three of four right; all right with one bonus.
REWARDS = torch.tensor([[0.0, 1, 0, 0], [2, 0, 0, 0], [2, 2, 0, 1], [2, 2, 2, 1], [2, 2, 2, 3], [0, 0, 0, 0]])
CORRECT = REWARDS >= 2
GROUPS = Groups(REWARDS, CORRECT)


def test_a_format_bonus_hides_a_dead_group_from_the_variance_and_not_from_the_outcome():
    assert DropZeroVariance()(GROUPS).tolist() == [True, True, True, True, True, False]
    assert AccuracyBand(0.0, 1.0)(GROUPS).tolist() == [False, True, True, True, False, False]


def test_both_bounds_are_outside():
    assert AccuracyBand(0.25, 0.75)(GROUPS).tolist() == [False, False, True, False, False, False]
    assert AccuracyBand(0.2, 0.8)(GROUPS).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.9, 0.1)])
def test_bounds_that_keep_nothing_or_are_no_shares_are_refused(low, high):
    with pytest.raises(UserError, match="expected 0 <= low < high <= 1"):
        AccuracyBand(low, high)
