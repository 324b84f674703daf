"""The reference of settings: none without a meaning, and what a meaning is read from."""

import pytest

from edge_grpo.command_line.describe import argument_docs, comments
from edge_grpo.programs.config_page import PROGRAMS, as_markdown, families, groups, own_settings


@pytest.mark.parametrize("group", groups())
def test_every_setting_of_a_group_has_a_meaning_and_a_type(group):
    settings = [setting for family in families(group) for setting in family.settings]
    assert not [s.key for s in settings if not s.meaning or s.meaning.startswith("see `")]
    assert not [s.key for s in settings if s.kind in ("null", "")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_setting_of_a_program_has_a_meaning_and_a_type(program):
    settings = own_settings(program)
    assert not [s.key for s in settings if not s.meaning or s.kind == "null"]


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
