"""The No-U-Turn sampler of nutpie on our log density: all chains hand in their points, one batch answers them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from threading import Semaphore
from typing import Any, TypeAlias

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from torch import Tensor

from probmix.errors import FitError, MethodError
from probmix.log_density import LogDensity

__all__ = ["begin_nutpie"]

_BATCHES = 50  # evaluated in one step of the fit: often enough for a progress bar
_PATIENCE = 1.0  # seconds without a point from any chain, after which we look whether one has died
_IN_THE_BACKGROUND = {"chains": 1, "cores": 1, "progress_bar": False, "blocking": False, "return_raw_trace": True}
_NAMES = {  # nutpie's name -> ours
    "logp": "lp",
    "diverging": "diverging",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "n_steps": "n_steps",
}

Vector: TypeAlias = NDArray[np.float64]
Answer: TypeAlias = tuple[float, Vector]


class Bridge:
    """Where the chains' threads meet the caller's: points come in, values and gradients go out.

    Everything that is not nutpie's own code runs on the caller's thread: a Pyro program is not made for several.
    When all chains that still run have handed in a point, they are evaluated as one batch. A chain that is done keeps
    its row, so the batch always has the same size, and no answer depends on which thread was faster.

    Args:
        density: the log density.
        starts: unconstrained starting points ``(chains, dim)``.
        total: iterations of each chain, after which it asks no more.
    """

    def __init__(self, density: LogDensity, starts: Tensor, total: int) -> None:
        self.density, self.starts, self.total = density, starts, total
        self.points: Vector = starts.detach().cpu().double().numpy().copy()
        self.done = [0] * len(starts)
        self.closed = False
        self._running = list(range(len(starts)))
        self._left: set[int] = set()
        self._arrivals = count(1)  # whose `next` is one step, whatever threads do
        self._everyone = Semaphore(0)
        self._answers: list[SimpleQueue[Answer]] = [SimpleQueue() for _ in starts]

    # -- on the threads of the chains ---------------------------------------------------------------------------------

    def ask(self, chain: int, point: Vector) -> Answer:
        """Hand in a point and wait for its value and gradient; not a number once the bridge is closed."""
        if self.closed:
            return np.nan, np.full_like(point, np.nan)
        self.points[chain] = point
        self._arrive()
        return self._answers[chain].get()

    def count(self, chain: int) -> None:
        """Note that a chain has made one more draw."""
        if self.closed:
            return
        self.done[chain] += 1
        if self.has_ended(chain):
            self._left.add(chain)
            self._arrive()

    def has_ended(self, chain: int) -> bool:
        """Tell whether a chain has made all its draws."""
        return self.done[chain] == self.total

    def _arrive(self) -> None:
        if next(self._arrivals) == len(self._running):
            self._everyone.release()

    # -- on the caller's thread ---------------------------------------------------------------------------------------

    def serve(self) -> bool:
        """Evaluate one batch; return False when no chain runs any more.

        Raises:
            TimeoutError: a chain has not asked for a while.
        """
        if not self._running:
            return False
        if not self._everyone.acquire(timeout=_PATIENCE):
            raise TimeoutError
        self._running = [chain for chain in self._running if chain not in self._left]
        self._arrivals = count(1)
        if self._running:
            z = torch.from_numpy(self.points).to(self.starts)
            values, gradients = (t.detach().cpu().double() for t in self.density.value_and_grad(z))
            answers = list(zip(values.tolist(), gradients.contiguous().numpy(), strict=True))
            for chain in self._running:
                self._answers[chain].put(answers[chain])
        return True

    def close(self) -> None:
        """Let go of every chain that waits, now or later."""
        self.closed = True
        for answers in self._answers:
            answers.put((np.nan, np.full(self.points.shape[1], np.nan)))


class NutpieRun:
    """All chains, which go on in threads of their own whenever the bridge answers them.

    Args:
        bridge: where they get their values.
        samplers: nutpie's handle of each chain.
        warmup: iterations of warm-up.
    """

    def __init__(self, bridge: Bridge, samplers: list[Any], warmup: int) -> None:
        self._bridge, self._samplers, self._warmup = bridge, samplers, warmup
        self._kept: tuple[Tensor, dict[str, Tensor]] | None = None

    @property
    def iteration(self) -> int:
        """Iterations that every chain has done."""
        return min(self._bridge.done)

    def figures(self) -> Mapping[str, str]:
        """Return how far the slowest and the fastest chain are."""
        return {"slowest": str(self.iteration), "fastest": str(max(self._bridge.done))}

    def advance(self) -> NutpieRun:
        """Evaluate some batches."""
        try:
            for _ in range(_BATCHES):
                if not self._bridge.serve():
                    break
        except TimeoutError:
            self._look_for_the_dead()
        except Exception:
            self._bridge.close()
            raise
        return self

    def kept(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Stop; return positions ``(chains, draws, dim)`` and statistics ``(chains, draws)``, as far as they got."""
        starts = self._bridge.starts
        if self._kept is None and not self.iteration:
            self._kept = starts.new_empty(len(starts), 0, starts.shape[1]), {}
        if self._kept is None:
            self._bridge.close()
            traces = [self._trace(chain) for chain in range(len(starts))]
            done = min(self.iteration, *(draw.num_rows for (draw,), _ in traces))  # a draw is counted, then stored
            rows = slice(self._warmup if done > self._warmup else 0, done)
            draws = np.stack([_column(draw, "z").reshape(draw.num_rows, -1)[rows] for (draw,), _ in traces])
            stats = [_statistics(stat, rows) for _, (stat,) in traces]
            named = {n: torch.from_numpy(np.stack([s[n] for s in stats])).to(starts.device) for n in stats[0]}
            self._kept = torch.from_numpy(draws).to(starts), named
        return self._kept

    def _trace(self, chain: int) -> Any:
        sampler = self._samplers[chain]
        return (sampler.wait() if self._bridge.has_ended(chain) else sampler.abort()).get_arrow_trace()

    def _look_for_the_dead(self) -> None:
        for chain, sampler in enumerate(self._samplers):
            if self._bridge.has_ended(chain):
                continue
            with suppress(TimeoutError):
                self._end_of(chain, sampler)

    def _end_of(self, chain: int, sampler: Any) -> None:
        try:
            sampler.wait(timeout=0.01)
            reason = "it gave no reason"
        except RuntimeError as error:
            reason = " ".join(str(error).split("Stack backtrace")[0].split())
        raise FitError(f"nutpie ended chain {chain} early ({reason}). Use other starts (init=), or engine='pyro'.")

    def __del__(self) -> None:
        self._bridge.close()  # else the threads would wait for ever, and whoever ends them for them


def begin_nutpie(
    density: LogDensity, starts: Tensor, *, warmup: int, draws: int, target_accept: float, max_tree_depth: int
) -> NutpieRun:
    """Return a run at its start ``(chains, dim)``.

    Raises:
        MethodError: nutpie is not installed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     a = pyro.sample("a", dist.Normal(0.0, 2.0))
        ...     pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.zeros(())))
        >>> run = begin_nutpie(density, torch.ones(3, 1), warmup=20, draws=10, target_accept=0.8, max_tree_depth=5)
        >>> while run.iteration < 30:
        ...     run = run.advance()
        >>> run.kept()[0].shape
        torch.Size([3, 10, 1])
    """
    nutpie, pyfunc = _nutpie()
    bridge = Bridge(density, starts, warmup + draws)
    density.value_and_grad(starts)  # traced, and compiled, before any thread waits
    seeds = torch.randint(2**62, (len(starts),), device="cpu").tolist()
    settings = {"draws": draws, "tune": warmup, "target_accept": target_accept, "maxdepth": max_tree_depth}
    samplers: list[Any] = []
    try:
        for chain, seed in enumerate(seeds):
            model = _model(pyfunc, bridge, chain)
            samplers.append(nutpie.sample(model, seed=seed, **settings, **_IN_THE_BACKGROUND))
    except BaseException:  # Ctrl-C too: threads that run already would wait for ever
        bridge.close()
        raise
    return NutpieRun(bridge, samplers, warmup)


def _model(pyfunc: Any, bridge: Bridge, chain: int) -> Any:
    start = bridge.points[chain].copy()
    return pyfunc.from_pyfunc(
        len(start),
        lambda: lambda point: bridge.ask(chain, point),
        lambda *_: lambda point: _drawn(bridge, chain, point),
        [np.dtype(np.float64)],
        [(len(start),)],
        ["z"],
        make_initial_point_fn=lambda _: start,
    )


def _nutpie() -> tuple[Any, Any]:
    try:
        return importlib.import_module("nutpie"), importlib.import_module("nutpie.compiled_pyfunc")
    except ImportError as missing:
        raise MethodError(
            f'engine: expected nutpie to be installed for engine="nutpie", but {missing}. '
            'Run pip install "nutpie>=0.15", or use engine="pyro".'
        ) from missing


def _drawn(bridge: Bridge, chain: int, point: Vector) -> dict[str, Vector]:
    bridge.count(chain)
    return {"z": point.copy()}


def _statistics(table: Any, rows: slice) -> dict[str, NDArray[Any]]:
    stats = {ours: _column(table, theirs)[rows] for theirs, ours in _NAMES.items()}
    stats["n_steps"] = stats["n_steps"].astype(np.int64)
    energy = _column(table, "energy") - _column(table, "energy_error")  # of the start of the iteration, as Pyro's
    return {**stats, "energy": energy[rows]}


def _column(table: Any, name: str) -> NDArray[Any]:
    column = pyarrow.array(table.column(name))
    flat = column.flatten() if pyarrow.types.is_large_list(column.type) else column
    return flat.to_numpy(zero_copy_only=False)
