"""A variational posterior of processes with random variances: inverse gamma, normal given it, Student-t without it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pyro.distributions as dist
import torch
from scipy.special import gammaincinv
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, kl_divergence
from torch.quasirandom import SobolEngine

from probmix.arguments import Arguments
from probmix.importance import finite_or_zero_weight
from probmix.log_density import LogDensity
from probmix.typing import Sites

__all__ = ["ScaleMixtureGuide", "normal_points"]


@dataclass(frozen=True, eq=False)
class ScaleMixtureGuide:
    r"""Processes :math:`f_c`, one for each class, known through their values u at inducing rows Z.

    .. math:: q(s) = \mathrm{InverseGamma}(a, b), \qquad q(u_c \mid s) = N(L m_c, \, s L S_c L^\top), \qquad
              L L^\top = K_{ZZ}

    so that with s integrated out, exactly, the values of all classes at a row are jointly Student-t:

    .. math:: q(f) = \mathrm{MVT}_{2 a}\Big(\alpha^\top m_c, \; \frac{b}{a} \, \mathrm{diag}_c
              \big(\alpha^\top S_c \alpha + k_{xx} - \alpha^\top \alpha\big)\Big), \qquad \alpha = L^{-1} k_{Zx}

    (with a scale for each class, independent univariate ones). Its sites are those of a program that knows the
    processes by whitened values :math:`v_c = L^{-1} u_c / \sqrt s`, which have the prior N(0, I).

    Args:
        loc: m, ``(C, M)``.
        tril: Cholesky factors of S, ``(C, M, M)``; or ``(C, M)``, the square roots of the diagonal, all else 0.
        concentration: a, ``(1,)`` or one for each class, ``(C,)``; None: Gaussian processes, s = 1.
        rate: b, likewise.
        inducing: Z, ``(M, d)``.
        hyperparameters: sites of the kernel, which are points.

    Source:
        Lee, Yun, Yang and Lee (2022), Scale mixtures of neural network Gaussian processes; whitened as in Hensman,
        Matthews, Filippone and Ghahramani (2015), MCMC for variationally sparse Gaussian processes.

    Example:
        >>> prior = dist.InverseGamma(torch.tensor([2.0]), torch.tensor([2.0]))
        >>> m, tril, z = torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, 1)
        >>> guide = ScaleMixtureGuide(m, tril, prior.concentration, prior.rate, z, {})
        >>> guide.divergence(prior)
        tensor(0.)
        >>> guide.marginals(torch.ones(1, 2), torch.zeros(1))
        (tensor([[0., 0., 0.]]), tensor([[2., 2., 2.]]))
    """

    loc: Tensor
    tril: Tensor
    concentration: Tensor | None
    rate: Tensor | None
    inducing: Tensor
    hyperparameters: Sites

    traces: ClassVar[bool] = False

    @property
    def scale_law(self) -> dist.InverseGamma | None:
        """q(s)."""
        return None if self.concentration is None else dist.InverseGamma(self.concentration, self.rate)

    def marginals(self, root: Tensor, missing_var: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and variance at s = 1 of every class at some rows, each ``(n, C)``.

        Args:
            root: alpha, ``(n, M)``.
            missing_var: what the inducing values leave open, ``(n,)``.
        """
        spread = root * self.tril[:, None, :] if self._diagonal else root.expand(len(self.loc), -1, -1) @ self.tril
        return root @ self.loc.mT, spread.square().sum(-1).mT + missing_var[:, None]

    def divergence(self, prior: dist.InverseGamma | None) -> Tensor:
        r"""Return the divergence from the prior of s and u, ``()``, given that of s.

        .. math:: \tfrac12 \sum_c \Big(\mathrm{tr} \, S_c - M - \log |S_c| + E[s^{-1}] \, m_c^\top m_c\Big)
                  + \mathrm{KL}\big(q(s) \,\|\, p(s)\big), \qquad E[s^{-1}] = a / b

        The first part is the expectation over s of the divergence of u given s, whose covariance is s times another in
        both.
        """
        diagonal = self.tril if self._diagonal else self.tril.diagonal(dim1=-2, dim2=-1)
        of_spread = self.tril.square().sum() - diagonal.numel() - 2 * diagonal.log().sum()
        squares = self.loc.square().sum(-1)
        if self.concentration is None or self.rate is None or prior is None:
            return 0.5 * (of_spread + squares.sum())
        precision = Gamma(self.concentration, self.rate)
        of_scale = kl_divergence(precision, Gamma(prior.concentration, prior.rate))  # of 1 / s, so of s
        return 0.5 * (of_spread + (self.concentration / self.rate * squares).sum()) + of_scale.sum()

    def draw_units(self, *shape: int) -> Tensor:
        """Return draws of ``(f - loc) / var**0.5``, reparametrised, ``(*shape, C)``; uses torch's global generator."""
        var = self.loc.new_ones(1) if self.scale_law is None else self.scale_law.rsample(torch.Size(shape))
        return var.sqrt() * torch.randn(*shape, len(self.loc), dtype=self.loc.dtype, device=self.loc.device)

    def units(self, num: int) -> Tensor:
        """Return points in the place of draws of ``(f - loc) / var**0.5``, always the same, ``(num, C)``."""
        if self.concentration is None or self.rate is None:
            return normal_points(num, len(self.loc)).to(self.loc)
        points = normal_points(num, len(self.loc) + len(self.rate))
        normal, uniform = points[:, : len(self.loc)], torch.special.ndtr(points[:, len(self.loc) :])
        shape = self.concentration.detach().double().cpu().numpy()
        precision = torch.from_numpy(gammaincinv(shape, uniform.numpy()))
        return normal.to(self.loc) * (self.rate / precision.to(self.loc)).sqrt()

    def centre(self, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return the sites at the middle: s where 1 / s has its mean, u at its own."""
        if self.concentration is None or self.rate is None:
            return {"whitened": self.loc, **self.hyperparameters}
        var = self.rate / self.concentration
        return {"scale_var": var, "whitened": self.loc / var.sqrt()[:, None], **self.hyperparameters}

    def sample(self, num: int, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return ``num`` draws of the sites; uses torch's global generator."""
        sites = {name: value.expand(num, *value.shape) for name, value in self.hyperparameters.items()}
        if self.scale_law is not None:
            sites["scale_var"] = self.scale_law.sample(torch.Size([num]))
        noise = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        sites["whitened"] = self._whitened_loc(sites) + self._spread(noise)
        return sites

    def log_ratios(self, num: int, density: LogDensity, arguments: Arguments) -> Tensor:
        """Return ``log p - log q`` of the sites at ``num`` draws, ``(num,)``; of hyperparameters ``log p`` alone."""
        draws = self.sample(num, density, arguments)
        residual = draws["whitened"] - self._whitened_loc(draws)
        tril = torch.diag_embed(self.tril) if self._diagonal else self.tril
        log_q = MultivariateNormal(torch.zeros_like(self.loc), scale_tril=tril).log_prob(residual).sum(-1)
        if self.scale_law is not None:
            log_q = log_q + self.scale_law.log_prob(draws["scale_var"]).sum(-1)
        return finite_or_zero_weight(density.log_joint(draws) - log_q)

    @property
    def _diagonal(self) -> bool:
        return self.tril.dim() == 2

    def _spread(self, noise: Tensor) -> Tensor:
        return noise * self.tril if self._diagonal else (self.tril @ noise[..., None]).squeeze(-1)

    def _whitened_loc(self, sites: Sites) -> Tensor:
        """Return the mean of the whitened values given s."""
        return self.loc / sites["scale_var"].sqrt()[..., None] if "scale_var" in sites else self.loc


@lru_cache(maxsize=16)
def normal_points(num: int, dim: int) -> Tensor:
    """Return points in the place of normal draws, ``(num, dim)``, float64: scrambled Sobol points, always the same.

    Example:
        >>> points = normal_points(1024, 3)
        >>> bool(points.mean(0).abs().max() < 0.003)  # of draws, 0.03
        True
    """
    with torch.device("cpu"):
        uniform = SobolEngine(dim, scramble=True, seed=0).draw(num, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
