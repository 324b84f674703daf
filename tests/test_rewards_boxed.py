import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_grpo.rewards.boxed import final_answers, last_boxed

BALANCED = st.recursive(
    st.sampled_from(["x", "12", r"\{", r"\}", r"\frac", " ", "\n", "\0", "é"]),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{4} wait \boxed{5}", "5"),  # the last one counts
        (r"\boxed{5} then cut off \boxed{6", "5"),  # the last *complete* one
        (r"\boxed{6 never closed, \boxed{7}", "7"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),  # an escaped brace opens nothing
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{1 \\ }", r"1 \\"),  # the brace after a double backslash is a real one
        (r"\\boxed{5}", "5"),
        ("line\\\\\\boxed{5}", "5"),  # a line break, then a box
        (r"\boxed {5}", "5"),
        ("}} \\boxed{5}", "5"),
        (r"\text{so \boxed{5}", "5"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\fbox{5}", None),
        (r"\boxed5", None),
        (r"\boxed{}", None),
        ("\\boxed{5} \\boxed{ \n}", None),
        ("", None),
        ("\\", None),
    ],
)
def test_hand_worked_boxes(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@given(st.text(alphabet=st.one_of(st.sampled_from("\\{}boxed 1"), st.characters())))
def test_any_text_gives_a_stripped_content_or_none(text: str) -> None:
    content = last_boxed(text)
    assert content is None or (content and content == content.strip() and content in text)


@given(st.text(alphabet="ab \\{}"), BALANCED)
@settings(max_examples=200)
def test_a_balanced_content_comes_back_whatever_stands_before_it(prefix: str, content: str) -> None:
    assert last_boxed(f"{prefix} \\boxed{{.{content}.}} end") == f".{content}."


@pytest.mark.parametrize("text", ["{" * 100_000, "\\boxed{" * 15_000, "\\boxed" + " " * 100_000, "}" * 100_000])
def test_100_kb_of_hostile_text_takes_milliseconds(text: str) -> None:
    start = time.perf_counter()
    assert last_boxed(text) is None
    assert time.perf_counter() - start < 1.0  # measured 0.03 s; quadratic would be minutes


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{1}, " * 10_000,
        "\\boxed{1}" + " and " * 20_000 + "\\boxed{2}",
        "\\boxed{1}" + "x_{1}=" * 20_000 + "!\\boxed{2}",
        "-" * 100_000 + "\\boxed{2}",
        "={ " * 30_000 + "-\\boxed{2}",
        "n \\ge " * 10_000 + "\\boxed{2}",
    ],
)
def test_the_list_of_boxes_is_found_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert final_answers(text)
    assert time.perf_counter() - start < 1.0  # measured 0.1 s at most


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$x = -\boxed{5}$", ("-5",)),
        (r"$-\boxed{\frac{1}{2}}$", (r"-\frac{1}{2}",)),
        (r"\(-\boxed{x+1}\)", ("-(x+1)",)),
        ("- \\boxed{5}", ("5",)),  # a bullet
        ("Answer:\n- \\boxed{5}", ("5",)),
        (r"$10-\boxed{5}$", ("5",)),
        (r"so $n \ge \boxed{5}$", ("5", r"n\ge 5")),
    ],
)
def test_what_stands_before_the_box(text: str, expected: tuple[str, ...]) -> None:
    assert final_answers(text) == expected


def test_deeply_nested_box_is_read() -> None:
    content = "{" * 50_000 + "}" * 50_000
    assert last_boxed(f"\\boxed{{{content}}}") == content
