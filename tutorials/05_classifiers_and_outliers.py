# %% [markdown]
# # Mixtures as classifiers and outlier detectors
#
# A mixture is a density, and a density answers two questions at once. *Which class is this row most like?* compares the
# densities of the classes. *Is it like any of them?* asks whether all of them are low. We classify wines and
# handwritten digits, see when one Gaussian for each class is enough, and then show the classifier things that are no
# digits.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from probmix.classification import fit_edda, fit_mclust_da
from probmix.datasets import load_iris, load_wine
from probmix.estimators import GaussianMixture, MixtureClassifier, MixtureOutlierDetector
from probmix.outliers import detection, fit_mahalanobis
from probmix.plots import plot_density

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: fewer starts and folds, no assert that needs many
starts, num_folds = (3, 10) if full else (1, 2)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## One Gaussian for each class
#
# Fisher's irises, two of the four columns, so that we can draw what happens. `fit_edda` fits a Gaussian to each class.
# What the covariances share decides the shape of the boundaries: with one covariance for all they are straight lines,
# with a covariance each they are conics.

# %%
iris = load_iris()
petals = iris.x[:, 2:]


def draw_regions(ax, rule, x, labels, title):
    """Colour the plane by the most probable class, paler where the rule is less sure."""
    low, high = x.min(0).values - 0.5, x.max(0).values + 0.5
    axes = [torch.linspace(float(a), float(b), 200) for a, b in zip(low, high, strict=True)]
    across, up = torch.meshgrid(*axes, indexing="xy")
    grid = torch.stack([across, up], -1).reshape(-1, 2).double()
    probabilities = rule.probabilities(grid)
    colours = torch.tensor(plt.get_cmap("Set2").colors)[: probabilities.shape[1]].double()
    shade = (probabilities @ colours).reshape(200, 200, 3)
    ax.imshow(shade, origin="lower", extent=(low[0], high[0], low[1], high[1]), aspect="auto", alpha=0.6)
    for c in range(probabilities.shape[1]):
        ax.plot(*x[labels == c].T, "o", ms=3, color=plt.get_cmap("Dark2")(c))
    ax.set_title(title, fontsize="medium")


fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for ax, covariance in zip(axes, ["tied", "full", "diagonal"], strict=True):
    rule = fit_edda(petals, iris.target, covariance=covariance)
    wrong = int((rule.labels(petals) != iris.target).sum())
    draw_regions(ax, rule, petals, iris.target, f'covariance="{covariance}": {wrong} of 150 wrong')
    ax.set_xlabel("petal length (cm)")
_ = axes[0].set_ylabel("petal width (cm)")

# %% [markdown]
# These are old friends. `"tied"` is linear discriminant analysis, `"full"` quadratic, `"diagonal"` is naive Bayes: the
# probabilities are the same numbers.

# %%
rule = fit_edda(iris.x, iris.target, covariance="tied")
lda = LinearDiscriminantAnalysis(solver="lsqr").fit(iris.x.numpy(), iris.target.numpy())
difference = np.abs(rule.probabilities(iris.x).numpy() - lda.predict_proba(iris.x.numpy())).max()
print(f"largest difference of a probability: {difference:.0e}")
assert difference < 1e-8

# %% [markdown]
# ## Between the two: fourteen covariances
#
# One covariance for all classes has few parameters, a covariance each has many. Between them are those that share only
# the volume, the shape or the orientation of the ellipsoids, named by three letters as in the R package mclust.
# `MixtureClassifier` is a scikit-learn estimator, so its tools work: here ten-fold cross-validation of the log loss,
# the mean of minus the log probability of the class that was right. It punishes misplaced certainty, accuracy does not.
#
# The data are 178 wines in 13 columns, each scaled to unit variance.

# %%
wine = load_wine()
X, y = (wine.x / wine.x.std(0)).numpy(), wine.target.numpy()
folds = StratifiedKFold(num_folds, shuffle=True, random_state=0)
names = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EEV", "VEV", "EVV", "VVV"]
rows = []
for name in names if full else names[::4]:
    classifier = MixtureClassifier(covariance_type=name)
    probabilities = cross_val_predict(classifier, X, y, cv=folds, method="predict_proba")
    size = classifier.fit(X, y).mixture_.num_parameters
    rows.append((name, size, log_loss(y, probabilities), int((probabilities.argmax(1) != y).sum())))
table = pd.DataFrame(rows, columns=["covariance", "parameters", "log loss", "wrong of 178"]).set_index("covariance")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
ax.plot(table["parameters"], table["log loss"], "o")
for name, row in table.iterrows():
    offset = (4, -10) if name == "VII" else (4, 3)
    ax.annotate(name, (row["parameters"], row["log loss"]), xytext=offset, textcoords="offset points", fontsize="small")
ax.set(xlabel="parameters", ylabel="log loss of rows left out", yscale="log")
ax.margins(0.12)
table.round(3)

# %% [markdown]
# Correlations matter: every rule whose name ends in I takes the columns for independent within a class, and those do
# worst. The best shares the shape and lets volume and orientation vary (VEV); it gets all wines right. LDA (EEE) has
# half of its parameters and gets two wrong. The differences among the better half are a wine or two, so any of them
# will do.

# %%
independent = [name.endswith("I") for name in table.index]
assert table["log loss"][independent].min() > table["log loss"][np.logical_not(independent)].max()
assert not full or table["log loss"].idxmin() == "VEV"
assert not full or (table.loc["VEV", "wrong of 178"], table.loc["EEE", "wrong of 178"]) == (0, 2)

# %% [markdown]
# ## When one Gaussian is not enough
#
# A class may have kinds. Here class 0 lives on both sides of class 1. No single Gaussian can say so; a mixture for each
# class can. `fit_mclust_da` chooses for each class the number of components of smallest BIC.

# %%
rng = np.random.default_rng(0)
part = rng.integers(3, size=500)
x = torch.as_tensor(rng.normal(size=(500, 2)) + np.array([[-4.0, -1.0], [0.0, 0.0], [4.0, 1.0]])[part])
labels = torch.as_tensor((part == 1).astype(np.int64))

one = fit_edda(x, labels)
several = fit_mclust_da(x, labels, seed=0)
components = torch.bincount(several.component_class).tolist()
wrong = [float((rule.labels(x) != labels).double().mean()) for rule in (one, several)]

fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(3, 3, 4))
draw_regions(axes[0], one, x, labels, f"one Gaussian each: {wrong[0]:.1%} wrong")
draw_regions(axes[1], several, x, labels, f"{components[0]} and {components[1]} components: {wrong[1]:.1%} wrong")
plot_density(x, several.model, several.sites, ax=axes[2])
axes[2].set_ylim(-4.5, 8.5)
_ = axes[2].set_title("the same rule as a density", fontsize="medium")
assert components == [2, 1]
assert wrong[1] < wrong[0]

# %% [markdown]
# The classifier *is* one mixture, whose components know their class: `several.model` and `several.sites` go into every
# picture and method of probmix.
#
# ## Handwritten digits
#
# 1797 images of 8 x 8 pixels come with scikit-learn. We train on the digits 0 to 7 only, and keep 8 and 9 for later.
# Twenty principal components take the place of the 64 pixels. `reg_covar=1` adds one squared grey level (of 16 levels)
# to each variance: some pixels hardly vary.

# %%
digits = load_digits()
rng = np.random.default_rng(0)
known = rng.permutation(np.flatnonzero(digits.target < 8))
train, held = known[:900], known[900:]
pca = PCA(20, random_state=0).fit(digits.data[train])


def features(images):
    return pca.transform(images)


x_train, y_train = features(digits.data[train]), digits.target[train]
x_held, y_held = features(digits.data[held]), digits.target[held]

settings = {"reg_covar": 1.0, "n_init": starts, "max_iter": 500, "random_state": 0}
classifiers = {
    "one, shared covariance": MixtureClassifier(covariance_type="tied", **settings),
    "one, diagonal covariance": MixtureClassifier(covariance_type="diag", **settings),
    "one, full covariance": MixtureClassifier(**settings),
    "two, diagonal covariance": MixtureClassifier(2, covariance_type="diag", **settings),
    "two, VEE": MixtureClassifier(2, covariance_type="VEE", **settings),
}
rows = []
for name, classifier in classifiers.items():
    probabilities = classifier.fit(x_train, y_train).predict_proba(x_held)
    loss = log_loss(y_held, np.clip(probabilities, 1e-12, 1))
    size = classifier.mixture_.num_parameters
    log_density = classifier.score_samples(x_held).mean()
    rows.append((name, size, (probabilities.argmax(1) != y_held).mean(), loss, log_density))
table = pd.DataFrame(rows, columns=["Gaussians in each class", "parameters", "share wrong", "log loss", "log density"])
table = table.set_index("Gaussians in each class")
table.round(3)

# %% [markdown]
# All numbers but the parameters are of rows held out. Two diagonal Gaussians for each digit have a third of the
# parameters of one full Gaussian and less than half of its log loss: to the *classifier* the kinds of a digit matter
# more than the correlations within a kind. The *density* is another matter. There the correlations count, and "two,
# VEE" is best. We shall use that one to look for outliers.
#
# What are the two kinds of a digit? The means of the components, turned back into images:

# %%
kinds = classifiers["two, diagonal covariance"].mixture_
fig, axes = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
for digit in range(8):
    for ax, k in zip(axes[:, digit], (kinds.component_class == digit).nonzero().flatten(), strict=True):
        ax.imshow(
            pca.inverse_transform(kinds.sites["loc"][k].numpy()[None]).reshape(8, 8), cmap="Greys", vmin=0, vmax=16
        )
        ax.set(xticks=[], yticks=[])
_ = fig.suptitle("two kinds of each digit, as the mixtures see them", fontsize="medium")
assert not full or table["log loss"].idxmin() == "two, diagonal covariance"
assert (
    not full or table.loc["two, diagonal covariance", "log loss"] < 0.5 * table.loc["one, full covariance", "log loss"]
)
assert table["log density"].idxmax() == "two, VEE"
assert not full or table.loc["two, VEE", "log density"] > table.loc["two, diagonal covariance", "log density"] + 1
assert 2.5 < table.loc["one, full covariance", "parameters"] / table.loc["two, diagonal covariance", "parameters"] < 3.5

# %% [markdown]
# ## Things that are no digits
#
# A classifier must choose one of its classes, whatever it is shown. We show it the digits it has never seen, digits
# upside down, negatives, and digits whose pixels were shuffled. Four scores try to tell them from the held-out digits:
#
# * **certainty**: minus the largest class probability, which any classifier has;
# * **Mahalanobis**: squared distance to the nearest class mean, one covariance for all;
# * **relative Mahalanobis**: the same, less the distance to all training rows together;
# * **density**: minus the log density under the mixtures of all classes.
#
# AUROC is the chance that an outlier scores above an inlier: 1 is perfect, 0.5 a coin.

# %%
strangers = {
    "8 and 9": digits.data[digits.target > 7],
    "upside down": digits.data[held][:, ::-1],
    "negative": 16 - digits.data[held],
    "shuffled": rng.permuted(digits.data[held], axis=1),
}
classifier = classifiers["two, VEE"]
scores = {
    "certainty": lambda x: -classifier.predict_proba(x).max(1),
    "Mahalanobis": fit_mahalanobis(x_train, y_train).score,
    "relative Mahalanobis": fit_mahalanobis(x_train, y_train, relative=True).score,
    "density": lambda x: -classifier.score_samples(x),
}
found = {
    name: {kind: detection(score(x_held), score(features(images))) for kind, images in strangers.items()}
    for name, score in scores.items()
}
auroc = pd.DataFrame({name: {kind: d.auroc for kind, d in by_kind.items()} for name, by_kind in found.items()}).T
auroc.round(3)

# %%
fig, axes = plt.subplots(2, 4, figsize=(11, 4.4), layout="constrained", height_ratios=(1, 2))
for column, (kind, images) in enumerate(strangers.items()):
    axes[0, column].imshow(np.hstack(images[:4].reshape(-1, 8, 8)), cmap="Greys")
    axes[0, column].set(xticks=[], yticks=[], title=kind)
    density = [np.clip(scores["density"](rows), None, 160) for rows in (x_held, features(images))]
    bins, names = np.linspace(40, 160, 41), ["digits 0 to 7", "strangers"]
    axes[1, column].hist(density, bins, density=True, histtype="stepfilled", alpha=0.6, label=names)
    axes[1, column].set(yticks=[], xlabel="−log density (nats, at most 160)")
_ = axes[1, 0].legend(fontsize="small")

# %% [markdown]
# Certainty does well where a stranger lies *between* classes, as 8 and 9 do, and fails where it lies beyond them:
# negatives are so far out that one class is always much nearer than the others, and the classifier is certain. The
# density is the best of the four for every kind, or within 0.01 of the best. Upside down stays hardest, and should: a 0
# or a 1 on its head is still one.

# %%
assert not full or auroc.loc["certainty", "negative"] < 0.7
assert auroc.loc["density", "negative"] > 0.999
assert not full or (auroc.loc["density"] > auroc.drop("density").max() - 0.01).all()
assert auroc.loc["density"].idxmin() == "upside down"

# %% [markdown]
# ## A threshold, and what it promises
#
# To act on a score one needs a threshold. `MixtureOutlierDetector` sets it so that a given share of the *training* rows
# falls below. But the mixture was fitted to those rows, so their densities are higher than those of new rows, and more
# than the promised share of new digits is called an outlier.

# %%
promised = 0.05
detector = MixtureOutlierDetector(8, contamination=promised, **settings).fit(x_train)
on_training = float((detector.predict(x_train) == -1).mean())
on_new = float((detector.predict(x_held) == -1).mean())
print(f"called outliers: {on_training:.1%} of the training rows, {on_new:.1%} of new digits of the same kind")
assert abs(on_training - promised) < 1e-3
assert on_new > 1.5 * promised

# %% [markdown]
# The remedy is cheap: take the threshold from rows that the fit has not seen. One half of the held-out rows sets it,
# the other checks it.

# %%
setting, checking = x_held[: len(x_held) // 2], x_held[len(x_held) // 2 :]
limit = np.quantile(detector.score_samples(setting), promised)
honest = float((detector.score_samples(checking) < limit).mean())
print(f"with a threshold from rows held out: {honest:.1%} of the others")
# two binomial shares of about 270 rows each: three standard errors of their difference
assert abs(honest - promised) < 3 * np.sqrt(2 * promised * (1 - promised) / len(checking))

# %% [markdown]
# ## What a density cannot know
#
# High density is not the same as being typical. The average of all 3s is smoother than any 3 that a person has written,
# and yet:

# %%
mixture = GaussianMixture(8, **settings).fit(x_train)
average = digits.data[train][y_train == 3].mean(0)
denser = float((mixture.score_samples(features(average[None])) > mixture.score_samples(x_train)).mean())
print(f"the average 3 has a higher density than {denser:.0%} of the training images")

fig, axes = plt.subplots(1, 5, figsize=(7, 1.7), layout="constrained")
for ax, image in zip(axes, [average, *digits.data[train][y_train == 3][:4]], strict=True):
    ax.imshow(image.reshape(8, 8), cmap="Greys", vmin=0, vmax=16)
    ax.set(xticks=[], yticks=[])
_ = axes[0].set_title("average 3", fontsize="medium")
assert denser > 0.8

# %% [markdown]
# In many dimensions nearly all the mass lies at some distance from the centres, and a score that asks for low density
# cannot see what sits nearer than anything real. If that matters, flag rows of unusually *high* density as well. And no
# score knows what the features leave out: whatever twenty principal components do not show, an outlier may hide there.
