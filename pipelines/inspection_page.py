"""The page of an inspected data set: one HTML file without scripts that opens offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from genmodels.text import one_line
from pipelines.inspection import facts

if TYPE_CHECKING:
    from genmodels.data.findings import Attributes, Count, Inspection, Sides

MAX_ROWS = 200  # of a table; a data set may have thousands of classes
STYLE = """body{font:15px/1.5 sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.15rem .6rem;text-align:left}
td.n{text-align:right}td,th{vertical-align:top;overflow-wrap:break-word;max-width:60rem}img{max-width:100%}meter{width:10rem}"""


def page(name: str, inspection: Inspection, picture: bytes) -> str:
    """One self-contained page; `picture` is the contact sheet as PNG. Names and captions are users': escaped."""
    title = text(name)
    rows = table(("", ""), ((text(what), text(said, 2000)) for what, said in facts(inspection)))
    sections = "".join(f"<h2>{heading}</h2>{content}" for heading, content in _sections(inspection))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Data set {title}</title>
<style>{STYLE}</style><h1>Data set {title}</h1>
<p>{text(inspection.source)}; digest {inspection.spec.digest}</p>{rows}
<h2>Some of its images</h2><img alt="contact sheet of {title}" src="data:image/png;base64,{base64_of(picture)}">
{sections}</html>
"""


def text(value: str, limit: int = 300) -> str:
    """A user's text, safe in HTML, on one line."""
    return html.escape(one_line(value, limit))


def base64_of(data: bytes) -> str:
    """Bytes as an image's src takes them."""
    return base64.b64encode(data).decode()


def table(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table of cells that are HTML already; numbers stand on the right."""
    head = "".join(f"<th>{title}</th>" for title in titles) if any(titles) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(content: str) -> str:
    return (
        f'<td class="n">{content}</td>' if content.rstrip("%").replace(",", "").isdecimal() else f"<td>{content}</td>"
    )


def _sections(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Headings and tables; what the data set has none of is left out."""
    if inspection.reasons:
        rows = ((text(each.reason), f"{each.number:,}", _files(each.files)) for each in inspection.reasons)
        yield "What was left out", table(("why", "files", "such as"), rows)
    for heading, several in (("Domains", inspection.domains), ("Classes", inspection.classes)):
        if several:
            yield heading, _sides(several)
    if inspection.attributes:
        yield "Attributes", _attributes(inspection.attributes, inspection)
    if inspection.captions:
        yield "Frequent words", _histogram("word", inspection.captions.frequent)
        examples = "".join(f"<li>{text(caption, 1000)}</li>" for caption in inspection.captions.examples)
        yield "Some captions", f"<ul>{examples}</ul>"
    if inspection.originals:
        yield "Shorter side of the originals, pixels", _histogram("pixels", inspection.originals.shorter)
        yield "Shape of the originals", _histogram("width : height", inspection.originals.shapes)
    if inspection.copies.groups:
        largest = inspection.copies.largest
        copies = ((f"{each.number:,}", f"{each.train:,}", f"{each.test:,}", _files(each.files)) for each in largest)
        yield "Files of equal content", table(("files", "training", "held out", "such as"), copies)


def _sides(several: Sequence[Sides]) -> str:
    most = max(each.train + each.test for each in several)
    rows = (
        (text(each.name), f"{each.train:,}", f"{each.test:,}", _bar(each.train + each.test, most))
        for each in several[:MAX_ROWS]
    )
    return table(("name", "training", "held out", ""), rows) + _left_out(several)


def _attributes(found: Attributes, inspection: Inspection) -> str:
    """Counts and shares of all images; then how often two of them are 1 together."""
    total = inspection.accepted
    rows = (
        (text(each.name), f"{each.train:,}", f"{each.test:,}", f"{(each.train + each.test) / total:.0%}")
        for each in found.counts[:MAX_ROWS]
    )
    shares = table(("name", "training", "held out", "of all images"), rows) + _left_out(found.counts)
    if len(found.together) < 2:
        return shares
    names = [text(each.name) for each in found.counts]
    pairs = ((name, *(f"{number:,}" for number in row)) for name, row in zip(names, found.together, strict=True))
    return f"{shares}<p>Images with both:</p>{table(('', *names), pairs)}"


def _histogram(what: str, counts: Sequence[Count]) -> str:
    most = max(each.number for each in counts)
    return table(
        (what, "number", ""), ((text(each.name), f"{each.number:,}", _bar(each.number, most)) for each in counts)
    )


def _bar(number: int, most: int) -> str:
    return f'<meter max="{max(1, most)}" value="{number}"></meter>'


def _left_out(names: Sequence[object]) -> str:
    return f"<p>and {len(names) - MAX_ROWS:,} more</p>" if len(names) > MAX_ROWS else ""


def _files(files: Sequence[str]) -> str:
    return "<br>".join(map(text, files))
