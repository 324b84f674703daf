"""`python -m edge_grpo.programs.config_page` prints the config reference: every setting of conf/ and what it means.

Types come from the constructors' annotations and meanings from their docstrings (`Args:`); where a setting is no
constructor's argument, from the comment beside it in the YAML file. A test refuses a setting without a meaning.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import hydra.utils
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from edge_grpo.command_line.check import INSTANTIATE_KEYS, type_hints
from edge_grpo.command_line.describe import argument_docs, body_of, comments, head, words
from edge_grpo.command_line.resolvers import config_dir

PROGRAMS = ("train", "evaluate", "difficulty", "plan", "analyze", "report", "dashboard")
ONLY_CHANGES = ("debug", "experiment", "hparams_search")
"""groups whose options change settings of other groups and have none of their own"""
TARGETS = {"evaluation": "edge_grpo.evaluation.periodic.PeriodicEvaluation"}
"""of groups whose target stands in the program's file"""
KINDS = {
    "allowed_targets": list[str],
    "directory": str | None,
    "entity": str | None,
    "from_file": str | None,
    "iterations": list[int] | None,
    "plan.memory_gb": float | None,
    "precision": str | None,
    "report": str | None,
    "run": str | None,
    "wandb.entity": str | None,
    "wandb.group": str | None,
}
"""types of settings that are no constructor's argument and whose default does not show them"""
INTRODUCTION = """\
# Settings

Every setting of `conf/` with its type, its default and its meaning; a meaning names the unit where there is one. This
page is made from the constructors' annotations and docstrings and from the YAML files, so it cannot fall behind them.

```bash
edge-grpo-train experiment=edge_grpo advantage.clamp=4    # a setting
edge-grpo-train advantage=vanilla                         # another option of a group
edge-grpo-train advantage=vanilla --cfg job               # the whole config that this comes to, without a run
```

A default like `${rollout.max_new_tokens}` follows another setting. Where options of a group differ, the table names the
option before its value. `null` means that there is none; *must be given* means that there is no default."""


@dataclass(frozen=True)
class Setting:
    """A row of the reference.

    Args:
        key: dotted, below the group or the program.
        kind: its type in words.
        defaults: option of the group -> its value as it stands in YAML.
        meaning: one line; empty where nothing says it.
    """

    key: str
    kind: str
    defaults: Mapping[str, str]
    meaning: str


@dataclass(frozen=True)
class Family:
    """Options of a group that build the same class.

    Args:
        target: the class or function, dotted; empty for options that build several things or none.
        options: option -> the comment at the head of its file.
        settings: of all these options.
    """

    target: str
    options: Mapping[str, str]
    settings: tuple[Setting, ...]


def groups() -> list[str]:
    """Config groups of this project, as they are typed; Hydra's own are in Hydra's manual."""
    folders = {file.parent.relative_to(config_dir()).as_posix() for file in config_dir().rglob("*.yaml")}
    return sorted(folder for folder in folders if folder != "." and not folder.startswith("hydra"))


@cache
def families(group: str) -> tuple[Family, ...]:
    """The options of a group, those that build the same thing together."""
    files = {file.stem: file for file in sorted((config_dir() / group).glob("*.yaml"))}
    heads = {option: head(file) for option, file in files.items()}
    if group in ONLY_CHANGES:
        return (Family("", heads, ()),)
    found: dict[str, Family] = {}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for option, file in files.items():
            node = _composed(group, option)
            target = str(node.get("_target_", ""))
            family = found.get(target, Family(target, {}, ()))
            settings = _merged(family.settings, settings_of(node, comments(file), option))
            found[target] = Family(target, {**family.options, option: heads[option]}, settings)
    return tuple(found.values())


def _merged(before: tuple[Setting, ...], more: list[Setting]) -> tuple[Setting, ...]:
    merged = {setting.key: setting for setting in before}
    for setting in more:
        known = merged.get(setting.key, setting)
        defaults = {**known.defaults, **setting.defaults}
        merged[setting.key] = replace(known, defaults=defaults, meaning=known.meaning or setting.meaning)
    # A callback that an option switches off is no setting of its own.
    return tuple(s for s in merged.values() if not any(key.startswith(f"{s.key}.") for key in merged))


def _composed(group: str, option: str) -> dict[str, Any]:
    """An option alone, interpolations as they were written."""
    node: Any = OmegaConf.to_container(compose(f"{group}/{option}"), resolve=False)
    for part in group.split("/"):
        node = node[part] or {}
    return {"_target_": TARGETS[group], **node} if group in TARGETS else node


def own_settings(program: str) -> list[Setting]:
    """The settings that stand in a program's file, those below a group excepted."""
    file = config_dir() / f"{program}.yaml"
    cfg = yaml.safe_load(file.read_text())
    named = {"defaults", "hydra", *groups()} if program != "dashboard" else {"defaults", "hydra"}
    return settings_of({key: value for key, value in cfg.items() if key not in named}, comments(file), program)


def settings_of(node: Mapping[str, Any], said: Mapping[str, str], option: str, prefix: str = "") -> list[Setting]:
    """The settings of a node of the config and of what it builds.

    Args:
        node: plain, perhaps with `_target_`.
        said: dotted key -> comment.
        option: whose values these are.
        prefix: of the keys.
    """
    docs: dict[str, str] = {}
    hints: dict[str, Any] = {}
    if "_target_" in node:
        target = located(node["_target_"])
        docs, hints = argument_docs(target), type_hints(target)
    found: list[Setting] = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name in INSTANTIATE_KEYS:
            continue
        if isinstance(value, dict) and ("_target_" in str(value) or (value and "_target_" not in node)):
            found += settings_of(value, said, option, f"{key}.")
            continue
        kind = words(hints[name] if name in hints else KINDS.get(key, type(value)))
        found.append(Setting(key, kind, {option: shown(value)}, docs.get(name) or said.get(key, "")))
    return found


def located(target: str) -> Callable[..., Any]:
    """The class or function that a `_target_` of ours names."""
    found: Callable[..., Any] = hydra.utils.get_object(target)
    return found


def shown(value: Any) -> str:
    """A value as it stands in YAML.

    >>> shown(None), shown(0.0001), shown("???"), shown([1, "a"]), shown(True), shown("")
    ('null', '0.0001', 'must be given', '[1, a]', 'true', "''")
    """
    if value == "???":
        return "must be given"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()


def as_markdown() -> str:
    """The page."""
    lines = [INTRODUCTION, "", "## Programs", ""]
    for program in PROGRAMS:
        settings = own_settings(program)
        if settings:
            lines += [f"### `edge-grpo-{program}`", "", *_table(settings, (program,)), ""]
    for group in groups():
        lines += [f"## `{group}`", ""]
        for family in families(group):
            lines += [*_family_lines(family), ""]
    return "\n".join(lines).rstrip() + "\n"


def _family_lines(family: Family) -> Iterator[str]:
    names = ", ".join(f"`{option}`" for option in family.options)
    yield f"#### {names}"
    yield ""
    if family.target:
        yield f"`{family.target}`"
        yield ""
        yield body_of(located(family.target))
        yield ""
    heads = [f"- `{option}`: {_cell(text)}" for option, text in family.options.items() if text]
    yield from heads
    yield from [""] if heads else []
    yield from _table(family.settings, tuple(family.options)) if family.settings else ["No settings."]


def _table(settings: tuple[Setting, ...] | list[Setting], options: tuple[str, ...]) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for setting in settings:
        yield f"| `{setting.key}` | {_cell(setting.kind)} | {_defaults(setting, options)} | {_cell(setting.meaning)} |"


def _defaults(setting: Setting, options: tuple[str, ...]) -> str:
    """One value where all options agree, else each value with its options."""
    by_value: dict[str, list[str]] = {}
    for option in options:
        if option in setting.defaults:
            by_value.setdefault(setting.defaults[option], []).append(option)
    values = {value: value if value == "must be given" else f"`{_cell(value)}`" for value in by_value}
    if len(by_value) == 1 and len(setting.defaults) == len(options):
        return next(iter(values.values()))
    return "; ".join(f"{', '.join(names)}: {values[value]}" for value, names in by_value.items())


def _cell(text: str) -> str:
    """Text for a table's cell: no column ends in it, and outside of code no tag and no emphasis begins.

    >>> print(_cell("a|b <c> `<d>` _e_ f_g"))
    a\\|b &lt;c> `<d>` \\_e\\_ f_g
    """
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", part.replace("<", "&lt;")) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    print(as_markdown(), end="")
