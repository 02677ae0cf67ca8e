"""GPyTorch modules in a program: their priors as named sites, and their covariances as plain matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partialmethod
from typing import Any, Literal, NamedTuple, TypeVar, cast
from unittest import mock

import gpytorch
import linear_operator
import pyro
import torch
from gpytorch.kernels import Kernel, SpectralMixtureKernel
from gpytorch.module import RandomModuleMixin
from gpytorch.priors import Prior
from linear_operator.operators import LinearOperator
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

from probmix.errors import ProgramError
from probmix.leading_axes import LeadingAxes

__all__ = [
    "PriorSite",
    "SitePrior",
    "covariance_matrix",
    "own_copy",
    "plain",
    "prior_sites",
    "require_priors",
    "sampled",
    "shallow_copy",
    "with_values",
    "without_prior",
]

Module = TypeVar("Module", bound=nn.Module)

_TRIES = 50  # draws of an entry until one is inside its bounds: with a tenth of the prior inside, one in 200 is not


class PriorSite(NamedTuple):
    """A registered prior as a sample site.

    Args:
        prior: the distribution of the site.
        set: sets a value in the module that was asked, which is to be a copy.
        value: what the module holds now.

    Example:
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
        >>> site = prior_sites(kernel)["lengthscale"]
        >>> site.prior.log_prob(torch.ones(1, 1)), site.value
        (tensor(-1.), tensor([[0.6931]]))
    """

    prior: SitePrior
    set: Callable[[Tensor], None]
    value: Tensor


class SitePrior(TorchDistribution):
    """A GPyTorch prior of all entries of a value, one event, inside the bounds that a constraint sets to them.

    GPyTorch lets prior and constraint disagree: the noise of a ``GaussianLikelihood`` has to exceed 1e-4, whatever its
    prior says. Here the prior is cut off at the bounds; its density is not normalised anew, a constant.

    Args:
        prior: GPyTorch's, of one entry or of the last axes.
        like: a value, for shape, dtype and device.
        bounds: lower and upper.

    Example:
        >>> noise = gpytorch.priors.GammaPrior(2.0, 1.0)
        >>> prior = SitePrior(noise, torch.ones(3), (torch.tensor(0.5), torch.tensor(torch.inf)))
        >>> prior.support.check(torch.tensor([0.4, 1.0, 2.0])), prior.log_prob(torch.ones(3))
        (tensor(False), tensor(-3.))
    """

    arg_constraints = {}  # noqa: RUF012 - torch's API

    def __init__(self, prior: Prior, like: Tensor, bounds: tuple[Tensor, Tensor] | None = None) -> None:
        own = prior.batch_shape + prior.event_shape
        if own.numel() != 1 and own != like.shape[like.dim() - len(own) :]:
            raise ProgramError(
                f"expected a prior of one number or of shape {tuple(like.shape)}, as what it is about, got a "
                f"{type(prior).__name__} of shape {tuple(own)}. Give its parameters that shape."
            )
        self.prior, self._like = prior, like.detach()
        self._entry = prior.support if bounds is None else _inside(prior.support, *bounds)
        super().__init__(event_shape=like.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The prior's support, inside the bounds."""
        return constraints.independent(self._entry, len(self.event_shape) - self._entry.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum over all entries, ``(*b,)``."""
        entries = self.prior.log_prob(value)
        first = value.dim() - len(self.event_shape)
        return entries.sum(tuple(range(first, entries.dim()))) if entries.dim() > first else entries

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, ``(*sample_shape, *event_shape)``."""
        value = self._draw(torch.Size(sample_shape))
        for _ in range(0 if self._entry is self.prior.support else _TRIES):
            value = torch.where(self._entry.check(value), value, self._draw(torch.Size(sample_shape)))
        return value

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        own, shape = self.prior.batch_shape + self.prior.event_shape, self.event_shape
        drawn = self.prior.sample(sample_shape + (shape if own.numel() == 1 else shape[: len(shape) - len(own)]))
        return drawn.reshape(sample_shape + shape).to(self._like)


def _inside(support: Any, low: Tensor, high: Tensor) -> constraints.Constraint:
    """Return the part of a support between two bounds, which may be infinite."""
    own_low, own_high = (
        torch.as_tensor(getattr(support, name, limit)).to(low)
        for name, limit in (("lower_bound", -torch.inf), ("upper_bound", torch.inf))
    )
    if support.event_dim or ((low <= own_low) & (high >= own_high)).all():
        return support
    low, high = torch.maximum(low, own_low), torch.minimum(high, own_high)
    if high.isinf().all():
        return constraints.greater_than(low)
    return constraints.less_than(high) if low.isinf().all() else constraints.interval(low, high)


def prior_sites(module: nn.Module, prefix: str = "") -> dict[str, PriorSite]:
    """Return the priors of a module and its children by the names of what they are about: ``kernel.lengthscale``.

    Args:
        module: a GPyTorch module; with `sampled` and `with_values` a copy of it.
        prefix: put before each name, with a dot.

    Raises:
        ProgramError: a prior without a setting closure, so that no value can be given to what it is about; one with a
            ``transform``, of which GPyTorch takes the density but neither a Jacobian nor draws; two for one thing.

    Example:
        >>> from gpytorch.priors import GammaPrior
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(2.0, 1.0))
        >>> sites = prior_sites(gpytorch.kernels.ScaleKernel(kernel), "kernel")
        >>> list(sites), sites["kernel.base_kernel.lengthscale"].prior.event_shape
        (['kernel.base_kernel.lengthscale'], torch.Size([1, 1]))
    """
    found: dict[str, PriorSite] = {}
    for path, parent in module.named_modules(prefix=prefix):
        for name, (prior, closure, setting_closure) in getattr(parent, "_priors", {}).items():
            if prior is None:
                continue
            _check_prior(f"{path}.{name}".strip("."), prior, setting_closure)
            attribute, site = _site(parent, name, closure, setting_closure)
            about = _NOISE.sub(r"\1", f"{path}.{attribute}".strip("."))
            if about in found:
                raise ProgramError(f"expected one prior for {about!r}, got two. Register one of them only.")
            found[about] = site
    return found


#: A likelihood's ``noise_covar.noise`` is its own attribute ``noise``; likewise ``second_noise``.
_NOISE = re.compile(r"\b(\w*noise)_covar\.noise$")


def _check_prior(name: str, prior: Prior, setting_closure: Any) -> None:
    if setting_closure is None:
        raise ProgramError(
            f"the prior {name!r} has no setting closure, so no value can be given to what it is about. Leave it out of "
            "the constructor, and register one for the parameters themselves: "
            "module.register_prior(name, prior, closure, setting_closure)."
        )
    if getattr(prior, "_transform", None) is not None:
        raise ProgramError(
            f"the prior {name!r} has a transform, for which GPyTorch has no draws. Register a prior without one, with "
            "closures that transform: module.register_prior(name, prior, lambda m: m.lengthscale.log(), "
            "lambda m, value: m._set_lengthscale(value.exp()))."
        )


def _site(parent: Any, name: str, closure: Any, setting_closure: Any) -> tuple[str, PriorSite]:
    """Return the attribute that a prior is about, and its site: found by setting the value on a copy."""
    value, trial = closure(parent).detach(), shallow_copy(parent)
    setting_closure(trial, value)
    plain_name = name.removesuffix("_prior")
    raw = next((parameter for parameter in parent._parameters if parameter not in trial._parameters), plain_name)
    attribute = raw.removeprefix("raw_")
    itself = isinstance(getattr(parent, attribute, None), Tensor) and torch.equal(getattr(parent, attribute), value)
    constraint: Any = parent._modules.get(f"{raw}_constraint") if itself else None
    bounds = (
        (constraint.lower_bound, constraint.upper_bound) if constraint is not None and constraint.enforced else None
    )

    def set_value(new: Tensor) -> None:
        if bounds is not None:  # the prior keeps to them, so the way to the raw parameter and back can be saved
            parent._modules[f"{raw}_constraint"] = free = shallow_copy(constraint)
            free._transform = None
        setting_closure(parent, new)

    prior = SitePrior(parent._modules[name], value, bounds)
    return attribute if itself else plain_name, PriorSite(prior, set_value, value)


def sampled(module: Module, prefix: str = "", priors: Mapping[str, TorchDistribution] | None = None) -> Module:
    """Return a copy of a module whose values come from ``pyro.sample``, one site for each prior.

    The copy shares what has no prior with the original, which stays as it was.

    Args:
        module: a GPyTorch module.
        prefix: put before the name of each site, with a dot.
        priors: distributions by site, in the place of those registered.

    Example:
        >>> from gpytorch.priors import GammaPrior
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(2.0, 1.0))
        >>> with pyro.poutine.condition(data={"lengthscale": torch.full((1, 1), 3.0)}):
        ...     copied = sampled(kernel)
        >>> copied.lengthscale, kernel.lengthscale.detach()
        (tensor([[3.]]), tensor([[0.6931]]))
    """
    copied = shallow_copy(module)
    for name, site in prior_sites(copied, prefix).items():
        site.set(pyro.sample(name, (priors or {}).get(name, site.prior)))
    return copied


def with_values(module: Module, sites: Mapping[str, Tensor], prefix: str = "") -> Module:
    """Return a copy of a module with the values of some sites, which may have any leading batch ``*b``.

    The batch becomes the module's own batch axes, where it has none: a kernel then gives ``(*b, n, m)``.

    Raises:
        ProgramError: a site of one of its priors is missing.

    Example:
        >>> from gpytorch.priors import GammaPrior
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(2.0, 1.0))
        >>> copied = with_values(kernel, {"lengthscale": torch.ones(5, 1, 1)})
        >>> covariance_matrix(copied, torch.zeros(3, 2)).shape
        torch.Size([5, 3, 3])
    """
    copied = shallow_copy(module)
    for name, site in prior_sites(copied, prefix).items():
        if name not in sites:
            raise ProgramError(
                f"expected a value for the site {name!r}, got {sorted(sites)}. Pass sites of a fit of this model."
            )
        with LeadingAxes():
            site.set(sites[name])
    return copied


def without_prior(module: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the parameters that no prior is about: in a program they keep the value that they have.

    Example:
        >>> from gpytorch.priors import GammaPrior
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(2.0, 1.0))
        >>> without_prior(gpytorch.kernels.ScaleKernel(kernel))
        ['raw_outputscale']
    """
    copied = shallow_copy(module)
    for site in prior_sites(copied).values():
        site.set(site.value)
    return [name for name, _ in copied.named_parameters(prefix=prefix)]


def require_priors(module: nn.Module, fixed: Sequence[str] | Literal["all"] = (), *, exempt: str = "") -> None:
    """Refuse a parameter without a prior that nobody has said to be fixed.

    Args:
        module: a GPyTorch module.
        fixed: names of parameters, or of modules for all of theirs; ``"all"`` for all without a prior.
        exempt: name of a module that needs no priors.

    Raises:
        ProgramError: it names them, and says what to do.

    Example:
        >>> require_priors(gpytorch.kernels.RBFKernel(), fixed=["raw_lengthscale"])
    """
    if isinstance(fixed, str) and fixed != "all":
        raise ProgramError(f"fixed: expected names of parameters or 'all', got {fixed!r}. Write fixed=[{fixed!r}].")
    stated = [] if fixed == "all" else list(fixed)
    known = [name for name, _ in (*module.named_parameters(), *module.named_modules()) if name]
    if unknown := [name for name in stated if name not in known]:
        raise ProgramError(f"fixed: expected names of parameters or modules, got {unknown}. There are {known}.")
    learnt = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    free = [name for name in without_prior(module) if name in learnt]
    left = [name for name in free if not any(f"{name}.".startswith(f"{part}.") for part in (*stated, exempt) if part)]
    if not left or fixed == "all":
        return
    spectral = any(isinstance(part, SpectralMixtureKernel) and not part._priors for part in module.modules())
    raise ProgramError(
        f"expected a prior for every parameter, got none for {left}. Pass one to the constructor of its module, as "
        "lengthscale_prior=GammaPrior(3.0, 3.0), or to register_prior; or keep the values that they have: "
        f"fixed={left}, or fixed='all'." + (_SPECTRAL if spectral else "")
    )


_SPECTRAL = (
    " SpectralMixtureKernel drops the priors that its constructor is given. Register them: "
    "kernel.register_prior('mixture_weights_prior', prior, lambda m: m.mixture_weights, "
    "lambda m, value: m._set_mixture_weights(value)), and likewise for mixture_means and mixture_scales."
)


def covariance_matrix(kernel: Kernel, x1: Tensor, x2: Tensor | None = None, *, diagonal: bool = False) -> Tensor:
    """Return a kernel's covariances as a plain tensor, ``(*b, n, m)``, or of pairs of rows, ``(*b, n)``.

    Without GPyTorch's lazy evaluation and with operations that can be traced and batched throughout.

    Example:
        >>> covariance_matrix(gpytorch.kernels.LinearKernel(), torch.ones(1, 4)) > 0
        tensor([[True]])
    """
    if diagonal:  # GPyTorch takes it for a square matrix where batch and rows are as many, unless rows have its axes
        axes = (None,) * (covariance_matrix(kernel, x1[..., :1, :]).dim() - x1.dim())
        x1, x2 = x1[axes], None if x2 is None else x2[axes]
    with plain(), gpytorch.settings.lazily_evaluate_kernels(False):
        matrix = kernel(x1, x1 if diagonal and x2 is None else x2, diag=diagonal)
        return matrix if isinstance(matrix, Tensor) else matrix.to_dense()


@contextmanager
def plain() -> Iterator[None]:
    """Inside, GPyTorch computes with operations that can be traced and batched throughout, and takes leading axes.

    Example:
        >>> lazy = gpytorch.kernels.MultitaskKernel(gpytorch.kernels.RBFKernel(), num_tasks=2)(torch.zeros(3, 1))
        >>> with plain():
        ...     lazy.to_dense().shape
        torch.Size([6, 6])
    """
    with (
        gpytorch.settings.trace_mode(True),
        linear_operator.settings.trace_mode(True),
        gpytorch.settings.debug(False),
        gpytorch.settings.fast_computations(False, False, False),
        mock.patch.object(LinearOperator, "matmul", _matmul),
        mock.patch.object(LinearOperator, "add_low_rank", _add_low_rank),
        LeadingAxes(),
        _Equal(),
    ):
        yield


def _matmul(operator: LinearOperator, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
    """Multiply without the ``autograd.Function`` around it, which vmap refuses."""
    if not isinstance(other, Tensor):
        return _wrapped_matmul(operator, other)
    evaluated = operator.representation_tree()(*operator.representation())
    return evaluated._matmul(other.to(evaluated.dtype))  # a lazy kernel without parameters has no dtype of its own


_wrapped_matmul = LinearOperator.matmul

#: Adds a ``LinearKernel`` to another matrix without a factorisation and an SVD that nobody has asked for.
_add_low_rank = partialmethod(LinearOperator.add_low_rank, generate_roots=False)


class _Equal(TorchFunctionMode):
    """Inside, ``torch.equal`` looks at the values of a whole batch, where vmap and tracing would refuse to look.

    GPyTorch asks it whether two inputs are one set of rows, which is the same for all vectors of a batch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function."""
        if func is not torch.equal:
            return func(*args, **(kwargs or {}))
        with disable_proxy_modes_tracing():
            return torch.equal(*(_unwrapped(tensor) for tensor in args))


def _unwrapped(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def shallow_copy(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """Copy the tree of modules but not its tensors: a deep copy fails inside vmap, and costs more than a kernel.

    Example:
        >>> kernel = gpytorch.kernels.RBFKernel()
        >>> shallow_copy(kernel).raw_lengthscale is kernel.raw_lengthscale
        True
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    copied = memo[id(module)] = object.__new__(type(module))
    # Not copy.copy, in which GPyTorch's kernels would share their dictionary; a child may know its parent.
    copied.__dict__ = {name: memo.get(id(value), value) for name, value in module.__dict__.items()}
    for name in ("_parameters", "_buffers", "_modules"):
        copied.__dict__[name] = dict(module.__dict__[name])
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else shallow_copy(child, memo)
    if isinstance(copied, gpytorch.Module) and not isinstance(copied, RandomModuleMixin):
        copied.__class__ = _taking_tensors(cast(Any, type(module)))  # as GPyTorch does itself, in to_random_module
    return copied


def own_copy(module: Module) -> Module:
    """Return a copy with tensors of its own and without caches, in eval mode.

    Not a deep copy: that fails where a cache holds a graph, and those of ``InducingPointKernel`` share modules with it.

    Example:
        >>> kernel = gpytorch.kernels.RBFKernel()
        >>> own_copy(kernel).double().lengthscale.dtype, kernel.lengthscale.dtype
        (torch.float64, torch.float32)
    """
    copied = shallow_copy(module)
    for part in copied.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copied.train().eval()._apply(torch.clone)  # train() clears the caches


@lru_cache(maxsize=256)
def _taking_tensors(cls: type) -> type:
    """Return the class with GPyTorch's ``initialize`` for tensors that carry a gradient or a batch."""
    return type(cls.__name__, (RandomModuleMixin, cls), {"__module__": cls.__module__})
