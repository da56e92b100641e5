import pytest
import torch

from genmodels.boxes import cut, overlap, scattered, union
from genmodels.data.fields import DataSpec
from genmodels.model import Noise, Progress, Stage
from genmodels.models.puzzlegan import PuzzleGAN, PuzzleGANConfig, others
from genmodels.schedules import log_decay

TINY = {"noise_dim": 4, "embedding_dim": 8, "width": 4, "discriminator_width": 4}


def make(image_size: int = 16, num_parts: int = 3) -> PuzzleGAN:
    torch.manual_seed(0)
    spec = DataSpec("toy", 3, image_size, (image_size,), num_train=8, num_test=8, num_parts=num_parts)
    return PuzzleGAN(PuzzleGANConfig(**TINY), spec)


def make_boxes(num: int) -> torch.Tensor:
    corners = torch.rand(num, 3, 2) * 0.5
    return torch.cat([corners, corners + 0.2 + 0.3 * torch.rand(num, 3, 2)], 2)


def at(fraction: float, batch_size: int = 8) -> Progress:
    return Progress(0, 0, Stage("train", 100, 16, batch_size), fraction)


# --- patches and masks -----------------------------------------------------------------------------------------------


def test_the_whole_box_is_the_image_itself():
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(cut(images, torch.tensor([0.0, 0, 1, 1]).expand(2, 1, 4))[:, 0], images)


def test_a_box_is_cut_where_it_lies_and_fills_the_square():
    images = torch.zeros(1, 1, 16, 16)
    images[:, :, 4:8, 8:16] = 1  # rows 4..7, columns 8..15
    (patch,) = cut(images, torch.tensor([[[0.5, 0.25, 1.0, 0.5]]]))[0]
    assert patch.shape == (1, 16, 16) and (patch[:, 2:-2, 2:] == 1).all()


def test_the_mask_is_the_union_of_the_boxes():
    mask = union(torch.tensor([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1.0]]]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1.0]])
    torch.testing.assert_close(mask, expected[None, None])


def test_patches_that_lie_elsewhere_look_the_same():
    images = torch.zeros(2, 1, 16, 16)
    square = torch.rand(4, 4)
    images[0, 0, :4, :4], images[1, 0, 8:12, 12:] = square, square
    patches = cut(images, torch.tensor([[[0, 0, 0.25, 0.25]], [[0.75, 0.5, 1, 0.75]]]))[:, 0, 0, 3:-3, 3:-3]
    torch.testing.assert_close(patches[0], patches[1])


def test_overlap_is_intersection_over_union():
    first, second = union(torch.tensor([[[0, 0, 0.5, 1.0]]]), 4), union(torch.tensor([[[0.25, 0, 0.75, 1]]]), 4)
    assert overlap(first > 0, second > 0) == pytest.approx(1 / 3)
    assert overlap(first > 0, first > 0) == 1


def test_scattered_boxes_keep_their_sizes_and_stay_inside():
    boxes = make_boxes(50)
    moved = scattered(boxes)
    torch.testing.assert_close(moved[..., 2:] - moved[..., :2], boxes[..., 2:] - boxes[..., :2])
    assert moved.min() >= 0 and moved.max() <= 1


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [2, 3, 8])
def test_no_image_is_its_own_stranger(num):
    for step in range(20):
        draws = Noise(0, step, 0, torch.device("cpu")).uniform(num)
        strangers = others(torch.arange(num), draws)
        assert (strangers != torch.arange(num)).all() and sorted(strangers.tolist()) == list(range(num))


def test_the_order_of_patches_has_no_effect():
    model = make().eval()
    patches, z = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 4)
    for one, other in zip(model.generator(patches, z), model.generator(patches.flip(1), z), strict=True):
        torch.testing.assert_close(one, other)


def test_l1_is_summed_over_the_global_batch_on_any_number_of_ranks():
    model = make().eval()
    batch = {"image": torch.rand(8, 3, 16, 16), "parts": make_boxes(8)}

    def l1_terms(rank: int, world_size: int) -> torch.Tensor:
        share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        noise = Noise(0, 0, 0, torch.device("cpu"), rank, world_size)
        part = {key: value[share] for key, value in batch.items()}
        losses = model.training_step(part, "generator", at(0.0), noise, {}).losses
        return losses["mask"] + losses["appearance"]

    one = l1_terms(0, 1)
    torch.testing.assert_close((l1_terms(0, 2) + l1_terms(1, 2)) / 2, one)
    patches, mask = cut(batch["image"], batch["parts"]), union(batch["parts"], 16)
    z = 2 * Noise(0, 0, 0, torch.device("cpu")).uniform(8, 4) - 1
    image, mask_logits = model.generator(patches, z)
    guess = torch.sigmoid(mask_logits)
    summed = (guess - mask).abs().sum() + (image * guess - batch["image"] * mask).abs().sum()
    torch.testing.assert_close(one, 1e-2 * summed)


def test_the_l1_weight_falls_along_a_line_of_logarithms():
    assert [log_decay(f, 1e-2, 1e-4) for f in (0, 0.5, 1)] == pytest.approx([1e-2, 1e-3, 1e-4])


def test_the_discriminator_sees_both_composites():
    model = make()
    batch = {"image": torch.rand(8, 3, 16, 16), "parts": make_boxes(8)}
    losses = model.training_step(batch, "discriminator", at(0.0), Noise(0, 0, 0, torch.device("cpu")), {}).losses
    assert set(losses) == {"adversarial", "strange_parts", "strange_rest"}
    assert model.phases[1].every == 2


# --- conditions ------------------------------------------------------------------------------------------------------


def test_own_patches_are_taken_image_by_image():
    patches = torch.rand(6, 3, 16, 16)
    torch.testing.assert_close(make().encode_condition(patches=patches)["patches"][1, 0], patches[3])
    with pytest.raises(ValueError, match="4 do not divide into images of 3"):
        make().encode_condition(patches=patches[:4])
    with pytest.raises(ValueError, match="takes no source; it takes patches"):
        make().encode_condition(source=patches)


def test_data_without_parts_are_refused():
    with pytest.raises(ValueError, match="has none"):
        make(num_parts=0)


def test_patches_are_cut_in_full_precision_under_autocast():
    torch.manual_seed(0)
    images, boxes = torch.rand(2, 3, 64, 64), torch.tensor([[[0.11, 0.23, 0.47, 0.59]]]).expand(2, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        patches = cut(images, boxes)
    assert torch.equal(patches, cut(images, boxes))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.01, 0.0), (0.01, -0.01)])
def test_weights_that_have_no_logarithm_are_refused(weights):
    with pytest.raises(ValueError, match="l1_weight"):
        PuzzleGANConfig(l1_weight=weights)
