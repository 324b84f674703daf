"""The gradient of a batch does not depend on how it is cut: into micro-batches, or over two real processes."""

import contextlib
import os
import subprocess
import sys

import ddp_gradients
import pytest
import torch
from ddp_gradients import BOUNDS, CASES, PRECISIONS, gradient
from small_runs import REPO, SMALL_GRPO, composed

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError

TOLERANCE = {"64-true": 1e-12, "32-true": 1e-5}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """precision -> (loss, advantage) -> (gradient, micro-batches of a rank)."""
    folder = tmp_path_factory.mktemp("ranks")
    out = folder / "gradients.pt"
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ddp_gradients.__file__, str(out)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module", params=PRECISIONS)
def runs(request, on_two_ranks, tmp_path_factory):
    """Gradients on one rank (with the wanted number of micro-batches), on two ranks, and the tolerance."""
    folder = tmp_path_factory.mktemp("gradients")
    with contextlib.chdir(folder):  # Lightning's own checkpoints go there
        one = {
            (*case, count): gradient(*case, 1, request.param, bound)
            for case in CASES
            for count, bound in BOUNDS.items()
        }
    return one, on_two_ranks[request.param], TOLERANCE[request.param]


def difference(a, b):
    assert float(b.norm()) > 1e-3
    return float((a - b).norm() / b.norm())


def test_one_two_or_seven_micro_batches_one_or_two_ranks(runs):
    one, two, tolerance = runs
    assert {count for _, count in one.values()} == {1, 2, 7}
    for (loss, advantage, wanted), (found, count) in one.items():
        assert count == wanted
        if loss != "bnpo":
            assert difference(found, one[loss, advantage, 1][0]) < tolerance, (loss, advantage, count)
    for case, (found, count) in two.items():
        assert count == 1
        if case[0] != "bnpo":
            assert difference(found, one[*case, 1][0]) < tolerance, case


def test_bnpo_depends_on_the_cut_by_definition(runs):
    one, two, _ = runs
    whole = one["bnpo", "entropy_driven", 1][0]
    assert difference(one["bnpo", "entropy_driven", 7][0], whole) > 0.01
    assert difference(two["bnpo", "entropy_driven"][0], whole) > 0.01


def test_groups_never_span_ranks():
    cfg, _ = composed("train", *SMALL_GRPO)
    data = instantiate(cfg.data)
    with pytest.raises(UserError, match=r"data\.problems_per_iteration=2 must be a multiple of the 3 ranks"):
        data.problems_at(0, rank=0, world_size=3)
