"""Weighted draws of the latent vectors of many rows, each row by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from probmix.arguments import Arguments
from probmix.arviz import pareto_k
from probmix.log_density import LogDensity
from probmix.typing import Sites

__all__ = ["ImportanceGuide"]


@dataclass(frozen=True, eq=False)
class ImportanceGuide:
    r"""The posterior of the latent vector z of every row, by draws of a proposal q with importance ratios.

    .. math:: p(z_n \mid x_n) \approx \sum_s w_{sn} \delta_{z_{sn}}, \qquad
              w_{sn} \propto \frac{p(x_n, z_{sn})}{q_n(z_{sn})}, \qquad z_{sn} \sim q_n

    Args:
        mode: the best mode of every row, ``(n, d)``.
        draws: of q, ``(s, n, d)``.
        log_ratios: ``log p(x, z) - log q(z)`` there, ``(s, n)``.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, for the Pareto k.

    Example:
        >>> draws = torch.randn(1000, 2, 1, generator=torch.Generator().manual_seed(0))
        >>> guide = ImportanceGuide(torch.zeros(2, 1), draws, draws[..., 0])  # log p - log q = z: N(1, 1), not N(0, 1)
        >>> guide.mean(draws).round().flatten(), bool(((guide.log_evidence - 0.5).abs() < 0.2).all())
        (tensor([1., 1.]), True)
    """

    mode: Tensor
    draws: Tensor
    log_ratios: Tensor

    traces: ClassVar[bool] = False

    @property
    def weights(self) -> Tensor:
        """Weights of the draws, which sum to 1 for every row, ``(s, n)``."""
        return self.log_ratios.softmax(0)

    @property
    def log_evidence(self) -> Tensor:
        """An unbiased estimate of the evidence of every row, ``log p(x)``, nats, ``(n,)``."""
        return self.log_ratios.logsumexp(0) - math.log(len(self.log_ratios))

    @property
    def effective_draws(self) -> Tensor:
        """Kish's effective number of draws of every row, ``(n,)``."""
        return 1 / self.weights.square().sum(0)

    @cached_property
    def pareto_k(self) -> Tensor:
        """Pareto k of the ratios of every row, ``(n,)``: above 0.7 the weights are not to be trusted."""
        ratios = self.log_ratios.T.cpu().double().numpy()
        return self.draws.new_tensor([pareto_k(row) for row in ratios])

    def mean(self, values: Tensor) -> Tensor:
        """Return the posterior mean of a function of z whose values at the draws are ``(s, n, ...)``, ``(n, ...)``."""
        return torch.einsum("sn,sn...->n...", self.weights.to(values), values)

    def centre(self, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return the best mode of every row."""
        return {"z": self.mode}

    def sample(self, num: int, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return ``num`` draws by their weights, of every row by itself; uses torch's global generator."""
        chosen = torch.multinomial(self.weights.T, num, replacement=True).T
        return {"z": self.draws.gather(0, chosen[..., None].expand(-1, -1, self.draws.shape[-1]))}
