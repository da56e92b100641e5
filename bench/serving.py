"""The sampling server under 64 clients, against a loop that makes one request after the other.

    python bench/serving.py --model progan@champion

Starts `pipelines/serve.py`; every client asks for NUM images again and again. The loop has neither HTTP nor batches:
it samples and encodes a PNG a request. They alternate; a ratio is that of two neighbouring rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import requests
import typer

from pipelines import registry
from pipelines.serving import encoded


def main(
    model: Annotated[str, typer.Option(help="as serve.py takes it")],
    clients: Annotated[int, typer.Option(help="that ask at once")] = 64,
    num: Annotated[int, typer.Option(help="images of a request")] = 4,
    seconds: Annotated[float, typer.Option(help="of one measurement")] = 10.0,
    rounds: Annotated[int, typer.Option(help="pairs of measurements")] = 3,
) -> None:
    """Prints images/s of both, their ratio, and how long clients waited."""
    command = [sys.executable, "-m", "pipelines.serve", "--port", "0", "--model", f"served={model}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = server.stdout.readline().split()[-1] + f"/models/served/sample?num={num}"
    sampler, waits, codes, pairs = registry.load(model), [], set(), []
    try:
        for _ in range(rounds):
            begun = time.perf_counter()
            answers = crowd(url, clients, seconds)
            served = len(answers) * num / (time.perf_counter() - begun)
            waits += [wait for _, wait in answers]
            codes |= {code for code, _ in answers}
            begun, made = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                encoded(sampler.sample(num, seed=made), "png")
                made += num
            pairs.append((served, made / (time.perf_counter() - begun)))
    finally:
        server.terminate()
        server.wait()
    ratios = [a / b for a, b in pairs]
    served, alone = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{clients} clients, {num} images a request: {served:,.0f} images/s; one after the other {alone:,.0f}")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}); answers {sorted(codes)}")
    print("waits p50 {:.0f} ms, p99 {:.0f} ms".format(*(1000 * np.percentile(waits, (50, 99)))))


def crowd(url: str, clients: int, seconds: float) -> list[tuple[int, float]]:
    """Status and seconds of every answer that the clients got."""
    until = time.perf_counter() + seconds

    def client(number: int) -> list[tuple[int, float]]:
        answers, seed = [], number
        with requests.Session() as session:
            while (asked := time.perf_counter()) < until:
                code = session.get(f"{url}&seed={seed}", timeout=120).status_code
                answers.append((code, time.perf_counter() - asked))
                seed += clients
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for answers in pool.map(client, range(clients)) for answer in answers]


if __name__ == "__main__":
    typer.run(main)
