"""Adversarial training: a generator learns to make data that a discriminator, which learns too, takes for real."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from probmix.errors import MethodError
from probmix.inference.adversarial_losses import LOSSES, LossName, slope_penalty
from probmix.inference.adversarial_players import Players, Snapshot, read_checkpoint, write_checkpoint
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.nested import map_tensors
from probmix.posterior import PointPosterior
from probmix.status import Status
from probmix.typing import ImplicitModel, is_implicit

__all__ = ["Adversarial"]

_PLAYERS = ("discriminator", "generator")
_PENALTY = {"non_saturating": 0.0, "wasserstein": 10.0, "hinge": 0.0}  # 10: Gulrajani et al. (2017)
_CRITIC_STEPS = {"non_saturating": 1, "wasserstein": 5, "hinge": 1}  # 5: Arjovsky, Chintala and Bottou (2017)
_WON = 0.01  # a discriminator's loss below which its slope tells the generator nothing, nats


class Seen(NamedTuple):
    """What a step has seen, still on the device: a look at it would make an accelerator wait.

    Args:
        losses: of discriminator and generator, ``()`` each.
        score: of generated data, ``(n,)``.
        component: which each came from, ``(n,)``.
    """

    losses: tuple[Tensor, Tensor]
    score: Tensor
    component: Tensor


class AdversarialState(NamedTuple):
    """Where the game is.

    Args:
        players: networks and optimisers, which each step changes in place.
        iteration: steps done.
        seen: what every step since the last look has seen.
        good: everything as it was at the last look at which both losses were numbers.
        identity: what a checkpoint is known by; it takes a pass over the data.
        lost: whose loss was not a number, and when; empty as long as all is well.
    """

    players: Players
    iteration: int
    seen: tuple[Seen, ...]
    good: Snapshot
    identity: dict[str, object]
    lost: str


@dataclass(frozen=True)
class Adversarial(AbstractMethod):
    r"""Adversarial training (Goodfellow et al. 2014) of a model with a generator and a discriminator.

    .. math:: \min_D \, E_x \ell(D(x)) + E_z \ell(-D(G(z))), \qquad \min_G \, E_z \ell(D(G(z))), \qquad
              \ell(s) = \log(1 + e^{-s})

    for the non-saturating loss; the others are in `probmix.inference.adversarial_losses`. Steps of the two alternate,
    by Adam (Kingma and Ba 2015), on random rows with replacement. Nothing says when a game has converged, so it takes
    as many steps as it is told. The answer is a point: parameters of networks, the generator's averaged over steps.
    ``fit.program`` is the model with them.

    Every ``log_every`` steps it looks. Means since the last look of both losses and of the score of each component's
    data, the last gradient norms, and the use of each component go to ``fit.history``, beside ``step``. Use is the
    share of real data that the discriminator recognises as a component's, or, if it does not recognise any, that of
    draws. If a loss is not a number, the game is put back to where it was at the last look, and ends there with a
    warning that says whose it was.

    Args:
        steps: steps of the generator.
        loss: ``"non_saturating"``, ``"wasserstein"`` or ``"hinge"``.
        batch_size: rows in a step, real ones and generated ones.
        learning_rate: of Adam, for the generator, and its latent mixture if that is dynamic.
        discriminator_rate: for the discriminator; None: the same.
        discriminator_steps: for each one of the generator. None: 5 for ``"wasserstein"``, else 1.
        gradient_penalty: weight of the penalty on the slope of the score
            (`probmix.inference.adversarial_losses.slope_penalty`). None: 10 for ``"wasserstein"``, else 0.
        recognition: weight of the recognition of components, in both losses, where the model recognises them.
        momentum: decay of Adam's mean of gradients.
        average: decay of the moving average of the generator; 0: none.
        log_every: steps between two looks.
        checkpoint: a file that the game is kept in, every ``checkpoint_every`` steps and at its end, also after Ctrl-C.
        checkpoint_every: a multiple of ``log_every``.
        resume: go on from the checkpoint, up to ``steps`` in all; bit for bit as if it had never been broken off.

    Raises:
        MethodError: a setting out of its range, a model that is not adversarial, or a checkpoint of another fit.
        ProgramError: a network gives data of the wrong shape.
        FitError: a loss was not a number before the first look was over.

    Warns:
        FitWarning: the game ended early, by Ctrl-C or because a loss was not a number.

    Source:
        Goodfellow et al. (2014), Generative adversarial nets; the average of Yazici et al. (2019), The unusual
        effectiveness of averaging in GAN training.

    Example:
        >>> from probmix.inference import infer
        >>> from probmix.models import MixtureGAN, MixtureLatent
        >>> x = torch.randn(500, 2)
        >>> model = MixtureGAN(MixtureLatent(3, 4), value_range=None, width=16)
        >>> fit = infer(model, x, Adversarial(steps=20, log_every=10), seed=0)
        >>> fit.history["generator_loss"].shape, fit.history["component_score"].shape
        (torch.Size([2]), torch.Size([2, 3]))
    """

    steps: int = 10_000
    loss: LossName = "non_saturating"
    batch_size: int = 128
    learning_rate: float = 2e-4
    discriminator_rate: float | None = None
    discriminator_steps: int | None = None
    gradient_penalty: float | None = None
    recognition: float = 1.0
    momentum: float = 0.5
    average: float = 0.999
    log_every: int = 100
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1000
    resume: bool = False

    def __post_init__(self) -> None:
        require(self.loss in LOSSES, "loss", f"one of {list(LOSSES)}", self.loss)
        for setting in ("steps", "batch_size", "log_every"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        for setting in ("learning_rate", "discriminator_rate"):
            rate = getattr(self, setting)
            require(rate is None or rate > 0, setting, "a positive number", rate)
        each = self.discriminator_steps
        require(each is None or each >= 1, "discriminator_steps", "None or at least 1", each)
        penalty = self.gradient_penalty
        require(penalty is None or penalty >= 0, "gradient_penalty", "None or at least 0", penalty)
        require(self.recognition >= 0, "recognition", "at least 0", self.recognition)
        for setting in ("momentum", "average"):
            require(0 <= getattr(self, setting) < 1, setting, "from 0 to below 1", getattr(self, setting))
        every = self.checkpoint_every
        whole = every >= 1 and every % self.log_every == 0
        if self.checkpoint is not None:
            require(whole, "checkpoint_every", f"a multiple of log_every={self.log_every}", every)
        require(self.checkpoint is not None or not self.resume, "checkpoint", "a file to resume from", None)

    def start(self, problem: Problem) -> AdversarialState:
        """Return the first state: new networks, or those of the checkpoint."""
        if not is_implicit(problem.program):
            raise MethodError(
                f"Adversarial() trains a model with a generator and a discriminator, such as MixtureGAN, got "
                f"{type(problem.program).__name__}. Use SVI() or NUTS() for a program."
            )
        rates = self.learning_rate, self.discriminator_rate or self.learning_rate
        players = Players.of(problem.program.built_for(*problem.arguments.args), rates, self.momentum)
        good, identity = players.snapshot(0, {}), {}
        if self.checkpoint is not None:
            identity = self._identity(problem)
            if self.resume:
                good = read_checkpoint(self.checkpoint, identity)
                there = problem.arguments.args[0].device
                good = good._replace(history=map_tensors(lambda value: value.to(there), good.history))
                steps = good.iteration
                require(self.steps >= steps, "steps", f"at least the {steps} of the checkpoint", self.steps)
                players.restore(good)
            elif Path(self.checkpoint).exists():
                raise MethodError(
                    f"checkpoint: expected a new file, but {self.checkpoint} exists. Go on from it by resume=True, or "
                    "choose another."
                )
        return AdversarialState(players, good.iteration, (), good, identity, "")

    def step(self, problem: Problem, state: AdversarialState) -> AdversarialState:
        """Return the state after a step of each player."""
        players, data = state.players, problem.arguments.args
        for _ in range(self.discriminator_steps or _CRITIC_STEPS[self.loss]):
            of_discriminator = self._train_discriminator(players, data)
        of_generator, score, component = self._train_generator(players)
        if self.average:
            players.average(self.average, state.iteration)
        seen, iteration = Seen((of_discriminator, of_generator), score, component), state.iteration + 1
        state = state._replace(iteration=iteration, seen=(*state.seen, seen))
        if iteration % self.log_every and iteration < self.steps:
            return state
        return self._look(state, data[0])

    def status(self, problem: Problem, state: AdversarialState) -> Status | None:
        """Return how the game ended, or None to go on."""
        if state.lost:
            advice = "Lower learning_rate=, or add a gradient_penalty=."
            kept = state.good.iteration
            if not kept:
                return Status("failed", f"{state.lost}. {advice}")
            return Status("interrupted", f"{state.lost}; the model is put back to step {kept}. {advice}")
        if state.iteration < self.steps:
            return None
        latent = state.players.model.latent.separation()
        return Status("complete", f"{self.steps} steps. {self._verdict(state.good.history)}Latent mixture: {latent}")

    def finish(self, problem: Problem, state: AdversarialState, status: Status) -> PointPosterior:
        """Return the model with the averaged generator, its networks in evaluation mode."""
        players = state.players
        if self.checkpoint is not None and state.good.iteration:
            write_checkpoint(self.checkpoint, state.good, state.identity)
        model = players.trained(averaged=bool(self.average))
        point = {name: value.detach().clone() for name, value in model.state_dict().items()}
        history = {name: torch.stack(values) for name, values in state.good.history.items()}
        return PointPosterior(
            **common(self, dataclasses.replace(problem, program=model), status),
            history=history,
            point=point,
            objective=math.nan,
            objectives=torch.full((1,), math.nan),
        )

    def progress(self, state: AdversarialState) -> tuple[int, int]:
        """Return steps done and in all."""
        return state.iteration, self.steps

    def figures(self, state: AdversarialState) -> Mapping[str, str]:
        """Return both losses at the last look."""
        history = state.good.history
        return {f"{name} loss": f"{float(history[f'{name}_loss'][-1]):.3f}" for name in _PLAYERS if history}

    # The rest.

    def _train_discriminator(self, players: Players, data: tuple[Tensor, ...]) -> Tensor:
        model, game = players.model, LOSSES[self.loss]
        rows = torch.randint(len(data[0]), (self.batch_size,), device=data[0].device)
        x, label = data[0][rows], data[1][rows] if len(data) > 1 else None
        with torch.no_grad():
            fake, _, component = model.rsample(self.batch_size)
        outputs = model.judge(fake)
        loss = game.discriminator(model.real_score(model.judge(x), label), model.fake_score(outputs, component))
        loss = penalised = loss + self._recognition(model, outputs, component)
        weight = _PENALTY[self.loss] if self.gradient_penalty is None else self.gradient_penalty
        if weight:

            def score(place: Tensor) -> Tensor:
                return model.real_score(model.judge(place), label)

            penalised = loss + weight * slope_penalty(score, x, fake, game.target)
        players.discriminator_optimiser.zero_grad()
        penalised.backward()
        players.discriminator_optimiser.step()
        return loss.detach()

    def _train_generator(self, players: Players) -> tuple[Tensor, Tensor, Tensor]:
        model = players.model
        fake, _, component = model.rsample(self.batch_size)
        outputs = model.judge(fake)
        score = model.wanted_score(outputs, component)
        loss = LOSSES[self.loss].generator(score) + self._recognition(model, outputs, component)
        players.generator_optimiser.zero_grad()
        loss.backward(inputs=players.learnt)  # and not by the discriminator's parameters, which is half of the work
        players.generator_optimiser.step()
        return loss.detach(), score.detach(), component

    def _recognition(self, model: ImplicitModel, outputs: Tensor, component: Tensor) -> Tensor | float:
        """Return the loss, of both players, of components that are not recognised."""
        return self.recognition * cross_entropy(model.component_logits(outputs), component) if model.recognise else 0.0

    def _look(self, state: AdversarialState, x: Tensor) -> AdversarialState:
        losses = torch.stack([torch.stack(seen.losses) for seen in state.seen]).mean(0)
        score, drawn = _by_component(state.seen, state.players.model.latent.num_components)
        state = state._replace(seen=())
        for name, loss in zip(_PLAYERS, losses, strict=True):
            if not bool(loss.isfinite()):
                first = state.good.iteration + 1
                state.players.restore(state.good)
                return state._replace(
                    lost=f"the {name}'s loss was {float(loss):g} between steps {first} and {state.iteration}",
                    iteration=state.good.iteration,
                )
        record = {"step": torch.tensor(state.iteration, device=x.device)}
        record |= {f"{name}_loss": loss for name, loss in zip(_PLAYERS, losses, strict=True)}
        record |= state.players.gradient_norms() | {"component_score": score}
        record |= {"component_usage": self._usage(state.players.model, x, drawn)}
        history = {name: (*state.good.history.get(name, ()), value) for name, value in record.items()}
        good = state.players.snapshot(state.iteration, history)
        due = state.iteration % self.checkpoint_every == 0 and state.iteration < self.steps  # the end is written anyway
        if self.checkpoint is not None and due:
            write_checkpoint(self.checkpoint, good, state.identity)
        return state._replace(good=good)

    @torch.no_grad()
    def _usage(self, model: ImplicitModel, x: Tensor, drawn: Tensor) -> Tensor:
        """Return the share of real data that each component is recognised in, or, failing that, of draws, ``(K,)``."""
        if not model.recognise:
            return (drawn / drawn.sum()).to(x)
        rows = torch.randint(len(x), (self.batch_size,), device=x.device)
        return model.component_logits(model.judge(x[rows])).softmax(-1).mean(0)

    def _verdict(self, history: Mapping[str, tuple[Tensor, ...]]) -> str:
        if self.loss != "wasserstein" and float(history["discriminator_loss"][-1]) < _WON:
            return (
                "The discriminator tells everything apart, so the generator learns nothing from it any more: add "
                "gradient_penalty=, or lower discriminator_rate=. "
            )
        return ""

    def _identity(self, problem: Problem) -> dict[str, object]:
        """Return what a checkpoint must have in common with a fit that resumes it."""
        free = ("steps", "log_every", "checkpoint", "checkpoint_every", "resume")
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in free}
        x = problem.arguments.args[0]
        data = {"rows": len(x), "shape": str(tuple(x.shape[1:])), "sum": float(x.sum(dtype=torch.float64))}
        return {**settings, "seed": problem.seed, **data}


def _by_component(seen: tuple[Seen, ...], num: int) -> tuple[Tensor, Tensor]:
    """Return the mean score of each component's data, NaN where there were none, and their number, ``(K,)`` each."""
    score, component = (torch.cat(parts) for parts in zip(*((s.score, s.component) for s in seen), strict=True))
    drawn = torch.bincount(component, minlength=num)
    return score.new_zeros(num).index_add(0, component, score) / drawn, drawn
