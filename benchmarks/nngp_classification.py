"""Classification by infinitely wide networks: the Gaussian process beside scale mixtures of it, on good and bad images.

One kernel, one start and one stopping rule for each: the process itself, one with a common inverse gamma variance (four
degrees of freedom) and one with a variance for each class. Test images are clean, or with shot noise, impulse noise or
a rotation, much as in MNIST-C; and of classes held out of a second fit, which only an unsure answer can tell.

    python benchmarks/nngp_classification.py --data FOLDER [--set mnist] [--rows 10000] [--save]
    python benchmarks/nngp_classification.py --quick

FOLDER (or PROBMIX_DATA) holds ``mnist/<set>`` with the four IDX files of MNIST, or of a set of that form; with
``--quick`` (under a minute) scikit-learn's 1,797 small digits take its place. A difference in NLL has the standard
error of a mean over test rows; fits from other seeds may differ by more.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from image_sets import Images, add_arguments, chosen
from scipy.ndimage import rotate
from sklearn.metrics import roc_auc_score
from torch import Tensor

from probmix.inference import SVI, infer
from probmix.models import ScaleMixtureClassifier
from probmix.posterior import AbstractPosterior

MODELS = {"gaussian": {"df": None}, "common": {"df": 4.0}, "by_class": {"df": 4.0, "shared_scale": False}}
HELD_OUT = (1, 4, 8)
LARGEST_DIFFERENCE = 0.01  # in accuracy on clean images, between models that differ in their spreads only
HEADER = f"{'test images':<14}" + "".join(f"{name + ' acc':>15}{'NLL':>8}" for name in MODELS) + f"{'gain (s.e.)':>18}"


def first_rows(images: Images, rows: int) -> Images:
    """Fewer of them, for the fit and for its test."""
    return Images(images.x[:rows], images.labels[:rows], images.x_test[:rows], images.labels_test[:rows])


def without(images: Images, classes: tuple[int, ...]) -> Images:
    """The same but for some classes in the fit, the others numbered anew; the test is as it was."""
    kept = ~torch.isin(images.labels, torch.tensor(classes))
    labels = images.labels[kept].unique(return_inverse=True)[1]
    return Images(images.x[kept], labels, images.x_test, images.labels_test)


# --- worse images ---------------------------------------------------------------------------------------------------


def shot_noise(x: Tensor) -> Tensor:
    """Few photons: five for a white pixel."""
    return (torch.poisson(x * 5, generator=torch.Generator().manual_seed(1)) / 5).clamp(0, 1)


def impulse_noise(x: Tensor) -> Tensor:
    """Salt and pepper on 17 in 100 pixels."""
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    return torch.where(u < 0.085, 0.0, torch.where(u > 1 - 0.085, 1.0, x))


def rotation(x: Tensor) -> Tensor:
    """By 30 degrees."""
    side = math.isqrt(x.shape[1])
    turned = rotate(x.reshape(-1, side, side).numpy(), 30, axes=(2, 1), reshape=False, order=1)
    return torch.tensor(turned, dtype=torch.float32).reshape(len(x), -1).clamp(0, 1)


TESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": lambda x: x, "shot noise": shot_noise, "impulse noise": impulse_noise, "rotation": rotation,
}  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Accuracy and mean negative log probability of each model on one kind of test images."""

    test: str
    accuracy: dict[str, float] = field(default_factory=dict)
    nll: dict[str, float] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)

    def gain(self, name: str) -> tuple[float, float]:
        """How much lower a model's NLL is than that of the Gaussian process, and its standard error."""
        difference = self.losses["gaussian"] - self.losses[name]
        return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))

    def __str__(self) -> str:
        cells = "".join(f"{self.accuracy[name]:>15.4f}{self.nll[name]:>8.4f}" for name in MODELS)
        gain, error = self.gain("common")
        return f"{self.test:<14}{cells}{gain:>10.4f} ({error:.4f})"


def fit(name: str, images: Images, method: SVI, inducing: int) -> AbstractPosterior:
    """Fit one model."""
    classes = int(images.labels.max()) + 1
    model = ScaleMixtureClassifier(num_classes=classes, inducing=inducing, **MODELS[name])
    return infer(model, (images.x, images.labels), method, seed=0, throw=False)


def probabilities(posterior: AbstractPosterior, x: Tensor) -> Tensor:
    """Log probabilities of all classes."""
    return posterior.program.predictive(x, posterior).logits


def measure(images: Images, fits: dict[str, AbstractPosterior]) -> list[Row]:
    """All models on all kinds of test images."""
    rows = []
    for test, change in TESTS.items():
        row, x = Row(test), change(images.x_test)
        for name, posterior in fits.items():
            log_prob = probabilities(posterior, x)
            row.accuracy[name] = float((log_prob.argmax(-1) == images.labels_test).double().mean())
            row.losses[name] = -log_prob.gather(-1, images.labels_test[:, None]).squeeze(-1).double()
            row.nll[name] = float(row.losses[name].mean())
        rows.append(row)
    return rows


def unsure(images: Images, posterior: AbstractPosterior) -> tuple[float, float]:
    """How well entropy tells held-out classes (area under the curve), and its mean on them, nats."""
    log_prob = probabilities(posterior, images.x_test)
    entropy = -(log_prob.exp() * log_prob).sum(-1)
    unknown = torch.isin(images.labels_test, torch.tensor(HELD_OUT))
    return roc_auc_score(unknown.numpy(), entropy.numpy()), float(entropy[unknown].mean())


# --- the report -----------------------------------------------------------------------------------------------------


def report(images: Images, method: SVI, inducing: int) -> tuple[str, float]:
    """The table with its lines, and the largest difference in accuracy on clean images."""
    start = time.perf_counter()
    fits = {name: fit(name, images, method, inducing) for name in MODELS}
    seconds = time.perf_counter() - start
    rows, steps = measure(images, fits), sum(posterior.history["elbo"].shape[1] for posterior in fits.values())
    known = without(images, HELD_OUT)
    held_out = {name: unsure(known, fit(name, known, method, inducing)) for name in MODELS}
    lines = [
        f"fit: {len(images.x)} rows, {inducing} inducing rows; test: {len(images.x_test)} rows; NLL in nats; gain: of "
        "the common variance over the Gaussian process",
        HEADER,
        *map(str, rows),
        f"{'held out':<14}" + "".join(f"{auc:>15.4f}{entropy:>8.4f}" for auc, entropy in held_out.values()),
        f"(held out: classes {', '.join(map(str, HELD_OUT))}; area under the curve by which the entropy tells them, and"
        " its mean on them)",
        "",
        *(f"{name}_seconds={posterior.seconds:.0f}" for name, posterior in fits.items()),
        *(f"elbo_{name}={posterior.elbo[0]:.1f}" for name, posterior in fits.items()),
        *(f"df_{name}={float(2 * fits[name].guide.concentration.mean()):.0f}" for name in ("common", "by_class")),
        f"milliseconds_per_step={1000 * seconds / steps:.0f}",
    ]
    for row in rows:
        for name in ("common", "by_class"):
            lines.append(f"nll_gain_{name}_{row.test.replace(' ', '_')}={row.gain(name)[0]:.4f}")
    accuracies = rows[0].accuracy.values()
    difference = max(accuracies) - min(accuracies)
    return "\n".join([*lines, f"largest_difference_in_accuracy={difference:.4f}"]), difference


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the fit and of the test, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if (found := chosen(options)) is None:
        return
    method, inducing = SVI(batch_size=250), 200
    if options.quick:
        method, inducing = SVI(batch_size=150, learning_rate=0.03, max_steps=200), 50
    text, difference = report(first_rows(found, options.rows), method, inducing)
    print(text)
    if options.save:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "nngp_classification.txt").write_text(text + "\n", encoding="utf-8")
    if difference > LARGEST_DIFFERENCE and not options.quick:
        sys.exit(f"accuracies on clean images differ by more than {LARGEST_DIFFERENCE:g}")


if __name__ == "__main__":
    main()
