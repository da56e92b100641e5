"""Sweeps without Ray: rungs, searching, a trial's way from rung to rung, MLflow's picture of it, the winner."""

import json
import math
from random import Random
from unittest.mock import Mock

import pytest
import yaml
from commands import refused, succeed

from genmodels.config import ComputeConfig, load_params
from genmodels.metrics.judge import ensure_extractor
from genmodels.model import Metric, Stage
from genmodels.search_space import Dimension
from pipelines import leaderboard, population, sweep_figures, sync, train, tune, winner, worker
from pipelines.project import UserError, extractor_path
from pipelines.recipes import Recipes
from pipelines.search import Search
from pipelines.sweep import Method, Trial, open_sweep, ranked, rungs, score_at
from pipelines.sweep_tracking import SweepTracker
from pipelines.tracking import connected
from pipelines.trial import advance

SPACE = {
    "lr": {"loguniform": [0.00001, 0.01]},
    "loss": {"choice": ["mse", "bce"]},
    "latent_dim": {"int": [2, 6]},
}
METHOD = Method("tpe", "asha", 0)
MIN = Metric("swd")


def space() -> dict[str, Dimension]:
    return {name: Dimension(**values) for name, values in SPACE.items()}


@pytest.fixture(scope="module")
def recipes(project, sprites_data) -> Recipes:
    path = project.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**params, "sweep": {"autoencoder": SPACE}}, sort_keys=False))
    return Recipes(load_params(path), "autoencoder", None, 144, space(), sprites_data.spec, "asha")


@pytest.fixture(scope="module")
def sweep(project, recipes):
    """A sweep that is ready for trials, as `tune.searched` makes it."""
    base = recipes.config({})
    sweep = open_sweep(project.runs, base, recipes.space, METHOD, recipes.spec.digest)
    extractor = extractor_path(recipes.compute, recipes.spec, base.evaluation)
    ensure_extractor(extractor, project.root / "data/shards/sprites", recipes.spec, base.evaluation)
    sweep.update(
        extractor=str(extractor), compute=ComputeConfig(num_workers=1).model_dump(mode="json"), command="tune.py"
    )
    return sweep


def advanced(sweep, recipes, number: int, values: dict, most: int = 3) -> tuple[Trial, list[dict]]:
    """A trial and its reports, up to `most`."""
    trial = recipes.add(sweep, number, values)
    trial.update(status="running" if trial.status == "new" else trial.status)
    reports: list[dict] = []
    while len(reports) < most and not (reports and reports[-1]["done"]):
        reports.append(advance(trial, len(reports), "cpu"))
    return trial, reports


# --- rungs and scores ------------------------------------------------------------------------------------------------


def test_rungs_are_shares_of_the_images_and_with_stages_their_ends():
    one = [Stage("train", 90, 16, 4)]
    assert rungs(one, (1 / 9, 1 / 3, 1)) == ([10, 30, 90], [16, 16, 16])
    grown = [Stage("4", 20, 4, 4), Stage("fade", 20, 8, 4), Stage("8", 50, 8, 4)]
    assert rungs(grown, (0.2, 0.5, 1)) == ([20, 40, 90], [4, 8, 8])
    assert rungs(grown, (1 / 9, 1 / 3, 1)) == ([20, 90], [4, 8])  # both are nearest to the first stage's end


def test_a_rungs_score_is_the_best_so_far_of_the_protocol_there():
    def snapshot(num_images, score, size):
        return {"type": "snapshot", "num_images": num_images, "score": score, "protocol": {"image_size": size}}

    events = [snapshot(0, 1.0, 8), snapshot(10, 5.0, 4), snapshot(20, 8.0, 8), snapshot(30, 9.0, 8)]
    assert score_at(events, 10, MIN) == 5.0
    assert score_at(events, 25, MIN) == 8.0  # neither the untrained one nor the other size
    assert score_at(events, 31, MIN) is None
    assert math.isnan(score_at([snapshot(10, math.nan, 8)], 10, MIN))


# --- searching -------------------------------------------------------------------------------------------------------


def test_a_search_that_goes_on_proposes_what_it_would_have_proposed():
    def proposals(search: Search, begin: int, end: int) -> list[dict]:
        found = []
        for number in range(begin, end):
            found.append(search.ask(number))
            search.report(number, 1, found[-1]["lr"])
            search.tell(number, "finished")
        return found

    first = {"lr": 0.001, "loss": "mse", "latent_dim": 4}
    whole = proposals(Search(space(), METHOD, "min", first), 0, 9)
    assert whole[0] == first and len({str(values) for values in whole}) == 9
    resumed = Search(space(), METHOD, "min", first)
    for number, values in enumerate(whole[:8]):
        resumed.replay(number, values)
        resumed.report(number, 1, values["lr"])
        resumed.tell(number, "finished")
    after, expected = resumed.ask(8), whole[8]
    assert after.pop("loss") == expected.pop("loss")
    assert after == pytest.approx(expected, rel=0.01)  # it was told values of four digits


def test_tpe_leaves_the_region_where_trials_fail():
    search = Search(space(), Method("tpe", "none", 0), "min", None)
    failed = []
    for number in range(40):
        values = search.ask(number)
        failed.append(values["lr"] < 0.003)  # five of six at random
        if not failed[-1]:
            search.report(number, 1, abs(values["lr"] - 0.006))
        search.tell(number, "failed" if failed[-1] else "finished")
    assert sum(failed[20:]) < 10


def test_random_values_do_not_depend_on_scores():
    searches = [Search(space(), Method("random", "none", 3), "min", None) for _ in range(2)]
    for number in range(6):
        assert searches[0].ask(number) == searches[1].ask(number)
        searches[0].report(number, 1, float(number))
        searches[0].tell(number, "finished")


def test_the_worst_of_a_population_goes_on_from_one_of_the_best_within_the_space():
    scores = {name: float(i) for i, name in enumerate("abcdefgh")}
    assert population.parent(scores, "h", "min", Random(0)) in "ab"
    assert population.parent(scores, "a", "max", Random(0)) in "gh"
    assert population.parent(scores, "d", "min", Random(0)) is None
    assert population.parent({"a": 1.0, "b": 2.0}, "b", "min", Random(0)) is None
    values = {"lr": 0.009, "loss": "bce", "latent_dim": 2}
    for seed in range(30):
        changed = population.perturbed(space(), values, Random(seed))
        assert all(space()[name].drawn(value) is not None for name, value in changed.items())


# --- a trial ---------------------------------------------------------------------------------------------------------


def test_a_trial_trains_from_rung_to_rung_and_another_process_repeats_nothing(sweep, recipes):
    trial, reports = advanced(sweep, recipes, 0, {"lr": 0.002, "latent_dim": 3})
    assert [report["rungs"] for report in reports] == [1, 2, 3]
    assert [report["done"] for report in reports] == [False, False, True]
    assert [report["num_images"] for report in reports] == [16, 48, 144]
    assert trial.info["config"]["settings"]["latent_dim"] == 3
    events = trial.events()
    again = [advance(trial, rung, "cpu") for rung in range(3)]
    assert [report["score"] for report in again] == [report["score"] for report in reports]
    assert trial.events() == events
    trial.update(status="finished")


def test_a_trial_in_rungs_ends_with_the_weights_of_one_in_one_go(sweep, recipes, project):
    digest = next(e["weights"] for e in Trial(sweep.folder / "trial-000").events() if e["type"] == "finished")
    changes = ["lr=0.002", "latent_dim=3", "train.num_images=144"]
    succeed(train, "--model", "autoencoder", *(part for c in changes for part in ("--set", f"models.autoencoder.{c}")))
    (run,) = project.runs.glob("autoencoder-*")
    finished = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()][-1]
    assert finished["weights"] == digest


def test_a_stopped_trial_stays_stopped(sweep, recipes):
    trial, reports = advanced(sweep, recipes, 1, {"lr": 0.0001}, most=1)
    trial.update(status="halted")
    assert not reports[0]["done"]
    assert advance(trial, 0, "cpu")["done"]


def test_a_crash_and_a_nan_are_the_trials_end_with_their_reason(sweep, recipes, monkeypatch):
    def no_memory(*args, **kwargs):
        raise MemoryError("cannot allocate 4 GB")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "train", no_memory)
        trial, reports = advanced(sweep, recipes, 2, {"lr": 0.0002})
    assert reports[-1]["done"] and math.isnan(reports[-1]["score"])
    assert reports[-1]["reason"] == "MemoryError: cannot allocate 4 GB"
    trial.update(status="failed", reason=reports[-1]["reason"])
    with monkeypatch.context() as patch:
        patch.setattr("genmodels.models.autoencoder.Autoencoder.training_step", _nan)
        trial, reports = advanced(sweep, recipes, 3, {"lr": 0.0003})
    assert "became nan" in reports[-1]["reason"] and reports[-1]["done"]
    trial.update(status="failed", reason=reports[-1]["reason"])
    assert trial.name not in [other.name for other, _ in ranked(sweep.trials(), sweep.metric)]


def _nan(self, batch, phase, progress, noise, scratch):
    from genmodels.model import StepOutput

    return StepOutput({"error": sum(p.sum() for p in self.parameters()) * math.nan})


def test_values_that_do_not_go_together_fail_before_they_train(sweep, recipes):
    trial, reports = advanced(sweep, recipes, 4, {"train.batch_size": 0})
    assert trial.status == "failed" and "batch_size" in trial.info["reason"]
    assert reports == [{**reports[0], "done": True, "reason": trial.info["reason"]}]


# --- MLflow ----------------------------------------------------------------------------------------------------------


def test_mlflow_has_a_parent_with_figures_and_a_closed_child_a_trial(sweep, recipes):
    sweep.update(status="running")
    tracker = SweepTracker(sweep)
    tracker.poll()
    assert tracker.error is None
    assert tracker.close("FINISHED"), tracker.error
    client, parent = connected().MlflowClient(), sweep.info["mlflow_run_id"]
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")
    states = {run.info.run_name: run.info.status for run in children}
    assert states == {
        "trial-000": "FINISHED",
        "trial-001": "KILLED",
        "trial-002": "FAILED",
        "trial-003": "FAILED",
        "trial-004": "FAILED",
    }
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.tags["winner"] == "trial-000"
    figures = {file.path for file in client.list_artifacts(parent, "figures")}
    assert figures == {"figures/parallel_coordinates.png", "figures/best_so_far.png"}
    (first,) = [run for run in children if run.info.run_name == "trial-000"]
    points = client.get_metric_history(first.info.run_id, "score")
    assert [point.step for point in points] == [0, 16, 48, 128, 144]
    assert client.list_artifacts(first.info.run_id, "images")
    (crashed,) = [run for run in children if run.info.run_name == "trial-002"]
    assert crashed.data.tags["reason"] == "MemoryError: cannot allocate 4 GB"


def test_a_sweep_that_was_killed_is_marked_so(sweep):
    sweep.update(status="running")
    connected().MlflowClient().update_run(sweep.info["mlflow_run_id"], status="RUNNING")
    assert f"{sweep.name}: marked KILLED" in succeed(sync)
    assert connected().MlflowClient().get_run(sweep.info["mlflow_run_id"]).info.status == "KILLED"
    assert sweep.name not in succeed(sync)


def test_what_a_sweep_could_not_say_at_its_end_is_said_by_sync(sweep, monkeypatch):
    client, parent = connected().MlflowClient(), sweep.info["mlflow_run_id"]
    sweep.update(status="finished")
    client.update_run(parent, status="RUNNING")
    with monkeypatch.context() as away:
        away.setattr(SweepTracker, "_finish", Mock(side_effect=OSError("away")))
        assert not SweepTracker(sweep).close("FINISHED")
    assert f"{sweep.name}: its trials, figures and end sent, FINISHED" in succeed(sync)
    assert client.get_run(parent).info.status == "FINISHED"
    assert sweep.name not in succeed(sync)


def test_figures_have_a_line_a_trial(sweep):
    figures = sweep_figures.draw(sweep)
    lines = figures["parallel_coordinates"].axes[0].get_lines()
    axes = len(SPACE) + 1
    assert len([line for line in lines if len(line.get_xdata()) == axes]) == len(ranked(sweep.trials(), sweep.metric))


# --- the winner ------------------------------------------------------------------------------------------------------


def test_the_winner_becomes_a_version_that_takes_no_alias_and_the_leaderboard_names_its_sweep(sweep, project):
    winner.register(sweep.trials()[1])  # the first has the weights of the training above
    board = project.root / "board"
    succeed(leaderboard, "--model", "autoencoder", "--out", board)
    rows = [row for table in json.loads((board / "leaderboard.json").read_text()) for row in table["versions"]]
    by_sweep = {row["sweep"]: row["aliases"] for row in rows}
    assert by_sweep[sweep.name] == []
    assert by_sweep[None] == ["champion", "champion-sprites"]


def test_params_are_written_as_dvc_writes_them_and_comments_stay(recipes, project, monkeypatch, tmp_path):
    from dvc.utils.hydra import apply_overrides

    text = """# of sprites
datasets:
  sprites: {source: sprites}   # drawn
models:
  autoencoder:
    dataset: sprites
    lr: 0.001    # high
    train: {num_images: 40_000, batch_size: 32}
recipes: {}
"""
    ours, theirs = tmp_path / "params.yaml", tmp_path / "theirs" / "params.yaml"
    theirs.parent.mkdir()
    for path in (ours, theirs):
        path.write_text(text)
    monkeypatch.setenv("GENMODELS_ROOT", str(tmp_path))
    winner.write_params(recipes, {"lr": 0.00002, "latent_dim": 5, "train.batch_size": 16})
    names = ["++models.autoencoder.lr=0.00002", "++models.autoencoder.latent_dim=5"]
    apply_overrides(theirs, [*names, "++models.autoencoder.train.batch_size=16"])
    assert yaml.safe_load(ours.read_text()) == yaml.safe_load(theirs.read_text())
    assert load_params(ours).run("autoencoder") == load_params(theirs).run("autoencoder")
    changed = set(ours.read_text().splitlines()) - set(text.splitlines())
    assert len(changed) == 3 and any("# high" in line for line in changed)
    assert "# of sprites" in ours.read_text() and "# drawn" in ours.read_text()
    shared = text.replace("autoencoder:\n", "vae: &one {dataset: sprites, train: {}}\n  autoencoder: *one\n  aae:\n")
    ours.write_text(shared)
    with pytest.raises(UserError, match="share a section"):
        winner.write_params(recipes, {"train.batch_size": 8})
    assert ours.read_text() == shared


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    {
        ("--model", "vae"): ["sweep.vae", "autoencoder"],
        ("--model", "autoencoder", "--searcher", "tpf"): ["'tpf'", "tpe, random, grid"],
        ("--model", "autoencoder", "--scheduler", "asa"): ["'asa'", "asha, none, pbt"],
        ("--model", "autoencoder", "--scheduler", "pbt"): ["sweep.autoencoder.latent_dim", "copies weights"],
        ("--model", "autoencoder", "--set", "sweep.autoencoder.lr={uniform: [0, 1]}"): ["got 0"],
    }.items(),
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else "",
)
def test_a_wrong_command_is_one_line_and_starts_nothing(arguments, words, recipes, project):
    before = sorted((project.runs / "sweeps").glob("*")) if (project.runs / "sweeps").is_dir() else []
    line = refused(tune, *arguments)
    assert all(word in line for word in words)
    after = sorted((project.runs / "sweeps").glob("*")) if (project.runs / "sweeps").is_dir() else []
    assert before == after


def test_a_dry_run_shows_rungs_and_space(recipes):
    output = succeed(tune, "--model", "autoencoder", "--num-trials", 5, "--dry-run", "--trial-images", 144)
    assert "16 images (16 px), 48 images (16 px), 144 images (16 px)" in output
    assert "lr: loguniform" in output


def test_the_same_sweep_has_the_same_folder_and_another_seed_another(recipes, project, tmp_path):
    base = recipes.config({})
    names = {open_sweep(tmp_path, base, recipes.space, Method("tpe", "asha", seed), "d").name for seed in (0, 0, 1)}
    assert len(names) == 2
