"""The draws of a mixture as relabelling sees them: one batch axis, named component axes, a way to score them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from probmix.errors import DataError, MethodError
from probmix.relabel_permutations import COMPONENT
from probmix.typing import Dims

__all__ = ["DrawsLike", "MixtureDraws", "Responsibilities", "mixture_draws"]

BLOCK_ROWS = 2**18
"""Pairs (draw, observation) handed to a model at once: 2 MB for each number per pair in float64."""

Responsibilities = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""``responsibilities(x, sites) -> (*b, N, K)``: probability of each component for each observation."""


class DrawsLike(Protocol):
    """What relabelling reads of a posterior made of draws."""

    @property
    def draws(self) -> Mapping[str, Tensor]:
        """Site name -> values of shape ``(chain, draw, ...)``."""

    @property
    def program(self) -> Any:
        """The model or the plain program that was drawn from."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The data; the first is ``x``."""

    @property
    def sample_stats(self) -> Mapping[str, Tensor]:
        """Figures per draw, ``(chain, draw)``; ``"lp"`` is the log joint density."""


@dataclass(frozen=True, eq=False)
class MixtureDraws:
    """Draws with the chains laid end to end.

    Args:
        sites: site name -> values ``(S, ...)`` with ``S = chains * draws``.
        component_dims: names of the axes after the first, of the sites that have a component axis and of no other.
        num_components: length of every component axis.
        program: what was drawn from.
        args: the data; the first is ``x``.
        log_joint: log joint density of each draw, ``(S,)``, where it was recorded.

    >>> sites = {"loc": torch.zeros(8, 2)}
    >>> draws = MixtureDraws(sites, {"loc": ("component",)}, 2, None, (torch.zeros(5),), torch.arange(8.0))
    >>> draws.num_draws, draws.best(), [len(block["loc"]) for block in draws.blocks(block_rows=15)]
    (8, 7, [3, 3, 2])
    """

    sites: Mapping[str, Tensor]
    component_dims: Dims
    num_components: int
    program: Any
    args: tuple[Any, ...]
    log_joint: Tensor | None

    @property
    def num_draws(self) -> int:
        """Number of draws ``S`` over all chains."""
        return next(iter(self.sites.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the draws live."""
        return next(iter(self.sites.values())).device

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[dict[str, Tensor]]:
        """Consecutive draws, at most ``block_rows`` pairs (draw, observation) at a time and at least one draw."""
        size = max(1, block_rows // len(self.args[0]))
        return (
            {name: value[start : start + size] for name, value in self.sites.items()}
            for start in range(0, self.num_draws, size)
        )

    def best(self) -> int | None:
        """Position of the draw of highest log joint density; None where nothing tells it."""
        log_joint = self._log_joint()
        return None if log_joint is None else int(log_joint.nan_to_num(nan=-torch.inf).argmax())

    def _log_joint(self) -> Tensor | None:
        if self.log_joint is not None:
            return self.log_joint
        if self.args and callable(getattr(self.program, "log_joint", None)):
            return torch.cat([self.program.log_joint(self.args[0], block) for block in self.blocks()])
        return None


def mixture_draws(posterior: DrawsLike, dims: Dims | None = None) -> MixtureDraws:
    """Read a posterior made of draws.

    Args:
        posterior: any object with the fields of `DrawsLike`.
        dims: axis names of each site, in place of the program's own.

    Raises:
        MethodError: a posterior without draws; component axes that are not named or not of one length.
        DataError: a draw that is not finite.

    >>> from types import SimpleNamespace
    >>> result = SimpleNamespace(draws={"loc": torch.zeros(4, 10, 3)}, program=None, args=(), sample_stats={})
    >>> draws = mixture_draws(result, {"loc": ("component",)})
    >>> draws.num_draws, draws.num_components
    (40, 3)
    """
    if not hasattr(posterior, "draws"):
        raise MethodError(
            f"expected a posterior made of draws; {type(posterior).__name__} has none. Relabelling matches draws to "
            "each other: a single point has none to match, and a guide has one labelling already. "
            "Use its sites as they are, or relabel the result of an MCMC method."
        )
    sites = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
    component_dims = _component_dims(sites, _find_dims(posterior.program, dims))
    log_joint = posterior.sample_stats.get("lp")
    _check_finite(sites, component_dims)
    return MixtureDraws(
        sites=sites,
        component_dims=component_dims,
        num_components=_num_components(sites, component_dims),
        program=posterior.program,
        args=_rows(posterior),
        log_joint=None if log_joint is None else log_joint.flatten(),
    )


def _rows(posterior: DrawsLike) -> tuple[Any, ...]:
    """The data as the model's functions of sites take them: one table, whatever the program is called with."""
    rows = getattr(posterior.program, "rows", None)
    return posterior.args if rows is None else (rows(*posterior.args),)


def _find_dims(program: Any, dims: Dims | None) -> Dims:
    found = dims if dims is not None else getattr(program, "dims", None)
    if found is None:
        raise MethodError(
            "expected to know which axis of each site is the component; the program has no 'dims'. "
            "Pass dims={'weights': ('component',), 'loc': ('component', 'feature'), ...}, one name for each axis."
        )
    return found


def _component_dims(sites: Mapping[str, Tensor], dims: Dims) -> dict[str, tuple[str, ...]]:
    """Names of the axes of the sites that have a component axis, checked against the shapes."""
    for name, value in sites.items():
        axes = dims.get(name, ())
        if len(axes) != value.ndim - 1:
            raise MethodError(
                f"expected {value.ndim - 1} axis names for site {name!r}, one draw of which has shape "
                f"{tuple(value.shape[1:])}; dims gives {axes}. Name each axis in dims[{name!r}], with 'component' "
                "for the one that relabelling permutes."
            )
    named = {name: tuple(dims[name]) for name in sites if COMPONENT in dims.get(name, ())}
    if not named:
        raise MethodError(
            f"expected a site with an axis called 'component'; dims names it for none of the sites {sorted(sites)}. "
            "Pass dims={'weights': ('component',), ...}."
        )
    return named


def _num_components(sites: Mapping[str, Tensor], component_dims: Dims) -> int:
    found = {
        name: size
        for name, axes in component_dims.items()
        for label, size in zip(axes, sites[name].shape[1:], strict=True)
        if label == COMPONENT
    }
    if len(set(found.values())) > 1:
        raise MethodError(
            f"expected the same number of components in every site; dims and shapes give {found}. Correct dims."
        )
    return next(iter(found.values()))


def _check_finite(sites: Mapping[str, Tensor], component_dims: Dims) -> None:
    for name in component_dims:
        broken = ~sites[name].isfinite().flatten(1).all(1)
        if bool(broken.any()):
            raise DataError(
                f"expected finite draws; {int(broken.sum())} of {len(broken)} draws of site {name!r} are not, the "
                f"first is draw {int(broken.nonzero()[0])} counted with the chains end to end. "
                "Drop those draws, then relabel."
            )
