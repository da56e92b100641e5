"""Values of a settings file against a pydantic schema: what is wrong is one line with key, value and choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from genmodels.settings_file import ConfigError
from genmodels.text import nearest

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")

UNION_MEMBER = re.compile(r"|\[key\]|constrained-\w+|literal\[.*\]|bool|int|float|str")  # pydantic's, in the path
FOLLOWING = ("missing", "default_factory_not_called")  # errors that a misspelt key has in its train


def validated(schema: type[T], values: Any, where: str, others: Sequence[str] = ()) -> T:
    """`values` as `schema`; ConfigError names the first wrong key, its value, and what is accepted.

    `others` are keys that the section holds besides.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'params'}: expected a section (key: value), got {values!r}")
    try:
        return schema(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] in FOLLOWING)
        path = ".".join(str(part) for part in (where, *first["loc"]) if not UNION_MEMBER.fullmatch(str(part)))
        if first["type"] == "extra_forbidden":
            fields = _fields_at(schema, first["loc"][:-1]) + list(others if len(first["loc"]) == 1 else ())
            raise ConfigError(
                f"{path}: unknown key{nearest(str(first['loc'][-1]), fields)}; choices: {listed(fields)}"
            ) from None
        if first["type"] == "missing":
            raise ConfigError(f"{path} is missing") from None
        raise ConfigError(f"{path}: {first['msg'].lower()}, got {first['input']!r}") from None


def _fields_at(schema: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys that the section at `path` accepts."""
    for part in path:
        field = schema.model_fields.get(str(part))
        types = [field.annotation, *get_args(field.annotation)] if field else [schema]
        schema = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)), schema)
    return list(schema.model_fields)


def choose(choices: Mapping[str, V], name: str, what: str, where: str = "") -> V:
    """`choices[name]`; ConfigError names the setting `where`, the nearest choice and all of them."""
    if not isinstance(name, str) or name not in choices:  # YAML may hold a list here
        place = f"{where}: " if where else ""
        raise ConfigError(f"{place}unknown {what} {name!r}{nearest(name, choices)}; choices: {listed(choices)}")
    return choices[name]


def listed(names: Iterable[str]) -> str:
    """Names in a row, 'none' where there is none."""
    return ", ".join(names) or "none"
