"""What several test files share: a prepared data set, and an isolated project folder."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from archives import Images, noise, png
from hypothesis import HealthCheck, settings
from PIL import Image
from swift_server import SwiftServer

from genmodels.config import DatasetConfig, load_params
from genmodels.data import remote
from genmodels.data.fields import DataSpec
from genmodels.data.prepare import prepare

settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow machine")

DATASET = {"source": "sprites", "image_size": 16, "num_images": 200, "shard_size": 64}
TINY_MODELS = {  # settings that train in milliseconds; a model that is not named here trains with its defaults
    "autoencoder": {"latent_dim": 4, "width": 4},
    "vae": {"latent_dim": 4, "width": 4},
    "aae": {"prior": "mixture", "latent_dim": 3, "width": 4, "hidden": 16},
    "gan": {"latent_dim": 8, "generator_hidden": 16, "discriminator_hidden": 16},
    "dcgan": {"latent_dim": 8, "width": 4, "discriminator_width": 4},
    "infogan": {"noise_dim": 4, "width": 4, "hidden_dim": 16, "q_dim": 8, "num_categories": 4},
    "text2image": {
        "latent_dim": 8,
        "width": 4,
        "discriminator_width": 4,
        "text_dim": 8,
        "matching_width": 4,
        "embedding_dim": 8,
    },
    "cyclegan": {"width": 4, "num_blocks": 1, "discriminator_width": 4, "layers": 1, "pool_size": 6},
    "stargan": {"width": 4, "num_blocks": 1, "discriminator_width": 4, "discriminator_steps": 2},
    "puzzlegan": {"noise_dim": 4, "embedding_dim": 8, "width": 4, "discriminator_width": 4},
    "progan": {"latent_dim": 8, "fmap_base": 64, "fmap_max": 8, "hold_images": 48, "fade_images": 36},
}


@dataclass(frozen=True)
class Prepared:
    """A data set on disk."""

    folder: Path
    spec: DataSpec


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sprites_data(tmp_path_factory) -> Prepared:
    """200 sprites of 16 pixels and their pyramid."""
    folder = tmp_path_factory.mktemp("sprites") / "sprites"
    return Prepared(folder, prepare("sprites", DatasetConfig(**DATASET), folder, folder, 1))


@pytest.fixture(scope="session")
def few_sprites(tmp_path_factory) -> Prepared:
    """The smallest data set that has everything: 20 sprites of 16 pixels."""
    folder = tmp_path_factory.mktemp("few") / "few"
    return Prepared(folder, prepare("few", DatasetConfig(**{**DATASET, "num_images": 20}), folder, folder, 1))


@dataclass(frozen=True)
class Project:
    """A project folder of its own, with prepared shards and nothing trained."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "data" / "runs"

    @property
    def environment(self) -> dict[str, str]:
        """What a command of this project runs in, alone with its tracking store."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "GENMODELS_"))
        }
        return {**kept, "GENMODELS_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}


def make_project(root: Path, data: Prepared, num_images: int = 256) -> Project:
    """Writes params.yaml for tiny trainings of every model and puts the shards in their place."""
    train = {"num_images": num_images, "batch_size": 16, "log_every": 32, "checkpoint_every": 64, "snapshot_every": 128}
    params = {
        "datasets": {"sprites": DATASET},
        "models": {name: {"dataset": "sprites", **values, "train": train} for name, values in TINY_MODELS.items()},
        "recipes": {"vae": {"wide": {"width": 8, "train": {"seed": 7}}}},
        "compute": {"num_workers": 0, "use_gpu": False},
        "evaluation": {"num_images": 16, "extractor_images": 256},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copytree(data.folder, root / "data" / "shards" / "sprites")
    return Project(root)


@pytest.fixture(scope="module")
def project(tmp_path_factory, sprites_data) -> Iterator[Project]:
    """One isolated project for a test file: its commands find this folder and its own tracking store."""
    project = make_project(tmp_path_factory.mktemp("project"), sprites_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENMODELS_ROOT", str(project.root))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield project


@pytest.fixture(scope="session")
def swift(tmp_path_factory) -> Iterator[SwiftServer]:
    """A real S3 server for all tests of a session."""
    if not importlib.util.find_spec("swift"):
        pytest.fail("needs the S3 server of the dev extra: pip install -r requirements.lock")
    server = SwiftServer(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def bucket(swift, request) -> Iterator[str]:
    """The URL of a bucket for one test file, which this process and its children find."""
    import s3fs

    url = f"s3://{request.module.__name__.replace('_', '-')}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in swift.environment.items():
            patch.setenv(name, value)
        patch.setattr(remote, "_filesystems", {})
        fs, path = remote.filesystem(url)
        fs.mkdir(path)
        yield url
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def cifar_images() -> tuple[Images, Images, list[int]]:
    return noise(8, 32, 32, 3), noise(4, 32, 32, 3, seed=1), [number % 3 for number in range(12)]


@pytest.fixture
def tar_images() -> list[bytes]:
    return [png(image) for image in noise(12, 8, 8, 3)]


@pytest.fixture(scope="module")
def exported(project: Project, sprites_data: Prepared, tmp_path_factory) -> Callable[[str], Path]:
    """By model name, the sampling folder of an untrained model."""
    from exports import export_untrained

    def make(name: str) -> Path:
        config = load_params(project.root / "params.yaml").run(name)
        return export_untrained(config, sprites_data, tmp_path_factory.mktemp(name) / "export")

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Six pictures of unlike sizes and modes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "L", "RGBA", "RGB", "P", "RGB"]):
        pixels = random.integers(0, 256, (20 + 4 * i, 30, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return folder
