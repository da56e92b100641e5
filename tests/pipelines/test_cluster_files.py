"""The files that only a cluster or a reader uses: valid by Ray's own rules, without secrets, true to the commands."""

import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from genmodels.credentials import secret_in
from genmodels.data.fields import DataSpec
from genmodels.model import Noise, Progress, Stage

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CLOUDS = ["cluster/aws.yaml", "cluster/gcp.yaml"]
CLUSTER_FILES = [ROOT / "cluster.yaml", ROOT / ".rayignore", *sorted((ROOT / "cluster").iterdir())]
DOCUMENTED = [README, *(path.read_text() for path in CLUSTER_FILES)]

# A value given to something that is called a secret.
ASSIGNED = re.compile(r"(?i:password|passwd|secret|token|api_?key)\w*[\"']?\s*[:=]\s*[\"']?(?![$*<])[\w/+-]{12,}")


def holds_secret(text: str) -> bool:
    return bool(secret_in(text) or ASSIGNED.search(text))


def commands(texts: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(script, its options) of every `pipelines/X.py …` in the texts, over lines continued by a backslash."""
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    found = set()
    for line in lines:
        for script, arguments in re.findall(r"pipelines/(\w+)\.py([^`#|]*)", line):
            found.add((script, tuple(re.findall(r"(?<![\w-])--[\w-]+", arguments))))
    return sorted(found)


def cluster(path: str = "cluster.yaml") -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def test_cluster_yaml_is_what_ray_up_accepts():
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: TID251

    config = prepare_config(cluster())
    validate_config(config)
    assert config["available_node_types"]["local.cluster.node"]["min_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("path", CLOUDS)
def test_cloud_files_are_what_ray_up_accepts(path):
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: TID251

    config = prepare_config(cluster(path))
    validate_config(config)
    workers = config["available_node_types"]["worker"]
    assert workers["min_workers"] == workers["max_workers"] == config["max_workers"] == 2
    assert f"ray submit {path} pipelines/train.py --model progan --num-workers 2" in (ROOT / path).read_text()


@pytest.mark.parametrize("path", CLOUDS)
def test_cloud_machines_are_set_up_and_started_as_our_own(path):
    """The token and the shared folder with them."""
    own, cloud = cluster(), cluster(path)
    for key in (
        "file_mounts",
        "rsync_exclude",
        "setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        assert cloud[key] == own[key], key
    (mounted,) = (command for command in cloud["initialization_commands"] if "mount -t nfs4" in command)
    assert mounted.split()[-1] == "/mnt/shared"


def test_ray_submit_hands_our_options_on():
    from ray.scripts.scripts import submit  # noqa: TID251

    for script, options in commands([README]):
        context = submit.make_context("submit", ["cluster.yaml", f"pipelines/{script}.py", *options])
        assert context.params["script_args"] == options


def test_file_mounts_exist_and_hold_what_the_installation_reads():
    mounts = {remote: local for remote, local in cluster()["file_mounts"].items() if not local.startswith("~")}
    assert all((ROOT / local).exists() for local in mounts.values())
    assert {"genmodels", "pipelines", "cluster", "params.yaml", "pyproject.toml", "requirements.lock"} <= set(
        mounts.values()
    )
    assert all(remote == f"~/genmodels-project/{local}" for remote, local in mounts.items())


def test_a_node_s_shell_finds_the_project_and_the_running_cluster(tmp_path):
    """The line that setup writes, and the shell in which Ray runs commands."""
    folder = tmp_path / "genmodels-project" / "cluster"
    folder.mkdir(parents=True)
    (folder / "env.sh").write_text((ROOT / "cluster" / "env.sh").read_text())
    shell: dict = {"env": {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, "cwd": tmp_path, "text": True}
    shell |= {"stdin": subprocess.DEVNULL, "start_new_session": True}  # bash -i would take the terminal
    for _ in range(2):
        subprocess.run(["bash", "-c", cluster()["setup_commands"][0]], check=True, **shell)
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1
    command = "source ~/.bashrc; export OMP_NUM_THREADS=1 && (env)"
    output = subprocess.run(["bash", "--login", "-c", "-i", command], capture_output=True, check=True, **shell).stdout
    environment = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    assert environment["GENMODELS_ROOT"] == str(folder.parent)
    assert environment["PATH"].startswith(str(folder.parent / ".venv" / "bin"))
    assert (environment["RAY_ADDRESS"], environment["RAY_AUTH_MODE"]) == ("auto", "token")


def test_ray_starts_with_a_token_and_a_dashboard_that_nobody_else_sees():
    config = cluster()
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all(start.startswith("env -u OMP_NUM_THREADS -u RAY_ADDRESS ray start ") for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0]  # without it no worker is started
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_rayjob_takes_its_token_from_a_secret_and_runs_the_locked_ray():
    job = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())
    cluster_spec = job["spec"]["rayClusterSpec"]
    locked = re.search(r"^ray==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked and cluster_spec["rayVersion"] == locked.group(1)
    assert cluster_spec["authOptions"]["mode"] == "token" and cluster_spec["authOptions"]["secretName"]
    workers = cluster_spec["workerGroupSpecs"][0]
    assert f"--num-workers {workers['replicas']}" in job["spec"]["entrypoint"]
    for group in (cluster_spec["headGroupSpec"], workers):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]


def test_dockerfile_installs_the_lock_and_drops_root():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    assert any(re.match(r"RUN pip install .*--requirement requirements\.lock$", line) for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER ray"]
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert not any(name.startswith((".", "data")) for name in copied)


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_no_secret_lies_in(path):
    assert not holds_secret(path.read_text())


@pytest.mark.parametrize(
    "line",
    ["RAY_AUTH_TOKEN=0123456789abcdef", "secret_key: abcdefghijkl", "AKIA" + "A" * 16, "http://me:" + "pass@host"],
)
def test_the_search_for_secrets_finds(line):
    assert holds_secret(line)


@pytest.mark.parametrize(("script", "options"), commands(DOCUMENTED))
def test_documented_options_exist(script, options, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"pipelines.{script}").main)
    known = {name for option in typer.main.get_command(app).params for name in option.opts} | {"--help"}
    assert set(options) <= known
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_documented_paths_and_settings_exist():
    models = yaml.safe_load((ROOT / "params.yaml").read_text())
    for model, recipe in re.findall(r"recipes\.(\w+)\.(\w+)", README):
        assert recipe in models["recipes"][model]
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for path in re.findall(r"(?:genmodels|pipelines|cluster)/[\w/]+\.(?:py|yaml)|cluster/Dockerfile", README):
        assert (ROOT / path).exists(), path


def test_the_readme_s_model_learns_and_draws():
    (source,) = re.findall(r"```python\n(\"\"\"Regularised.*?)```", README, re.DOTALL)
    namespace: dict = {}
    exec(source, namespace)
    cls = namespace["RAE"]
    torch.manual_seed(0)
    model = cls(cls.Config(), DataSpec("x", 3, 32, (32,), 8, 0))
    progress = Progress(0, 0, Stage("train", 8, 32, 4), 0.0)
    batch = {"image": torch.rand(4, 3, 32, 32) * 2 - 1}
    phase = model.phases[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=model.optimizers()[phase.name].lr)
    losses = []
    for _ in range(8):
        output = model.training_step(batch, phase.name, progress, Noise(0, 0, 0, torch.device("cpu")), {})
        loss = torch.stack(list(output.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.generate(model.latent(2, torch.Generator()), {}, progress).shape == (2, 3, 32, 32)
