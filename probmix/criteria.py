"""Information criteria of a fitted mixture, for the choice of the number of components: lower is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.table import check_row_weights

__all__ = ["Criteria", "ScoredMixture", "aic", "aicc", "bic", "icl", "nec"]

_BLOCK = 2**20  # numbers in the largest table of a block of rows


class ScoredMixture(Protocol):
    """What the criteria ask of a mixture."""

    def rows(self, *data: Tensor) -> Tensor:
        """Return the data as one table of rows ``(N, D)``."""
        ...

    def num_parameters(self, num_features: int) -> int:
        """Count the free parameters."""
        ...

    def log_prob_components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Return log weight plus log density of every row under every component, ``(*b, N, K)``."""
        ...


@dataclass(frozen=True, eq=False)
class Criteria:
    r"""What the criteria are made of, and the criteria, all in nats times two, and lower is better.

    .. math:: \mathrm{BIC} = -2 \log L + p \log N, \qquad \mathrm{AIC} = -2 \log L + 2 p, \qquad
              \mathrm{ICL} = \mathrm{BIC} - 2 \sum_n \log \max_k t_{nk}

    with :math:`t_{nk}` the responsibilities. The sign is that of scikit-learn. The R package mclust writes them with
    the other sign (higher is better): its ``bic`` and ``icl`` are minus ours.

    Attributes:
        log_likelihood: :math:`\log L`, ``(*b,)``.
        log_classification: :math:`\sum_n \log \max_k w_k f_k(x_n)`, each row with its likeliest component, ``(*b,)``.
        entropy: :math:`-\sum_{nk} t_{nk} \log t_{nk}`, ``(*b,)``.
        num_parameters: :math:`p`.
        num_rows: :math:`N`, the sum of the row weights if there are any.

    Source:
        Schwarz (1978), Akaike (1974), Hurvich and Tsai (1989) for AICc; Biernacki, Celeux and Govaert (2000), Assessing
        a mixture model for clustering with the integrated completed likelihood, IEEE PAMI 22, 719-725.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 1), "var": torch.ones(1)}
        >>> x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> Criteria.of(GaussianMixture(1, "spherical"), x, sites).bic  # 2 log(2 pi) + 2 + 2 log 2
        tensor(7.0620, dtype=torch.float64)
    """

    log_likelihood: Tensor
    log_classification: Tensor
    entropy: Tensor
    num_parameters: int
    num_rows: float

    @classmethod
    def of(
        cls, model: ScoredMixture, x: Tensor, sites: Mapping[str, Tensor], row_weights: Tensor | None = None
    ) -> Criteria:
        """Go once over the rows, block by block.

        Args:
            model: the mixture.
            x: the rows.
            sites: where to judge it: the maximum of the likelihood, strictly speaking; ``*b`` of them at once.
            row_weights: how many observations each row stands for, ``(N,)``.

        Raises:
            DataError: row weights that are not one number of 0 or more for each row.
        """
        x = model.rows(x)
        weights = check_row_weights(row_weights, x)
        weights = x.new_ones(len(x)) if weights is None else weights
        rows = max(1, _BLOCK // max(1, sites["weights"].numel() * x.shape[-1]))
        blocks = zip(x.split(rows), weights.split(rows), strict=True)
        parts = [_sums(model.log_prob_components(block, sites), weight) for block, weight in blocks]
        log_likelihood, log_classification, entropy = torch.stack(parts).sum(0)
        return cls(log_likelihood, log_classification, entropy, model.num_parameters(x.shape[-1]), float(weights.sum()))

    @property
    def aic(self) -> Tensor:
        """Akaike's criterion."""
        return -2 * self.log_likelihood + 2 * self.num_parameters

    @property
    def aicc(self) -> Tensor:
        """AIC with a correction for few rows; infinite from ``p = N - 1`` on."""
        p, room = self.num_parameters, self.num_rows - self.num_parameters - 1
        return self.aic + (2 * p * (p + 1) / room if room > 0 else torch.inf)

    @property
    def bic(self) -> Tensor:
        """Schwarz's criterion."""
        return -2 * self.log_likelihood + self.num_parameters * math.log(self.num_rows)

    @property
    def icl(self) -> Tensor:
        """Integrated completed likelihood, BIC-like, with every row in its likeliest component (as in mclust)."""
        return self.bic + 2 * (self.log_likelihood - self.log_classification)

    @property
    def icl_soft(self) -> Tensor:
        """The same with rows shared out: BIC plus twice the entropy (McLachlan and Peel 2000); never below ``icl``."""
        return self.bic + 2 * self.entropy

    def nec(self, log_likelihood_of_one: Tensor | float) -> Tensor:
        """Normalised entropy; see `nec`."""
        gain = self.log_likelihood - log_likelihood_of_one
        return torch.where(gain > 0, self.entropy / gain, torch.inf)


def bic(model: ScoredMixture, x: Tensor, sites: Mapping[str, Tensor], *, row_weights: Tensor | None = None) -> Tensor:
    r"""Bayesian information criterion, :math:`-2 \log L + p \log N`, ``(*b,)``; lower is better, mclust's is minus it.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> model, x = GaussianMixture(3, "tied"), load_faithful().x
        >>> fit = infer(model, x, EM(objective="ml"), seed=0)
        >>> round(float(bic(model, x, fit.sites())), 1)
        2314.3
    """
    return Criteria.of(model, x, sites, row_weights).bic


def aic(model: ScoredMixture, x: Tensor, sites: Mapping[str, Tensor], *, row_weights: Tensor | None = None) -> Tensor:
    r"""Akaike's information criterion, :math:`-2 \log L + 2 p`, ``(*b,)``; lower is better.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 1), "var": torch.ones(1)}
        >>> aic(GaussianMixture(1, "spherical"), torch.tensor([[-1.0], [1.0]]), sites)  # 2 log(2 pi) + 2 + 4
        tensor(9.6758)
    """
    return Criteria.of(model, x, sites, row_weights).aic


def aicc(model: ScoredMixture, x: Tensor, sites: Mapping[str, Tensor], *, row_weights: Tensor | None = None) -> Tensor:
    r"""AIC for few rows, :math:`\mathrm{AIC} + 2 p (p + 1) / (N - p - 1)`, ``(*b,)``; infinite from p = N - 1 on.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 1), "var": torch.ones(1)}
        >>> aicc(GaussianMixture(1, "spherical"), torch.tensor([[-1.0], [1.0]]), sites)
        tensor(inf)
    """
    return Criteria.of(model, x, sites, row_weights).aicc


def icl(
    model: ScoredMixture,
    x: Tensor,
    sites: Mapping[str, Tensor],
    *,
    assignments: Literal["hard", "soft"] = "hard",
    row_weights: Tensor | None = None,
) -> Tensor:
    r"""Integrated completed likelihood, BIC-like, ``(*b,)``; lower is better, mclust's is minus it.

    Args:
        model: the mixture.
        x: the rows.
        sites: where to judge it.
        assignments: ``"hard"``: every row in its likeliest component, :math:`-2 \sum_n \log \max_k w_k f_k(x_n) +
            p \log N` (Biernacki, Celeux and Govaert 2000, and mclust); ``"soft"``: BIC plus twice the entropy of the
            responsibilities (McLachlan and Peel 2000).
        row_weights: how many observations each row stands for.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(2) / 2, "loc": torch.zeros(2, 1), "var": torch.ones(2)}
        >>> model, x = GaussianMixture(2, "spherical"), torch.zeros(8, 1)  # 8 rows, each a toss of a coin
        >>> (icl(model, x, sites) - bic(model, x, sites)) / 16  # log 2
        tensor(0.6931)
    """
    if assignments not in ("hard", "soft"):
        raise DataError(f'assignments: expected "hard" or "soft", got {assignments!r}. Pass one of these.')
    criteria = Criteria.of(model, x, sites, row_weights)
    return criteria.icl if assignments == "hard" else criteria.icl_soft


def nec(
    model: ScoredMixture,
    x: Tensor,
    sites: Mapping[str, Tensor],
    *,
    log_likelihood_of_one: Tensor | float,
    row_weights: Tensor | None = None,
) -> Tensor:
    r"""Normalised entropy criterion, :math:`E_K / (\log L_K - \log L_1)`, ``(*b,)``; lower is better.

    A K is to be preferred to a single component where its value is below 1, which is what one component counts as
    (Biernacki, Celeux and Govaert 1999). Infinite where K components are no better than one.

    Args:
        model: the mixture, of K components.
        x: the rows.
        sites: where to judge it.
        log_likelihood_of_one: :math:`\log L_1`, of the same model with one component at its maximum.
        row_weights: how many observations each row stands for.

    Source:
        Celeux and Soromenho (1996), An entropy criterion for assessing the number of clusters in a mixture model,
        Journal of Classification 13, 195-212.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> x = torch.tensor([[-9.0], [-8.0], [8.0], [9.0]])
        >>> sites = {"weights": torch.ones(2) / 2, "loc": torch.tensor([[-8.5], [8.5]]), "var": torch.ones(2) / 4}
        >>> nec(GaussianMixture(2, "spherical"), x, sites, log_likelihood_of_one=-14.2) < 1e-6
        tensor(True)
    """
    return Criteria.of(model, x, sites, row_weights).nec(log_likelihood_of_one)


def _sums(scores: Tensor, row_weights: Tensor) -> Tensor:
    """Log-likelihood, classification log-likelihood and entropy of a block of rows, ``(3, *b)``."""
    log_rows = scores.logsumexp(-1)
    log_shares = scores - log_rows[..., None]
    entropy = -(log_shares.exp() * log_shares.clamp_min(torch.finfo(scores.dtype).min)).sum(-1)
    return torch.stack([rows @ row_weights for rows in (log_rows, scores.amax(-1), entropy)])
