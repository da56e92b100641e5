"""MLflow's registry: one version per weights, the best is champion; and the way back from a name to a folder."""

from __future__ import annotations

import math
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from genmodels import export
from genmodels.model import Metric, model_class
from pipelines.project import UserError
from pipelines.tracking import connected, exclusive, experiment_id, uri


def register(
    folder: Path,
    run_id: str | None,
    score: float | None,
    protocol: str,
    tags: dict[str, str],
    evidence: str = "",
    contend: bool = True,
) -> tuple[int, bool]:
    """Registers a sampling folder as a version of its model, once per weights; (version, whether it became champion).

    The best by the model's declared metric gets alias `champion`; scores of unlike protocols are not compared:
    there the newer protocol's version takes over, and `champion-<data set>` stays with the best of each data set.
    One that does not `contend` gets no alias.
    The version's description is the model card, followed by `evidence` (Markdown).
    """
    mlflow = connected()
    client, sampler = mlflow.MlflowClient(), export.load(folder)
    name, sha256 = sampler.info["model"], sampler.info["sha256"]
    dataset = sampler.info["data"]["name"]
    with exclusive(f"register-{name}"):
        number = _version_of(client, name, sha256)
        if number is None:
            number = _new_version(mlflow, folder, name, run_id, sha256)
        card = (folder / "README.md").read_text(encoding="utf-8")
        client.update_model_version(name, str(number), description=f"{card}\n{evidence}")
        values = {"sha256": sha256, "protocol": protocol, "dataset": dataset, **tags}
        if score is not None:
            values["score"] = repr(score)
        for key, value in values.items():
            client.set_model_version_tag(name, str(number), key, value)
        for alias in (f"champion-{dataset}", "champion") if contend else ():
            if _wins(client, name, alias, number, score, protocol):
                client.set_registered_model_alias(name, alias, str(number))
        aliases = client.get_registered_model(name).aliases
        return number, int(aliases.get("champion", 0)) == number


def _version_of(client: Any, name: str, sha256: str) -> int | None:
    """The version that holds these weights already."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((int(version.version) for version in versions if version.tags.get("sha256") == sha256), None)


def _new_version(mlflow: Any, folder: Path, name: str, run_id: str | None, sha256: str) -> int:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("long", "num")]), params=ParamSchema([ParamSpec("seed", "long", 0)])
    )
    client = mlflow.MlflowClient()
    was = client.get_run(run_id).info.status if run_id else "FINISHED"
    name_if_new = None if run_id else f"register-{name}"  # given with a run id, it would rename that run
    with warnings.catch_warnings(), mlflow.start_run(run_id, experiment_id(), name_if_new) as active:
        warnings.simplefilter("ignore")  # MLflow would like an input example, which it would run
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"export": str(folder)},
            signature=signature,
            pip_requirements=["torch", "numpy", "pydantic", "safetensors", "pillow"],
        )
    client.set_terminated(active.info.run_id, was if was != "RUNNING" else "FINISHED")
    with suppress(mlflow.exceptions.MlflowException):  # it exists already
        client.create_registered_model(name)
    tags = {"sha256": sha256}  # at once: a version without it would be made again
    created = client.create_model_version(name, info.model_uri, active.info.run_id, tags, model_id=info.model_id)
    return int(created.version)


def _wins(client: Any, name: str, alias: str, number: int, score: float | None, protocol: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        holder = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return True
    if int(holder.version) == number or score is None or not math.isfinite(score):
        return False
    metric: Metric = model_class(name).metric
    held = float(holder.tags["score"]) if "score" in holder.tags else None
    return holder.tags.get("protocol") != protocol or metric.better(score, held)


def find(reference: str) -> Path:
    """The sampling folder of NAME@ALIAS, NAME/VERSION, an MLflow run id, or a folder; UserError with the choices."""
    if Path(reference).is_dir():
        return Path(reference)
    mlflow = connected()
    from mlflow.exceptions import MlflowException

    try:
        if re.fullmatch(r"[\w-]+[@/][\w-]+", reference):
            path = Path(mlflow.artifacts.download_artifacts(f"models:/{reference}"))
        elif re.fullmatch(r"[0-9a-f]{32}", reference):
            models = mlflow.search_logged_models(
                [experiment_id()], filter_string=f"source_run_id = '{reference}'", output_format="list"
            )
            if not models:
                raise UserError(f"run {reference} has no registered model in {uri()}")
            path = Path(mlflow.artifacts.download_artifacts(models[0].model_uri))
        else:
            raise UserError(f"{reference!r} is no folder, run id, NAME@ALIAS or NAME/VERSION{_choices(mlflow)}")
    except MlflowException as error:
        raise UserError(f"{reference!r} not found in {uri()}: {str(error).splitlines()[0]}{_choices(mlflow)}") from None
    found = next(path.glob("artifacts/*/config.json"), None)  # MLflow keeps the name that the folder had
    if found is None:
        raise UserError(f"{reference!r} holds no sampling folder; was it registered by another program?")
    return found.parent


def _choices(mlflow: Any) -> str:
    names = [model.name for model in mlflow.MlflowClient().search_registered_models()]
    return f"; registered: {', '.join(names) or 'nothing yet'}"
