"""Mixtures as scikit-learn estimators: change one import, and keep the rest of the program.

The names, defaults, attributes and shapes are those of scikit-learn. What is added: ``sample_weight``, ``device``, the
fourteen covariances of mclust, all ``n_init`` starts side by side in one batch, and the model and the sites behind an
estimator (``model()``, ``sites()``) for the other methods of probmix.
"""

from __future__ import annotations

from probmix.estimators_bayesian import BayesianGaussianMixture
from probmix.estimators_classification import MixtureClassifier, MixtureOutlierDetector
from probmix.estimators_gaussian import GaussianMixture

__all__ = ["BayesianGaussianMixture", "GaussianMixture", "MixtureClassifier", "MixtureOutlierDetector"]
