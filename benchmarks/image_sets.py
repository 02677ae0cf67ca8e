"""Images with labels for the benchmarks: scikit-learn's small digits, and sets in the form of MNIST."""

from __future__ import annotations

import argparse
import gzip
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["Images", "add_arguments", "chosen", "clock", "idx_images", "small_digits"]


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images are, and how much to do with them."""
    parser.add_argument("--data", type=Path, default=os.environ.get("PROBMIX_DATA"), help="folder that holds mnist/")
    parser.add_argument("--set", default="mnist", help="mnist or fashion")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
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
