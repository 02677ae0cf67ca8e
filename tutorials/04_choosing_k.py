# %% [markdown]
# # Choosing k honestly
#
# How many components? Every criterion gives a number, and they disagree. They do not disagree because some are bad, but
# because they answer different questions. Here we ask each of them about the same data, where we know the truth, and
# then see what none of them says.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import dataclasses
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats

from probmix.bootstrap import likelihood_ratio_test, sequential_tests, standard_errors
from probmix.comparison import compare
from probmix.datasets import load_faithful
from probmix.inference import EM, infer
from probmix.inference.gibbs import Gibbs
from probmix.merging import merge
from probmix.models import GaussianMixture
from probmix.relabel import relabel
from probmix.selection import select

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few fits and draws, no assert that needs many
components = range(1, 9) if full else range(1, 5)
replicates = 49 if full else 5
gibbs = Gibbs(warmup=100, draws=250) if full else Gibbs(chains=2, warmup=10, draws=30)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Two groups, one of them bent
#
# 400 points: a disc, and a crescent around it. So there are two groups, and any clustering should find them. But the
# crescent is no Gaussian. As a *density* the data are not a mixture of two Gaussians, nor of any number of them.


# %%
def disc_and_crescent(size, seed):
    """Points (size, 2) and their group."""
    rng = np.random.default_rng(seed)
    group, angle = rng.integers(2, size=size), rng.uniform(0, np.pi, size)
    crescent = 4 * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.45, (size, 2))
    disc = rng.normal([0.0, 0.2], [0.9, 0.7], (size, 2))
    return torch.tensor(np.where(group[:, None] == 1, crescent, disc)), group


x, group = disc_and_crescent(400, seed=0)
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.scatter(*x.T, c=[f"C{g}" for g in group], s=8)
_ = ax.set(aspect="equal", title="colour: the group, which no method is told")

# %% [markdown]
# ## One table, one picture
#
# `select` fits every number of components with every covariance, from ten starts each, and scores them all. Lower is
# better, in all criteria. (The R package mclust writes them with the other sign.) The letters are mclust's, for volume,
# shape and orientation: `EII` are equal spheres, `VII` spheres, `EEE` one covariance for all, `VVV` each its own.
# `covariances="all"` would take all fourteen.

# %%
selection = select(GaussianMixture(1), x, components=components, covariances=["EII", "VII", "EEE", "VVV"], seed=0)
print(selection)
if full:
    assert selection.best.name == "VVV, 4 components"

# %%
_ = selection.plot()

# %% [markdown]
# BIC takes four components: one for the disc, three laid end to end along the crescent. With spheres it would take many
# more. Every other criterion is in the same table:

# %%
table = selection.table.query("covariance == 'VVV'").set_index("num_components")
columns = ["log_likelihood", "num_parameters", "bic", "icl", "aic", "aicc", "nec", "smallest_component", "collapsed"]
if full:
    assert dict(table[["bic", "icl", "nec"]].idxmin()) == {"bic": 4, "icl": 3, "nec": 3}
    assert table["aic"].idxmin() == 8
table[columns].round(1)

# %% [markdown]
# * **BIC** asks which density, with how many parameters, would have predicted the data best. Here: 4.
# * **ICL** adds a penalty for rows that might belong to either of two components. It looks for *separated* components,
#   and takes 3. **NEC** does the same with another scale.
# * **AIC** asks which fit would predict *new* data best, and takes more than BIC, as nearly always: here all that we
#   offer.
# * `smallest_component` counts the rows of the smallest component. A component with a handful of rows describes an
#   accident. `collapsed` counts starts that fell into a singularity, where the likelihood is infinite; they were
#   dropped, and a table with many of them is a warning.
#
# None of them says 2, which is the truth about the groups. We shall come back to that.
#
# ## The Bayesian answers
#
# Two more criteria use the prior. `"evidence"` is `-2 log p(x)`, all parameters integrated out, by variational Bayes
# and corrected for the numbering of components. `"loo"` is -2 times the expected log density of a point left out, from
# Gibbs draws.

# %%
of_vvv = {"components": components, "covariances": ["VVV"], "seed": 0}
evidence = select(GaussianMixture(1), x, criterion="evidence", **of_vvv)
loo = select(GaussianMixture(1), x, criterion="loo", method=gibbs, **of_vvv)
curves = table[["bic", "icl", "aic"]].assign(
    evidence=evidence.table["evidence"].to_numpy(), loo=loo.table["loo"].to_numpy()
)
fig, ax = plt.subplots(figsize=(7.6, 4), layout="constrained")
for number, (name, values) in enumerate(curves.items()):
    ax.plot(values - values.min(), "os^Dv"[number] + "-", label=f"{name}: {values.idxmin()}", markersize=5)
ax.set(ylim=(-5, 130), xlabel="components", ylabel="above the criterion's own best", title="VVV, five questions")
_ = ax.legend(title="chosen")
if full:
    assert curves["evidence"].idxmin() == 4
    assert curves["loo"].idxmin() > 4

# %% [markdown]
# The evidence agrees with BIC, which is an approximation to it. Leave-one-out is flat from four on: more components do
# no harm to prediction, they only do no good. A flat curve is the moment to ask for errors. `compare` has them, for the
# difference to the best:

# %%
draws = {fit.model.num_components: fit.posterior for fit in loo.fits if fit.model.num_components >= 3}
trees = {f"{k} components": relabel(fit).to_arviz(predictive_draws=0, prior_draws=0) for k, fit in draws.items()}
comparison = compare(trees)
if full:
    close = comparison.query("elpd_diff < 2 * dse").index
    assert {"4 components", "5 components"} <= {*close, comparison.index[0]}
    three = comparison.loc["3 components"]
    assert 2.5 < three["elpd_diff"] / three["dse"] < 3.5
comparison[["elpd_loo", "elpd_diff", "dse", "p_loo", "worst_pareto_k"]].round(1)

# %% [markdown]
# Three components are worse by three standard errors; above that, several cannot be told apart. "LOO chose five" would
# be an overstatement: what it says is "more than three". A Pareto k near 0.7 is a warning of its own, that a few points
# are hard to leave out.
#
# ## A test
#
# Is the gain from k to k + 1 components more than chance? The likelihood ratio has no chi-squared law here, so we draw
# data sets from the fit with k components and see what the ratio does when k is the truth. All these fits run as one
# batch.

# %%
test = likelihood_ratio_test(GaussianMixture(1), x, 3, replicates=replicates, seed=0)
naive = 6  # parameters of one component more: weight, 2 means, 3 (co)variances
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.hist(test.replicates.numpy(), 12, density=True, color="0.7", label="drawn from 3 components")
grid = np.linspace(0, 60, 300)
ax.plot(grid, stats.chi2.pdf(grid, naive), label=f"chi-squared, {naive} degrees: wrong")
ax.axvline(test.statistic, color="C1", label="our data")
ax.set(xlabel="twice the gain in log-likelihood of a fourth component", yticks=[])
ax.legend()
print(test)
if full:
    assert test.p_value == 0.02  # 1 / (49 + 1), the least that 49 replicates can say
    assert test.replicates.mean() > 1.5 * naive

# %% [markdown]
# The chi-squared law would find a fourth component far too often: the mean of the replicates is more than one and a
# half times its degrees of freedom, though three components are the truth in all of them. Now one test after the other:

# %%
tests = sequential_tests(GaussianMixture(1), x, max_components=4 if full else 1, replicates=replicates, seed=0)
if full:
    assert list(tests.index) == [1, 2, 3, 4]  # so the first three reject at 0.05
    assert tests["statistic"].argmin() == 3
tests.round(3)

# %% [markdown]
# One, two and three components are out of the question. Four Gaussians, the choice of BIC, do not reproduce the data
# quite either, though here the statistic is small. With more data every k would be rejected sooner or later, because a
# crescent is no mixture of Gaussians. A test rejects *"a mixture of k Gaussians"*, which is not *"k groups"*.
#
# ## Components are not clusters
#
# The three components along the crescent overlap; the disc stands apart. `merge` joins, step by step, the two that are
# hardest to tell apart, by the entropy of the responsibilities. The density stays as it is, with its BIC.

# %%
best = selection.best
merging = merge(best.model, x, best.posterior.sites())
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
merging.plot(left)
for ax, k in ((middle, merging.num_components), (right, 2)):
    ax.scatter(*x.T, c=[f"C{label}" for label in merging.labels(k).tolist()], s=8)
    ax.set(aspect="equal", title=f"{k} clusters")
agreement = (merging.labels(2).numpy() == group).mean()
print(f"agreement with the groups: {max(agreement, 1 - agreement):.1%}; entropies {merging.entropies.numpy().round(1)}")
if full:
    assert merging.elbow == 2
    assert max(agreement, 1 - agreement) == 1.0

# %% [markdown]
# From 4 to 2 clusters the entropy falls steeply, from 2 to 1 there is next to nothing left to lose. The elbow is at
# two, and the two clusters are the disc and the crescent, without a single error. So the honest report has two numbers:
# *four Gaussians describe the density; they form two clusters*.
#
# ## More data, more components
#
# If the truth were a mixture of Gaussians, BIC would settle at its number as data come in. Ours is not, so that BIC
# keeps finding more to describe. Its k is a property of the sample size too.

# %%
sizes = (100, 400, 1600) if full else (100, 200)
chosen = {}
for size in sizes:
    more, _ = disc_and_crescent(size, seed=1)
    found = select(GaussianMixture(1), more, components=range(2, 8 if full else 4), covariances=["VVV"], seed=0)
    elbow = merge(found.best.model, more, found.best.posterior.sites()).elbow
    chosen[size] = {"components by BIC": found.best.model.num_components, "clusters by the elbow": elbow or "-"}
chosen = pd.DataFrame(chosen).T.rename_axis("points")
if full:
    assert list(chosen["components by BIC"]) == sorted(set(chosen["components by BIC"]))  # more, and more again
    assert list(chosen["clusters by the elbow"]) == ["-", 3, 3]
chosen

# %% [markdown]
# And the elbow is a rule of thumb: below four components there is none to see, and on these new samples it stops one
# merger early, at three clusters. Draw `merging.plot()` and judge for yourself.
#
# ## Given k, how sure are the parameters?
#
# `standard_errors` fits the data again under random weights, all replicates as one batch, starting from the estimate.
# Three ways: rows drawn with replacement, exponential weights, and the normal approximation of the posterior.

# %%
eruptions = load_faithful().frame()
em = infer(GaussianMixture(2), eruptions, EM(objective="ml"), seed=0)
ways = ("bootstrap", "weighted", "laplace")
errors = {way: standard_errors(em, method=way, replicates=10 * replicates, seed=0) for way in ways}
se = pd.DataFrame({way: table["standard_error"] for way, table in errors.items()})
locs = se[se.index.str.startswith("loc")]
if full:
    assert (locs.max(axis=1) < 1.25 * locs.min(axis=1)).all()
pd.concat([errors["bootstrap"][["estimate", "low", "high"]], se.add_prefix("s.e. ")], axis=1).round(3)

# %% [markdown]
# For the means the three agree within a quarter. For the covariances the bootstrap, which does not believe in
# Gaussians, is the honest one. All of this is *given* two components: no line of this table contains the doubt about k.
#
# ## What the numbers do not say
#
# **They do not know whether the search was good.** With many components most starts end in a poor place, and the
# criterion is as wrong as the fit. Here is eight components from a single start, beside the best of ten from above:

# %%
k = max(components)
lone = select(GaussianMixture(1), x, method=EM(objective="ml", restarts=1), **{**of_vvv, "components": [k]}).best
print(f"BIC of {k} components from one start {lone.scores['bic']:.1f}, from ten {table.loc[k, 'bic']:.1f}")
if full:
    assert lone.scores["bic"] > table.loc[k, "bic"] + 1

# %% [markdown]
# **The evidence depends on the prior, also where the parameters do not.** A prior that allows means further away makes
# every component more expensive:

# %%
model = GaussianMixture(1)
prior = model.prior(x).component
further = dataclasses.replace(prior, mean_precision=prior.mean_precision / 1e4)
wide = dataclasses.replace(model, component_prior=further)
priors = {"default prior": evidence, "means much further away": select(wide, x, criterion="evidence", **of_vvv)}
for name, each in priors.items():
    print(f"{name}: {each.best.model.num_components} components, evidence {each.best.scores['evidence']:.1f}")
if full:
    assert priors["means much further away"].best.model.num_components < 4

# %% [markdown]
# **They compare only what was in the list.** A crescent was never in it. Look at the picture of the best model before
# you believe its number.
#
# | question | ask |
# |---|---|
# | which density? | BIC or the evidence; LOO if prediction is all that matters |
# | is one more component real? | `likelihood_ratio_test`, for components, not groups |
# | how many groups? | `merge` after BIC; ICL if each group is to be one component |
# | how sure, given k? | `standard_errors`, or the posterior draws |
# | how sure of k? | the whole curve: differences of a few units are nothing |
