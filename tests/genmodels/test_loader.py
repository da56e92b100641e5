"""The stream of batches: a pure function of (seed, position) for any number of shards, ranks and threads."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader, read_split
from genmodels.data.order import Stream, epoch_order
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader

NUM = 23


def write_number(path: Path, number: int, domain: int = 0) -> None:
    """An image that shows its number: in red, its domain in green, dark on the left."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1], pixels[:, 2:, 2] = number, domain, 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make(folder: Path, shard_size: int) -> Path:
    for number in range(NUM):
        write_number(folder / "source" / "ab"[number % 2] / f"{number}.png", number)
    config = DatasetConfig(source=str(folder / "source"), image_size=4, shard_size=shard_size, holdout=0)
    prepare("numbers", config, folder / "out", folder, 1)
    return folder / "out"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same 23 images in 1, 2, 5 and 23 shards."""
    return [make(tmp_path_factory.mktemp(f"shards{size}"), size) for size in (NUM, 12, 5, 1)]


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    for number in range(12):
        write_number(folder / "source/trainA" / f"{number}.png", number, 1)
    for number in range(7):
        write_number(folder / "source/trainB" / f"{number}.png", number, 2)
    config = DatasetConfig(source=str(folder / "source"), image_size=4, shard_size=5, holdout=0)
    prepare("domains", config, folder / "out", folder, 1)
    return folder / "out"


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sprites")
    prepare("sprites", DatasetConfig(source="sprites", num_images=40, image_size=16), folder / "out", folder, 1)
    return folder / "out"


def take(num_batches: int, *args, key: str = "image", **kwargs) -> list[torch.Tensor]:
    with Loader(*args, **kwargs) as loader:
        return [next(loader)[key] for _ in range(num_batches)]


def numbers(batches: list[torch.Tensor]) -> list[int]:
    return torch.cat(batches)[:, 0, 0, 0].tolist()


# The order


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2**62), st.integers(0, 5), st.integers(1, 4)
)
def test_an_epoch_is_a_permutation_and_a_pure_function(sizes, seed, epoch, window):
    order = epoch_order(sizes, seed, epoch, window)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(sum(sizes)))
    assert (order == epoch_order(sizes, seed, epoch, window)).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 99), st.integers(1, 4))
def test_a_window_holds_whole_shards(sizes, seed, window):
    order, start = np.repeat(np.arange(len(sizes)), sizes)[epoch_order(sizes, seed, 0, window)], 0
    for end in range(1, len(order) + 1):
        shards = set(order[start:end].tolist())
        if sum(sizes[shard] for shard in shards) == end - start:  # these shards are done with
            assert len(shards) <= window
            start = end
    assert start == len(order)


def test_epochs_and_seeds_differ():
    orders = [tuple(epoch_order([50] * 4, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order([3, 4, 2], seed=0, epoch=0, window=2).tolist() == [5, 3, 6, 2, 1, 0, 4, 8, 7]


def test_every_position_is_equally_likely():
    first = [epoch_order([5] * 4, 0, epoch)[0] for epoch in range(2000)]
    assert np.bincount(first, minlength=20).min() > 60  # 100 expected, standard deviation 10


def test_a_stream_is_addressed_by_position():
    stream = Stream((3, 4), seed=5)
    whole = stream.ids(0, 40)
    assert all((stream.ids(first, 9) == whole[first : first + 9]).all() for first in range(30))
    assert all((stream.mirrored(first, 5) == stream.mirrored(0, 40)[first : first + 5]).all() for first in range(30))
    assert 400 < stream.mirrored(0, 1000).sum() < 600


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(0, 99), st.integers(0, 300))
def test_a_stream_knows_the_shards_that_a_position_needs(sizes, seed, position):
    stream, shard_of = Stream(sizes, seed), np.repeat(np.arange(len(sizes)), sizes)
    epoch, window = stream.window(position)
    assert epoch == position // stream.num
    assert shard_of[stream.ids(position, 1)[0]] in stream.shards(epoch, window)
    windows = [stream.shards(epoch, number) for number in range(-(-len(sizes) // 16))]
    assert sorted(sum(windows, [])) == list(range(len(sizes)))
    assert stream.shards(epoch, len(windows)) == stream.shards(epoch + 1, 0)


# The batches


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_sample_comes_once_an_epoch_whatever_shards_ranks_and_threads(folders, world_size, num_threads):
    for folder in folders:
        ranks = [
            take(23, folder, ["image"], 4, 8, 1, rank=rank, world_size=world_size, num_threads=num_threads)
            for rank in range(world_size)
        ]
        seen = numbers([torch.cat(parts) for parts in zip(*ranks, strict=True)])
        assert len(seen) == 8 * NUM
        epochs = [seen[start : start + NUM] for start in range(0, len(seen), NUM)]
        assert all(sorted(epoch) == list(range(NUM)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 8


def test_ranks_split_the_batch_of_one(folders):
    one = take(5, folders[2], ["image"], 4, 12, 1, mirror=True)
    for world_size in (2, 3, 4):
        ranks = [
            take(5, folders[2], ["image"], 4, 12, 1, rank=rank, world_size=world_size, mirror=True)
            for rank in range(world_size)
        ]
        assert all((torch.cat(parts) == whole).all() for *parts, whole in zip(*ranks, one, strict=True))


@pytest.mark.parametrize("num_shown", [6, 18, 30, 606])
def test_resume_goes_on_exactly_even_with_other_ranks_and_batches(folders, num_shown):
    reference = take(110, folders[2], ["image"], 4, 6, 1, mirror=True)
    rest = torch.cat(reference)[num_shown : num_shown + 36]
    assert (torch.cat(take(6, folders[2], ["image"], 4, 6, 1, start=num_shown, mirror=True)) == rest).all()
    assert (torch.cat(take(3, folders[2], ["image"], 4, 12, 1, start=num_shown, mirror=True)) == rest).all()
    ranks = [
        take(6, folders[2], ["image"], 4, 6, 1, start=num_shown, rank=rank, world_size=2, mirror=True)
        for rank in (0, 1)
    ]
    assert (torch.cat([torch.cat(parts) for parts in zip(*ranks, strict=True)]) == rest).all()


def test_a_batch_may_be_larger_than_an_epoch(folders):
    (batch,) = take(1, folders[0], ["image"], 4, 3 * NUM, 0)
    assert sorted(numbers([batch])) == sorted(list(range(NUM)) * 3)


def test_mirroring_is_fair_and_flips_the_image(folders):
    plain, mirrored = (torch.cat(take(20, folders[0], ["image"], 4, 10, 3, mirror=flip)) for flip in (False, True))
    flipped = (mirrored == plain.flip(3)).flatten(1).all(1)
    assert (flipped | (mirrored == plain).flatten(1).all(1)).all()
    assert 60 < flipped.sum() < 140


def test_boxes_are_mirrored_with_their_images(sprites):
    plain, mirrored = (next_batch(sprites, ["image", "parts"], mirror=flip) for flip in (False, True))
    flipped = (mirrored["image"] != plain["image"]).flatten(1).any(1)
    assert 0 < flipped.sum() < 36
    left, top, right, bottom = plain["parts"][flipped].unbind(2)
    assert torch.allclose(mirrored["parts"][flipped], torch.stack([1 - right, top, 1 - left, bottom], 2))
    assert (mirrored["parts"][~flipped] == plain["parts"][~flipped]).all()


def next_batch(folder: Path, keys: list[str], **values) -> dict[str, torch.Tensor]:
    with Loader(folder, keys, 16, 36, 0, **values) as loader:
        return next(loader)


def test_fields_belong_to_their_images(sprites):
    batch = next_batch(sprites, ["image", "label", "attributes", "parts"])
    reader = ShardReader(sprites, "train", 16)
    images = reader.read(np.arange(reader.num))
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    assert shapes == {
        "image": ((36, 3, 16, 16), torch.uint8),
        "label": ((36,), torch.int64),
        "attributes": ((36, len(reader.spec.attributes)), torch.float32),
        "parts": ((36, reader.spec.num_parts, 4), torch.float32),
    }
    for row, image in enumerate(batch["image"].permute(0, 2, 3, 1).numpy()):
        number = int((images == image).all((1, 2, 3)).argmax())
        assert batch["label"][row] == reader.labels[number]
        assert (batch["attributes"][row].numpy() == reader.attributes[number]).all()
        assert (batch["parts"][row].numpy() == reader.parts[number]).all()


def test_domains_are_two_streams_zipped_each_with_its_own_epochs(domains):
    with Loader(domains, ["image_A", "image_B"], 4, 4, 0) as loader:
        batches = [next(loader) for _ in range(21)]
    assert all(set(batch) == {"image_A", "image_B"} for batch in batches)
    for key, num, green in (("image_A", 12, 1), ("image_B", 7, 2)):
        images = torch.cat([batch[key] for batch in batches])
        assert (images[:, 1] == green).all()
        seen = numbers([images])
        assert all(sorted(seen[start : start + num]) == list(range(num)) for start in range(0, 84, num))


def test_domains_are_not_paired(domains):
    with Loader(domains, ["image_A", "image_B"], 4, 7, 0) as loader:
        batch = next(loader)
    assert numbers([batch["image_A"]]) != numbers([batch["image_B"]])


def test_one_domain_can_be_the_whole(domains):
    images = torch.cat(take(7, domains, ["image"], 4, 2, 0, domain="B"))
    assert (images[:, 1] == 2).all() and sorted(numbers([images])) == sorted(list(range(7)) * 2)


def test_the_position_counts_images_shown(folders):
    with Loader(folders[0], ["image"], 4, 5, 0, start=10) as loader:
        next(loader), next(loader)
        assert loader.position == 20


# What goes wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ["lable"]}, "no 'lable'.*did you mean 'label'.*it offers: image, label$"),
        ({"keys": ["caption"]}, "no 'caption'.*it offers: image, label$"),
        ({"keys": ["image_A"]}, "no 'image_A'"),
        ({"image_size": 64}, "image size 64 .* choices: 4$"),
        ({"batch_size": 9, "world_size": 2}, "batch_size 9 does not divide .* 2$"),
        ({"domain": "A"}, "domain 'A'"),
    ],
)
def test_what_the_data_cannot_serve_is_named_in_one_line(folders, change, message):
    wanted = {"folder": folders[0], "keys": ["image"], "image_size": 4, "batch_size": 8, "seed": 0} | change
    with pytest.raises(ValueError, match=message) as error:
        Loader(**wanted)
    assert "\n" not in str(error.value)


def test_labels_of_a_domain_stream_are_refused(sprites):
    with pytest.raises(ValueError, match="'label' describes 'image'"):
        Loader(sprites, ["image_A", "label"], 16, 4, 0)


def test_an_error_in_a_thread_reaches_the_consumer(folders, monkeypatch):
    def broken(self, ids):
        raise OSError("the disk is gone")

    monkeypatch.setattr(ShardReader, "read", broken)
    with Loader(folders[0], ["image"], 4, 8, 0) as loader, pytest.raises(OSError, match="the disk is gone"):
        next(loader)


def test_closing_ends_the_threads_and_the_stream(folders):
    loader = Loader(folders[0], ["image"], 4, 8, 0, num_threads=3)
    next(loader)
    loader.close()
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    with pytest.raises(RuntimeError):
        next(loader)


def test_at_most_prefetch_batches_are_under_way(folders, monkeypatch):
    built = []
    original = Loader._build

    def build(self, first):
        built.append(first)
        return original(self, first)

    monkeypatch.setattr(Loader, "_build", build)
    with Loader(folders[0], ["image"], 4, 8, 0, prefetch=2) as loader:
        for _ in range(4):
            next(loader)
    assert len(built) <= 4 + 2


def test_leaving_without_close_does_not_hang(folders):
    program = f"""
        from genmodels.data.loader import Loader, read_split
        loader = Loader({str(folders[0])!r}, ["image"], 4, 8, 0, num_threads=2)
        print(next(loader)["image"].shape)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "torch.Size([8, 3, 4, 4])\n" and not done.stderr


def test_some_images_of_all_domains_are_a_share_of_each(domains):
    for num, of_a, of_b in ((8, 6, 2), (19, 12, 7), (100, 12, 7), (1, 1, 0)):
        domain = read_split(domains, "train", 4, num)[0]["image"][:, 1, 0, 0].tolist()
        assert (domain.count(1), domain.count(2)) == (of_a, of_b)
    first, every = (read_split(domains, "train", 4, num, domain="B")[0]["image"] for num in (3, 7))
    assert torch.equal(first, every[:3])
