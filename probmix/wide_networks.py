"""Random networks of finite width, and the scale mixture of Gaussian processes that they tend to: draws of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, InverseGamma

from probmix.dual_activations import ActivationName, activation_of
from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.rows import as_rows, check_rows
from probmix.uniformity import FloatArray

__all__ = ["LimitLaw", "WideNetwork"]

_BLOCK = 2**22  # numbers in the largest temporary
_LAW_DRAWS = 2**20  # of a law without closed form: its distribution function is right to 0.0005
_NETWORKS, _LIMIT = range(2)  # streams of random numbers, lest one seed give both the same draws


@dataclass(frozen=True)
class WideNetwork:
    r"""Prior of a fully connected network with independent normal weights and biases.

    .. math:: h_1 = \sqrt{\tfrac{\sigma_w^2}{d}} W_1 x + \sigma_b b_1, \qquad
              h_{l+1} = \sqrt{\tfrac{\sigma_w^2}{\mathrm{width}}} W_{l+1} \phi(h_l) + \sigma_b b_{l+1}, \qquad
              f(x) = \sqrt{s} \, h_{\mathrm{depth} + 1}

    with all entries of :math:`W_l` and :math:`b_l` standard normal. As the width grows, f given s becomes a Gaussian
    process with s times the NNGP kernel of the same settings; with a prior on s, a scale mixture of them.

    Args:
        width: units in each hidden layer.
        depth: number of hidden layers.
        activation: its name, or an object: see `probmix.dual_activations.activation_of`.
        weight_var: :math:`\sigma_w^2`.
        bias_var: :math:`\sigma_b^2`.
        residual: whether every hidden layer but the first adds to what came before, :math:`h_{l+1} = h_l + \dots`
        readout: whether the last layer has the same variances as the others. False: weight variance 1 and no bias, so
            that s is the whole variance of the last weights, as in Lee et al. (2022).

    Raises:
        ProgramError: a width or depth below one, a variance out of range, or an unknown activation.

    Source:
        Neal (1996), Bayesian learning for neural networks, chapter 2; Matthews, Rowland, Hron, Turner and Ghahramani
        (2018), Gaussian process behaviour in wide deep neural networks, for more than one layer; Lee, Yun, Yang and
        Lee (2022), Scale mixtures of neural network Gaussian processes, for s.

    Example:
        >>> import pyro.distributions as dist
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
        >>> WideNetwork(64, activation="erf").sample(x, 1000, seed=0).shape
        torch.Size([1000, 3])
        >>> scale_prior = dist.InverseGamma(2.0, 2.0)  # Student-t, 4 degrees of freedom, as the width grows
        >>> WideNetwork(64, readout=False).sample(x, 5, seed=0, scale_prior=scale_prior).shape
        torch.Size([5, 3])
    """

    width: int
    depth: int = 3
    activation: ActivationName = "relu"
    weight_var: float = 2.0
    bias_var: float = 0.1
    residual: bool = False
    readout: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ProgramError(f"{name}: expected 1 or more, got {getattr(self, name)}: pass a positive integer")
        if not (0 < self.weight_var < math.inf and 0 <= self.bias_var < math.inf):
            raise ProgramError(
                f"expected a weight_var above 0 and a bias_var of 0 or more, got {self.weight_var} and "
                f"{self.bias_var}: pass variances, such as 2.0 and 0.1"
            )
        activation_of(self.activation)

    @torch.no_grad()
    def sample(self, x: Tensor, num: int, *, seed: int, scale_prior: Distribution | None = None) -> Tensor:
        r"""Return the outputs of independent networks at the rows of x, ``(num, n)``.

        Weights meet the rows only through the n columns of :math:`\phi(h_l)`, so they are drawn only in the directions
        that these span: ``width * n`` normals instead of ``width ** 2``. This is exact at every width: a standard
        normal matrix times an orthonormal one is standard normal. But a network cannot be called again, so rows at
        which the same networks are wanted go into one call.

        Args:
            x: ``(n, d)``, or ``(n,)`` for one column; outputs have its dtype and device.
            num: number of networks.
            seed: of everything; the caller's random state is left alone.
            scale_prior: distribution of s, one draw for each network; None: 1.

        Raises:
            DataError: x is not a table of finite floating-point numbers, or no network is asked for.
            ProgramError: the scale prior is not of one positive number.
        """
        x = as_rows(x)
        check_rows(x, 1, spread=False, independent=False)
        _require_prior(scale_prior)
        _require_num(num)
        chunk = max(1, _BLOCK // (self.width * len(x)))
        with isolated(_stream(seed, _NETWORKS), dtype=x.dtype, device=x.device):
            outputs = torch.cat([self._outputs(x, min(chunk, num - done)) for done in range(0, num, chunk)])
            return outputs * _roots_of_scales(scale_prior, (num,), x)

    def _outputs(self, x: Tensor, num: int) -> Tensor:
        phi, hidden = activation_of(self.activation), (self.weight_var, self.bias_var)
        h = _dense(x.mT, num, self.width, *hidden)
        for _ in range(self.depth - 1):
            update = _dense(phi(h), num, self.width, *hidden)
            h = h + update if self.residual else update
        return _dense(phi(h), num, 1, *(hidden if self.readout else (1.0, 0.0))).squeeze(-2)


def _dense(phi: Tensor, num: int, units: int, weight_var: float, bias_var: float) -> Tensor:
    """Return a new random layer of each network, ``(*b, fan_in, n)`` to ``(num, units, n)``."""
    seen = torch.linalg.qr(phi, mode="r").R  # W phi = (W Q) R, and W Q is as W
    weights = math.sqrt(weight_var / phi.shape[-2]) * torch.randn(num, units, seen.shape[-2])
    return weights @ seen + math.sqrt(bias_var) * torch.randn(num, units, 1)


@dataclass(frozen=True, eq=False)
class LimitLaw:
    r"""Law of the outputs at n inputs as the width grows: :math:`f \mid s \sim N(0, s K)`, s from its prior.

    A Gaussian process if s is 1; for :math:`s \sim \mathrm{InverseGamma}(\alpha, \beta)` a multivariate Student-t with
    :math:`2 \alpha` degrees of freedom and the scale matrix :math:`\tfrac\beta\alpha K`. One s is common to all inputs.

    Args:
        cov: K, ``(n, n)``: the kernel matrix of the inputs with themselves, e.g. ``NNGPKernel()(x).to_dense()``. It may
            be singular.
        scale_prior: distribution of s; None: 1.

    Raises:
        DataError: K is not a covariance matrix with a positive diagonal.
        ProgramError: the scale prior is not of one positive number.

    Source:
        Lee, Yun, Yang and Lee (2022), Scale mixtures of neural network Gaussian processes.

    Example:
        >>> import pyro.distributions as dist
        >>> law = LimitLaw(torch.eye(2), dist.InverseGamma(2.0, 2.0))
        >>> law.sample(1000, seed=0).shape
        torch.Size([1000, 2])
        >>> [float(one.chance_beyond(torch.tensor(4.0**2), df=1).round(5)) for one in (LimitLaw(torch.eye(2)), law)]
        [6e-05, 0.01613]
    """

    cov: Tensor
    scale_prior: Distribution | None = None

    def __post_init__(self) -> None:
        _require_cov(self.cov)
        _require_prior(self.scale_prior)

    @cached_property
    def root(self) -> Tensor:
        """A matrix A with orthogonal columns and ``A A^T = K``, ``(n, rank)``; what is rounding is left out."""
        values, vectors = torch.linalg.eigh(self.cov.detach())
        kept = values > _rounding(values)
        return vectors[:, kept] * values[kept].sqrt()

    def sample(self, num: int, *, seed: int) -> Tensor:
        """Return independent draws, ``(num, n)``; the caller's random state is left alone.

        Raises:
            DataError: no draw is asked for.
        """
        _require_num(num)
        with isolated(_stream(seed, _LIMIT), dtype=self.cov.dtype, device=self.cov.device):
            return self.draw((num,))

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return draws ``(*shape, n)``; uses torch's global generator."""
        normal = torch.randn(*shape, self.root.shape[1], dtype=self.root.dtype, device=self.root.device)
        return normal @ self.root.mT * _roots_of_scales(self.scale_prior, shape, normal)

    def chance_beyond(self, squares: Tensor, df: int) -> FloatArray:
        r"""Return :math:`P(s \chi^2_{df} > q)` for each q in ``squares``.

        It is the chance that :math:`f_i^2 / K_{ii}` is larger (``df`` 1), or :math:`f^\top K^{-1} f` (``df`` n). Exact
        without a scale prior (chi-square) and for an inverse gamma (F); else the share of a million draws, which uses
        torch's global generator.
        """
        values = squares.cpu().numpy()
        if self.scale_prior is None:
            return np.asarray(stats.chi2.sf(values, df))
        if isinstance(self.scale_prior, InverseGamma):
            shape, rate = float(self.scale_prior.concentration), float(self.scale_prior.rate)
            return np.asarray(stats.f.sf(values * shape / (rate * df), df, 2 * shape))
        half = torch.full((_LAW_DRAWS, 1), df / 2, dtype=squares.dtype, device=squares.device)
        chi = torch.distributions.Gamma(half, 0.5).sample().sqrt()
        draws = (chi * _roots_of_scales(self.scale_prior, (_LAW_DRAWS,), chi)).square().flatten().sort().values
        return np.asarray(1 - np.searchsorted(draws.cpu().numpy(), values, side="right") / _LAW_DRAWS)


def _roots_of_scales(scale_prior: Distribution | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the square root of s, ``(*shape, 1)``."""
    if scale_prior is None:
        return like.new_ones(())
    scales = scale_prior.sample(torch.Size(shape)).to(like)
    if not (scales >= 0).all():
        raise ProgramError(
            f"scale_prior: expected a distribution of variances, got a draw of {float(scales.min()):.3g}. Pass a prior "
            "on positive numbers, e.g. InverseGamma(2.0, 2.0)."
        )
    return scales.sqrt()[..., None]


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


# --- checks -----------------------------------------------------------------------------------------------------------


def _require_num(num: int) -> None:
    if num < 1:
        raise DataError(f"num: expected 1 or more, got {num}: ask for a thousand or so")


def _require_prior(scale_prior: Distribution | None) -> None:
    if scale_prior is None:
        return
    if not isinstance(scale_prior, Distribution):
        raise ProgramError(
            f"scale_prior: expected a distribution, got {scale_prior!r}. Pass e.g. InverseGamma(2.0, 2.0); a fixed "
            "variance goes into the kernel."
        )
    if scale_prior.batch_shape or scale_prior.event_shape:
        raise ProgramError(
            f"scale_prior: expected a distribution of one number, got batch shape {tuple(scale_prior.batch_shape)} and "
            f"event shape {tuple(scale_prior.event_shape)}. Give its parameters no axes."
        )


def _require_cov(cov: Tensor) -> None:
    square = cov.dim() == 2 and cov.shape[0] == cov.shape[1] > 0
    if not (square and cov.is_floating_point() and cov.isfinite().all() and torch.allclose(cov, cov.mT)):
        raise DataError(
            f"cov: expected a finite symmetric matrix, got {cov.dtype} of shape {tuple(cov.shape)}. Pass the kernel "
            "matrix of the inputs with themselves."
        )
    if not (cov.diagonal() > 0).all():
        first = int((cov.diagonal() <= 0).nonzero()[0])
        raise DataError(
            f"cov: expected positive variances, got {float(cov[first, first]):g} at input {first}. Leave that input "
            "out, or give the networks a bias."
        )
    values = torch.linalg.eigvalsh(cov.detach())
    if values[0] < -_rounding(values):
        raise DataError(
            f"cov: expected no negative eigenvalue, got {float(values[0]):.3g}. Pass the kernel matrix of the inputs "
            "with themselves."
        )


def _rounding(eigenvalues: Tensor) -> Tensor:
    """Return the eigenvalue below which rounding of outputs and kernels may be all that there is."""
    return math.sqrt(torch.finfo(eigenvalues.dtype).eps) * eigenvalues[-1]
