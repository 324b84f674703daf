"""The config is the constructor: check it against the constructors before anything is built, then build from it."""

import functools
import inspect
import json
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

from edge_grpo.command_line.words import NULL, as_typed, in_words
from edge_grpo.errors import UserError, nearest

ALLOWED_TARGETS = ("edge_grpo", "torch", "pytorch_lightning", "transformers")
# Where classes that pytorch_lightning hands on are defined.
HANDED_ON = ("lightning_fabric",)
INSTANTIATE_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
NOTHING_INJECTED: Mapping[str, frozenset[str]] = {}


def one_line(error: BaseException) -> str:
    """The message of a Hydra or OmegaConf error, and of its cause, without line breaks and search paths."""
    text = str(error).partition("\nConfig search path")[0].partition("\nSee https://")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and "object_type=" not in line]
    message = " ".join(lines)
    cause = error.__cause__
    if cause is not None and str(cause) and str(cause) not in str(error):
        message = f"{message}: {one_line(cause)}" if message else one_line(cause)
    return message


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """The config as a plain dict, every interpolation resolved.

    Raises:
        UserError: a mandatory value (`???`) is missing, or an interpolation does not resolve.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        plain = OmegaConf.to_container(cfg, resolve=True)
    except InterpolationToMissingValueError as error:
        key = str(error).splitlines()[0].rpartition(" ")[2]
        raise UserError(f"{key} not given: set {key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if missing:
        raise UserError(f"{', '.join(missing)} not given: set {' '.join(f'{key}=...' for key in missing)}")
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def find_allowed(cfg: DictConfig) -> None:
    """Find the modules of `allowed_targets` in the working directory too, as `reward.function` does."""
    here = os.getcwd()
    if cfg.get("allowed_targets") and here not in (entry or here for entry in sys.path):
        sys.path.append(here)  # behind all others: nothing installed is hidden by it


class _WrongValue(UserError):
    """A value that its annotation refuses.

    Args:
        key: dotted.
        problem: what follows the key.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}={problem}")
        self.key, self.problem = key, problem


def check_config(
    cfg: DictConfig,
    injected: Mapping[str, frozenset[str]] = NOTHING_INJECTED,
    trusted: tuple[str, ...] = ALLOWED_TARGETS,
) -> None:
    """Hold every mapping with `_target_` against its target's signature; import the targets, build nothing.

    Args:
        cfg: the job's config, without the `hydra` node; its list `allowed_targets` names further module prefixes.
        injected: dotted config key -> names of the arguments that the code passes itself.
        trusted: module prefixes whose targets may be built.

    Raises:
        UserError: a target that may not or cannot be imported, an argument that the target does not take or that
            is missing, or a value that its annotation refuses.
    """
    plain = to_dict(cfg)
    allowed = (*trusted, *(plain.get("allowed_targets") or ()))
    find_allowed(cfg)
    try:
        _walk(plain, "", allowed, injected)
    except _WrongValue as error:
        raise UserError(f"{_origin(cfg, error.key)}={error.problem}") from error


def _origin(cfg: DictConfig, key: str) -> str:
    """The key that holds the value: of `${seed}`, seed."""
    *parents, name = key.split(".")
    try:
        node = OmegaConf.select(cfg, ".".join(parents)) if parents else cfg
        raw = OmegaConf.to_container(node, resolve=False)
    except (OmegaConfBaseException, ValueError):
        return key
    found = re.fullmatch(r"\$\{([\w.]+)\}", str(raw.get(name)) if isinstance(raw, dict) else "")
    return _origin(cfg, found.group(1)) if found and not found.group(1).startswith(".") else key


def _walk(node: Any, key: str, allowed: tuple[str, ...], injected: Mapping[str, frozenset[str]]) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            _check_target(node, key, _import_target(node["_target_"], key, allowed), injected.get(key, frozenset()))
        for name, child in node.items():
            _walk(child, _join(key, name), allowed, injected)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            _walk(child, _join(key, index), allowed, injected)
    elif node == "None":  # no constructor has judged it
        raise UserError(f"{key}=None: {NULL}")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _import_target(target: object, key: str, allowed: tuple[str, ...]) -> Callable[..., Any]:
    name = _join(key, "_target_")
    if not isinstance(target, str) or not _is_under(target, allowed):
        module = str(target).partition(".")[0]
        raise UserError(
            f"{name}={target}: only targets under {', '.join(allowed)} are built; "
            f"if you trust it, add its module: allowed_targets=[{module}]"
        )
    try:
        found = _locate(target)
    except (ImportError, ValueError) as error:
        module = target.partition(".")[0]
        if getattr(_first_cause(error), "name", None) == module and module not in ALLOWED_TARGETS:
            found_in = f"in {os.getcwd()}, on PYTHONPATH or installed"
            raise UserError(f"{name}={target}: no module {module} {found_in}") from error
        raise UserError(f"{name}={target}: {one_line(error)}") from error
    if not callable(found):
        raise UserError(f"{name}={target}: not a class or function")
    # torch.os.system lies under torch in name only.
    home = getattr(found, "__module__", None) or "no module"
    if not _is_under(home, (*allowed, *HANDED_ON)):
        raise UserError(
            f"{name}={target}: is defined in {home}, and only targets under {', '.join(allowed)} are built; "
            f"if you trust it, add its module: allowed_targets=[{home}]"
        )
    return found


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _is_under(name: str, prefixes: Iterable[str]) -> bool:
    """
    >>> _is_under("torch.optim", ["torch"]), _is_under("torchvision", ["torch"])
    (True, False)
    """
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _check_target(node: dict[str, Any], key: str, target: Callable[..., Any], injected: frozenset[str]) -> None:
    try:
        parameters = _parameters(target)
    except ValueError:  # a builtin without a signature: there is nothing to hold the node against
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {name: value for name, value in node.items() if name not in INSTANTIATE_KEYS}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        _refuse_unknown(given, key, node["_target_"], named)
    for name in sorted(injected & given.keys()):
        raise UserError(f"{_join(key, name)}: the program sets this itself; remove it")
    required = {n for n, p in named.items() if p.default is p.empty} - given.keys() - injected
    if required and not node.get("_partial_") and "_args_" not in node:
        missing = [_join(key, name) for name in named if name in required]
        raise UserError(f"{', '.join(missing)} not given: {node['_target_']} needs it")
    hints = type_hints(target)
    for name, value in given.items():
        if name in hints:
            _check_value(_join(key, name), value, hints[name])


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The target's parameters; those of its base classes too where its constructor passes `**kwargs` on to them."""
    parameters = dict(inspect.signature(target).parameters)
    if not inspect.isclass(target):
        return parameters
    for base in _constructors(target)[1:]:
        rest = [name for name, p in parameters.items() if p.kind == inspect.Parameter.VAR_KEYWORD]
        if not rest or base is object:
            break
        del parameters[rest[0]]
        inherited = dict(inspect.signature(vars(base)["__init__"]).parameters)
        if not base.__module__.startswith("edge_grpo."):
            # A library's subclass may pass any of them itself: none is required of the config.
            inherited = {n: p if p.kind in VARIADIC else p.replace(default=None) for n, p in inherited.items()}
        parameters |= {n: p for n, p in inherited.items() if n != "self" and n not in parameters}
    return parameters


def _constructors(target: type) -> list[type]:
    """The classes of the MRO that define a constructor."""
    return [base for base in target.__mro__ if "__init__" in vars(base)]


def _refuse_unknown(given: Mapping[str, Any], key: str, target: str, named: Mapping[str, Any]) -> None:
    for name in given:
        if name not in named:
            near = nearest(name, named)
            hint = f"did you mean {_join(key, near)}?" if near else f"it takes {', '.join(named) or 'nothing'}"
            raise UserError(f"{_join(key, name)}: {target} has no argument {name!r}; {hint}")


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        if not inspect.isclass(target):
            return get_type_hints(target)
        chain = reversed(_constructors(target))
        return {name: hint for base in chain for name, hint in get_type_hints(vars(base)["__init__"]).items()}
    except (NameError, TypeError):  # names imported for type checkers only, or a callable without annotations
        return {}


def _check_value(key: str, value: Any, annotation: Any) -> None:
    if _holds_target(value):
        return
    adapter = _adapter(annotation, scalar=not isinstance(value, dict | list))
    if adapter is None:
        return
    if value == "None" and _takes(adapter, None):
        raise _WrongValue(key, f"None: {NULL}")
    if not _takes(adapter, value):
        raise _WrongValue(key, f"{as_typed(value)}: expected {in_words(annotation)}")


def _takes(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        # As strict JSON: int passes for float and a list for a tuple, but "3" and true pass for no number.
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        return False
    return True


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_holds_target(child) for child in value.values())
    return isinstance(value, list) and any(_holds_target(child) for child in value)


def _adapter(annotation: Any, *, scalar: bool) -> TypeAdapter[Any] | None:
    """A validator for the annotation, None if pydantic cannot build one (Protocols, tensors).

    A scalar is held against those members of a union that can be built, for no scalar is a tensor or a Protocol.
    """
    try:
        hash(annotation)
    except TypeError:
        return _build_adapter(annotation, scalar)
    return _kept_adapter(annotation, scalar)


def _build_adapter(annotation: Any, scalar: bool) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation)
    except (PydanticUserError, PydanticUndefinedAnnotation):
        if not scalar or get_origin(annotation) not in (Union, UnionType):
            return None
    members = [member for member in get_args(annotation) if _adapter(member, scalar=True) is not None]
    return TypeAdapter(functools.reduce(operator.or_, members)) if members else None


_kept_adapter = functools.cache(_build_adapter)
"""building them is most of the time of a check"""


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate` with plain containers, `kwargs` passed by identity, and errors of one line.

    Args:
        node: a mapping with `_target_`, or (without `kwargs`) a mapping of names to such mappings.
        kwargs: arguments for the outermost target.

    Raises:
        UserError: a constructor raised UserError or ValueError; the message begins with the config key.
    """
    key = node._get_full_key(None)
    try:
        return _build(node, kwargs)
    except InstantiationException as error:
        if not isinstance(error.__cause__, UserError | ValueError):
            raise
        inner = re.search(r"full_key: (\S+)", str(error))
        raise _named(inner.group(1) if inner else key, error.__cause__) from error
    except (UserError, ValueError) as error:
        raise _named(key, error) from error


def _build(node: DictConfig, kwargs: dict[str, Any]) -> Any:
    """Hydra merges keyword arguments into the config, which copies them: a model would be held twice.

    So the outermost target is made a partial first and called with them afterwards.
    """
    if "_target_" not in node and not kwargs:
        return hydra.utils.instantiate(node, _convert_="all")
    partial = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
    return functools.partial(partial, **kwargs) if node.get("_partial_") else partial(**kwargs)


def _named(key: str, error: Exception) -> UserError:
    message = str(error)
    return UserError(message if not key or message.startswith(key) else f"{key}: {message}")
