"""Where an answer comes apart: brackets that belong together, and separators outside of them."""

import re


def closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`; -1 if there is none."""
    depth, place = 0, start
    while place < len(text):
        if text[place] == "\\" and place + 1 < len(text) and text[place + 1] in "{}":
            depth += 1 if text[place + 1] == "{" else -1
            place += 1
        elif text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
        if depth == 0:
            return place
        place += 1
    return -1


def split(text: str, separators: str) -> list[str]:
    """The text cut at the separators (a regular expression) that stand in no bracket; the separators are dropped."""
    return [part for part, _ in split_keeping(text, separators)]


def split_keeping(text: str, separators: str) -> list[tuple[str, str]]:
    """Parts, each with the separator that ended it (empty for the last)."""
    pattern, depth, start, place, parts = re.compile(separators), 0, 0, 0, []
    while place < len(text):
        if text[place] == "‹":
            close = text.find("›", place)
            if depth == 0 and (match := pattern.match(text, place)) and match.end() > place:
                parts.append((text[start:place], match[0]))
                start = place = match.end()
                continue
            place = close + 1 if close >= 0 else place + 1
            continue
        if depth == 0 and (match := pattern.match(text, place)) and match.end() > place:
            parts.append((text[start:place], match[0]))
            start = place = match.end()
            continue
        if text[place] == "\\":
            step = re.compile(r"\\(?:[a-zA-Z]+|.)", re.DOTALL).match(text, place)
            token = step[0] if step else "\\"
            depth += {"\\{": 1, "\\}": -1, "\\langle": 1, "\\rangle": -1, "\\lfloor": 1, "\\rfloor": -1, "\\lceil": 1,
                      "\\rceil": -1}.get(token, 0)  # fmt: skip
            place += len(token)
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[place], 0)
        place += 1
    return [*parts, (text[start:], "")]
