"""Where a command may write and on what it may compute: what is wrong is said before any work."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.project import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff")  # that Pillow writes


def check_folder(path: Path, option: str = "--out") -> None:
    """UserError unless `path` is a folder that this process may write into, or can become one."""
    path = path.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: this user may not write into {there}")


def check_file(path: Path, option: str = "--out") -> None:
    """UserError unless `path` is a file that this process may write, or can become one."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file in it")
    check_folder(path.parent, option)


def check_picture(path: Path, option: str = "--out") -> None:
    """The same of a picture, whose kind its name tells."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path}: its end says what to write; choices: {', '.join(PICTURES)}")
    check_file(path, option)


def check_device(name: str) -> None:
    """UserError unless this machine has the device."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in known:
        raise UserError(f"--device {name!r}: this machine has no such device; choices: {', '.join(known)}")
