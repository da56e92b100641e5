"""The sampling server, started as its user starts it and asked over HTTP."""

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from conftest import Project
from exports import register_vae
from fastapi import HTTPException
from PIL import Image

from genmodels import export
from genmodels.pictures import to_uint8
from pipelines import registry, serving

NAMES = ("vae", "progan", "infogan", "aae", "text2image", "cyclegan", "stargan", "puzzlegan")


class Server:
    """`pipelines/serve.py` in a process of its own."""

    def __init__(self, project: Project, *arguments: str):
        command = [sys.executable, "-m", "pipelines.serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, env=project.environment, stdout=subprocess.PIPE, text=True)
        started = self.process.stdout.readline()
        assert " at http://127.0.0.1:" in started, started
        self.url = started.split()[-1]

    def get(self, path: str, **query) -> requests.Response:
        return requests.get(f"{self.url}{path}", query, timeout=120)

    def arrays(self, name: str, **query) -> np.ndarray:
        """Images uint8 [num, H, W, C]."""
        return self.read(self.get(f"/models/{name}/sample", format="npz", **query))

    @staticmethod
    def read(answer: requests.Response) -> np.ndarray:
        assert answer.status_code == 200, answer.text
        return np.load(io.BytesIO(answer.content))["images"]

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def folders(exported):
    return {name: exported(name) for name in NAMES}


@pytest.fixture(scope="module")
def server(project, folders):
    arguments = [word for name, folder in folders.items() for word in ("--model", str(folder))]
    server = Server(project, *arguments, "--max-waiting", "100000", "--max-upload-mb", "1")
    yield server
    server.stop()


def test_a_seed_gives_what_it_gives_in_python_as_array_and_as_grid(server, folders):
    expected = to_uint8(export.load(folders["progan"]).sample(5, seed=3))
    assert (server.arrays("progan", num=5, seed=3) == expected).all()
    answer = server.get("/models/progan/sample", num=4, seed=3)
    with Image.open(io.BytesIO(answer.content)) as grid:
        assert answer.headers["content-type"] == "image/png" and grid.size == (34, 34)
        assert (np.asarray(grid)[:16, :16] == expected[0]).all()


def test_every_model_says_what_it_takes_and_takes_it(server, folders, pictures):
    known = server.get("/models").json()
    assert set(known) == set(NAMES)
    for name, about in known.items():
        assert about["controls"] == {
            key: list(choices) for key, choices in export.load(folders[name]).model.controls().items()
        }
        uploads = [key for key in about["controls"] if key in ("source", "patches")]
        query = {key: (choices or ["a red cat"])[0] for key, choices in about["controls"].items() if key not in uploads}
        if not uploads:
            assert server.arrays(name, num=2, **query).shape == (2, 16, 16, 3)
            continue
        files = [(uploads[0], (file.name, file.read_bytes())) for file in sorted(pictures.iterdir())]
        answer = requests.post(f"{server.url}/models/{name}/sample", files=files, params={"format": "npz", **query})
        assert Server.read(answer).shape[1:] == (16, 16, 3)


def test_a_translation_is_that_of_the_upload(server, folders, pictures):
    from pipelines.sample import files_of, read_images

    sampler, file = export.load(folders["cyclegan"]), pictures / "3.png"
    cond = sampler.model.encode_condition(source=read_images(files_of(file), sampler.model.data), direction="B2A")
    with file.open("rb") as content:
        answer = requests.post(
            f"{server.url}/models/cyclegan/sample?format=npz&direction=B2A", files={"source": content}
        )
    assert (Server.read(answer) == to_uint8(sampler.sample(1, cond=cond))).all()


def test_sliders_move_one_coordinate_each_and_add_up(server, folders):
    sampler = export.load(folders["infogan"])
    latent = sampler.latents(1, seed=2)[0]
    moved = sampler.model.traversal(sampler.model.traversal(latent, 11)[1, 0], 11)[2, 10]
    expected = to_uint8(sampler.decode(moved[None], {}))
    assert (server.arrays("infogan", seed=2, walk=["1:0", "2:10"]) == expected).all()


BAD = {  # path and query -> status, and what the reason names
    ("/models/vea/sample", ""): (404, ["'vea'", "did you mean 'vae'"]),
    ("/models/vae/sample", "num=1000000"): (422, ["num", "64"]),
    ("/models/vae/sample", "num=0"): (422, ["num"]),
    ("/models/vae/sample", "num=many"): (422, ["num", "integer"]),
    ("/models/vae/sample", "seed=-1"): (422, ["seed"]),
    ("/models/vae/sample", "sed=1"): (422, ["'sed'", "did you mean 'seed'"]),
    ("/models/vae/sample", "format=exe"): (422, ["png", "npz"]),
    ("/models/vae/sample", "caption=a+cat"): (422, ["caption"]),
    ("/models/vae/sample", "walk=99:1"): (422, ["99:1", "4 rows"]),
    ("/models/vae/sample", "walk=" + "1" * 5000): (422, ["walk"]),
    ("/models/vae/sample", "walk=0:" + "1" * 5000): (422, ["walk", "no ROW:POSITION"]),
    ("/models/vae/sample", "&".join(["walk=0:1"] * 65)): (422, ["walk", "at most 64"]),
    ("/models/text2image/sample", "&".join(["caption=cat"] * 65)): (422, ["65 captions", "at most 64"]),
    ("/models/cyclegan/sample", "walk=0:1"): (422, ["0 rows"]),
    ("/models/infogan/sample", "label=%00%ff"): (422, ["label"]),
    ("/models/text2image/sample", "caption=xyzzy"): (422, ["xyzzy"]),
    ("/models/text2image/sample", "caption=" + "cat+" * 2000): (422, ["caption", "1000"]),
    ("/models/stargan/sample", "attributes=hat%3D1"): (422, ["source"]),
    ("/models", "x" * 100_000): (400, []),
    ("/nothing", ""): (404, []),
}


@pytest.mark.parametrize("asked, told", BAD.items(), ids=lambda value: " ".join(map(str, value))[:60])
def test_a_bad_request_is_refused_with_its_reason(asked, told, server):
    answer = server.get(f"{asked[0]}?{asked[1]}")
    assert answer.status_code == told[0], answer.text[:300]
    detail = answer.json()["detail"] if told[1] else ""
    assert all(word in detail for word in told[1]) and "\n" not in detail


def test_a_bad_upload_is_refused_with_its_reason(server, pictures):
    url = f"{server.url}/models/vae/sample"

    def told(**options) -> str:
        answer = requests.post(url, timeout=60, **options)
        assert 400 <= answer.status_code < 500
        return answer.json()["detail"]

    assert "not an image" in told(files={"source": ("x.png", b"no picture")})
    assert "nothing is uploaded" in told(data="{", headers={"content-type": "application/json"})
    assert "boundary" in told(data="x", headers={"content-type": "multipart/form-data"})
    assert "at most 64" in told(files=[("source", ("x.png", b"x"))] * 65)
    assert "at most 1,048,576" in told(files={"source": b"0" * 2**21})
    assert "Content-Length" in told(data=iter([b"x"]))
    assert server.get("/healthz").json()["status"] == "ok"


def test_a_body_that_is_announced_too_large_is_refused_unread(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /models/vae/sample HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in connection.recv(100)


def test_64_clients_each_get_their_own_images_in_shared_batches(server, folders):
    sampler = export.load(folders["progan"])
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda seed: server.arrays("progan", num=3, seed=seed), range(128)))
    for seed in range(0, 128, 17):
        assert (answers[seed] == to_uint8(sampler.sample(3, seed=seed))).all()
    numbers = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
    images = float(numbers['batch_images_sum{model="progan"}'])
    assert images / float(numbers['batch_images_count{model="progan"}']) > 6
    assert not [line for line in numbers if 'status="5' in line]


def test_what_waits_too_long_or_in_too_large_a_crowd_is_asked_to_come_again(project, folders):
    server = Server(project, "--model", str(folders["progan"]), "--seconds", "0.1", "--max-waiting", "64")
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda seed: server.get("/models/progan/sample", num=64, seed=seed), range(64)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429} or codes == {429}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert server.stop() == 0


def test_the_time_of_a_request_includes_its_planning(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(serving, "plan", lambda *_: released.wait(100))
    shelf = {"vae": SimpleNamespace(engine=SimpleNamespace(sampler=None, submit=None), version="1")}

    async def status() -> int:
        try:
            await serving.answer(shelf, serving.Limits(seconds=0.1), "vae", serving.Ask(), {})
        except HTTPException as error:
            return error.status_code
        finally:
            released.set()
        return 200

    assert asyncio.run(status()) == 429


def test_it_says_what_keeps_it_from_starting(project, folders):
    def refused(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines.serve", *arguments]
        result = subprocess.run(command, env=project.environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    vae = str(folders["vae"])
    assert "choices: cpu" in refused("--model", vae, "--device", "foo", "--port", "0")
    assert "'nothing@champion' not found" in refused("--model", "nothing@champion", "--port", "0")
    assert "two versions are named vae" in refused("--model", vae, "--model", vae, "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refused("--model", vae, "--port", str(taken.getsockname()[1]))


def test_a_new_champion_takes_over_and_no_request_is_lost(project, sprites_data, tmp_path):
    first = register_vae(tmp_path, sprites_data, 1, 50.0)
    server = Server(project, "--model", "vae@champion", "--model", f"old=vae/{first}", "--refresh-seconds", "0.2")
    over, seen = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            answer = server.get("/models/vae/sample", num=2)
            seen.append((answer.status_code, answer.headers.get("X-Model-Version")))

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    second = register_vae(tmp_path, sprites_data, 2, 40.0)
    deadline = time.monotonic() + 60
    while (200, f"vae/{second}") not in seen and time.monotonic() < deadline:
        time.sleep(0.1)
    over.set()
    for client in clients:
        client.join()
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {f"vae/{first}", f"vae/{second}"}
    assert server.get("/healthz").json()["models"] == {"vae": f"vae/{second}", "old": f"vae/{first}"}
    expected = to_uint8(registry.load(f"models:/vae/{second}").sample(2, seed=7))
    assert (server.arrays("vae", num=2, seed=7) == expected).all()
    assert server.stop() == 0


def test_it_ends_after_what_it_has_begun(project, folders):
    server = Server(project, "--model", str(folders["progan"]))
    with ThreadPoolExecutor(16) as clients:
        answers = [clients.submit(server.get, "/models/progan/sample", num=64, seed=seed) for seed in range(16)]
        deadline = time.monotonic() + 60
        while "images_waiting" not in (text := server.get("/metrics").text) or waiting(text) == 0:
            assert time.monotonic() < deadline
        assert server.stop() == 0
        codes = [answer.result().status_code for answer in answers if answer.exception() is None]
    assert set(codes) == {200} and codes


def waiting(text: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("images_waiting{"))


def test_openapi_describes_the_parameters(server):
    schema = json.loads(server.get("/openapi.json").text)
    query = schema["paths"]["/models/{name}/sample"]["get"]["parameters"]
    assert {"num", "seed", "format", "caption"} <= {parameter["name"] for parameter in query}
    assert "multipart/form-data" in json.dumps(schema["paths"]["/models/{name}/sample"]["post"])
