"""The sampling application under Ray Serve."""

import io
import subprocess
import sys

import numpy as np
import pytest
import requests
from swift_server import free_ports

from genmodels import export
from genmodels.pictures import to_uint8

SERVE = """
import ray, sys
from ray import serve
from pipelines.serve_on_ray import Settings, build
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(sys.argv[2])})
serve.run(build(Settings(model=sys.argv[1], num_replicas=2)))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.cluster
def test_two_replicas_give_the_same_images(project, exported):
    folder, (port,) = exported("vae"), free_ports(1)
    command = [sys.executable, "-c", SERVE, str(folder), str(port)]
    server = subprocess.Popen(
        command, env=project.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert server.stdout.readline() == b"ready\n"
        expected = to_uint8(export.load(folder).sample(3, seed=5))
        for _ in range(8):
            answer = requests.get(f"http://127.0.0.1:{port}/models/vae/sample?num=3&seed=5&format=npz", timeout=60)
            assert answer.status_code == 200, answer.text
            assert (np.load(io.BytesIO(answer.content))["images"] == expected).all()
        assert requests.get(f"http://127.0.0.1:{port}/models/vea/sample", timeout=60).status_code == 404
    finally:
        server.communicate(timeout=120)
        assert server.returncode == 0
