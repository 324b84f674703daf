"""The frozen reference (loss.beta > 0) is the initial policy, in whatever precision that is trained."""

import pytest
from small_runs import SHORT, metrics_rows, run_small

from edge_grpo.errors import UserError


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_the_policy_starts_at_its_reference_in_every_precision(precision, tmp_path):
    # k3 is exp(d) - d - 1 of d = ref_logprobs - logprobs: exactly 0 where both models compute the same numbers. The
    # answers that correction writes make groups of unequal rewards, so that the first step moves the policy.
    settings = (*SHORT, "loss.beta=0.1", "optimizer.lr=0.01", "logger=csv", f"trainer.precision={precision}")
    folder = run_small(tmp_path, "experiment=gec", *settings)
    first, second = (float(row["train/kl"]) for row in metrics_rows(folder)[:2])
    assert first == 0
    assert second > 0


def test_the_official_correction_refuses_a_reference_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"loss\.beta=0\.1: correction=guided_official .*; set loss\.beta=0"):
        run_small(tmp_path / "run", "experiment=edge_grpo_official", "loss.beta=0.1")
    assert not (tmp_path / "run" / "metrics.csv").exists()
