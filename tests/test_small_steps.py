"""bfloat16 weights and small steps: AdamW that keeps what rounding takes, on the device or in RAM."""

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.optimizer import _optimizer_to_device
from small_runs import SMALL_GRPO, composed, equal_weights, run_small, weights
from test_plan import PARAMETERS, model_plan
from test_plan import settings as settings_of

from edge_grpo.algorithms import kahan, offloaded
from edge_grpo.algorithms.kahan import KahanAdamW
from edge_grpo.algorithms.offloaded import HostAdamW, OffloadedAdamW
from edge_grpo.algorithms.schedules import take_settings
from edge_grpo.errors import UserError
from edge_grpo.planning.passes import optimizer_step
from edge_grpo.planning.plan import make_plan
from edge_grpo.planning.skeleton import total_bytes
from edge_grpo.planning.text import summary, table
from edge_grpo.programs.train_run import build_algorithm

HERE = importlib.util.find_spec("optimi") is not None
needs_optimi = pytest.mark.skipif(not HERE, reason="needs torch-optimi")
KINDS = [pytest.param(KahanAdamW, marks=needs_optimi), OffloadedAdamW]
NAMES = [pytest.param("adamw_kahan", marks=needs_optimi), "adamw_offload"]


def made(kind, params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0):
    decay = {"weight_decay": weight_decay} if kind is OffloadedAdamW else {}
    return kind(lr=lr, betas=betas, eps=1e-8, **decay)(params)


def stepped(optimizer, steps, gradient=None):
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p) if gradient is None else gradient(p)
        optimizer.step()


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda p: torch.randn(p.shape, generator=generator).to(p.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_weight_goes_as_far_as_a_float32_one(kind):
    # Of a gradient of 1 each mean and each root is 1, so a step is lr / (1 + eps), and 1,000 of them are 1e-3.
    # Below 2^-6 bfloat16 has steps of 2^-14 = 6.1e-5: plain AdamW rounds each step back to where it was.
    start = torch.full((3,), 2.0**-6)
    weight, plain = (torch.nn.Parameter(start.bfloat16()) for _ in range(2))
    stepped(made(kind, [weight]), 1000)
    stepped(torch.optim.AdamW([plain], lr=1e-6, weight_decay=0.0), 1000)
    assert torch.equal(plain.float(), start)
    torch.testing.assert_close(weight.detach().float(), start - 1e-3, rtol=0, atol=2.0**-14)
    assert weight.dtype is torch.bfloat16


@needs_optimi
def test_a_second_bfloat16_number_holds_so_much_and_no_more():
    # 8 bits of the weight and 8 of the rest: beside 1 a sum of steps of 1e-6 ends at 2^-12, where bfloat16 has steps of
    # 2^-19 = 1.9e-6, and the weight's next value is 2^-8 away. In RAM it goes on.
    weight, offloaded_weight = (torch.nn.Parameter(torch.ones(2).bfloat16()) for _ in range(2))
    stepped(made(KahanAdamW, [weight]), 4000)
    stepped(made(OffloadedAdamW, [offloaded_weight]), 4000)
    assert torch.equal(weight.float(), torch.ones(2))
    assert torch.equal(offloaded_weight.float(), torch.full((2,), 1 - 2.0**-8))


def test_weight_decay_is_no_rounding_error_either():
    # Without a gradient worth the name: 1,000 steps take the share 1e-3 * 0.1 each, exp(-0.1) is left.
    weight = torch.nn.Parameter(torch.ones(3).bfloat16())
    stepped(made(OffloadedAdamW, [weight], lr=1e-3, weight_decay=0.1), 1000, lambda p: torch.full_like(p, 1e-30))
    torch.testing.assert_close(weight.detach().float(), torch.full((3,), 0.904792), rtol=0, atol=2.0**-8)


def test_offloaded_steps_are_those_of_torchs_fused_adamw():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,), (7,), (2, 2))]
    theirs = deepcopy(ours)
    optimizer = made(OffloadedAdamW, ours, lr=0.01, weight_decay=0.1)
    expected = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for rate in (0.01, 0.02):
        for o, gradient in ((optimizer, noise(1)), (expected, noise(1))):
            o.param_groups[0]["lr"] = rate  # as a schedule sets it
            stepped(o, 3, gradient)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_parameter_without_a_gradient_stays_and_a_closure_is_called():
    moved, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = made(OffloadedAdamW, [still, moved], lr=0.1)

    def closure():
        loss = moved.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    torch.testing.assert_close(moved.detach(), torch.full((2,), 0.9))
    assert torch.equal(still.detach(), torch.ones(2))
    assert list(optimizer.state_dict()["state"]) == [1]


def test_the_state_in_ram_is_neither_moved_nor_rounded(tmp_path):
    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.randn(64).bfloat16())
    optimizer = made(OffloadedAdamW, [first], lr=1e-4)
    stepped(optimizer, 5, noise(1))
    torch.save(optimizer.state_dict(), tmp_path / "state")
    second = torch.nn.Parameter(first.detach().clone())
    loaded = made(OffloadedAdamW, [second], lr=1.0)
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    # As Lightning does when it has restored one; on a GPU this would bring the state there.
    _optimizer_to_device(loaded, torch.device("meta"))
    (kept,) = loaded.state_dict()["state"].values()
    assert {name: value.dtype for name, value in kept.items()} == dict.fromkeys(kept, torch.float32)
    assert (kept["master"] != kept["master"].bfloat16()).any()
    stepped(optimizer, 5, noise(2))
    stepped(loaded, 5, noise(2))
    assert torch.equal(first, second)
    after = loaded.state_dict()["state"][0]
    assert all(torch.equal(value, after[name]) for name, value in optimizer.state_dict()["state"][0].items())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_bits(name, precision, tmp_path):
    settings = ("experiment=vanilla", f"optimizer={name}", "optimizer.lr=1e-4", f"trainer.precision={precision}")
    settings += ("reward=python", f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum")
    straight = run_small(tmp_path / "whole", *settings, "trainer.max_iterations=3")
    run_small(tmp_path / "parts", *settings, "trainer.max_iterations=1")
    parts = run_small(tmp_path / "parts", *settings, "trainer.max_iterations=3")
    assert equal_weights(weights(straight), weights(parts))
    plain = [s.replace(f"optimizer={name}", "optimizer=adamw") for s in settings]
    other = run_small(tmp_path / "plain", *plain, "trainer.max_iterations=3")
    if precision == "bf16-true":
        assert not equal_weights(weights(straight), weights(other))


@needs_optimi
def test_changed_betas_hold_after_a_resume():
    weight = torch.nn.Parameter(torch.ones(3).bfloat16())
    before, now = made(KahanAdamW, [weight]), made(KahanAdamW, [weight], betas=(0.8, 0.9))
    stepped(before, 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(now, lambda _: 1.0)
    checkpoint = {"lr_schedulers": [{"last_epoch": 2}], "optimizer_states": [before.state_dict()]}
    take_settings(checkpoint, now, schedule)
    now.load_state_dict(checkpoint["optimizer_states"][0])
    (group,) = now.param_groups
    assert (group["beta1"], group["beta2"], int(group["step"])) == (0.8, 0.9, 2)


# What is refused, and the plan


def test_a_second_beta_that_stands_still_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.betas=\[0\.9, 0\.999\].*optimizer=adamw_offload"):
        made(KahanAdamW, [], betas=[0.9, 0.999])


def test_the_package_is_asked_for_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(kahan, "find_spec", lambda name: None)
    cfg, _ = composed("train", *SMALL_GRPO, "optimizer=adamw_kahan")
    with pytest.raises(UserError, match=r"needs torch-optimi: pip install 'edge-grpo\[kahan\]'"):
        build_algorithm(cfg)


def test_too_little_ram_is_told_before_any_is_taken(monkeypatch):
    monkeypatch.setattr(offloaded, "device_memory", lambda device: 10**9)
    with pytest.raises(UserError, match=r"takes 24\.6 GB of RAM and here are 1\.0"):
        # 12 bytes of state and two gradients of 4, of the largest tensor.
        made(OffloadedAdamW, [torch.empty(10**9, dtype=torch.bfloat16, device="meta")])


@needs_optimi
def test_the_state_takes_what_the_plan_says():
    params = [torch.nn.Parameter(torch.zeros(n, dtype=d)) for n, d in ((50, torch.bfloat16), (30, torch.float32))]
    # Two moments and a rest of 2 bytes; two moments of 4 bytes.
    expected = 3 * 2 * 50 + 2 * 4 * 30
    optimizer = made(KahanAdamW, params)
    stepped(optimizer, 1)
    kept = [value for of in optimizer.state.values() for value in of.values() if torch.is_tensor(value)]
    factory = KahanAdamW(1e-3, [0.9, 0.95], 1e-8)
    assert factory.state_bytes(params) == total_bytes(kept) == expected


def test_the_plan_puts_offloaded_state_into_ram():
    largest = 800  # numbers of the embedding: two places each way of 2,048 bytes, and its gradient in float32
    factory = OffloadedAdamW(1e-3, [0.9, 0.95], 1e-8, 0.0)
    step = optimizer_step(model_plan(dtype="bfloat16"), factory, on_gpu=True)
    assert (step.state, step.moment, step.host) == (12 * PARAMETERS, 0, 12 * PARAMETERS + 4 * 2048 + 4 * largest)
    on_gpu = make_plan(settings_of("optimizer=adamw_offload", "trainer.accelerator=gpu"))
    parts = {part.name: part.bytes for part in on_gpu.parts}
    assert set(parts["optimizer"].values()) == {0}
    assert on_gpu.host > 12 * on_gpu.trained
    assert "RAM " in table(on_gpu, "somewhere")
    assert "of RAM for the optimizer" in summary(on_gpu, None)
    assert on_gpu.checkpoint == 4 * on_gpu.parameters + 12 * on_gpu.trained
    here = make_plan(settings_of("optimizer=adamw_offload", "trainer.accelerator=cpu"))
    parts = {part.name: part.bytes for part in here.parts}
    assert (set(parts["optimizer"].values()), here.host) == ({12 * here.trained}, 0)
    assert "RAM " not in table(here, "somewhere")


def test_the_optimizer_is_made_of_its_settings():
    optimizer = made(OffloadedAdamW, [torch.nn.Parameter(torch.zeros(2))], lr=0.3, weight_decay=0.2)
    assert isinstance(optimizer, HostAdamW)
    assert optimizer.defaults == {"lr": 0.3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.2}
