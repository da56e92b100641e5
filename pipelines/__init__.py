"""The commands: Ray, MLflow and DVC meet `genmodels` here."""

import os
from importlib.util import find_spec

if find_spec("typer") is None or find_spec("torch") is None:
    raise SystemExit(
        "error: this Python lacks the project's packages; run `make setup`, then `source .venv/bin/activate`"
    )

# Set before torch loads OpenMP, and inherited by Ray's workers: threads that spin at barriers starve whatever shares
# their cores (measured beside one busy process, ProGAN at 8 px on two threads: 3 to 20 times faster with it).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
