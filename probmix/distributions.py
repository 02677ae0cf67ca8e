"""Distributions that neither torch nor Pyro has."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import LogNormal, TorchDistribution
from torch import Tensor
from torch.distributions import Chi2, constraints

from probmix.positive_definite import positive_definite_matrix, safe_cholesky

__all__ = ["InverseWishart", "ShiftedLogNormal", "log_multigamma"]


def log_multigamma(value: Tensor, order: int) -> Tensor:
    r"""Logarithm of the multivariate gamma function, elementwise.

    .. math:: \log \Gamma_p(a) = \tfrac{p(p-1)}{4} \log \pi + \sum_{i=1}^p \log \Gamma(a - \tfrac{i-1}{2})

    Args:
        value: :math:`a`, above (p - 1) / 2, ``(*b,)``.
        order: :math:`p`.

    Example:
        >>> import torch
        >>> log_multigamma(torch.tensor(2.5), 2)
        tensor(0.8570)
    """
    shift = torch.arange(order, dtype=value.dtype, device=value.device) / 2
    return torch.lgamma(value[..., None] - shift).sum(-1) + order * (order - 1) / 4 * math.log(math.pi)


class InverseWishart(TorchDistribution):
    r"""Inverse Wishart distribution over covariance matrices.

    .. math:: p(\Sigma) = \frac{|S|^{\nu/2}}{2^{\nu D/2}\, \Gamma_D(\nu/2)}
              |\Sigma|^{-(\nu+D+1)/2} \exp\{-\tfrac12 \mathrm{tr}(S \Sigma^{-1})\}

    Args:
        df: degrees of freedom :math:`\nu > D - 1`, ``(*b,)``.
        scatter: :math:`S`, symmetric positive definite, in squared units of the data, ``(*b, D, D)``.
        validate_args: check the arguments and values; None leaves it to torch's global setting.

    Raises:
        ValueError: ``df`` is not above D - 1, or ``scatter`` is not a positive-definite matrix.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, appendix A.

    Example:
        >>> import torch
        >>> prior = InverseWishart(torch.tensor(5.0), torch.eye(2))
        >>> prior.mean
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
        >>> prior.log_prob(torch.eye(2))
        tensor(-5.3228)
    """

    arg_constraints = {"df": constraints.positive, "scatter": positive_definite_matrix}  # noqa: RUF012 - torch's API
    support = positive_definite_matrix
    has_rsample = True

    def __init__(self, df: Tensor | float, scatter: Tensor, validate_args: bool | None = None) -> None:
        if scatter.ndim < 2 or scatter.shape[-1] != scatter.shape[-2]:
            raise ValueError(f"scatter: expected square matrices (*b, D, D), got shape {tuple(scatter.shape)}")
        df = torch.as_tensor(df, dtype=scatter.dtype, device=scatter.device)
        batch_shape = torch.broadcast_shapes(df.shape, scatter.shape[:-2])
        self.df = df.expand(batch_shape)
        self.scatter = scatter.expand(batch_shape + scatter.shape[-2:])
        self._scatter_tril = safe_cholesky(scatter).expand(self.scatter.shape)
        super().__init__(batch_shape, scatter.shape[-2:], validate_args=validate_args)
        if self._validate_args and (df <= scatter.shape[-1] - 1).any():
            raise ValueError(
                f"df must be above D - 1 = {scatter.shape[-1] - 1}, got {df.min().item():g}: "
                f"take D + 2 = {scatter.shape[-1] + 2} for a vague prior that has a mean"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> InverseWishart:
        """Return the same distribution with a larger batch shape."""
        new = self._get_checked_instance(InverseWishart, _instance)
        batch_shape = torch.Size(batch_shape)
        new.df = self.df.expand(batch_shape)
        new.scatter = self.scatter.expand(batch_shape + self.event_shape)
        new._scatter_tril = self._scatter_tril.expand(batch_shape + self.event_shape)
        super(InverseWishart, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """``S / (df - D - 1)``, NaN where df is not above D + 1."""
        excess = (self.df - self.event_shape[-1] - 1)[..., None, None]
        return torch.where(excess > 0, self.scatter / excess, torch.nan)

    @property
    def mode(self) -> Tensor:
        """``S / (df + D + 1)``."""
        return self.scatter / (self.df + self.event_shape[-1] + 1)[..., None, None]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw matrices by the Bartlett decomposition, with gradients, ``(*sample_shape, *b, D, D)``.

        With A lower triangular, ``A_ii**2 ~ chi2(df - i + 1)`` and ``A_ij ~ N(0, 1)``, the matrix A A^T is Wishart with
        identity scale, and ``T A^-T A^-1 T^T`` is inverse Wishart with scatter T T^T.
        """
        size = self.event_shape[-1]
        steps = torch.arange(size, device=self.df.device, dtype=self.df.dtype)
        root = Chi2(self.df[..., None] - steps, validate_args=False).rsample(torch.Size(sample_shape)).sqrt()
        normal = torch.randn((*root.shape, size), dtype=root.dtype, device=root.device)
        bartlett_tril = normal.tril(-1) + torch.diag_embed(root)
        half = torch.linalg.solve_triangular(bartlett_tril, self._scatter_tril.mT, upper=False)
        return half.mT @ half

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each matrix with respect to its D(D+1)/2 free entries, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        size = self.event_shape[-1]
        value_tril = safe_cholesky(value)
        scaled = torch.linalg.solve_triangular(value_tril, self._scatter_tril, upper=False)
        return (
            self.df * (_half_log_det(self._scatter_tril) - size / 2 * math.log(2.0))
            - log_multigamma(self.df / 2, size)
            - (self.df + size + 1) * _half_log_det(value_tril)
            - scaled.square().sum((-2, -1)) / 2
        )


class ShiftedLogNormal(TorchDistribution):
    r"""Log-normal distribution above a bound: what exceeds the bound has a normal logarithm.

    .. math:: \log (x - a) \sim N(m, s^2), \qquad x > a

    Args:
        log_loc: :math:`m`, ``(*b,)``.
        log_std: :math:`s`, positive, ``(*b,)``.
        least: :math:`a`, ``(*b,)``.
        validate_args: check the arguments and values; None leaves it to torch's global setting.

    Raises:
        ValueError: ``log_std`` is not positive.

    Source:
        Johnson, Kotz and Balakrishnan (1994), Continuous univariate distributions, volume 1, chapter 14.

    Example:
        >>> import torch
        >>> prior = ShiftedLogNormal(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.5))
        >>> prior.log_prob(torch.tensor(1.5)), prior.mean
        (tensor(-0.9189), tensor(2.1487))
    """

    arg_constraints = {  # noqa: RUF012 - torch's API
        "log_loc": constraints.real, "log_std": constraints.positive, "least": constraints.real
    }  # fmt: skip
    has_rsample = True

    def __init__(self, log_loc: Tensor, log_std: Tensor, least: Tensor, validate_args: bool | None = None) -> None:
        excess = LogNormal(log_loc, log_std, validate_args=validate_args)
        batch_shape = torch.broadcast_shapes(excess.batch_shape, least.shape)
        self.excess, self.least = excess.expand(batch_shape), least.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Numbers above ``least``."""
        return constraints.greater_than(self.least)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ShiftedLogNormal:
        """Return the same distribution with a larger batch shape."""
        batch_shape = torch.Size(batch_shape)
        log_loc, log_std, least = (value.expand(batch_shape) for value in (self.log_loc, self.log_std, self.least))
        return ShiftedLogNormal(log_loc, log_std, least, validate_args=self._validate_args)

    @property
    def log_loc(self) -> Tensor:
        """``m``."""
        return self.excess.loc

    @property
    def log_std(self) -> Tensor:
        """``s``."""
        return self.excess.scale

    @property
    def mean(self) -> Tensor:
        """``a + exp(m + s^2 / 2)``."""
        return self.least + self.excess.mean

    @property
    def variance(self) -> Tensor:
        """``(exp(s^2) - 1) exp(2 m + s^2)``."""
        return self.excess.variance

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients, ``(*sample_shape, *b)``."""
        return self.least + self.excess.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return self.excess.log_prob(value - self.least)


def _half_log_det(tril: Tensor) -> Tensor:
    """Half the log determinant of the matrix with this Cholesky factor."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
