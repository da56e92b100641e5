"""What `prepare --inspect` prints and writes, safe whatever files are called."""

import json
from html.parser import HTMLParser

import pytest
from commands import refused, succeed
from PIL import Image

from genmodels.data.shards import open_shards
from pipelines import prepare


class Tags(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_inspecting_prints_one_screen_and_writes_a_page(project):
    output = succeed(prepare, "--dataset", "sprites", "--inspect")
    lines = output.splitlines()
    assert len(lines) <= 35 and max(map(len, lines[2:-1])) <= 80
    for words in ("200 = 200 accepted + 0 rejected", "classes", "attributes", "captions", "copies", "index.html"):
        assert words in output
    out = project.root / "data/inspection/sprites"
    digest = open_shards(project.root / "data/shards/sprites").spec.digest
    assert json.loads((out / "statistics.json").read_text())["spec"]["digest"] == digest
    page = Tags((out / "index.html").read_text())
    assert digest in page.text and "Some of its images" in page.text
    assert not page.tags & {"script", "link", "iframe"}
    with Image.open(out / "contact.png") as picture:
        assert picture.format == "PNG"


def test_without_inspect_no_page_is_written(project, tmp_path):
    output = succeed(prepare, "--dataset", "ring", "--set", "datasets.ring={source: ring, num_images: 100}")
    assert "100 images in " in output
    assert not (project.root / "data/inspection/ring").exists()
    again = succeed(prepare, "--dataset", "ring", "--set", "datasets.ring={source: ring, num_images: 100}")
    assert "images in" not in again


@pytest.mark.parametrize(
    ("colour", "channels", "told"), [((9, 9, 9), 3, True), ((9, 9, 8), 3, False), ((9, 9, 9), 1, False)]
)
def test_gray_images_of_three_channels_are_told(project, tmp_path, colour, channels, told):
    for number in range(4):
        Image.new("RGB", (8, 8), tuple(20 * number + level for level in colour)).save(tmp_path / f"{number}.png")
    changes = f"datasets.gray={{source: {json.dumps(str(tmp_path))}, image_size: 8, channels: {channels}}}"
    assert ("datasets.gray.channels=1 spares" in succeed(prepare, "--dataset", "gray", "--set", changes)) is told


HOSTILE = "</td><script>alert(1)<img src=x onerror=alert(2)> [/red] [bold]"


def test_hostile_names_and_captions_break_neither_page_nor_screen(project, tmp_path):
    source = tmp_path / "<b onclick='x'>[red]"
    for number in range(4):
        folder = source / HOSTILE.replace("/", "") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    (source / 'a"b<i>\x1b[31m\n.txt').write_text("x")
    rows = "".join(f'{n}.png,"{HOSTILE}\x1b]0;title\x07",{HOSTILE}{n % 2}\n' for n in range(4))
    (source / "captions.csv").write_text(f"file,caption,{HOSTILE}\n{rows}")
    arguments = [f"datasets.evil.source={json.dumps(str(source))}", "datasets.evil.image_size=8"]
    arguments += ["datasets.evil.holdout=0.5", f"datasets.evil.label={json.dumps(HOSTILE)}"]
    output = succeed(
        prepare, "--dataset", "evil", "--inspect", *(part for each in arguments for part in ("--set", each))
    )
    assert "\x1b" not in output and "\x07" not in output and "[/red]" in output.replace("\n", "")
    page = Tags((project.root / "data/inspection/evil/index.html").read_text())
    assert not page.tags & {"script", "b", "i"} and not page.attributes & {"onclick", "onerror"}
    assert HOSTILE in page.text and 'a"b<i>' in page.text


def test_an_unknown_data_set_is_refused(project):
    assert "'sprite'" in refused(prepare, "--dataset", "sprite", "--inspect")
