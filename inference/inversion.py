"""Inversion of a generator: the posterior of each row's latent vector by itself, all rows and restarts as one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.importance import elbo, finite_or_zero_weight
from probmix.importance_guide import ImportanceGuide
from probmix.inference.ascent import Ascent, ascend, begin
from probmix.inference.lbfgs import put_rows, take_rows
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.posterior import GuidePosterior
from probmix.status import Status
from probmix.trained_networks import derivatives
from probmix.typing import RowLatents

__all__ = ["Inversion"]

_AT_ONCE = 2**23  # numbers of data in one pass of the generator
_DEFENSIVE = 0.1  # share of the draws that go to all modes alike
_WIDTHS = (1.0, 1.4)  # half of the draws each: networks have kinks, behind which the posterior goes on further
_HOPELESS = 50.0  # nats behind the row's best search after a block of 20 iterations: it is not waited for
_LIMIT = 0.7  # Pareto k above which weights are not to be trusted (Vehtari et al. 2024)


class InversionState(NamedTuple):
    """All searches, of all rows.

    Args:
        ascent: searches ``(n * r, d)``, those of a row one after the other, in each component in turn.
        shape: rows n and searches for each, r.
    """

    ascent: Ascent
    shape: tuple[int, int]


@dataclass(frozen=True)
class Inversion(AbstractMethod):
    r"""The posterior of component and latent vector of every row, given a trained generator.

    .. math:: p(z_n \mid x_n) \propto \sum_k w_k N(z_n; \mu_k, \Sigma_k) \, p(x_n \mid G(z_n)), \qquad
              q_n = \sum_{r, t} v_{nr} \tfrac12 N\big(m_{nr}, t^2 H_{nr}^{-1}\big), \qquad
              H = J^\top J / \sigma^2 + \Sigma_k^{-1}

    Each component is searched by itself, from the nearest of many draws of it: L-BFGS climbs to modes m of its term.
    H is the Gauss-Newton curvature there, with J the generator's Jacobian, and t is 1 or 1.4. Modes share the draws by
    their Laplace evidence v, a tenth by equal parts, and importance ratios to the whole posterior correct for what is
    not normal; of a linear generator they are bounded. The answer holds weighted draws, and for every row its evidence,
    effective number of draws and Pareto k (`probmix.importance_guide.ImportanceGuide`). Searches that end in one mode
    do not count it twice.

    It is meant for many rows, thousands at a time: clustering by the component, inverting, filling in. What it says of
    a row whose Pareto k is high can be checked by ``ChEES(init=fit.sample(8, seed=1))`` on that row.

    Args:
        restarts: searches in each component, for each row; all run as one batch.
        max_steps: blocks of 20 L-BFGS iterations (Liu and Nocedal 1989), at most.
        tolerance: a search is done when a block gains less, nats.
        num_draws: draws for each row.

    Raises:
        MethodError: a program that is not a trained generator's, or a setting out of its range.
        ProgramError: the noise has a prior, so that rows are not independent.

    Source:
        Tierney and Kadane (1986) for the approximation; Hesterberg (1995) for defensive mixtures; Zhang et al. (2022),
        Pathfinder, for draws from several modes corrected by importance.

    Example:
        >>> from probmix.inference import Adversarial, infer
        >>> from probmix.models import MixtureGAN, MixtureLatent, generator_program
        >>> x = torch.randn(500, 2)
        >>> model = MixtureGAN(MixtureLatent(3, 2), value_range=None, width=16)
        >>> trained = infer(model, x, Adversarial(steps=20), seed=0).program
        >>> fit = infer(generator_program(trained, noise_std=0.1), x[:4], Inversion(), seed=0)
        >>> z = fit.guide.draws
        >>> component = fit.guide.mean(trained.latent.responsibilities(z))
        >>> component.shape, fit.guide.log_evidence.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """

    restarts: int = 1
    max_steps: int = 20
    tolerance: float = 0.1
    num_draws: int = 200

    def __post_init__(self) -> None:
        for setting in ("restarts", "max_steps", "num_draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)

    def start(self, problem: Problem) -> InversionState:
        """Return the first state: the nearest of many draws of each component."""
        program = problem.program
        if not isinstance(program, RowLatents):
            raise MethodError(
                f"Inversion() inverts a trained generator, got {type(program).__name__}. Pass "
                "generator_program(model, noise_std), or use MAP(), Laplace() or NUTS() for other programs."
            )
        (x,) = problem.arguments.args
        z = program.nearest(self.restarts, x, each_component=True).transpose(0, 1)
        every = torch.arange(z.shape[0] * z.shape[1], device=x.device)
        return InversionState(begin(_climbed(program, x, every, z.shape[1]), z.flatten(0, 1)), tuple(z.shape[:2]))

    def step(self, problem: Problem, state: InversionState) -> InversionState:
        """Return the state after one block of L-BFGS iterations of every search that still gains."""
        (x,), ascent = problem.arguments.args, state.ascent
        left = ascent.active.nonzero().squeeze(-1)
        part = Ascent(take_rows(ascent.search, left), (), ascent.active[left])
        part = ascend(_climbed(problem.program, x, left, state.shape[1]), part, self.tolerance)
        search = put_rows(ascent.search, left, part.search)
        active = torch.zeros_like(ascent.active).index_copy(0, left, part.active)
        after = Ascent(search, ascent.objectives, active)
        latest = after.latest.reshape(state.shape).nan_to_num(-torch.inf)
        hopeless = latest < latest.amax(-1, keepdim=True) - _HOPELESS
        after = after._replace(active=active & ~hopeless.flatten())
        return state._replace(ascent=after._replace(objectives=(*ascent.objectives, after.latest)))

    def status(self, problem: Problem, state: InversionState) -> Status | None:
        """Return how the searches ended, or None to go on."""
        ascent, total = state.ascent, math.prod(state.shape)
        if not ascent.objectives:
            return None
        if not ascent.latest.isfinite().any():
            return Status("failed", "no search found a finite density: the generator gives values that are not numbers")
        active = int(ascent.active.sum())
        if active and len(ascent.objectives) < self.max_steps:
            return None
        # of a generator with kinks some creep on: importance ratios, not the climb, say whether the answer is good
        gained = f"{active} of {total} searches still gained more than {self.tolerance:g} nats"
        return Status("converged", gained if active else "no search that matters gains any more")

    def finish(self, problem: Problem, state: InversionState, status: Status) -> GuidePosterior:
        """Return weighted draws about the modes of every row."""
        (x,), program = problem.arguments.args, problem.program
        n, r = state.shape
        modes = state.ascent.search.point.reshape(n, r, -1)
        values = state.ascent.latest.reshape(n, r).nan_to_num(-torch.inf)
        size = max(1, _AT_ONCE // (x[0].numel() * max(r, self.num_draws)))
        blocks = [
            _draws(program, x[rows], modes[rows], values[rows], self.num_draws)
            for rows in torch.arange(n, device=x.device).split(size)
        ]
        mode = modes[torch.arange(n, device=x.device), values.argmax(-1)]
        guide = ImportanceGuide(mode, *(torch.cat(part, 1) for part in zip(*blocks, strict=True)))
        means, errors = elbo(guide.log_ratios)
        total, k = (float(means.sum()), float(errors.square().sum().sqrt())), guide.pareto_k
        bad = int((k > _LIMIT).sum())
        advice = f"Pareto k above {_LIMIT} in {bad} of {n} rows"
        advice += ": check some of them by ChEES(init=fit.sample(8, seed=1)), or raise noise_std" if bad else ""
        if status.state != "failed":
            status = Status(status.state, f"{status.message}. {advice}")
        return GuidePosterior(
            **common(self, problem, status),
            history={"objective": torch.stack(state.ascent.objectives or (state.ascent.latest,), -1)},
            guide=guide,
            elbo=total,
            elbos=torch.tensor([total[0]]),
            pareto_k=float(k.median()),
            num_draws=self.num_draws,
            log_evidence=float(guide.log_evidence.sum()),
        )

    def progress(self, state: InversionState) -> tuple[int, int]:
        """Return blocks done and blocks at most."""
        return len(state.ascent.objectives), self.max_steps

    def figures(self, state: InversionState) -> Mapping[str, str]:
        """Return the number of searches that still gain."""
        return {"running": str(int(state.ascent.active.sum()))}


def _climbed(program: Any, x: Tensor, search: Tensor, each: int) -> Any:
    """Return the log density of searches ``(searches, d)`` and its gradient.

    Args:
        program: the generator's.
        x: rows.
        search: the number of each among all, from which follow its row and its component.
        each: searches for a row.
    """
    size, latent = max(1, _AT_ONCE // x[0].numel()), program.model.latent

    def log_density(z: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for numbers, block in zip(search.split(size), z.detach().split(size), strict=True):
            with torch.enable_grad():
                part, own = block.requires_grad_(), numbers % latent.num_components
                prior = latent.log_prob_components(part).gather(-1, own[:, None]).squeeze(-1)
                value = program.log_likelihood_rows(x[numbers // each], program.model.generate(part)) + prior
                (gradient,) = torch.autograd.grad(value.sum(), part)
            parts.append((value.detach(), gradient))
        values, gradients = (torch.cat(found) for found in zip(*parts, strict=True))
        return values, gradients

    return log_density


@torch.no_grad()
def _draws(program: Any, x: Tensor, modes: Tensor, values: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return draws ``(s, n, d)`` about modes ``(n, r, d)`` and their log importance ratios ``(s, n)``."""
    n, r, dim = modes.shape
    tril = torch.linalg.cholesky(_precision(program, x, modes))  # of the precision H = L L^T
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    evidence = (values - log_det).softmax(-1)
    alive = (values >= values.amax(-1, keepdim=True) - _HOPELESS).to(evidence)
    share = (1 - _DEFENSIVE) * evidence + _DEFENSIVE * alive / alive.sum(-1, keepdim=True)
    chosen = torch.multinomial(share, num, replacement=True)  # (n, s)
    own = chosen[..., None].expand(-1, -1, dim)
    width = modes.new_tensor(_WIDTHS)[torch.randint(len(_WIDTHS), (n, num), device=modes.device)]
    noise = width[..., None] * torch.randn(n, num, dim, dtype=modes.dtype, device=modes.device)
    z = modes.gather(1, own)
    log_q = []
    for mode in range(r):  # a pass for each mode, whose factor all its draws have in common
        mine = (chosen == mode)[..., None]
        step = torch.linalg.solve_triangular(tril[:, mode].mT, noise.mT, upper=True).mT
        z = torch.where(mine, z + step, z)
    for mode in range(r):
        square = ((z - modes[:, mode, None]) @ tril[:, mode]).square().sum(-1)
        of_mode = torch.stack([-0.5 * square / t**2 - dim * math.log(t) for t in _WIDTHS]).logsumexp(0)
        log_q.append(share[:, mode, None].log() + log_det[:, mode, None] + of_mode)
    density = torch.stack(log_q).logsumexp(0) - math.log(len(_WIDTHS)) - 0.5 * dim * math.log(2 * math.pi)
    z = z.transpose(0, 1)
    return z, finite_or_zero_weight(program.log_joint_rows(x, z) - density.T)


def _precision(program: Any, x: Tensor, modes: Tensor) -> Tensor:
    """Return the Gauss-Newton precision at modes ``(n, r, d)``, ``(n, r, d, d)``."""
    latent, known = program.model.latent, x.isfinite().flatten(1)
    columns = [column.flatten(2) * known[:, None] for column in derivatives(program.model.generate, modes)]
    jacobian = torch.stack(columns, -1) / program.fixed_noise_std
    component = torch.arange(modes.shape[1], device=modes.device) % latent.num_components
    return jacobian.mT @ jacobian + torch.cholesky_inverse(latent.tril)[component]
