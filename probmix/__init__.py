"""Mixture-shaped Bayesian models on PyTorch: one model, every engine, one kind of result.

Start with ``from probmix.inference import infer`` and ``from probmix.models import GaussianMixture``.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
