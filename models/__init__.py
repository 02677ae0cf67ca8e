"""Families of models, one per file: each class is a Pyro program with a closed form beside it."""

if __name__ != "probmix.models":
    raise ImportError("these files are the package probmix.models: write 'from probmix.models import ...'")

from probmix.models.ard_latent import ARDLatent
from probmix.models.bernoulli_mixture import BernoulliMixture
from probmix.models.categorical_mixture import CategoricalMixture
from probmix.models.exponential_mixture import ExponentialMixture
from probmix.models.factor_analysers import MixtureOfFactorAnalysers
from probmix.models.factored_latent import FactoredLatent
from probmix.models.gaussian_mixture import GaussianMixture
from probmix.models.generator_program import generator_program
from probmix.models.gpytorch_program import gpytorch_program
from probmix.models.grid_spectral_gp import GridSpectralGP
from probmix.models.mixture_gan import MixtureGAN
from probmix.models.mixture_latent import MixtureLatent
from probmix.models.mixture_vae import MixtureVAE
from probmix.models.poisson_mixture import PoissonMixture
from probmix.models.product_mixture import ProductMixture
from probmix.models.regression_mixture import RegressionMixture
from probmix.models.scale_mixture_classifier import ScaleMixtureClassifier
from probmix.models.scale_mixture_nngp import ScaleMixtureNNGP
from probmix.models.scale_mixture_process import ScaleMixtureProcess
from probmix.models.spectral_mixture_gp import SpectralMixtureGP
from probmix.models.student_t_mixture import StudentTMixture
from probmix.models.student_t_process import StudentTProcess
from probmix.models.von_mises_fisher_mixture import VonMisesFisherMixture

__all__ = [
    "ARDLatent",
    "BernoulliMixture",
    "CategoricalMixture",
    "ExponentialMixture",
    "FactoredLatent",
    "GaussianMixture",
    "GridSpectralGP",
    "MixtureGAN",
    "MixtureLatent",
    "MixtureOfFactorAnalysers",
    "MixtureVAE",
    "PoissonMixture",
    "ProductMixture",
    "RegressionMixture",
    "ScaleMixtureClassifier",
    "ScaleMixtureNNGP",
    "ScaleMixtureProcess",
    "SpectralMixtureGP",
    "StudentTMixture",
    "StudentTProcess",
    "VonMisesFisherMixture",
    "generator_program",
    "gpytorch_program",
]
