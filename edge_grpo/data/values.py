"""Values of a row -> what a `Problem` holds; one that does not fit raises `BadRowError`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

from edge_grpo.data.bad_rows import BadRow, BadRowError
from edge_grpo.data.files import MAX_DIGITS
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types.problems import Turn

GSM8K_ANSWER = re.compile(r"^####(?!#)[^\S\n]*(.*?)\s*\Z", re.MULTILINE)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
GSM8K_CALCULATION = re.compile(r"<<.*?>>")
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s${}\\]+)")
SURROGATE = re.compile("[\ud800-\udfff]")
HUGE = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
ROLES = ("system", "user", "assistant")
TEXT = "a text that is not empty"

# What JSON makes of \frac, \beta, \times, \right, \neq and others written with one backslash. Only what stands in no
# prose: behind a form feed, tab or line break an English word may follow.
LONE_BACKSLASH = re.compile(
    "\b|\f(?=rac|orall|lat|loor|box|rown)|\t(?=imes|heta|frac[{\\d\\\\]|riangle|herefore|ext\\w*\\{|(?:an|au|o)[\\^({\\\\])"
    "|\r(?=ight|ho\\b|angle|m\\{)|(?<=[ $(])\n(?=eq\\b|abla|otin\\b)"
)
ESCAPES = {"\b": "b", "\f": "f", "\t": "t", "\r": "r", "\n": "n"}


class Place:
    """A value's place, for messages: its row and its column."""

    def __init__(self, where: str, column: str) -> None:
        self.where, self.column = where, column

    def refuse(self, value: object, expected: str) -> NoReturn:
        """Tell of the value by its beginning and its type."""
        if isinstance(value, str) and (half := SURROGATE.search(value)):
            self.refuse_as(f"{value[:60]!r} with half a character, {half[0]!r}", "a text that is valid Unicode")
        shown = repr(value)
        self.refuse_as(f"{shown[:60] + '...' if len(shown) > 60 else shown} ({type(value).__name__})", expected)

    def refuse_as(self, found: str, expected: str) -> NoReturn:
        raise BadRowError(BadRow(self.where, self.column, found, expected))

    def whole(self, text: str) -> str:
        """The text, unless JSON took a backslash out of it."""
        if lost := LONE_BACKSLASH.search(text):
            begin = lost.start()
            word = ESCAPES[lost[0]] + (re.match("[a-z]*", text[lost.end() :]) or [""])[0]
            self.refuse_as(
                f"{text[max(0, begin - 20) : begin + 40]!r} with a control character",
                rf"\{word}: JSON writes a backslash twice, \\{word}",
            )
        return text


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is a text that can be written as UTF-8: JSON also holds halves of surrogate pairs."""
    return isinstance(value, str) and not SURROGATE.search(value)


def text_or_none(value: object, place: Place) -> str | None:
    """A text, or None where it is blank."""
    if value is not None and not is_text(value):
        place.refuse(value, "a text or null")
    return place.whole(value) if value and value.strip() else None


def rate(value: object, place: Place) -> float | None:
    """A share; csv holds numbers as texts."""
    if value is None:
        return None
    number = _number(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        place.refuse(value, "a number in [0, 1] or null")
    return float(number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def identity(value: object, place: Place, default: str) -> str:
    """The id of a row."""
    if value is None:
        return default
    if isinstance(value, bool) or not (is_text(value) or isinstance(value, int)) or value == "":
        place.refuse(value, "a text that is not empty, a whole number, or null")
    return str(value)


# Answers


def gold_answers(value: object, place: Place) -> tuple[str, ...]:
    """Gold answers of one value or of a list of them."""
    values = value if isinstance(value, list | tuple) else [value]
    for item in values:
        if is_text(item):
            place.whole(item)  # before blanks are taken off: a form feed is one
    texts = tuple(_answer_text(item) for item in values)
    if not texts or not all(texts):
        place.refuse(value, f"{TEXT}, a finite number, or a list of these")
    for text in texts:
        if HUGE.search(text):
            place.refuse_as(f"{text[:20]}... ({len(text)} characters)", f"numbers of at most {MAX_DIGITS} digits")
    return texts


def _answer_text(value: object) -> str:
    """One gold answer, or "" where it is none.

    >>> [_answer_text(v) for v in (" 9.6\\n", 8.0, 0.5, 12, True, None, float("nan"))]
    ['9.6', '8', '0.5', '12', '', '', '']
    """
    if is_text(value):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return ""
    # Tables hold whole numbers as floats where another row has a fraction.
    return str(int(value)) if value == int(value) else repr(value)


def gold_in_box(solution: str) -> str | None:
    r"""What the last box of a worked solution holds; some solutions of MATH (2103.03874) write it in other ways.

    >>> [gold_in_box(text) for text in (r"So \boxed{\frac{1}{2}}.", r"It is \fbox{7}.", r"$\boxed 2$.", "2")]
    ['\\frac{1}{2}', '7', '2', None]
    """
    return last_boxed(BARE_BOX.sub(r"\\boxed{\1}", solution.replace("\\fbox", "\\boxed")))


def gsm8k(text: str) -> tuple[str, str] | None:
    r"""(answer, worked solution) of a text that ends in GSM8K's mark; None of any other.

    >>> gsm8k("He has 48/2 = <<48/2=24>>24 clips.\n#### 1,024")
    ('1024', 'He has 48/2 = 24 clips.\n\\boxed{1024}')
    >>> gsm8k("We add.\n####1"), gsm8k("#### Step 1\nWe add.")
    (('1', 'We add.\n\\boxed{1}'), None)
    >>> gsm8k("Two roots.\n#### 1, 2")[0], gsm8k("A point.\n#### (3,4)")[0]  # other tables end so too
    ('1, 2', '(3,4)')
    """
    marked = GSM8K_ANSWER.search(text)
    if not marked:
        return None
    answer = THOUSANDS.sub("", marked[1].strip())
    return answer, f"{GSM8K_CALCULATION.sub('', text[: marked.start()]).rstrip()}\n\\boxed{{{answer}}}"


# Chats


def messages_of(value: object) -> Sequence[Any] | None:
    """The messages of a chat, None if this is none.

    A chat is a list of objects with a role, JSON text of one, or {role: [...], content: [...]} as `datasets` once read
    it.

    >>> messages_of('[{"role": "user", "content": "1 + 1?"}]')
    [{'role': 'user', 'content': '1 + 1?'}]
    >>> messages_of({"role": ["user"], "content": ["1 + 1?"]})
    [{'role': 'user', 'content': '1 + 1?'}]
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = from_json(value)
    if isinstance(value, Mapping) and isinstance(value.get("role"), list) and isinstance(value.get("content"), list):
        pairs = zip(value["role"], value["content"], strict=False)
        value = [{"role": role, "content": content} for role, content in pairs]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and "role" in value[0]:
        return value
    return None


def from_json(text: str) -> object:
    """What the text says as JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def chat(messages: Sequence[Any], place: Place, *, with_reference: bool) -> tuple[tuple[Turn, ...], str, str | None]:
    """(turns before the question, question, reference) of a chat.

    Args:
        messages: objects with `role` and `content`, a text or a list of {type: text, text: ...}.
        place: of the chat.
        with_reference: a last turn of the assistant is the reference; else the chat must end with the user's.
    """
    turns = [_turn(message, number, place) for number, message in enumerate(messages, start=1)]
    turns = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    reference = turns.pop().content if with_reference and turns and turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        last = f"that ends with a turn of the {turns[-1].role}" if turns else "without a turn of the user"
        place.refuse_as(f"a chat {last}", "one that ends with a turn of the user")
    if not turns[-1].content.strip():
        place.refuse_as("a chat whose last turn is empty", TEXT)
    return tuple(turns[:-1]), turns[-1].content, reference


def _turn(message: Any, number: int, place: Place) -> Turn:
    of = f"a chat whose turn {number}"
    if not isinstance(message, Mapping):
        place.refuse_as(f"{of} is {type(message).__name__}", "an object {role, content}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        place.refuse_as(f"{of} has the role {role!r}", f"one of {', '.join(ROLES)}")
    if isinstance(content, list | tuple):
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = "".join(parts) if len(parts) == len(content) else content
    if not is_text(content):
        place.refuse_as(f"{of} holds {type(content).__name__}", "a text")
    return Turn(role, place.whole(content))
