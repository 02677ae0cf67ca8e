"""Generators with a mixture prior: modes kept, labels right, a dial that works, inversion, and what a step costs.

On 25 Gaussians of a 5 x 5 grid the same networks are trained with a normal prior and with a learnt mixture of 25, in
two and in eight latent dimensions. The learning rate was chosen for the mixture in eight: at twice that, one seed in
eight lost a mode, and the normal prior kept 8 to 15 of 25. Spread is the root mean square distance of high-quality
draws from their mode, relative to that of the data: a count of modes does not see that they have shrunk. On images both
supervised games are trained on two thirds of the rows; a classifier of the other third, which the discriminator never
sees, says what the generated images show. The second generator is then inverted: the component of held-out images
beside a classifier trained on pairs of generated image and component, and chains from several modes. A step is compared
with the same step in a plain loop of PyTorch, without averages and looks.

    python benchmarks/mixture_gan.py --data FOLDER [--set mnist] [--only toy games cost] [--device cuda] [--save]
    python benchmarks/mixture_gan.py --quick

FOLDER (or PROBMIX_DATA) holds ``mnist/<set>`` with the four IDX files of MNIST, or of a set of that form; with
``--quick`` (under a minute, and too few steps for the claims) scikit-learn's small digits take its place. Half an hour.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from image_sets import Images, Wanted, add_arguments, chosen, clock, measure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from probmix.diagnostics import nested_rhat
from probmix.inference import Adversarial, ChEES, Inversion, infer
from probmix.models import MixtureGAN, MixtureLatent, generator_program
from probmix.networks import encoder_network
from probmix.sample_quality import class_scores, intra_class_diversity, mode_coverage

TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
GAMES = ("each_class", "classes_and_fake")
NOISE_STD = 0.5  # of an inversion: pixels of one image are wrong together, so a larger one than a residual's 0.12
LARGEST_COST = 1.1  # of a step, times that of the plain loop
SUPERCHAINS = 8


@dataclass(frozen=True)
class Work:
    """How much to do."""

    seeds: int
    toy_steps: int
    steps: int
    classifier_steps: int
    inverted: int
    chained: int
    restarts: int
    timed_steps: int


FULL = Work(5, 5000, 10_000, 3000, 1000, 20, 4, 300)
QUICK = Work(1, 400, 400, 300, 50, 1, 1, 50)


# --- 25 Gaussians ---------------------------------------------------------------------------------------------------


def toy(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Modes and high-quality draws of both priors, for every seed; of the images only their device counts."""
    device, axis = images.x.device, torch.arange(-4.0, 5.0, 2.0)
    centres, generator = torch.cartesian_prod(axis, axis), torch.Generator().manual_seed(0)
    x = centres[torch.randint(25, (50_000,), generator=generator)] + 0.05 * torch.randn(50_000, 2, generator=generator)
    centres, x = centres.to(device), x.to(device)
    priors = {
        "normal, d=2": lambda: MixtureLatent(1, 2, component_std=1.0),
        "mixture, d=2": lambda: MixtureLatent(25, 2, loc_range=3.0, component_std=0.1, dynamic=True),
        "normal": lambda: MixtureLatent(1, 8, component_std=1.0),
        "mixture": lambda: MixtureLatent(25, 8, component_std=0.1, dynamic=True),
    }
    lines = [f"{'25 Gaussians':<14}{'seed':>6}{'modes':>8}{'high quality':>14}{'spread':>8}{'KL':>8}{'seconds':>9}"]
    claims = {}
    method = Adversarial(steps=work.toy_steps, batch_size=256, learning_rate=5e-4)
    for name, latent in priors.items():
        found = []
        for seed in range(work.seeds):
            fit = infer(MixtureGAN(latent(), value_range=None, width=128), x, method, seed=seed)
            made = fit.program.sample(10_000, seed=seed).x
            score = mode_coverage(made, centres, 0.05, least=20)
            distance, mode = torch.cdist(made, centres).min(-1)
            spread = float((made - centres[mode])[distance < 0.15].square().mean().sqrt()) / 0.05
            found.append((int(score.modes), float(score.high_quality)))
            lines.append(
                f"{name:<14}{seed:>6}{found[-1][0]:>8}{found[-1][1]:>14.3f}{spread:>8.2f}{float(score.kl):>8.3f}"
                f"{fit.seconds:>9.0f}"
            )
        label = name.replace(", d=", "_")
        claims[f"least_modes_{label}"] = min(modes for modes, _ in found)
        claims[f"least_high_quality_{label}"] = min(share for _, share in found)
    return lines, claims


# --- labels and the dial --------------------------------------------------------------------------------------------


def classifier(inputs: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """A convolutional classifier of rows of pixels, fitted to what is given."""
    side = round(inputs.shape[1] ** 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Unflatten(1, (1, side, side)), encoder_network((1, side, side), 10, width=128))
        network.to(inputs)
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (128,), device=inputs.device)
            optimiser.zero_grad()
            cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def right(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Share of labels that a classifier gives."""
    return float((network(x).argmax(-1) == labels).double().mean())


def trained(images: Images, game: str, work: Work, seed: int) -> MixtureGAN:
    """A supervised generator, a component for each class."""
    latent = MixtureLatent(10, 16, component_std=0.2 if game == "each_class" else 0.5, labels=range(10))
    method = Adversarial(steps=work.steps, learning_rate=5e-4, gradient_penalty=2.0)
    two_thirds = 2 * len(images.x) // 3
    data = (images.x[:two_thirds], images.labels[:two_thirds])
    return infer(MixtureGAN(latent, supervision=game), data, method, seed=seed).program


def dial(model: MixtureGAN, judge: nn.Module) -> list[tuple[float, float, float]]:
    """Right labels, quality and diversity within classes at every temperature."""
    found = []
    for temperature in TEMPERATURES:
        x, _, component = model.sample(5000, seed=1, temperature=temperature)
        quality = float(class_scores(judge(x).log_softmax(-1)).quality)
        found.append((right(judge, x, component), quality, float(intra_class_diversity(x, component).mean)))
    return found


def supervised(images: Images, work: Work) -> tuple[list[str], dict[str, float], MixtureGAN]:
    """Both games: what a classifier of rows that the game has not seen says of their images."""
    last_third = 2 * len(images.x) // 3
    judge = classifier(images.x[last_third:], images.labels[last_third:], work.classifier_steps, seed=0)
    lines = [
        f"judge: {right(judge, images.x_test, images.labels_test):.4f} of test labels right",
        f"{'game':<18}{'temperature':>12}{'labels right':>14}{'quality':>9}{'diversity':>11}",
    ]
    claims, models = {}, {}
    for game in GAMES:
        models[game] = trained(images, game, work, seed=0)
        found = dial(models[game], judge)
        for temperature, (labels, quality, diversity) in zip(TEMPERATURES, found, strict=True):
            lines.append(f"{game:<18}{temperature:>12.2f}{labels:>14.4f}{quality:>9.4f}{diversity:>11.3f}")
        claims[f"labels_right_{game}"] = found[TEMPERATURES.index(1.0)][0]
        claims[f"dial_monotone_{game}"] = all(a[1] > b[1] and a[2] < b[2] for a, b in pairwise(found))
    return lines, claims, models["classes_and_fake"]


# --- inversion ------------------------------------------------------------------------------------------------------


def inversion(images: Images, model: MixtureGAN, work: Work) -> tuple[list[str], dict[str, float]]:
    """Components of held-out images by their posterior and by a classifier of generated ones; chains."""
    x, labels = images.x_test[: work.inverted], images.labels_test[: work.inverted]
    pairs = model.sample(60_000 if work is FULL else 2000, seed=2)
    encoder = classifier(pairs.x, pairs.component, work.classifier_steps, seed=1)
    program = generator_program(model, NOISE_STD)
    fit = infer(program, x, Inversion(restarts=work.restarts), seed=0)
    component = fit.guide.mean(model.latent.responsibilities(fit.guide.draws)).argmax(-1)
    posterior, by_encoder = float((component == labels).double().mean()), right(encoder, x, labels)
    draws, agree = fit.sample(SUPERCHAINS, seed=1)["z"], []
    start = time.perf_counter()
    for row in range(work.chained):
        chains = infer(program, x[row : row + 1], ChEES(init={"z": draws[:, row : row + 1]}), seed=0)
        made = model.generate(chains.draws["z"])[:, :, 0]
        moves = made.flatten(0, 1).std(0) > 0.01  # of a pixel that never changes there is no r-hat
        agree.append(float(nested_rhat(made[..., moves], SUPERCHAINS).max()))
    seconds = time.perf_counter() - start
    together = sum(value < 1.05 for value in agree)
    lines = [
        f"{len(x)} held-out images, components right: by their posterior {posterior:.4f}, by a classifier of generated "
        f"pairs {by_encoder:.4f}",
        f"inversion: {fit.seconds:.0f} s, median Pareto k {fit.pareto_k:.2f}",
        f"64 chains for each of {work.chained} images: {seconds:.0f} s, nested r-hat of all pixels below 1.05 in "
        f"{together} (median of the largest {statistics.median(agree):.3f}, largest {max(agree):.3f})",
    ]
    claims = {
        "components_right_posterior": posterior, "components_right_encoder": by_encoder,
        "chains_agree": together / work.chained, "inverted_images_per_second": len(x) / fit.seconds,
    }  # fmt: skip
    return lines, claims


# --- what a step costs ----------------------------------------------------------------------------------------------


def plain(model: MixtureGAN, x: Tensor, steps: int) -> float:
    """Seconds for the game of Goodfellow et al. (2014), written out."""
    loc, std = model.latent.loc, float(model.latent.std[0, 0])
    g = torch.optim.Adam(model.generator.parameters(), 2e-4, betas=(0.5, 0.999), fused=True)
    d = torch.optim.Adam(model.discriminator.parameters(), 2e-4, betas=(0.5, 0.999), fused=True)

    def draws() -> Tensor:
        component = torch.randint(len(loc), (128,), device=x.device)
        return model.generator(loc[component] + std * torch.randn(128, loc.shape[1], device=x.device))

    start = clock(x.device)
    for _ in range(steps):
        with torch.no_grad():
            fake = draws()
        real = x[torch.randint(len(x), (128,), device=x.device)]
        loss = softplus(-model.discriminator(real)).mean() + softplus(model.discriminator(fake)).mean()
        d.zero_grad()
        loss.backward()
        d.step()
        loss = softplus(-model.discriminator(draws())).mean()
        g.zero_grad()
        loss.backward(inputs=list(model.generator.parameters()))
        g.step()
    return clock(x.device) - start


def fitted(model: MixtureGAN, x: Tensor, steps: int) -> float:
    """Seconds for the same by `infer`."""
    start = clock(x.device)
    infer(model, x, Adversarial(steps=steps), seed=0)
    return clock(x.device) - start


def cost(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Images per second of both loops, in turn on the same networks; a long fit minus a short one is without set-up."""
    x, model, ours, theirs = images.x, MixtureGAN(MixtureLatent(10, 32)), [], []
    for _ in range(5):
        theirs.append(plain(model.built_for(x), x, work.timed_steps))
        ours.append(fitted(model, x, work.timed_steps + 50) - fitted(model, x, 50))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    rate = [128 * work.timed_steps / statistics.median(seconds) for seconds in (ours, theirs)]
    line = f"images per second: probmix {rate[0]:.0f} (averages and looks included), plain loop {rate[1]:.0f}"
    return [line], {"probmix_over_plain_loop": ratio}


# --- the report -----------------------------------------------------------------------------------------------------


def games(images: Images, work: Work) -> tuple[list[str], dict[str, float]]:
    """Both supervised games, and one of their generators inverted."""
    lines, claims, model = supervised(images, work)
    more, found = inversion(images, model, work)
    return [*lines, "", *more], claims | found


PARTS = {"toy": toy, "games": games, "cost": cost}
WANTED: Wanted = {
    "toy": {
        "25 of 25 modes for every seed": lambda of: of["least_modes_mixture"] == 25,
        "at least 90 % high quality for every seed": lambda of: of["least_high_quality_mixture"] >= 0.9,
    },
    "games": {
        "the dial works": lambda of: all(of[f"dial_monotone_{game}"] for game in GAMES),
        "95 % of labels right": lambda of: min(of[f"labels_right_{game}"] for game in GAMES) >= 0.95,
        "the posterior beats the classifier": lambda of: (
            of["components_right_posterior"] >= of["components_right_encoder"]
        ),
    },
    "cost": {"a step costs no more": lambda of: of["probmix_over_plain_loop"] <= LARGEST_COST},
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
    measure("mixture_gan", options, PARTS, WANTED, images, QUICK if options.quick else FULL)


if __name__ == "__main__":
    main()
