"""Autoencoders with a mixture prior: what it brings in likelihood, clusters and labels, and what a step costs.

The same networks everywhere: two hidden layers of 256 units each way. A normal prior is trained for all steps; a
mixture of ten starts from an EM fit of the codes at half, and has the other half. Accuracy of clusters is that of the
best one-to-one map onto the classes. Labels: one in twenty of the rows has one, and the encoder has two convolutions.
A plain loop of PyTorch (networks, Adam and batches alike, the divergence from a normal by its formula) is what a step
is compared with.

    python benchmarks/mixture_vae.py --data FOLDER [--set mnist] [--only priors labels cost] [--device cuda] [--save]
    python benchmarks/mixture_vae.py --quick

FOLDER (or PROBMIX_DATA) holds ``mnist/<set>`` with the four IDX files of MNIST, or of a set of that form; with
``--quick`` (under a minute) scikit-learn's 1,797 small digits take its place. Pixels are on above one half.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from image_sets import Images, Wanted, add_arguments, chosen, clock, measure
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from probmix.inference import EM, SVI, infer
from probmix.models import GaussianMixture, MixtureLatent, MixtureVAE
from probmix.networks import decoder_network, encoder_network
from probmix.posterior import AbstractPosterior
from probmix.sample_quality import clustering_accuracy

COVARIANCE = "EEV"  # of the codes: one volume and shape, and a direction of its own for each component
LARGEST_COST = 1.1  # of a step, times that of the plain loop


@dataclass(frozen=True)
class Work:
    """How much to do."""

    seeds: int
    dim: int
    steps: int
    labelled_steps: int


FULL, QUICK = Work(3, 10, 14_000, 9000), Work(1, 5, 2000, 1000)


def binary(images: Images) -> Images:
    """Images whose pixels above one half are on."""
    shape = (1, images.side, images.side)
    x, x_test = ((rows > 0.5).float().unflatten(-1, shape) for rows in (images.x, images.x_test))
    return Images(x, images.labels, x_test, images.labels_test)


# --- networks -------------------------------------------------------------------------------------------------------


def decoder(dim: int, shape: tuple[int, ...]) -> nn.Module:
    """Hidden layers, then an image."""
    return nn.Sequential(decoder_network(dim, (math.prod(shape),)), nn.Unflatten(-1, shape))


def encoder(dim: int, shape: tuple[int, ...]) -> nn.Module:
    """An image, then hidden layers."""
    return nn.Sequential(nn.Flatten(), encoder_network((math.prod(shape),), 2 * dim))


def model(prior: MixtureLatent, images: Images, *, convolutions: bool = False, **settings: float) -> MixtureVAE:
    """An untrained model."""
    shape = tuple(images.x.shape[1:])
    first = encoder_network(shape, 2 * prior.dim, width=128) if convolutions else encoder(prior.dim, shape)
    return MixtureVAE(prior, first, decoder(prior.dim, shape), **settings)


# --- measuring ------------------------------------------------------------------------------------------------------


def fit(vae: MixtureVAE, data: Tensor | tuple[Tensor, ...], steps: int, seed: int) -> AbstractPosterior:
    """Fit for a given number of steps, unless the ELBO stops rising before."""
    return infer(vae, data, SVI(batch_size=128, max_steps=steps), seed=seed, throw=False)


@dataclass(frozen=True)
class Row:
    """What one seed gives."""

    normal: Tensor
    mixture: Tensor
    start: float
    clusters: float
    used: int
    seconds: float

    @property
    def gain(self) -> tuple[float, float]:
        """Mean difference of log likelihoods of test images, and its standard error over them."""
        difference = self.mixture - self.normal
        return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def of_priors(images: Images, work: Work, seed: int) -> Row:
    """A normal prior and a mixture, with the same number of steps."""
    begun, dim, half = time.perf_counter(), work.dim, work.steps // 2
    torch.manual_seed(seed)
    vae = model(MixtureLatent(1, dim, component_std=1.0), images)
    alone = fit(vae, images.x, half, seed)
    codes = alone.program.encode(images.x[:20_000])
    em = infer(GaussianMixture(10, COVARIANCE), codes.loc.double(), EM(restarts=5), seed=seed, throw=False)
    started = alone.program.with_prior(em.sites(), codes, learn_weights=True)
    joint, normal = fit(started, images.x, half, seed).program, fit(alone.program, images.x, half, seed).program
    x, labels = images.x_test, images.labels_test
    return Row(
        normal.log_likelihood(x[:2000], draws=100, seed=seed),
        joint.log_likelihood(x[:2000], draws=100, seed=seed),
        clustering_accuracy(started.predict(x), labels),
        clustering_accuracy(joint.predict(x), labels),
        int(joint.collapse(x).used.sum()),
        time.perf_counter() - begun,
    )


def of_pixels(images: Images) -> tuple[float, float]:
    """Accuracy of k-means and of a mixture of normals on the pixels."""
    varies = images.x.flatten(1)[:10_000].var(0) > 1e-3
    x, x_test = images.x.flatten(1)[:10_000, varies], images.x_test.flatten(1)[:, varies]
    k_means = KMeans(10, n_init=5, random_state=0).fit(x.cpu()).predict(x_test.cpu())
    em = infer(GaussianMixture(10, covariance="diagonal"), x, EM(restarts=5), seed=0, throw=False)
    log_prob = em.program.log_prob_components(x_test, em.sites())
    found = (torch.as_tensor(k_means).to(images.labels_test), log_prob.argmax(-1))
    return clustering_accuracy(found[0], images.labels_test), clustering_accuracy(found[1], images.labels_test)


def of_labels(images: Images, work: Work) -> tuple[float, int, float]:
    """Test accuracy with one label in twenty, how many that is, and seconds."""
    begun, num = time.perf_counter(), len(images.x) // 20
    kept = torch.randperm(len(images.x), generator=torch.Generator().manual_seed(0))[:num].to(images.x.device)
    y = torch.full_like(images.labels, -1)
    y[kept] = images.labels[kept]
    torch.manual_seed(0)
    prior = MixtureLatent(10, 16, dynamic=True, component_std=0.5, learn_weights=True, labels=range(10))
    vae = fit(model(prior, images, convolutions=True, class_weight=50.0), (images.x, y), work.labelled_steps, 0)
    right = vae.program.predict(images.x_test) == images.labels_test
    return float(right.double().mean()), num, time.perf_counter() - begun


def plain_loop(images: Images, dim: int, steps: int) -> float:
    """Seconds for a step, written by hand."""
    torch.manual_seed(0)
    shape, device = tuple(images.x.shape[1:]), images.x.device
    first, last = encoder(dim, shape).to(device), decoder(dim, shape).to(device)
    optimiser = torch.optim.Adam([*first.parameters(), *last.parameters()], lr=1e-3)
    begun, done = clock(device), 0
    while done < steps:
        for rows in torch.randperm(len(images.x), device=device).split(128)[:-1]:
            x = images.x[rows]
            loc, log_std = first(x).chunk(2, -1)
            z = loc + log_std.exp() * torch.randn_like(loc)
            lost = 0.5 * (loc.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum()
            loss = binary_cross_entropy_with_logits(last(z), x, reduction="sum") + lost
            optimiser.zero_grad()
            (loss / len(x)).backward()
            optimiser.step()
            done += 1
    return (clock(device) - begun) / done


def our_loop(images: Images, dim: int, steps: int) -> float:
    """The same by `infer`: long fit minus short one, as both end with an ELBO of all rows."""
    seconds = []
    for num in (steps // 4, steps + steps // 4):
        torch.manual_seed(0)
        vae, begun = model(MixtureLatent(1, dim, component_std=1.0), images), clock(images.x.device)
        infer(vae, images.x, SVI(batch_size=128, max_steps=num, tolerance=-math.inf), seed=0, throw=False)
        seconds.append(clock(images.x.device) - begun)
    return (seconds[1] - seconds[0]) / steps


# --- the report -----------------------------------------------------------------------------------------------------


def priors(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Likelihood and clusters of both priors, for every seed."""
    rows = [of_priors(images, work, seed) for seed in range(work.seeds)]
    k_means, pixels = of_pixels(images)
    lines = [
        f"{len(images.x)} images, {len(images.x_test)} in the test; log p(x) of {len(rows[0].normal)}, 100 draws, nats",
        f"{'seed':<6}{'normal prior':>14}{'mixture':>10}{'gain (s.e.)':>16}{'clusters: EM':>14}{'joint':>8}{'used':>6}",
    ]
    for seed, row in enumerate(rows):
        gain, error = row.gain
        lines.append(
            f"{seed:<6}{float(row.normal.mean()):>14.2f}{float(row.mixture.mean()):>10.2f}{gain:>9.2f} ({error:.2f})"
            f"{row.start:>14.3f}{row.clusters:>8.3f}{row.used:>6}"
        )
    lines.append(f"clusters of pixels: k-means {k_means:.3f}, mixture of normals {pixels:.3f}")
    gains, clusters = [row.gain[0] for row in rows], [row.clusters for row in rows]
    return lines, {
        "gain_nats": np.mean(gains), "least_gain_nats": min(gains), "accuracy_of_clusters": np.mean(clusters),
        "least_accuracy_of_clusters": min(clusters), "accuracy_of_k_means": k_means, "accuracy_of_pixels": pixels,
        "seconds_priors": np.mean([row.seconds for row in rows]),
    }  # fmt: skip


def labels(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Accuracy with few labels."""
    accuracy, num, seconds = of_labels(images, work)
    return [f"{num} labels: accuracy {accuracy:.4f}"], {"accuracy_with_labels": accuracy, "seconds_labels": seconds}


def cost(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Milliseconds of a step in both loops, in turn: medians of five."""
    pairs = [(1000 * plain_loop(images, work.dim, 200), 1000 * our_loop(images, work.dim, 200)) for _ in range(5)]
    plain, ours = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(b / a for a, b in pairs)
    return [f"milliseconds of a step: plain loop {plain:.2f}, probmix {ours:.2f}"], {"ours_over_plain": ratio}


PARTS = {"priors": priors, "labels": labels, "cost": cost}
WANTED: Wanted = {
    "priors": {
        "a mixture gains likelihood for every seed": lambda of: of["least_gain_nats"] > 0,
        "clusters beat those of pixels for every seed": lambda of: (
            of["least_accuracy_of_clusters"] > max(of["accuracy_of_k_means"], of["accuracy_of_pixels"])
        ),
    },
    "labels": {},
    "cost": {"a step costs no more": lambda of: of["ours_over_plain"] <= LARGEST_COST},
}


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if (images := chosen(options)) is None:
        return
    images = binary(images)
    measure("mixture_vae", options, PARTS, WANTED, images, QUICK if options.quick else FULL)


if __name__ == "__main__":
    main()
