"""Configs held against the signatures of small targets that stand in this module."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import pytest
from omegaconf import OmegaConf

from edge_grpo.command_line.check import check_config, instantiate, to_dict
from edge_grpo.errors import UserError


class Grader(Protocol):
    def __call__(self, text: str) -> float: ...


class Algorithm:
    def __init__(
        self,
        num_generations: int,
        clamp: float | None = None,
        mode: Literal["mean", "sum"] = "mean",
        names: Sequence[str] = (),
        betas: tuple[float, float] = (0.9, 0.95),
        weights: Mapping[str, float] | None = None,
        shuffle: bool = False,
        rewards: Mapping[str, Grader] | None = None,
        grader: Grader | float | None = None,
        generate: Callable[[int], int] | None = None,
    ) -> None:
        if num_generations < 2:
            raise UserError(f"num_generations must be at least 2, got {num_generations}")
        self.names, self.weights, self.generate, self.grader = names, weights, generate, grader


class Part:
    def __init__(self, size: int, owner: object) -> None:
        if size < 0:
            raise ValueError(f"size {size} is negative")
        self.size, self.owner = size, owner


def anything(**kwargs: Any) -> dict[str, Any]:
    return kwargs


def documented(size: ["bytes"]) -> None:
    """Its annotation is a remark, which is no type and has no hash."""


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ModuleType("toy")
    toy.__dict__.update(Algorithm=Algorithm, Part=Part, anything=anything, documented=documented, NUMBER=3)
    for thing in (Algorithm, Part, anything, documented):
        monkeypatch.setattr(thing, "__module__", "toy")
    monkeypatch.setitem(sys.modules, "toy", toy)


def config(**algorithm: Any) -> Any:
    node = {"_target_": "toy.Algorithm", "num_generations": 4, **algorithm}
    return OmegaConf.create({"seed": 0, "allowed_targets": ["toy"], "algorithm": node})


ACCEPTED = [
    {"clamp": 3},  # an int is a float
    {"clamp": None},
    {"clamp": float("inf")},
    {"mode": "sum"},
    {"names": ["a", "b"]},
    {"betas": [0.9, 1]},  # YAML has lists only
    {"weights": {"accuracy": 1}},
    {"grader": {"_target_": "toy.anything", "any": 3}},
    {"grader": {"_target_": "toy.documented", "size": "large"}},
    {"rewards": {"accuracy": {"_target_": "toy.anything"}}},
    {"rewards": {"accuracy": 3}},  # no validator for a Protocol within a container: not judged
    {"num_generations": "${seed_of_all}"},
]


@pytest.mark.parametrize("values", ACCEPTED)
def test_accepted(values: dict[str, Any]) -> None:
    cfg = config(**values)
    cfg.seed_of_all = 5
    check_config(cfg)


REFUSED = [
    ({"num_generations": "abc"}, "algorithm.num_generations=abc: expected a whole number"),
    ({"num_generations": "3"}, 'algorithm.num_generations="3": expected a whole number'),
    ({"num_generations": 3.0}, "algorithm.num_generations=3.0: expected a whole number"),
    ({"num_generations": None}, "algorithm.num_generations=null: expected a whole number"),
    ({"num_generations": True}, "algorithm.num_generations=true: expected a whole number"),
    ({"clamp": True}, "algorithm.clamp=true: expected a number or null"),
    ({"clamp": "None"}, "algorithm.clamp=None: null is written null, not None"),
    ({"shuffle": 1}, "algorithm.shuffle=1: expected true or false"),
    ({"mode": "median"}, "algorithm.mode=median: expected mean or sum"),
    ({"mode": ["mean"]}, "algorithm.mode=[mean]: expected mean or sum"),
    ({"names": "abc"}, "algorithm.names=abc: expected a list of texts"),
    ({"betas": [0.9]}, "algorithm.betas=[0.9]: expected a list of 2 numbers"),
    ({"weights": {"a": "b"}}, "algorithm.weights={a:b}: expected a mapping of names to numbers or null"),
    ({"grader": "abc"}, "algorithm.grader=abc: expected a mapping whose _target_ is a Grader, a number or null"),
    (
        {"clmp": 3},
        "algorithm.clmp: toy.Algorithm has no argument 'clmp'; did you mean algorithm.clamp?",
    ),
    (
        {"grader": {"_target_": "toy.Part", "sizes": 1}},
        "algorithm.grader.sizes: toy.Part has no argument 'sizes'; did you mean algorithm.grader.size?",
    ),
    ({"grader": {"_target_": "toy.Part", "size": 1}}, "algorithm.grader.owner not given: toy.Part needs it"),
    ({"_target_": "toy.NUMBER"}, "algorithm._target_=toy.NUMBER: not a class or function"),
    (
        {"_target_": "os.system"},
        "algorithm._target_=os.system: only targets under edge_grpo, torch, pytorch_lightning, transformers, toy "
        "are built; if you trust it, add its module: allowed_targets=[os]",
    ),
    ({"clamp": "???"}, "algorithm.clamp not given: set algorithm.clamp=..."),
    ({"clamp": "${nowhere}"}, "algorithm.clamp: Interpolation key 'nowhere' not found"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(config(**values))
    assert str(caught.value).replace(f"{__name__}.", "test_config.") == message


def test_a_value_is_refused_under_the_key_that_it_was_typed_for() -> None:
    cfg = config(num_generations="${middle}")
    cfg.update(seed="abc", middle="${seed}")
    with pytest.raises(UserError, match=r"^seed=abc: expected a whole number$"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("target", "home"),
    [
        ("torch.os.system", "posix"),
        ("torch.sys.setrecursionlimit", "sys"),
        ("torch.sys.modules.clear", "no module"),
        ("edge_grpo.runs.provenance.subprocess.run", "subprocess"),
        ("edge_grpo.runs.provenance.subprocess.Popen", "subprocess"),
        ("transformers.utils.logging.os.system", "posix"),
        ("pytorch_lightning.trainer.trainer.os.system", "posix"),
        ("torch.functools.partial", "functools"),
    ],
)
def test_a_target_that_only_passes_through_an_allowed_module_is_refused(target: str, home: str) -> None:
    message = rf"algorithm\._target_={target}: is defined in {home}, and only targets under edge_grpo, torch, "
    with pytest.raises(UserError, match=message):
        check_config(config(_target_=target))


def test_what_lightning_hands_on_may_be_built() -> None:
    check_config(OmegaConf.create({"x": {"_target_": "pytorch_lightning.plugins.environments.SLURMEnvironment"}}))


def test_a_target_that_cannot_be_imported_is_refused() -> None:
    for target in ("toy.Missing", "edge_grpo.nowhere.X", "toy..X"):
        with pytest.raises(UserError, match=rf"algorithm\._target_={target}: Error loading"):
            check_config(config(_target_=target))


def test_a_module_of_ones_own_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    (tmp_path / "of_my_own.py").write_text("class Rank:\n    pass\n")
    monkeypatch.delitem(sys.modules, "of_my_own", raising=False)
    node = {"_target_": "of_my_own.Rank"}
    with pytest.raises(UserError, match=r"allowed_targets=\[of_my_own\]"):  # trust is asked for as before
        check_config(OmegaConf.create({"x": node, "allowed_targets": []}))
    assert "of_my_own" not in sys.modules
    check_config(OmegaConf.create({"x": node, "allowed_targets": ["of_my_own"]}))
    cfg = OmegaConf.create({"x": {"_target_": "of_nobody.Rank"}, "allowed_targets": ["of_nobody"]})
    message = rf"x\._target_=of_nobody\.Rank: no module of_nobody in {tmp_path}, on PYTHONPATH or installed"
    with pytest.raises(UserError, match=message):
        check_config(cfg)


def test_what_the_program_passes_is_not_required_and_not_configurable() -> None:
    cfg = config(grader={"_target_": "toy.Part", "size": 1})
    injected = {"algorithm.grader": frozenset({"owner"})}
    check_config(cfg, injected)
    check_config(config(grader={"_target_": "toy.Part", "size": 1, "_partial_": True}))
    cfg.algorithm.grader.owner = "me"
    with pytest.raises(UserError, match=r"algorithm\.grader\.owner: the program sets this itself; remove it"):
        check_config(cfg, injected)


def test_targets_in_lists_are_checked() -> None:
    cfg = OmegaConf.create({"allowed_targets": ["toy"], "parts": [{"_target_": "toy.Part", "size": "x", "owner": 1}]})
    with pytest.raises(UserError, match=r"parts\.0\.size=x: expected a whole number"):
        check_config(cfg)


def test_a_number_beside_a_tensor_type_is_still_checked() -> None:
    node = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-5, "betas": [0.9, 0.95]}
    check_config(OmegaConf.create({"optimizer": node}))
    with pytest.raises(UserError, match=r"optimizer\.lr=abc: expected a number"):
        check_config(OmegaConf.create({"optimizer": {**node, "lr": "abc"}}))


def test_instantiate_hands_over_plain_containers_and_the_very_objects() -> None:
    generate = [1].append
    made = instantiate(config(names=["a"], weights={"x": 1.0}).algorithm, generate=generate)
    assert (type(made.names), type(made.weights)) == (list, dict)
    assert made.generate is generate


def test_instantiate_keeps_a_partial_partial() -> None:
    owner = object()
    make = instantiate(OmegaConf.create({"_target_": "toy.Part", "_partial_": True}), owner=owner)
    assert make(size=3).owner is owner


def test_instantiate_builds_a_mapping_of_targets() -> None:
    made = instantiate(OmegaConf.create({"a": {"_target_": "toy.anything", "x": [1]}}))
    assert made == {"a": {"x": [1]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_generations": 1}, "algorithm: num_generations must be at least 2, got 1"),
        ({"grader": {"_target_": "toy.Part", "size": -1, "owner": 0}}, "algorithm.grader: size -1 is negative"),
    ],
)
def test_a_constructors_refusal_names_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        instantiate(config(**values).algorithm)
    assert str(caught.value) == message


def test_to_dict_resolves() -> None:
    assert to_dict(OmegaConf.create({"a": 1, "b": {"c": "${a}"}, "p": Path("x")})) == {
        "a": 1,
        "b": {"c": 1},
        "p": Path("x"),
    }


@pytest.mark.parametrize("reader", ["a", "z"])  # met before or after the missing value itself
def test_a_missing_value_that_others_read_is_named_itself(reader: str) -> None:
    with pytest.raises(UserError, match=r"^data\.path not given: set data\.path=\.\.\.$"):
        to_dict(OmegaConf.create({reader: {"x": "${data.path}"}, "data": {"path": "???"}}))
