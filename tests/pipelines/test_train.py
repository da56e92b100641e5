"""The commands end to end, in a project of their own with tiny trainings; test_train_refusals has what starts none."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from commands import call, refused, runs, succeed
from conftest import Project

from genmodels import export
from genmodels.config import ComputeConfig, load_params
from pipelines import (
    cluster,
    dataset_input,
    evaluate,
    leaderboard,
    outcome,
    register,
    registry,
    report,
    sample,
    tracking,
    train,
)
from pipelines.project import UserError
from pipelines.run import Run, open_run, owned

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two spin where the cores are shared
MODULE = [sys.executable, "-m", "pipelines.train"]


def of_type(run: Run, kind: str) -> list[dict]:
    return [event for event in run.events() if event["type"] == kind]


def client():
    return tracking.connected().MlflowClient()


def versions(model: str) -> list:
    return client().search_model_versions(f"name = '{model}'")


@pytest.fixture(scope="module")
def vae(project) -> Run:
    """A finished training of the VAE."""
    succeed(train, "--model", "vae", "--out", project.root / "data/models/vae")
    (run,) = runs(project, "vae")
    return run


# --- a training and what it leaves -----------------------------------------------------------------------------------


def test_a_training_is_an_mlflow_run_with_parameters_curves_and_pictures(vae, project):
    run = client().get_run(vae.info["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.info.run_name == vae.name
    assert vae.info["status"] == "finished"
    params = run.data.params
    assert params["model"] == "vae" and params["settings.latent_dim"] == "4" and params["train.num_images"] == "256"
    assert run.data.tags["data_digest"] == vae.info["data"]["digest"]
    for kind, metric in (("log", "elbo/kl"), ("log", "images_per_second"), ("snapshot", "scores/swd")):
        points = client().get_metric_history(run.info.run_id, metric)
        expected = [
            (
                e["num_images"],
                {**e.get("values", {}), **{f"scores/{k}": v for k, v in e.get("scores", {}).items()}}[metric],
            )
            for e in of_type(vae, kind)
        ]
        assert sorted((point.step, point.value) for point in points) == expected
    assert [e["num_images"] for e in of_type(vae, "log")] == list(range(32, 257, 32))
    assert [e["num_images"] for e in of_type(vae, "snapshot")] == [0, 128, 256]
    images = [file.path for file in client().list_artifacts(run.info.run_id, "images")]
    assert sorted(int(path.split("+step+")[1].split("+")[0]) for path in images if path.endswith(".png")) == [
        0,
        128,
        256,
    ]


def data_inputs(run: Run) -> list:
    return client().get_run(run.info["mlflow_run_id"]).inputs.dataset_inputs


def test_an_mlflow_run_names_its_data_set_and_shows_some_of_it(vae, project):
    (logged,) = data_inputs(vae)
    digest, dataset = vae.info["data"]["digest"], logged.dataset
    assert (dataset.name, dataset.digest) == ("sprites", digest[:36])
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "training")]
    profile = json.loads(dataset.profile)
    assert (profile["found"], profile["accepted"], profile["rejected"]) == (200, 200, 0)
    assert profile["num_train"] + profile["num_test"] == 200 and profile["digest"] == digest
    columns = {column["name"]: column["type"] for column in json.loads(dataset.schema)["mlflow_colspec"]}
    assert columns["image"] == "uint8 [16, 16, 3]" and columns["class"] == "10"
    source = tracking.connected().data.get_source(dataset)
    assert Path(source.uri) == project.root / "data/shards/sprites"
    (picture,) = client().list_artifacts(vae.info["mlflow_run_id"], "data")
    assert picture.path == "data/contact.png" and picture.file_size == vae.data_picture.stat().st_size


def test_a_resumed_run_has_its_data_set_once(vae, project):
    with tracking.Tracker(vae, {}, {}):
        pass
    dataset_input.log(client(), vae.info["mlflow_run_id"], vae)  # as a process that did not see the other's
    assert len(data_inputs(vae)) == 1


def test_parameters_and_data_that_a_store_refused_at_first_are_sent_again(vae, project, tmp_path, monkeypatch):
    shutil.copytree(vae.folder, tmp_path / "again")
    run = Run(tmp_path / "again")
    run.update(mlflow_run_id=None)
    send, refused_once = dataset_input.log, []

    def refuse(*arguments):
        refused_once.append(1)
        if len(refused_once) == 1:
            raise ConnectionError("away")
        send(*arguments)

    monkeypatch.setattr(dataset_input, "log", refuse)
    tracker = tracking.Tracker(run, {"a": 1}, {}).__enter__()
    while not tracker.behind:
        time.sleep(0.01)
    first = run.info["mlflow_run_id"]
    assert tracker.close("FINISHED") and run.info["mlflow_run_id"] == first
    assert len(data_inputs(run)) == 1 and client().get_run(first).data.params == {"a": "1"}


def test_the_best_weights_are_registered_as_champion(vae, project):
    version = client().get_model_version_by_alias("vae", "champion")
    config = export.read_config(vae.folder / "best")
    assert version.tags["sha256"] == config["sha256"]
    assert version.run_id == vae.info["mlflow_run_id"]
    scores = {event["num_images"]: event["score"] for event in of_type(vae, "snapshot") if event["ranked"]}
    assert float(version.tags["score"]) == min(scores.values()) == scores[config["progress"]["num_images"]]
    assert client().get_model_version_by_alias("vae", "champion-sprites").version == version.version


def test_a_run_says_what_it_is_how_it_ended_and_what_became_of_it(vae, project):
    stored = client().get_run(vae.info["mlflow_run_id"])
    wanted = {"model": "vae", "dataset": "sprites", "stage": "train", "status": "finished"}
    assert wanted.items() <= stored.data.tags.items()
    assert stored.data.tags["mlflow.note.content"].startswith("# vae on sprites")


def test_what_goes_out_is_the_export_its_curves_and_a_summary(vae, project):
    out = project.root / "data/models/vae"
    summary = json.loads((out / "run.json").read_text())
    assert summary["run"] == vae.name and summary["weights_sha256"] == of_type(vae, "finished")[0]["weights"]
    assert export.read_config(out / "export") == export.read_config(vae.folder / "best")
    history = evaluate.read_history(out / "scores.csv")
    assert [row["num_images"] for row in history] == [0, 128, 256] and all("swd" in row for row in history)
    assert {row["stage"] for row in history} == {"train"}  # proofs of growing models compare within a stage
    assert evaluate._run_history(vae.folder) == history  # of a registered version, whose folder has no table
    assert "elbo/kl" in (out / "curves.csv").read_text()
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_an_out_that_a_training_wrote_may_be_replaced_unless_somebody_added_to_it(vae, project, tmp_path):
    out, compute = shutil.copytree(project.root / "data/models/vae", tmp_path / "out"), ComputeConfig()
    (out / ".gitignore").write_text("/export")  # DVC's
    outcome.check_out(out, compute)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt"):
        outcome.check_out(out, compute)


def test_a_finished_training_starts_anew_with_the_same_weights_and_version(vae, project):
    succeed(train, "--model", "vae")
    first, second = (run for run in runs(project, "vae") if run.name.rsplit("-", 1)[0] == vae.name.rsplit("-", 1)[0])
    assert (first.name, second.name) == (vae.name, vae.name[:-1] + "2")
    assert first.info["mlflow_run_id"] != second.info["mlflow_run_id"]
    assert of_type(first, "finished")[0]["weights"] == of_type(second, "finished")[0]["weights"]
    sha256 = export.read_config(vae.folder / "best")["sha256"]
    assert len([version for version in versions("vae") if version.tags["sha256"] == sha256]) == 1


def test_another_parameter_is_another_run(vae, project):
    def opened(*overrides):
        everything = load_params(project.root / "params.yaml", overrides)
        return open_run(project.root / "elsewhere", everything.run("vae"), Path("shards"), "digest").name

    assert opened() == opened("compute.num_workers=2")
    assert len({opened(), opened("models.vae.lr=0.01"), opened("models.vae.train.seed=1")}) == 3


def test_sampling_twice_writes_the_same_bytes(vae, project, tmp_path):
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    for file in files[:2]:
        succeed(sample, "--model", "vae@champion", "--num", 9, "--seed", 5, "--out", file)
    succeed(sample, "--model", "vae@champion", "--num", 9, "--seed", 6, "--out", files[2])
    succeed(sample, "--model", vae.folder / "best", "--num", 9, "--seed", 5, "--out", files[3])
    a, b, other, folder = (file.read_bytes() for file in files)
    assert a == b == folder != other
    succeed(sample, "--model", "vae/1", "--num", 3, "--each", tmp_path / "each")
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == ["00000.png", "00001.png", "00002.png"]


def test_a_model_that_is_not_there_is_refused_with_what_is(vae, project):
    assert "registered: vae" in refused(sample, "--model", "vea@champion", "--out", "x.png")
    assert "registered: vae" in refused(sample, "--model", "no such folder", "--out", "x.png")
    assert "--out" in refused(sample, "--model", "vae@champion")


def test_evaluating_registering_and_reporting_follow(vae, project):
    out = project.root / "data/evaluations/vae"
    succeed(evaluate, "--model", project.root / "data/models/vae/export", "--out", out)
    result = json.loads((out / "evaluation.json").read_text())
    assert result["model"] == "vae" and result["scores"].keys() >= {"swd", "fid", "kid", "ms_ssim"}
    assert result["proofs"] and result["protocol"]["data_digest"] == vae.info["data"]["digest"]
    number = len(versions("vae"))
    version_file = project.root / "version.json"
    output = succeed(
        register,
        "--model",
        project.root / "data/models/vae",
        "--scores",
        out / "evaluation.json",
        "--out",
        version_file,
    )
    assert "version 1, the champion" in output and len(versions("vae")) == number
    assert json.loads(version_file.read_text()) == {"version": 1, "champion": True}
    tags = client().get_model_version("vae", "1").tags
    assert float(tags["fid"]) == pytest.approx(result["scores"]["fid"], rel=1e-4)
    assert result["proofs"][0]["claim"][:20] in succeed(report).replace("\n", " ")
    page = (project.root / "data/report/index.html").read_text()
    assert "<h2>vae</h2>" in page and "data:image/png;base64," in page
    assert "<h2>data set sprites</h2>" in page and vae.info["data"]["digest"][:12] in page


def test_scores_of_another_protocol_prove_nothing_against_the_training_s(vae, project, tmp_path):
    model = project.root / "data/models/vae/export"
    halves = "of samples below half"
    assert halves in succeed(evaluate, "--model", model)
    output = succeed(evaluate, "--model", model, "--set", "evaluation.num_images=6")
    assert halves not in output and "scored by another protocol" in output


def test_an_evaluation_without_pictures_has_their_folder(tmp_path):
    assert evaluate.save_pictures({}, tmp_path / "out/pictures") == []
    assert (tmp_path / "out/pictures").is_dir()  # an output of its DVC stage


def test_an_evaluation_leaves_alone_what_lies_beside_its_pictures(vae, project, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/holiday.png").write_text("mine")
    paths = evaluate.save_pictures({"rows": torch.zeros(2, 3, 3, 4, 4)}, tmp_path / "pictures")
    assert [path.name for path in paths] == ["rows.png"] and paths[0].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["holiday.png", "rows.png"]


def test_commands_that_need_a_tracking_server_say_in_one_line_that_it_is_away(vae, project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    model, picture = project.root / "data/models/vae", tmp_path / "x.png"
    for asked in (
        (sample, "--model", "vae@champion", "--out", picture),
        (register, "--model", model),
        (leaderboard, "--out", tmp_path),
        (evaluate, "--model", "vae@champion"),
    ):
        assert "127.0.0.1" in refused(*asked)
    succeed(sample, "--model", model / "export", "--out", picture)
    result = call(evaluate, "--model", model / "export", "--out", tmp_path)
    assert result.exit_code == 0 and "warning: MLflow has not got these scores" in result.stderr
    assert (tmp_path / "evaluation.json").exists()


def test_concurrent_registrations_make_one_version(vae, project, tmp_path):
    """Of weights that are new to the registry."""
    sampler = export.load(vae.folder / "best")
    sampler.model.decoder.log_sigma.add_(1)
    export.save(tmp_path / "new", sampler.model, sampler.progress)
    before = {version.version for version in versions("vae")}

    def register_once(_):
        return registry.register(tmp_path / "new", None, 1e9, "protocol", {})

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(register_once, range(8)))
    (new,) = {version.version for version in versions("vae")} - before
    assert {number for number, _ in results} == {int(new)}


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_an_altered_or_missing_artefact_is_refused_before_it_is_registered(fault, vae, project, tmp_path):
    shutil.copytree(project.root / "data/models/vae", tmp_path / "vae")
    weights = tmp_path / "vae/export/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content) if fault == "altered" else weights.unlink()
    before = len(versions("vae"))
    assert "model.safetensors" in refused(register, "--model", tmp_path / "vae")
    assert len(versions("vae")) == before


def test_a_training_that_diverges_fails_by_name_and_is_never_registered(vae, project):
    before = len(versions("vae"))
    result = call(train, "--model", "vae", "--set", "models.vae.lr=1e30")
    assert result.exit_code == 2
    for word in ("error: vae: phase 'elbo', term", "became"):
        assert word in result.stderr
    run = runs(project, "vae")[-1]
    assert run.info["status"] == "failed"
    assert client().get_run(run.info["mlflow_run_id"]).info.status == "FAILED"
    assert len(versions("vae")) == before


def test_a_training_that_fails_of_our_own_fault_is_marked_failed(project, monkeypatch):
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(cluster, "train", broken)
    result = call(train, "--model", "vae", "--set", "models.vae.train.seed=11")
    assert isinstance(result.exception, RuntimeError)
    run = runs(project, "vae")[-1]
    assert run.config.train.seed == 11 and run.info["status"] == "failed"


def test_a_driver_killed_after_the_last_image_leaves_a_training_that_is_finished(project, monkeypatch):
    arguments = ("--model", "vae", "--set", "models.vae.train.seed=12")

    def killed(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "finish", killed)
        assert call(train, *arguments).exit_code == 137
    assert runs(project, "vae")[-1].info["status"] == "running"
    succeed(train, *arguments)
    run = runs(project, "vae")[-1]
    (end,), result = of_type(run, "finished"), run.info["result"]
    assert len(of_type(run, "started")) == 2 and run.events()[-1] != end
    assert (result["ended"], result["images"], result["weights_sha256"]) == ("finished", 256, end["weights"])


def test_a_second_driver_is_refused_and_told_who_holds_the_run(vae, project):
    config = load_params(project.root / "params.yaml", ["models.vae.train.seed=99"]).run("vae")
    run = open_run(project.runs, config, project.root / "data/shards/sprites", vae.info["data_digest"])
    with owned(run):
        result = call(train, "--model", "vae", "--set", "models.vae.train.seed=99")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: run {run.name} is held by process {os.getpid()} on ")
    assert run.events() == []


def test_a_training_outlives_a_dead_tracking_server(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    result = call(train, "--model", "vae", "--set", "models.vae.train.seed=2")
    assert result.exit_code == 0, result.output
    run = runs(project, "vae")[-1]
    assert len(of_type(run, "finished")) == 1 and run.info["mlflow_run_id"] is None
    assert "MLflow is away" in result.stderr and str(run.events_file) in result.stderr


def test_a_tracking_server_that_never_answers_counts_as_away(project, vae, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(tracking.Tracker, "_send_new", lambda self: released.wait(60))
    tracker = tracking.Tracker(vae, {}, {}).__enter__()
    assert tracker.close("FINISHED", timeout=0.5) is False
    released.set()
    assert tracker.behind and isinstance(tracker.error, TimeoutError)


# --- several workers; tests/chaos has those that are killed ---------------------------------------------------------


def command(project: Project, *arguments: str) -> list[str]:
    return [*MODULE, "--model", "progan", *arguments]


def finished(folder: Path) -> tuple[str, Run]:
    """The final weights' sha256 of the only run in a storage folder."""
    (run_file,) = folder.glob("progan-*/run.json")
    run = Run(run_file.parent)
    return of_type(run, "finished")[0]["weights"], run


@pytest.mark.cluster
def test_two_ray_workers_train_to_a_registered_version(project):
    storage = "compute.storage_path=data/ray-runs"
    result = subprocess.run(
        command(project, "--num-workers", "2", "--set", storage, "--set", "compute.cpus_per_worker=1"),
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    _, run = finished(project.root / "data/ray-runs")
    (started,) = of_type(run, "started")
    assert started["workers"] == 2
    assert client().get_run(run.info["mlflow_run_id"]).info.status == "FINISHED"
    sha256 = export.read_config(run.folder / "best")["sha256"]
    assert sha256 in {version.tags["sha256"] for version in versions("progan")}
