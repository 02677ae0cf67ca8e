"""Classification by densities: one Gaussian for each class (EDDA), or a mixture for each class (MclustDA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from probmix.covariance import COVARIANCES
from probmix.errors import DataError, ProbmixError, ProgramError
from probmix.inference.em import EM
from probmix.inference.infer import infer
from probmix.models.gaussian_mixture import CovarianceName, GaussianMixture
from probmix.models.mixture import log_normalised
from probmix.posterior import PointPosterior
from probmix.rows import as_rows
from probmix.shrinkage import Shrinkage, shrunk_covariance
from probmix.table import check_row_weights
from probmix.typing import Sites

__all__ = ["ClassMixture", "fit_edda", "fit_mclust_da", "join_classes"]

_MOST_SWEEPS = 200  # of an M-step that has no closed form


@dataclass(frozen=True, eq=False)
class ClassMixture:
    r"""A mixture whose components belong to classes: a classifier and a density at once.

    .. math:: p(c \mid x) \propto \sum_{k \in c} w_k \, N(x \mid \mu_k, \Sigma_k)

    Attributes:
        model: the mixture of all components of all classes.
        sites: its sites; the weights of a class's components sum to the weight of the class.
        component_class: class of each component, ``(K,)``.
        num_classes: C.
        num_parameters: free parameters as fitted, what the covariances share counted once.

    Example:
        >>> from probmix.datasets import load_iris
        >>> iris = load_iris()
        >>> rule = fit_edda(iris.x, iris.target)
        >>> int((rule.labels(iris.x) != iris.target).sum())
        3
    """

    model: GaussianMixture
    sites: Sites
    component_class: Tensor
    num_classes: int
    num_parameters: int

    def log_prob_classes(self, x: Tensor) -> Tensor:
        """Log class weight plus log density of each row in each class, ``(N, D) -> (N, C)``."""
        parts = self.model.log_prob_components(x, self.sites)
        belongs = self.component_class == torch.arange(self.num_classes, device=parts.device)[:, None]
        return torch.where(belongs, parts[:, None, :], -torch.inf).logsumexp(-1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of each class for each row, ``(N, C)``."""
        return self.log_prob_classes(x).softmax(-1)

    def labels(self, x: Tensor) -> Tensor:
        """Class of greatest probability for each row, ``(N,)``."""
        return self.log_prob_classes(x).argmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each row, whatever its class, ``(N,)``: low for rows that are like none of the classes."""
        return self.model.log_prob(x, self.sites)


def fit_edda(
    x: Tensor,
    labels: Tensor,
    *,
    covariance: CovarianceName = "full",
    shrinkage: Shrinkage = "none",
    unbiased: bool = False,
    class_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
    ridge_var: float = 0.0,
) -> ClassMixture:
    r"""Fit one Gaussian to each class, with covariances of one kind (eigenvalue decomposition discriminant analysis).

    ``covariance="tied"`` is linear, ``"full"`` quadratic discriminant analysis, ``"diagonal"`` naive Bayes.

    Args:
        x: the rows, ``(N, D)``.
        labels: class of each row, ``0 .. C - 1``, ``(N,)``; each class has a row.
        covariance: what the covariances share, by any name that `probmix.models.GaussianMixture` takes.
        shrinkage: towards a multiple of the identity, for full and tied; see `probmix.shrinkage`.
        unbiased: divide by the rows less the means (n_c - 1, or n - C for one covariance of all classes) instead of by
            the rows, which is maximum likelihood. Not for covariances that are constrained from class to class.
        class_weights: probability of each class, ``(C,)``; None: its share of the rows.
        row_weights: how many observations each row stands for, ``(N,)``.
        ridge_var: added to every variance, in squared units of the data.

    Raises:
        DataError: labels that are not classes of these rows, or a class without a covariance (too few rows).
        ProgramError: a setting that does not go with this covariance.

    Source:
        Bensmail and Celeux (1996), Regularized Gaussian discriminant analysis through eigenvalue decomposition,
        Journal of the American Statistical Association 91, 1743-1748.

    Example:
        >>> from probmix.datasets import load_iris
        >>> iris = load_iris()
        >>> rule = fit_edda(iris.x, iris.target, covariance="tied")
        >>> rule.probabilities(iris.x[:1]).round(decimals=3)
        tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    x = as_rows(x)
    num_classes = _check_labels(x, labels)
    weights = check_row_weights(row_weights, x)
    share = torch.nn.functional.one_hot(labels.long(), num_classes).to(x)
    share = share if weights is None else share * weights[:, None]
    model = GaussianMixture(num_classes, covariance)
    sites = _settled(model, model.sufficient_statistics(x, share))
    name, axes = next((name, axes) for name, axes in model.dims.items() if name in ("cov", "var"))
    if shrinkage != "none":
        sites[name] = _shrunk(x, labels, sites["loc"], covariance, shrinkage, weights)
    if unbiased:
        sites[name] = sites[name] * _correction(share.sum(0), covariance, axes)
    ridge = torch.eye(x.shape[1]).to(x) if "feature_bis" in axes else 1.0
    sites[name] = sites[name] + ridge_var * ridge
    _require_density(model, sites)
    if class_weights is not None:
        sites["weights"] = _checked_class_weights(class_weights, x, num_classes)
    component_class = torch.arange(num_classes, device=x.device)
    return ClassMixture(model, sites, component_class, num_classes, model.num_parameters(x.shape[1]))


def fit_mclust_da(
    x: Tensor,
    labels: Tensor,
    *,
    num_components: int | Literal["auto"] = "auto",
    covariance: CovarianceName = "full",
    most_components: int = 5,
    method: EM | None = None,
    class_weights: Tensor | None = None,
    seed: int,
) -> ClassMixture:
    r"""Fit a mixture to each class (mixture discriminant analysis, as mclust's MclustDA).

    Args:
        x: the rows, ``(N, D)``.
        labels: class of each row, ``0 .. C - 1``, ``(N,)``.
        num_components: components of each class; ``"auto"`` takes for each class the number of smallest BIC.
        covariance: of the components of one class.
        most_components: the largest number that ``"auto"`` tries.
        method: how to fit; None: ``EM()``, which maximises the posterior under the model's default prior.
        class_weights: probability of each class, ``(C,)``; None: its share of the rows.
        seed: of the starts.

    Raises:
        DataError: labels that are not classes of these rows, or a class that cannot be fitted; it says which.

    Source:
        Fraley and Raftery (2002), Model-based clustering, discriminant analysis, and density estimation, Journal of the
        American Statistical Association 97, 611-631; Fraley and Raftery (2007) for BIC at the posterior mode.

    Example:
        >>> from probmix.datasets import load_iris
        >>> iris = load_iris()
        >>> rule = fit_mclust_da(iris.x, iris.target, num_components=2, covariance="diagonal", seed=0)
        >>> rule.component_class
        tensor([0, 0, 1, 1, 2, 2])
    """
    x = as_rows(x)
    num_classes = _check_labels(x, labels)
    counts = range(1, most_components + 1) if num_components == "auto" else (num_components,)
    method = EM() if method is None else method
    fits = [_best(x[labels == label], label, covariance, counts, method, seed) for label in range(num_classes)]
    share = torch.bincount(labels.long(), minlength=num_classes).to(x) / len(x)
    weights = share if class_weights is None else _checked_class_weights(class_weights, x, num_classes)
    return join_classes([fit[0] for fit in fits], [fit[1] for fit in fits], weights)


def join_classes(
    models: Sequence[GaussianMixture], sites: Sequence[Mapping[str, Tensor]], class_weights: Tensor
) -> ClassMixture:
    """Make one classifier of a mixture for each class.

    Args:
        models: one for each class, all with the same covariance.
        sites: theirs.
        class_weights: probability of each class, ``(C,)``.

    Raises:
        ProgramError: the covariances have different names.

    Example:
        >>> one = {"weights": torch.ones(1), "loc": torch.zeros(1, 1), "var": torch.ones(1)}
        >>> other = {"weights": torch.ones(1), "loc": torch.ones(1, 1), "var": torch.ones(1)}
        >>> rule = join_classes([GaussianMixture(1, "spherical")] * 2, [one, other], torch.tensor([0.5, 0.5]))
        >>> rule.labels(torch.tensor([[0.1], [0.9]]))
        tensor([0, 1])
    """
    names = {model.covariance for model in models}
    if len(names) > 1:
        raise ProgramError(f"models: expected one covariance for all classes, got {sorted(names)}. Fit them alike.")
    numbers = torch.tensor([model.num_components for model in models], device=class_weights.device)
    pairs = zip(sites, models, strict=True)
    parts = [_with_own_spread(part, model) for part, model in pairs]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    component_class = torch.arange(len(models), device=class_weights.device).repeat_interleave(numbers)
    joined["weights"] = joined["weights"] * class_weights[component_class]
    kinds: dict[tuple[str, int], CovarianceName] = {("cov", 3): "full", ("var", 2): "diagonal", ("var", 1): "spherical"}
    spread = "cov" if "cov" in joined else "var"
    model = replace(
        models[0],
        num_components=len(component_class),
        covariance=kinds[spread, joined[spread].ndim],
        component_prior=None,
    )
    size = joined["loc"].shape[1]
    count = len(models) - 1 + sum(part.num_parameters(size) for part in models)
    return ClassMixture(model, joined, component_class, len(models), count)


def _with_own_spread(sites: Mapping[str, Tensor], model: GaussianMixture) -> Sites:
    """Sites in which every component has a spread of its own, and weights that sum to one."""
    name, axes = next((name, axes) for name, axes in model.dims.items() if name in ("cov", "var"))
    spread = sites[name]
    spread = spread if "component" in axes else spread.expand(model.num_components, *spread.shape)
    return {"weights": log_normalised(sites["weights"]).exp(), "loc": sites["loc"], name: spread}


def _check_labels(x: Tensor, labels: Tensor) -> int:
    """Number of classes."""
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"labels: expected one whole number for each of {len(x)} rows, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Number the classes from 0."
        )
    if int(labels.min()) < 0:
        raise DataError(f"labels: expected classes 0, 1, ..., got {int(labels.min())}. Number the classes from 0.")
    count = torch.bincount(labels.long())
    empty = (count == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"labels: expected rows of each class from 0 to {len(count) - 1}, got none of class {empty[0]}. "
            "Number the classes from 0 without gaps."
        )
    return len(count)


def _checked_class_weights(class_weights: Tensor, x: Tensor, num_classes: int) -> Tensor:
    weights = torch.as_tensor(class_weights, dtype=x.dtype, device=x.device)
    if weights.shape != (num_classes,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise DataError(
            f"class_weights: expected {num_classes} numbers of 0 or more, not all 0, got {weights.tolist()}. "
            "They need not sum to one."
        )
    return weights / weights.sum()


def _settled(model: GaussianMixture, statistics: object) -> Sites:
    """Sites of greatest likelihood given the classes; some covariances take several sweeps."""
    sites = model.maximise(statistics, None)
    for _ in range(_MOST_SWEEPS if not model.conjugate else 0):
        before, sites = sites, model.maximise(statistics, None, sites)
        if all(torch.allclose(sites[name], before[name], rtol=1e-10, atol=0) for name in sites):
            break
    return sites


def _shrunk(
    x: Tensor, labels: Tensor, loc: Tensor, covariance: str, shrinkage: Shrinkage, row_weights: Tensor | None
) -> Tensor:
    if covariance not in ("full", "tied") or row_weights is not None:
        raise ProgramError(
            f'shrinkage: expected covariance="full" or "tied" and no row_weights, got covariance={covariance!r}'
            f"{'' if row_weights is None else ' with row_weights'}. Leave one of them out."
        )
    rows = x - loc[labels]
    if covariance == "tied":
        return shrunk_covariance(rows, shrinkage)
    return torch.stack([shrunk_covariance(rows[labels == label], shrinkage) for label in range(len(loc))])


def _correction(count: Tensor, covariance: str, axes: tuple[str, ...]) -> Tensor:
    """From the spread of greatest likelihood to the unbiased one."""
    if covariance not in COVARIANCES:
        raise ProgramError(
            f"unbiased: expected one of the covariances {', '.join(COVARIANCES)}, got {covariance!r}, whose estimate "
            "is not linear in the rows. Set unbiased=False."
        )
    if "component" in axes:
        factor = count / (count - 1)
        return factor[(...,) + (None,) * (len(axes) - 1)]
    return count.sum() / (count.sum() - len(count))


def _require_density(model: GaussianMixture, sites: Mapping[str, Tensor]) -> None:
    finite = torch.stack([value.isfinite().all() for value in sites.values()]).all()
    singular = model.singular_components(sites).nonzero().flatten().tolist()
    if singular or not finite:
        raise DataError(
            f"expected rows that span all columns in each class, got a singular covariance in class "
            f'{singular[0] if singular else 0}. Use covariance="tied" or "diagonal", shrinkage="oas", or ridge_var.'
        )


def _best(
    rows: Tensor, label: int, covariance: CovarianceName, counts: Sequence[int], method: EM, seed: int
) -> tuple[GaussianMixture, Sites]:
    """The mixture of a class with the smallest BIC."""
    found: list[tuple[float, GaussianMixture, Sites]] = []
    for count in counts:
        model = GaussianMixture(count, covariance)
        try:
            posterior = infer(model, rows, method, seed=seed)
        except ProbmixError as error:
            if found:
                break  # more components than this class can carry
            raise DataError(f"class {label}: {error}") from error
        assert isinstance(posterior, PointPosterior)
        sites = posterior.sites()
        bic = -2 * float(model.log_prob(rows, sites).sum()) + model.num_parameters(rows.shape[1]) * math.log(len(rows))
        found.append((bic, model, sites))
    _, model, sites = min(found, key=lambda fit: fit[0])
    return model, sites
