"""MLflow's registry: one version per weights, the best is champion; and the way back from a name to a folder."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from genmodels import export
from genmodels.credentials import masked
from pipelines import champion, moved
from pipelines.project import UserError
from pipelines.tracking import connected, exclusive, experiment_id, uri


def register(
    folder: Path, run_id: str | None, score: float | None, protocol: str, tags: dict[str, str], evidence: str = ""
) -> tuple[int, bool]:
    """Registers a sampling folder as a version of its model, once per weights; (version, whether it is the champion).

    Aliases `champion` and `champion-<data set>` go to the best version of this protocol: scores of unlike protocols
    are not compared. The version's description is the model card, followed by `evidence` (Markdown). What an
    evaluation said of these weights (the tag `proofs` tells) stays until another does.
    """
    moved.check()
    mlflow = connected()
    client, config = mlflow.MlflowClient(), export.load(folder).info
    name, dataset = config["model"], config["data"]["name"]
    with exclusive(f"register-{name}"):
        number = _version_of(client, name, config["sha256"])
        if number is None:
            number = _new_version(mlflow, folder, name, run_id, config["sha256"])
        known = client.get_model_version(name, str(number)).tags
        values = {"sha256": config["sha256"], "dataset": dataset, **tags}
        if "proofs" in known and "proofs" not in tags:
            protocol = known["protocol"]
        else:
            card = f"{export.model_card(config)}\n{evidence}"
            client.update_model_version(name, str(number), description=card)
            if run_id:
                client.set_tag(run_id, "mlflow.note.content", card)
            values |= {"protocol": protocol} | ({} if score is None else {"score": repr(score)})
        for key, value in values.items():
            client.set_model_version_tag(name, str(number), key, value)
        champion.crown(client, name, dataset, protocol)
        return number, str(client.get_registered_model(name).aliases.get(champion.ALIAS)) == str(number)


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
    was = client.get_run(run_id).info if run_id else None
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
    if was and was.status == "RUNNING":
        client.update_run(was.run_id, was.status)
    elif was:
        client.set_terminated(was.run_id, was.status, was.end_time)
    with suppress(mlflow.exceptions.MlflowException):  # it exists already
        client.create_registered_model(name)
    tags = {"sha256": sha256}  # at once: a version without it would be made again
    created = client.create_model_version(name, info.model_uri, active.info.run_id, tags, model_id=info.model_id)
    return int(created.version)


def of_run(run_id: str) -> tuple[str, int] | None:
    """Model and version that came of an MLflow run."""
    versions = connected().MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    return (versions[0].name, int(versions[0].version)) if versions else None


def choose(name: str, number: int, alias: str, force: bool) -> None:
    """Gives an alias to a version because a person says so."""
    champion.choose(connected().MlflowClient(), name, number, alias, force)


def load(reference: str, device: str = "cpu") -> export.Sampler:
    """A registered model, ready to sample: `load("models:/progan@champion").sample(16, seed=0)`.

    reference: NAME@ALIAS, NAME/VERSION, an MLflow run id, or a sampling folder; UserError with the choices.
    """
    return export.load(find(reference), device)


def version(reference: str) -> str:
    """NAME/VERSION that NAME@ALIAS points at now; other references as they are."""
    name, at, alias = reference.removeprefix("models:/").partition("@")
    if not at or Path(reference).is_dir():
        return reference
    mlflow = connected()
    try:
        return f"{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}"
    except mlflow.exceptions.MlflowException as error:
        raise _unknown(reference, error) from None


def find(reference: str) -> Path:
    """The sampling folder of what `load` takes."""
    reference = reference.removeprefix("models:/")
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
                raise UserError(f"run {reference} has no registered model in {masked(uri())}")
            path = Path(mlflow.artifacts.download_artifacts(models[0].model_uri))
        else:
            raise UserError(f"{reference!r} is no folder, run id, NAME@ALIAS or NAME/VERSION{_choices(mlflow)}")
    except (MlflowException, OSError) as error:
        moved.check()  # then its files are not where the store says
        raise _unknown(reference, error) from None
    found = next(path.glob("artifacts/*/config.json"), None)  # MLflow keeps the name that the folder had
    if found is None:
        raise UserError(f"{reference!r} holds no sampling folder; was it registered by another program?")
    return found.parent


def _unknown(reference: str, error: Exception) -> UserError:
    told, store = masked(str(error).splitlines()[0]), masked(uri())
    if getattr(error, "error_code", None) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return UserError(f"MLflow at {store} does not give {reference!r}: {told}")
    return UserError(f"{reference!r} not found in {store}: {told}{_choices(connected())}")


def _choices(mlflow: Any) -> str:
    names = [model.name for model in mlflow.MlflowClient().search_registered_models()]
    return f"; registered: {', '.join(names) or 'nothing yet'}"
