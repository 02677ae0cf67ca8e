"""Stationary kernels for GPyTorch from the density of their spectrum, with derivatives in closed form."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.priors import Prior
from torch import Tensor

from probmix.errors import ProgramError
from probmix.kernel_parameters import AbstractKernel, Constrained, log_positive
from probmix.nngp import require_alike
from probmix.spectra import SpectrumName, derivative_orders, spectrum_of, term_derivative
from probmix.spectral_covariance import spectral_covariance

__all__ = ["AbstractSpectralKernel", "SpectralMixtureKernel", "SpectralProductKernel"]


class AbstractSpectralKernel(AbstractKernel):
    """A stationary kernel whose spectrum is a mixture, frequencies in cycles per unit of the inputs.

    Every weight is a variance, every bandwidth the scale of its spectral component; the lengthscale of its envelope is
    ``1 / (2 pi bandwidth)``.

    Args:
        num_components: q.
        ard_num_dims: d, number of input columns, as in GPyTorch.
        spectrum: ``"gaussian"``, ``"student_t"`` (Matern-5/2 envelopes), or `probmix.spectra.StudentTSpectrum`.
        weights: first values.
        frequencies: first values.
        weights_prior: of the weights; likewise for the other parameters, ``log_`` for those of a logarithm.
        log_weights_prior: in the place of that.
        frequencies_prior: of the frequencies.
        bandwidths_prior: of the bandwidths.
        log_bandwidths_prior: in the place of that.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
    """

    is_stationary = True

    weights = Constrained("Variance of each component; its raw parameter is the logarithm.")
    frequencies = Constrained("Centre of the spectrum of each component, cycles per unit.")
    bandwidths = Constrained("Scale of the spectrum of each component, cycles per unit.")

    def __init__(
        self,
        num_components: int,
        ard_num_dims: int,
        spectrum: SpectrumName,
        weights: Tensor,
        frequencies: Tensor,
        *,
        weights_prior: Prior | None = None,
        log_weights_prior: Prior | None = None,
        frequencies_prior: Prior | None = None,
        bandwidths_prior: Prior | None = None,
        log_bandwidths_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(ard_num_dims=ard_num_dims, **kwargs)
        self.num_components, self.spectrum = num_components, spectrum_of(spectrum)
        self.register("weights", weights, log_positive(), weights_prior, log_weights_prior)
        self.register("frequencies", frequencies, log_positive(), frequencies_prior)
        bandwidths = torch.full_like(frequencies, 0.1)
        self.register("bandwidths", bandwidths, log_positive(), bandwidths_prior, log_bandwidths_prior)

    def derivative(self, x1: Tensor, x2: Tensor, by1: Sequence[int] = (), by2: Sequence[int] = ()) -> Tensor:
        r"""Return derivatives of the covariance by its inputs, in closed form, ``(*b, n, m)``.

        .. math:: \frac{\partial^{|a| + |b|} k(x, x')}{\partial x_{a_1} \cdots \partial x'_{b_1} \cdots}

        They are the covariances of derivatives of the process, and right where inputs coincide.

        Args:
            x1: rows ``(n, d)``.
            x2: rows ``(m, d)``.
            by1: columns of ``x1`` to differentiate by, repeated for higher orders: ``(0, 0)`` is the second derivative.
            by2: columns of ``x2``.

        Raises:
            ProgramError: a column that is not there; an order that the spectrum has not.

        Example:
            >>> kernel = SpectralMixtureKernel(1).requires_grad_(False)
            >>> kernel.frequencies, kernel.bandwidths = 1e-6, 1.0
            >>> kernel.derivative(torch.zeros(1, 1), torch.zeros(1, 1), by1=[0], by2=[0])  # 4 pi^2
            tensor([[39.4784]])
        """
        _check_inputs(x1, x2, self.ard_num_dims)
        orders = derivative_orders(by1, by2, self.ard_num_dims)
        lags = (x1.mT[..., :, :, None] - x2.mT[..., :, None, :])[..., None, :, :]  # (d, 1, n, m)
        terms = [
            term_derivative(lags[..., d, :, :, :], *self._of_input(d), self.spectrum, order)
            for d, order in enumerate(orders)
        ]
        return (-1) ** len(by2) * self._assembled(terms)

    @abstractmethod
    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component, ``(*b, q, n, m)``."""

    @abstractmethod
    def spectral_density(self, frequencies: Tensor, column: int = 0) -> Tensor:
        r"""Return the one-sided density of the spectrum along one input, ``(*b, q, m)``, for each component.

        .. math:: S_q(f) = w_q \big(p(f \mid \mu_q, v_q) + p(f \mid -\mu_q, v_q)\big), \quad f \ge 0, \qquad
                  \sum_q \int_0^\infty S_q(f) \, df = k(0)

        Args:
            frequencies: ``(m,)``, cycles per unit.
            column: the input.
        """

    @abstractmethod
    def _of_input(self, d: int) -> tuple[Tensor, Tensor]:
        """Return frequencies and bandwidths of one input, each ``(*b, q, 1, 1)``."""

    @abstractmethod
    def _assembled(self, terms: list[Tensor]) -> Tensor:
        """Return the covariance, given for each input the terms of all components at weight 1, ``(*b, q, n, m)``."""

    def _density(self, frequencies: Tensor, weights: Tensor, loc: Tensor, bandwidths: Tensor) -> Tensor:
        sides = [
            self.spectrum.distribution(side[..., None], bandwidths[..., None]).log_prob(frequencies).exp()
            for side in (loc, -loc)
        ]
        return weights[..., None] * (sides[0] + sides[1])


class SpectralMixtureKernel(AbstractSpectralKernel):
    r"""A mixture of spectral components: with enough of them, any stationary kernel.

    .. math:: k(\tau) = \sum_q w_q \prod_d g(2 \pi v_{qd} |\tau_d|) \cos(2 \pi \mu_{qd} \tau_d)

    Of one input the same function as ``gpytorch.kernels.SpectralMixtureKernel`` (its ``mixture_weights``,
    ``mixture_means`` and ``mixture_scales`` are ``weights``, ``frequencies`` and ``bandwidths`` here), with priors that
    are registered, Student-t spectra, tiles that stay in the cache and a gradient in closed form. Of several inputs
    GPyTorch sums over components before it multiplies over inputs: that is `SpectralProductKernel`, with weights alike.

    Args:
        num_components: q.
        ard_num_dims: d, number of input columns.
        spectrum: ``"gaussian"``, ``"student_t"`` (Matern-5/2 envelopes), or `probmix.spectra.StudentTSpectrum`.
        weights_prior: of w, one number or ``(q,)``.
        log_weights_prior: of log w, in the place of that.
        frequencies_prior: of :math:`\mu`, one number or ``(q, d)``.
        bandwidths_prior: of v, one number or ``(q, d)``.
        log_bandwidths_prior: of log v, in the place of that.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: inputs of different dtypes, devices or numbers of columns.

    Source:
        Wilson and Adams (2013), Gaussian process kernels for pattern discovery and extrapolation, equation 12; Fang et
        al. (2024), Solving high frequency and multi-scale PDEs with Gaussian processes, for Student-t spectra.

    Example:
        >>> kernel = SpectralMixtureKernel(2).requires_grad_(False)
        >>> kernel.weights, kernel.frequencies = torch.tensor([1.0, 2.0]), torch.tensor([[1e-6], [1.0]])
        >>> kernel(torch.tensor([[0.0], [0.5]])).to_dense().round(decimals=2)
        tensor([[ 3.0000, -0.9500],
                [-0.9500,  3.0000]])
    """

    def __init__(
        self,
        num_components: int = 4,
        ard_num_dims: int = 1,
        spectrum: SpectrumName = "gaussian",
        **kwargs: Any,
    ) -> None:
        _check_sizes(num_components, ard_num_dims)
        batch = kwargs.get("batch_shape", torch.Size())
        weights = torch.full((*batch, num_components), 1.0 / num_components)
        frequencies = _spread(num_components)[:, None].expand(*batch, num_components, ard_num_dims).clone()
        super().__init__(num_components, ard_num_dims, spectrum, weights, frequencies, **kwargs)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        _check_inputs(x1, x2, self.ard_num_dims)
        parameters = self.weights, self.frequencies, self.bandwidths, self.spectrum
        if diag and x1 is x2:
            total = self.weights.sum(-1, keepdim=True)
            return total.expand(*torch.broadcast_shapes(total.shape[:-1], x1.shape[:-2]), x1.shape[-2])
        if diag:
            weights, frequencies, bandwidths, spectrum = parameters
            inner = weights[..., None, :], frequencies[..., None, :, :], bandwidths[..., None, :, :]
            return spectral_covariance(x1[..., None, :], x2[..., None, :], *inner, spectrum)[..., 0, 0]
        return spectral_covariance(x1, x2, *parameters, symmetric=x1 is x2)

    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component, ``(*b, q, n, m)``."""
        _check_inputs(x1, x2, self.ard_num_dims)
        one = self.weights[..., None], self.frequencies[..., None, :], self.bandwidths[..., None, :]
        return spectral_covariance(x1[..., None, :, :], x2[..., None, :, :], *one, self.spectrum)

    def spectral_density(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided density of the spectrum along one input, ``(*b, q, m)``, for each component."""
        return self._density(frequencies, self.weights, self.frequencies[..., column], self.bandwidths[..., column])

    def _of_input(self, d: int) -> tuple[Tensor, Tensor]:
        return self.frequencies[..., d, None, None], self.bandwidths[..., d, None, None]

    def _assembled(self, terms: list[Tensor]) -> Tensor:
        return torch.einsum("...q,...qnm->...nm", self.weights, math.prod(terms[1:], start=terms[0]))


class SpectralProductKernel(AbstractSpectralKernel):
    r"""A product over the inputs of spectral mixtures of one input each: on a grid a Kronecker product.

    .. math:: k(\tau) = \prod_d \sum_q w_{dq} \, g(2 \pi v_{dq} |\tau_d|) \cos(2 \pi \mu_{dq} \tau_d)

    Args:
        num_components: q, for each input.
        ard_num_dims: d, number of input columns.
        spectrum: as for `SpectralMixtureKernel`.
        weights_prior: of w, one number or ``(d, q)``.
        log_weights_prior: of log w, in the place of that.
        frequencies_prior: of :math:`\mu`, one number or ``(d, q)``.
        bandwidths_prior: of v, one number or ``(d, q)``.
        log_bandwidths_prior: of log v, in the place of that.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: inputs of different dtypes, devices or numbers of columns.

    Source:
        Fang et al. (2024), Solving high frequency and multi-scale PDEs with Gaussian processes, section 3; Wilson,
        Gilboa, Nehorai and Cunningham (2014), Fast kernel learning for multidimensional pattern extrapolation, equation
        5.

    Example:
        >>> kernel = SpectralProductKernel(3, ard_num_dims=2).requires_grad_(False)
        >>> kernel(torch.zeros(1, 2)).to_dense()
        tensor([[1.0000]])
    """

    def __init__(
        self,
        num_components: int = 4,
        ard_num_dims: int = 2,
        spectrum: SpectrumName = "gaussian",
        **kwargs: Any,
    ) -> None:
        _check_sizes(num_components, ard_num_dims)
        shape = (*kwargs.get("batch_shape", torch.Size()), ard_num_dims, num_components)
        weights, frequencies = torch.full(shape, 1.0 / num_components), _spread(num_components).expand(shape).clone()
        super().__init__(num_components, ard_num_dims, spectrum, weights, frequencies, **kwargs)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        _check_inputs(x1, x2, self.ard_num_dims)
        if diag:
            lags = (x1 - x2).mT[..., :, None, :, None]
            terms = [
                term_derivative(lags[..., d, :, :, :], *self._of_input(d), self.spectrum, 0)
                for d in range(self.ard_num_dims)
            ]
            return self._assembled(terms)[..., 0]
        pairs = [(x1[..., d], None if x1 is x2 else x2[..., d]) for d in range(self.ard_num_dims)]
        factors = [self.factor(d, *pair) for d, pair in enumerate(pairs)]
        return math.prod(factors[1:], start=factors[0])

    def factor(self, d: int, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return the covariance of one input, ``(*b, n, m)``, between values ``(n,)`` and ``(m,)`` of it.

        Without ``x2``, of values with themselves.
        """
        weights, frequencies, bandwidths = (
            value[..., d, :] for value in (self.weights, self.frequencies, self.bandwidths)
        )
        parameters = weights, frequencies[..., None], bandwidths[..., None], self.spectrum
        rows = x1[..., None]
        columns = rows if x2 is None else x2[..., None]
        return spectral_covariance(rows, columns, *parameters, symmetric=x2 is None)

    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component of the first input, all others in full, ``(*b, q, n, m)``."""
        _check_inputs(x1, x2, self.ard_num_dims)
        weights, frequencies, bandwidths = (
            value[..., 0, :, None] for value in (self.weights, self.frequencies, self.bandwidths)
        )
        rest = [self.factor(d, x1[..., d], x2[..., d])[..., None, :, :] for d in range(1, self.ard_num_dims)]
        x1, x2 = (x[..., None, :, :1] for x in (x1, x2))
        parts = spectral_covariance(x1, x2, weights, frequencies[..., None], bandwidths[..., None], self.spectrum)
        return math.prod(rest, start=parts)

    def spectral_density(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided density of the spectrum along one input, ``(*b, q, m)``, the others at lag 0."""
        total = self.weights.sum(-1)
        others = total.prod(-1) / total[..., column]
        weights = self.weights[..., column, :] * others[..., None]
        return self._density(frequencies, weights, self.frequencies[..., column, :], self.bandwidths[..., column, :])

    def _of_input(self, d: int) -> tuple[Tensor, Tensor]:
        return self.frequencies[..., d, :, None, None], self.bandwidths[..., d, :, None, None]

    def _assembled(self, terms: list[Tensor]) -> Tensor:
        factors = [torch.einsum("...q,...qnm->...nm", self.weights[..., d, :], term) for d, term in enumerate(terms)]
        return math.prod(factors[1:], start=factors[0])


def _spread(num: int) -> Tensor:
    """Return first frequencies, for inputs one unit apart: up to their Nyquist frequency, none of them 0."""
    return 0.5 * (torch.arange(num) + 0.5) / num


def _check_sizes(num_components: int, ard_num_dims: int) -> None:
    for name, value in (("num_components", num_components), ("ard_num_dims", ard_num_dims)):
        if value < 1:
            raise ProgramError(f"{name}: expected at least 1, got {value!r}. Change the setting {name}=.")


def _check_inputs(x1: Tensor, x2: Tensor, columns: int) -> None:
    require_alike(x1, x2)
    if x1.shape[-1] != columns:
        raise ProgramError(
            f"expected inputs with ard_num_dims={columns} columns, got {x1.shape[-1]}. Make the kernel with "
            f"ard_num_dims={x1.shape[-1]}, or choose columns by active_dims=."
        )
