# %% [markdown]
# # Digits: clusters, a dial, and the way back
#
# A generator goes from a latent vector to an image. With a mixture of Gaussians as its prior every image also has a
# component. Here we train such generators on small handwritten digits, without labels and with them; turn the dial
# between typical and varied images; and then go back: given an image, which component and which latent vector has it
# come from? That is Bayesian inference, and the trained generator with its prior is a program like any other. It also
# fills in what an image lacks.
#
# Numbers that depend on a trained network differ from machine to machine. So the text keeps to what is plain to see,
# and each of its statements is checked by an `assert` in a cell next to it.

# %%
import os

import arviz as az
import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from probmix.diagnostics import nested_rhat
from probmix.inference import Adversarial, ChEES, Inversion, infer
from probmix.models import MixtureGAN, MixtureLatent, generator_program
from probmix.plots import plot_dial, plot_images
from probmix.sample_quality import class_scores, clustering_accuracy, intra_class_diversity, purity

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few steps and rows, no assert that needs many
steps, held_out = (3000, 300) if full else (60, 20)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The data
#
# scikit-learn's digits: 1,797 pictures of 8 x 8 pixels, from 0 (white) to 1 (black). We train on 1,200 and keep the
# others.

# %%
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x_test, y_test = x[order[1200 : 1200 + held_out]], y[order[1200 : 1200 + held_out]]
x, y = x[order[:1200]], y[order[:1200]]


def squares(rows):
    """Rows of 64 pixels as pictures."""
    return rows.detach().reshape(-1, 8, 8)


plot_images(squares(x[:20]), columns=20)
# %% [markdown]
# ## Clusters that the game finds
#
# Ten components, far apart, and no labels. Nothing in the game of generator and discriminator says that a component
# should be a digit: it only has to make images that look real. `recognise=True` adds what the game lacks: the
# discriminator also guesses from which component an image comes, and the generator is rewarded if it can. That makes
# clusters, and the guess assigns real images to them.

# %%
method = Adversarial(steps=steps, batch_size=64, learning_rate=1e-3, gradient_penalty=1.0)
unlabelled = infer(MixtureGAN(MixtureLatent(10, 8, component_std=0.5), recognise=True, width=128), x, method, seed=0)
print(unlabelled.status)
cluster = unlabelled.program.responsibilities(x).argmax(-1)
k_means = torch.tensor(KMeans(10, n_init=10, random_state=0).fit_predict(x.numpy())).long()
scores = pd.DataFrame(
    {
        name: {"accuracy": clustering_accuracy(found, y), "purity": purity(found, y)}
        for name, found in {"components": cluster, "k-means on pixels": k_means}.items()
    }
)
scores.round(2)

# %%
made = unlabelled.program.sample(100, seed=0, component=torch.arange(10).repeat_interleave(10))
plot_images(squares(made.x), columns=10, row_labels=[f"component {k}" for k in range(10)])
# %% [markdown]
# Each component has a style of its own, and most are of one digit. But the clusters are those that are easiest to tell
# apart, not those that we have names for: they match the digits no better than those of k-means do, rather less well. A
# mixture prior does not make a generator a good clustering method; what it gives is below.

# %%
if full:
    assert scores.loc["accuracy", "components"] > 0.4  # chance is about 0.15
    assert scores.loc["accuracy", "components"] < scores.loc["accuracy", "k-means on pixels"] + 0.05
    assert torch.bincount(cluster, minlength=10).min() > 30

# %% [markdown]
# ## A component for each digit
#
# With labels we can say which component is to make which digit: `labels=range(10)` maps component to class, and the
# discriminator has one score for each class. (More components than classes are fine, as long as every class has one.)

# %%
latent = MixtureLatent(10, 8, component_std=0.4, labels=range(10))
fit = infer(MixtureGAN(latent, supervision="each_class", width=128), (x, y), method, seed=0)
model = fit.program
print(fit.status)
made = model.sample(100, seed=0, component=torch.arange(10).repeat_interleave(10))
plot_images(squares(made.x), columns=10, row_labels=[f"component {k}" for k in range(10)])
# %% [markdown]
# ## The dial
#
# After training the covariances of the components can be multiplied by a temperature. Below 1 images are more typical,
# above 1 more varied. An independent classifier, trained on the images that were kept out, judges the quality: the
# exponential of minus the mean entropy of its answer, 1 where it is always certain. Diversity is the mean distance of
# two images of the same digit.

# %%
judge = MLPClassifier((64,), max_iter=1000, alpha=0.1, random_state=0)
rest = order[1200:]
judge.fit(images[rest.numpy()] / 16, labels[rest.numpy()])


def turned(temperature):
    """Quality, diversity and share of right digits at a temperature."""
    draws = model.sample(3000, seed=1, temperature=temperature)
    log_probs = torch.tensor(judge.predict_log_proba(draws.x.numpy()))
    right = float((log_probs.argmax(-1) == draws.component).double().mean())
    quality = float(class_scores(log_probs).quality)
    return quality, float(intra_class_diversity(draws.x, draws.component).mean), right


temperatures = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
dial = pd.DataFrame([turned(t) for t in temperatures], columns=["quality", "diversity", "right"], index=temperatures)
plot_dial(temperatures, dial["quality"], dial["diversity"])
dial.round(3)

# %% [markdown]
# Every turn trades quality for diversity, without training anything again.

# %%
if full:
    assert dial["quality"].is_monotonic_decreasing
    assert dial["diversity"].is_monotonic_increasing
    assert dial.loc[1.0, "right"] > 0.8
    assert dial.loc[0.25, "right"] > dial.loc[2.0, "right"]

# %% [markdown]
# ## The way back
#
# `generator_program` is the trained generator as a program: latent vector from the mixture, image from the generator,
# and normal noise, here of standard deviation 0.15, since no generator makes an image exactly. `Inversion` finds the
# posterior of the latent vector of each image: it searches every component by itself, all images and components as one
# batch, approximates each mode by a normal distribution and corrects by importance weights. We ask for images that the
# generator has never seen.

# %%
program = generator_program(model, noise_std=0.15)
inverse = infer(program, x_test, Inversion(restarts=2), seed=0)
print(inverse.status)
component = inverse.guide.mean(model.latent.responsibilities(inverse.guide.draws))
right = component.argmax(-1) == y_test
print(f"component right: {float(right.double().mean()):.2f}")

# %%
back = model.generate(inverse.sites()["z"])
first = torch.cat([torch.arange(len(x_test))[right][:8], torch.arange(len(x_test))[~right][:2]])
plot_images(
    squares(torch.cat([x_test[first], back[first]])), columns=len(first), row_labels=["held out", "reconstruction"]
)
# %% [markdown]
# The component of most images is their digit, although nothing was ever trained to classify. The posterior also says
# when it is not sure, and the evidence, the density of an image under the whole model, tells what is no digit at all.

# %%
shuffled = x_test[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]
other = infer(program, shuffled, Inversion(), seed=0)
certain = component.amax(-1)
print(f"mean certainty where right {float(certain[right].mean()):.2f}, where wrong {float(certain[~right].mean()):.2f}")

fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name, found in {"digits": inverse, "their pixels shuffled": other}.items():
    ax.hist(found.guide.log_evidence.numpy(), bins=40, alpha=0.6, label=name)
ax.set(xlabel="log evidence of an image (nats)", ylabel="images")
ax.legend()
# %%
if full:
    assert float(right.double().mean()) > 0.85
    assert certain[right].mean() > certain[~right].mean()
    assert inverse.guide.log_evidence.median() > other.guide.log_evidence.median() + 50

# %% [markdown]
# ## Filling in
#
# Numbers that are not known are NaN. We take away the lower half of some images and ask for the rest: each draw from
# the posterior is one way to complete the image. Where the upper half leaves open which digit it is, so do the draws.

# %%
holes = x_test[:8].clone()
holes[:, 32:] = torch.nan
filled = infer(program, holes, Inversion(restarts=2), seed=0)
ways = model.generate(filled.sample(4, seed=1)["z"])  # (4, 8, 64)
rows = torch.cat([x_test[:8], holes, *ways])
plot_images(squares(rows), columns=8, row_labels=["held out", "given", *[f"draw {i}" for i in range(1, 5)]])
# %%
draws = model.generate(filled.sample(100, seed=1)["z"])
error = (draws.mean(0) - x_test[:8])[:, 32:].square().mean().sqrt()
blind = (x.mean(0) - x_test[:8])[:, 32:].square().mean().sqrt()
print(f"root mean square error of the missing half: {float(error):.2f}; of the mean digit there: {float(blind):.2f}")
if full:
    assert error < blind

# %% [markdown]
# ## Do chains agree?
#
# `Inversion` is quick because it approximates. Hamiltonian Monte Carlo does not, and takes the same program. Its 64
# chains begin at eight draws of the inversion, so that they would notice if one of its modes were none. The nested
# r-hat of every pixel of the reconstruction compares the eight groups.

# %%
row = int(torch.arange(len(x_test))[right & (certain > 0.99)][0]) if full else 0
start = {"z": inverse.sample(8, seed=1)["z"][:, row : row + 1]}
size = {} if full else {"warmup": 10, "draws": 10}
chains = infer(program, x_test[row : row + 1], ChEES(init=start, **size), seed=0)
print(chains.status)
pixels = model.generate(chains.draws["z"])[:, :, 0]
moving = pixels.flatten(0, 1).std(0) > 0.01  # a pixel that is always white has no r-hat
rhat = nested_rhat(pixels[..., moving], 8)
by_chains = model.latent.responsibilities(chains.draws["z"]).mean((0, 1, 2))
print(f"largest nested r-hat {rhat.max():.3f}; probability of the component {float(by_chains.max()):.2f}")

# %% [markdown]
# For an image with one mode they agree, and ArviZ takes it from there. For an image that could be two digits the groups
# stay where they begin, and r-hat says so: then the weights of `Inversion` are the better answer to how probable each
# is, and the chains to what each looks like.

# %%
if full:
    assert rhat.max() < 1.05
    assert abs(float(by_chains.max() - component[row].max())) < 0.05
az.summary(chains.to_arviz(prior_draws=0, predictive_draws=0, log_likelihood=False), var_names=["z"])
