"""params.yaml -> a validated, frozen configuration; overrides; the digest that identifies it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genmodels.model import Strict


class DatasetConfig(Strict):
    """One named data set: where its images come from and how they become shards."""

    source: str = Field(description="the word 'sprites', or a folder: flat, one folder a class, or trainA/trainB")
    image_size: int = Field(32, ge=4, le=2048, description="side of the largest square images, pixels")
    channels: Literal[1, 3] = Field(3, description="3: RGB, 1: gray")
    fit: Literal["crop", "pad"] = Field("crop", description="how other aspect ratios become square")
    background: tuple[int, int, int] = Field((255, 255, 255), description="ground under transparency and padding")
    pyramid: bool = Field(True, description="write every halving of the size down to 4 too (growing models)")
    encoding: Literal["raw", "png", "jpg", "webp"] = Field("raw", description="raw: fastest; the others: smaller")
    num_images: int | None = Field(None, ge=1, description="at most so many images; sprites: how many to render")
    holdout: float = Field(0.1, ge=0, lt=1, description="share of images held out where the source names no test set")
    shard_size: int = Field(1024, ge=1, description="samples a shard")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are rejected before decoding")
    max_reject_fraction: float = Field(0.1, ge=0, le=1, description="stop when more of the source is unusable")
