"""The commands on a bucket: a training that has nothing but the store, and DVC's remote beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import refused, succeed
from conftest import make_project

from genmodels.data.remote import filesystem
from pipelines import prepare, train
from pipelines.run import Run

pytestmark = pytest.mark.cluster


@pytest.fixture
def project(tmp_path, few_sprites, monkeypatch):
    """A project folder that no tracking store of others is found from."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENMODELS_ROOT", str(tmp_path))
    return make_project(tmp_path, few_sprites, num_images=64)


def use_images(project, url: str) -> None:
    """Makes the project's data set one of a folder of pictures, with its shards in the bucket."""
    from PIL import Image

    (project.root / "pictures").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 90, 200 - number)).save(project.root / f"pictures/{number}.png")
    file = project.root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["datasets"]["sprites"] = {"source": "pictures", "image_size": 16, "shard_size": 8, "store": url}
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.rmtree(project.root / "data/shards")


def weights(project, storage: str) -> str:
    (folder,) = (project.root / storage).glob("vae-*")
    return next(event["weights"] for event in Run(folder).events() if event["type"] == "finished")


def test_a_machine_with_nothing_but_the_store_trains_to_the_same_weights(project, bucket):
    use_images(project, f"{bucket}/images")
    local = ("--set", "datasets.sprites.store=null", "--set", "compute.storage_path=data/local")
    succeed(train, "--model", "vae", *local)
    assert f"shards in {bucket}/images" in succeed(prepare, "--dataset", "sprites")
    shutil.rmtree(project.root / "pictures")
    shutil.rmtree(project.root / "data/shards")
    output = succeed(train, "--model", "vae")
    assert f"source is not on this machine, using the shards in {bucket}/images" in output
    assert weights(project, "data/runs") == weights(project, "data/local")
    assert len(list((project.root / "data/cache").glob("*.tar"))) >= 5
    line = refused(train, "--model", "vae", "--dry-run", "--set", "compute.cache_gb=0.00001")
    assert "may hold 1e-05 GB" in line and "compute.cache_gb must be at least" in line


def test_a_store_that_is_no_url_is_refused(project):
    line = refused(prepare, "--dataset", "sprites", "--set", "datasets.sprites.store=bucket/prefix")
    assert (
        line == "error: datasets.sprites.store: input should be a url such as s3://bucket/prefix, got 'bucket/prefix'"
    )


# DVC


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What the command says."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder / ".none")}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path, bucket) -> Path:
    """A git repository whose DVC remote is the bucket, with verification."""
    folder = tmp_path / "repository"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc(folder, "init", "--quiet")
    dvc(folder, "remote", "add", "--default", "store", f"{bucket}/{tmp_path.name}")
    dvc(folder, "remote", "modify", "store", "verify", "true")
    return folder


def lose(repository: Path) -> None:
    """What another machine has: the repository without data or DVC's cache."""
    shutil.rmtree(repository / "shards")
    shutil.rmtree(repository / ".dvc/cache")


def test_dvc_pulls_what_it_pushed_and_refuses_what_was_altered(repository, few_sprites, tmp_path, bucket):
    shutil.copytree(few_sprites.folder, repository / "shards")
    before = {path.name: path.read_bytes() for path in (repository / "shards").iterdir()}
    dvc(repository, "add", "shards")
    dvc(repository, "push")
    lose(repository)
    dvc(repository, "pull")
    assert {path.name: path.read_bytes() for path in (repository / "shards").iterdir()} == before

    lose(repository)
    fs, path = filesystem(f"{bucket}/{tmp_path.name}")
    largest = max(fs.find(path, detail=True).values(), key=lambda about: about["size"])["name"]
    content = bytearray(fs.cat_file(largest))
    content[len(content) // 2] ^= 1
    fs.pipe_file(largest, bytes(content))
    assert "failed to pull data from the cloud" in dvc(repository, "pull", fails=True)
    assert not (repository / "shards/dataset.json").exists()
    dvc(repository, "remote", "modify", "store", "verify", "false")
    dvc(repository, "pull")  # without `verify` nothing is noticed
    assert {path.name: path.read_bytes() for path in (repository / "shards").iterdir()} != before


def test_dvc_imports_a_bucket_and_sees_what_changed_in_it(repository, bucket):
    fs, path = filesystem(f"{bucket}/photos")
    for name in ("a/1.png", "b/2.png"):
        fs.pipe_file(f"{path}/{name}", name.encode())
    dvc(repository, "import-url", f"{bucket}/photos", "photos")
    assert (repository / "photos/b/2.png").read_bytes() == b"b/2.png"
    fs.pipe_file(f"{path}/c/3.png", b"new")
    dvc(repository, "update", "photos.dvc")
    assert (repository / "photos/c/3.png").read_bytes() == b"new"
