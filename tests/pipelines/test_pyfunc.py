"""A registered version under MLflow's own tools."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from exports import register_vae
from swift_server import free_ports

from genmodels.pictures import to_uint8
from pipelines import registry, tracking


@pytest.fixture(scope="module")
def version(project, sprites_data, tmp_path_factory) -> int:
    return register_vae(tmp_path_factory.mktemp("exports"), sprites_data, 1, 50.0)


def expected(num: int, seed: int) -> np.ndarray:
    return to_uint8(registry.load("models:/vae@champion").sample(num, seed=seed))


def test_mlflow_loads_it_and_predicts_images(version):
    import pandas

    model = tracking.connected().pyfunc.load_model(f"models:/vae/{version}")
    images = model.predict(pandas.DataFrame({"num": [2, 1]}), params={"seed": 4})
    assert images.dtype == np.uint8 and (images == expected(3, 4)).all()


@pytest.mark.cluster
def test_mlflow_serves_it(version, project, tmp_path):
    (port,) = free_ports(1)
    options = ["--model-uri", "models:/vae@champion", "--env-manager", "local", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `uvicorn`
    environment = project.environment | {"MLFLOW_TRACKING_URI": tracking.uri(), "PATH": path}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *options], env=environment, stdout=log, stderr=log
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while not answers(address):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        asked = {"dataframe_split": {"columns": ["num"], "data": [[2]]}, "params": {"seed": 4}}
        answer = requests.post(f"{address}/invocations", json=asked, timeout=120)
        assert answer.status_code == 200, answer.text
        assert (np.array(json.loads(answer.text)["predictions"]) == expected(2, 4)).all()
    finally:
        server.terminate()
        server.wait(60)


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
