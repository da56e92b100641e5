"""Preparing on a cluster: the same bytes as on one machine."""

import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards
from pipelines.cluster import RayPool


@pytest.fixture
def ray_here():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.cluster
def test_ray_tasks_make_the_same_bytes(tmp_path, ray_here):
    for number in range(80):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (number, 2 * number, 99)).save(tmp_path / f"photos/{number}.png")
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG")
    config = DatasetConfig(source="photos", image_size=8, shard_size=30)
    here = prepare("toy", config, tmp_path / "here", tmp_path, 1)
    there = prepare("toy", config, tmp_path / "there", tmp_path, None, None, RayPool)
    assert here == there and open_shards(tmp_path / "there").shards == open_shards(tmp_path / "here").shards
    assert open_shards(tmp_path / "there").counts["rejected"] == 1
