"""Who may join a cluster: every refusal is one line that says what to do, and comes in seconds."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from commands import refused, succeed
from ray_head import LOOPBACK, RayHead, clean_environment, namespace
from swift_server import free_ports

from pipelines import train

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-this-test-alone-0123456789"
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
CHECK = "import sys; from pipelines import access, project; project.command(access.check)(sys.argv[1])"


@dataclass(frozen=True)
class Heads:
    """A cluster that asks for a token, one open to the network, and one open to this machine alone."""

    token: RayHead
    everybody: RayHead
    loopback: RayHead


@pytest.fixture(scope="module")
def heads() -> Iterator[Heads]:
    folder = Path(tempfile.mkdtemp(prefix="gm-"))  # short: a socket's path must fit into 107 bytes
    with ExitStack() as started:
        started.callback(shutil.rmtree, folder)

        def head(name: str, dashboard: bool = False, **environment: str) -> RayHead:
            head = RayHead(folder / name, dashboard, **environment)
            started.callback(head.stop)
            return head

        yield Heads(
            token=head("t", dashboard=True, **WITH_TOKEN),
            everybody=head("e", RAY_AUTH_MODE="disabled"),
            loopback=head("l", RAY_AUTH_MODE="disabled", **LOOPBACK),
        )


def answer(address: str, *prefix: str, **environment: str) -> str:
    """What a process is told that wants to join: nothing, or one line, in seconds."""
    home = tempfile.gettempdir()  # no ~/.ray/auth_token
    start = time.monotonic()
    result = subprocess.run(
        [*prefix, sys.executable, "-c", CHECK, address],
        cwd=ROOT,
        env={**clean_environment(), "HOME": home, "RAY_ADDRESS": address, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - start < 40  # Ray itself takes 20 s for a wrong token and 160 s where nothing answers
    assert (result.returncode, result.stdout) == (2 if result.stderr else 0, ""), result.stderr
    assert not result.stderr or result.stderr.startswith(f"error: RAY_ADDRESS={address}: ")
    assert result.stderr.count("\n") == bool(result.stderr)
    return result.stderr


def test_a_cluster_that_runs_anybody_s_commands_is_refused(heads):
    port = heads.everybody.address.rpartition(":")[2]
    for address in (heads.everybody.address, f"127.0.0.1:{port}"):
        for environment in ({}, WITH_TOKEN):  # a token that nobody asks for protects nothing
            line = answer(address, **environment)
            assert "anybody's commands" in line and "RAY_AUTH_MODE=token" in line
            assert "ray get-auth-token --generate" in line and "every node" in line


def test_an_open_cluster_that_only_this_machine_reaches_is_joined(heads):
    assert heads.loopback.address.startswith("127.0.0.1:")
    assert answer(heads.loopback.address, **LOOPBACK) == ""


def test_a_cluster_with_a_token_is_joined_with_that_token_alone(heads, tmp_path):
    address = heads.token.address
    assert answer(address, **WITH_TOKEN) == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(TOKEN)
    assert answer(address, RAY_AUTH_MODE="token", HOME=str(tmp_path)) == ""
    assert "asks for a token: set RAY_AUTH_MODE=token" in answer(address)
    assert "asks for a token: set RAY_AUTH_MODE=token" in answer(address, HOME=str(tmp_path))  # Ray would send none
    assert "there is none" in answer(address, RAY_AUTH_MODE="token")
    assert "refuses this token" in answer(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another" + TOKEN)


def test_an_address_where_no_head_answers_is_refused_in_seconds():
    assert "no Ray head answers" in answer(f"127.0.0.1:{free_ports(1)[0]}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no Ray head answers" in answer(f"127.0.0.1:{silent.getsockname()[1]}", **LOOPBACK)
    assert "expected HOST:PORT" in answer("nonsense")
    assert "HOST:6379" in answer("ray://127.0.0.1:10001")
    assert "no Ray runs on this machine" in answer("auto", *namespace(), RAY_TMPDIR="/nowhere")


def test_train_refuses_before_anything_starts(heads, project):
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "--model", "vae", "--num-workers", "1"],
        cwd=ROOT,
        env={**clean_environment(), "GENMODELS_ROOT": str(project.root), "RAY_ADDRESS": heads.everybody.address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "anybody's commands" in result.stderr
    assert not list(project.runs.glob("vae-*"))


def test_a_training_without_ray_asks_no_cluster(project, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    succeed(train, "--model", "vae", "--num-workers", "0", "--dry-run")
    assert "expected HOST:PORT" in refused(train, "--model", "vae", "--num-workers", "1", "--dry-run")


def test_a_submitted_job_trains_from_a_working_directory(heads, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for path in ("data/shards/large", ".venv/bin/python", "mlflow.db", "mlartifacts/1/picture"):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text("stays here")
    tiny = ["datasets.sprites.num_images=200", "datasets.sprites.image_size=16", "evaluation.num_images=32"]
    tiny += ["evaluation.extractor_images=256", "models.vae.width=4", "models.vae.train.num_images=256"]
    tiny += ["models.vae.train.batch_size=16", "models.vae.train.snapshot_every=128"]
    tiny += [f"compute.storage_path={tmp_path}/runs"]
    store = f"sqlite:///{tmp_path}/mlflow.db"
    job = ["ray", "job", "submit", "--address", heads.token.dashboard]
    job += ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": {"MLFLOW_TRACKING_URI": store}})]
    job += ["--", "python", "pipelines/train.py", "--model", "vae", "--num-workers", "1"]
    job += [word for setting in tiny for word in ("--set", setting)]

    def submit(**environment: str) -> subprocess.CompletedProcess:
        home = {"HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
        return subprocess.run(
            job,
            cwd=clone,
            env={**clean_environment(), **home, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    stranger = submit()
    assert stranger.returncode == 1 and "uthentication" in stranger.stdout, stranger.stdout
    for _ in range(30):  # a head's agent needs some seconds more than `ray start`
        result = submit(**WITH_TOKEN)
        if "No available agent" not in result.stdout:
            break
        time.sleep(2)
    assert result.returncode == 0 and "registered vae version 1, the champion" in result.stdout, result.stdout
    version = mlflow.MlflowClient(store).get_model_version_by_alias("vae", "champion")
    assert mlflow.MlflowClient(store).get_run(version.run_id).info.status == "FINISHED"
    (copy,) = {path.parent for path in heads.token.folder.rglob("working_dir_files/*/params.yaml")}
    copied = {path.name for path in copy.iterdir()}
    assert {"genmodels", "pipelines", "params.yaml"} <= copied
    assert not {".git", ".dvc", ".ci", ".venv", "tests", "mlflow.db"} & copied
    assert not (copy / "data/shards/large").exists() and not (copy / "data/raw").exists()
