"""Any image file -> a square uint8 array, and its pyramid of halved sizes. Hostile input is refused by reason."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from genmodels.config import DatasetConfig
from genmodels.data.fields import Box

# Nothing else is tried: Pillow would hand EPS to Ghostscript, whatever the file is called.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX}
SMALLEST = 4  # pixels; where the pyramid ends

Pixels = NDArray[np.uint8]
Data = bytes | Image.Image | NDArray[np.float32]  # a file's bytes, a rendered image, or values [H, W, C] in [-1, 1]


class Rejected(Exception):
    """The image cannot be used; the message is a short reason, the same for all images with this fault."""


def decode(data: bytes | Image.Image, config: DatasetConfig, stretched: bool = False) -> Pixels:
    """Image file or image -> uint8 [S, S, C] as the configuration wants it, or `stretched`. Rejected says why not."""
    image = load(data, config)
    if stretched:
        image = image.resize((config.image_size, config.image_size), RESAMPLING[config.resampling])
    return fit(image, config)


def load(data: bytes | Image.Image, config: DatasetConfig) -> Image.Image:
    """Image file or image -> upright RGB image of its own size, in sRGB, on `config.background`.

    The first frame of an animation. The header's size is checked before any pixel is decoded.
    Not thread-safe: Pillow's limits and warnings are global.
    """
    with _quiet_pillow():
        image = data if isinstance(data, Image.Image) else _open(data)
        if image.width * image.height > config.max_pixels:
            raise Rejected(f"more than {config.max_pixels} pixels")
        try:
            image.load()
            return _to_rgb(_upright(image), config.background)
        except Rejected:
            raise
        except Exception as error:  # decoders of hostile bytes raise whatever they like
            raise Rejected("truncated" if "truncated" in str(error) else "cannot be decoded") from error


def quantized(values: NDArray[np.float32]) -> Pixels:
    """Values in [-1, 1] at 256 levels; those outside are clipped."""
    return np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's own pixel limit and warnings off: `config.max_pixels` and Rejected take their place."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open(data: bytes) -> Image.Image:
    if not data:
        raise Rejected("empty file")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Rejected("not an image") from error
    except Exception as error:
        raise Rejected("header cannot be read") from error


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # unreadable EXIF says nothing about the orientation
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None:
        image = image.convert("RGBA")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, background), alpha)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Gray levels 0 .. 65535 -> 0 .. 255, rounded. Other ranges of wide pixels have no agreed meaning."""
    wide = np.asarray(image)
    if wide.dtype.kind == "f" or wide.min() < 0 or wide.max() > 65535:
        raise Rejected("32 bit pixels of unknown range")
    return Image.fromarray(((wide.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):  # unusable profile: the numbers as they are
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def fit(image: Image.Image, config: DatasetConfig, place: float = 0.5) -> Pixels:
    """RGB image -> uint8 [S, S, C]: a square of it, or the whole on a padded ground; gray if C = 1.

    `place` in [0, 1]: which square along the longer side, 0.5 the centre.
    """
    side, smaller = config.image_size, RESAMPLING[config.resampling]
    left, top, width, height = _frame(image.width, image.height, config.fit, place)
    if config.fit == "pad":
        scaled = (max(1, round(side * image.width / width)), max(1, round(side * image.height / height)))
        square = Image.new("RGB", (side, side), config.background)
        corner = ((side - scaled[0]) // 2, (side - scaled[1]) // 2)
        square.paste(image.resize(scaled, smaller), corner)
    else:
        square = image.crop((left, top, left + width, top + height)).resize((side, side), smaller)
    pixels = np.array(square if config.channels == 3 else square.convert("L"))
    return pixels.reshape(side, side, config.channels)


def fit_box(box: Box, width: int, height: int, config: DatasetConfig, place: float = 0.5) -> Box:
    """A box of the original image, as fractions of the squared one's sides; what is cut off is clipped."""
    left, top, frame_width, frame_height = _frame(width, height, config.fit, place)
    across = [(edge * width - left) / frame_width for edge in box[::2]]
    down = [(edge * height - top) / frame_height for edge in box[1::2]]
    clipped = [min(max(edge, 0.0), 1.0) for edge in (across[0], down[0], across[1], down[1])]
    return clipped[0], clipped[1], clipped[2], clipped[3]


def _frame(width: int, height: int, fit: str, place: float = 0.5) -> tuple[int, int, int, int]:
    """Left, top, width, height (pixels of the original) of the square that becomes the sample."""
    side = max(width, height) if fit == "pad" else min(width, height)
    return math.floor(place * (width - side)), math.floor(place * (height - side)), side, side


def is_upscaled(width: int, height: int, config: DatasetConfig) -> bool:
    """Whether an original of this size has fewer pixels than the sample made of it."""
    return _frame(width, height, config.fit)[2] < config.image_size


def pyramid_sizes(image_size: int, pyramid: bool = True) -> tuple[int, ...]:
    """Sizes on disk, ascending: halved while the side is even, down to 4. 28 -> 7, 14, 28."""
    sizes = [image_size]
    while pyramid and sizes[0] % 2 == 0 and sizes[0] >= 2 * SMALLEST:
        sizes.insert(0, sizes[0] // 2)
    return tuple(sizes)


def pyramid(image: Pixels) -> dict[int, Pixels]:
    """uint8 [S, S, C] -> {size: uint8 [size, size, C]}: 2x2 box means of the top, each rounded once."""
    levels = {len(image): image}
    sums = image.astype(np.uint32)  # exact: 255 * 2048**2 fits
    for halvings, size in enumerate(reversed(pyramid_sizes(len(image))[:-1]), 1):
        sums = sums[::2, ::2] + sums[1::2, ::2] + sums[::2, 1::2] + sums[1::2, 1::2]
        half = np.uint32(1 << 2 * halvings - 1)  # of the area that a pixel covers, 4 ** halvings
        levels[size] = ((sums + half) >> np.uint32(2 * halvings)).astype(np.uint8)
    return levels
