"""Any GPyTorch model with priors as a Pyro program: exact or with inducing points, batched, for several tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from gpytorch.likelihoods import (
    FixedNoiseGaussianLikelihood,
    GaussianLikelihood,
    Likelihood,
    MultitaskGaussianLikelihood,
    SoftmaxLikelihood,
)
from gpytorch.likelihoods.likelihood import _OneDimensionalLikelihood
from gpytorch.models import ApproximateGP, ExactGP
from gpytorch.variational import (
    BatchDecoupledVariationalStrategy,
    IndependentMultitaskVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor

from probmix.batching import batched
from probmix.errors import DataError, ProgramError
from probmix.gpytorch_moments import Conditional, conditional, mean_and_covariance
from probmix.gpytorch_observations import observation
from probmix.gpytorch_priors import own_copy, plain, prior_sites, require_priors, sampled, with_values
from probmix.isolation import unvalidated
from probmix.jitter import factor
from probmix.lenient import Lenient
from probmix.pairs import equal_rows, same_kind
from probmix.typing import Sites

__all__ = ["AbstractGPyTorchProgram", "ExactProgram", "VariationalProgram", "gpytorch_program"]

_AT_ONCE = 2**24  # numbers in the largest matrix of a prediction
_ROWS = 1024  # new rows in a block of a prediction
_GAUSSIAN = (GaussianLikelihood, MultitaskGaussianLikelihood, FixedNoiseGaussianLikelihood)


def gpytorch_program(
    model: ExactGP | ApproximateGP,
    likelihood: Likelihood | None = None,
    fixed: Sequence[str] | Literal["all"] = (),
) -> AbstractGPyTorchProgram:
    """Return a program ``(x, y)`` for `probmix.inference.infer`, with a latent site for each registered prior.

    A site is called as what it is about: ``fit.sites()["covar_module.base_kernel.lengthscale"]`` is a value of
    ``model.covar_module.base_kernel.lengthscale``; those of the likelihood begin with ``likelihood``. The program has a
    copy of the model, in the dtype and on the device of the data; the model's own data play no part.

    Args:
        model: what is evaluated is its ``forward(x)``, mean and covariance of the prior process at the rows of x; a
            second input, such as the index of a task, has to be a column of x. An ``ApproximateGP`` needs a
            ``VariationalStrategy``, alone or in an ``IndependentMultitask`` one; of it only the inducing points and
            their jitter count, and they stay where they are.
        likelihood: of an ``ApproximateGP``; an ``ExactGP`` has its own.
        fixed: parameters without a prior (or modules, for all of theirs) that keep the values that they have; ``"all"``
            for all such. What has ``requires_grad`` off is fixed anyway.

    Raises:
        ProgramError: a parameter that has no prior and is not fixed, or a model, strategy or likelihood that is not
            covered.

    Example:
        >>> import gpytorch
        >>> from gpytorch.priors import GammaPrior, NormalPrior
        >>> class Process(gpytorch.models.ExactGP):
        ...     def __init__(self):
        ...         super().__init__(None, None, GaussianLikelihood(noise_prior=GammaPrior(2.0, 4.0)))
        ...         self.mean_module = gpytorch.means.ConstantMean(constant_prior=NormalPrior(0.0, 1.0))
        ...         self.covar_module = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(3.0, 3.0))
        ...
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
        >>> program = gpytorch_program(Process())
        >>> program.shapes
        {'likelihood.noise': (1,), 'mean_module.constant': (), 'covar_module.lengthscale': (1, 1)}
        >>> from probmix.inference import MAP, infer
        >>> x = torch.linspace(-3, 3, 20, dtype=torch.float64)
        >>> fit = infer(program, (x, x.sin()), MAP(), seed=0)
        >>> program.predictive(torch.zeros(1, 1), fit.sites(), x, x.sin()).mean.abs() < 0.01
        tensor([True])
    """
    if not isinstance(model, ExactGP | ApproximateGP):
        raise ProgramError(
            f"expected an ExactGP or an ApproximateGP of GPyTorch, got {type(model).__name__}. A deep process, and "
            "anything else, is a program of its own: write its Pyro statements."
        )
    own: Any = own_copy(model)
    if likelihood is not None:
        own.likelihood = own_copy(likelihood)
    if isinstance(own, ExactGP):
        own.train_inputs, own.train_targets = None, None
    require_priors(own, fixed, exempt="variational_strategy")
    return (ExactProgram if isinstance(own, ExactGP) else VariationalProgram)(own.requires_grad_(False))


class AbstractGPyTorchProgram(ABC):
    """A GPyTorch model as a program; `gpytorch_program` makes it.

    Args:
        model: its own, with the likelihood as a submodule of that name.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._converted: dict[tuple[torch.dtype, torch.device], Any] = {}
        self._check_model()

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the Pyro statements; the observations are the site ``y``."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every latent site."""
        return {name: tuple(site.value.shape) for name, site in prior_sites(self.model).items()}

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and observations in one dtype, checked for what would spoil a fit.

        Args:
            x: rows, ``(n,)``, ``(n, d)`` or, for a batch of data sets, ``(*b, n, d)``.
            y: observations, ``(n,)``, for several tasks ``(n, tasks)``, for a batch of processes ``(*b, n)``.

        Raises:
            DataError: it says what was expected, what came, and what to do.
        """
        x, y = same_kind(x, y)
        x = x.reshape(-1, 1) if x.dim() < 2 else x
        model = self._like(x)
        with plain(), unvalidated(x.dtype, x.device):
            expected = self._observed_shape(model, x)
        y = y.squeeze(-1) if y.shape == (*expected, 1) else y  # a column, as of a data frame
        if y.shape != expected:
            raise DataError(
                f"y: expected the shape {tuple(expected)}, which the model has at the rows of x, of shape "
                f"{tuple(x.shape)}; got {tuple(y.shape)}. Pass one row of y for each row of x, or change the model's "
                "batch_shape or number of tasks."
            )
        with plain(), unvalidated(x.dtype, x.device):
            self._check_observations(model.likelihood, x, y)
        return x, y

    def predictive(
        self, x_new: Tensor, sites: Mapping[str, Tensor], x: Tensor, y: Tensor, *, noise: bool | Tensor = True
    ) -> dist.TorchDistribution:
        """Return the posterior predictive at each of new rows, averaged over draws: a mixture of Gaussian processes.

        Its batch shape is ``(m,)``, for several tasks ``(m, tasks)``, for a batch of processes ``(*b, m)``. With
        Gaussian noise it is a ``MixtureSameFamily`` of normals, one for each draw.

        Args:
            x_new: rows ``(m, d)``.
            sites: values of all latent sites, as from ``fit.sites()`` or ``fit.sample(100, seed=0)``; all leading axes
                are draws.
            x: the rows of the fit.
            y: the observations of the fit.
            noise: whether of observations; False for the function. A likelihood with fixed noise needs the variances at
                the new rows, ``(m,)``.

        Raises:
            DataError: data or new rows of the wrong shape.
            ProgramError: a missing site, a covariance that is not positive definite, or unknown noise.
        """
        x, y = self.observe(x, y)
        x_new = (x_new.reshape(-1, 1) if x_new.dim() < 2 else x_new).to(x)
        if x_new.shape[-1] != x.shape[-1]:
            raise DataError(f"x_new: expected {x.shape[-1]} columns, as x has, got {x_new.shape[-1]}. Pass such rows.")
        draws = self._draws(sites, x)
        count, rows = len(next(iter(draws.values()))), x.shape[-2]
        size = max(1, _AT_ONCE // (rows * (rows + _ROWS)))
        blocks = [{name: v[start : start + size] for name, v in draws.items()} for start in range(0, count, size)]
        with unvalidated(x.dtype, x.device):
            moments = [self._functions(block, x, y, x_new) for block in blocks]
            loc, var = (torch.cat(part) for part in zip(*moments, strict=True))
            return self._averaged(draws, loc, var, noise)

    # -- in which the two kinds differ --------------------------------------------------------------------------------

    @abstractmethod
    def _check_model(self) -> None:
        """Refuse what is not covered."""

    @abstractmethod
    def _observed_shape(self, model: Any, x: Tensor) -> torch.Size:
        """Return the shape that observations at these rows have."""

    @abstractmethod
    def _check_observations(self, likelihood: Any, x: Tensor, y: Tensor) -> None:
        """Refuse observations that the likelihood cannot be given."""

    @abstractmethod
    def _given(self, model: Any, x: Tensor) -> Tensor:
        """Return the rows on which predictions rest."""

    @abstractmethod
    def _known(self, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of what is known there."""

    @abstractmethod
    def _white(self, draws: Sites, y: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
        """Return what is known, less its mean, divided by the factor of its covariance."""

    @abstractmethod
    def _arranged(self, values: Tensor) -> Tensor:
        """Return values of the function ``(*b, m)`` with axes as the observations have them."""

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _like(self, x: Tensor) -> Any:
        """Return the model in the dtype and on the device of the data; made once, as vmap could not."""
        key = x.dtype, x.device
        if key not in self._converted:
            self._converted[key] = own_copy(self.model).to(device=x.device, dtype=x.dtype)
        return self._converted[key]

    def _draws(self, sites: Mapping[str, Tensor], x: Tensor) -> Sites:
        missing = [name for name in self.shapes if name not in sites]
        if missing:
            raise ProgramError(
                f"expected a value for every latent site; {missing} are missing, got {sorted(sites)}. Pass sites of a "
                "fit of this program."
            )
        return {name: sites[name].to(x).reshape(-1, *shape) for name, shape in self.shapes.items()}

    def _functions(self, draws: Sites, x: Tensor, y: Tensor, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the function at new rows given the data, after an axis of draws."""

        def known(sites: Sites) -> Sites:
            loc, covariance = self._known(with_values(self._like(x), sites), x)
            return {"loc": loc, "covariance": covariance}

        def new(sites: Sites, rows: Tensor) -> Sites:
            model = with_values(self._like(x), sites)
            return conditional(model, self._given(model, x), rows)._asdict()

        parts = self._each(known, draws)
        tril = factor(parts["covariance"], what=f"the model's, at the given {', '.join(draws)}")
        white = self._white(draws, y, parts["loc"], tril)
        moments = [
            Conditional(**self._each(partial(new, rows=rows), draws)).given(tril, white)
            for rows in x_new.split(_ROWS, -2)
        ]
        loc, var = (self._arranged(torch.cat(part, -1)) for part in zip(*moments, strict=True))
        return loc, var

    def _averaged(self, draws: Sites, loc: Tensor, var: Tensor, noise: bool | Tensor) -> dist.TorchDistribution:
        """Return the predictive distribution from moments of the function, ``(draws, *b, m)``."""
        likelihood = self.model.likelihood
        if noise is False or isinstance(likelihood, _GAUSSIAN):
            var = var if noise is False else var + self._noise_var(draws, loc[0], noise)
            normal = dist.Normal(loc.movedim(0, -1), var.movedim(0, -1).sqrt())
            return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros_like(normal.loc)), normal)
        # Axes that the function has and a value of the likelihood has not are put behind that of the draws.
        aligned = {name: v.reshape(len(v), *[1] * (loc.dim() - v.dim()), *v.shape[1:]) for name, v in draws.items()}
        return observation(with_values(self._like(loc), aligned).likelihood, loc, var, averaged=1)

    def _noise_var(self, draws: Sites, loc: Tensor, noise: bool | Tensor) -> Tensor:
        fixed = isinstance(self.model.likelihood, FixedNoiseGaussianLikelihood)
        if fixed != isinstance(noise, Tensor):
            expected = "the variances at the new rows, as the likelihood's own are fixed," if fixed else "True or False"
            raise ProgramError(
                f"noise: expected {expected} for a {type(self.model.likelihood).__name__}, got {type(noise).__name__}. "
                "Pass that, or noise=False for the function."
            )

        def variance(sites: Sites) -> Tensor:
            likelihood = with_values(self._like(loc), sites).likelihood
            fixed_var = noise.to(loc) + likelihood.second_noise if isinstance(noise, Tensor) else None
            return (likelihood(loc).variance if fixed_var is None else fixed_var).expand(loc.shape)

        return self._each(variance, draws)

    def _each(self, function: Callable[[Sites], Any], draws: Sites) -> Any:
        """Run a function of one draw for all of them, as one batch where torch can."""
        depths = {name: len(shape) for name, shape in self.shapes.items()}
        with plain(), Lenient():
            try:
                return batched(function, draws, depths=depths)
            except (RuntimeError, ValueError, NotImplementedError):
                return batched(function, draws, depths=depths, vectorise=False)


class ExactProgram(AbstractGPyTorchProgram):
    r"""Observations of a Gaussian process with Gaussian noise, the function integrated out.

    .. math:: y \sim N(m_\theta(X), K_\theta(X, X) + \Sigma_\theta)

    The log joint is that of GPyTorch's ``ExactMarginalLogLikelihood``, which divides it by n. The covariance is dense,
    and nothing is added to its diagonal.

    Example:
        >>> import gpytorch
        >>> class Process(gpytorch.models.ExactGP):
        ...     def __init__(self):
        ...         super().__init__(None, None, GaussianLikelihood(noise_prior=gpytorch.priors.GammaPrior(2.0, 4.0)))
        ...         self.mean, self.kernel = gpytorch.means.ZeroMean(), gpytorch.kernels.RBFKernel()
        ...
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))
        >>> program = gpytorch_program(Process(), fixed=["kernel"])
        >>> draws = {"likelihood.noise": torch.tensor([[0.5], [1.0]])}
        >>> program.predictive(torch.zeros(1, 1), draws, torch.zeros(1, 1), torch.ones(1)).mean
        tensor([0.5833])
    """

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the Pyro statements; the observations are the site ``y``."""
        model = sampled(self._like(x))
        with plain():
            loc, covariance = self._known(model, x)
        normal = dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance), validate_args=False)
        if self._num_tasks:
            rows = dist.transforms.ReshapeTransform(loc.shape[-1:], y.shape[-2:])
            normal = dist.TransformedDistribution(normal, [rows])
        pyro.sample("y", normal.to_event(y.dim() - len(normal.event_shape)), obs=y)

    @property
    def _num_tasks(self) -> int:
        likelihood = self.model.likelihood
        return likelihood.num_tasks if isinstance(likelihood, MultitaskGaussianLikelihood) else 0

    def _check_model(self) -> None:
        if not isinstance(self.model.likelihood, _GAUSSIAN):
            raise _uncovered(self.model.likelihood, "a likelihood with Gaussian, fixed or multitask noise")

    def _observed_shape(self, model: Any, x: Tensor) -> torch.Size:
        prior = model.forward(x)
        return prior.batch_shape + prior.event_shape

    def _check_observations(self, likelihood: Any, x: Tensor, y: Tensor) -> None:
        if isinstance(likelihood, FixedNoiseGaussianLikelihood):
            count = likelihood.noise_covar.noise.shape[-1]
            if count != x.shape[-2]:
                raise DataError(
                    f"expected one row for each fixed noise variance of the likelihood, {count}, got {x.shape[-2]}. "
                    "Make the likelihood for these rows."
                )
        noisy = (likelihood(y).variance > torch.finfo(y.dtype).tiny).all()
        if not noisy and (twins := equal_rows(x)):
            raise DataError(
                f"expected rows that differ, or noise, got equal rows {twins[0]} and {twins[1]} and a noise variance "
                "of 0, so that the covariance has no inverse. Drop one of them, or give the likelihood noise."
            )

    def _given(self, model: Any, x: Tensor) -> Tensor:
        return x

    def _known(self, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return mean_and_covariance(model.likelihood(model.forward(x)))

    def _white(self, draws: Sites, y: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
        residual = (y.flatten(-2) if self._num_tasks else y) - loc
        return torch.linalg.solve_triangular(tril, residual[..., None], upper=False).squeeze(-1)

    def _arranged(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (-1, self._num_tasks)) if self._num_tasks else values


class VariationalProgram(AbstractGPyTorchProgram):
    r"""A Gaussian process seen through inducing points ``Z``; rows are independent given its values ``u`` there.

    .. math:: u = m(Z) + L v, \quad L L^\top = K_{ZZ}, \quad v \sim N(0, I), \quad
              p(y_n \mid v) = \int p(y_n \mid f) N(f \mid m(x_n) + k_n^\top L^{-\top} v, k_{nn} - |L^{-1} k_n|^2) df

    The site ``inducing`` is ``v``, ``(*b, M)``. This is a model of its own (FITC), not a bound: GPyTorch's
    ``VariationalELBO`` has the logarithm inside the integral, which `probmix.gpytorch_observations` computes. Rows are
    in the plate ``data``, so that ``SVI(batch_size=...)`` works; ``K_ZZ`` has the jitter of the variational strategy.

    Source:
        Snelson and Ghahramani (2006), Sparse Gaussian processes using pseudo-inputs, equations 9 and 10; Hensman,
        Matthews and Ghahramani (2015) for other likelihoods.

    Example:
        >>> import gpytorch
        >>> class Process(gpytorch.models.ApproximateGP):
        ...     def __init__(self, inducing):
        ...         guide = gpytorch.variational.DeltaVariationalDistribution(len(inducing))
        ...         super().__init__(VariationalStrategy(self, inducing, guide))
        ...         self.mean, self.kernel = gpytorch.means.ZeroMean(), gpytorch.kernels.RBFKernel()
        ...
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))
        >>> program = gpytorch_program(Process(torch.zeros(1, 1)), gpytorch.likelihoods.BernoulliLikelihood(), "all")
        >>> x, y = torch.zeros(3, 1), torch.ones(3)
        >>> program.predictive(torch.zeros(1, 1), {"inducing": torch.tensor([[1.0], [-1.0]])}, x, y).mean
        tensor([0.5000])
    """

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the Pyro statements; the observations are the site ``y``."""
        model = sampled(self._like(x))
        with plain():
            _, covariance = self._known(model, x)
            tril = torch.linalg.cholesky(covariance)
        white = pyro.sample("inducing", dist.Normal(torch.zeros(self.shapes["inducing"]).to(x), 1.0).to_event())
        event_dim = int(self._is_multitask)
        with ExitStack() as plates:
            for i, size in enumerate(y.shape[: y.dim() - 1 - event_dim]):
                plates.enter_context(pyro.plate(f"batch_{i}", size, dim=i + event_dim - y.dim()))
            plates.enter_context(pyro.plate("data", x.shape[-2], dim=-1))
            x, y = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=event_dim)
            with plain():
                moments = conditional(model, self._given(model, x), x).given(tril, white)
                observed = observation(model.likelihood, *map(self._arranged, moments))
            pyro.sample("y", observed.to_event(event_dim), obs=y)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every latent site."""
        return {
            **super().shapes,
            "inducing": tuple(_inner(self.model.variational_strategy)._variational_distribution.shape()),
        }

    @property
    def _is_multitask(self) -> bool:
        return isinstance(self.model.variational_strategy, IndependentMultitaskVariationalStrategy)

    def _check_model(self) -> None:
        outer, likelihood = self.model.variational_strategy, getattr(self.model, "likelihood", None)
        if not _is_covered(outer, _inner(outer)):
            raise ProgramError(
                "expected a VariationalStrategy, or an IndependentMultitaskVariationalStrategy over the last batch axis"
                f" of one, got {type(outer).__name__}. It only says where the inducing points are: write one of these."
            )
        tied = isinstance(likelihood, MultitaskGaussianLikelihood) and likelihood.rank > 0
        kinds = (GaussianLikelihood, MultitaskGaussianLikelihood, _OneDimensionalLikelihood)
        if tied or not isinstance(likelihood, kinds):
            raise _uncovered(likelihood, "a likelihood of one observation given one function value")

    def _observed_shape(self, model: Any, x: Tensor) -> torch.Size:
        _, covariance = self._known(model, x)
        batch = torch.broadcast_shapes(covariance.shape[:-2], x.shape[:-2])
        return torch.Size([*batch[:-1], x.shape[-2], batch[-1]] if self._is_multitask else [*batch, x.shape[-2]])

    def _check_observations(self, likelihood: Any, x: Tensor, y: Tensor) -> None:
        outside = ~likelihood(torch.zeros_like(y)).support.check(y)
        if outside.any():
            raise DataError(
                f"y: expected what a {type(likelihood).__name__} can observe, got {int(outside.sum())} of {y.numel()} "
                f"values that it cannot, the first {y[outside][0]:g}. Code two classes as 0 and 1."
            )

    def _given(self, model: Any, x: Tensor) -> Tensor:
        return _inner(model.variational_strategy).inducing_points

    def _known(self, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, covariance = mean_and_covariance(model.forward(self._given(model, x)))
        jitter = _inner(model.variational_strategy).jitter_val
        return loc, covariance + jitter * torch.eye(loc.shape[-1], dtype=x.dtype, device=x.device)

    def _white(self, draws: Sites, y: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
        return draws["inducing"]

    def _arranged(self, values: Tensor) -> Tensor:
        return values.mT if self._is_multitask else values


def _inner(strategy: Any) -> Any:
    """Return the strategy that has the inducing points."""
    return getattr(strategy, "base_variational_strategy", strategy)


def _is_covered(outer: Any, inner: Any) -> bool:
    if not isinstance(inner, VariationalStrategy) or isinstance(inner, BatchDecoupledVariationalStrategy):
        return False
    axes = len(inner._variational_distribution.batch_shape)
    if isinstance(outer, IndependentMultitaskVariationalStrategy):
        return bool(axes) and outer.task_dim % axes == axes - 1
    return outer is inner


def _uncovered(likelihood: Any, expected: str) -> ProgramError:
    if likelihood is None:
        return ProgramError(f"expected {expected}, got none: pass it, gpytorch_program(model, likelihood).")
    remedy = "Write a program of your own for it."
    if isinstance(likelihood, SoftmaxLikelihood):
        remedy = "For several classes use probmix.models.ScaleMixtureClassifier, with df=None for Gaussian processes."
    elif isinstance(likelihood, FixedNoiseGaussianLikelihood):
        remedy = "With inducing points rows come in mini-batches, which fixed noise cannot follow: use an ExactGP."
    elif isinstance(likelihood, MultitaskGaussianLikelihood):
        remedy = "With inducing points tasks have independent noise: set rank=0."
    return ProgramError(f"expected {expected}, got {type(likelihood).__name__}. {remedy}")
