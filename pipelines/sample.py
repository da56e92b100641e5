"""Samples a registered model, or a sampling folder.

python pipelines/sample.py --model progan@champion --num 64 --seed 0 --out grid.png
python pipelines/sample.py --model text2image@champion --caption "a red cat at night" --num 8 --out cats.png
python pipelines/sample.py --model cyclegan@champion --source photographs/ --out translated.png
"""

from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import UserError, command

if TYPE_CHECKING:
    from torch import Tensor

    from genmodels.data.fields import DataSpec

_decoding = threading.Lock()  # Pillow's limits, which `decode` sets, are global

STEPS = 10  # images of one interpolation or traversal


@command
def main(
    model: Annotated[str, typer.Option(help="NAME@ALIAS, NAME/VERSION, an MLflow run id, or a sampling folder")],
    num: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="images; with --interpolate: walks")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="the same seed gives the same bytes")] = 0,
    out: Annotated[Path | None, typer.Option(help="a grid, as PNG")] = None,
    each: Annotated[Path | None, typer.Option(help="a folder for single PNGs")] = None,
    interpolate: Annotated[bool, typer.Option("--interpolate", help="walks between latents, one a row")] = False,
    traverse: Annotated[bool, typer.Option("--traverse", help="one code or coordinate moves, a row each")] = False,
    label: Annotated[str | None, typer.Option("--class", help="the class to sample")] = None,
    caption: Annotated[list[str] | None, typer.Option(help="what to show; may be given several times")] = None,
    source: Annotated[Path | None, typer.Option(help="images to translate or reconstruct: a file or a folder")] = None,
    direction: Annotated[str | None, typer.Option(help="of a translation between domains: A2B or B2A")] = None,
    attributes: Annotated[str | None, typer.Option(help="to change in the source's own: hat=1,night=0")] = None,
    patches: Annotated[Path | None, typer.Option(help="key patches to build a whole image from: a folder")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Writes images of MODEL."""
    if out is None and each is None:
        raise UserError("nowhere to write: give --out grid.png, --each DIR, or both")
    if interpolate and traverse:
        raise UserError("--interpolate and --traverse are two different pictures; choose one")
    if traverse and num:
        raise UserError(f"--traverse draws a row for each code or coordinate, of {STEPS} images; leave out --num {num}")
    if source and (interpolate or traverse):
        walk = "--interpolate" if interpolate else "--traverse"
        raise UserError(f"{walk} moves latents, and what --source gives needs none; leave out one of them")
    from genmodels import export, pictures
    from pipelines import places, registry

    if out:
        places.check_picture(out)
    if each:
        places.check_folder(each, "--each")
    places.check_device(device)
    sampler = export.load(registry.find(model), device)
    given: dict[str, Any] = {"label": label, "caption": caption, "direction": direction, "attributes": attributes}
    for key, path in (("source", source), ("patches", patches)):
        given[key] = None if path is None else read_images(files_of(path), sampler.model.data, key)
    given = {key: value for key, value in given.items() if value is not None}
    cond = sampler.model.encode_condition(**given) if given else None
    columns = STEPS if interpolate or traverse else None
    if traverse:
        images = shown = sampler.traverse(STEPS, seed, cond)
    elif interpolate:
        images = shown = sampler.interpolate(num or 8, STEPS, seed, cond)
    else:
        num = num or (len(next(iter(cond.values()))) if cond else 64)
        latents, used = sampler.inputs(num, seed, cond)
        if each and not out:  # as many as one likes: memory holds some at a time
            several = sampler.decode_chunks(latents, used)
            print(f"{pictures.save_each(chain.from_iterable(several), each)} images in {each}")
            return
        images = sampler.decode(latents, used)
        shown = sampler.model.present(images, used)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.grid(shown, columns).save(out)
        print(out)
    if each:
        print(f"{pictures.save_each(images, each)} images in {each}")


def files_of(path: Path) -> list[tuple[str, bytes]]:
    """A file, or a folder's files in order of name, each with its content."""
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        contents = [(str(file), file.read_bytes()) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    if not contents:
        raise UserError(f"{path} holds no images")
    return contents


def read_images(files: list[tuple[str, bytes]], spec: DataSpec, kind: str = "source") -> Tensor:
    """Image files, (name, content), as the model's data were read: [N, C, S, S] in [-1, 1].

    kind: "source", or "patches", which are stretched to squares as the boxes of the data are.
    """
    import numpy as np
    import torch

    from genmodels.config import DatasetConfig
    from genmodels.data.images import Rejected, decode
    from genmodels.trainer import to_float

    if spec.channels == 2:
        raise UserError(f"{files[0][0]}: the model's data are points, which no image file holds")
    framing = {"fit": spec.fit, "resampling": spec.resampling, "background": spec.background}
    config = DatasetConfig(source="files", image_size=spec.image_size, channels=spec.channels, **framing)
    pixels = []
    for name, content in files:
        try:
            with _decoding:
                pixels.append(decode(content, config, stretched=kind == "patches"))
        except Rejected as error:
            raise UserError(f"{name}: {error}") from None
    return to_float(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


if __name__ == "__main__":
    typer.run(main)
