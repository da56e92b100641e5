"""Any image file becomes the right square, or is refused with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from genmodels.config import DatasetConfig
from genmodels.data.images import Rejected, decode, fit, fit_box, is_upscaled, pyramid, pyramid_sizes

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def config(**values) -> DatasetConfig:
    return DatasetConfig(source="x", **{"image_size": 8, **values})


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def solid(mode: str, color, size=(16, 16)) -> Image.Image:
    return Image.new(mode, size, color)


def assert_solid(pixels, color, tolerance=0):
    assert np.abs(pixels.astype(int) - np.array(color)).max() <= tolerance


ACCEPTED = {
    "rgb": (encoded(solid("RGB", RED)), RED),
    "gray": (encoded(solid("L", 77)), (77, 77, 77)),
    "bilevel": (encoded(solid("1", 1)), WHITE),
    "16 bit": (encoded(Image.fromarray(np.full((9, 9), 128 * 257 + 100, np.uint16))), (128, 128, 128)),
    "16 bit tiff": (encoded(Image.fromarray(np.full((9, 9), 65535, np.uint16)), "TIFF"), WHITE),
    "palette": (encoded(solid("RGB", GREEN).convert("P")), GREEN),
    "cmyk": (encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "transparent": (encoded(solid("RGBA", (0, 0, 0, 0))), WHITE),
    "half transparent": (encoded(solid("RGBA", (0, 0, 0, 128))), (127, 127, 127)),
    "gray with alpha": (encoded(solid("LA", (0, 0))), WHITE),
    "gray with a transparent level": (encoded(solid("L", 5), transparency=5), WHITE),
    "palette with a transparent colour": (encoded(solid("P", 0), "GIF", transparency=0), WHITE),
    "animated gif": (encoded(solid("RGB", RED), "GIF", save_all=True, append_images=[solid("RGB", BLUE)]), RED),
    "animated webp": (
        encoded(solid("RGB", RED), "WEBP", lossless=True, save_all=True, append_images=[solid("RGB", BLUE)]),
        RED,
    ),
    "one pixel": (encoded(solid("RGB", BLUE, (1, 1)), "BMP"), BLUE),
    "4000x10": (encoded(solid("RGB", BLUE, (4000, 10))), BLUE),
    "several pictures": (encoded(solid("RGB", WHITE), "MPO", save_all=True, append_images=[solid("RGB", RED)]), WHITE),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    data, color = ACCEPTED[name]
    pixels = decode(data, config())
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert_solid(pixels, color, tolerance=2 if name in ("cmyk", "half transparent") else 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
REFUSED = {
    "zero bytes": (b"", "empty file"),
    "text": (b"hello, I am a picture", "not an image"),
    "pickle": (b"\x80\x04\x95cos\nsystem\n", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:1500], "truncated"),
    "truncated png": (encoded(NOISE)[:1500], "truncated"),
    "bomb": (bomb(60_000, 60_000), "more than 50000000 pixels"),
    "bomb under pillow's own limit": (bomb(8_000, 8_000), "more than 50000000 pixels"),
    "floats": (encoded(solid("F", 0.5), "TIFF"), "32 bit pixels of unknown range"),
    "corrupt body": (bomb(100, 100), "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, reason = REFUSED[name]
    with pytest.raises(Rejected, match=f"^{reason}$"):
        decode(data, config())


def test_pillows_limit_is_put_back():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(Rejected):
        decode(bomb(60_000, 60_000), config())
    assert before == Image.MAX_IMAGE_PIXELS is not None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_decoded_or_rejected_and_nothing_else(data):
    whole = bytearray(data.draw(st.sampled_from([value for value, _ in ACCEPTED.values()])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(whole[: data.draw(st.integers(1, len(whole)))]), config()).shape == (8, 8, 3)
    except Rejected as rejected:
        assert "\n" not in str(rejected)


def test_exif_orientation_turns_the_image():
    image = solid("RGB", RED, (16, 16))
    image.paste(BLUE, (0, 0, 8, 16))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise: left becomes top
    pixels = decode(encoded(image, "PNG", exif=exif), config())
    assert_solid(pixels[:2], BLUE, tolerance=2)
    assert_solid(pixels[-2:], RED, tolerance=2)


def test_an_unusable_profile_is_ignored_and_a_usable_one_applied():
    gray = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"not a profile", gray):
        assert_solid(decode(encoded(solid("RGB", (10, 200, 30)), icc_profile=profile), config()), (10, 200, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_solid(decode(encoded(solid("RGB", (10, 200, 30)), icc_profile=srgb), config()), (10, 200, 30), tolerance=1)


def test_a_profile_changes_the_colours_it_should():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"  # red and green change places
    pixels = decode(encoded(solid("RGB", RED), icc_profile=bytes(profile)), config())
    assert pixels[0, 0, 1] > 250 > 5 > pixels[0, 0, 0]


def test_crop_takes_the_centre_and_pad_keeps_the_whole():
    image = solid("RGB", RED, (32, 16))
    image.paste(BLUE, (8, 0, 24, 16))
    assert_solid(decode(encoded(image), config()), BLUE)
    padded = decode(encoded(image), config(fit="pad", background=GREEN))
    assert_solid(padded[:2], GREEN)
    assert_solid(padded[-2:], GREEN)
    assert_solid(padded[2:6, 0], RED, tolerance=40)
    assert_solid(padded[2:6, 3:5], BLUE, tolerance=40)


def test_a_random_crop_lies_where_it_is_told_and_boxes_with_it():
    image = solid("RGB", RED, (32, 16))
    image.paste(BLUE, (16, 0, 32, 16))
    settings = config(fit="random_crop")
    assert_solid(fit(image, settings, 0.0), RED)
    assert_solid(fit(image, settings, 1.0), BLUE)
    assert fit_box((0.5, 0.0, 1.0, 1.0), 32, 16, settings, 0.5) == (0.5, 0.0, 1.0, 1.0)


def test_area_takes_the_mean_of_what_a_pixel_covers():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    area = fit(Image.fromarray(pixels), config(resampling="area"))
    mean = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(area - mean).max() <= 1  # Pillow rounds after each direction


def test_pad_keeps_a_line_of_an_extreme_shape():
    padded = decode(ACCEPTED["4000x10"][0], config(fit="pad"))
    assert (padded == BLUE).all(-1).any(-1).sum() == 1


def test_background_shows_through_and_one_channel_is_gray():
    clear = encoded(solid("RGBA", (0, 0, 0, 0)))
    assert_solid(decode(clear, config(background=GREEN)), GREEN)
    gray = decode(encoded(solid("L", 201)), config(channels=1))
    assert gray.shape == (8, 8, 1) and (gray == 201).all()
    assert decode(encoded(solid("RGB", GREEN)), config(channels=1))[0, 0, 0] == 150


def test_boxes_follow_the_crop_and_the_padding():
    box = (0.25, 0.0, 0.75, 1.0)
    assert fit_box(box, 32, 16, config()) == (0.0, 0.0, 1.0, 1.0)
    assert fit_box(box, 32, 16, config(fit="pad")) == (0.25, 0.25, 0.75, 0.75)
    assert fit_box(box, 20, 20, config()) == box
    assert fit_box((0.0, 0.0, 0.1, 1.0), 32, 16, config()) == (0.0, 0.0, 0.0, 1.0)


def test_upscaling_is_told_by_the_side_that_becomes_the_square():
    assert is_upscaled(100, 7, config()) and not is_upscaled(100, 7, config(fit="pad"))
    assert not is_upscaled(8, 8, config())


def test_the_pyramid_halves_while_it_can():
    assert pyramid_sizes(28) == (7, 14, 28)
    assert pyramid_sizes(32) == (4, 8, 16, 32)
    assert pyramid_sizes(4) == (4,) and pyramid_sizes(9) == (9,) and pyramid_sizes(6) == (6,)
    assert pyramid_sizes(32, False) == (32,)


def test_the_pyramid_is_the_rounded_mean_of_the_top():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    levels = pyramid(image)
    assert list(levels) == [16, 8, 4] and (levels[16] == image).all()
    for size in (8, 4):
        step = 16 // size
        means = image.reshape(size, step, size, step, 3).mean((1, 3))
        assert np.abs(levels[size] - means).max() <= 0.5
    assert (pyramid(np.full((16, 16, 1), 255, np.uint8))[4] == 255).all()
