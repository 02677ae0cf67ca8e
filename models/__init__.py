"""Families of models, one per file: each class is a Pyro program with a closed form beside it."""

if __name__ != "probmix.models":
    raise ImportError("these files are the package probmix.models: write 'from probmix.models import ...'")

from probmix.models.gaussian_mixture import GaussianMixture

__all__ = ["GaussianMixture"]
