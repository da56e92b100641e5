"""Which version of a model is its champion: the best by the declared metric, unless a person chose another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from genmodels.model import model_class

ALIAS = "champion"
BY_METRIC = "by_metric."  # prefix of a registered model's tags: the version that its alias was given automatically,
# or, while that moves, the one before and the one after


def faults(tags: dict[str, str]) -> list[str]:
    """Why a version may not become champion by itself; empty for a sound one."""
    found = [] if math.isfinite(float(tags.get("score", "nan"))) else [f"its score is {tags.get('score', 'unknown')}"]
    return found if tags.get("ended", "finished") == "finished" else [*found, f"its training {tags['ended']}"]


def ranked(model: str, versions: Iterable[Any]) -> list[Any]:
    """Versions that were scored by one protocol, best first; what is not sound comes last.

    Of those that were evaluated, the ones whose proofs failed come after the others. One that was not has its score
    alone: it comes before the first of them that it is better than.
    """
    order = sorted(versions, key=lambda version: (_key(model, version), int(version.version)))
    evaluated = [version for version in order if "proofs" in version.tags]
    evaluated.sort(key=lambda version: (bool(faults(version.tags)), proofs_failed(version.tags)))
    others = [version for version in order if "proofs" not in version.tags]
    merged = []
    while evaluated and others:
        merged.append((others if _key(model, others[0]) < _key(model, evaluated[0]) else evaluated).pop(0))
    return [*merged, *evaluated, *others]


def _key(model: str, version: Any) -> tuple[bool, float]:
    """Sound ones first, then by score."""
    score = float(version.tags.get("score", "nan"))
    signed = score if model_class(model).metric.direction == "min" else -score
    return bool(faults(version.tags)), signed if math.isfinite(score) else math.inf


def proofs_failed(tags: dict[str, str]) -> bool:
    """Whether one of an evaluated version's own proofs did not hold."""
    shown, _, rest = tags["proofs"].partition(" of ")
    return shown != rest.split(" ")[0]


def crown(client: Any, name: str, dataset: str, protocol: str) -> None:
    """Gives `champion` and `champion-<data set>` to the best version of a protocol, where no person chose."""
    versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("protocol") == protocol]
    best = ranked(name, versions)[0]
    if faults(best.tags):
        return
    known = client.get_registered_model(name)
    for alias in (f"{ALIAS}-{dataset.replace('.', '-')}", ALIAS):  # MLflow takes no dots in an alias
        held, ours = known.aliases.get(alias), known.tags.get(BY_METRIC + alias, "").split()
        if held is None or (str(held) in ours and not _is_newer(client, name, held, protocol, versions)):
            _move(client, name, alias, held, str(best.version))


def _is_newer(client: Any, name: str, held: Any, protocol: str, versions: list[Any]) -> bool:
    """Whether the version that has an alias is of another protocol and younger than all `versions` of this one."""
    of_another = client.get_model_version(name, str(held)).tags.get("protocol") != protocol
    return of_another and int(held) > max(int(version.version) for version in versions)


def _move(client: Any, name: str, alias: str, held: Any, to: str) -> None:
    """Gives an alias to a version; killed at any point, it leaves the alias at a version that the tag names as ours."""
    tag = BY_METRIC + alias
    if str(held) != to:
        client.set_registered_model_tag(name, tag, to if held is None else f"{held} {to}")
        client.set_registered_model_alias(name, alias, to)
    client.set_registered_model_tag(name, tag, to)


def choose(client: Any, name: str, number: int, alias: str, force: bool) -> None:
    """Gives an alias to a version because a person says so; ValueError where only force would."""
    tags = client.get_model_version(name, str(number)).tags
    if alias.startswith(ALIAS) and not force and (found := faults(tags)):
        raise ValueError(f"{name}/{number} becomes {alias} only by --force: {'; '.join(found)}")
    client.set_registered_model_alias(name, alias, str(number))
    if BY_METRIC + alias in client.get_registered_model(name).tags:
        client.delete_registered_model_tag(name, BY_METRIC + alias)
