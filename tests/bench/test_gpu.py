"""The GPU's harness, on the processor; and that the plain scripts compute where their batch lies."""

import pytest
import torch

from bench.cases import CASES, Case
from bench.gpu import rows
from bench.plain import plain_script
from genmodels.trainer import to_float

ROWS = (
    "step",
    "share of the matrix rate",
    "share of the time that the device works",
    "share of steps that do not wait",
)
NETS = {"latent_dim": 8, "fmap_base": 16, "fmap_max": 8}
TINY = [
    Case("dcgan", 8, 4, {"width": 8, "discriminator_width": 8}, {"latent_dim": 100, "width": 8}),
    Case("progan", 8, 4, {**NETS, "start_size": 8}, NETS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_script_keeps_to_the_device_of_its_batch(case):
    with torch.device("meta"):  # any tensor made elsewhere, and any value read, is an error
        script = plain_script(case.model, channels=case.channels, size=case.image_size, **case.plain)
    batch = {key: value.to("meta") for key, value in case.batch(0).items()}
    losses = script.step({key: to_float(v) if v.dtype == torch.uint8 else v for key, v in batch.items()})
    assert losses and all(loss.is_meta for loss in losses)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_every_row_of_a_case_is_measured(device):
    measured = list(rows(TINY, torch.device(device)))
    assert [row.name.rpartition(", ")[2] for row in measured] == [*ROWS] * len(TINY)
    speed, rate, busy, free = measured[:4]
    assert speed.ratio > 0 and 0 < rate.ratio < 1 and free.ratio == 1
    assert (0 < busy.ratio <= 1) if device == "cuda" else busy.ratio == 0  # no device, no kernels
