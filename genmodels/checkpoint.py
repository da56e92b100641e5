"""Training states, written beside the training: atomic, hashed, kept by policy, and read back only if whole.

PLACE/000123456/state.pt        torch.save, read with weights_only=True
PLACE/000123456/manifest.json   sha256 and bytes of state.pt, and the score at that image; written last

PLACE is a folder or an fsspec URL (s3://bucket/prefix).
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from genmodels.data.remote import Outage, filesystem, is_url, retried
from genmodels.files import check_room, replace_folder, sha256_file, write_json
from genmodels.model import Metric

State = dict[str, Any]
Ready = tuple[torch.device, torch.cuda.Event] | None
STATE, MANIFEST = "state.pt", "manifest.json"
TITLE = "[0-9]" * 12  # of a checkpoint: images shown
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ENFILE, errno.EMFILE}  # says nothing of a file's content


class Place(Protocol):
    """Where checkpoints lie."""

    def titles(self) -> list[str]:
        """Those that are there, whole or not, newest first."""

    def write(self, title: str, fill: Callable[[Path], None]) -> None:
        """Lets `fill` write state and manifest into a folder, and takes them: all or nothing."""

    def manifest(self, title: str) -> dict[str, Any]:
        """The content of the manifest; OSError or ValueError where it is damaged."""

    def state(self, title: str) -> AbstractContextManager[Path]:
        """The state as a local file."""

    def remove(self, title: str) -> None:
        """Removes a checkpoint, in whatever condition it is."""

    def tidy(self) -> None:
        """Removes what a killed writer left half done."""


class _Folder:
    """Checkpoints in a folder, which may be shared by machines."""

    def __init__(self, folder: Path):
        self.folder = folder

    def titles(self) -> list[str]:
        return sorted((path.name for path in self.folder.glob(TITLE) if path.is_dir()), reverse=True)

    def write(self, title: str, fill: Callable[[Path], None]) -> None:
        replace_folder(self.folder / title, fill)

    def manifest(self, title: str) -> dict[str, Any]:
        return json.loads((self.folder / title / MANIFEST).read_text())

    @contextmanager
    def state(self, title: str) -> Iterator[Path]:
        yield self.folder / title / STATE

    def remove(self, title: str) -> None:
        doomed = self.folder / f".{title}.old"  # out of sight at once
        with contextlib.suppress(OSError):
            (self.folder / title).rename(doomed)
            shutil.rmtree(doomed)

    def tidy(self) -> None:
        for rubble in self.folder.glob(f".{TITLE}.*"):
            shutil.rmtree(rubble, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.folder)


class _Store:
    """Checkpoints behind a URL; every call waits for the store through an outage."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def titles(self) -> list[str]:
        fs, top = filesystem(self.url)
        try:
            found = retried(lambda: fs.find(top), self.url)
        except FileNotFoundError:
            return []
        names = [path[len(top) :].strip("/").split("/") for path in found]
        return sorted({name[0] for name in names if name[-1] == MANIFEST}, reverse=True)

    def write(self, title: str, fill: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="genmodels-") as temporary:
            fill(Path(temporary))
            for name in (STATE, MANIFEST):  # the manifest last: without it there is no checkpoint
                self._put(Path(temporary) / name, f"{title}/{name}")

    def manifest(self, title: str) -> dict[str, Any]:
        return json.loads(self._call(f"{title}/{MANIFEST}", lambda fs, path: fs.cat_file(path)))

    @contextmanager
    def state(self, title: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="genmodels-") as temporary:
            file = Path(temporary) / STATE
            self._call(f"{title}/{STATE}", lambda fs, path: fs.get_file(path, str(file)))
            yield file

    def remove(self, title: str) -> None:
        for name in (MANIFEST, STATE):
            with contextlib.suppress(FileNotFoundError):
                self._call(f"{title}/{name}", lambda fs, path: fs.rm_file(path))

    def tidy(self) -> None:
        """Nothing: a state without its manifest is overwritten when training passes there again."""

    def _put(self, file: Path, name: str) -> None:
        self._call(name, lambda fs, path: fs.put_file(str(file), path))

    def _call(self, name: str, action: Callable[[Any, str], Any]) -> Any:
        fs, top = filesystem(self.url)
        return retried(lambda: action(fs, f"{top}/{name}"), f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url


class Checkpoints:
    """A run's training states: the `keep` latest, and the `keep_best` best by `metric`. Used by one process at a time.

    `save` copies the state and returns; a thread writes it. What went wrong there is raised by the next call.
    """

    def __init__(self, place: Path | str, keep: int, keep_best: int = 0, metric: Metric | None = None):
        self.place: Place = _Store(str(place)) if is_url(str(place)) else _Folder(Path(place))
        self.keep, self.keep_best, self.metric = keep, keep_best, metric
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._damaged: set[str] = set()  # to be removed as soon as there is a newer one than what is whole
        self._copy: State = {}  # filled again by the next state: new memory would cost more than the copying

    def save(self, num_images: int, state: State, score: float | None = None) -> None:
        """Takes the state reached after `num_images`; waits only while the one before is still being written."""
        self.wait()
        self._copy = _copied(state, self._copy)  # training changes its own in place
        self._writing = self._thread.submit(self._write, f"{num_images:012d}", self._copy, _copying(self._copy), score)

    def check(self) -> None:
        """Raises what went wrong with the last state, if that is known by now."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when what was saved is durable."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def load_latest(self, device: torch.device | str = "cpu") -> State | None:
        """The newest state that is whole, or None; a damaged one is passed over with a warning.

        OSError where a state may be whole and cannot be read now.
        """
        self.place.tidy()
        for title in self.place.titles():
            try:
                with self.place.state(title) as file:
                    if sha256_file(file) == self.place.manifest(title)["sha256"]:
                        return torch.load(file, map_location=device, weights_only=True)
                damage = "sha256 differs"
            except (OSError, ValueError, KeyError) as error:
                if isinstance(error, Outage | PermissionError | TimeoutError) or _errno(error) in PASSING:
                    raise
                damage = str(error) or type(error).__name__
            self._damaged.add(title)
            what = f"checkpoint {self.place}/{title} is damaged ({damage}); falling back to the one before"
            warnings.warn(what, stacklevel=2)
        return None

    def _write(self, title: str, copied: State, ready: Ready, score: float | None) -> None:
        state = _on_host(copied, ready)

        def fill(folder: Path) -> None:
            check_room(folder.parent, sum(tensor.nbytes for tensor in _tensors(state)), "a checkpoint")
            file = folder / STATE
            _dump(state, file)
            about = {"sha256": sha256_file(file), "bytes": file.stat().st_size, "score": score}
            write_json(folder / MANIFEST, about)

        self.place.write(title, fill)
        self._damaged.discard(title)
        for old in set(self.place.titles()) - self._kept():
            self.place.remove(old)

    def _kept(self) -> set[str]:
        titles = [title for title in self.place.titles() if title not in self._damaged]
        best: dict[str, float] = {}
        for title in titles if self.keep_best else ():
            with contextlib.suppress(OSError, ValueError, KeyError):
                score = self.place.manifest(title)["score"]
                if score is not None and score == score:
                    best[title] = score
        downwards = self.metric is not None and self.metric.direction == "max"
        return {*titles[: self.keep], *sorted(best, key=lambda title: best[title], reverse=downwards)[: self.keep_best]}


def _errno(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _copied(value: Any, into: Any) -> Any:
    """The nest `value` with tensors of its own: those of `into` where they fit."""
    if isinstance(value, Tensor):
        fits = isinstance(into, Tensor) and (into.shape, into.dtype, into.device) == (
            value.shape,
            value.dtype,
            value.device,
        )
        return into.copy_(value.detach()) if fits else value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item, into.get(key) if isinstance(into, dict) else None) for key, item in value.items()}
    if isinstance(value, list | tuple):
        same = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        return type(value)(map(_copied, value, same))
    return value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dicts, lists and tuples with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return type(value)(_mapped(item, change) for item in value) if isinstance(value, list | tuple) else value


def _copying(state: State) -> Ready:
    """The state's GPU, if it lies on one, and what that has to do before the copy is whole."""
    device = next((tensor.device for tensor in _tensors(state) if tensor.is_cuda), None)
    return None if device is None else (device, torch.cuda.current_stream(device).record_event())


def _on_host(state: State, ready: Ready) -> State:
    """The state in host memory; on a GPU by a stream of its own, so that training does not wait for the copy."""
    if ready is None:
        return state
    device, event = ready
    stream = torch.cuda.Stream(device)
    stream.wait_event(event)
    with torch.cuda.stream(stream):
        return _mapped(state, Tensor.cpu)


def _dump(state: State, file: Path) -> None:
    """torch.save, whose own error hides what the disk said."""
    try:
        with file.open("wb") as out:
            torch.save(state, out)
    except RuntimeError as error:
        if isinstance(cause := error.__context__, OSError):
            raise OSError(cause.errno, cause.strerror, str(file)) from None
        raise


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
