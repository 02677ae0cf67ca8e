"""The two players of an adversarial game: networks, optimisers, the generator's average; kept and put back whole."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from probmix.errors import DataError, MethodError
from probmix.nested import map_tensors
from probmix.storage import read, write
from probmix.typing import Sites

__all__ = ["Players", "Snapshot", "read_checkpoint", "write_checkpoint"]

_DECAY = 0.999  # of Adam's mean of squared gradients


class Snapshot(NamedTuple):
    """Everything that the next step depends on.

    Args:
        iteration: steps done.
        model: parameters and buffers of the model.
        averaged: of the averaged generator and latent mixture.
        optimisers: states of the optimisers of generator and discriminator.
        randomness: of torch's generators, on the host and on the device of the data.
        history: name -> values at each look so far.

    Example:
        >>> Snapshot(10, {}, {}, (), {}, {}).iteration
        10
    """

    iteration: int
    model: Sites
    averaged: Sites
    optimisers: tuple[Any, ...]
    randomness: Sites
    history: dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Players:
    """Networks and optimisers, changed in place by the game.

    Args:
        model: the model, a `probmix.typing.ImplicitModel`.
        averaged: moving averages of its generator and latent mixture.
        generator_optimiser: for the generator and, if it is learnt, the mixture.
        discriminator_optimiser: for the discriminator.

    Example:
        >>> from probmix.models import MixtureGAN, MixtureLatent
        >>> model = MixtureGAN(MixtureLatent(3, 4), value_range=None).built_for(torch.zeros(1, 2))
        >>> players = Players.of(model, (1e-3, 1e-3), momentum=0.5)
        >>> before = players.snapshot(0, {})
        >>> with torch.no_grad():
        ...     _ = model.generator[0].weight.zero_()
        >>> players.restore(before)
        >>> bool(model.generator[0].weight.any())
        True
    """

    model: Any
    averaged: nn.ModuleList
    generator_optimiser: torch.optim.Adam
    discriminator_optimiser: torch.optim.Adam

    @classmethod
    def of(cls, model: Any, rates: tuple[float, float], momentum: float) -> Self:
        """Return the players at the start, with the learning rates of generator and discriminator."""
        model.train()
        generator, discriminator = nn.ModuleList([model.generator, model.latent]), model.discriminator
        averaged = copy.deepcopy(generator).requires_grad_(False)
        optimisers = [
            torch.optim.Adam(
                [p for p in player.parameters() if p.requires_grad], lr=rate, betas=(momentum, _DECAY), fused=True
            )
            for player, rate in zip((generator, discriminator), rates, strict=True)
        ]
        return cls(model, averaged, *optimisers)

    @property
    def learnt(self) -> list[Tensor]:
        """The parameters that the generator's optimiser changes."""
        return self.generator_optimiser.param_groups[0]["params"]

    @torch.no_grad()
    def average(self, decay: float, iteration: int) -> None:
        """Move the averages towards the generator: at first faster, so that they forget where it started."""
        decay = min(decay, (1 + iteration) / (10 + iteration))
        means, values = self._averages
        get_ema_multi_avg_fn(decay)(means, values, iteration)

    def gradient_norms(self) -> Sites:
        """Return the norms of the last gradients of both players."""
        optimisers = {"discriminator": self.discriminator_optimiser, "generator": self.generator_optimiser}
        gradients = {
            name: [p.grad for p in optimiser.param_groups[0]["params"] if p.grad is not None]
            for name, optimiser in optimisers.items()
        }
        return {f"{name}_gradient_norm": get_total_norm(found) for name, found in gradients.items()}

    def snapshot(self, iteration: int, history: dict[str, tuple[Tensor, ...]]) -> Snapshot:
        """Return a copy of everything."""
        optimisers = (self.generator_optimiser.state_dict(), self.discriminator_optimiser.state_dict())
        parts = (self.model.state_dict(), self.averaged.state_dict(), optimisers, self._randomness())
        model, averaged, states, randomness = map_tensors(lambda value: value.detach().clone(), parts)
        return Snapshot(iteration, model, averaged, states, randomness, history)

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back.

        Raises:
            MethodError: the snapshot is of other networks.
        """
        try:
            self.model.load_state_dict(snapshot.model)
            self.averaged.load_state_dict(snapshot.averaged)
        except RuntimeError as reason:
            raise MethodError(
                f"checkpoint: expected the networks of this model, got others: "
                f"{str(reason).splitlines()[-1].strip()}. Resume with the model that the checkpoint is of."
            ) from reason
        for optimiser, state in zip(
            (self.generator_optimiser, self.discriminator_optimiser), snapshot.optimisers, strict=True
        ):
            optimiser.load_state_dict(copy.deepcopy(_with_numbers(state)))
        torch.set_rng_state(snapshot.randomness["host"].cpu())
        if "device" in snapshot.randomness:
            torch.cuda.set_rng_state(snapshot.randomness["device"].cpu(), self._device)

    def trained(self, *, averaged: bool) -> Any:
        """Return the model as it is to be used: with the averages, in evaluation mode, without gradients."""
        if averaged:
            with torch.no_grad():
                for mean, value in zip(*self._averages, strict=True):
                    value.copy_(mean)
        return self.model.frozen()

    @cached_property
    def _averages(self) -> tuple[list[Tensor], list[Tensor]]:
        """Averages, and the parameters of the generator and the mixture that they are of."""
        played = [*self.model.generator.parameters(), *self.model.latent.parameters()]
        return list(self.averaged.parameters()), played

    @property
    def _device(self) -> torch.device:
        return next(self.averaged.parameters()).device

    def _randomness(self) -> Sites:
        states = {"host": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["device"] = torch.cuda.get_rng_state(self._device)
        return states


class _Checkpoint(NamedTuple):
    identity: dict[str, object]
    snapshot: Snapshot


def write_checkpoint(path: str | Path, snapshot: Snapshot, identity: dict[str, object]) -> None:
    """Write a snapshot; a file that is there stays whole until the new one is.

    Args:
        path: the file.
        snapshot: everything.
        identity: settings and data by which the fit is known again.

    Raises:
        DataError: the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/game", Snapshot(10, {}, {}, (), {}, {}), {"seed": 0})
        ...     read_checkpoint(f"{folder}/game", {"seed": 0}).iteration
        10
    """
    write(path, _Checkpoint(identity, snapshot))


def read_checkpoint(path: str | Path, identity: dict[str, object]) -> Snapshot:
    """Read what `write_checkpoint` wrote; the example is there.

    Raises:
        DataError: no such file, or not a checkpoint.
        MethodError: it is of a fit with other settings, another seed or other data.

    Example:
        >>> read_checkpoint("game", {})
        Traceback (most recent call last):
            ...
        probmix.errors.DataError: expected a checkpoint, found no file game. Check checkpoint=, or leave out resume=.
    """
    if not Path(path).is_file():
        raise DataError(f"expected a checkpoint, found no file {path}. Check checkpoint=, or leave out resume=.")
    found = read(path)
    if not isinstance(found, _Checkpoint):
        raise DataError(f"{path}: expected a checkpoint of Adversarial(), got a {type(found).__name__}.")
    other = [f"{k}={found.identity.get(k)!r}, not {v!r}" for k, v in identity.items() if found.identity.get(k) != v]
    if other:
        raise MethodError(
            f"{path}: expected a checkpoint of this fit, got one with {'; '.join(other)}. Resume with the settings, "
            "seed and data that it was made with; steps= may be more."
        )
    return found.snapshot


def _with_numbers(state: dict[str, Any]) -> dict[str, Any]:
    """Give the parameters of an optimiser's state their numbers, which a file has as text."""
    return {**state, "state": {int(number): value for number, value in state["state"].items()}}
