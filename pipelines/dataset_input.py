"""The data set of a training as the input of its MLflow run."""

from __future__ import annotations

import json
from typing import Any

from pipelines.run import Run

MAX_DIGEST = 36  # characters of a data set's digest that MLflow takes
MAX_SOURCE = 1000  # characters of its source that are worth showing


def log(client: Any, run_id: str, run: Run) -> None:
    """The data set as the run's input, which comes last: a run that has it has the contact sheet too."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    info = run.info
    spec = info["data"]
    profile = {
        "num_train": spec["num_train"],
        "num_test": spec["num_test"],
        **{name: info["data_counts"][name] for name in ("found", "accepted", "rejected", "duplicates")},
        "source": info["data_source"][:MAX_SOURCE],
        "digest": spec["digest"],
    }
    dataset = Dataset(
        name=spec["name"],
        digest=spec["digest"][:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": info["shards"]}),
        schema=json.dumps({"mlflow_colspec": _columns(spec)}),
        profile=json.dumps(profile),
    )
    if run.data_picture.exists():
        client.log_artifact(run_id, str(run.data_picture), "data")
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _columns(spec: dict[str, Any]) -> list[dict[str, str]]:
    """What a sample has, in the form that MLflow's page of a data set shows."""
    side, channels = spec["image_size"], spec["channels"]
    numbers = {
        "class": len(spec["classes"]),
        "attributes": len(spec["attributes"]),
        "domain": len(spec["domains"]),
        "parts": spec["num_parts"],
        "captions": spec["num_captions"],
    }
    columns = {"image": f"uint8 [{side}, {side}, {channels}]", **{key: f"{num}" for key, num in numbers.items() if num}}
    return [{"name": name, "type": kind} for name, kind in columns.items()]
