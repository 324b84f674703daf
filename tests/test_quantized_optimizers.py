"""8-bit and paged AdamW: which of bitsandbytes' is made, what is refused, and what the plan counts."""

import importlib.util

import fake_bitsandbytes
import pytest
import torch
from small_runs import SMALL_GRPO, composed, run_small, weights

from edge_grpo.algorithms.quantized import QuantizedAdamW
from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.planning.passes import optimizer_step
from edge_grpo.planning.skeleton import total_bytes
from edge_grpo.programs.train_run import build_algorithm

HERE = importlib.util.find_spec("bitsandbytes") is not None


def adamw(bits=8, paged=False):
    return QuantizedAdamW(1e-3, [0.9, 0.95], 1e-8, 0.1, bits, paged)


@pytest.mark.parametrize(
    ("bits", "paged", "name"), [(8, False, "AdamW8bit"), (8, True, "PagedAdamW8bit"), (32, True, "PagedAdamW32bit")]
)
def test_bits_and_paging_choose_the_optimizer(bits, paged, name, monkeypatch):
    fake_bitsandbytes.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = adamw(bits, paged)(iter([torch.nn.Parameter(torch.zeros(3))]))
    assert type(made).__name__ == name
    (group,) = made.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.95), 1e-8, 0.1)


def test_what_is_not_here_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("edge_grpo.algorithms.quantized.find_spec", lambda name: None)
    cfg, _ = composed("train", *SMALL_GRPO, "optimizer=adamw_8bit")
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'edge-grpo\[quantized\]'"):
        build_algorithm(cfg)
    fake_bitsandbytes.install(monkeypatch)
    monkeypatch.setattr("edge_grpo.algorithms.quantized.find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg, _ = composed("train", *SMALL_GRPO, "optimizer=paged_adamw")
    with pytest.raises(UserError, match=r"optimizer\.paged=true but torch sees no GPU"):
        build_algorithm(cfg)
    with pytest.raises(UserError, match=r"optimizer\.bits=32 optimizer\.paged=False is plain AdamW"):
        adamw(32, False)


def test_the_plan_counts_the_state_by_hand():
    sizes = [torch.empty(5000, device="meta"), torch.empty(4095, device="meta")]
    # Two moments: of the first a byte a number and a float for each of 20 blocks of 256, of the second four bytes.
    assert adamw().state_bytes(sizes) == 2 * (5000 + 4 * 20) + 2 * 4 * 4095
    assert adamw(32, paged=True).state_bytes(sizes) == 8 * 9095


def test_the_plan_needs_neither_the_package_nor_a_gpu():
    from test_plan import PARAMETERS, model_plan

    step = optimizer_step(model_plan(), adamw(32, paged=True), on_gpu=True)
    shapes = instantiate(composed("train", "optimizer=paged_adamw")[0].optimizer)
    assert shapes.paged
    assert step.moment == 0
    assert step.state == 8 * PARAMETERS


@pytest.mark.skipif(not HERE, reason="needs bitsandbytes")
def test_a_run_with_8_bits_resumes_bit_for_bit(tmp_path):
    """Weights of 32 * 261 numbers are quantised."""
    settings = ("experiment=vanilla", "optimizer=adamw_8bit", "optimizer.lr=0.01")
    whole = run_small(tmp_path / "whole", *settings)
    run_small(tmp_path / "parts", *settings, "trainer.max_iterations=1")
    parts = run_small(tmp_path / "parts", *settings)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(parts)[name])


@pytest.mark.skipif(not HERE, reason="needs bitsandbytes")
def test_the_state_takes_what_the_plan_says():
    parameters = [torch.nn.Parameter(torch.randn(n)) for n in (5000, 4095)]
    optimizer = adamw()(parameters)
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    state = [
        x for of in optimizer.state.values() for name, x in of.items() if torch.is_tensor(x) and "qmap" not in name
    ]
    assert total_bytes(state) == adamw().state_bytes(parameters)
