"""Mixture of Poisson counts: the smallest complete model. Copy to models/, rename, and replace the Poisson."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.rows import as_rows, check_rows

__all__ = ["PoissonMixture"]


class PoissonPrior(NamedTuple):
    """Gamma prior of the rates, the same for every component.

    Attributes:
        concentration: of the gamma, ``()``.
        rate: of the gamma, in 1/counts, ``(D,)``.
    """

    concentration: Tensor
    rate: Tensor


class CountStatistics(NamedTuple):
    """Sufficient statistics; those of two blocks of rows add up.

    Attributes:
        count: sum of the responsibilities, ``(*b, K)``.
        total: responsibilities times counts, summed over the rows, ``(*b, K, D)``.
    """

    count: Tensor
    total: Tensor

    def __add__(self, other: CountStatistics) -> CountStatistics:  # type: ignore[override]
        return CountStatistics(self.count + other.count, self.total + other.total)


@dataclass(frozen=True)
class PoissonMixture:
    r"""Bayesian mixture of K Poisson distributions, columns independent given the component.

    .. math:: w \sim \mathrm{Dirichlet}(1), \quad \lambda_{kd} \sim \mathrm{Gamma}(2, 1 / \bar x_d), \quad
              p(x_n) = \sum_k w_k \prod_d \mathrm{Poisson}(x_{nd} \mid \lambda_{kd})

    An instance is a Pyro program: call it with counts ``(N, D)``. Its sites, after any leading batch ``*b``, are
    ``weights`` ``(K,)`` and ``mean_count`` ``(K, D)``; ``assignment`` ``(N,)`` is discrete and summed out.

    Args:
        num_components: K.

    Raises:
        ProgramError: fewer components than one.

    Example:
        >>> model = PoissonMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "mean_count": torch.tensor([[1.0], [1.0]])}
        >>> model.responsibilities(torch.tensor([3.0]), sites)
        tensor([[0.5000, 0.5000]])
    """

    num_components: int

    def __post_init__(self) -> None:
        if self.num_components < 1:
            raise ProgramError(
                f"num_components: expected 1 or more, got {self.num_components}: pass a positive integer"
            )

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site, batch axes aside."""
        return {"weights": ("component",), "mean_count": ("component", "feature")}

    # The program.

    def __call__(self, x: Tensor) -> None:
        """Run the Pyro program on counts ``(N, D)``."""
        x = as_rows(x)
        prior = self.prior(x)
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(self.num_components)))
        with pyro.plate("component", self.num_components):
            mean_count = pyro.sample("mean_count", dist.Gamma(prior.concentration, prior.rate).to_event(1))
        with pyro.plate("data", x.shape[0]):
            batch = pyro.subsample(x, event_dim=1)
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
            row = Vindex(mean_count.unsqueeze(-3))[..., assignment, :]
            pyro.sample("x", dist.Poisson(row).to_event(1), obs=batch)

    # The prior and the data it is scaled to.

    def observe(self, x: Tensor) -> Tensor:
        """Return the data as rows ``(N, D)``, checked for what would spoil a fit.

        Raises:
            DataError: rows that are not finite or too few, or values that are no counts.
        """
        x = as_rows(x)
        check_rows(x, self.num_components, spread=False, independent=False)
        wrong = ((x < 0) | (x != x.round())).any(-1).nonzero().flatten()
        if len(wrong):
            raise DataError(
                f"expected counts 0, 1, 2, ..., got {len(wrong)} of {len(x)} rows with other values, the first at "
                f"index {int(wrong[0])}: round them, or use a model of continuous data"
            )
        return x

    def prior(self, x: Tensor) -> PoissonPrior:
        """Prior of these data: its mode is the mean of each column, its mean twice that."""
        return PoissonPrior(x.new_tensor(2.0), 1 / as_rows(x).mean(0).clamp_min(torch.finfo(x.dtype).tiny))

    # The closed form.

    def log_prob_components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log weight plus log probability of each row in each component, ``(N, D) -> (*b, N, K)``."""
        poisson = dist.Poisson(sites["mean_count"][..., None, :, :], validate_args=False)
        log_weights = sites["weights"].log() - sites["weights"].sum(-1, keepdim=True).log()
        return log_weights[..., None, :] + poisson.log_prob(as_rows(x)[:, None, :]).sum(-1)

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log probability of each row under the mixture, ``(N, D) -> (*b, N)``."""
        return self.log_prob_components(x, sites).logsumexp(-1)

    def responsibilities(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Probability that each row belongs to each component, ``(N, D) -> (*b, N, K)``."""
        return self.log_prob_components(x, sites).softmax(-1)

    def log_prior(self, sites: Mapping[str, Tensor], prior: PoissonPrior) -> Tensor:
        """Log density of the sites under the prior, ``(*b,)``; the flat Dirichlet has the constant density (K - 1)!."""
        log_flat = torch.lgamma(prior.rate.new_tensor(float(self.num_components)))
        gamma = dist.Gamma(prior.concentration, prior.rate, validate_args=False)
        return log_flat + gamma.log_prob(sites["mean_count"]).sum((-2, -1))

    def sufficient_statistics(self, x: Tensor, responsibilities: Tensor) -> CountStatistics:
        """Additive statistics of the rows, ``(N, D), (*b, N, K) -> CountStatistics``."""
        return CountStatistics(responsibilities.sum(-2), responsibilities.mT @ as_rows(x))

    def maximise(self, statistics: CountStatistics, prior: PoissonPrior | None) -> dict[str, Tensor]:
        """Sites that maximise the expected log joint, or the expected log likelihood if there is no prior."""
        count, total = statistics
        weights = count / count.sum(-1, keepdim=True)
        if prior is None:
            return {"weights": weights, "mean_count": total / count[..., None]}
        return {
            "weights": weights,
            "mean_count": (total + prior.concentration - 1) / (count[..., None] + prior.rate),
        }

    def singular_components(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have lost all their rows, ``(*b, K)``."""
        return ~sites["mean_count"].isfinite().all(-1)

    # New data.

    def sample(self, n: int, sites: Mapping[str, Tensor], *, seed: int) -> Tensor:
        """Draw n rows from the mixture, ``(*b, n, D)``; torch's global random state is neither used nor changed."""
        weights, mean_count = sites["weights"], sites["mean_count"]
        generator = torch.Generator(weights.device).manual_seed(seed)
        flat = weights.reshape(-1, weights.shape[-1])
        assignment = torch.multinomial(flat, n, replacement=True, generator=generator).reshape(*weights.shape[:-1], n)
        index = assignment[..., None].expand(*assignment.shape, mean_count.shape[-1])
        return torch.poisson(mean_count.gather(-2, index), generator=generator)
