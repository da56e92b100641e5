import warnings

import pytest
import torch
from torch import Tensor, nn

from genmodels.metrics.evaluate import Protocol, evaluate
from genmodels.metrics.features import extract
from genmodels.metrics.supplied import SuppliedNetwork


class Means(nn.Module):
    """Of a quarter image each, as StyleGAN3's files are called."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        means = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return means if return_features else means[:, :1]


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


def saved(network: nn.Module, path) -> SuppliedNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out; the files that people have are of its making
        torch.jit.script(network).save(str(path))
    return SuppliedNetwork(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_supplied_network_sees_levels_and_gives_its_features(channels, tmp_path):
    network = saved(Means(), tmp_path / "means.pt")
    images = torch.linspace(-1, 1, 4 * channels * 64).view(4, channels, 8, 8)
    levels = ((images + 1) * 127.5).round().expand(-1, 3, -1, -1)
    torch.testing.assert_close(extract(network, images), nn.functional.adaptive_avg_pool2d(levels, 2).flatten(1))


def test_scores_are_over_its_features_and_say_so(tmp_path):
    network = saved(Means(), tmp_path / "means.pt")
    torch.manual_seed(0)
    real, near, far = torch.rand(64, 3, 8, 8) - 1, torch.rand(64, 3, 8, 8) - 1, torch.rand(64, 3, 8, 8)
    assert evaluate(real, far, network)["fid"] > 10 * evaluate(real, near, network)["fid"] > 0
    protocol = Protocol.of(real, far, network, "data", "test")
    assert (protocol.extractor_task, protocol.resize_filter) == ("supplied", "the network's own")
    assert len(protocol.extractor_sha256) == 64


def test_a_file_that_is_no_such_network_is_refused_by_name(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="text.pt is no TorchScript file"):
        SuppliedNetwork(tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"maps.pt gave \[2, 3, 8, 8\] for 2 images, not a row of features each"):
        saved(Maps(), tmp_path / "maps.pt")(torch.zeros(2, 3, 8, 8))
