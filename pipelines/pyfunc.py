"""The registered model's code (MLflow's models-from-code): loads the sampling folder beside it, runs no pickle."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

import genmodels
from genmodels.pictures import to_uint8


class SamplerModel(PythonModel):
    """Predicts images: a row with `num` -> uint8 [num, H, W, C], for the parameter `seed`."""

    _skip_type_hint_validation = True  # MLflow's own switch: it would take hints for a schema, and warn without them

    def load_context(self, context: Any) -> None:
        """Reads safetensors and JSON."""
        self.sampler = genmodels.load(context.artifacts["export"])

    def predict(self, context, model_input, params=None) -> np.ndarray:
        """Samples as many images as the rows ask for together."""
        num = int(model_input["num"].sum())
        return to_uint8(self.sampler.sample(num, seed=(params or {}).get("seed", 0)))


mlflow.models.set_model(SamplerModel())
