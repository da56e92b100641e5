"""Ranks what is registered, and draws the best side by side.

python pipelines/leaderboard.py                       # every model
python pipelines/leaderboard.py --model dcgan --top 5

Versions are ranked by their model's declared metric, among those that were scored by the same protocol (images, feature
network, resize filter, data): another table a protocol, since their scores do not compare. Of those that were
evaluated, one whose own proofs do not all hold comes after those whose do. Writes leaderboard.json and index.html, one
page that needs no network.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.project import UserError, command, root

NUM_DRAWN = 36  # images of a grid in the gallery


@command
def main(
    model: Annotated[str | None, typer.Option(help="one registered model; default: all")] = None,
    top: Annotated[int, typer.Option(min=1, help="versions a table")] = 10,
    out: Annotated[Path | None, typer.Option(help="folder for page and JSON; default: data/leaderboard")] = None,
) -> None:
    """Prints the tables and writes the gallery."""
    from genmodels.files import write_json, write_text
    from pipelines import places

    folder = out or root() / "data/leaderboard"
    places.check_folder(folder)
    tables = ranking(model)
    for (name, dataset, protocol), rows in tables.items():
        show(f"{name} on {dataset}, protocol {protocol}", rows[:top])
    write_json(
        folder / "leaderboard.json", [{"model": k[0], "protocol": k[2], "versions": v} for k, v in tables.items()]
    )
    page = gallery({key: rows[:top] for key, rows in tables.items()})
    write_text(folder / "index.html", page)
    print(f"gallery: {folder / 'index.html'}")


def ranking(model: str | None = None) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The registered versions, best first, by (model, data set, protocol); UserError where there are none."""
    from genmodels.model import model_names
    from pipelines.champion import ranked
    from pipelines.tracking import connected

    client = connected().MlflowClient()
    ours = set(model_names())  # a store may hold other projects' models
    aliases = {known.name: known.aliases for known in client.search_registered_models() if known.name in ours}
    if not aliases or (model and model not in aliases):
        raise UserError(
            f"no version of {model or 'any model'} is registered; registered: {', '.join(aliases) or 'nothing'}"
        )
    versions = defaultdict(list)
    for version in client.search_model_versions(f"name = '{model}'" if model else None, max_results=1000):
        if version.name in aliases:
            versions[version.name, version.tags.get("dataset", ""), version.tags.get("protocol", "")].append(version)
    return {
        key: [_row(version, aliases[version.name]) for version in ranked(key[0], several)]
        for key, several in sorted(versions.items())
    }


def _row(version: Any, aliases: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "version": int(version.version),
        "score": float(version.tags.get("score", math.nan)),
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
    }
    return row | {key: version.tags.get(key) for key in ("proofs", "swd", "fid", "ms_ssim", "run", "sweep", "sha256")}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("version", "score", "swd", "fid", "proofs", "aliases", "run", title=title, title_justify="left")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    words = [row[key] or "" for key in ("swd", "fid", "proofs")]
    return [str(row["version"]), f"{row['score']:.5g}", *words, ", ".join(row["aliases"]), row["run"] or ""]


def gallery(tables: dict[tuple[str, str, str], list[dict[str, Any]]]) -> str:
    """One self-contained HTML page: a section a table, a grid of the same seed for every version."""
    sections = "".join(_section(*key, rows) for key, rows in tables.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title>
<style>body{{font:16px/1.5 sans-serif;margin:2rem}}.row{{display:flex;flex-wrap:wrap;gap:1.5rem}}figure{{margin:0}}
img{{image-rendering:pixelated;width:20rem}}figcaption{{max-width:20rem}}</style>
<h1>Registered versions, best first</h1>{sections}</html>
"""


def _section(name: str, dataset: str, protocol: str, rows: list[dict[str, Any]]) -> str:
    figures = "".join(_figure(name, row) for row in rows)
    title = f"{html.escape(name)} on {html.escape(dataset)}"
    return f'<h2>{title}</h2><p>protocol {html.escape(protocol)}</p><div class="row">{figures}</div>'


def _figure(name: str, row: dict[str, Any]) -> str:
    version, aliases = html.escape(f"{name}/{row['version']}"), html.escape(", ".join(row["aliases"]))
    return (
        f'<figure><img alt="samples of {version}" src="data:image/png;base64,{_grid(name, row)}">'
        f"<figcaption><b>{version}</b> {aliases}<br>score {row['score']:.5g}; "
        f"proofs: {html.escape(row['proofs'] or 'not evaluated')}</figcaption></figure>"
    )


def _grid(name: str, row: dict[str, Any]) -> str:
    """Samples of a version by seed 0, as base64 of a PNG."""
    from genmodels import export, pictures
    from pipelines import registry

    sampler = export.load(registry.find(f"{name}/{row['version']}"))
    images, used = sampler.sample(NUM_DRAWN), sampler.conditions_for(NUM_DRAWN)
    stream = io.BytesIO()
    pictures.grid(sampler.model.present(images, used), min_side=32).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    typer.run(main)
