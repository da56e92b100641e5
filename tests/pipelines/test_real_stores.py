"""MLflow as teams run it: PostgreSQL for runs, S3 for artefacts, several trainings at once."""

import subprocess
import sys

import pytest
from mlflow_server import Server, assert_all_arrived_once, client
from postgres import Postgres

from pipelines import registry
from pipelines.run import Run

pytestmark = [pytest.mark.system, pytest.mark.cluster]


@pytest.fixture(scope="module")
def store(project, bucket, tmp_path_factory):
    """A tracking server over both, that this process and its children use."""
    folder = tmp_path_factory.mktemp("stores")
    postgres = Postgres()
    postgres.start()
    server = Server(folder, postgres.url, f"{bucket}/artifacts")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server
    server.kill()
    postgres.stop()


def test_eight_trainings_at_once_lose_nothing_and_the_best_is_champion(store, project, bucket):
    environment = project.environment | {"MLFLOW_TRACKING_URI": store.uri}
    command = [sys.executable, "-m", "pipelines.train", "--model", "vae", "--set"]
    trainings = [
        subprocess.Popen([*command, f"models.vae.train.seed={seed}"], env=environment, stdout=subprocess.DEVNULL)
        for seed in range(8)
    ]
    assert [training.wait(800) for training in trainings] == [0] * 8
    runs = [Run(file.parent) for file in project.runs.glob("vae-*/run.json")]
    for run in runs:
        assert_all_arrived_once(run)
        assert client().get_run(run.info["mlflow_run_id"]).info.status == "FINISHED"
    versions = client().search_model_versions("name = 'vae'")
    assert len(runs) == len(versions) == len({version.tags["sha256"] for version in versions}) == 8
    champion = client().get_model_version_by_alias("vae", "champion")
    assert float(champion.tags["score"]) == min(run.info["result"]["score"] for run in runs)
    assert registry.load("vae@champion").sample(2).shape == (2, 3, 16, 16)
    assert subprocess.run([sys.executable, "-m", "pipelines.sync"], env=environment, check=True)


def test_artefacts_lie_in_the_bucket(store, bucket):
    from genmodels.data import remote

    fs, path = remote.filesystem(f"{bucket}/artifacts")
    assert [name for name in fs.find(path) if name.endswith("model.safetensors")]
