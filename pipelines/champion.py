"""Which version of a model is its champion: the best by the declared metric, unless a person chose another."""

from __future__ import annotations

import math
from typing import Any

from genmodels.model import model_class

ALIAS = "champion"
BY_METRIC = "by_metric."  # prefix of a registered model's tags: the version that its alias was given automatically


def faults(tags: dict[str, str]) -> list[str]:
    """Why a version may not become champion by itself; empty for a sound one."""
    found = [] if math.isfinite(float(tags.get("score", "nan"))) else [f"its score is {tags.get('score', 'unknown')}"]
    return found if tags.get("ended", "finished") == "finished" else [*found, f"its training {tags['ended']}"]


def standing(model: str, tags: dict[str, str]) -> tuple[bool, bool, float]:
    """Sorts versions that were scored by one protocol, best first: sound ones, then those whose proofs did not fail."""
    score = float(tags.get("score", "nan"))
    signed = score if model_class(model).metric.direction == "min" else -score
    return bool(faults(tags)), proofs_failed(tags), signed if math.isfinite(score) else math.inf


def proofs_failed(tags: dict[str, str]) -> bool:
    """Whether one of the version's own proofs did not hold; what was not evaluated has not failed."""
    shown, _, rest = tags.get("proofs", "").partition(" of ")
    return shown != rest.split(" ")[0]


def crown(client: Any, name: str, dataset: str, protocol: str) -> None:
    """Gives `champion` and `champion-<data set>` to the best version of a protocol, where no person chose."""
    versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("protocol") == protocol]
    best = min(versions, key=lambda version: (standing(name, version.tags), int(version.version)))
    if faults(best.tags):
        return
    known = client.get_registered_model(name)
    for alias in (f"{ALIAS}-{dataset}", ALIAS):
        if alias not in known.aliases or str(known.aliases[alias]) == known.tags.get(BY_METRIC + alias):
            client.set_registered_model_tag(name, BY_METRIC + alias, str(best.version))
            client.set_registered_model_alias(name, alias, str(best.version))


def choose(client: Any, name: str, number: int, alias: str, force: bool) -> None:
    """Gives an alias to a version because a person says so; ValueError where only force would."""
    tags = client.get_model_version(name, str(number)).tags
    if alias.startswith(ALIAS) and not force and (found := faults(tags)):
        raise ValueError(f"{name}/{number} becomes {alias} only by --force: {'; '.join(found)}")
    client.set_registered_model_alias(name, alias, str(number))
    if BY_METRIC + alias in client.get_registered_model(name).tags:
        client.delete_registered_model_tag(name, BY_METRIC + alias)
