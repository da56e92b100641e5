"""Versions and their champion: by the metric, by a person, and what may not be champion."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from commands import call, refused, succeed
from exports import export_vae, register_vae

from genmodels import export
from pipelines import register, registry, tracking, train
from pipelines.champion import crown
from pipelines.run import Run, owned


def client():
    return tracking.connected().MlflowClient()


def champion(alias: str = "champion") -> int | None:
    """The number of the version that holds an alias."""
    number = client().get_registered_model("vae").aliases.get(alias)
    return number and int(number)


@pytest.fixture
def add(project, sprites_data, tmp_path):
    """Registers VAEs of untrained weights, by seed and score; none are registered before."""
    if client().search_registered_models("name = 'vae'"):
        client().delete_registered_model("vae")

    def version(seed: int, score: float | None, protocol: str = "p1", **tags: str) -> int:
        return register_vae(tmp_path, sprites_data, seed, score, protocol, **tags)

    return version


def test_the_best_by_the_metric_is_champion(add):
    _, better = add(1, 50.0), add(2, 40.0)
    assert champion() == champion("champion-sprites") == better
    third = add(3, 45.0)
    assert champion() == better
    add(2, 60.0)  # evaluated again, and worse
    assert champion() == third


def test_a_data_set_s_name_with_a_dot_has_a_champion_too(add):
    number = add(1, 50.0)
    crown(client(), "vae", "sprites.v2", "p1")
    assert champion("champion-sprites-v2") == champion() == number


def test_a_failed_proof_loses_to_any_whose_proofs_hold(add):
    failed, held = add(1, 10.0, proofs="2 of 3 shown"), add(2, 90.0, proofs="3 of 3 shown")
    assert champion() == held
    add(1, 10.0, proofs="3 of 3 shown")
    assert champion() == failed


def test_an_older_protocol_s_version_does_not_take_champion_back(add):
    add(1, 50.0)
    newer = add(2, 90.0, "p2")
    assert champion() == newer  # the newer protocol's version takes it over
    add(1, 40.0)  # registered again
    assert champion() == newer
    best = add(3, 30.0, "p2")
    assert champion() == best


def test_proofs_decide_among_evaluated_versions_alone(add):
    evaluated = add(1, 10.0, proofs="2 of 3 shown")
    add(2, 90.0)
    assert champion() == evaluated
    better = add(3, 5.0)
    assert champion() == better
    held = add(4, 80.0, proofs="3 of 3 shown")
    assert champion() == better
    add(3, 5.0, proofs="0 of 3 shown")
    assert champion() == held


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_registration_killed_while_the_alias_moved_leaves_it_to_the_metric(killed, add, monkeypatch):
    add(1, 50.0)
    mlflow_client, move = type(client()), type(client()).set_registered_model_alias

    def kill(*arguments):
        if killed == "after":
            move(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow_client, "set_registered_model_alias", kill)
        add(2, 40.0)
    best = add(3, 30.0)
    assert champion() == champion("champion-sprites") == best


@pytest.mark.parametrize(
    "score, tags",
    [
        (float("nan"), {}),
        (float("inf"), {}),
        (None, {}),
        (1.0, {"ended": "failed after 64 of 256 images: nan in critic"}),
        (1.0, {"ended": "ended after 64 of 256 images"}),
    ],
)
def test_what_is_not_sound_becomes_champion_by_force_alone(add, score, tags):
    broken = add(1, score, **tags)
    assert champion() is None
    sound = add(2, 50.0)
    assert champion() == sound
    with pytest.raises(ValueError, match="--force: its (score is|training (failed|ended) after 64 of 256)"):
        registry.choose("vae", broken, "champion", force=False)
    assert champion() == sound
    registry.choose("vae", broken, "champion", force=True)
    assert champion() == broken


def test_scores_of_unlike_protocols_are_not_compared(add):
    add(1, 1.0, "p1")
    newer = add(2, 100.0, "p2")
    assert champion() == newer
    add(3, 200.0, "p2")
    assert champion() == newer


@pytest.mark.parametrize("by", ["command", "page"])
def test_what_a_person_chose_stays_until_the_alias_is_taken_away(by, add):
    chosen, _ = add(1, 50.0), add(2, 40.0)
    if by == "command":
        registry.choose("vae", chosen, "champion", force=False)
    else:
        client().set_registered_model_alias("vae", "champion", str(chosen))
    best = add(3, 30.0)
    assert champion() == chosen and champion("champion-sprites") == best
    client().delete_registered_model_alias("vae", "champion")
    add(3, 30.0)
    assert champion() == best


def test_what_is_missing_or_altered_is_refused_before_mlflow_is_called(add, sprites_data, tmp_path):
    folder = export_vae(tmp_path / "whole", sprites_data, 1)
    for fault in ("missing", "altered", "config"):
        broken = shutil.copytree(folder, tmp_path / fault)
        weights = broken / "model.safetensors"
        if fault == "missing":
            weights.unlink()
        elif fault == "altered":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        else:
            (broken / "config.json").write_text("{}")
        with pytest.raises(export.ExportError, match=str(broken)):
            registry.register(broken, None, 1.0, "p1", {})
    assert not client().search_registered_models("name = 'vae'")


EIGHT = """
import multiprocessing, sys
from pathlib import Path
from pipelines import registry, tracking

def register(folder):
    return registry.register(Path(folder), None, 1.0, "p1", {})[0]

tracking.connected()  # imports MLflow once for all
with multiprocessing.get_context("fork").Pool(8) as pool:
    print(*pool.map(register, [sys.argv[1]] * 8, chunksize=1))
"""


def test_eight_registrations_of_one_result_make_one_version(add, project, sprites_data, tmp_path):
    folder = export_vae(tmp_path / "one", sprites_data, 9)
    command = [sys.executable, "-c", EIGHT, str(folder)]
    assert subprocess.check_output(command, env=project.environment, text=True).split() == ["1"] * 8
    assert len(client().search_model_versions("name = 'vae'")) == 1


def test_a_pickle_in_the_registry_is_not_read(project, sprites_data, tmp_path):
    """A version whose weights somebody replaced by a pickle that would run code."""
    folder = export_vae(tmp_path / "evil", sprites_data, 4)
    (folder / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR.")
    config = json.loads((folder / "config.json").read_text())
    from genmodels.files import sha256_file

    (folder / "config.json").write_text(json.dumps({**config, "sha256": sha256_file(folder / "model.safetensors")}))
    with pytest.raises(export.ExportError, match=r"model\.safetensors"):
        registry.load(str(folder))


@pytest.fixture(scope="module")
def stopped(project) -> Run:
    """A training that was killed half-way, after a snapshot."""
    settings = [f"models.vae.train.{key}" for key in ("num_images=100000", "snapshot_every=64", "seed=5")]
    options = ["--model", "vae", *(word for setting in settings for word in ("--set", setting))]
    process = subprocess.Popen([sys.executable, "-m", "pipelines.train", *options], env=project.environment)
    try:
        while not (found := [run for run in project.runs.glob("vae-*") if (run / "best").exists()]):
            assert process.poll() is None
            time.sleep(0.2)
        process.terminate()
        assert process.wait(60) != 0
    finally:
        process.kill()
    return Run(found[0])


def test_a_run_that_ended_early_is_registered_but_champion_by_force_alone(add, stopped):
    output = succeed(register, "--run", stopped.name)
    assert "vae version 1" in output and champion() is None
    line = refused(register, "--run", stopped.info["mlflow_run_id"], "--alias", "champion")
    assert "--force" in line and "of 100,000 images" in line
    assert "champion now" in succeed(register, "--run", stopped.name, "--alias", "champion", "--force")
    assert champion() == 1
    assert "version 1, best now" in succeed(register, "--run", stopped.name, "--alias", "best")


def test_registering_leaves_an_mlflow_run_as_it_was(add, sprites_data, tmp_path):
    for status in ("RUNNING", "KILLED"):
        run_id = client().create_run(tracking.experiment_id()).info.run_id
        if status == "KILLED":
            client().set_terminated(run_id, status, 1000)
        before = client().get_run(run_id).info
        registry.register(export_vae(tmp_path / status, sprites_data, len(status)), run_id, 1.0, "p1", {})
        after = client().get_run(run_id).info
        assert after.status == status and (status == "RUNNING" or after.end_time == before.end_time)


def test_a_run_under_way_is_not_registered_and_one_that_was_killed_is_marked(add, stopped):
    run_id = stopped.info["mlflow_run_id"]
    client().update_run(run_id, "RUNNING")
    with owned(stopped):
        assert "is under way" in refused(register, "--run", stopped.name)
    assert client().get_run(run_id).info.status == "RUNNING"
    succeed(register, "--run", stopped.name)
    assert client().get_run(run_id).info.status == "KILLED"


def test_a_run_killed_between_its_best_weights_and_their_score_is_refused(add, stopped, project):
    run = Run(shutil.copytree(stopped.folder, project.runs / "vae-0-1"))
    try:
        lines = [line for line in run.events_file.read_text().splitlines(True) if '"snapshot"' not in line]
        run.events_file.write_text("".join(lines))
        assert "it goes on with: python pipelines/" in refused(register, "--run", run.name)
    finally:
        shutil.rmtree(run.folder)


def test_a_run_of_another_machine_is_found_by_its_version(add, project, tmp_path):
    result = call(train, "--model", "vae", "--set", "models.vae.train.seed=6")
    assert result.exit_code == 0, result.output
    run = max(map(Run, project.runs.glob("vae-*")), key=lambda run: run.info["created"])
    run_id, away = run.info["mlflow_run_id"], tmp_path / "away"
    shutil.move(run.folder, away)
    assert "vae version 1, mine now" in succeed(register, "--run", run_id, "--alias", "mine")
    assert "no run 'nothing' here" in refused(register, "--run", "nothing")


def test_scores_of_other_weights_are_refused(add, sprites_data, tmp_path):
    """A training that was repeated, and its evaluation not."""
    export_vae(tmp_path / "model/export", sprites_data, 1)
    run = {"run": "vae-1", "ended": "finished", "score": 1.0, "protocol": "p1"}
    (tmp_path / "model/run.json").write_text(json.dumps(run))
    scores = tmp_path / "evaluation.json"
    judge = {"num_images": 4, "image_size": 16, "data_digest": "d", "split": "test", "resize_filter": ""}
    protocol = {**judge, "extractor_sha256": "", "extractor_task": ""}
    measured = {"model": "vae", "sha256": "other", "scores": {"swd": 1.0}, "protocol": protocol}
    scores.write_text(json.dumps(measured | {"real_vs_real": {}, "proofs": []}))
    line = refused(register, "--model", tmp_path / "model", "--scores", scores)
    assert str(scores) in line and "other weights" in line
    scores.write_text('{"model": "vae", "sc')
    assert str(scores) in refused(register, "--model", tmp_path / "model", "--scores", scores)
    assert not client().search_registered_models("name = 'vae'")


def test_registering_again_leaves_the_scores_and_evidence_of_an_evaluation(add, sprites_data, tmp_path):
    folder = export_vae(tmp_path / "one", sprites_data, 1)
    registry.register(folder, None, 10.0, "p2", {"proofs": "3 of 3 shown"}, "## Evidence\n\nrows\n")
    registry.register(folder, None, 50.0, "p1", {"ended": "finished", "run": "a"})
    version = client().get_model_version("vae", "1")
    assert (version.tags["score"], version.tags["protocol"], version.tags["run"]) == ("10.0", "p2", "a")
    assert "## Evidence" in version.description
