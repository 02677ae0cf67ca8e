"""Inference methods, one per file, behind one front door: ``infer(program, data, method, seed=...)``."""

if __name__ != "probmix.inference":
    raise ImportError("these files are the package probmix.inference: write 'from probmix.inference import ...'")

from probmix.inference.adversarial import Adversarial
from probmix.inference.chees import ChEES
from probmix.inference.consensus import ConsensusADMM
from probmix.inference.em import EM
from probmix.inference.gibbs import Gibbs
from probmix.inference.infer import infer
from probmix.inference.inversion import Inversion
from probmix.inference.laplace import Laplace
from probmix.inference.majorisation import SCA
from probmix.inference.map import MAP
from probmix.inference.mcmc import NUTS
from probmix.inference.svi import SVI
from probmix.inference.vb import VB

__all__ = [
    "EM", "MAP", "NUTS", "SCA", "SVI", "VB", "Adversarial", "ChEES", "ConsensusADMM", "Gibbs", "Inversion", "Laplace",
    "infer",
]  # fmt: skip
