"""`ray up`, `ray submit` and `ray down` for real: a clean checkout, ssh, a head, and the user's own MLflow."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import ssh_head
from ssh_head import USER, SshHead
from swift_server import free_ports

ROOT = Path(__file__).resolve().parents[2]
TINY = [  # sprites.num_images=200 are prepared on the head
    "datasets.sprites.num_images=200",
    "datasets.sprites.image_size=16",
    "evaluation.num_images=32",
    "evaluation.extractor_images=256",
    *(
        f"models.progan.{key}"
        for key in ("latent_dim=8", "fmap_base=64", "fmap_max=8", "hold_images=64", "fade_images=64")
    ),
    *(
        f"models.progan.train.{key}"
        for key in ("num_images=512", "batch_size=16", "log_every=64", "snapshot_every=256", "checkpoint_every=256")
    ),
]
PATIENCE = {"running": 900, "locked": 2400}  # seconds for `ray up`
RENEW = {  # what the README offers after a change
    "running": ["rsync-up", "cluster.yaml", "params.yaml", "~/genmodels-project/params.yaml"],
    "locked": ["up", "-y", "--no-restart", "cluster.yaml"],
}


@pytest.fixture
def head() -> Iterator[SshHead]:
    if ssh_head.missing():
        pytest.fail(str(ssh_head.missing()), pytrace=False)
    folder = Path(tempfile.mkdtemp(prefix="gm-"))  # short, see SshHead
    head = SshHead(folder)
    head.start()
    yield head
    head.stop()
    shutil.rmtree(folder)


@contextmanager
def background(head: SshHead, *command: str, cwd: Path) -> Iterator[None]:
    """A process of the user that runs on the side."""
    with (cwd / f"{Path(command[0]).name}.log").open("wb") as log:
        files: dict = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, cwd=cwd, env=head.environment, **files)
        try:
            yield
        finally:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()


@contextmanager
def users_mlflow(head: SshHead, folder: Path) -> Iterator[int]:
    """The port of a tracking server that listens on the user's loopback alone."""
    folder.mkdir()
    (port,) = free_ports(1)
    where = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    where += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    head.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # as `make ui` does
    with background(head, "mlflow", "server", *where, cwd=folder):
        answers(port, folder / "mlflow.log")
        yield port


@contextmanager
def way_back(head: SshHead, port: int) -> Iterator[int]:
    """The head's port that leads to the user's `port`, as the comment in cluster/env.sh makes it."""
    (remote,) = free_ports(1)
    with background(head, "ssh", "-N", "-R", f"{remote}:127.0.0.1:{port}", f"{USER}@127.0.0.1", cwd=head.folder):
        answers(remote, head.folder / "ssh.log")
        yield remote


def answers(port: int, log: Path) -> None:
    """Returns when MLflow does."""
    for _ in range(180):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(1)
    raise AssertionError(log.read_text()[-2000:])


def replace(text: str, *changes: tuple[str, str]) -> str:
    """`text` after changes of what it must hold once."""
    for old, new in changes:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    return text


def edited_checkout(folder: Path, cluster: str, mlflow_port: int) -> Path:
    """A clone whose cluster.yaml and env.sh a user has edited; name and port keep it apart from other clusters."""
    clone = folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    text = (clone / "cluster.yaml").read_text()
    (shared,) = re.findall(r"^  - mkdir -p /mnt/shared.*\n", text, re.MULTILINE)
    (clone / "cluster.yaml").write_text(
        replace(
            text,
            ("head_ip: 192.168.1.10", "head_ip: 127.0.0.1"),
            ("worker_ips: [192.168.1.11]", "worker_ips: []"),
            ("ssh_user: train", f"ssh_user: {USER}"),
            (shared, ""),
            ("cluster_name: genmodels", f"cluster_name: {cluster}"),
            ("--head --port=6379", f"--head --port={free_ports(1)[0]}"),
        )
    )
    env = clone / "cluster/env.sh"
    line = "export MLFLOW_TRACKING_URI=http://127.0.0.1:"
    env.write_text(replace(env.read_text(), (f"# {line}5000", f"{line}{mlflow_port}")))
    return clone


def borrow_packages(head: SshHead) -> None:
    """An environment on the head that finds the packages of the running one, so that pip has nothing to download."""
    folder = head.home / "genmodels-project/.venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (packages,) = {path for path in sys.path if path.endswith("site-packages")}
    (site / "borrowed.pth").write_text(packages)
    script = f"#!{folder}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n"
    (folder / "bin/ray").write_text(script)
    (folder / "bin/ray").chmod(0o755)


@pytest.mark.cluster
@pytest.mark.slow  # and needs sshd, which .ci/run installs before it runs the shorter variant
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("packages", ["running", "locked"])
def test_ray_submit_trains_on_a_cluster_and_the_user_s_mlflow_has_the_model(packages, head, tmp_path, monkeypatch):
    if packages == "running":
        borrow_packages(head)
    with users_mlflow(head, tmp_path / "mlflow") as port, way_back(head, port) as remote_port:
        clone = edited_checkout(head.folder, f"test-{os.getpid()}", remote_port)
        head.run("sh", "-c", "ray get-auth-token --generate > /dev/null", cwd=clone)
        # Ray gives its agent 15 s to start, which a busy machine exceeds: hence a second try.
        head.run("ray", "up", "-y", "cluster.yaml", cwd=clone, timeout=PATIENCE[packages], retry=True)
        settings = [word for setting in TINY for word in ("--set", setting)]
        train = ["pipelines/train.py", "--model", "progan", "--num-workers", "1", *settings]
        output = head.run("ray", "submit", "cluster.yaml", *train, cwd=clone, timeout=600)
        assert "registered progan version 1, the champion" in output
        assert (head.home / "train.py").read_bytes() == (clone / "pipelines/train.py").read_bytes()

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
        version = client.get_model_version_by_alias("progan", "champion")
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED" and run.data.params["train.num_images"] == "512"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "score")]
        assert (steps[0], steps[-1]) == (0, 512)
        assert client.list_artifacts(run.info.run_id, "images")
        assert not (head.home / "genmodels-project/mlflow.db").exists()

        params = clone / "params.yaml"
        params.write_text(replace(params.read_text(), ("    hold_images: 2_000", "    hold_images: 4321")))
        head.run("ray", *RENEW[packages], cwd=clone, timeout=PATIENCE[packages])
        show = ["pipelines/train.py", "--model", "progan", "--print-config"]
        assert "hold_images: 4321" in head.run("ray", "submit", "cluster.yaml", *show, cwd=clone)

        head.run("ray", "down", "-y", "cluster.yaml", cwd=clone)
    deadline = time.monotonic() + 60  # ssh keeps a connection for ten seconds
    while head.processes() and time.monotonic() < deadline:
        time.sleep(1)
    assert [process.cmdline() for process in head.processes()] == []
