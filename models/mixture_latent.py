"""A mixture of Gaussians as the prior of latent vectors: of generators, decoders and whatever gradients train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated

__all__ = ["Latents", "MixtureLatent", "Separation"]

_MERGED = 1.0  # Mahalanobis distance: even a perfect observer takes 31 % of such a pair's draws for the other's
_WIDE = 4.0  # times the median
_AT_FLOOR = 1.5  # times the least standard deviation: there, more than a third of the variance is the floor


class Latents(NamedTuple):
    """Draws of a mixture.

    Args:
        z: latent vectors, ``(n, d)``.
        component: which component each comes from, ``(n,)``.

    Example:
        >>> MixtureLatent(3, 2).sample(6, seed=0).component.sort().values
        tensor([0, 0, 1, 1, 2, 2])
    """

    z: Tensor
    component: Tensor


class Separation(NamedTuple):
    r"""How far components are from each other, and what has become of them.

    .. math:: D_{jk}^2 = (\mu_j - \mu_k)^\top \big(\tfrac12 (\Sigma_j + \Sigma_k)\big)^{-1} (\mu_j - \mu_k)

    Args:
        distance: Mahalanobis distance D of every pair, ``(K, K)``, infinite on the diagonal.
        nearest: that of each component to its nearest neighbour, ``(K,)``.
        error: share of a pair's draws that the best rule takes for the other's, for the nearest pair:
            :math:`\Phi(-D / 2)`, exact for equal covariances, ``()``.
        least_std: standard deviation of each component along its narrowest axis, ``(K,)``.
        collapsed: components that have shrunk to the floor of the prior along an axis, ``(K,)``.
        wide: components four times as wide along some axis as they are in the middle, ``(K,)``: such a one may be drawn
            over what others have left out.
        merged: components with another nearer than 1, ``(K,)``.

    Example:
        >>> str(MixtureLatent(2, 1, loc=torch.tensor([[-1.0], [1.0]]), component_std=0.5).separation())
        'nearest components 4.0 standard deviations apart (2.3 % of draws on the wrong side); none collapsed'
    """

    distance: Tensor
    nearest: Tensor
    error: Tensor
    least_std: Tensor
    collapsed: Tensor
    wide: Tensor
    merged: Tensor

    def __str__(self) -> str:
        if len(self.nearest) < 2:
            text = "one component"
        else:
            text = (
                f"nearest components {float(self.nearest.min()):.1f} standard deviations apart "
                f"({100 * float(self.error):.1f} % of draws on the wrong side)"
            )
        if bool(self.merged.any()):
            text += f"; {int(self.merged.sum())} have merged: fewer components, or larger loc_range, keep them apart"
        if bool(self.wide.any()):
            text += f"; {int(self.wide.sum())} far wider than the others: drawn over more than one mode, as it seems"
        if bool(self.collapsed.any()):
            return (
                f"{text}; {int(self.collapsed.sum())} collapsed to the floor: their data vary too little, for which a "
                "temperature above 1 or a larger floor_std makes up"
            )
        return f"{text}; none collapsed"


class MixtureLatent(nn.Module):
    r"""A mixture of Gaussians over latent vectors, fixed or learnt together with a network.

    .. math:: k \sim \mathrm{Categorical}(w), \qquad z \mid k \sim N(\mu_k, s \Sigma_k), \qquad
              \Sigma_k = A_k A_k^\top + \epsilon^2 I

    with temperature s = 1 in training. Above 1 draws are more diverse, below it more typical: a dial to turn
    afterwards. Only the covariances are scaled, not the locations.

    Args:
        num_components: K. One component is the usual normal prior.
        dim: d.
        dynamic: learn locations and covariances by the gradient of whatever uses the draws; else they stay.
        covariance: of a component: ``"spherical"``, ``"diagonal"`` or ``"full"``.
        loc: locations ``(K, d)`` to start from. None: low-discrepancy points in ``[-loc_range, loc_range]^d``, always
            the same; of one component, 0. (The paper draws them from the uniform distribution there, which leaves some
            close together: ``loc=c * (2 * torch.rand(K, d) - 1)``.)
        loc_range: c.
        component_std: standard deviation of each component along each axis, to start from. Not the variance, which is
            what the paper's text has under the same letter and its followers' code has not: see `separation`.
        floor_std: :math:`\epsilon`, below which no standard deviation of a component can fall.
        learn_weights: learn the weights too, where a density is trained on (`MixtureVAE`); draws have no gradient by
            their weights. Else they stay equal.
        labels: the class of each component, ``(K,)``, whole numbers from 0; for supervised training.

    Attributes:
        num_classes: number of classes that ``labels`` maps onto; None without labels.

    Raises:
        ProgramError: a setting out of its range, or labels that are not onto 0, 1, ..., their largest.

    Source:
        Ben-Yosef and Weinshall (2018), Gaussian mixture generative adversarial networks for diverse datasets, and the
        unsupervised clustering of images: static and dynamic mixtures, and the temperature.

    Example:
        >>> latent = MixtureLatent(10, 16, dynamic=True)
        >>> draws = latent.sample(100, seed=0, temperature=0.5)
        >>> draws.z.shape, latent.log_prob(draws.z).shape
        (torch.Size([100, 16]), torch.Size([100]))
        >>> bool((latent.responsibilities(draws.z).argmax(-1) == draws.component).all())
        True
    """

    labels: Tensor | None

    def __init__(
        self,
        num_components: int,
        dim: int,
        *,
        dynamic: bool = False,
        covariance: Literal["spherical", "diagonal", "full"] = "spherical",
        loc: Tensor | None = None,
        loc_range: float = 1.0,
        component_std: float = 0.2,
        floor_std: float = 0.01,
        learn_weights: bool = False,
        labels: Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(num_components, dim, covariance, loc_range, component_std, floor_std)
        self.num_components, self.dim = num_components, dim
        self.dynamic, self.covariance, self.learn_weights = dynamic, covariance, learn_weights
        self.floor_std = floor_std
        first = _spread_out(num_components, dim, loc_range) if loc is None else _locations(loc, num_components, dim)
        root = math.sqrt(component_std**2 - floor_std**2)
        shape = {"spherical": (1,), "diagonal": (dim,), "full": (dim, dim)}[covariance]
        roots = root * torch.eye(dim) if covariance == "full" else torch.full(shape, root)
        self.loc = nn.Parameter(first, requires_grad=dynamic)
        self.root = nn.Parameter(roots.to(first).expand(num_components, *shape).clone(), requires_grad=dynamic)
        self.logits = nn.Parameter(torch.zeros(num_components).to(first), requires_grad=learn_weights)
        self.register_buffer("labels", None if labels is None else _onto(labels, num_components))
        self.num_classes = None if labels is None else int(torch.as_tensor(labels).max()) + 1

    @classmethod
    def from_sites(
        cls, sites: Mapping[str, Tensor], *, dynamic: bool = True, added_var: Tensor | None = None, **settings: object
    ) -> Self:
        """Return the mixture with the weights, locations and covariances of a fitted `GaussianMixture`.

        Such as one of the codes that an encoder gives, whose clusters a learnt prior then starts from.

        Args:
            sites: ``weights``, ``loc`` and ``cov`` or ``var``, without leading axes.
            dynamic: as for the class.
            added_var: variances ``(d,)`` to be added to those of all components, such as those of the codes themselves.
            settings: further settings of the class; ``covariance`` is that of the sites.

        Raises:
            ProgramError: the sites are those of another model, or do not tell a variance for each component from one
                for each axis.

        Example:
            >>> from probmix.datasets import load_iris
            >>> from probmix.inference import EM, infer
            >>> from probmix.models import GaussianMixture
            >>> em = infer(GaussianMixture(3), load_iris().x, EM(), seed=0)
            >>> latent = MixtureLatent.from_sites(em.sites(), floor_std=1e-3)
            >>> bool(torch.allclose(latent.weights, em.sites()["weights"]))
            True
        """
        if not {"weights", "loc"} <= set(sites) or not {"cov", "var"} & set(sites):
            raise ProgramError(
                f"sites: expected weights, loc and cov or var of a GaussianMixture, got {sorted(sites)}. "
                "Fit one to the codes, e.g. with covariance='diagonal'."
            )
        loc, var = sites["loc"], _covariances(sites)
        num, dim = loc.shape
        kind = "full" if var.dim() == 3 else "diagonal"
        latent = cls(num, dim, dynamic=dynamic, covariance=kind, loc=loc, **settings)  # type: ignore[arg-type]
        floor_var = latent.floor_std**2
        more = var.new_zeros(dim) if added_var is None else added_var
        with torch.no_grad():
            latent.logits.copy_(sites["weights"].log())
            if kind == "full":
                values, vectors = torch.linalg.eigh(var + torch.diag(more))
                latent.root.copy_(vectors * (values - floor_var).clamp_min(0.1 * floor_var).sqrt()[:, None, :])
            else:
                latent.root.copy_((var + more - floor_var).clamp_min(0.1 * floor_var).sqrt())
        return latent

    # -- the mixture ------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """Weights of the components, ``(K,)``."""
        return self.logits.softmax(-1)

    @property
    def std(self) -> Tensor:
        """Standard deviation of every component along every axis, ``(K, d)``."""
        if self.covariance == "full":
            return (self.root.square().sum(-1) + self.floor_std**2).sqrt()
        return (self.root.square() + self.floor_std**2).sqrt().expand(self.num_components, self.dim)

    @property
    def tril(self) -> Tensor:
        """Cholesky factor of every component's covariance, ``(K, d, d)``."""
        if self.covariance != "full":
            return torch.diag_embed(self.std)
        floor = self.floor_std**2 * torch.eye(self.dim, dtype=self.root.dtype, device=self.root.device)
        return torch.linalg.cholesky_ex(self.root @ self.root.mT + floor).L  # definite: nothing to wait and check for

    def distribution(self, *, temperature: float = 1.0) -> dist.MixtureSameFamily:
        """Return the law of z, components summed out, as a distribution of one vector."""
        weights = dist.Categorical(logits=self.logits)
        factor = math.sqrt(_temperature(temperature))
        if self.covariance == "full":
            return dist.MixtureSameFamily(weights, dist.MultivariateNormal(self.loc, scale_tril=factor * self.tril))
        return dist.MixtureSameFamily(weights, dist.Normal(self.loc, factor * self.std).to_event(1))

    def log_prob_components(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return log weight plus log density of vectors ``(*n, d)`` under every component, ``(*n, K)``."""
        residual, var = z[..., None, :] - self.loc, _temperature(temperature)
        if self.covariance == "full":
            tril = self.tril
            whitened = torch.linalg.solve_triangular(tril, residual[..., None], upper=False).squeeze(-1)
            log_std = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            std = self.std
            whitened, log_std = residual / std, std.log().sum(-1)
        log_normaliser = log_std + 0.5 * self.dim * math.log(2 * math.pi * var)
        return self.logits.log_softmax(-1) - 0.5 * whitened.square().sum(-1) / var - log_normaliser

    def log_prob(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return the log density of vectors ``(*n, d)``, components summed out, ``(*n,)``."""
        return self.log_prob_components(z, temperature=temperature).logsumexp(-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Return the probability of every component given vectors ``(*n, d)``, ``(*n, K)``."""
        return self.log_prob_components(z).softmax(-1)

    def divergence(self, loc: Tensor, std: Tensor) -> Tensor:
        r"""Return the divergence of diagonal normals from every component, ``(*n, K)``, weights aside.

        .. math:: \mathrm{KL}_{nk} = \tfrac12 \big(\mathrm{tr}(\Sigma_k^{-1} S_n) + (m_n - \mu_k)^\top \Sigma_k^{-1}
                  (m_n - \mu_k) - d + \log |\Sigma_k| - \log |S_n|\big)

        Args:
            loc: m, ``(*n, d)``.
            std: square roots of the diagonal of S, ``(*n, d)``.
        """
        residual = loc[..., None, :] - self.loc
        if self.covariance == "full":
            tril = self.tril
            unit = torch.eye(self.dim, dtype=tril.dtype, device=tril.device)
            inverse = torch.linalg.solve_triangular(tril, unit, upper=False)
            quadratic = torch.einsum("kij,...kj->...ki", inverse, residual).square().sum(-1)
            trace = std.square() @ inverse.square().sum(-2).mT
            log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            own = self.std
            precision = own.square().reciprocal()
            quadratic = (residual.square() * precision).sum(-1)
            trace = std.square() @ precision.mT
            log_det = 2 * own.log().sum(-1)
        return 0.5 * (trace + quadratic - self.dim + log_det - 2 * std.log().sum(-1)[..., None])

    # -- draws ------------------------------------------------------------------------------------------------------

    def rsample(self, num: int, *, component: Tensor | None = None, temperature: float = 1.0) -> Latents:
        """Return draws with gradients by locations and covariances, from torch's global generator.

        Components are stratified: each has its share of ``num`` to within one, so that all get a gradient of the same
        quality; which has one more is random. They come in order of their number.

        Args:
            num: n.
            component: of each draw, ``(n,)``; None: by their weights.
            temperature: s.
        """
        if component is None:
            component = self._stratified(num)
        noise = math.sqrt(_temperature(temperature)) * torch.randn(
            num, self.dim, dtype=self.loc.dtype, device=self.loc.device
        )
        if self.covariance == "full":
            spread = torch.einsum("nij,nj->ni", self.tril[component], noise)
        else:
            spread = self.std[component] * noise
        return Latents(self.loc[component] + spread, component)

    def sample(
        self, num: int, *, seed: int, component: int | Tensor | None = None, temperature: float = 1.0
    ) -> Latents:
        """Return draws, without gradients, from a seed.

        Args:
            num: n.
            seed: the same seed gives the same draws.
            component: one for all, or one for each ``(n,)``; None: by their weights, stratified.
            temperature: s, the factor of all covariances.

        Raises:
            DataError: components that there are not, or another number of them than ``num``.
        """
        with isolated(seed, dtype=self.loc.dtype, device=self.loc.device), torch.no_grad():
            if component is None:
                chosen = self._stratified(num)[torch.randperm(num, device=self.loc.device)]
            else:
                chosen = self._chosen(component, num)
            return self.rsample(num, component=chosen, temperature=temperature)

    # -- what has become of it ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def separation(self) -> Separation:
        """Return how far components are apart and whether some have collapsed or merged."""
        cov = self.tril @ self.tril.mT
        pooled = torch.linalg.cholesky(0.5 * (cov[:, None] + cov[None]))
        residual = (self.loc[:, None] - self.loc[None])[..., None]
        distance = torch.linalg.solve_triangular(pooled, residual, upper=False).squeeze(-1).square().sum(-1).sqrt()
        distance = distance + torch.diag(torch.full_like(distance[0], torch.inf))
        nearest = distance.amin(-1)
        least_std, most_std = torch.linalg.eigvalsh(cov)[:, [0, -1]].clamp_min(0).sqrt().unbind(-1)
        return Separation(
            distance,
            nearest,
            error=torch.special.ndtr(-0.5 * nearest.min()),
            least_std=least_std,
            collapsed=least_std < _AT_FLOOR * self.floor_std,
            wide=most_std > _WIDE * most_std.median(),
            merged=nearest < _MERGED,
        )

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        kind = "dynamic" if self.dynamic else "static"
        return f"{self.num_components}, {self.dim}, {kind}, covariance={self.covariance!r}"

    # The rest.

    def _stratified(self, num: int) -> Tensor:
        """Return components ``(num,)``, in order, by systematic resampling of their weights."""
        edges = self.weights.detach().cumsum(-1)
        points = (torch.arange(num, device=edges.device) + torch.rand((), device=edges.device)) / num
        return torch.searchsorted(edges, points.to(edges)).clamp_max(self.num_components - 1)

    def _chosen(self, component: int | Tensor, num: int) -> Tensor:
        chosen = torch.as_tensor(component, device=self.loc.device)
        chosen = chosen.expand(num) if chosen.dim() == 0 else chosen
        if chosen.shape != (num,) or chosen.min() < 0 or chosen.max() >= self.num_components:
            raise DataError(
                f"component: expected one number, or {num}, from 0 to {self.num_components - 1}, got "
                f"{component if isinstance(component, int) else list(chosen.shape)}. Components count from 0."
            )
        return chosen.long()


def _check(
    num_components: int, dim: int, covariance: str, loc_range: float, component_std: float, floor_std: float
) -> None:
    for name, number in (("num_components", num_components), ("dim", dim)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ProgramError(f"{name}: expected a whole number of at least 1, got {number!r}.")
    if covariance not in ("spherical", "diagonal", "full"):
        raise ProgramError(f'covariance: expected "spherical", "diagonal" or "full", got {covariance!r}.')
    if not 0 < loc_range < math.inf:
        raise ProgramError(f"loc_range: expected a positive number, got {loc_range!r}.")
    if not 0 < floor_std < component_std < math.inf:
        raise ProgramError(
            f"component_std: expected a number above floor_std={floor_std!r}, which is positive, got "
            f"{component_std!r}. It is a standard deviation, not a variance."
        )


def _covariances(sites: Mapping[str, Tensor]) -> Tensor:
    """Return the covariances ``(K, d, d)`` or variances ``(K, d)`` of all components, whatever they share."""
    num, dim = sites["loc"].shape
    if "cov" in sites:
        return sites["cov"].expand(num, dim, dim)
    var = sites["var"]
    if var.shape == (num,) == (dim,):
        raise ProgramError(
            f"var: expected shape ({num}, {dim}), as ({num},) may be one for each component or one for each axis. "
            f"Write var[:, None].expand(-1, {dim}) or var.expand({num}, -1)."
        )
    return (var[:, None] if var.shape == (num,) else var).expand(num, dim)


def _temperature(temperature: float) -> float:
    if not 0 <= temperature < math.inf:
        raise DataError(f"temperature: expected a number of at least 0, got {temperature!r}. 1 is that of training.")
    return temperature


def _spread_out(num: int, dim: int, loc_range: float) -> Tensor:
    if num == 1:
        return torch.zeros(1, dim)
    with torch.device("cpu"):
        points = SobolEngine(dim, scramble=True, seed=0).draw(num, dtype=torch.float64)
    return (loc_range * (2 * points - 1)).to(torch.get_default_dtype())


def _locations(loc: Tensor, num: int, dim: int) -> Tensor:
    if tuple(loc.shape) != (num, dim):
        raise ProgramError(f"loc: expected locations of shape {(num, dim)}, got {tuple(loc.shape)}.")
    if not bool(loc.isfinite().all()):
        raise ProgramError("loc: expected finite numbers, got some that are not.")
    return loc.detach().clone()


def _onto(labels: Sequence[int] | Tensor, num: int) -> Tensor:
    found = torch.as_tensor(labels)
    if found.shape != (num,) or found.is_floating_point() or int(found.min()) < 0:
        raise ProgramError(
            f"labels: expected a class, a whole number from 0, for each of {num} components, got {labels!r}."
        )
    counts = torch.bincount(found)
    if missing := [str(label) for label, count in enumerate(counts) if not count]:
        raise ProgramError(
            f"labels: expected a map onto the classes 0 to {len(counts) - 1}, but no component has class "
            f"{', '.join(missing)}. Give every class a component, or number the classes without gaps."
        )
    return found.long().clone()
