"""Stationary kernels of several outputs for GPyTorch, from a matrix of cross-spectra: lagged, phased, correlated."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from gpytorch.priors import Prior
from torch import Tensor, nn

from probmix.errors import DataError, ProgramError
from probmix.kernel_parameters import AbstractKernel, Constrained, log_positive
from probmix.nngp import require_alike
from probmix.spectra import SpectrumName, derivative_orders, spectrum_of, term_derivative
from probmix.spectral_covariance import spectral_covariance

__all__ = ["AbstractOutputKernel", "MultiOutputSpectralMixtureKernel", "SpectralCoregionalizationKernel"]


class AbstractOutputKernel(AbstractKernel):
    r"""A stationary kernel of p outputs: the last column of a row says which output it is of.

    Rows are ``(n, d + 1)``: d inputs, and a whole number from 0 to p - 1. Every output may have rows of its own, any
    number at any inputs. For each pair of outputs

    .. math:: k_{ij}(\tau) = \operatorname{cov}(f_i(x), f_j(x - \tau))
              = \operatorname{Re} \int_0^\infty \sum_q S^q_{ij}(f) \, e^{2 \pi i f \tau} df

    where the matrices :math:`S^q(f)` are Hermitian and positive semi-definite (Cramér).

    Args:
        num_outputs: p, at least 2.
        num_components: q.
        num_inputs: d, number of input columns beside the last.
        rank: of the covariance between outputs of each component, from 1 to p.
        spectrum: ``"gaussian"``, ``"student_t"`` (Matern-5/2 envelopes), or `probmix.spectra.StudentTSpectrum`.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel; the output is the last active column.

    Raises:
        ProgramError: a setting is out of its range.
    """

    frequencies = Constrained("Centre of the spectrum of each component, cycles per unit.")
    bandwidths = Constrained("Scale of the spectrum of each component, cycles per unit.")

    def __init__(
        self, num_outputs: int, num_components: int, num_inputs: int, rank: int, spectrum: SpectrumName, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        least = {"num_outputs": 2, "num_components": 1, "num_inputs": 1, "rank": 1}
        for name, value in zip(least, (num_outputs, num_components, num_inputs, rank), strict=True):
            if value < least[name]:
                raise ProgramError(
                    f"{name}: expected at least {least[name]}, got {value!r}. Change the setting {name}=."
                )
        if rank > num_outputs:
            raise ProgramError(
                f"rank: expected at most num_outputs={num_outputs}, got {rank}. A covariance of {num_outputs} outputs "
                "has no higher rank; change the setting rank=."
            )
        self.num_outputs, self.num_components, self.num_inputs, self.rank = (
            num_outputs,
            num_components,
            num_inputs,
            rank,
        )
        self.spectrum = spectrum_of(spectrum)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, d + 1), (*b, m, d + 1) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        if diag:
            return self._parts(self._pairs(x1, x2, diag=True), [0] * self.num_inputs).sum(-3)[..., 0]
        return self.components(x1, x2).sum(-3)

    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component, ``(*b, q, n, m)``."""
        return self._parts(self._pairs(x1, x2), [0] * self.num_inputs)

    def derivative(self, x1: Tensor, x2: Tensor, by1: Sequence[int] = (), by2: Sequence[int] = ()) -> Tensor:
        r"""Return derivatives of the covariance by its inputs, in closed form, ``(*b, n, m)``.

        .. math:: \frac{\partial^{|a| + |b|} k_{ij}(x - x')}{\partial x_{a_1} \cdots \partial x'_{b_1} \cdots}

        They are the covariances of derivatives of the outputs, and right where inputs coincide.

        Args:
            x1: rows ``(n, d + 1)``.
            x2: rows ``(m, d + 1)``.
            by1: columns of ``x1`` to differentiate by, repeated for higher orders: ``(0, 0)`` is the second derivative.
            by2: columns of ``x2``.

        Raises:
            ProgramError: a column that is not an input; an order that the spectrum has not.
        """
        orders = derivative_orders(by1, by2, self.num_inputs)
        return (-1) ** len(by2) * self._parts(self._pairs(x1, x2), orders).sum(-3)

    @abstractmethod
    def cross_spectrum(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided cross-spectra along one input, the others at lag 0: complex ``(*b, q, p, p, m)``.

        Args:
            frequencies: ``(m,)``, cycles per unit, not negative.
            column: the input.
        """

    def spectral_density(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided density of the spectrum of each output along one input, ``(*b, q, p, m)``."""
        return self.cross_spectrum(frequencies, column).real.diagonal(dim1=-3, dim2=-2).mT

    @abstractmethod
    def _parts(self, pairs: _Pairs, orders: list[int]) -> Tensor:
        """Return a derivative of every component by the lag, of an order for each input, ``(*b, q, n, m)``."""

    def _pairs(self, x1: Tensor, x2: Tensor, *, diag: bool = False) -> _Pairs:
        require_alike(x1, x2)
        if x1.shape[-1] != self.num_inputs + 1:
            raise ProgramError(
                f"expected rows of num_inputs={self.num_inputs} inputs and the output that they are of, "
                f"{self.num_inputs + 1} columns, got {x1.shape[-1]}. Put the output last: torch.cat([x, output], -1), "
                "or choose columns by active_dims=."
            )
        return _Pairs(x1, x2, self.num_outputs, diag)

    def _register_spectra(self, shape: Sequence[int], frequencies: Prior | None, bandwidths: Prior | None) -> None:
        """Make the centres and scales, ``(*b, q, ..., d)``; centres up to the Nyquist frequency of unit spacing."""
        spread = 0.5 * (torch.arange(self.num_components) + 0.5) / self.num_components
        centres = spread.reshape(-1, *[1] * len(shape)).expand(*self.batch_shape, self.num_components, *shape)
        self.register("frequencies", centres.clone(), log_positive(), frequencies)
        self.register("bandwidths", torch.full_like(centres, 0.1), log_positive(), bandwidths)

    def _register_real(self, name: str, value: Tensor, prior: Prior | None) -> None:
        """Make a parameter of any sign, ``(*b, q, ...)``, all components alike."""
        repeated = value.expand(*self.batch_shape, self.num_components, *value.shape)
        self.register_parameter(name, nn.Parameter(repeated.clone()))
        if prior is not None:
            self.register_prior(f"{name}_prior", prior, name)


class SpectralCoregionalizationKernel(AbstractOutputKernel):
    r"""The linear model of coregionalisation: outputs are sums of processes that they share.

    .. math:: k_{ij}(\tau) = \sum_q B^q_{ij} \prod_d g(2 \pi v_{qd} |\tau_d|) \cos(2 \pi \mu_{qd} \tau_d), \qquad
              B^q = A_q A_q^\top + \operatorname{diag}(\kappa_q)

    Components are those of `probmix.spectral.SpectralMixtureKernel`. Outputs are in phase: for lags and phases between
    them see `MultiOutputSpectralMixtureKernel`. The sign of each column of :math:`A_q` is arbitrary.

    Args:
        num_outputs: p, at least 2.
        num_components: q.
        num_inputs: d, number of input columns beside the last.
        rank: r, number of processes of each component that outputs share.
        spectrum: ``"gaussian"``, ``"student_t"`` (Matern-5/2 envelopes), or `probmix.spectra.StudentTSpectrum`.
        covar_factor_prior: of A, one number or ``(q, p, r)``.
        var_prior: of :math:`\kappa`, what each output has of each component for itself, one number or ``(q, p)``.
        frequencies_prior: of :math:`\mu`, one number or ``(q, d)``.
        bandwidths_prior: of v, one number or ``(q, d)``.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel; the output is the last active column.

    Raises:
        ProgramError: a setting is out of its range; rows without an output.
        DataError: an output that is not a whole number from 0 to p - 1.

    Source:
        Alvarez, Rosasco and Lawrence (2012), Kernels for vector-valued functions: a review, section 4.2; the diagonal
        as in ``gpytorch.kernels.IndexKernel``.

    Example:
        >>> kernel = SpectralCoregionalizationKernel(num_outputs=2, num_components=1).requires_grad_(False)
        >>> kernel.var, kernel.covar_factor[:] = 0.5, torch.tensor([[1.0], [-2.0]])
        >>> kernel(torch.tensor([[0.3, 0.0], [0.3, 1.0]])).to_dense()
        tensor([[ 1.5000, -2.0000],
                [-2.0000,  4.5000]])
    """

    var = Constrained("Variance that each output has of each component for itself; its raw parameter is the logarithm.")

    def __init__(
        self,
        num_outputs: int,
        num_components: int = 4,
        num_inputs: int = 1,
        rank: int = 1,
        spectrum: SpectrumName = "gaussian",
        *,
        covar_factor_prior: Prior | None = None,
        var_prior: Prior | None = None,
        frequencies_prior: Prior | None = None,
        bandwidths_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_outputs, num_components, num_inputs, rank, spectrum, **kwargs)
        # Columns that are orthogonal, and not 0 where gradients would be: cosines of ever shorter periods.
        waves = torch.cos(math.pi * (torch.arange(num_outputs)[:, None] + 0.5) * torch.arange(rank) / num_outputs)
        self._register_real("covar_factor", waves / math.sqrt(num_components * rank), covar_factor_prior)
        start = torch.full((*self.batch_shape, num_components, num_outputs), 0.1 / num_components)
        self.register("var", start, log_positive(), var_prior)
        self._register_spectra((num_inputs,), frequencies_prior, bandwidths_prior)

    @property
    def coregionalization(self) -> Tensor:
        """Covariance between outputs of each component, B, ``(*b, q, p, p)``."""
        return self.covar_factor @ self.covar_factor.mT + torch.diag_embed(self.var)

    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component, ``(*b, q, n, m)``."""
        pairs, d = self._pairs(x1, x2), self.num_inputs
        frequencies, bandwidths = self.frequencies[..., None, :], self.bandwidths[..., None, :]
        one, symmetric = torch.ones_like(frequencies[..., 0]), x1 is x2
        rows = x1[..., None, :, :d]
        columns = rows if symmetric else x2[..., None, :, :d]
        parts = spectral_covariance(rows, columns, one, frequencies, bandwidths, self.spectrum, symmetric=symmetric)
        return pairs.of(self.coregionalization) * parts

    def cross_spectrum(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided cross-spectra along one input, ``(*b, q, p, p, m)``, complex, their phases 0."""
        loc, bandwidths = self.frequencies[..., column, None], self.bandwidths[..., column, None]
        sides = [self.spectrum.distribution(side, bandwidths).log_prob(frequencies).exp() for side in (loc, -loc)]
        density = self.coregionalization[..., None] * (sides[0] + sides[1])[..., None, None, :]
        return torch.complex(density, torch.zeros_like(density))

    def _parts(self, pairs: _Pairs, orders: list[int]) -> Tensor:
        parts = pairs.of(self.coregionalization)
        for d, order in enumerate(orders):
            of_input = self.frequencies[..., d, None, None], self.bandwidths[..., d, None, None]
            parts = parts * term_derivative(pairs.lags[..., None, d, :, :], *of_input, self.spectrum, order)
        return parts


class MultiOutputSpectralMixtureKernel(AbstractOutputKernel):
    r"""Outputs that share components with delays and phases, each output with a spectrum of its own or all with one.

    .. math::
        k_{ij}(\tau) &= \sum_q c^q_{ij} \Big[\prod_d g(2 \pi v^q_{ijd} |\tau^q_{ijd}|)\Big] \sum_r a_{iqr} a_{jqr}
            \cos\Big(2 \pi \sum_d \mu^q_{ijd} \tau^q_{ijd} + \phi_{iqr} - \phi_{jqr}\Big), \\
        \tau^q_{ij} &= \tau - \delta_{iq} + \delta_{jq}, \qquad
        \mu_{ij} = \frac{v_i^2 \mu_j + v_j^2 \mu_i}{v_i^2 + v_j^2}, \qquad
        v_{ij}^2 = \frac{2 v_i^2 v_j^2}{v_i^2 + v_j^2}, \\
        c_{ij} &= \prod_d \sqrt{\frac{2 v_i v_j}{v_i^2 + v_j^2}} \,
            \exp\Big(-\frac{(\mu_i - \mu_j)^2}{4 (v_i^2 + v_j^2)}\Big)

    It is the covariance of outputs whose cross-spectra are the geometric means of their spectra, turned by phases:
    :math:`c_{ij}` is the overlap of two normal spectra. An output that follows the first by 3 units has a delay of 3.
    Delays and phases are relative to those of the first output, which has none. Frequencies and bandwidths of the
    outputs are those of output i in component q. A delay of a component with a narrow spectrum is known up to a period,
    and a phase in its place fits almost as well: give delays a prior that says how long they may be, or fix one at 0.

    In the words of the papers: with spectra of their own and rank 1 it is the multi-output spectral mixture (MOSM) of
    Parra and Tobar, whose delays are :math:`\theta_i = -\delta_i` and whose magnitudes are free of the bandwidths here,
    :math:`\operatorname{var} f_i = \sum_{qr} a_{iqr}^2`; with ``shared_spectra`` and delays fixed at 0
    (``kernel.delays.requires_grad_(False)``) the cross-spectral mixture (CSM) of Ulrich et al., of that rank.

    Args:
        num_outputs: p, at least 2.
        num_components: q.
        num_inputs: d, number of input columns beside the last.
        rank: r, number of amplitudes and phases of each output in each component.
        spectrum: ``"gaussian"``; with ``shared_spectra`` also ``"student_t"`` (Matern-5/2 envelopes), or
            `probmix.spectra.StudentTSpectrum`.
        shared_spectra: one frequency and bandwidth of each component for all outputs.
        amplitudes_prior: of a, in units of the outputs, one number or ``(q, p, r)``.
        frequencies_prior: of :math:`\mu`, one number or ``(q, p, d)``; if shared ``(q, 1, d)``.
        bandwidths_prior: of v, one number or ``(q, p, d)``; if shared ``(q, 1, d)``.
        delays_prior: of :math:`\delta`, in units of the inputs, one number or ``(q, p - 1, d)``.
        phases_prior: of :math:`\phi`, radians, one number or ``(q, p - 1, r)``.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel; the output is the last active column.

    Raises:
        ProgramError: a setting is out of its range; rows without an output.
        DataError: an output that is not a whole number from 0 to p - 1.

    Source:
        Parra and Tobar (2017), Spectral mixture kernels for multi-output Gaussian processes, section 3; Ulrich,
        Carlson, Dzirasa and Carin (2015), GP kernels for cross-spectrum analysis, section 3.

    Example:
        >>> kernel = MultiOutputSpectralMixtureKernel(num_outputs=2, num_components=1).requires_grad_(False)
        >>> kernel.delays[:] = 3.0  # the second output is the first, 3 units later
        >>> kernel(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.5, 1.0], [4.0, 1.0]])).to_dense().round(decimals=4)
        tensor([[0.6731, 1.0000]])
    """

    amplitudes = Constrained("Standard deviations; the raw parameter is the logarithm.")

    def __init__(
        self,
        num_outputs: int,
        num_components: int = 4,
        num_inputs: int = 1,
        rank: int = 1,
        spectrum: SpectrumName = "gaussian",
        *,
        shared_spectra: bool = False,
        amplitudes_prior: Prior | None = None,
        frequencies_prior: Prior | None = None,
        bandwidths_prior: Prior | None = None,
        delays_prior: Prior | None = None,
        phases_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_outputs, num_components, num_inputs, rank, spectrum, **kwargs)
        if self.spectrum.df and not shared_spectra:
            raise ProgramError(
                f"spectrum: expected 'gaussian' where outputs have spectra of their own, got {self.spectrum}, of which "
                "two have no geometric mean in closed form. Set shared_spectra=True."
            )
        size = 1 / math.sqrt(num_components * rank)
        amplitudes = torch.full((*self.batch_shape, num_components, num_outputs, rank), size)
        self.register("amplitudes", amplitudes, log_positive(), amplitudes_prior)
        self._register_spectra((1 if shared_spectra else num_outputs, num_inputs), frequencies_prior, bandwidths_prior)
        self._register_real("delays", torch.zeros(num_outputs - 1, num_inputs), delays_prior)
        # Ranks that begin alike would stay so: their phases are those of a discrete Fourier transform.
        turns = torch.arange(1, num_outputs)[:, None] * torch.arange(rank) / rank
        self._register_real("phases", 2 * math.pi * turns, phases_prior)

    def components(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of every component, ``(*b, q, n, m)``."""
        pairs, table = self._pairs(x1, x2), self._table()
        envelope, angle = pairs.lags.new_ones(()), pairs.lags.new_zeros(())
        for d in range(self.num_inputs):
            lag = pairs.lags[..., None, d, :, :] + pairs.of(table.lag[..., d])
            envelope = envelope * self.spectrum.envelope(2 * math.pi * pairs.of(table.bandwidth[..., d]) * lag.abs())
            angle = angle + 2 * math.pi * pairs.of(table.frequency[..., d]) * lag
        return envelope * (pairs.of(table.real) * angle.cos() - pairs.of(table.imaginary) * angle.sin())

    def cross_spectrum(self, frequencies: Tensor, column: int = 0) -> Tensor:
        """Return the one-sided cross-spectra along one input, the others at lag 0: complex ``(*b, q, p, p, m)``."""
        table = self._table()
        cross = torch.complex(table.real, table.imaginary)
        for d in range(self.num_inputs):
            if d != column:
                lag, angular = table.lag[..., d], 2 * math.pi * table.frequency[..., d]
                envelope = self.spectrum.envelope(2 * math.pi * table.bandwidth[..., d] * lag.abs())
                cross = cross * torch.polar(envelope.expand_as(lag), angular * lag)
        loc, bandwidth, lag = (t[..., column, None] for t in (table.frequency, table.bandwidth, table.lag))
        sides = [self.spectrum.distribution(side, bandwidth).log_prob(frequencies).exp() for side in (loc, -loc)]
        angle = 2 * math.pi * frequencies * lag
        return torch.polar(torch.ones_like(angle), angle) * (
            cross[..., None] * sides[0] + cross.conj()[..., None] * sides[1]
        )

    def _parts(self, pairs: _Pairs, orders: list[int]) -> Tensor:
        table, quarter = self._table(), pairs.lags.new_full((), -math.pi / 2)
        real, imaginary = pairs.of(table.real), pairs.of(table.imaginary)
        for d, order in enumerate(orders):
            lag = pairs.lags[..., None, d, :, :] + pairs.of(table.lag[..., d])
            shape = pairs.of(table.frequency[..., d]), pairs.of(table.bandwidth[..., d]), self.spectrum, order
            cosine, sine = (term_derivative(lag, *shape, phase) for phase in (None, quarter))
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
        return real

    def _table(self) -> _Table:
        loc, var = self.frequencies, self.bandwidths.square()
        (loc_i, loc_j), (var_i, var_j) = ((t[..., :, None, :], t[..., None, :, :]) for t in (loc, var))
        total = var_i + var_j
        overlap = (2 * (var_i * var_j).sqrt() / total).sqrt() * torch.exp(-(loc_i - loc_j).square() / (4 * total))
        delays, phases = (torch.cat([torch.zeros_like(t[..., :1, :]), t], -2) for t in (self.delays, self.phases))
        real, imaginary = self.amplitudes * phases.cos(), self.amplitudes * phases.sin()
        together = overlap.prod(-1)
        return _Table(
            real=together * (real @ real.mT + imaginary @ imaginary.mT),
            imaginary=together * (imaginary @ real.mT - real @ imaginary.mT),
            lag=delays[..., None, :, :] - delays[..., :, None, :],
            frequency=(var_i * loc_j + var_j * loc_i) / total,
            bandwidth=(2 * var_i * var_j / total).sqrt(),
        )


class _Table(NamedTuple):
    """What each pair of outputs has of each component, ``(*b, q, p, p)``; lags and spectra of each input ``(..., d)``.

    Spectra that all outputs share have one entry for all pairs.
    """

    real: Tensor
    imaginary: Tensor
    lag: Tensor
    frequency: Tensor
    bandwidth: Tensor


class _Pairs:
    """Every row with every other, or each with its own: their lags ``(*b, d, n, m)``, and entries of tables."""

    def __init__(self, x1: Tensor, x2: Tensor, num_outputs: int, diag: bool) -> None:
        self._first, self._second = (_selection(x[..., -1].detach(), num_outputs)[..., None, :, :] for x in (x1, x2))
        self._diag = diag
        first, second = x1[..., :-1].mT[..., None], x2[..., :-1].mT
        self.lags = first - (second[..., None] if diag else second[..., None, :])

    def of(self, table: Tensor) -> Tensor:
        """Return the entry of each pair of rows in a table of pairs of outputs, ``(*b, q, p, p) -> (*b, q, n, m)``."""
        if table.shape[-1] == 1:  # the same for all outputs
            return table
        if self._diag:
            return (self._first @ table * self._second).sum(-1, keepdim=True)
        return self._first @ table @ self._second.mT


# One operation to whoever traces, which looks at its numbers: in a graph it depends on data alone, and runs once.


@torch.library.custom_op("probmix::selection", mutates_args=())
def _selection(index: Tensor, num: int) -> Tensor:
    """Return rows of an identity matrix, ``(*b, n) -> (*b, n, p)``."""
    chosen = index[..., None] == torch.arange(num, device=index.device)
    lost = ~chosen.any(-1)
    if lost.any():
        row = lost.nonzero()[0]
        raise DataError(
            f"expected the last column to hold the output that a row is of, a whole number from 0 to {num - 1}, got "
            f"{float(index[tuple(row)]):g} in row {int(row[-1])}. Number the outputs from 0, or change num_outputs=."
        )
    return chosen.to(index.dtype)


@_selection.register_fake
def _empty_selection(index: Tensor, num: int) -> Tensor:
    return index.new_empty((*index.shape, num))


@_selection.register_vmap
def _selection_batched(info: Any, axes: tuple[int | None, ...], index: Tensor, num: int) -> tuple[Tensor, int]:
    return _selection(index.movedim(axes[0] or 0, 0), num), 0
