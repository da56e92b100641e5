"""Where the project is, and what all commands share: options and one-line errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.parent import follow_dvc

if TYPE_CHECKING:
    from genmodels.config import ComputeConfig, EvaluationConfig
    from genmodels.data.cache import ShardCache
    from genmodels.data.fields import DataSpec

FULL = {errno.ENOSPC, errno.EDQUOT}
ELSEWHERE = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override any parameter, as in models.vae.train.num_images=5000"),
]


def root() -> Path:
    """The project's folder: $GENMODELS_ROOT, else the working directory if it has params.yaml, else the installed one.

    `ray submit` copies a script alone to the home folder, so a command must not rely on its own place.
    """
    if "GENMODELS_ROOT" in os.environ:
        return Path(os.environ["GENMODELS_ROOT"]).resolve()
    here = Path.cwd()
    return here if (here / "params.yaml").is_file() else Path(__file__).resolve().parents[1]


def store_root() -> Path:
    """Where runs and the tracking store live: the project, also from a temporary copy of it that DVC made."""
    parts = root().parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return root()


def params(overrides: Iterable[str] | None = None) -> Any:
    """The validated params.yaml with overrides applied."""
    from genmodels.config import load_params

    return load_params(root() / "params.yaml", overrides or ())


def shards(dataset: str) -> Path:
    """The folder of a prepared data set."""
    return root() / "data" / "shards" / dataset


def storage(compute: ComputeConfig) -> Path:
    """Where runs live: `compute.storage_path`, relative to the project."""
    return (store_root() / compute.storage_path).absolute()


def shard_cache(compute: ComputeConfig) -> ShardCache:
    """Where shards of data sets in a store are kept on this machine."""
    from genmodels.data.cache import ShardCache

    return ShardCache((store_root() / compute.cache_path).absolute(), int(compute.cache_gb * 1e9))


def extractor_path(compute: ComputeConfig, spec: DataSpec, evaluation: EvaluationConfig) -> Path:
    """The file of a data set's feature network; UserError where the one that params.yaml names is not there."""
    if evaluation.extractor:
        supplied = (root() / Path(evaluation.extractor).expanduser()).absolute()
        if not supplied.is_file():
            raise UserError(f"evaluation.extractor {evaluation.extractor}: there is no file {supplied}")
        return supplied
    return storage(compute) / "extractors" / f"{spec.digest[:16]}-{evaluation.extractor_images}.safetensors"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Shows what a user can get wrong as one line on stderr, with exit code 2; our own faults keep their traceback."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        follow_dvc()
        try:
            function(*args, **kwargs)
        except Exception as error:
            if (line := _told(error)) is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where this stopped", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapper


def _told(error: Exception) -> str | None:
    """The line that says what a user can change; None for what is our own fault."""
    if isinstance(error, ValueError | UserError):
        return str(error)
    if isinstance(error, OSError):
        return str(error) if _outside(error) else None
    mlflow = sys.modules.get("mlflow.exceptions")  # whoever got its error has imported it
    if mlflow and isinstance(error, mlflow.MlflowException):
        from genmodels.credentials import masked

        return f"MLflow: {masked(str(error).strip().splitlines()[0])}"
    return None


def _outside(error: OSError) -> bool:
    """Whether the fault is a full disk, a server that is away, or a file that is not as a path says."""
    from genmodels.data.remote import Outage

    away = isinstance(error, Outage) or type(error).__module__.startswith("requests.")  # by which MLflow asks
    return away or error.errno in FULL or (error.filename is not None and error.errno in ELSEWHERE | FORBIDDEN)


def last_line(error: BaseException) -> str:
    """The last line of an error's message, which in Ray's is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class UserError(Exception):
    """Something outside the program has to change; the message is one line that says what."""
