"""Normal distributions with one common random variance: multivariate Student-t and its relatives."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probmix.errors import ProgramError
from probmix.scale_integral import log_integral, nodes

__all__ = [
    "AbstractScaleMixtureNormal",
    "LowRankScaleMixtureNormal",
    "ScaleMixtureNormal",
    "flattened",
    "like",
    "scale_mixture",
    "with_axes",
]


class AbstractScaleMixtureNormal(dist.TorchDistribution):
    r"""A normal vector whose whole covariance is multiplied by a random variance.

    .. math:: s \sim H, \quad y \mid s \sim N(m, s \, C), \qquad
              p(y) = (2 \pi)^{-n / 2} |C|^{-1/2} \int h(s) \, s^{-n / 2} e^{-q / 2 s} \, ds, \quad
              q = (y - m)^\top C^{-1} (y - m)

    Args:
        loc: m, ``(*b, n)``; with ``columns``, ``(*b, n, p)``: p vectors with one covariance and one common s.
        batch: batch shape of the covariance.
        scale_prior: H, batch shape broadcasting to ``*b``, or None for ``s = 1``.
        columns: whether ``loc`` has an axis of columns.
    """

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012 (torch's own shape)

    def __init__(
        self, loc: Tensor, batch: torch.Size, scale_prior: dist.TorchDistribution | None, columns: bool
    ) -> None:
        self.loc, self.scale_prior, self.columns = loc, scale_prior, columns
        event_dim = 2 if columns else 1
        of_prior = () if scale_prior is None else scale_prior.batch_shape
        batch = torch.broadcast_shapes(loc.shape[: loc.dim() - event_dim], batch, of_prior)
        super().__init__(batch, loc.shape[loc.dim() - event_dim :], validate_args=False)

    @abstractmethod
    def _lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return q of residuals ``(*b, n, p)``, summed over columns, and the log determinant of C, each ``(*b,)``."""

    @abstractmethod
    def _coloured(self, shape: torch.Size) -> Tensor:
        """Return draws from ``N(0, C)`` in columns, ``shape`` being ``(*s, n, p)``."""

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All vectors (or matrices)."""
        return constraints.independent(constraints.real, 2 if self.columns else 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, ``(*b,)``."""
        residuals = value - self.loc
        quadratic, log_det = self._lengths(residuals if self.columns else residuals[..., None])
        count, outputs = self.event_shape.numel(), self.event_shape[-1] if self.columns else 1
        over_scale = -0.5 * quadratic if self.scale_prior is None else log_integral(self.scale_prior, count, quadratic)
        return over_scale - 0.5 * (outputs * log_det + count * math.log(2 * math.pi))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Return draws: one variance for each, then the normal vector."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            drawn = self._coloured(shape if self.columns else torch.Size([*shape, 1]))
            if self.scale_prior is not None:
                batch = drawn.shape[:-2]
                missing = len(batch) - len(self.scale_prior.batch_shape)
                var = self.scale_prior.expand(batch[missing:]).sample(batch[:missing])
                drawn = drawn * var.sqrt()[..., None, None]
            return self.loc + (drawn if self.columns else drawn.squeeze(-1))

    @property
    def mean(self) -> Tensor:
        """The centre, where a mean exists."""
        return self.loc.expand(self.batch_shape + self.event_shape)


class ScaleMixtureNormal(AbstractScaleMixtureNormal):
    """A scale mixture of normals with the covariance given by its Cholesky factor L, ``C = L L^T``.

    With ``H = InverseGamma(a, b)`` it is the multivariate Student-t with 2a degrees of freedom and shape matrix
    ``(b / a) C``, in closed form; other priors are integrated numerically (`probmix.scale_integral`). Without a prior
    it is the normal distribution itself.

    Args:
        loc: m, ``(*b, n)``; with ``columns``, ``(*b, n, p)``: p vectors with one covariance and one common s.
        scale_tril: L, ``(*b, n, n)``, the factor at s = 1.
        scale_prior: H, batch shape broadcasting to ``*b``, or None for ``s = 1``.
        columns: whether ``loc`` has an axis of columns.

    Source:
        Andrews and Mallows (1974), Scale mixtures of normal distributions; Lee, Yun, Yang and Lee (2022), Scale
        mixtures of neural network Gaussian processes.

    Example:
        >>> tril = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
        >>> ours = ScaleMixtureNormal(torch.zeros(2), tril, dist.InverseGamma(2.0, 2.0))
        >>> y = torch.tensor([1.0, -3.0])
        >>> torch.allclose(ours.log_prob(y), dist.MultivariateStudentT(4.0, torch.zeros(2), tril).log_prob(y))
        True
    """

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        scale_prior: dist.TorchDistribution | None = None,
        *,
        columns: bool = False,
    ) -> None:
        self.scale_tril = scale_tril
        super().__init__(loc, scale_tril.shape[:-2], scale_prior, columns)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaleMixtureNormal:
        """Return the same distribution with a larger batch."""
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return ScaleMixtureNormal(loc, self.scale_tril, self.scale_prior, columns=self.columns)

    def _lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        white = torch.linalg.solve_triangular(self.scale_tril, residuals, upper=False)
        return white.square().sum((-2, -1)), 2 * self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _coloured(self, shape: torch.Size) -> Tensor:
        return self.scale_tril @ torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class LowRankScaleMixtureNormal(AbstractScaleMixtureNormal):
    """A scale mixture of normals whose covariance has low rank but for noise, ``C = W W^T + noise_var I``.

    In time linear in the number of rows.

    Args:
        loc: m, ``(*b, n)``; with ``columns``, ``(*b, n, p)``.
        cov_factor: W, ``(*b, n, r)``.
        noise_var: positive, ``(*b,)``.
        scale_prior: H, batch shape broadcasting to ``*b``, or None for ``s = 1``.
        columns: whether ``loc`` has an axis of columns.

    Example:
        >>> w, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, -3.0])
        >>> ours = LowRankScaleMixtureNormal(torch.zeros(2), w, torch.tensor(0.5))
        >>> dense = ScaleMixtureNormal(torch.zeros(2), torch.linalg.cholesky(w @ w.mT + 0.5 * torch.eye(2)))
        >>> torch.allclose(ours.log_prob(y), dense.log_prob(y))
        True
    """

    def __init__(
        self,
        loc: Tensor,
        cov_factor: Tensor,
        noise_var: Tensor,
        scale_prior: dist.TorchDistribution | None = None,
        *,
        columns: bool = False,
    ) -> None:
        self.cov_factor, self.noise_var = cov_factor, noise_var
        super().__init__(loc, cov_factor.shape[:-2], scale_prior, columns)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankScaleMixtureNormal:
        """Return the same distribution with a larger batch."""
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return LowRankScaleMixtureNormal(loc, self.cov_factor, self.noise_var, self.scale_prior, columns=self.columns)

    def _lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        noise_std = self.noise_var.sqrt()[..., None, None]
        root, scaled = self.cov_factor / noise_std, residuals / noise_std
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        inner = torch.linalg.cholesky(eye + root.mT @ root)
        seen = torch.linalg.solve_triangular(inner, root.mT @ scaled, upper=False)
        log_det = 2 * inner.diagonal(dim1=-2, dim2=-1).log().sum(-1) + root.shape[-2] * self.noise_var.log()
        return scaled.square().sum((-2, -1)) - seen.square().sum((-2, -1)), log_det

    def _coloured(self, shape: torch.Size) -> Tensor:
        inner = torch.Size([*shape[:-2], self.cov_factor.shape[-1], shape[-1]])
        low, noise = (torch.randn(size, dtype=self.loc.dtype, device=self.loc.device) for size in (inner, shape))
        return self.cov_factor @ low + self.noise_var.sqrt()[..., None, None] * noise


def scale_mixture(
    loc: Tensor,
    var: Tensor,
    scale_prior: dist.TorchDistribution | None,
    count: float = 0.0,
    quadratic: Tensor | None = None,
) -> dist.TorchDistribution:
    r"""Return a scalar ``N(loc, s var)`` with s integrated out under its posterior given data.

    For an inverse gamma prior a Student-t, with :math:`2a + m` degrees of freedom and squared scale
    :math:`\frac{2b + q}{2a + m} \mathrm{var}`; for another prior a mixture of normals at the nodes of the quadrature;
    without one the normal.

    Args:
        loc: ``(*b, ...)``.
        var: at s = 1, broadcasting to ``loc``.
        scale_prior: H, its batch shape broadcasting to that of ``loc``.
        count: m, the number of observations.
        quadratic: q, their squared Mahalanobis length at s = 1, broadcasting to ``loc``; None: no observation.

    Source:
        Shah, Wilson and Ghahramani (2014), Student-t processes as alternatives to Gaussian processes, lemma 3.

    Example:
        >>> q = torch.tensor(6.0)
        >>> found = scale_mixture(torch.zeros(3), torch.ones(3), dist.InverseGamma(2.0, 2.0), 4.0, q)
        >>> found.df, found.scale.square()
        (tensor([8., 8., 8.]), tensor([1.2500, 1.2500, 1.2500]))
    """
    if scale_prior is None:
        return dist.Normal(loc, var.sqrt().expand_as(loc))
    quadratic = loc.new_zeros(()) if quadratic is None else quadratic
    if isinstance(scale_prior, dist.InverseGamma):
        shape, rate = scale_prior.concentration + 0.5 * count, scale_prior.rate + 0.5 * quadratic
        return dist.StudentT((2 * shape).expand_as(loc), loc, (rate / shape * var).sqrt().expand_as(loc))
    found = nodes(scale_prior, count, quadratic)
    components = dist.Normal(loc[..., None], (found.var * var[..., None]).sqrt())
    log_weights = found.log_weights.expand(components.batch_shape)
    return dist.MixtureSameFamily(dist.Categorical(logits=log_weights), components)


def with_axes(prior: dist.TorchDistribution, num: int) -> dist.TorchDistribution:
    """Return a prior with so many axes of length one behind its batch axes, if it has any batch.

    Example:
        >>> with_axes(dist.LogNormal(torch.zeros(5), 1.0), 2).batch_shape
        torch.Size([5, 1, 1])
    """
    shape = torch.Size([*prior.batch_shape, *[1] * num])
    return _changed(prior, lambda value: value.expand(prior.batch_shape).reshape(shape)) if prior.batch_shape else prior


def flattened(prior: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return a prior with its batch axes made one.

    Example:
        >>> flattened(dist.LogNormal(torch.zeros(5, 2), 1.0)).batch_shape
        torch.Size([10])
    """
    return _changed(prior, lambda value: value.expand(prior.batch_shape).reshape(-1))


def like(prior: dist.TorchDistribution, tensor: Tensor) -> dist.TorchDistribution:
    """Return a prior in the dtype and on the device of a tensor; as it is, if it names no parameters to convert.

    Example:
        >>> like(dist.InverseGamma(2.0, 2.0), torch.ones(1, dtype=torch.float64)).rate
        tensor(2., dtype=torch.float64)
    """
    return _changed(prior, lambda value: value.to(tensor)) if prior.arg_constraints else prior


def _changed(prior: dist.TorchDistribution, change: Callable[[Tensor], Tensor]) -> dist.TorchDistribution:
    """Build a distribution anew from its parameters, which by torch's convention have the names of its arguments."""
    cls: Any = type(prior)
    try:
        return cls(**{name: change(getattr(prior, name)) for name in prior.arg_constraints})
    except TypeError as reason:
        raise ProgramError(
            "expected a prior that can be made anew from the tensors that its arg_constraints name, got "
            f"{cls.__name__} with {list(prior.arg_constraints)}: {reason}. Give its class such arg_constraints."
        ) from reason
