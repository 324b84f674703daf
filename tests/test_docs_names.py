"""The page of settings has a meaning for each, and every setting, option and metric that a page names exists."""

import inspect
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from edge_grpo.command_line.describe import argument_docs, comments
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.programs.config_page import PROGRAMS, as_markdown, families, groups, located, own_settings

REPO = Path(__file__).resolve().parent.parent
GROUPS = {*groups(), "hydra/launcher", "hydra/sweeper"}
PAGES = {
    str(path.relative_to(REPO)): path.read_text()
    for path in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md")))
}
SETTING = re.compile(r"[+~]{0,2}([a-z_]+(?:[./@][a-z_\d./@]+)*)=")
METRIC = re.compile(r"(?:eda|train|collapse|correction|perf|timing_s|verifier|mismatch|allocation|eval|sft)/[\w/*<>@]+")


@pytest.mark.parametrize("group", groups())
def test_every_setting_of_a_group_has_a_meaning_and_a_type(group):
    settings = [setting for family in families(group) for setting in family.settings]
    assert not [s.key for s in settings if not s.meaning or s.meaning.startswith("see `")]
    assert not [s.key for s in settings if s.kind in ("null", "")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_setting_of_a_program_has_a_meaning_and_a_type(program):
    settings = own_settings(program)
    assert not [s.key for s in settings if not s.meaning or s.kind == "null"]


@pytest.mark.parametrize("group", groups())
def test_docstrings_name_no_argument_that_is_not_there(group):
    for target in {located(family.target) for family in families(group) if family.target.startswith("edge_grpo.")}:
        parts = inspect.getmro(target)[:-1] if inspect.isclass(target) else (target,)
        there = {name for part in parts if callable(part) for name in _parameters_of(part)}
        assert set(argument_docs(target)) <= there, target


def _parameters_of(part):
    try:
        return inspect.signature(part).parameters
    except ValueError:  # a class written in C
        return {}


def test_options_of_one_class_share_a_table_and_name_their_values():
    (entropy_driven,) = [f for f in families("advantage") if "entropy_driven" in f.options]
    assert set(entropy_driven.options) == {"entropy_driven", "entropy_driven_official"}
    clamp = next(setting for setting in entropy_driven.settings if setting.key == "clamp")
    assert (clamp.kind, clamp.defaults) == (
        "number or null",
        {"entropy_driven": "10.0", "entropy_driven_official": "null"},
    )
    # What the option takes from another one of the group is its own setting too.
    assert "base.eps" in {setting.key for setting in entropy_driven.settings}


def test_the_page_shows_a_value_once_where_all_options_agree():
    page = as_markdown()
    assert "| `advantage.clamp`" not in page  # keys are below their group
    assert "| `epsilon_high` | number | bnpo, dr_grpo, grpo: `0.2`; dapo: `0.28` |" in page
    assert "| `max_rounds` | whole number | `10` |" in page


def test_argument_docs_are_those_of_the_constructor_its_bases_and_what_they_refer_to():
    class Base:
        """A base.

        Args:
            low, high: bounds,
                of something.
            kept: of the base.

        Raises:
            ValueError: not an argument.
        """

    class Child(Base):
        def __init__(self, low: int) -> None:
            """
            Args:
                low (int): the child's.
            """

    assert argument_docs(Child) == {"low": "the child's.", "high": "bounds, of something.", "kept": "of the base."}


def test_comments_belong_to_the_key_on_their_line_and_are_inherited(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 1  # of the base\nb: 2  # also\n")
    text = 'defaults:\n  - base\n  - _self_\n\nb: "x # y"  # mine\nc:  # of all\n  d: [1, 2]  # a list\n  e: 1\n'
    (tmp_path / "mine.yaml").write_text(text)
    expected = {"a": "of the base", "b": "mine", "c": "of all", "c.d": "a list"}
    assert comments(tmp_path / "mine.yaml") == expected


@cache
def settings() -> dict[str, str]:
    """Every setting that some option has, dotted, and every part of the config above one, with its type."""
    found = {
        f"{group.replace('/', '.')}.{s.key}": s.kind for group in groups() for f in families(group) for s in f.settings
    }
    found |= {s.key: s.kind for program in PROGRAMS for s in own_settings(program)} | dict.fromkeys(GROUPS, "")
    return {".".join(key.split(".")[:n]): "" for key in found for n in range(1, key.count(".") + 1)} | found


def metrics() -> list[str]:
    """Every name in the page of metrics, which another test holds against the code."""
    return re.findall(r"^\| `(\S+)` \|", PAGES["docs/metrics.md"], re.MULTILINE)


def spans(text: str) -> Iterator[str]:
    """The words of the code between single backticks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return chain.from_iterable(span.split() for span in re.findall(r"`([^`]+)`", prose))


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_metrics_that_a_page_names_exist(page: str) -> None:
    known, logged = settings(), metrics()
    wrong = []
    for word in spans(PAGES[page]):
        key = SETTING.match(word.strip("'\""))
        if key and key[1].split(".")[0] in known and not exists(key[1].partition("@")[0], known):
            wrong.append(word)
        if key and key[1] in GROUPS and not options_exist(key[1], word.strip("'\"").partition("=")[2]):
            wrong.append(word)
        pattern = re.sub(r"<.*?>", "*", word)
        if METRIC.fullmatch(word) and not any(fnmatchcase(pattern, n) or fnmatchcase(n, pattern) for n in logged):
            wrong.append(word)
    assert not wrong


def exists(key: str, known: Mapping[str, str]) -> bool:
    """A setting, a key of one that is a mapping, one that an option adds elsewhere, or CONTRIBUTING.md's example's."""
    of_mapping = known.get(key.rpartition(".")[0], "").startswith("mapping")
    return key in known or of_mapping or key in ("paths.evaluation_suite", "advantage.power")


def options_exist(group: str, value: str) -> bool:
    """Whether the options that are named are files of the group; of the reader's own (`mine`, DIR) nothing is known."""
    named = [name for name in re.findall(r"[\w.]+", value) if re.fullmatch(r"[a-z][a-z\d_.]*", name)]
    ours = {path.stem for path in (config_dir() / group).glob("*.yaml")} | {"null", "mine", "length_baseline"}
    return group == "resume" or group.startswith("hydra") or set(named) <= ours
