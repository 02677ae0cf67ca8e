"""The same Bayesian mixture in NumPy and SciPy alone: a blocked Gibbs sampler, and the exact sum over all allocations.

Model: weights ~ Dirichlet(alpha, ..., alpha), cov_k ~ InverseWishart(dof, scatter), loc_k | cov_k ~ N(m, cov_k /
mean_precision), each row from one component. A variance in one dimension is a 1 x 1 matrix here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from scipy.stats import invwishart, multivariate_normal, multivariate_t
from scipy.stats import t as student_t

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """Numbers of the prior; ``scatter`` is ``(D, D)``, ``loc`` ``(D,)``."""

    loc: Array
    mean_precision: float
    dof: float
    scatter: Array
    weight_concentration: float = 1.0

    @classmethod
    def of(cls, prior: Any) -> Prior:
        """The numbers of a model's prior, and nothing else of it."""
        component = prior.component
        alpha = float(prior.weights.concentration[0])
        kappa, dof = float(component.mean_precision), float(component.dof)
        return cls(component.loc.numpy(), kappa, dof, component.scatter.numpy(), alpha)

    def draw(self, num_components: int, generator: Generator) -> dict[str, Array]:
        """One draw of all sites, by SciPy."""
        cov = [
            np.atleast_2d(invwishart(self.dof, self.scatter).rvs(random_state=generator)) for _ in range(num_components)
        ]
        loc = [multivariate_normal(self.loc, c / self.mean_precision).rvs(random_state=generator) for c in cov]
        weights = generator.dirichlet(np.full(num_components, self.weight_concentration))
        return {"weights": weights, "loc": np.reshape(loc, (num_components, -1)), "cov": np.stack(cov)}


def draw_rows(n: int, sites: dict[str, Array], generator: Generator) -> Array:
    """``n`` rows of the mixture with these sites, ``(n, D)``."""
    labels = generator.choice(len(sites["weights"]), n, p=sites["weights"])
    noise = generator.standard_normal((n, sites["loc"].shape[-1], 1))
    return sites["loc"][labels] + (np.linalg.cholesky(sites["cov"])[labels] @ noise)[..., 0]


def log_prob_components(x: Array, sites: dict[str, Array]) -> Array:
    """Log weight plus log density, ``(*b, N, D) -> (*b, N, K)``; the batch of rows is that of the sites, or none."""
    tril = np.linalg.cholesky(sites["cov"])
    offset = x[..., None, :, :] - sites["loc"][..., :, None, :]
    square = ((offset @ np.linalg.inv(tril).swapaxes(-1, -2)) ** 2).sum(-1).swapaxes(-1, -2)
    log_det = 2 * np.log(np.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
    constant = np.log(sites["weights"]) - (log_det + x.shape[-1] * np.log(2 * np.pi)) / 2
    return constant[..., None, :] - square / 2


def log_prob(x: Array, sites: dict[str, Array]) -> Array:
    """Log density of each row under the mixture, ``(*b, N)``."""
    return logsumexp(log_prob_components(x, sites), axis=-1)


# --- blocked Gibbs --------------------------------------------------------------------------------------------------


def gibbs(
    x: Array, prior: Prior, *, num_components: int, chains: int, draws: int, seed: int, burn_in: int = 100
) -> dict[str, Array]:
    """Draws of all sites, ``(*b, chains, draws, ...)``, of data sets ``(*b, N, D)``; chains advance as one batch.

    Each chain starts from the nearest of K rows picked at random.
    """
    generator = np.random.default_rng(seed)
    batch = x.shape[:-2]
    rows = np.repeat(x.reshape(-1, *x.shape[-2:]), chains, 0)
    labels, kept = _first_labels(rows, num_components, generator), []
    for sweep in range(burn_in + draws):
        sites = _draw_sites(rows, labels, prior, generator)
        labels = _draw_labels(rows, sites, generator)
        if sweep >= burn_in:
            kept.append(sites)
    stacked = {name: np.stack([s[name] for s in kept], 1) for name in kept[0]}
    return {name: value.reshape(*batch, chains, *value.shape[1:]) for name, value in stacked.items()}


def _first_labels(rows: Array, num_components: int, generator: Generator) -> Array:
    scaled = (rows - rows.mean(-2, keepdims=True)) / rows.std(-2, keepdims=True)
    picks = np.stack([generator.choice(rows.shape[-2], num_components, replace=False) for _ in rows])
    centres = np.take_along_axis(scaled, picks[..., None], 1)
    distance = ((scaled[:, :, None] - centres[:, None]) ** 2).sum(-1)
    return np.eye(num_components)[distance.argmin(-1)]


def _draw_labels(rows: Array, sites: dict[str, Array], generator: Generator) -> Array:
    """One-hot labels ``(B, N, K)``, by the Gumbel trick."""
    noisy = log_prob_components(rows, sites) + generator.gumbel(size=(*rows.shape[:2], sites["weights"].shape[-1]))
    return np.eye(noisy.shape[-1])[noisy.argmax(-1)]


def _draw_sites(rows: Array, labels: Array, prior: Prior, generator: Generator) -> dict[str, Array]:
    count = labels.sum(1)
    loc, kappa, dof, scatter = _condition(prior, rows, labels)
    root = np.linalg.cholesky(scatter) @ np.linalg.inv(_bartlett(dof, loc.shape[-1], generator)).swapaxes(-1, -2)
    noise = generator.standard_normal((*loc.shape, 1))
    gamma = generator.standard_gamma(prior.weight_concentration + count)
    return {
        "weights": gamma / gamma.sum(-1, keepdims=True),
        "loc": loc + (root @ noise)[..., 0] / np.sqrt(kappa)[..., None],
        "cov": root @ root.swapaxes(-1, -2),
    }


def _condition(prior: Prior, rows: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """Parameters of the conjugate posterior of each component, given the labels ``(B, N, K)``."""
    count = labels.sum(1)
    total = labels.swapaxes(-1, -2) @ rows
    kappa = prior.mean_precision + count
    loc = (prior.mean_precision * prior.loc + total) / kappa[..., None]
    offset = rows[:, None] - loc[:, :, None]
    around = (offset * labels.swapaxes(-1, -2)[..., None]).swapaxes(-1, -2) @ offset
    shift = prior.loc - loc
    scatter = prior.scatter + around + prior.mean_precision * shift[..., :, None] * shift[..., None, :]
    return loc, kappa, prior.dof + count, scatter


def _bartlett(dof: Array, size: int, generator: Generator) -> Array:
    """Lower factor A of a Wishart matrix A A^T with unit scale."""
    factor = np.tril(generator.standard_normal((*dof.shape, size, size)), -1)
    chi2 = generator.chisquare(dof[..., None] - np.arange(size))
    return factor + np.sqrt(chi2)[..., None] * np.eye(size)


# --- exact, for a dozen rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """The posterior as a sum over all ``K**N`` allocations of the rows."""

    log_evidence: float
    probability: Array
    weights: Array
    loc: Array
    kappa: Array
    dof: Array
    scatter: Array

    def mean_density(self, point: Array) -> float:
        """Posterior mean of the mixture's density at one point: Student-t components."""
        size = len(point)
        df = self.dof - size + 1
        shape = self.scatter * ((self.kappa + 1) / (self.kappa * df))[..., None, None]
        if size == 1:
            terms = student_t(df, self.loc[..., 0], np.sqrt(shape[..., 0, 0])).pdf(point[0])
        else:
            components = zip(*(a.reshape(-1, *a.shape[2:]) for a in (self.loc, shape, df)), strict=True)
            terms = np.reshape([multivariate_t(*component).pdf(point) for component in components], df.shape)
        return float(self.probability @ (self.weights * terms).sum(-1))

    def mean_of_means(self) -> Array:
        """Posterior mean of ``sum_k w_k loc_k``."""
        return self.probability @ (self.weights[..., None] * self.loc).sum(1)

    def mean_product_of_weights(self, total: float) -> float:
        """Posterior mean of ``w_1 w_2`` of two components, ``total`` being the sum of the Dirichlet parameters."""
        return float(self.probability @ self.weights.prod(-1) * total / (total + 1))


def exact(x: Array, prior: Prior, *, num_components: int) -> Exact:
    """Sum over the allocations of rows ``(N, D)``."""
    allocations = np.array(list(itertools.product(range(num_components), repeat=len(x))))
    labels = np.eye(num_components)[allocations]
    count = labels.sum(1)
    loc, kappa, dof, scatter = _condition(prior, np.broadcast_to(x, (len(labels), *x.shape)), labels)
    size, alpha = x.shape[-1], prior.weight_concentration
    log_rows = (
        _log_normaliser(dof, kappa, scatter)
        - _log_normaliser(np.array(prior.dof), np.array(prior.mean_precision), prior.scatter)
        - count * size * np.log(np.pi) / 2
    ).sum(-1)
    total = alpha * num_components
    log_labels = gammaln(total) - gammaln(total + len(x)) + (gammaln(alpha + count) - gammaln(alpha)).sum(-1)
    log_evidence = logsumexp(log_rows + log_labels)
    weights = (alpha + count) / (total + len(x))
    return Exact(float(log_evidence), np.exp(log_rows + log_labels - log_evidence), weights, loc, kappa, dof, scatter)


def _log_normaliser(dof: Array, kappa: Array, scatter: Array) -> Array:
    size = scatter.shape[-1]
    order = np.arange(size)
    log_gamma = gammaln((dof[..., None] - order) / 2).sum(-1)  # of order D, without the power of pi, which cancels
    return log_gamma - dof / 2 * np.linalg.slogdet(scatter)[1] - size / 2 * np.log(kappa)
