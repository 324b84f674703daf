"""Functions that the user names as text, found without importing torch: a grading worker loads them too."""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edge_grpo.errors import UserError, nearest

EXPECTED = "module:function or path/to/file.py:function"


def module_of(source: str) -> ModuleType:
    """The module of that name or, where the text ends in `.py`, of that file.

    A file's module is kept under its path, so that two files of one name are two modules.
    """
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source).resolve()
    name = f"_reward_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def load(name: str) -> Callable[..., Any]:
    """The function that `module:function` or `path/to/file.py:function` names.

    Modules are found in the working directory too, behind all of `sys.path`, and a file's neighbours beside it.

    Raises:
        UserError: no such module, file or function, an import that fails, or what is found is no function.
    """
    source, colon, attribute = name.rpartition(":")
    if not (colon and source and attribute):
        raise UserError(f"reward function {name!r}: expected {EXPECTED}")
    folder = os.getcwd()
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise UserError(f"reward function {name}: no file {source} (the working directory is {folder})")
        folder = str(Path(source).resolve().parent)
    if folder not in (entry or os.getcwd() for entry in sys.path):
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        module = module_of(source)
    except ModuleNotFoundError as error:
        if error.name is None or not (source == error.name or source.startswith(f"{error.name}.")):
            raise _import_failed(name, source, error) from error
        near = nearest(source, [path.stem for path in Path(folder).glob("*.py")])
        hint = f"did you mean {near}:{attribute}?" if near else f"expected {EXPECTED}"
        raise UserError(
            f"reward function {name}: no module {source} in {folder}, on PYTHONPATH or installed; {hint}"
        ) from error
    except Exception as error:
        raise _import_failed(name, source, error) from error
    return _function(name, module, attribute)


def one_line(text: str, limit: int) -> str:
    """The first characters on one line, without those that a terminal obeys: a model may have written them.

    >>> one_line("two\\nlines \\x1b[2J", 80)
    'two lines [2J'
    """
    return "".join(filter(str.isprintable, " ".join(text.split())))[:limit]


def raised(error: BaseException, file: str | None = None) -> str:
    """What was raised and where, in one line of at most some 400 characters.

    Args:
        error: as it was caught.
        file: the last line of this file is the place; None, or where it has none, the line that raised.

    >>> raised(ValueError("two\\nlines"))
    'raised ValueError: two lines'
    """
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    place = next((line for line in reversed(lines) if line[0] == file), lines[-1] if lines else None)
    where = f" ({os.path.basename(place[0])}:{place[1]})" if place else ""
    text = one_line(str(error), 300)
    return f"raised {type(error).__name__}{': ' if text else ''}{text}{where}"


def _import_failed(name: str, source: str, error: Exception) -> UserError:
    return UserError(f"reward function {name}: importing {source} {raised(error)}")


def _function(name: str, module: ModuleType, attribute: str) -> Callable[..., Any]:
    found: Any = getattr(module, attribute, None)
    if found is None:
        ours = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        near = nearest(attribute, ours)
        hint = f"did you mean {near}?" if near else f"it defines {', '.join(ours) or 'no function'}"
        raise UserError(f"reward function {name}: {module.__file__ or module.__name__} has no {attribute}; {hint}")
    if isinstance(found, type) or not callable(found):
        what = "a class: name a function, or an object that the module holds" if callable(found) else "no function"
        raise UserError(f"reward function {name}: {attribute} is {what}")
    return found
