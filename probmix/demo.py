"""The demo: one mixture of two Gaussians, fitted to the Old Faithful data by EM, SVI and NUTS, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from probmix.datasets import load_faithful
from probmix.inference import EM, NUTS, SVI, infer
from probmix.inference.method import AbstractMethod
from probmix.models import GaussianMixture
from probmix.posterior import AbstractPosterior
from probmix.reading import Reading
from probmix.report import write_report
from probmix.results import save_posterior, save_tree

__all__ = ["run_demo", "write_demo"]

# Enough for an r-hat below 1.01 and an effective sample size of a thousand for every parameter. Until the mass matrix
# is adapted a trajectory would take 63 gradients or more: capped at 31, the warm-up costs half as much, and the draws,
# which take 7 each, are not touched.
_NUTS = NUTS(chains=4, warmup=60, draws=400, max_tree_depth=5)


def run_demo(
    *, seed: int, svi: SVI | None = None, nuts: NUTS | None = None, progress: bool = False
) -> dict[str, Reading]:
    """Fit the data by the three methods; return ``"EM"``, ``"SVI"`` and ``"NUTS"``, all with EM's component numbers.

    SVI starts at EM's answer, so that its components are EM's. The chains of NUTS start apart, as they should, and are
    matched to EM afterwards.

    Args:
        seed: of all three.
        svi: its settings; ``init`` is set here.
        nuts: its settings.
        progress: show a progress bar (on a terminal only).

    Raises:
        KeyboardInterrupt: the user stopped one of the fits.

    Example:
        >>> nuts = NUTS(chains=2, warmup=0, draws=2, max_tree_depth=2)
        >>> quick = run_demo(seed=0, svi=SVI(window=2, tolerance=1e9), nuts=nuts)
        >>> list(quick)
        ['EM', 'SVI', 'NUTS']
    """
    svi, nuts = svi or SVI(), nuts or _NUTS
    em = _fit(EM(), seed, progress)
    started = dataclasses.replace(svi, init=em.sites())
    return {
        "EM": Reading.of(em),
        "SVI": Reading.of(_fit(started, seed, progress)),
        "NUTS": Reading.of(_fit(nuts, seed, progress), reference=em.sites()),
    }


def write_demo(readings: Mapping[str, Reading], folder: Path) -> list[Path]:
    """Write each fit, the table, and the pictures of the draws; return the files.

    Args:
        readings: from `run_demo`.
        folder: where to write; it exists.

    Example:
        >>> import tempfile
        >>> nuts = NUTS(chains=2, warmup=0, draws=2, max_tree_depth=2)
        >>> quick = run_demo(seed=0, svi=SVI(window=2, tolerance=1e9), nuts=nuts)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(write_demo(quick, Path(folder)))
        11
    """
    kept = [save_posterior(reading.posterior, folder, name.lower()) for name, reading in readings.items()]
    trees = [save_tree(reading.tree, folder, name.lower()) for name, reading in readings.items()]
    return [*kept, *trees, *write_report(readings, folder)]


def _fit(method: AbstractMethod, seed: int, progress: bool) -> AbstractPosterior:
    posterior = infer(GaussianMixture(2), load_faithful().frame(), method, seed=seed, progress=progress)
    if posterior.status.state == "interrupted":
        raise KeyboardInterrupt
    return posterior
