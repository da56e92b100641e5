"""Words for one-line errors, and users' own words on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def nearest(word: str, choices: Iterable[str]) -> str:
    """' (did you mean X?)' when a choice looks like `word`, else nothing."""
    close = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(text: str, limit: int = 200) -> str:
    """A user's text as printable characters on one line, at most `limit` of them: safe for a terminal."""
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * limit])
    line = " ".join(line.split())
    return line if len(line) <= limit and len(text) <= 2 * limit else f"{line[: limit - 1]}…"


def check_given(model: str, given: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """ValueError unless a user's condition for `model` has all `required` keys and no others than `optional` ones."""
    takes = ", ".join([*required, *(f"{key} (optional)" for key in optional)])
    if unknown := [key for key in given if key not in (*required, *optional)]:
        raise ValueError(f"{model} takes no {', '.join(unknown)}{nearest(unknown[0], required)}; it takes {takes}")
    if missing := [key for key in required if key not in given]:
        raise ValueError(f"{model} needs {', '.join(missing)} beside {', '.join(given) or 'nothing'}; it takes {takes}")


def assignments(text: str) -> dict[str, str]:
    """'hat=1, night=0' by name; ValueError where a name comes twice."""
    asked: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name in asked:
            raise ValueError(f"{text!r} names {name} twice")
        asked[name] = value
    return asked
