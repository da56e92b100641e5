"""A model taken out of the registry works by itself."""

import subprocess
import sys

import torch
from commands import refused, succeed

from genmodels import Sampler, load
from pipelines import export

ALONE = """
import sys
for name in ("ray", "mlflow", "dvc", "pipelines"):
    sys.modules[name] = None
import genmodels
print(genmodels.load(sys.argv[1]).sample(2, seed=1).sum().item())
"""


def test_a_folder_samples_the_same_without_ray_mlflow_and_dvc(exported, tmp_path):
    original, out = load(exported("text2image")), tmp_path / "out" / "folder"
    succeed(export, "--model", exported("text2image"), "--out", out)
    again = Sampler.from_pretrained(out)
    assert again.info == original.info
    assert torch.equal(again.sample(5, seed=3), original.sample(5, seed=3))
    printed = subprocess.check_output([sys.executable, "-c", ALONE, str(out)], text=True)
    assert float(printed) == original.sample(2, seed=1).sum().item()


def test_an_onnx_file_is_written_and_nothing_is_overwritten(exported, tmp_path):
    out = tmp_path / "new" / "gan.onnx"
    succeed(export, "--model", exported("gan"), "--out", out)
    assert out.stat().st_size > 1000
    assert "exists" in refused(export, "--model", exported("gan"), "--out", out)
