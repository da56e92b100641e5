"""Captions become tokens, and the held-out split is read with every key that the data offer."""

from collections import Counter

import numpy as np
import pytest
import torch

from genmodels.data.captions import PADDING, UNKNOWN, build_vocabulary, encode, words
from genmodels.data.loader import Loader, read_split
from genmodels.files import replace_folder


def test_the_vocabulary_is_ordered_by_frequency_then_alphabet():
    assert build_vocabulary(Counter(words("A cat, a dog. a DOG"))) == ("a", "dog", "cat")
    assert build_vocabulary({}) == ()


def test_tokens_pad_cut_and_know_what_they_do_not_know():
    tokens = encode(["A cat!", "a zebra and a cat", ""], ("a", "cat"), 4)
    assert tokens.tolist() == [[2, 3, PADDING, PADDING], [2, UNKNOWN, UNKNOWN, 2], [PADDING] * 4]


def test_a_loaded_caption_is_the_sprite_s_own(sprites_data):
    batch, _ = read_split(sprites_data.folder, "test", 16, 8)
    spec = sprites_data.spec
    names = ["", "?", *spec.vocabulary]
    for captions, label in zip(batch["caption"], batch["label"], strict=True):
        assert captions.shape == (spec.num_captions, spec.num_words)
        for tokens in captions:
            assert spec.classes[label] in [names[token] for token in tokens]


def test_a_split_is_read_with_every_key_and_its_domains_are_aligned(sprites_data):
    batch, paired = read_split(sprites_data.folder, "test", 16, 100, domain="A")
    assert set(batch) == set(sprites_data.spec.keys) and paired
    both = ({image.numpy().tobytes() for image in batch[key]} for key in ("image", "image_A"))
    assert next(both) == next(both) and not torch.equal(batch["image_A"], batch["image_B"])
    with Loader(sprites_data.folder, sprites_data.spec.keys, 16, 4, seed=0) as loader:
        loaded = next(loader)
    assert {key: (value.dtype, value.shape[1:]) for key, value in loaded.items()} == {
        key: (value.dtype, value.shape[1:]) for key, value in batch.items()
    }


def test_a_folder_keeps_its_content_when_its_successor_fails(tmp_path):
    folder = tmp_path / "export"
    replace_folder(folder, lambda new: (new / "a").write_text("1"))

    def fail(new):
        (new / "a").write_text("2")
        raise OSError("disk full")

    with pytest.raises(OSError):
        replace_folder(folder, fail)
    assert (folder / "a").read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["export"]
    replace_folder(folder, lambda new: np.save(new / "b.npy", np.zeros(2)))
    assert [path.name for path in folder.iterdir()] == ["b.npy"] and len(list(tmp_path.iterdir())) == 1
