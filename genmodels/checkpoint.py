"""Training state on disk: atomic, hashed, pruned, and read back only if it is whole.

checkpoints/000123456/state.pt        torch.save, read with weights_only=True
checkpoints/000123456/manifest.json   sha256 and bytes of state.pt
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from genmodels.files import replace_folder, sha256_file, write_json


def save(folder: Path, num_images: int, state: dict[str, Any], keep: int) -> Path:
    """Writes the state reached after `num_images` and removes all but the `keep` latest."""
    target = folder / f"{num_images:012d}"

    def write(temporary: Path) -> None:
        file = temporary / "state.pt"
        torch.save(state, file)
        write_json(temporary / "manifest.json", {"sha256": sha256_file(file), "bytes": file.stat().st_size})

    replace_folder(target, write)
    for old in _saved(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_latest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest state that is whole, or None; a damaged one is passed over with a warning."""
    for path in _saved(folder):
        damage = _damage(path)
        if damage is None:
            return torch.load(path / "state.pt", map_location=device, weights_only=True)
        warnings.warn(f"checkpoint {path} is damaged ({damage}); falling back to the one before", stacklevel=2)
    return None


def _saved(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True)


def _damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if sha256_file(path / "state.pt") != manifest["sha256"]:
            return "sha256 differs"
    except (OSError, ValueError, KeyError) as error:
        return str(error) or type(error).__name__
    return None
