"""Commands that are refused, or only told of, before anything starts."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from commands import refused, runs, succeed
from PIL import Image

from genmodels.checkpoint import Checkpoints
from genmodels.config import ComputeConfig, DatasetConfig, load_params
from genmodels.data.prepare import prepare
from pipelines import cluster, train
from pipelines.project import UserError
from pipelines.run import Run, open_run

MODULE = [sys.executable, "-m", "pipelines.train"]


def test_a_data_set_too_small_to_score_is_refused_before_it_is_trained_on(sprites_data):
    model = SimpleNamespace(batch_keys=("image",), output_key="image")
    few = dataclasses.replace(sprites_data.spec, domains=(), num_test=3)
    with pytest.raises(ValueError, match="sprites holds out 3 of the 4 images .* raise datasets.sprites.holdout"):
        train._check_samples(model, few, sprites_data.folder, None, None)
    for num_test in (4, 0):  # without any, the training images are scored with
        train._check_samples(model, dataclasses.replace(few, num_test=num_test), sprites_data.folder, None, None)


def test_a_domain_that_holds_out_too_few_is_named(tmp_path):
    for folder, num in {"trainA": 6, "trainB": 6, "testA": 40, "testB": 2}.items():
        (tmp_path / "two" / folder).mkdir(parents=True)
        for i in range(num):
            Image.effect_noise((16, 16), 20 + i).save(tmp_path / "two" / folder / f"{folder}{i}.png")
    config = DatasetConfig(source=str(tmp_path / "two"), image_size=16)
    spec = prepare("two", config, tmp_path / "shards", tmp_path)
    cyclegan = SimpleNamespace(batch_keys=("image_A", "image_B"), output_key="image_B")
    with pytest.raises(ValueError, match="two, domain B holds out 2 of the 4 images"):
        train._check_samples(cyclegan, spec, tmp_path / "shards", "A", None)
    vae = SimpleNamespace(batch_keys=("image",), output_key="image")
    train._check_samples(vae, spec, tmp_path / "shards", "A", None)
    with pytest.raises(ValueError, match="domain B holds out 2"):
        train._check_samples(vae, spec, tmp_path / "shards", "B", None)


def test_a_run_is_not_begun_anew_because_its_checkpoints_are_elsewhere(tmp_path, sprites_data, project):
    config = load_params(project.root / "params.yaml").run("vae")
    run = open_run(tmp_path, config, sprites_data.folder, sprites_data.spec.digest)
    train._check_place_of_checkpoints(run, "memory://bucket/new")  # it never ran
    run.update(described={}, checkpoint_store=None)
    train._check_place_of_checkpoints(run, "memory://bucket/new")  # it left nothing
    (run.folder / "checkpoints" / f"{640:012d}").mkdir(parents=True)
    train._check_place_of_checkpoints(run, None)
    with pytest.raises(UserError, match="has its checkpoints in .*checkpoints, but compute.checkpoint_store is memory"):
        train._check_place_of_checkpoints(run, "memory://bucket/new")


def test_a_store_that_holds_another_run_s_checkpoints_is_refused(tmp_path, sprites_data, project):
    config = load_params(project.root / "params.yaml").run("vae")
    run = open_run(tmp_path, config, sprites_data.folder, sprites_data.spec.digest)
    checkpoints = Checkpoints(f"memory://bucket/{run.place}", 1)
    checkpoints.save(64, {})
    checkpoints.wait()
    with pytest.raises(UserError, match=f"{run.name} holds checkpoints of a run that .* does not know"):
        train._check_place_of_checkpoints(run, "memory://bucket")
    assert Run(tmp_path / "sweeps/vae-0/trial-000").place == "vae-0/trial-000"  # which every sweep has


def test_a_gpu_that_is_not_there_is_refused_without_ray_too(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="use_gpu is true, and torch finds no GPU .* choices: auto, false"):
        cluster.resolve(ComputeConfig(num_workers=0, use_gpu=True), [8], 1)
    assert cluster._local_device(ComputeConfig(num_workers=0, use_gpu="auto")) == "cpu"


def test_auto_leaves_each_worker_a_share_to_train_on(monkeypatch):
    monkeypatch.setattr(cluster, "_num_gpus", lambda compute: 8)
    auto = ComputeConfig(num_workers="auto")
    assert [cluster.resolve(auto, [8, 4], least).num_workers for least in (1, 2, 8)] == [4, 2, 1]


@pytest.mark.parametrize(
    "arguments, words",
    {
        ("--model", "vea"): ["'vea'", "did you mean 'vae'?", "choices:"],
        ("--model", "vae", "--set", "models.vae.latent_dmi=3"): ["latent_dmi", "did you mean 'latent_dim'?"],
        ("--model", "vae", "--set", "models.vae.latent_dim"): ["expected key=value"],
        ("--model", "vae", "--set", "models.vae.lr=0"): ["models.vae.lr", "greater than 0", "got 0"],
        ("--model", "vae", "--recipe", "wied"): ["unknown recipe of vae 'wied'", "did you mean 'wide'?"],
        ("--model", "vae", "--set", "models.vae.train.image_size=12"): ["image_size 12", "sizes 4, 8, 16"],
        ("--model", "vae", "--set", "models.vae.train.domain=C"): ["domain 'C'", "domains A, B"],
        ("--model", "vae", "--set", "compute.num_workers=[2,8]"): [
            "does not divide by 3 workers",
            "num_workers (2, 8)",
        ],
        ("--model", "stargan", "--set", "models.stargan.exclusive=true"): ["exclusive", "images have none", "night"],
        ("--model", "vae", "--num-workers", "3"): ["batch_size 16", "does not divide by 3 workers"],
        ("--model", "vae", "--set", "evaluation.extractor=inception.pt"): [
            "evaluation.extractor inception.pt",
            "no file",
        ],
        ("--model", "infogan", "--num-workers", "16"): ["too small", "needs 2 images a worker"],
        ("--model", "vae", "--set", "models.vae.iw_samples=5", "--set", "models.vae.beta=4"): ["beta 4 has no effect"],
        ("--model", "progan", "--set", "models.progan.train.num_images=99"): ["99 images are too few to grow"],
        ("--model", "dcgan", "--set", "models.dcgan.penalty=gp"): ["discriminator_norm"],
    }.items(),
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_is_one_line_and_starts_nothing(arguments, words, project):
    line = refused(train, *arguments)
    assert all(word in line for word in words), line
    assert not list(project.root.glob("mlflow.db")) or not runs(project, arguments[1])


def test_a_refused_command_shows_no_traceback(project):
    arguments = ["--model", "vae", "--set", "models.vae.latent_dmi=3"]
    result = subprocess.run([*MODULE, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: models.vae.latent_dmi") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("out", [".", "..", "data", "data/runs", "data/runs/mine", "data/shards/sprites", "data/raw"])
def test_an_out_that_would_replace_the_project_or_its_data_is_refused(out, project, monkeypatch):
    (project.root / "data/raw").mkdir(exist_ok=True)
    monkeypatch.chdir(project.root)
    assert f"--out {out} " in refused(train, "--model", "vae", "--out", out)
    assert not project.runs.exists() or not runs(project, "vae")


def test_an_out_that_holds_what_no_training_wrote_is_refused(project, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/run.json").write_text("{}")
    for out in ("mine", "mine/run.json", "mine/run.json/below"):
        line = refused(train, "--model", "vae", "--out", tmp_path / out)
        assert "run.json" in line and "--out" in line
    assert "gan" in refused(train, "--model", "vae,mine", "--out", tmp_path)
    assert (tmp_path / "mine/run.json").read_text() == "{}"
    assert "/dev/null is no folder" in refused(train, "--model", "vae", "--dry-run", "--out", "/dev/null/x")


def test_a_dry_run_shows_the_plan_and_starts_nothing(project):
    def files():
        return {path for path in project.root.rglob("*") if path.is_file() and path.suffix != ".lock"}

    before = files()
    output = succeed(train, "--model", "progan", "--dry-run")
    for words in ("progan on sprites", "generator: ", "stage 4 hold: 48 images of 4 px, batch 16", "stage 16 hold"):
        assert words in output
    assert files() == before


def test_the_printed_configuration_is_the_resolved_one(project):
    printed = yaml.safe_load(succeed(train, "--model", "vae", "--recipe", "wide", "--print-config"))
    config = load_params(project.root / "params.yaml").run("vae", "wide")
    assert printed == config.to_json()
    assert (printed["settings"]["width"], printed["train"]["seed"], printed["settings"]["beta"]) == (8, 7, 1.0)
