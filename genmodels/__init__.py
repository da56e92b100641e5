"""Deep generative models: one contract, one training loop, one file a model."""

from genmodels.export import Sampler, load
from genmodels.model import GenerativeModel, model_class, model_names

__all__ = ["GenerativeModel", "Sampler", "load", "model_class", "model_names"]
