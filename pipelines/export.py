"""Takes a registered model out of MLflow: a sampling folder, which needs torch and genmodels alone, or an ONNX file.

python pipelines/export.py --model progan@champion --out progan/        # genmodels.load("progan").sample(16)
python pipelines/export.py --model progan@champion --out progan.onnx
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.project import UserError, command


@command
def main(
    model: Annotated[str, typer.Option(help="NAME@ALIAS, NAME/VERSION, an MLflow run id, or a sampling folder")],
    out: Annotated[Path, typer.Option(help="a new folder, or a file that ends in .onnx")],
) -> None:
    """Writes MODEL to OUT."""
    from pipelines import places, registry

    if out.exists():
        raise UserError(f"{out} exists; give a new place")
    places.check_file(out)
    sampler = registry.load(model)
    if out.suffix == ".onnx":
        from genmodels.onnx import export_onnx

        out.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(sampler, out)
    else:
        sampler.save_pretrained(out)
    print(out)


if __name__ == "__main__":
    typer.run(main)
