"""What the data would have said another time: a test for the number of components, and standard errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from probmix.arguments import Arguments
from probmix.errors import FitError, MethodError
from probmix.inference.em import EM
from probmix.inference.em_many import fit_many
from probmix.inference.infer import infer
from probmix.inference.laplace import Laplace
from probmix.inference.method import require
from probmix.isolation import isolated
from probmix.models.mixture import AbstractMixture
from probmix.posterior import PointPosterior
from probmix.relabel import Pivot, relabel
from probmix.typing import Sites

__all__ = ["LikelihoodRatioTest", "likelihood_ratio_test", "sequential_tests", "standard_errors"]

_CHUNK = 2**21  # numbers in the data sets that are drawn and fitted at a time


@dataclass(frozen=True, eq=False)
class LikelihoodRatioTest:
    """A test of k components against k + 1.

    Attributes:
        num_components: k, the hypothesis.
        statistic: twice the gain in log-likelihood of one component more.
        replicates: the same of data sets drawn from the fit with k components, ``(B,)``; those that could not be
            fitted (every start collapsed) are left out.
        dropped: how many were left out.

    Example:
        >>> LikelihoodRatioTest(1, 9.0, torch.tensor([1.0, 4.0, 10.0]), 0).p_value
        0.5
    """

    num_components: int
    statistic: float
    replicates: Tensor
    dropped: int

    @property
    def p_value(self) -> float:
        """Share of the data sets, the observed one among them, whose statistic is at least as large."""
        return (1 + int((self.replicates >= self.statistic).sum())) / (1 + len(self.replicates))

    def __str__(self) -> str:
        """Say the result in one line."""
        k, dropped = self.num_components, f", {self.dropped} more could not be fitted" if self.dropped else ""
        return (
            f"{k} against {k + 1}: statistic {self.statistic:.2f}, p = {self.p_value:.4f} "
            f"({len(self.replicates)} replicates{dropped})"
        )


def likelihood_ratio_test(
    model: AbstractMixture,
    x: Any,
    num_components: int,
    *,
    replicates: int = 999,
    restarts: int = 5,
    max_steps: int = 200,
    tolerance: float = 1e-2,
    seed: int,
    progress: bool = False,
) -> LikelihoodRatioTest:
    r"""Test k components against k + 1 by the parametric bootstrap of the likelihood ratio.

    .. math:: T = 2 \{\log L_{k+1} - \log L_k\}, \qquad
              p = \frac{1 + \#\{T^*_b \ge T\}}{B + 1}

    The usual chi-squared law does not hold for T, because k components lie at the edge of k + 1. So B data sets are
    drawn from the fit with k components, and T is computed from each. Data and replicates go through the same search
    (the same number of starts, steps, tolerance), so that what the search misses it misses in both. All fits run as
    one batch.

    A small p says that k components of this family do not reproduce the data; it does not say that there are k + 1
    groups, for a skewed group asks for two Gaussians too.

    Args:
        model: a mixture; its number of components is replaced.
        x: the data, as `probmix.inference.infer` takes them.
        num_components: k.
        replicates: B; the smallest p that can come out is 1 / (B + 1).
        restarts: starts of every fit.
        max_steps: EM steps of every fit, at most.
        tolerance: largest estimated distance to the optimum, nats.
        seed: of the starts and of the data sets.
        progress: show a progress bar (on a terminal only).

    Raises:
        FitError: the data themselves cannot be fitted, or no replicate can.

    Source:
        McLachlan (1987), On bootstrapping the likelihood ratio test statistic for the number of components in a normal
        mixture, Applied Statistics 36, 318-324.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> test = likelihood_ratio_test(GaussianMixture(1), load_faithful().x, 1, replicates=19, seed=0)
        >>> test.p_value
        0.05
    """
    require(replicates >= 1, "replicates", "at least 1", replicates)
    settings: Any = model  # a dataclass
    one, more = (dataclasses.replace(settings, num_components=num_components + extra) for extra in (0, 1))
    arguments = Arguments.of(x).checked_by(more)
    rows = one.rows(*arguments.args)
    search = {"restarts": restarts, "max_steps": max_steps, "tolerance": tolerance}
    fit = infer(one, arguments, EM(objective="ml"), seed=seed)
    with _isolated(arguments, seed), torch.no_grad():
        statistic = float(_statistics(one, more, rows[None], search)[0])
        if statistic != statistic:  # NaN
            raise FitError(
                f"every start collapsed with {num_components} or {num_components + 1} components, where the likelihood "
                "has no maximum. Use a simpler covariance, fewer components, or more restarts."
            )
        drawn = _data_sets(one, fit.sites(), len(rows), replicates, rows.shape[-1], seed, progress)
        found = torch.cat([_statistics(one, more, some, search) for some in drawn])
    kept = found[~found.isnan()]
    if not len(kept):
        raise FitError(f"none of {replicates} replicates could be fitted. Use a simpler covariance or more restarts.")
    return LikelihoodRatioTest(num_components, statistic, kept, len(found) - len(kept))


def sequential_tests(
    model: AbstractMixture, x: Any, *, max_components: int = 9, level: float = 0.05, seed: int, **settings: Any
) -> pd.DataFrame:
    """Test 1 against 2 components, 2 against 3, and so on, until a test does not reject.

    The k of the last row is the answer. A truth of k components gets past its own test, and so to more than k, with
    probability ``level``, if the tests before it all reject, as they do with data enough.

    Args:
        model: a mixture; its number of components is replaced.
        x: the data.
        max_components: the last hypothesis.
        level: a p-value above it ends the sequence.
        seed: of every test.
        settings: of `likelihood_ratio_test`.

    Returns:
        One row for each test: ``statistic``, ``p_value``, ``replicates``, ``dropped``; its index is k.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> x = load_faithful().x
        >>> sequential_tests(GaussianMixture(1, "tied"), x, max_components=1, replicates=19, seed=0)["p_value"].tolist()
        [0.05]
    """
    rows = []
    for k in range(1, max_components + 1):
        test = likelihood_ratio_test(model, x, k, seed=seed, **settings)
        rows.append((k, test.statistic, test.p_value, len(test.replicates), test.dropped))
        if test.p_value > level:
            break
    names = ["num_components", "statistic", "p_value", "replicates", "dropped"]
    return pd.DataFrame(rows, columns=names).set_index("num_components")


def standard_errors(
    posterior: PointPosterior,
    *,
    method: Literal["bootstrap", "weighted", "laplace"] = "bootstrap",
    replicates: int = 999,
    level: float = 0.95,
    seed: int,
) -> pd.DataFrame:
    r"""Return a standard error and an interval for every parameter of a fit by maximum likelihood.

    - ``"bootstrap"``: rows are drawn with replacement (a multinomial count for each row; Efron 1979);
    - ``"weighted"``: every row gets an exponential weight (Newton and Raftery 1994); no row is ever left out, so that
      a small component is less likely to collapse;
    - ``"laplace"``: draws from the normal approximation of the *posterior* at its mode near the fit (`Laplace`), so the
      model's prior takes part.

    In the first two every replicate is fitted anew, starting from the estimate, all as one batch, and its labels are
    matched to those of the estimate. They hold for the labelled components, and are honest only where those lie apart.

    Args:
        posterior: a fit by ``EM(objective="ml")`` (or any point, for ``"laplace"``).
        method: how.
        replicates: of the bootstrap; draws, for ``"laplace"``.
        level: of the intervals, which reach from one quantile of the replicates to the other.
        seed: of the replicates.

    Returns:
        One row for each parameter: ``estimate``, ``standard_error``, ``low``, ``high``. The attribute
        ``attrs["replicates"]`` says how many replicates could be fitted.

    Raises:
        MethodError: an unknown method, a posterior that is no point, or one not fitted by maximum likelihood.
        FitError: fewer than two replicates could be fitted.

    Source:
        Efron (1979), Bootstrap methods, Annals of Statistics 7, 1-26; Newton and Raftery (1994), Approximate Bayesian
        inference with the weighted likelihood bootstrap, JRSS B 56, 3-48.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), load_faithful().frame(), EM(objective="ml"), seed=0)
        >>> errors = standard_errors(em, seed=0)
        >>> errors.loc["loc[0, waiting]", "estimate"].round(2)  # its standard error: 13.6 / sqrt(272) = 0.82
        np.float64(70.9)
    """
    if method not in ("bootstrap", "weighted", "laplace"):
        raise MethodError(f'method: expected "bootstrap", "weighted" or "laplace", got {method!r}. Pass one of these.')
    if not isinstance(posterior, PointPosterior):
        raise MethodError(
            f"expected the point of EM(), got a {type(posterior).__name__}, whose draws have a spread of their own. "
            "Read it with posterior.to_arviz()."
        )
    if not isinstance(posterior.program, AbstractMixture):
        raise MethodError(
            f"expected a fit of a mixture of probmix.models, got one of {posterior.program!r}. Fit that program by "
            "Laplace() or NUTS() for its spread."
        )
    require(replicates >= 2, "replicates", "at least 2", replicates)
    model = posterior.program
    if method == "laplace":
        return _table(model, posterior, _laplace(posterior, replicates, seed), level)
    return _table(model, posterior, _refits(model, posterior, method, replicates, seed), level)


def _isolated(arguments: Arguments, seed: int) -> Any:
    return isolated(seed, dtype=arguments.dtype, device=arguments.device, threads=arguments.threads())


def _statistics(one: AbstractMixture, more: AbstractMixture, x: Tensor, settings: dict[str, Any]) -> Tensor:
    """Twice the gain of the larger model, which contains the smaller, on each data set, ``(B, N, D) -> (B,)``."""
    small, large = (fit_many(model, x, **settings).log_likelihood for model in (one, more))
    return 2 * (large - small).clamp_min(0.0)


def _data_sets(
    model: AbstractMixture, sites: Sites, rows: int, replicates: int, num_features: int, seed: int, progress: bool
) -> Iterator[Tensor]:
    """Yield data sets from the model, ``(b, rows, features)`` at a time."""
    chunk = max(1, _CHUNK // (rows * num_features * model.num_components))
    firsts = range(0, replicates, chunk)
    bar = tqdm(firsts, desc="likelihood ratio", leave=False, disable=None if progress else True)
    for number, first in enumerate(bar):
        size = min(chunk, replicates - first)
        many = {name: value.expand(size, *value.shape) for name, value in sites.items()}
        x = model.sample(rows, many, seed=seed + number)
        yield x if isinstance(x, Tensor) else x[0]


def _refits(model: AbstractMixture, posterior: PointPosterior, method: str, replicates: int, seed: int) -> Sites:
    """Sites of every replicate, ``(B, ...)``, labels matched."""
    if getattr(posterior.method, "objective", None) != "ml":
        raise MethodError(
            'expected a fit by maximum likelihood, EM(objective="ml"), since every replicate is fitted by that; got '
            f'{posterior.method!r}. Fit it so, or use method="laplace".'
        )
    x = model.rows(*posterior.args)
    with _isolated(posterior.arguments, seed), torch.no_grad():
        given = getattr(posterior.method, "row_weights", None)
        weights = _resampled(x, given, method, replicates)
        fits = fit_many(model, x, sites=posterior.sites(), row_weights=weights, tolerance=1e-4)
    kept = ~fits.log_likelihood.isnan()
    if int(kept.sum()) < 2:
        raise FitError(
            f"{int(kept.sum())} of {replicates} replicates could be fitted: in the others a component collapsed. "
            'Use method="weighted", a simpler covariance or fewer components.'
        )
    return _matched(model, posterior, {name: value[kept] for name, value in fits.sites.items()})


def _resampled(x: Tensor, row_weights: Tensor | None, method: str, replicates: int) -> Tensor:
    """Weights of the rows in each replicate, ``(B, N)``."""
    size = len(x)
    base = x.new_ones(size) if row_weights is None else row_weights.to(x)
    if method == "weighted":
        drawn = torch.empty(replicates, size, dtype=x.dtype, device=x.device).exponential_()
        return base * drawn * (size / drawn.sum(-1, keepdim=True))
    picked = torch.randint(size, (replicates, size), device=x.device)
    return base * torch.zeros_like(picked, dtype=x.dtype).scatter_add_(
        1, picked, torch.ones_like(picked, dtype=x.dtype)
    )


@dataclass(frozen=True, eq=False)
class _Draws:
    """What `relabel` reads."""

    draws: Sites
    program: AbstractMixture
    args: tuple[Any, ...]
    sample_stats: Sites = dataclasses.field(default_factory=dict)


def _matched(model: AbstractMixture, posterior: PointPosterior, draws: Sites) -> Sites:
    if model.num_components == 1:
        return draws
    chain = {name: value[None] for name, value in draws.items()}
    matched = relabel(_Draws(chain, model, posterior.args), Pivot(pivot=posterior.sites()))
    return {name: value[0] for name, value in matched.draws.items()}


def _laplace(posterior: PointPosterior, draws: int, seed: int) -> Sites:
    method = Laplace(init=posterior.sites(), restarts=1)
    found = infer(posterior.program, posterior.arguments, method, seed=seed).sample(draws, seed=seed)
    return {name: found[name] for name in posterior.sites()}


def _table(model: AbstractMixture, posterior: PointPosterior, draws: Sites, level: float) -> pd.DataFrame:
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    rows = {}
    for site, estimate in posterior.sites().items():
        values = draws[site].double().flatten(1).cpu()
        low, high = torch.quantile(values, tails, 0)
        columns = torch.stack([estimate.double().flatten().cpu(), values.std(0), low, high], -1)
        for name, entry in zip(_names(model.dims[site], posterior, site), columns.tolist(), strict=True):
            if name is not None:
                rows[name] = entry
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "standard_error", "low", "high"])
    table.attrs["replicates"] = len(next(iter(draws.values())))
    return table


def _names(axes: tuple[str, ...], posterior: PointPosterior, site: str) -> Iterator[str | None]:
    """Name of every entry of a site; None for the lower triangle of a symmetric matrix."""
    shape, features = posterior.sites()[site].shape, posterior.arguments.feature_names
    named = {i for i, axis in enumerate(axes) if axis.startswith("feature") and features}
    symmetric = [axes.index(axis) for axis in ("feature", "feature_bis") if axis in axes]
    for index in itertools.product(*map(range, shape)):
        mirrored = len(symmetric) == 2 and index[symmetric[0]] > index[symmetric[1]]
        inside = ", ".join(str(features[at]) if i in named and features else str(at) for i, at in enumerate(index))
        yield None if mirrored else f"{site}[{inside}]" if axes else site
