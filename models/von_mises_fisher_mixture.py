"""Bayesian mixture of directions: a Pyro program and its closed form, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import CountStatistics
from probmix.errors import DataError, ProgramError
from probmix.family import AbstractComponentFamily, gather_component
from probmix.models.mixture import AbstractMixture, log_normalised
from probmix.rows import check_rows
from probmix.von_mises_fisher import VonMisesFisher, concentration_of, draw_directions, log_normaliser

__all__ = ["IsotropicNormal", "VonMisesFisherFamily", "VonMisesFisherMixture"]

# The default prior's typical component has this share of the radius of all rows: far less than is ever resolved.
_SHARE_OF_RADIUS = 0.01


@dataclass(frozen=True, eq=False)
class IsotropicNormal:
    r"""Normal distribution around 0 of the natural parameters, :math:`\eta \sim N(0, v I)`.

    Attributes:
        var: :math:`v`, ``()``, or one for each component ``(K,)``; numbers become tensors.
        num_features: D.

    Example:
        >>> IsotropicNormal(100.0, num_features=3).distribution().event_shape
        torch.Size([3])
    """

    var: Tensor
    num_features: int

    def __post_init__(self) -> None:
        if not isinstance(self.var, Tensor):
            object.__setattr__(self, "var", torch.tensor(float(self.var)))

    def to(self, like: Tensor) -> IsotropicNormal:
        """Return a copy with the dtype and device of ``like``."""
        return IsotropicNormal(self.var.to(like), self.num_features)

    def distribution(self) -> dist.TorchDistribution:
        """Distribution of the site ``natural`` of one component."""
        std = self.var.sqrt()[..., None].expand(*self.var.shape, self.num_features)
        return dist.Normal(torch.zeros_like(std), std, validate_args=False).to_event(1)


@dataclass(frozen=True)
class VonMisesFisherFamily(AbstractComponentFamily[IsotropicNormal, CountStatistics]):
    r"""Unit vectors around a direction, with natural parameters that have a normal prior.

    .. math:: \log f(x \mid \eta) = \eta \cdot x - \log \int e^{\eta \cdot y} dy, \qquad \eta = \kappa \mu

    Source:
        Banerjee, Dhillon, Ghosh and Sra (2005), Clustering on the unit hypersphere using von Mises-Fisher
        distributions, Journal of Machine Learning Research 6, 1345-1382.

    Example:
        >>> family, x = VonMisesFisherFamily(), torch.tensor([[0.6, 0.8], [0.8, 0.6]])
        >>> sites = family.maximise(family.sufficient_statistics(x, torch.ones(2, 1)), None)
        >>> direction, concentration = family.polar(sites)
        >>> direction, concentration.round()
        (tensor([[0.7071, 0.7071]]), tensor([50.]))
    """

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of ``natural``."""
        return {"natural": ("component", "feature")}

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """A direction and a concentration for each component."""
        return num_components * num_features

    def polar(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return directions ``(*b, K, D)`` and concentrations ``(*b, K)``; no direction (zeros) where that is 0."""
        natural = sites["natural"]
        concentration = natural.norm(dim=-1)
        tiny = torch.finfo(natural.dtype).tiny
        return natural / concentration.clamp_min(tiny)[..., None], concentration

    # The prior, and the data that it is for.

    def default_prior(self, x: Tensor, num_components: int) -> IsotropicNormal:
        """Normal whose typical concentration is that of a hundredth of the rows' radius."""
        size = x.shape[-1]
        square_radius = (1 - x.mean(0).square().sum()).clamp_min(torch.finfo(x.dtype).eps)
        typical = (size - 1) / (_SHARE_OF_RADIUS**2 * square_radius)
        return IsotropicNormal(typical.square() / size, size)

    def check(self, x: Tensor, num_components: int, prior: IsotropicNormal | None) -> None:
        """Refuse rows that are not finite, too few or not of length 1.

        Raises:
            DataError: it says which rows.
            ProgramError: an improper prior.
        """
        check_rows(x, num_components, spread=False, independent=False)
        if x.shape[-1] < 2:
            raise DataError("expected directions of 2 columns or more, got 1: for angles pass their cosine and sine")
        length = x.norm(dim=-1)
        wrong = ((length - 1).abs() > 8 * torch.finfo(x.dtype).eps ** 0.5).nonzero().flatten()
        if len(wrong):
            raise DataError(
                f"expected rows of length 1, got {len(wrong)} of {len(x)} others, the first at index {int(wrong[0])} "
                f"(length {float(length[wrong[0]]):g}): normalise them with x / x.norm(dim=-1, keepdim=True), after "
                "dropping rows of zeros"
            )
        if prior is not None and (prior.num_features != x.shape[-1] or not (prior.var > 0).all()):
            raise ProgramError(
                f"component_prior: expected a var above 0 and num_features={x.shape[-1]}, got a smallest var of "
                f"{float(prior.var.min()):g} and num_features={prior.num_features}: change it"
            )

    # The program.

    def draw_parameters(self, prior: IsotropicNormal, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw ``natural``; a row also needs its log normaliser, which is dear and the same for all rows."""
        with pyro.plate("component", num_components):
            natural = pyro.sample("natural", prior.distribution())
        return {"natural": (natural, 1), "log_integral": (log_normaliser(natural), 0)}

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Von Mises-Fisher."""
        return VonMisesFisher(parameters["natural"], parameters.get("log_integral"), validate_args=False)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw directions around that of each assignment."""
        return draw_directions(gather_component(sites["natural"], assignment, 1), generator)

    # The closed form.

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density with respect to the area of the unit sphere, ``(N, D) -> (*b, N, K)``."""
        natural = sites["natural"]
        return x @ natural.mT - log_normaliser(natural)[..., None, :]

    def log_prior(self, sites: Mapping[str, Tensor], prior: IsotropicNormal) -> Tensor:
        """Log density of ``natural``, summed over the components, ``(*b,)``."""
        return prior.distribution().log_prob(sites["natural"]).sum(-1)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> CountStatistics:
        """Counts and sums of the rows, ``(N, D), (*b, N, K) -> CountStatistics``."""
        count = responsibilities.sum(-2)
        return CountStatistics(count, responsibilities.mT @ x, torch.zeros_like(count))

    def maximise(
        self, statistics: CountStatistics, prior: IsotropicNormal | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        r"""Direction of the sum of the rows, and the concentration with :math:`A_D(\kappa) + \kappa / (n v) = R`.

        R is the length of the mean of the n rows. Without a prior a component without data keeps its site; at a start,
        it gets that of all data together.
        """
        count, total, _ = statistics
        if prior is not None:
            return {"natural": _estimate(count, total, 1 / prior.var)}
        none = torch.zeros_like(count[..., :1])
        if sites is None:
            otherwise = _estimate(count.sum(-1, keepdim=True), total.sum(-2, keepdim=True), none)
        else:
            otherwise = sites["natural"]
        return {"natural": torch.where((count > 0)[..., None], _estimate(count, total, none), otherwise)}

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components are a point up to the rounding of unit vectors, ``(*b, K)``."""
        natural = sites["natural"]
        smallest = 64 * torch.finfo(natural.dtype).eps  # of 1 - A, which is (D - 1) / (2 kappa) there
        return ~(natural.norm(dim=-1) < (natural.shape[-1] - 1) / (2 * smallest))


def _estimate(count: Tensor, total: Tensor, precision: Tensor) -> Tensor:
    """Natural parameters that maximise the log density of rows with this sum, under a normal prior, ``(*b, K, D)``."""
    length = total.norm(dim=-1)
    tiny = torch.finfo(total.dtype).tiny
    rows = count.clamp_min(tiny)
    concentration = concentration_of(length / rows, total.shape[-1], precision / rows)
    return total / length.clamp_min(tiny)[..., None] * concentration[..., None]


@dataclass(frozen=True)
class VonMisesFisherMixture(AbstractMixture):
    r"""Bayesian mixture of K von Mises-Fisher distributions on the unit sphere: clusters of directions.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \eta_k \sim N(0, v I), \quad
              p(x_n) \propto \sum_k w_k \frac{e^{\eta_k \cdot x_n}}{\int e^{\eta_k \cdot y} dy}

    An instance is a Pyro program: call it with rows of length 1, ``(N, D)``, D from 2. Its sites, after any leading
    batch ``*b``, are ``weights`` ``(K,)`` and ``natural`` ``(K, D)``, each mean direction times its concentration
    (`directions` and `concentrations` give them apart); ``assignment`` ``(N,)`` is discrete and summed out.

    Under the default prior the root mean square of the concentration, :math:`\sqrt{D v}`, is that of a component of a
    hundredth of the radius of all rows, :math:`10^4 (D - 1) / (1 - \lVert \bar x \rVert^2)`: the prior is flat over
    any component that such data can show. There is no conjugate prior: EM, MAP, SVI and MCMC run, VB and Gibbs do not.

    Args:
        num_components: K.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a prior of the user's own; None: the default above.

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        Banerjee, Dhillon, Ghosh and Sra (2005), Clustering on the unit hypersphere using von Mises-Fisher
        distributions, Journal of Machine Learning Research 6, 1345-1382.

    Example:
        >>> model = VonMisesFisherMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "natural": torch.tensor([[9.0, 0.0], [0.0, 9.0]])}
        >>> model.labels(torch.tensor([[0.8, 0.6], [-0.6, 0.8]]), sites), model.concentrations(sites)
        (tensor([0, 1]), tensor([9., 9.]))
    """

    num_components: int
    weight_concentration: float = 1.0
    component_prior: IsotropicNormal | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        if not isinstance(self.component_prior, IsotropicNormal | None):
            raise ProgramError(
                f"component_prior: expected IsotropicNormal, got {type(self.component_prior).__name__}: build it with "
                "probmix.models.von_mises_fisher_mixture.IsotropicNormal"
            )

    @property
    def family(self) -> VonMisesFisherFamily:
        """The family of the components."""
        return VonMisesFisherFamily()

    def directions(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Mean directions, ``(*b, K, D)``; zeros where the concentration is 0."""
        return self.family.polar(sites)[0]

    def concentrations(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Concentrations, ``(*b, K)``."""
        return self.family.polar(sites)[1]

    def fused_log_joint(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """``log_joint`` by one matrix product; the traced program has a table of rows by components by columns."""
        return self.log_joint(x, sites)

    def predictive(self, sites: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Distribution of one new row, averaged over all leading batch axes of the sites (draws, chains)."""
        weights = log_normalised(sites["weights"]).flatten()
        components = VonMisesFisher(sites["natural"].flatten(0, -2), validate_args=False)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), components)
