"""The commands: Ray, MLflow and DVC meet `genmodels` here."""

from importlib.util import find_spec

if find_spec("typer") is None or find_spec("torch") is None:
    raise SystemExit(
        "error: this Python lacks the project's packages; run `make setup`, then `source .venv/bin/activate`"
    )
