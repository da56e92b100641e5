"""Serves registered models over HTTP, with a page to play.

python pipelines/serve.py --model progan@champion --model cyclegan@champion
curl -o grid.png 'http://127.0.0.1:8000/models/progan/sample?num=4&seed=1'
curl -o out.png -F source=@photo.jpg 'http://127.0.0.1:8000/models/cyclegan/sample?direction=B2A'

On a Ray cluster: serve run pipelines.serve_on_ray:build model=progan@champion num_replicas=2
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Annotated

import typer

from pipelines.project import UserError, command


@command
def main(
    model: Annotated[
        list[str], typer.Option(help="[NAME=]REFERENCE, as sample.py takes it; may be given several times")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    host: Annotated[str, typer.Option(help="who may ask; nobody is asked for a password")] = "127.0.0.1",
    max_num: Annotated[int, typer.Option(min=1, help="images of a request")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="images of all requests for a model")] = 4096,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="of a request's body")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="until a request is given up")] = 60.0,
    refresh_seconds: Annotated[float, typer.Option(min=0.1, help="between looks at where an alias points")] = 5.0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Answers until it is told to stop, then ends what it has begun."""
    import uvicorn

    from pipelines.places import check_device
    from pipelines.serving import Limits, application

    check_device(device)
    limits = Limits(max_num, max_upload_mb * 2**20, max_waiting, seconds)
    with listening(host, port) as listener:
        app = application(model, limits, device, refresh_seconds)
        print(f"{', '.join(model)} at http://{host}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(seconds) + 1)
        for ending in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it again when it has ended
            signal.signal(ending, lambda *_: sys.exit())
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A listening socket, opened before any model is loaded; UserError where the port is taken."""
    try:
        return socket.create_server((host, port), backlog=512)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror or error}; choose another with --port") from None


if __name__ == "__main__":
    typer.run(main)
