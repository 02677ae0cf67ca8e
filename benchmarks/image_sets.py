"""Images with labels for the benchmarks: scikit-learn's small digits, and sets in the form of MNIST."""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["Images", "Parts", "Wanted", "add_arguments", "chosen", "clock", "idx_images", "measure", "small_digits"]


#: Part of a table -> function of some settings that returns its lines, and figures by their names.
Parts: TypeAlias = Mapping[str, Callable[..., tuple[list[str], dict[str, float]]]]

#: Part -> what is claimed -> whether the figures say so.
Wanted: TypeAlias = Mapping[str, Mapping[str, Callable[[Mapping[str, float]], bool]]]


@dataclass(frozen=True)
class Images:
    """Rows of pixels from 0 to 1 with their labels, for a fit and for its test."""

    x: Tensor
    labels: Tensor
    x_test: Tensor
    labels_test: Tensor

    def to(self, device: str) -> Images:
        """The same on another device."""
        return Images(*(table.to(device) for table in (self.x, self.labels, self.x_test, self.labels_test)))

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return round(self.x.shape[1] ** 0.5)


def small_digits(rows: int = 900) -> Images:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels in random order, the first rows for the fit."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, labels = torch.tensor(data.data[order] / 16, dtype=torch.float32), torch.tensor(data.target[order])
    return Images(x[:rows], labels[:rows], x[rows:], labels[rows:])


def idx_images(folder: Path) -> Images:
    """The four IDX files of MNIST, or of a set of that form."""
    parts = []
    for kind in ("train", "t10k"):
        for name, header in (("images-idx3", 16), ("labels-idx1", 8)):
            with gzip.open(folder / f"{kind}-{name}-ubyte.gz") as file:
                parts.append(np.frombuffer(file.read(), np.uint8, offset=header))
    images = [torch.tensor(part.reshape(-1, 784) / 255, dtype=torch.float32) for part in parts[::2]]
    labels = [torch.tensor(part).long() for part in parts[1::2]]
    return Images(images[0], labels[0], images[1], labels[1])


def clock(device: torch.device) -> float:
    """Read a clock: the processor's own time where it does all the work, else that of the wall once a GPU is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def add_arguments(parser: argparse.ArgumentParser, parts: Collection[str] = ()) -> None:
    """Where the images are, and what to do with them: with a table in parts, which of them, and on which device."""
    parser.add_argument("--data", type=Path, default=os.environ.get("PROBMIX_DATA"), help="folder that holds mnist/")
    parser.add_argument("--set", default="mnist", help="mnist or fashion")
    parser.set_defaults(device="cpu")
    if parts:
        on = "cuda" if torch.cuda.is_available() else "cpu"
        parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="some of the tables")
        parser.add_argument("--device", default=on, help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="small digits and few steps: under a minute")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/ too")


def chosen(options: argparse.Namespace) -> Images | None:
    """The images that the options ask for; None, with a message, where they are not there."""
    if options.quick:
        return small_digits().to(options.device)
    folder = Path(options.data or "") / "mnist" / options.set
    if not folder.is_dir():
        print(f"skipped: no folder {folder}. Pass --data FOLDER, or set PROBMIX_DATA.")
        return None
    return idx_images(folder).to(options.device)


def measure(name: str, options: argparse.Namespace, parts: Parts, wanted: Wanted, *settings: Any) -> None:
    """Print the table of each part that is asked for, then all claims; leave with an error where one is not so.

    Args:
        name: of the file of results, on request; the set, if it is not MNIST, and a GPU are added to it.
        options: those of the command line.
        parts: name -> function of the settings that returns the lines of a table, and figures by their names.
        wanted: part -> what is claimed -> whether the figures say so. Not asked of a quick run.
        settings: of every part.
    """
    lines, claims = [], {}
    for part in options.only:
        table, found = parts[part](*settings)
        print("\n".join([*table, ""]), flush=True)
        lines, claims = [*lines, *table, ""], claims | found
    figures = [f"{claim}={value:.4g}" for claim, value in claims.items()]
    print("\n".join(figures))
    if options.save:
        of_set = "" if options.set == "mnist" else f"_{options.set}"
        on = "" if options.device == "cpu" else f"_{options.device}"
        file = Path(__file__).parent / "results" / f"{name}{of_set}{on}.txt"
        file.write_text("\n".join([*lines, *figures]) + "\n", encoding="utf-8")
    missed = [what for part in options.only for what, holds in wanted[part].items() if not holds(claims)]
    if missed and not options.quick:
        sys.exit(f"not so: {'; '.join(missed)}")
