"""Small digits in random order, for the tests of what is trained on images."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor


def shuffled_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 rows of 64 pixels from 0 to 1, float32, and their labels; always in the same order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return torch.tensor(data.data[order] / 16, dtype=torch.float32), torch.tensor(data.target[order])
