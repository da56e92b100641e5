"""Looks at every node before a training starts: one line says what is wrong where, and what to do about it.

All that is known of a node comes from a task that runs there, so that what its workers will find is what is checked.
"""

from __future__ import annotations

import hashlib
import platform
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from genmodels.data.shards import open_shards
from pipelines.project import UserError, last_line

TIMEOUT = 60.0  # seconds for all nodes to answer
SHARE = "set compute.storage_path to a folder that all nodes share (NFS)"
PACKAGES = ("torch", "ray", "numpy", "pyarrow", "pydantic")  # whose versions decide whether ranks agree


class Subject(NamedTuple):
    """What a node is asked about."""

    storage: str  # the run's folder
    shards: str
    checkpoint_store: str | None
    token: str  # names this look's markers


class Answer(NamedTuple):
    """What a node is and sees."""

    versions: dict[str, str]
    wrote: bool  # its marker into the storage
    faults: list[str]


def check_nodes(ray: Any, storage: Path, shards: Path, checkpoint_store: str | None) -> None:
    """UserError with a line for every node where a worker would fail; nodes without CPUs and GPUs take none."""
    nodes = [node for node in ray.nodes() if node["Alive"] and _takes_workers(node)]
    subject = Subject(str(storage), str(shards), checkpoint_store, f".preflight-{uuid.uuid4().hex[:8]}")
    here = storage / f"{subject.token}-driver"
    here.touch()
    try:
        faults = [f"node {_name(node)}: {fault}" for node, fault in _faults(ray, nodes, subject)]
    finally:
        for marker in storage.glob(f"{subject.token}-*"):
            marker.unlink(missing_ok=True)
    if faults:
        raise UserError("\n       ".join(faults))


def _takes_workers(node: dict[str, Any]) -> bool:
    return any(node["Resources"].get(kind, 0) > 0 for kind in ("CPU", "GPU"))


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _faults(ray: Any, nodes: list[dict[str, Any]], subject: Subject) -> Iterator[tuple[dict[str, Any], str]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, mine = ray.remote(num_cpus=0, max_retries=0)(_answer), _versions()
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [
        task.options(scheduling_strategy=place).remote(subject, node["NodeID"])
        for place, node in zip(pinned, nodes, strict=True)
    ]
    ray.wait(answers, num_returns=len(answers), timeout=TIMEOUT)
    for node, reference in zip(nodes, answers, strict=True):
        try:
            answer = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            yield node, f"no answer in {TIMEOUT:.0f} s; is it overloaded, or behind a firewall?"
            continue
        except ray.exceptions.RayError as error:
            yield (
                node,
                f"cannot run the project ({last_line(error)}); install it there as cluster.yaml's setup_commands do",
            )
            continue
        for name, ours in mine.items():
            if (theirs := answer.versions.get(name)) != ours:
                yield node, _unlike(name, theirs, ours)
        if answer.wrote and not Path(subject.storage, f"{subject.token}-{node['NodeID']}").exists():
            yield node, f"what it writes into {subject.storage} is not seen here; {SHARE}"
        for fault in answer.faults:
            yield node, fault


def _answer(subject: Subject, node: str) -> Answer:
    """Runs on a node."""
    fault = _storage_fault(Path(subject.storage), subject.token, node)
    return Answer(_versions(), fault is None, [*filter(None, [fault]), *_data_faults(subject, node)])


def _storage_fault(storage: Path, token: str, node: str) -> str | None:
    if not storage.is_dir():
        return f"{storage} is not there; {SHARE}"
    try:
        (storage / f"{token}-{node}").touch()
    except OSError as error:
        return f"cannot write into {storage} ({error.strerror}); let the same user own it everywhere"
    return None if (storage / f"{token}-driver").exists() else f"{storage} is another folder there; {SHARE}"


def _data_faults(subject: Subject, node: str) -> Iterator[str]:
    try:
        open_shards(Path(subject.shards))
    except (ValueError, OSError) as error:
        yield f"shards are out of reach: {error}; share data/shards, run `dvc pull` there, or set datasets.NAME.store"
    if subject.checkpoint_store:
        yield from _store_faults(subject.checkpoint_store, f"{subject.token}-{node}")


def _store_faults(url: str, name: str) -> Iterator[str]:
    from genmodels.data.remote import filesystem

    try:
        fs, top = filesystem(url)
        fs.pipe_file(f"{top}/{name}", b"")
        fs.rm_file(f"{top}/{name}")
    except Exception as error:  # connection libraries raise kinds of their own
        yield f"cannot write into {url} ({last_line(error)}); the store's address and keys belong into its environment"


def _versions() -> dict[str, str]:
    """What must be the same everywhere, by name."""
    return {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "code": code_digest()}


def code_digest() -> str:
    """Sha256 over the sources of both packages."""
    top, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for name in ("genmodels", "pipelines") for path in (top / name).rglob("*.py")):
        digest.update(str(path.relative_to(top)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _unlike(name: str, theirs: str | None, ours: str) -> str:
    if name == "code":
        return (
            f"the project's code there is another ({theirs}, here {ours}); `ray up --no-restart cluster.yaml` copies it"
        )
    return f"{name} {theirs} there, {ours} here; install requirements.lock on both"
