"""ONNX files of every sampler, run by onnxruntime beside torch."""

import onnxruntime
import pytest
import torch

from genmodels import export
from genmodels.model import model_names
from genmodels.onnx import OUTPUT, export_onnx

SHORT = ("gan", "text2image", "cyclegan")  # latents, with a caption, without latents
MODELS = [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in model_names()]


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_makes_the_images_that_torch_makes(name, exported, tmp_path):
    sampler = export.load(exported(name))
    export_onnx(sampler, tmp_path / "sampler.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sampler.onnx", providers=["CPUExecutionProvider"])
    for num in (1, 5, 20):
        latent, cond = sampler.inputs(num, seed=num)
        given = {key: value.numpy() for key, value in {"latent": latent, **cond}.items()}
        assert [each.name for each in session.get_inputs()] == list(given)
        (images,) = session.run([OUTPUT], given)
        assert torch.allclose(torch.from_numpy(images), sampler.decode(latent, cond), atol=1e-4)
