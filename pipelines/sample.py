"""Samples a registered model, or a sampling folder.

python pipelines/sample.py --model progan@champion --num 64 --seed 0 --out grid.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.project import UserError, command

WALK_STEPS = 10  # images of one interpolation


@command
def main(
    model: Annotated[str, typer.Option(help="NAME@ALIAS, NAME/VERSION, an MLflow run id, or a sampling folder")],
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="images; with --interpolate: walks")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same bytes")] = 0,
    out: Annotated[Path | None, typer.Option(help="a grid, as PNG")] = None,
    each: Annotated[Path | None, typer.Option(help="a folder for single PNGs")] = None,
    interpolate: Annotated[bool, typer.Option("--interpolate", help="walks between latents, one a row")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Writes images of MODEL."""
    if out is None and each is None:
        raise UserError("nowhere to write: give --out grid.png, --each DIR, or both")
    from genmodels import export, pictures
    from pipelines import registry

    sampler = export.load(registry.find(model), device)
    images = sampler.interpolate(num, WALK_STEPS, seed) if interpolate else sampler.sample(num, seed)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.grid(images, columns=WALK_STEPS if interpolate else None).save(out)
        print(out)
    if each:
        print(f"{len(pictures.save_each(images, each))} images in {each}")


if __name__ == "__main__":
    typer.run(main)
