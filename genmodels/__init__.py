"""Deep generative models: one contract, one training loop, one file a model."""

from genmodels.model import GenerativeModel, model_class, model_names

__all__ = ["GenerativeModel", "model_class", "model_names"]
