"""The page to play with, in a real browser."""

import pytest
from browser import Browser
from test_serving import Server

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server(project, exported):
    names = ("infogan", "text2image", "cyclegan", "stargan")
    server = Server(project, *(word for name in names for word in ("--model", str(exported(name)))))
    yield server
    server.stop()


@pytest.fixture
def page(server, tmp_path):
    browser = Browser(tmp_path / "browser")
    browser.open(server.url)
    picture(browser)
    yield browser
    browser.close()


def picture(page: Browser) -> str:
    """The picture's address, once there is one and it is drawn."""
    page.wait(lambda: page.evaluate("at('picture').complete && at('picture').naturalWidth > 0"))
    return page.evaluate("at('picture').src")


def changes(page: Browser, act) -> None:
    """Acts, and waits for another picture."""
    before = picture(page)
    act()
    page.wait(lambda: picture(page) != before)


def command(page: Browser) -> str:
    return page.evaluate("at('command').textContent")


def test_a_model_is_picked_and_its_codes_are_moved(page):
    assert page.evaluate("[...at('model').options].map((o) => o.value)")[0] == "infogan"
    assert page.evaluate("document.querySelectorAll('#sliders input').length") == 3
    changes(page, lambda: page.enter("#sliders label:nth-child(2) input", 10))
    assert "walk=1%3A10" in command(page)
    changes(page, lambda: page.enter("[data-control=label]", "3"))
    changes(page, lambda: page.enter("#seed", 7))
    changes(page, lambda: page.evaluate("at('again').click()"))
    assert "label=3" in command(page) and page.evaluate("at('said').textContent") == ""


def test_a_caption_is_typed_and_a_bad_one_is_answered(page):
    changes(page, lambda: page.enter("#model", "text2image"))
    changes(page, lambda: page.enter("[data-control=caption]", "a red cat"))
    page.enter("[data-control=caption]", "xyzzy")
    page.wait(lambda: "xyzzy" in page.evaluate("at('said').textContent"))


def test_an_image_is_dropped_and_translated(page, pictures):
    changes(page, lambda: page.enter("#model", "cyclegan"))
    changes(page, lambda: page.upload("input[type=file]", [pictures / "0.png"]))
    assert page.evaluate("at('picture').naturalWidth") == 16
    changes(page, lambda: page.enter("[data-control=direction]", "B2A"))
    assert "-F source=@0.png" in command(page) and "direction=B2A" in command(page)


def test_attributes_of_a_dropped_image_are_changed(page, pictures):
    changes(page, lambda: page.enter("#model", "stargan"))
    page.enter("[data-control=attributes]", "hat=1")
    changes(page, lambda: page.upload("input[type=file]", [pictures / "0.png"]))
    assert "attributes=hat%3D1" in command(page)


def test_the_page_needs_no_other_host(page, server):
    picture(page)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded and all(address.startswith((server.url, "blob:")) for address in loaded)
