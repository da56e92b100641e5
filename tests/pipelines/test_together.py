"""Processes that want the same thing at the same time: one makes it, the others wait for it."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from conftest import make_project

from genmodels.config import EvaluationConfig
from genmodels.data.shards import open_shards
from genmodels.files import exclusive
from genmodels.metrics import judge


def test_a_data_set_that_two_processes_want_is_prepared_once(sprites_data, tmp_path):
    project = make_project(tmp_path, sprites_data)
    bigger = ["--set", "datasets.sprites.num_images=1500", "--set", "datasets.sprites.image_size=32"]
    command = [sys.executable, "-m", "pipelines.prepare", "--dataset", "sprites", *bigger]
    processes = [
        subprocess.Popen(command, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert sum("1,500 images in" in output for output, _ in results) == 1
    assert all("sprites: sprites: 10 classes" in output for output, _ in results), results  # both say what it holds
    assert open_shards(project.root / "data/shards/sprites").spec.image_size == 32


def test_a_feature_network_that_two_trainings_want_is_trained_once(sprites_data, tmp_path, monkeypatch):
    trained, make = [], judge.train_extractor
    begun = threading.Event()

    def train(*arguments, **settings):
        trained.append(1)
        begun.wait(1)  # long enough for the other to look, too
        return make(*arguments, **settings)

    monkeypatch.setattr(judge, "train_extractor", train)
    path, config = tmp_path / "extractors/net.safetensors", EvaluationConfig(num_images=16, extractor_images=256)

    def ensure(_):
        return judge.ensure_extractor(path, sprites_data.folder, sprites_data.spec, config)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(ensure, range(2))
    assert trained == [1]
    assert all((a == b).all() for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_who_waits_says_so(tmp_path, capsys):
    lock = tmp_path / "lock"
    with exclusive(lock, "waiting"):
        waiter = threading.Thread(target=lambda: exclusive(lock, "waiting").__enter__())
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive() and capsys.readouterr().out == "waiting\n"
    waiter.join(5)
    assert not waiter.is_alive()
