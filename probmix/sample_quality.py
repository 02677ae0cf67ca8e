"""Scores for samples of a generative model, a GAN or a VAE say, and for clusterings; each with its source.

All are functions of tensors and give tensors without a graph, on the device and in the dtype of the data, except those
of clusterings, which give floats. Features are rows ``(n, d)``, of a network's layer or the samples themselves,
flattened. No score by itself says that a generator is good:

- `class_scores`, `intra_class_diversity`: what a classifier makes of the samples.
- `mode_coverage`: which modes of a known mixture they reach.
- `precision_recall`, `density_coverage`: whether they lie where real samples do, and the other way round.
- `frechet_distance`, `squared_mmd`, `sliced_wasserstein`: how far their distribution is from that of real samples.
- `clustering_accuracy`, `purity`, `normalised_mutual_information`, `adjusted_rand_index`: clusters against classes.
"""

from __future__ import annotations

from probmix.sample_quality_classes import ClassScores, IntraClassDiversity, class_scores, intra_class_diversity
from probmix.sample_quality_clusters import (
    adjusted_rand_index,
    clustering_accuracy,
    normalised_mutual_information,
    purity,
)
from probmix.sample_quality_discrepancy import GaussianKernel, PolynomialKernel, median_bandwidth, squared_mmd
from probmix.sample_quality_frechet import frechet_distance
from probmix.sample_quality_modes import ModeCoverage, mode_coverage
from probmix.sample_quality_neighbours import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from probmix.sample_quality_sliced import SlicedWasserstein, sliced_wasserstein

__all__ = [
    "ClassScores",
    "DensityCoverage",
    "GaussianKernel",
    "IntraClassDiversity",
    "ModeCoverage",
    "PolynomialKernel",
    "PrecisionRecall",
    "SlicedWasserstein",
    "adjusted_rand_index",
    "class_scores",
    "clustering_accuracy",
    "density_coverage",
    "frechet_distance",
    "intra_class_diversity",
    "median_bandwidth",
    "mode_coverage",
    "normalised_mutual_information",
    "precision_recall",
    "purity",
    "sliced_wasserstein",
    "squared_mmd",
]
