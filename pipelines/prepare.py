"""Makes WebDataset shards of a data set that params.yaml names.

python pipelines/prepare.py --dataset sprites
python pipelines/prepare.py --dataset sprites --inspect     # and shows what it holds
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.project import Overrides, command, params, root, shard_cache, shards

if TYPE_CHECKING:
    from genmodels.config import Params
    from genmodels.data.shards import Manifest

NUM_LOOKED_AT = 64  # images


@command
def main(
    dataset: Annotated[str, typer.Option(help="a name under datasets in params.yaml")],
    overrides: Overrides = None,
    num_processes: Annotated[int | None, typer.Option(min=1, help="decoding processes; default: the cores")] = None,
    inspect: Annotated[bool, typer.Option("--inspect", help="show statistics and write a page with pictures")] = False,
) -> None:
    """Decodes the source, writes shards, index and manifests to data/shards/NAME; at once where nothing changed."""
    everything = params(overrides)
    prepare(everything, dataset, num_processes)
    if inspect:
        from pipelines import inspection

        page = inspection.inspect(dataset, shards(dataset), shard_cache(everything.compute))
        print(f"{dataset}: page with pictures: {page}")


def prepare(everything: Params, dataset: str, num_processes: int | None = None) -> None:
    """Prepares one data set, on the cluster of RAY_ADDRESS if there is one, and prints what it holds.

    Another process that prepares it is waited for; what it made is not made again.
    """
    from genmodels.data import prepare as preparation
    from genmodels.data.shards import open_shards
    from genmodels.data.sources import RENDERED
    from pipelines.console import ImageProgress
    from pipelines.inspection import summary
    from pipelines.tracking import exclusive

    config = everything.dataset(dataset)
    open_pool = None
    if os.environ.get("RAY_ADDRESS") and config.source not in RENDERED:
        from pipelines.cluster import RayPool

        open_pool = RayPool
    with exclusive(f"prepare-{dataset}", f"{dataset}: waits for who prepares it"), ImageProgress(dataset) as progress:
        preparation.prepare(dataset, config, shards(dataset), root(), num_processes, progress, open_pool)
    manifest = open_shards(shards(dataset))
    print(f"{dataset}: {manifest.source}")
    place = f", shards in {manifest.store}" if manifest.store else ""
    print(f"{dataset}: {summary(manifest)}{place}")
    if manifest.spec.channels == 3 and not manifest.store and are_gray(manifest):
        print(f"{dataset}: its images look gray: datasets.{dataset}.channels=1 spares networks two equal channels")


def are_gray(manifest: Manifest) -> bool:
    """Whether the first training images, at the smallest size, are the same in red, green and blue."""
    from genmodels.data.loader import read_split

    images = read_split(manifest.folder, "train", manifest.spec.sizes[0], NUM_LOOKED_AT)[0]["image"]
    return bool((images == images[:, :1]).all())


if __name__ == "__main__":
    typer.run(main)
