"""Classification by Gaussian processes, such as infinitely wide networks, whose variance is random."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.distributions import biject_to

from probmix.batching import batched
from probmix.dual_activations import ActivationName
from probmix.errors import DataError, MethodError, ProgramError
from probmix.gpytorch_priors import SitePrior, covariance_matrix, prior_sites, sampled, with_values
from probmix.models.scale_mixture_nngp import ScaleMixtureNNGP
from probmix.posterior import AbstractPosterior, GuidePosterior
from probmix.scale_mixture_guide import ScaleMixtureGuide, normal_points
from probmix.typing import Dims, OwnSettings, Sites

__all__ = ["ScaleMixtureClassifier"]

_JITTER = {torch.float64: 1e-8, torch.float32: 1e-5}  # of the mean prior variance at the inducing rows
_POINTS, _FINE_POINTS = 64, 512  # in an integral over the classes of a row: in the program, of a fitted guide
_FIRST_STD = 0.1  # of whitened values: from the prior's own 1 the first steps are mostly noise
_ROWS, _DRAWS = 1000, 500  # in a block of a prediction; of a posterior, for one
_AT_ONCE = 2**22  # numbers in the largest tensor of a prediction


class _Kernel(NamedTuple):
    """A copy of the kernel in the dtype and on the device of the data, and the priors and values of its sites."""

    module: Kernel
    priors: dict[str, SitePrior]
    values: Sites


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleMixtureClassifier:
    r"""Classification by softmax of processes, one for each class, whose common variance is random.

    .. math:: s \sim \mathrm{InverseGamma}(\tfrac\nu2, \tfrac\nu2), \quad f_c \mid s \sim GP(0, s k), \quad
              y_n \sim \mathrm{Categorical}\big(\mathrm{softmax}(f_1(x_n), \dots, f_C(x_n))\big)

    The kernel is that of an infinitely wide network, so that s is the variance of its last layer's weights; or any
    other. Call it with ``(x, y)``: rows x ``(n, d)`` with columns of comparable size, and labels y ``(n,)``, whole
    numbers from 0 to ``num_classes - 1``.

    ``SVI()`` fits the processes' values at inducing rows by a family of the model's own
    (`probmix.scale_mixture_guide.ScaleMixtureGuide`): s inverse gamma, the values given s normal with a covariance
    proportional to s. There s is integrated out in closed form, from the divergence and from the law of the processes
    at any row, which is Student-t; of the true posterior, which has no closed form, this maximises a lower bound. The
    kernel's hyperparameters and the inducing rows maximise the same bound, plus the log prior density of the former:
    type-II maximum likelihood. The fit has them in ``fit.guide`` and ``fit.program.inducing``.

    As a program, for ``MAP()``, ``NUTS()`` and every other method, it has the sites ``whitened`` (v, ``(C, M)``,
    standard normal; the values at the inducing rows are :math:`\sqrt s L v`), ``scale_var`` (s, ``(1,)`` or ``(C,)``)
    and one for each prior that is registered in the kernel (``kernel.outputscale``). Given the values at the inducing
    rows, the processes at a row are normal and, as an approximation, independent of those at other rows (a fully
    independent conditional); the likelihood of a label is the mean of the softmax over 64 fixed points of that normal.
    With ``inducing=x`` nothing is approximated.

    A common variance does not make the classifier robust to single wrong labels. Some hundred inducing values that are
    known well say what s is, and predictions are then nearly those of the Gaussian process; what is left is the
    coupling of the classes' spreads far from the data.

    Args:
        num_classes: C, at least 2.
        kernel: a GPyTorch kernel; what has a registered prior is unknown, the rest stays as it is. None: that of
            `probmix.models.ScaleMixtureNNGP` with its priors.
        depth: number of hidden layers of that network.
        activation: its nonlinearity, as for `probmix.nngp.NNGPKernel`.
        df: :math:`\nu`, the degrees of freedom of the process, not fitted: maximum likelihood would drive it to
            infinity. None: Gaussian processes, s = 1.
        shared_scale: one s for all classes; else one for each, as in the authors' code.
        inducing: rows ``(M, d)``, or their number: then the first of each class in turn, or all if there are fewer.
        learn_inducing: let SVI move the inducing rows.
        covariance: of the whitened values of a class given s, in the family for SVI; ``"diagonal"`` takes time and
            memory in proportion to M in place of its square, and is less accurate.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: from a fit, rows or labels that are not as above.

    Source:
        Lee, Yun, Yang and Lee (2022), Scale mixtures of neural network Gaussian processes; Hensman, Matthews and
        Ghahramani (2015), Scalable variational Gaussian process classification.

    Example:
        >>> from probmix.datasets import load_iris
        >>> from probmix.inference import SVI, infer
        >>> iris = load_iris()
        >>> x = (iris.x - iris.x.mean(0)) / iris.x.std(0)
        >>> model = ScaleMixtureClassifier(num_classes=3, depth=1, inducing=15, learn_inducing=False)
        >>> fit = infer(model, (x, iris.target), SVI(learning_rate=0.1, window=25), seed=0)
        >>> predicted = model.predictive(x, fit)
        >>> float((predicted.probs.argmax(-1) == iris.target).double().mean()) > 0.95
        True
    """

    num_classes: int
    kernel: Kernel | None = None
    depth: int = 3
    activation: ActivationName = "relu"
    df: float | None = 4.0
    shared_scale: bool = True
    inducing: int | Tensor = 200
    learn_inducing: bool = True
    covariance: Literal["full", "diagonal"] = "full"

    def __post_init__(self) -> None:
        self._check_settings()
        network = ScaleMixtureNNGP(depth=self.depth, activation=self.activation)
        object.__setattr__(self, "_module", network.kernel_for(1) if self.kernel is None else self.kernel)
        object.__setattr__(self, "_copies", {})

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the program."""
        kernel, inducing = sampled(self._kernel_like(x).module, "kernel"), self.inducing_rows(x, y)
        law = self._scale_law(x)
        scale_var = x.new_ones(1) if law is None else pyro.sample("scale_var", law.to_event(1))
        normal = dist.Normal(x.new_zeros(self.num_classes, len(inducing)), 1.0)
        whitened = pyro.sample("whitened", normal.to_event(2))
        with pyro.plate("row", len(x)):
            log_prob = self._log_prob(kernel, inducing, pyro.subsample(x, event_dim=1), whitened, scale_var)
            pyro.sample("y", dist.Categorical(logits=log_prob), obs=pyro.subsample(y, event_dim=0))

    @property
    def dims(self) -> Dims:
        """Site name -> axis names."""
        return {"scale_var": ("scale",), "whitened": ("class", "inducing")}

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Check the data once, before a fit; labels become whole numbers.

        Raises:
            DataError: not finite, of other shapes, not labels, or with inducing rows of another length.
        """
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not len(x):
            raise DataError(
                f"expected rows x of shape (n, d) and labels y of shape (n,), got {tuple(x.shape)} and "
                f"{tuple(y.shape)}. Flatten images, e.g. x.flatten(1); of one-hot labels take y.argmax(-1)."
            )
        _require_finite("x", x)
        bad = ((y != y.long()) | (y < 0) | (y >= self.num_classes)).nonzero()
        if len(bad):
            raise DataError(
                f"y: expected labels 0 to {self.num_classes - 1}, got {y[bad[0, 0]]} in row {int(bad[0, 0])}. Number "
                "the classes from 0, e.g. by y.unique(return_inverse=True)[1], or change the setting num_classes=."
            )
        if isinstance(self.inducing, Tensor) and self.inducing.shape[1] != x.shape[1]:
            raise DataError(
                f"inducing: expected rows of {x.shape[1]} columns, as x has, got {self.inducing.shape[1]}. Pass rows "
                "such as x[:200], or their number."
            )
        return x, y.long()

    def inducing_rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inducing rows ``(M, d)``: those of the settings, or the first rows of each class in turn."""
        if isinstance(self.inducing, Tensor):
            return self.inducing.to(x)
        belongs = (y[:, None] == torch.arange(self.num_classes, device=y.device)).long()
        place = belongs.cumsum(0).gather(1, y[:, None]).squeeze(1)  # 1 for the first row of its class
        return x[place.argsort(stable=True)[: self.inducing]]

    def predictive(self, x_new: Tensor, fit: AbstractPosterior) -> dist.Categorical:
        """Return the distribution of the labels at new rows, averaged over the posterior: ``probs`` is ``(m, C)``.

        The integral over the processes is a mean over fixed points: 512 of the Student-t of a fitted guide; 64 for each
        of 500 draws from any other posterior.

        Args:
            x_new: rows ``(m, d)``.
            fit: of this model, by any method.

        Raises:
            DataError: rows of another length than those of the fit, or not finite.
        """
        x = fit.args[0]
        x_new = torch.as_tensor(x_new).to(x)
        if x_new.dim() != 2 or x_new.shape[1] != x.shape[1]:
            raise DataError(
                f"x_new: expected rows of shape (m, {x.shape[1]}), as in the fit, got {tuple(x_new.shape)}. Pass the "
                "same columns; a single row is x[None]."
            )
        _require_finite("x_new", x_new)
        with torch.no_grad():
            if isinstance(fit, GuidePosterior) and isinstance(fit.guide, ScaleMixtureGuide):
                blocks = [self._log_prob_of_guide(fit.guide, rows) for rows in x_new.split(_ROWS)]
            else:
                inducing = self.inducing_rows(*fit.args)
                sites = fit.sites() if fit.kind == "point" else fit.sample(_DRAWS, seed=fit.seed)
                blocks = [self._log_prob_of_draws(sites, inducing, rows) for rows in x_new.split(_ROWS)]
        return dist.Categorical(logits=torch.cat(blocks))

    # What SVI asks for.

    def svi_settings(self, num_rows: int) -> OwnSettings:
        """Return the defaults: ten draws, in pairs."""
        return OwnSettings()

    def first_parameters(self, x: Tensor, y: Tensor) -> Sites:
        """Return unconstrained parameters to start from: q(s) is the prior, the kernel as it is."""
        kernel, inducing = self._kernel_like(x), self.inducing_rows(x, y)
        zeros = x.new_zeros(self.num_classes, len(inducing))
        log_std = zeros + math.log(_FIRST_STD)
        parameters = {
            "inducing": inducing,
            "loc": zeros,
            "tril": log_std if self.covariance == "diagonal" else torch.diag_embed(log_std),
            **{name: biject_to(prior.support).inv(kernel.values[name]) for name, prior in kernel.priors.items()},
        }
        law = self._scale_law(x)
        if law is not None:
            parameters |= {"log_concentration": law.concentration.log(), "log_rate": law.rate.log()}
        return parameters

    def guide(self, parameters: Sites, *data: Tensor) -> ScaleMixtureGuide:
        """Return the guide that parameters stand for, whatever the data."""
        free, inducing = parameters["tril"], parameters["inducing"]
        if self.covariance == "diagonal":
            tril = free.exp()
        else:
            tril = free.tril(-1) + torch.diag_embed(free.diagonal(dim1=-2, dim2=-1).exp())
        priors = self._kernel_like(inducing).priors
        return ScaleMixtureGuide(
            parameters["loc"],
            tril,
            None if self.df is None else parameters["log_concentration"].exp(),
            None if self.df is None else parameters["log_rate"].exp(),
            inducing if self.learn_inducing else inducing.detach(),
            {name: biject_to(prior.support)(parameters[name]) for name, prior in priors.items()},
        )

    def elbo(self, parameters: Sites, x: Tensor, y: Tensor, *, num_rows: int, num_particles: int) -> Tensor:
        r"""Return independent estimates ``(num_particles / 2,)`` of the bound, from some of the rows.

        .. math:: \frac{N}{n} \sum_n E_q[\log \mathrm{softmax}(f_n)_{y_n}] - \mathrm{KL}(q(u, s) \,\|\, p(u, s))
                  + \log p(\theta)

        Only the normaliser of the softmax is estimated, by pairs of draws of the Student-t on both sides of its centre,
        new ones for each row.
        """
        if num_particles % 2:
            raise MethodError(
                f"num_particles: expected an even number, as draws come in pairs, got {num_particles}. Change the "
                "setting num_particles=."
            )
        guide = self.guide(parameters)
        loc, var = guide.marginals(*self._given_by(guide, x))
        spread = var.sqrt() * guide.draw_units(num_particles // 2, len(x))
        log_normaliser = 0.5 * ((loc + spread).logsumexp(-1) + (loc - spread).logsumexp(-1))
        log_likelihood = (loc.gather(-1, y[:, None]).squeeze(-1) - log_normaliser).sum(-1)
        priors = self._kernel_like(x).priors
        log_prior = sum(prior.log_prob(guide.hyperparameters[name]) for name, prior in priors.items())
        return num_rows / len(x) * log_likelihood - guide.divergence(self._scale_law(x)) + log_prior

    def fitted(self, guide: Any) -> Self:
        """Return the program that a guide is about: with its inducing rows."""
        return replace(self, inducing=guide.inducing) if isinstance(guide, ScaleMixtureGuide) else self

    # The rest.

    def _given_by(self, guide: ScaleMixtureGuide, x: Tensor) -> tuple[Tensor, Tensor]:
        kernel = with_values(self._kernel_like(x).module, guide.hyperparameters, "kernel")
        return _given(kernel, guide.inducing, x)

    def _log_prob_of_guide(self, guide: ScaleMixtureGuide, x: Tensor) -> Tensor:
        loc, var = guide.marginals(*self._given_by(guide, x))
        return _log_mean_softmax(loc, var.sqrt(), guide.units(_FINE_POINTS))

    def _log_prob_of_draws(self, sites: Sites, inducing: Tensor, x: Tensor) -> Tensor:
        """Return log probabilities ``(m, C)`` averaged over all leading axes of the sites."""
        kernel = self._kernel_like(x)

        def of_draw(draw: Sites) -> Tensor:
            module = with_values(kernel.module, draw, "kernel")
            return self._log_prob(module, inducing, x, draw["whitened"], draw.get("scale_var", x.new_ones(1)))

        depths = {name: value.dim() for name, value in kernel.values.items()} | {"whitened": 2, "scale_var": 1}
        chunk = max(1, _AT_ONCE // (len(x) * max(len(inducing), _POINTS * self.num_classes)))
        log_prob = batched(of_draw, {name: sites[name] for name in depths if name in sites}, depths=depths, chunk=chunk)
        log_prob = log_prob.reshape(-1, *log_prob.shape[-2:])
        return log_prob.logsumexp(0) - math.log(len(log_prob))

    def _log_prob(self, kernel: Kernel, inducing: Tensor, x: Tensor, whitened: Tensor, scale_var: Tensor) -> Tensor:
        """Return log probabilities of the labels at rows given the values at the inducing ones, ``(n, C)``."""
        root, missing_var = _given(kernel, inducing, x)
        std = scale_var.sqrt()
        points = normal_points(_POINTS, self.num_classes).to(x)
        return _log_mean_softmax(std * (root @ whitened.mT), std * missing_var.sqrt()[:, None], points)

    def _scale_law(self, x: Tensor) -> dist.InverseGamma | None:
        """Return the prior of s, ``(1,)`` or ``(C,)``."""
        if self.df is None:
            return None
        half = x.new_full((1 if self.shared_scale else self.num_classes,), 0.5 * self.df)
        return dist.InverseGamma(half, half)

    def _kernel_like(self, x: Tensor) -> _Kernel:
        """Return the kernel for these data; made once, as vmap could not and as it takes longer than a small matrix."""
        key, copies = (x.dtype, x.device), self.__dict__["_copies"]
        if key not in copies:
            module = copy.deepcopy(self.__dict__["_module"]).to(x).requires_grad_(False)
            sites = prior_sites(module, "kernel")
            priors = {name: site.prior for name, site in sites.items()}
            copies[key] = _Kernel(module, priors, {name: site.value for name, site in sites.items()})
        return copies[key]

    def _check_settings(self) -> None:
        if self.num_classes < 2:
            raise ProgramError(f"num_classes: expected at least 2, got {self.num_classes!r}. Count the labels.")
        if self.df is not None and not 0 < self.df < math.inf:
            raise ProgramError(
                f"df: expected a positive number of degrees of freedom, got {self.df!r}. For Gaussian processes pass "
                "None."
            )
        if not (self.kernel is None or callable(self.kernel)):
            raise ProgramError(f"kernel: expected a GPyTorch kernel, got {self.kernel!r}. None is a network's.")
        if self.covariance not in ("full", "diagonal"):
            raise ProgramError(f'covariance: expected "full" or "diagonal", got {self.covariance!r}.')
        if isinstance(self.inducing, Tensor) and (self.inducing.dim() != 2 or not len(self.inducing)):
            raise ProgramError(
                f"inducing: expected rows of shape (M, d), got {tuple(self.inducing.shape)}. Pass rows such as x[:200]."
            )
        if not isinstance(self.inducing, Tensor) and self.inducing < 1:
            raise ProgramError(f"inducing: expected rows, or their number, at least 1, got {self.inducing!r}.")


def _given(kernel: Kernel, inducing: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\alpha = L^{-1} k_{Zx}`, ``(n, M)``, and the variance that the inducing values leave, ``(n,)``."""
    covariance = covariance_matrix(kernel, inducing)
    jitter = _JITTER[x.dtype] * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    tril = torch.linalg.cholesky(covariance + jitter * torch.eye(len(inducing), dtype=x.dtype, device=x.device))
    root = torch.linalg.solve_triangular(tril, covariance_matrix(kernel, inducing, x), upper=False).mT
    var = covariance_matrix(kernel, x, diagonal=True)
    return root, (var - root.square().sum(-1)).clamp_min(torch.finfo(x.dtype).eps * var)


def _log_mean_softmax(loc: Tensor, std: Tensor, units: Tensor) -> Tensor:
    """Return the log of the mean over points ``(j, C)`` of ``softmax(loc + std * point)``, ``(n, C)``."""
    return (loc + std * units[:, None]).log_softmax(-1).logsumexp(0) - math.log(len(units))


def _require_finite(name: str, x: Tensor) -> None:
    bad = (~x.isfinite()).any(-1).nonzero()
    if len(bad):
        value = x[bad[0, 0]][~x[bad[0, 0]].isfinite()][0]
        raise DataError(
            f"{name}: expected finite numbers, got {value} in row {int(bad[0, 0])}. Drop such rows, or fill them in."
        )
