"""A file of settings as plain values: nothing is executed, no secret passes, what is wrong is one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from genmodels.credentials import secret_in
from genmodels.text import one_line

MAX_ALIASES = 32  # a params.yaml needs few; an alias bomb needs many
OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")  # of YAML 1.1: 0100 is 64, 10:00 is 600
MAX_DEPTH = 32  # of sections within sections; PyYAML's time grows with the square of it


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that names key, value and choices."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # whatever line breaks a key or a value holds


class _Plain(yaml.SafeLoader):
    """YAML of plain values: no key comes twice, 10:00 and 0100 are no numbers, and what cannot be read says where."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before `<<` brings further keys; PyYAML alone would take the last of two."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} comes twice", key.start_mark)
            seen.add(str(key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; PyYAML raises whatever it likes for 2024-13-45 or !!bool maybe."""
        shown, kind = one_line(repr(node.value), 80), node.tag.rpartition(":")[2]
        if kind in ("int", "float") and isinstance(node, yaml.ScalarNode) and OLD_NUMBER.fullmatch(node.value):
            what = f"{shown} would be read to base 8 or 60; write a plain number, or quotes around a text"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            what = f"{shown} is no {kind}" + (f" ({error})" if isinstance(error, ValueError) else "")
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain values; tags that build objects, alias bombs and repeated keys are refused."""
    try:
        text = path.read_text(encoding="utf-8")
        _check_nesting(text, path)
        values = yaml.load(text, _Plain)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections (key: value), found {type(values).__name__}")
    return values


def _check_nesting(text: str, path: Path) -> None:
    """ConfigError for an alias bomb or absurd nesting, before anything is built of it."""
    starts = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
    blocks = (yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken)
    ends = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    aliases = depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        aliases += isinstance(token, yaml.AliasToken)
        depth += isinstance(token, starts + blocks) - isinstance(token, ends)
        if aliases > MAX_ALIASES:
            raise ConfigError(f"{path}: more than {MAX_ALIASES} aliases")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}: line {token.start_mark.line + 1}: more than {MAX_DEPTH} levels of nesting")


def override(raw: dict[str, Any], given: str) -> None:
    """Sets what `key.sub=value` says, the value as YAML; ConfigError where it says nothing."""
    key, equals, text = given.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {given!r}: expected key=value, as in models.vae.train.num_images=1000")
    try:
        value = yaml.load(text, _Plain)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {given!r}: {' '.join(str(error).split())}") from None
    section = raw
    for part in parts[:-1]:
        below = section.get(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {given!r}: {part!r} is a value, not a section")
        section[part] = dict(below)  # its own: an anchor's aliases are one object
        section = section[part]
    section[parts[-1]] = value


def refuse_secrets(value: Any, where: str = "", seen: set[int] | None = None) -> None:
    """ConfigError, without the value, for what looks like a secret: MLflow and every run's folder show all settings."""
    if isinstance(value, str) and (kind := secret_in(value)):
        raise ConfigError(f"{where}: looks like {kind}; secrets belong into the environment, not into params")
    seen = set() if seen is None else seen
    if isinstance(value, dict | list) and id(value) not in seen:  # an alias may hold itself
        seen.add(id(value))
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_secrets(str(key), where or "params", seen)
            refuse_secrets(entry, f"{where}.{key}".lstrip("."), seen)
