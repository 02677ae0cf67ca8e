# %% [markdown]
# # Labels for one in twenty
#
# Pictures are cheap, labels are dear. A variational autoencoder learns from pictures alone how to write each as a few
# numbers, a **code**, and back; if the codes of a class are one component of a mixture of Gaussians, a few labels say
# which component is which class, and all pictures say where the components are. Here 60 of 1,197 small digits have a
# label. We see what the other 1,137 are good for, held against classifiers of the 60 and against a simple method that
# uses all as well; what such a model can do that a classifier cannot; and what is left when there are no labels at all.
#
# Numbers that depend on a trained network differ from machine to machine. So the text keeps to what is plain to see,
# and each of its statements is checked by an `assert` in a cell next to it.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading

from probmix.inference import EM, SVI, infer
from probmix.models import GaussianMixture, MixtureLatent, MixtureVAE
from probmix.plots import plot_dial, plot_images, plot_latent
from probmix.sample_quality import clustering_accuracy
from probmix.status import FitWarning

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few steps, no assert that needs many
first_steps, more_steps = (1500, 1000) if full else (20, 20)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 80
warnings.simplefilter("ignore", FitWarning)  # of the step limit, at which all fits of this page stop

# %% [markdown]
# ## The data
#
# scikit-learn's digits, 8 x 8 pixels from 0 (white) to 1. We hold out 600 for the test. Of the others six of each class
# keep their label, one in twenty; -1 stands for a class that is not known.

# %%
images, classes = load_digits(return_X_y=True)
x, truth = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x_test, truth_test, x, truth = x[order[:600]], truth[order[:600]], x[order[600:]], truth[order[600:]]


def labels_of_some(seed):
    """The class of six random rows of each class, and -1 for all others."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.full_like(truth, -1)
    for digit in range(10):
        rows = (truth == digit).nonzero().flatten()
        y[rows[torch.randperm(len(rows), generator=generator)[:6]]] = digit
    return y


y = labels_of_some(0)
known = y >= 0
print(f"{len(x)} digits, {int(known.sum())} of them with a label; {len(x_test)} for the test")
assert (len(x), int(known.sum()), len(x_test)) == (1197, 60, 600)
by_class = torch.cat([x[y == digit] for digit in range(10)]).reshape(10, 6, 8, 8)
ax = plot_images(by_class.transpose(0, 1).flatten(0, 1), columns=10, titles=[str(i) for i in range(10)] + [""] * 50)

# %% [markdown]
# ## The model, and a first fit
#
# Two lines say everything: the code has five numbers, its prior ten components, one for each class; the networks each
# way are two layers of 128 units, and a pixel is a Bernoulli variable (of a grey value: a share). The rest is `infer`
# with pictures and labels. The fit stops at its step limit, which it says; on a page that should not run for long we
# accept that.

# %%
prior = MixtureLatent(10, 5, dynamic=True, component_std=0.5, learn_weights=True, labels=range(10))
vae = MixtureVAE(prior, likelihood="bernoulli", width=128)

fit = infer(vae, (x, y), SVI(batch_size=128, max_steps=first_steps), seed=0)
print(fit.status)
model = fit.program
accuracy = float((model.predict(x_test) == truth_test).float().mean())
print(f"{100 * accuracy:.1f} % of the test digits right")

# %% [markdown]
# The bound of a row with a label sums over the components of its class, that of a row without over all of them. So
# that the few labels are heard among so many pixels, the log probability of the known classes given their codes is
# added to it, `class_weight` times.
#
# ## A better start
#
# At first the networks know nothing, and components that start at random settle before the codes mean anything. It is
# better to begin with one component, the usual autoencoder, and all pictures; then to place a component
# at the mean of the codes of each class that have a label, with their pooled variance; and to go on with everything.
# That is `with_prior`, which takes sites like those of a fitted `GaussianMixture`. The `codes` are passed, too, because
# each is a normal with a variance of its own, which the components have to make room for.


# %%
def fitted(untrained, data, steps):
    """The trained model."""
    return infer(untrained, data, SVI(batch_size=128, max_steps=steps), seed=0).program


def started(alone, codes, y):
    """A trained autoencoder with a component for each class, placed by the rows that have a label."""
    known = y >= 0
    loc = torch.stack([codes.loc[y == digit].mean(0) for digit in range(10)])
    var = (codes.loc[known] - loc[y[known]]).square().sum(0) / (known.sum() - 10)
    sites = {"weights": torch.full((10,), 0.1), "loc": loc, "cov": var.diag().expand(10, -1, -1)}
    return alone.with_prior(sites, codes, learn_weights=True, labels=range(10))


alone = fitted(MixtureVAE(MixtureLatent(1, 5, component_std=1.0), width=128), x, first_steps)
codes = alone.encode(x)
model = fitted(started(alone, codes, y), (x, y), more_steps)

# %% [markdown]
# ## Beside others, with three draws of the labels
#
# Sixty labels are few, and which sixty matters. So everything is done for three draws of them, and all autoencoders
# have the same number of steps:
#
# - *labels only*: logistic regression, the nearest neighbour, and the same autoencoder, of the 60 rows and no others;
# - *all rows*: the autoencoder with a mixture that starts at random, or as above; and label spreading, which passes
#   labels on from picture to similar picture.


# %%
def right(found):
    """Share of the test digits."""
    return float((torch.as_tensor(found) == truth_test).float().mean())


def accuracies(y):
    """Accuracy of all methods with these labels."""
    known = y >= 0
    few = (x[known], y[known])
    return {
        ("labels only", "logistic regression"): right(LogisticRegression(max_iter=2000).fit(*few).predict(x_test)),
        ("labels only", "nearest neighbour"): right(KNeighborsClassifier(1).fit(*few).predict(x_test)),
        ("labels only", "autoencoder"): right(fitted(vae, few, first_steps + more_steps).predict(x_test)),
        ("all rows", "autoencoder, random start"): right(fitted(vae, (x, y), first_steps + more_steps).predict(x_test)),
        ("all rows", "autoencoder, better start"): right(
            fitted(started(alone, codes, y), (x, y), more_steps).predict(x_test)
        ),
        ("all rows", "label spreading"): right(LabelSpreading(gamma=4, max_iter=100).fit(x, y).predict(x_test)),
    }


draws = pd.DataFrame({f"draw {seed}": accuracies(labels_of_some(seed)) for seed in range(3 if full else 1)})
draws["mean"] = draws.mean(axis=1)
draws.round(3)

# %% [markdown]
# The rows without labels are worth several per cent to the autoencoder, and with the better start it is ahead of the
# best classifier of the sixty alone. **Label spreading is better still, and takes a second**: where neighbours in the
# pixels are of one class, nothing has to be learnt. If all that you want is the class of such pictures, start there. An
# autoencoder is for what follows.

# %%
mean = draws["mean"]
if full:
    only, every = mean["labels only"], mean["all rows"]
    assert every["autoencoder, better start"] > only["autoencoder"] + 0.03
    assert every["autoencoder, random start"] > only["autoencoder"]
    assert every["autoencoder, better start"] > every["autoencoder, random start"]
    assert every["autoencoder, better start"] > only.max() + 0.005
    assert every["label spreading"] > every["autoencoder, better start"]
    assert every["autoencoder, better start"] > 0.87

# %% [markdown]
# ## What the components are
#
# Draws of each component, one row for each, are digits of its class.

# %%
component = torch.arange(10).repeat_interleave(10)
made = model.sample(100, seed=0, component=component)
ax = plot_images(made.x.reshape(-1, 8, 8), row_labels=[f"component {k}" for k in range(10)], value_range=(0, 1))

# %% [markdown]
# A judge who has seen all 1,197 labels, the nearest neighbour, takes most of them for what they should be. He is right
# about nearly all real digits.

# %%
judge = KNeighborsClassifier(1).fit(x, truth)
print(f"the judge is right about {100 * right(judge.predict(x_test)):.1f} % of the test digits")
meant = float((torch.as_tensor(judge.predict(made.x)) == component).float().mean())
print(f"and takes {100 * meant:.0f} % of the draws for a digit of the class of their component")
if full:
    assert right(judge.predict(x_test)) > 0.95
    assert meant > 0.7

# %% [markdown]
# Codes of the test digits, coloured by their true class, which the model has not seen, with the components as ellipses
# of one and two standard deviations. Of five dimensions this is the plane along which the components differ most, and
# what overlaps there may be apart in the others. (There are seven colours: 7, 8 and 9 have those of 0, 1 and 2, and
# dashed ellipses.)

# %%
fig, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
plot_latent(model.latent, z=model.encode(x_test).loc, component=truth_test, ax=ax)
legend = ax.get_legend()
legend.set_loc("upper left")
legend.set_bbox_to_anchor((1.0, 1.0))

# %% [markdown]
# ## The dial
#
# A temperature multiplies the covariances of all components after training. We measure the share of draws that the
# judge takes for their class, and how much they vary: the standard deviation of the pixels within a component, as a
# share of that of the real digits within a class.


# %%
def variety(pictures, groups):
    """Standard deviation of the pixels within a group."""
    return float(torch.stack([pictures[groups == k].var(0).sum() for k in range(10)]).mean().sqrt())


temperatures = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0]
many = torch.arange(10).repeat(200)
dial = {}
for t in temperatures:
    made = model.sample(2000, seed=0, component=many, temperature=t).x
    hits = (torch.as_tensor(judge.predict(made)) == many).float().mean()
    dial[t] = {"taken for its class": float(hits), "variety": variety(made, many) / variety(x, truth)}
dial = pd.DataFrame(dial).T
ax = plot_dial(temperatures, dial["taken for its class"], dial["variety"])
ax.set(xlabel="variety, share of the real one", ylabel="share taken for its class")
dial.round(2)

# %%
rows = [model.sample(10, seed=0, component=3, temperature=t).x for t in (0.1, 1.0, 4.0)]
ax = plot_images(
    torch.cat(rows).reshape(-1, 8, 8),
    row_labels=[f"a 3, temperature {t:g}" for t in (0.1, 1.0, 4.0)],
    value_range=(0, 1),
)

# %% [markdown]
# Low temperatures give one clean digit again and again, high ones give variety and nonsense. Even at 1 draws vary less
# than real digits: they are the means of pixels, and what of a digit does not fit into five numbers is averaged away.

# %%
if full:
    assert dial["variety"].is_monotonic_increasing
    assert dial["taken for its class"].iloc[0] > dial["taken for its class"].iloc[-1] + 0.1
    assert dial["variety"].loc[1.0] < 0.95

# %% [markdown]
# ## Is the code used?
#
# An autoencoder can fail in silence: its decoder does without some axes of the code, or without all of them (*posterior
# collapse*), or components are left without data. `collapse` looks at the codes of some rows and says so. For
# comparison we make it fail, by a divergence that weighs thirty times what it should.

# %%
crushed = fitted(
    MixtureVAE(MixtureLatent(1, 5, component_std=1.0), width=128, divergence_weight=30.0), x, more_steps // 2
)
for name, each in {"with labels": model, "crushed": crushed}.items():
    found = each.collapse(x_test)
    print(f"{name}: {found}")
    print("  spread of the codes along each axis:", [f"{value:.2f}" for value in found.spread])
    print("  divergence by axis, nats:", [f"{value:.2f}" for value in found.divergence])
    print("  use of the components:", [f"{value:.2f}" for value in found.use], "\n")

# %% [markdown]
# `spread` is the variance of the codes along an axis, as a share of the prior's; an axis is *active* if that is above
# 0.01, and a component *used* if it has more than a tenth of an even share of the rows. `divergence` is what an axis
# tells of a row when its component is known. With a mixture it may be near 0 where the spread is not: such an axis
# only tells the components apart.

# %%
if full:
    assert model.collapse(x_test).active.sum() >= 4
    assert model.collapse(x_test).used.all()
    assert not crushed.collapse(x_test).active.any()

# %% [markdown]
# ## No labels at all
#
# `alone`, the autoencoder above, has seen none. Its codes are points, and a mixture of ten Gaussians can be fitted to
# those by EM. That makes clusters, and a start for the joint fit, in which the networks make room for the components.
# To compare with, we go on with the normal prior, too, for as many steps.

# %%
em = infer(GaussianMixture(10), codes.loc, EM(restarts=10), seed=0)
clustered = alone.with_prior(em.sites(), codes, learn_weights=True)
joint = fitted(clustered, x, more_steps)
normal = fitted(alone, x, more_steps)

k_means = torch.as_tensor(KMeans(10, n_init=10, random_state=0).fit(x).predict(x_test)).long()
clusters = {
    "k-means of the pixels": k_means,
    "EM of the codes": clustered.predict(x_test),
    "joint": joint.predict(x_test),
}
agreement = {name: clustering_accuracy(found, truth_test) for name, found in clusters.items()}
print({name: round(value, 2) for name, value in agreement.items()})

# %% [markdown]
# Accuracy is that of the best one-to-one match of clusters and classes. **A cluster is not a class**: well over half of
# the digits are in the right one, but far from all, and k-means of the pixels does as well. (More axes, normal noise
# and a start by `GaussianMixture(10, "EEV")`, components of one volume and shape, do better on all 1,797 rows: 86 to
# 94 % right over nine fits, `benchmarks/digit_clusters.py`.) The table says where this one fails: rows are classes,
# columns the clusters of the joint fit.

# %%
table = pd.crosstab(truth_test.numpy(), joint.predict(x_test).numpy())
table.index.name, table.columns.name = "class", "cluster"
table

# %%
own = table.div(table.sum(axis=1), axis=0).max(axis=1)  # largest share of a class in one cluster
commonest = table.idxmax(axis=0)
split = own.idxmin()
print(
    f"best kept together: {own.idxmax()} ({100 * own.max():.0f} % in one cluster); most torn: {split} ({own.min():.2f})"
)
names = [f"cluster {k}: mostly {commonest[k]}" if k in commonest else f"cluster {k}" for k in range(10)]
made = joint.sample(100, seed=0, component=component).x
ax = plot_images(made.reshape(-1, 8, 8), row_labels=names, value_range=(0, 1))

# %% [markdown]
# Some classes are one cluster, nearly without exception. Others are torn, because there are several ways to write them,
# or share a cluster with one that looks alike, and may have none of their own. To the model that is as good: it
# describes pictures, not meanings. That is what sixty labels were for.

# %%
if full:
    assert all(0.55 < value < 0.9 for value in agreement.values())
    assert abs(agreement["joint"] - agreement["k-means of the pixels"]) < 0.15
    assert own.max() > 0.9
    assert own.min() < 0.8
    assert right(model.predict(x_test)) > agreement["joint"]

# %% [markdown]
# ## What the mixture is worth in likelihood
#
# How well does a model describe pictures that it has not seen? `log_likelihood` estimates log p(x) of each, by
# importance sampling with 100 draws of its code. The bound of the fit is below it. Both priors have had the same
# networks, the same steps and no label.

# %%
log_normal, log_mixture = (each.log_likelihood(x_test, draws=100, seed=0) for each in (normal, joint))
gain = log_mixture - log_normal
error = float(gain.std() / len(gain) ** 0.5)
print(f"normal prior {log_normal.mean():.2f}, mixture {log_mixture.mean():.2f} nats for each digit")
print(
    f"gain {gain.mean():.2f}, standard error {error:.2f}; with labels {model.log_likelihood(x_test, seed=0).mean():.2f}"
)

# %% [markdown]
# The mixture is better by more than its standard error can explain, though not by much: flexible networks can bend a
# normal to most shapes. Labels cost little of it.

# %%
if full:
    assert float(gain.mean()) > 3 * error
    assert float(gain.mean()) < 2
    assert float(model.log_likelihood(x_test, seed=0).mean()) > float(log_mixture.mean()) - 0.5

# %% [markdown]
# ## Two factors
#
# Pictures may differ in two respects that have nothing to do with each other. Here half of them, at random, are turned
# into negatives. The code now has two parts, each with a prior and labels of its own: five numbers for the digit, two
# for the polarity. In this section all labels are known.

# %%
negative = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.5
pictures = torch.where(negative[:, None], 1 - x, x)
digit = MixtureLatent(10, 5, dynamic=True, component_std=0.5, labels=range(10))
polarity = MixtureLatent(2, 2, dynamic=True, component_std=0.5, labels=range(2))
two = fitted(MixtureVAE((digit, polarity), width=128), (pictures, truth, negative.long()), first_steps)

firsts = torch.stack([x_test[truth_test == k][0] for k in range(10)])
swapped = two.recombine(firsts, 1 - firsts.roll(1, 0))
grid = torch.cat([firsts, 1 - firsts.roll(1, 0), swapped]).reshape(-1, 8, 8)
ax = plot_images(grid, row_labels=["digit of these", "polarity of these", "recombined"], value_range=(0, 1))

# %% [markdown]
# The third row has the digit of the first and the polarity of the second: `recombine` takes one part of the code from
# each. Of all test digits:

# %%
other = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(2))
mixed = two.recombine(x_test, 1 - x_test[other])
turned = float((mixed.mean(-1) > 0.5).float().mean())
kept = right(judge.predict(1 - mixed))
print(f"{100 * turned:.0f} % are negatives, and {100 * kept:.0f} % of them show the digit of the first, to the judge")
read = [right(two.predict(part)) for part in (x_test, 1 - x_test)]
print("digits read from positives and from negatives:", [f"{value:.2f}" for value in read])
if full:
    assert turned > 0.9
    assert kept > 0.7
    assert min(read) > 0.8

# %% [markdown]
# ## What this does not show
#
# - These pictures are small and the networks, too. On large ones convolutions, more numbers in the code and many more
#   steps matter more than anything here.
# - Six labels of *each* class are a luxury: with sixty at random a class may have one.
# - Components are classes only as far as labels say so. A class of two styles deserves two components:
#   `labels=[0, 0, 1, 1, ...]`.
# - Three draws of labels, one seed of the networks. Differences of a per cent are nothing.
