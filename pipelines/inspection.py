"""What a prepared data set holds, for people: a screen of numbers, and a page with pictures in data/inspection/NAME."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from genmodels.text import one_line
from pipelines.project import root

if TYPE_CHECKING:
    from genmodels.data.cache import ShardCache
    from genmodels.data.findings import (
        Captions,
        Copies,
        Groups,
        Inspection,
        Originals,
        PixelValues,
        Reason,
        Sides,
        Spread,
    )
    from genmodels.data.shards import Manifest

MAX_NAMES = 12  # classes, attributes or words that fit a screen


def summary(manifest: Manifest) -> str:
    """One line: how many images of what, and the data's digest."""
    spec = manifest.spec
    domains = f", domains {'/'.join(spec.domains)}" if spec.domains else ""
    return (
        f"{spec.num_train:,} training and {spec.num_test:,} held-out images of {'/'.join(map(str, spec.sizes))} px,"
        f" {len(spec.classes)} classes{domains}, {manifest.counts['rejected']:,} rejected, digest {spec.digest[:12]}"
    )


def inspect(name: str, folder: Path, cache: ShardCache) -> Path:
    """Prints what the data set in `folder` holds and writes its page; returns the page's path."""
    from genmodels.data.contact import contact_sheet
    from genmodels.data.inspection import inspect as inspected
    from genmodels.files import replace_folder
    from pipelines.inspection_page import page

    inspection, sheet = inspected(folder, cache), contact_sheet(folder, cache)

    def write(out: Path) -> None:
        sheet.save(out / "contact.png", optimize=True)
        (out / "statistics.json").write_text(json.dumps(asdict(inspection), indent=1), encoding="utf-8")
        (out / "index.html").write_text(page(name, inspection, (out / "contact.png").read_bytes()), encoding="utf-8")

    out = root() / "data/inspection" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(out, write)
    show(inspection)
    return out / "index.html"


def show(inspection: Inspection) -> None:
    """Prints one screen."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for what, said in facts(inspection):
        table.add_row(Text(what, "bold"), Text(one_line(said, 400)))  # Text: brackets in names are no markup
    Console().print(table)


def facts(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """What there is to say, as (subject, a line); what the data set has none of is left out."""
    found, accepted, rejected = inspection.found, inspection.accepted, inspection.rejected
    yield "found", f"{found:,} = {accepted:,} accepted + {rejected:,} rejected"
    if inspection.reasons:
        yield "rejected", "; ".join(map(_reason, inspection.reasons[:4])) + _more(inspection.reasons, 4)
    yield "split", f"{inspection.spec.num_train:,} training + {inspection.spec.num_test:,} held out"
    if inspection.domains:
        yield "domains", sides(inspection.domains)
    if inspection.classes:
        yield "classes", f"{len(inspection.classes):,}: {sides(inspection.classes)}"
    if inspection.groups:
        yield f"by {inspection.groups.column}", groups(inspection.groups)
    if inspection.attributes:
        yield "attributes", shares(inspection.attributes.counts, inspection)
    if inspection.captions:
        yield from _captions(inspection.captions)
    if inspection.spec.num_parts:
        yield "key parts", f"{inspection.spec.num_parts} an image"
    if inspection.originals:
        yield from _originals(inspection.originals)
    yield "copies", copies(inspection.copies)
    yield "pixels", pixels(inspection.pixels)


def sides(counts: Sequence[Sides]) -> str:
    """'cat (540 + 60), …': training and held-out images by name."""
    shown = ", ".join(f"{one_line(each.name, 40)} ({each.train:,} + {each.test:,})" for each in counts[:MAX_NAMES])
    return shown + _more(counts, MAX_NAMES)


def shares(counts: Sequence[Sides], inspection: Inspection) -> str:
    """'hat 50% | 47%, …': shares of the training and of the held-out images."""
    train, test = max(1, inspection.spec.num_train), max(1, inspection.spec.num_test)
    shown = (
        f"{one_line(each.name, 40)} {each.train / train:.0%} | {each.test / test:.0%}" for each in counts[:MAX_NAMES]
    )
    return ", ".join(shown) + _more(counts, MAX_NAMES) + " (training | held out)"


def groups(found: Groups) -> str:
    """How many groups each split has."""
    warning = f"; {found.straddling:,} IN BOTH SPLITS" if found.straddling else ", none in both"
    return f"{found.train:,} groups train, {found.test:,} are held out{warning}; {spread(found.images)} images a group"


def copies(found: Copies) -> str:
    """How many files repeat others, with a warning where they straddle the split."""
    if not found.groups:
        return "none"
    warning = "none of them in both splits"
    if found.straddling:
        warning = f"{found.straddling:,} GROUPS IN BOTH SPLITS, so some held-out images are not unseen"
    return f"{found.images:,} files repeat others, in {found.groups:,} groups; {warning}"


def pixels(found: PixelValues) -> str:
    """Mean and deviation of each channel."""
    mean, std = (" ".join(f"{value:.2f}" for value in values) for values in (found.mean, found.std))
    return f"mean {mean}, deviation {std} (in [-1, 1], of {found.images:,} training images)"


def spread(found: Spread, digits: int = 0) -> str:
    """'least / median / most', or one number if all are the same; a median between two integers keeps its half."""
    values = (found.least, found.median, found.most) if found.least < found.most else (found.least,)
    return " / ".join(f"{value:,.{digits}f}" if digits else f"{value:,.1f}".removesuffix(".0") for value in values)


def _reason(found: Reason) -> str:
    return f"{found.number:,} {found.reason} ({', '.join(one_line(file, 40) for file in found.files[:2])})"


def _more(names: Sequence[object], shown: int) -> str:
    return f" and {len(names) - shown:,} more" if len(names) > shown else ""


def _captions(found: Captions) -> Iterator[tuple[str, str]]:
    cut = f", {found.cut:,} of them cut" if found.cut else ""
    yield (
        "captions",
        f"{found.number:,}, {spread(found.an_image)} an image, of {spread(found.words)} words{cut};"
        f" {found.vocabulary:,} words known, {found.unknown:.1%} of the held-out words are not",
    )
    yield "words", ", ".join(f"{one_line(each.name, 40)} ({each.number:,})" for each in found.frequent[:MAX_NAMES])


def _originals(found: Originals) -> Iterator[tuple[str, str]]:
    yield (
        "originals",
        f"{spread(found.width)} pixels wide, {spread(found.height)} high, width/height {spread(found.aspect, 2)}"
        f" (least / median / most); {found.enlarged:,} enlarged",
    )
    yield "bytes", f"{found.total_bytes:,} in all, {spread(found.bytes)} an image"
