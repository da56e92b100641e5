"""Makes WebDataset shards of a data set that params.yaml names.

python pipelines/prepare.py --dataset sprites
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.project import Overrides, command, params, root, shards

if TYPE_CHECKING:
    from genmodels.config import Params


@command
def main(
    dataset: Annotated[str, typer.Option(help="a name under datasets in params.yaml")],
    overrides: Overrides = None,
    num_processes: Annotated[int | None, typer.Option(min=1, help="decoding processes; default: the cores")] = None,
) -> None:
    """Decodes the source, writes shards, index and manifests to data/shards/NAME; at once where nothing changed."""
    prepare(params(overrides), dataset, num_processes)


def prepare(everything: Params, dataset: str, num_processes: int | None = None) -> None:
    """Prepares one data set and prints what it holds."""
    from genmodels.data import prepare as preparation
    from genmodels.data.shards import open_shards

    config = everything.dataset(dataset)
    spec = preparation.prepare(dataset, config, shards(dataset), root(), num_processes)
    manifest = open_shards(shards(dataset))
    domains = f", domains {'/'.join(spec.domains)}" if spec.domains else ""
    print(f"{dataset}: {manifest.source}")
    print(
        f"{dataset}: {spec.num_train:,} training and {spec.num_test:,} held-out images of"
        f" {'/'.join(map(str, spec.sizes))} px, {len(spec.classes)} classes{domains},"
        f" {manifest.counts['rejected']:,} rejected, digest {spec.digest[:12]}"
        f"{f', shards in {manifest.store}' if manifest.store else ''}"
    )


if __name__ == "__main__":
    typer.run(main)
