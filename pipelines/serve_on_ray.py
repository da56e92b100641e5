"""The application of serving.py as a Ray Serve deployment: one engine a replica and model.

serve run pipelines.serve_on_ray:build model=progan@champion,vae@champion num_replicas=2
"""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve


class Settings(BaseModel, extra="forbid"):
    """What `serve run` is told as key=value."""

    model: str  # [NAME=]REFERENCE, several by commas
    num_replicas: int = 1
    num_gpus: float = 0.0  # of a replica


def build(settings: Settings) -> serve.Application:
    """What `serve run` starts; every replica loads the models for itself, from a registry that all nodes reach."""
    references, device = settings.model.split(","), "cuda" if settings.num_gpus else "cpu"

    def app() -> FastAPI:
        from pipelines.serving import application

        return application(references, device=device)

    configured = serve.deployment(
        name="samples",
        num_replicas=settings.num_replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.num_gpus},
    )
    return configured(serve.ingress(app)()).bind()
