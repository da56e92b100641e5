"""One table of what the pipeline trained: scores beside real against real, proofs, pictures, and the data sets.

python pipelines/report.py            # writes data/report/index.html and prints the table
python pipelines/report.py --check    # exit code 1 names the systems whose proof is not shown
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.evaluate import read_result
from pipelines.inspection import summary
from pipelines.project import UserError, command, params, root, shard_cache, shards

if TYPE_CHECKING:
    from genmodels.data.shards import Manifest

SCORES = ("swd", "fid", "kid", "ms_ssim", "precision", "recall")


@command
def main(
    out: Annotated[Path | None, typer.Option(help="folder; default: data/report")] = None,
    check: Annotated[bool, typer.Option("--check", help="exit code 1 if a proof is not shown")] = False,
) -> None:
    """Reads what train.py and evaluate.py left in data/ and shows it."""
    from pipelines import places

    files = sorted((root() / "data/evaluations").glob("*/evaluation.json"))
    results = {file.parent.name: read_result(file) for file in files}
    if not results:
        raise UserError(f"{root() / 'data/evaluations'} has no scores yet; `dvc repro` or evaluate.py makes them")
    behind = _behind(results)
    if behind:
        print(f"warning: not evaluated since they were trained: {', '.join(behind)}; evaluate.py does", file=sys.stderr)
    out = out or root() / "data/report"
    places.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page(results, behind), encoding="utf-8")
    show(results)
    print(f"\nreport with pictures: {out / 'index.html'}")
    missing = sorted({*behind, *(name for name, result in results.items() if not _shown(result))})
    if check and missing:
        raise SystemExit(f"not shown: {', '.join(missing)}")


def _behind(results: dict[str, Any]) -> list[str]:
    """The models whose weights are not those that were evaluated."""
    from genmodels import export

    folders = {file.parents[1].name: file.parent for file in (root() / "data/models").glob("*/export/config.json")}
    trained = {name: export.read_config(folder)["sha256"] for name, folder in folders.items()}
    return sorted(name for name, sha256 in trained.items() if sha256 != results.get(name, {}).get("sha256"))


def _shown(result: dict[str, Any]) -> bool:
    """Whether an evaluation's proofs hold, on images that were held out."""
    return result["protocol"]["split"] != "train" and all(proof["holds"] for proof in result["proofs"])


def show(results: dict[str, Any]) -> None:
    """The proofs as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("system", "what it must show", "measured", "baseline", "shown")
    for name, result in results.items():
        for proof in result["proofs"]:
            table.add_row(name, *_cells(proof))
    Console(markup=False, emoji=False).print(table)  # names may hold brackets


def page(results: dict[str, Any], behind: list[str]) -> str:
    """One self-contained HTML page; the models `behind` were trained since their evaluation."""
    sections = "".join(_section(name, result, name in behind) for name, result in results.items())
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(proof))}</tr>"
        for name, result in results.items()
        for proof in result["proofs"]
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}}
figure{{margin:1rem 0}}img{{max-width:100%;image-rendering:pixelated}}img.smooth{{image-rendering:auto}}</style>
<h1>What was trained</h1>
<table><tr><th>system<th>what it must show<th>measured<th>baseline<th>shown</tr>{rows}</table>{sections}
{"".join(_data_section(manifest) for manifest in _data_sets(results))}</html>
"""


def _data_sets(results: dict[str, Any]) -> list[Manifest]:
    """The prepared data sets that the evaluations were made on."""
    from genmodels.data.shards import DATASET_FILE, open_shards

    digests = {result["protocol"]["data_digest"] for result in results.values()}
    files = sorted(shards("").glob(f"*/{DATASET_FILE}"))  # of which some may be of an older format
    return [open_shards(file.parent) for file in files if json.loads(file.read_text())["spec"]["digest"] in digests]


def _data_section(manifest: Manifest) -> str:
    """What a data set holds, and its contact sheet."""
    from genmodels.data.contact import contact_sheet

    stream, name = io.BytesIO(), html.escape(manifest.spec.name)
    cache = shard_cache(params().compute) if manifest.store else None
    contact_sheet(manifest.folder, cache).save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    return f"""<h2>data set {name}</h2><p>{html.escape(manifest.source)}: {html.escape(summary(manifest))}</p>
<figure><img class="smooth" alt="contact sheet of {name}" src="data:image/png;base64,{picture}"></figure>"""


def _section(name: str, result: dict[str, Any], behind: bool) -> str:
    real = result["real_vs_real"]
    scores = "".join(
        f"<tr><td>{score}<td>{result['scores'][score]:.4g}<td>{real.get(score, math.nan):.4g}</tr>"
        for score in SCORES
        if score in result["scores"]
    )
    images = "".join(
        f'<figure><img alt="{title} of {name}" src="data:image/png;base64,{_base64(path)}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, path in _pictures(name, result)
    )
    notes = "<p><b>Scores and proofs are of an earlier training than the samples.</b></p>" if behind else ""
    if result["protocol"]["split"] == "train":
        notes += "<p><b>The data set holds nothing out: nothing is proved.</b></p>"
    protocol = result["protocol"]
    network = "no feature network"
    if protocol["extractor_sha256"]:
        network = f"feature network {protocol['extractor_sha256'][:12]} ({protocol['extractor_task']})"
    return f"""<h2>{html.escape(name)}</h2>{notes}{images}
<table><tr><th>score<th>samples<th>real against real</tr>{scores}</table>
<p>{protocol["num_images"]} images of {protocol["image_size"]} px, split {protocol["split"]},
data {protocol["data_digest"][:12]}, {network}.</p>"""


def _pictures(name: str, result: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """Titles, safe in HTML, and files: the samples, then what the evaluation drew."""
    samples = root() / "data/models" / name / "samples.png"
    drawn = sorted((root() / "data/evaluations" / name / "pictures").glob("*.png"))
    if "pictures" in result:  # else it is older than that entry
        drawn = [path for path in drawn if path.stem in result["pictures"]]
    for path in [samples, *drawn]:
        if path.is_file():
            yield html.escape(path.stem.replace("_", " ")), path


def _cells(proof: dict[str, Any]) -> list[str]:
    unit = f" {proof['unit']}" if proof["unit"] else ""
    return [
        proof["claim"],
        f"{proof['measured']:.4g}{unit}",
        f"{proof['baseline']:.4g}{unit}",
        "yes" if proof["holds"] else "NO",
    ]


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


if __name__ == "__main__":
    typer.run(main)
