"""Key patches of an image without labels: boxes that enclose edges, pruned for overlap.

In the manner of Edge Boxes (Zitnick & Dollar 2014): sliding windows of several scales and aspect ratios score the
edge magnitude inside them, less that of their inner half (contours lie near a box's sides) and less that on their
border (a contour that leaves belongs to something else), over their perimeter to the power 1.5. Greedy non-maximum
suppression picks the best; Lee et al. 2018 (arXiv 1703.10730) take three an image. A pure function of the pixels.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmodels.data.fields import Box
from genmodels.data.images import Pixels

WORKING_SIZE = 64  # pixels; larger images are averaged down to about this
STEP = 1 / 32  # of the side, between windows
AREAS = (0.035, 0.06, 0.1)  # of the image
ASPECTS = (0.5, 1.0, 2.0)  # width / height
PERIMETER_POWER = 1.5
MAX_OVERLAP = 0.1  # intersection over union of two boxes of one image

Values = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Windows(NamedTuple):
    """Every window of images of one size; W of them."""

    boxes: Values  # [4, W]: left, top, right, bottom; pixels
    corners: Numbers  # [16, W]: places in the summed edges of the corners of box, its inner half, and both borders
    scale: Values  # [W]: 1 / perimeter ** PERIMETER_POWER


SIGNS = np.outer((1, -1, -1, 1), (1, -1, -1, 1)).astype(np.float32).reshape(16, 1)  # terms x corners


def key_patches(pixels: Pixels, num: int) -> tuple[Box, ...]:
    """`num` boxes of uint8 [S, S, C] as fractions of its sides, from top to bottom.

    They overlap by at most MAX_OVERLAP where the image has room for so many boxes apart.
    """
    edges = edge_magnitude(pixels)
    every = windows(len(edges))
    sums = np.zeros((len(edges) + 1, len(edges) + 1))
    edges.cumsum(0, dtype=np.float64).cumsum(1, out=sums[1:, 1:])
    scores = (sums.ravel()[every.corners] * SIGNS).sum(0) * every.scale
    left, chosen = scores.copy(), list[int]()
    for _ in range(num):
        if left.max() == -np.inf:  # no room: the best that is left
            left = scores.copy()
            left[chosen] = -np.inf
        chosen.append(int(left.argmax()))
        left[overlap(every.boxes, chosen[-1]) > MAX_OVERLAP] = -np.inf
    fractions = (every.boxes[:, chosen].T.astype(np.float64) / len(edges)).tolist()
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in sorted(fractions, key=lambda box: (box[1] + box[3], box[0])))


def edge_magnitude(pixels: Pixels) -> Values:
    """Strength of the gradient [S', S'], of the strongest channel; S' < 2 WORKING_SIZE.

    Cut at the median of those above the mean: one hard contour is not all there is.
    """
    factor = max(1, len(pixels) // WORKING_SIZE)
    side = len(pixels) // factor
    image = pixels[: side * factor, : side * factor].astype(np.float32)
    if factor > 1:
        image = image.reshape(side, factor, side, factor, -1).mean(axis=(1, 3))
    squares = np.zeros_like(image)
    squares[:, 1:-1] += np.square(image[:, 2:] - image[:, :-2])
    squares[1:-1] += np.square(image[2:] - image[:-2])
    edges = np.sqrt(squares.max(axis=2))
    clear = edges[edges > edges.mean()]
    return np.minimum(edges, np.median(clear)) if clear.size else edges


@cache
def windows(side: int) -> Windows:
    """The windows of images of this size, those of one shape in raster order.

    None touches the image's border, where a contour that leaves cannot be told from one that ends.
    """
    shapes = []
    step = max(1, round(side * STEP))
    for area in AREAS:
        for aspect in ASPECTS:
            width, height = (max(1, round(side * (area * ratio) ** 0.5)) for ratio in (aspect, 1 / aspect))
            tops, lefts = np.mgrid[step : side - height : step, step : side - width : step].reshape(2, -1)
            shapes.append(np.stack([lefts, tops, lefts + width, tops + height]))
    boxes = np.concatenate(shapes, axis=1)
    width, height = boxes[2:] - boxes[:2]
    one = np.minimum(1, np.minimum(width, height) // 2)
    terms = ((0 * width, 0 * height), (width // 4, height // 4), (-one, -one), (one, one))
    corners = [_corners(boxes, x, y, side) for x, y in terms]
    scale = (2.0 * (width + height)) ** -PERIMETER_POWER
    return Windows(boxes.astype(np.float32), np.concatenate(corners), scale.astype(np.float32))


def _corners(boxes: Numbers, x: Numbers, y: Numbers, side: int) -> Numbers:
    """Places [4, W] of the boxes' corners in the flat [side + 1, side + 1] sums, moved inwards by x and y."""
    left, top, right, bottom = (boxes + np.stack([x, y, -x, -y])).clip(0, side)
    return np.stack([row * (side + 1) + column for row in (bottom, top) for column in (right, left)])


def overlap(boxes: Values, index: int) -> Values:
    """Intersection over union [W] of every box of [4, W] with one of them."""
    left, top, right, bottom = boxes
    x0, y0, x1, y1 = boxes[:, index]
    both = (np.minimum(right, x1) - np.maximum(left, x0)).clip(0) * (np.minimum(bottom, y1) - np.maximum(top, y0)).clip(
        0
    )
    return both / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - both)
