"""Relabelling by what the components do to the observations: Stephens' algorithm and a pivot allocation.

Inside, responsibilities lie component by component, ``(S, K, N)``: the cost of every move and the mean of the
relabelled draws are then one matrix product each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.errors import DataError, MethodError
from probmix.relabel_draws import BLOCK_ROWS, MixtureDraws, Responsibilities
from probmix.relabel_permutations import assign, identity

__all__ = ["ECR", "Stephens", "StephensState"]


class StephensState(NamedTuple):
    """What the next step of Stephens' algorithm needs, and the objective it has reached.

    Args:
        permutations: current labels, ``(S, K)``.
        mean: mean of the relabelled responsibilities, ``(K, N)``: the matrix Q of the paper, transposed.
        loss: entropy of ``mean`` summed over observations, nats: the expected divergence but for a constant.

    >>> certain, unsure = torch.eye(2)[None], torch.full((1, 2, 2), 0.5)
    >>> [round(Stephens().init([block]).loss.item(), 3) for block in (certain, unsure)]
    [0.0, 1.386]
    """

    permutations: Tensor
    mean: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Stephens:
    """Match labels so that classification probabilities agree in Kullback-Leibler divergence.

    Alternates the mean ``q`` of the relabelled responsibilities with, for each draw, the permutation of least
    ``sum_i sum_j p_ij log(p_ij / q_ij)`` (Stephens 2000, "Dealing with label switching in mixture models", Journal of
    the Royal Statistical Society B 62, 795-809, Algorithm 2). The average of that loss over draws is the entropy of
    ``q`` less the average entropy of the ``p``; the latter does not see labels, so the former is what falls.

    The algorithm finds a local optimum. It is run from the labels as they came and from the draw of highest log joint
    density (the first draw where no density is known), and the lower loss is kept: never above that of the labels as
    they came. That draw keeps its labels and the others follow.

    Args:
        max_steps: most steps of each of the two runs; a run that it ends warns.
        max_rows: most pairs (draw, observation) whose responsibilities are held in memory; beyond it they are computed
            anew at every step.
        responsibilities: ``(x, sites) -> (*b, N, K)`` in place of the program's own, for plain programs.

    >>> Stephens(max_steps=20).max_steps
    20
    """

    max_steps: int = 100
    max_rows: int = 2**23
    responsibilities: Responsibilities | None = None

    def permutations(self, draws: MixtureDraws) -> Tensor:
        """Labels of every draw, ``(S, K)``; ``MethodError`` where responsibilities cannot be computed."""
        blocks = _Blocks.of(draws, _find_responsibilities(draws, self.responsibilities, "Stephens"), self.max_rows)
        start = self.init(blocks)
        best = draws.best() or 0
        pivot = start._replace(mean=blocks.at(best), loss=start.loss.new_tensor(torch.inf))
        runs = [self.run(blocks, start), self.run(blocks, self.step(blocks, pivot))]
        permutations = min(runs, key=lambda state: float(state.loss)).permutations
        # The loss leaves one permutation of all draws open; rounding would settle it. The best draw does, as in ECR.
        return permutations[:, permutations[best].argsort()]

    def init(self, blocks: Iterable[Tensor]) -> StephensState:
        """Keep the labels as they came. ``blocks`` are responsibilities ``(B, K, N)`` of consecutive draws."""
        pairs = [(block.double().sum(0), identity(block.shape[0], block.shape[1], block.device)) for block in blocks]
        permutations = torch.cat([permutations for _, permutations in pairs])
        return _state(permutations, torch.stack([total for total, _ in pairs]).sum(0))

    def step(self, blocks: Iterable[Tensor], state: StephensState) -> StephensState:
        """Give each draw its best labels for the current mean, then take the mean again."""
        # Where every draw so far says "never" (0), a draw that says otherwise pays a large price, not an infinite one.
        log_mean = state.mean.clamp_min(torch.finfo(state.mean.dtype).tiny).log()
        pairs = [_match(block, log_mean) for block in blocks]
        permutations = torch.cat([permutations for permutations, _ in pairs])
        return _state(permutations, torch.stack([total for _, total in pairs]).sum(0))

    def run(self, blocks: Iterable[Tensor], state: StephensState) -> StephensState:
        """Step until the loss no longer falls."""
        for _ in range(self.max_steps):
            proposal = self.step(blocks, state)
            if not bool(proposal.loss < state.loss):
                return state
            state = proposal
        warnings.warn(
            f"expected Stephens' relabelling to settle; it still improved after max_steps={self.max_steps} (loss "
            f"{float(state.loss):.6g} nats). The labels can be used, but better ones may exist: raise max_steps.",
            stacklevel=5,  # past permutations, _permutations and relabel, to the line that asked for it
        )
        return state


@dataclass(frozen=True, eq=False)
class ECR:
    """Match labels so that as many observations as possible keep the component they have in a pivot allocation.

    ``argmax_perm sum_k sum_i [pivot_i = k and z_i = perm(k)]`` for each draw: equivalence class representatives
    (Papastamoulis and Iliopoulos 2010, "An artificial allocations based solution to the label switching problem in
    Bayesian analysis of mixtures of distributions", Journal of Computational and Graphical Statistics 19, 313-331).
    Here ``z_i`` is the most probable component of observation ``i``, since the draws carry no allocations of their own.

    Args:
        pivot: an allocation, ``(N,)`` whole numbers from 0 to K - 1; by default that of the draw of highest log joint
            density.
        responsibilities: ``(x, sites) -> (*b, N, K)`` in place of the program's own, for plain programs.

    >>> ECR(pivot=torch.tensor([0, 0, 1])).pivot
    tensor([0, 0, 1])
    """

    pivot: Tensor | None = None
    responsibilities: Responsibilities | None = None

    def permutations(self, draws: MixtureDraws) -> Tensor:
        """Labels of every draw, ``(S, K)``; ``MethodError`` without responsibilities or without a pivot."""
        blocks = _Blocks.of(draws, _find_responsibilities(draws, self.responsibilities, "ECR"), max_rows=0)
        pivot = _one_hot(self._find_pivot(draws, blocks), draws.num_components)
        return torch.cat([assign(_disagreement(block, pivot)) for block in blocks])

    def _find_pivot(self, draws: MixtureDraws, blocks: _Blocks) -> Tensor:
        if self.pivot is not None:
            return _check_allocation(self.pivot, len(draws.args[0]), draws.num_components).to(draws.device)
        best = draws.best()
        if best is None:
            raise MethodError(
                "ECR takes its pivot from the draw of highest log joint density; sample_stats has no 'lp' and the "
                "program no 'log_joint'. Pass ECR(pivot=allocation), one component number for each observation."
            )
        return blocks.at(best).argmax(0)


def _state(permutations: Tensor, total: Tensor) -> StephensState:
    """Put the labels together with what follows from the sum ``(K, N)`` of the relabelled responsibilities."""
    mean = total / len(permutations)
    return StephensState(permutations=permutations, mean=mean, loss=torch.special.entr(mean).sum())


def _match(block: Tensor, log_mean: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best labels ``(B, K)`` of a block ``(B, K, N)``, and the sum ``(K, N)`` of the relabelled block."""
    num_draws, num_components, _ = block.shape
    rows = block.flatten(0, 1)
    costs = -(rows @ log_mean.to(block.dtype).T).unflatten(0, (num_draws, num_components)).mT
    permutations = assign(costs)
    moves = _one_hot(permutations, num_components, block.dtype)  # [s, j, k]: component j of draw s goes to slot k
    return permutations, (moves.flatten(0, 1).T @ rows).double()


def _disagreement(block: Tensor, pivot: Tensor) -> Tensor:
    """Count, as costs ``(B, K, K)``, minus the observations of pivot component ``k`` that are in component ``j``."""
    num_components = block.shape[1]
    allocation = _one_hot(block.argmax(1), num_components)
    # Counts are whole numbers, so a bonus of at most 1/2 in total for staying put only breaks ties.
    stay = torch.eye(num_components, dtype=pivot.dtype, device=pivot.device) / (2 * num_components)
    return -(pivot @ allocation.mT) - stay


def _one_hot(labels: Tensor, num_components: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Mark, as zeros and ones ``(..., K, N)``, the labels ``(..., N)``."""
    components = torch.arange(num_components, device=labels.device)
    return (labels.unsqueeze(-2) == components.unsqueeze(-1)).to(dtype)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Responsibilities ``(B, K, N)`` of consecutive draws: held if ``kept`` is there, else computed on every pass."""

    draws: MixtureDraws
    responsibilities: Responsibilities
    kept: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, draws: MixtureDraws, responsibilities: Responsibilities, max_rows: int) -> _Blocks:
        """Hold the responsibilities if all pairs (draw, observation) are at most ``max_rows``."""
        blocks = cls(draws, responsibilities)
        small = draws.num_draws * len(draws.args[0]) <= max_rows
        return cls(draws, responsibilities, tuple(blocks)) if small else blocks

    def __iter__(self) -> Iterator[Tensor]:
        if self.kept is not None:
            return iter(self.kept)
        return (self._compute(sites) for sites in self.draws.blocks(BLOCK_ROWS))

    def at(self, draw: int) -> Tensor:
        """Responsibilities ``(K, N)`` of one draw, float64."""
        sites = {name: value[draw : draw + 1] for name, value in self.draws.sites.items()}
        return self._compute(sites)[0].double()

    def _compute(self, sites: Mapping[str, Tensor]) -> Tensor:
        values = self.responsibilities(self.draws.args[0], sites)
        num_draws = next(iter(sites.values())).shape[0]
        expected = (num_draws, len(self.draws.args[0]), self.draws.num_components)
        if values.shape != expected:
            raise MethodError(
                f"expected responsibilities of shape {expected} (draws, observations, components); got "
                f"{tuple(values.shape)}. Make responsibilities(x, sites) keep the batch axis of the sites."
            )
        if not bool(values.isfinite().all()):
            raise DataError(
                f"expected finite responsibilities; {int((~values.isfinite()).sum())} of {values.numel()} are not. "
                "Compute them with torch.softmax of log weight plus log density, and check x for missing values."
            )
        return values.detach().mT.contiguous()


def _find_responsibilities(draws: MixtureDraws, given: Responsibilities | None, method: str) -> Responsibilities:
    found = given if given is not None else getattr(draws.program, "responsibilities", None)
    if found is None:
        raise MethodError(
            f"{method} needs the responsibilities of the components; the program has no 'responsibilities(x, sites)'. "
            f"Pass {method}(responsibilities=...), or use Pivot() or Order(), which work without."
        )
    if not draws.args:
        raise MethodError(
            f"{method} needs the data x to compute responsibilities; the posterior carries none (args is empty). "
            "Use Pivot() or Order(), which work without."
        )
    return found


def _check_allocation(pivot: Tensor, num_rows: int, num_components: int) -> Tensor:
    labels = set(pivot.unique().tolist())
    if pivot.shape != (num_rows,) or not labels <= set(range(num_components)):
        raise MethodError(
            f"expected a pivot allocation of shape ({num_rows},) with components 0 to {num_components - 1}; got shape "
            f"{tuple(pivot.shape)} with components {sorted(labels)}. Pass one component number for each observation."
        )
    return pivot
