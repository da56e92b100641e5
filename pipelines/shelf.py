"""What is served: a loaded version a name, exchanged when its alias moves on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from genmodels import export
from pipelines import registry
from pipelines.engine import Engine
from pipelines.project import UserError, last_line


@dataclass(frozen=True)
class Served:
    """A version and the engine that samples it."""

    reference: str  # as it was asked for
    version: str  # what that meant when it was loaded
    engine: Engine


class Shelf:
    """Versions by name. Looking one up never waits; `refresh` loads beside what is served."""

    def __init__(self, references: Sequence[str], max_waiting: int, device: str, made: Callable[[str, int], object]):
        """references: [NAME=]REFERENCE, as `registry.find` takes them; the name is the model's unless it is given.

        made: is told a name and the number of images of each batch. UserError where two have one name.
        """
        self._max_waiting, self._device, self._made = max_waiting, device, made
        self._served: dict[str, Served] = {}
        self._refreshing = threading.Lock()
        for given in references:
            name, _, reference = given.rpartition("=")
            version = registry.version(reference)
            sampler = export.load(registry.find(version), device)
            name = name or sampler.info["model"]
            if name in self._served:
                raise UserError(f"two versions are named {name}; name them yourself: --model NAME={reference}")
            self._served[name] = Served(reference, version, self._engine(name, sampler))

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._served))

    def __getitem__(self, name: str) -> Served:
        return self._served[name]

    def refresh(self) -> None:
        """Loads what an alias names now, and closes what it named before; the old one stays where that fails."""
        with self._refreshing:
            for name in self:
                try:
                    self._exchange(name)
                except Exception as error:  # a store that is away, a damaged version: what is served is whole
                    print(f"warning: {name} stays {self[name].version}: {last_line(error)}", file=sys.stderr)

    def _exchange(self, name: str) -> None:
        old = self[name]
        version = registry.version(old.reference)
        if version == old.version:
            return
        sampler = export.load(registry.find(version), self._device)
        self._served[name] = Served(old.reference, version, self._engine(name, sampler))
        print(f"{name} is {version} now, {old.version} before", flush=True)
        old.engine.close()

    def _engine(self, name: str, sampler: export.Sampler) -> Engine:
        return Engine(sampler, self._max_waiting, lambda num: self._made(name, num))

    def close(self) -> None:
        """Returns when everything that was asked for is made."""
        for name in self:
            self[name].engine.close()
