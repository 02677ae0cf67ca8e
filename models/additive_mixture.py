"""What mixtures of counts, codes and times have in common: whole numbers as data, and a likelihood by one product."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import AbstractAdditiveFamily
from probmix.column_priors import AbstractColumnPrior
from probmix.models.mixture import AbstractMixture, MixturePrior, log_normalised
from probmix.rows import as_rows

__all__ = ["AbstractAdditiveMixture"]


@dataclass(frozen=True)
class AbstractAdditiveMixture(AbstractMixture):
    """A mixture of K components of an additive family; data may be whole numbers or truth values, read as float64."""

    num_components: int
    weight_concentration: float = 1.0
    component_prior: AbstractColumnPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        self.family.check_prior_type(self.component_prior)

    @property
    @abstractmethod
    def family(self) -> AbstractAdditiveFamily:
        """The conjugate family of the components."""

    def rows(self, *data: Tensor) -> Tensor:
        """Return the data as one table of floating-point rows ``(N, D)``."""
        return as_rows(*(_floating(table) for table in data))

    def log_prob_components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log weight plus log density of each row in each component, ``(N, D) -> (*b, N, K)``."""
        rows = as_rows(_floating(x, sites["weights"].dtype))
        return log_normalised(sites["weights"])[..., None, :] + self.family.log_prob(rows, sites)

    def log_joint(self, x: Tensor, sites: Mapping[str, Tensor], prior: MixturePrior | None = None) -> Tensor:
        """Log density of data and sites together, assignments summed out, ``(*b,)``."""
        return super().log_joint(as_rows(_floating(x, sites["weights"].dtype)), sites, prior)

    def fused_log_joint(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """``log_joint`` by one matrix product; the traced program has a table of rows by components by columns."""
        return self.log_joint(x, sites)

    def predictive(self, sites: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Distribution of one new row, averaged over all leading batch axes of the sites (draws, chains)."""
        weights = log_normalised(sites["weights"]).flatten()
        site, depth = self.family.site, len(self.family.dims[self.family.site]) - 1
        components = {site: sites[site].flatten(0, -1 - depth)}
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), self.family.row(components))


def _floating(data: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Whole numbers and truth values as floating-point numbers; what is no tensor is refused later."""
    if not isinstance(data, Tensor) or data.is_floating_point() or data.is_complex():
        return data
    wide = torch.float32 if data.device.type == "mps" else torch.float64  # Apple's devices have no float64
    return data.to(dtype or wide)
