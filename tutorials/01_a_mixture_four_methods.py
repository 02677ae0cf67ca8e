# %% [markdown]
# # A mixture, four methods, one kind of result
#
# We write one model and fit it in four ways: EM, MAP, SVI and NUTS. All four answers speak the same language, so we can
# put them side by side and see what each of them knows and does not know. On the way we read the diagnostics, one by
# one.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os
import tempfile
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from probmix.arviz import ess, rhat
from probmix.datasets import load_faithful
from probmix.errors import MethodError
from probmix.inference import EM, MAP, NUTS, SVI, ChEES, infer
from probmix.models import GaussianMixture
from probmix.plots import plot_components, plot_density, plot_history, plot_predictive_check
from probmix.posterior import load_posterior
from probmix.relabel import count_switches, permutations_of, relabel

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and steps, no assert that needs many
max_steps = 10_000 if full else 100

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## The data
#
# 272 eruptions of the geyser Old Faithful: how long each took, and how long the wait for the next one was, in minutes.
# A data frame can be used as it is. Its column names come back in every table and picture.

# %%
table = load_faithful().frame()
table.describe().loc[["count", "mean", "std", "min", "max"]].round(2)

# %% [markdown]
# ## The model, written once
#
# Two Gaussian components with covariances of their own. The model is a Pyro program: EM will use its closed form, the
# other methods will use the program. It has three sites (unknowns): `weights`, `loc` and `cov`. The prior is weak and
# scaled to the data; the docstring of `GaussianMixture` gives it in full.

# %%
model = GaussianMixture(num_components=2)

# %% [markdown]
# ## EM: the best point, from twenty starts
#
# EM climbs to a local maximum. Which one depends on where it starts, so it starts twenty times, all at once, and
# reports every result.

# %%
em = infer(model, table, EM(restarts=20), seed=0)
print(em.status)
print("best objective:", round(em.objective, 3), "nats")
print("all objectives:", em.objectives.numpy().round(3))

# EM stops when it estimates that less than 1e-6 nats are left to gain; a hundred times that is room for the estimate.
assert (em.objectives - em.objective).abs().max() < 1e-4
assert abs(em.objective - -1157.165) < 5e-4  # half of the last digit printed

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(2, 3))
plot_history(em.history, ax=left)
left.set_title("EM: objective by step, 20 restarts", fontsize="medium")
plot_density(table, model, em.sites(), ax=right)
_ = right.set_title("EM: the best point", fontsize="medium")

# %% [markdown]
# All twenty end at the same value. That is a fact about this model and these data, not about EM. With four components
# the same twenty starts end in several places, and only the report of all objectives tells you so:

# %%
four = infer(GaussianMixture(4), table, EM(restarts=20, tolerance=1e-4), seed=0)
ends, times = np.unique(four.objectives.numpy().round(1), return_counts=True)
print(pd.Series(times[::-1], index=pd.Index(ends[::-1], name="objective"), name="restarts").to_string())
assert len(ends) > 1

# %% [markdown]
# ### Against a published value
#
# By default EM maximises the posterior density (`objective="map"`), so its objective contains the log prior. With
# `objective="ml"` it maximises the likelihood alone, which others have done before. The R package mclust lists a BIC of
# −2322.192 for this model (`VVV`, 2 components) and these data. In mclust's convention BIC = 2 log L − p log N, with p
# = 11 parameters and N = 272 rows, so that log L = −1130.264.

# %%
ml = infer(model, table, EM(restarts=20, objective="ml"), seed=0)
published = (-2322.192 + 11 * np.log(len(table))) / 2
print(f"here {ml.objective:.4f}, published {published:.4f}")
assert abs(ml.objective - -1130.264) < 5e-4  # half of the last digit printed
assert abs(ml.objective - published) < 2.5e-4  # half of the BIC's last digit, halved once more with the BIC

# %% [markdown]
# ## MAP: the same point by another road
#
# `MAP()` knows nothing of mixtures. It sums the assignments out of the Pyro program and follows the gradient. It must
# find the point that EM found; if not, the program and the closed form would be two different models.
#
# By default it would start from a short EM run. For an honest test we start it by hand, with both components as wide as
# the whole data, and centred at the quartiles, the upper one first, as EM has numbered them.

# %%
start = {
    "weights": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "loc": torch.tensor(table.quantile([0.75, 0.25]).to_numpy()),
    "cov": torch.tensor(table.cov().to_numpy()).expand(2, 2, 2),
}
map_fit = infer(model, table, MAP(init=start, restarts=1), seed=0)
print(map_fit.status)
print("objective by step:", map_fit.history["objective"][0].numpy().round(3))

assert abs(map_fit.objective - em.objective) < 1e-5
for name, value in map_fit.sites().items():
    # Both stop within about 1e-6 nats of the top. A posterior falls by half a nat per squared standard deviation, so
    # that leaves sqrt(2e-6) = 0.0014 standard deviations; no site here has one above 0.4 of its value: 6e-4, doubled.
    assert torch.allclose(value, em.sites()[name], rtol=1.2e-3), name

# %% [markdown]
# A bad start can fool restarts. `init="random"` starts near 0, as many programs do, but these data are near (3.5, 71).
# All eight restarts call themselves converged, and seven of them agree with each other. The seven are 159 nats too low:
# one component has taken all the weight. The majority is wrong, and only the report of all objectives shows it.

# %%
lost = infer(model, table, MAP(init="random"), seed=0)
print(lost.status)
print("objectives:", lost.objectives.numpy().round(3))
if full:
    too_low = em.objective - lost.objectives
    assert (too_low > 1).sum() == 7
    assert abs(too_low.max() - 159) < 0.5  # half of the last digit in the text
    assert too_low.min() < 1e-5

# %% [markdown]
# ## SVI: a distribution, fitted
#
# A point has no width. SVI fits a Gaussian *guide* to the posterior (on unconstrained scales) by raising a lower bound
# of the log evidence, the ELBO. We fit two guides: `"full_rank"`, with all correlations, and `"diagonal"`, the *mean
# field*, with none. Both start from the sites that EM found; sites are what one fit hands to the next.

# %%
settings = {"init": em.sites(), "num_draws": 4000, "max_steps": max_steps}
full_rank = infer(model, table, SVI(guide="full_rank", **settings), seed=0)
mean_field = infer(model, table, SVI(guide="diagonal", **settings), seed=0)
guides = {"full rank": full_rank, "mean field": mean_field}
for name, fit in guides.items():
    print(f"{name:10}  ELBO {fit.elbo[0]:.2f} ± {fit.elbo[1]:.2f}  {fit.status}")
gain = full_rank.elbo[0] - mean_field.elbo[0]
gain_std = np.hypot(full_rank.elbo[1], mean_field.elbo[1])
print(f"full rank is closer by {gain:.2f} ± {gain_std:.2f} nats")
if full:
    assert gain > 5 * gain_std
    assert max(fit.pareto_k for fit in guides.values()) < 0.67

# %%
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for colour, (name, fit) in zip(("C0", "C1"), guides.items(), strict=True):
    steps = pd.Series(fit.history["elbo"][0].numpy())
    ax.plot(steps, color=colour, alpha=0.25, linewidth=0.5)
    ax.plot(steps.rolling(50).mean(), color=colour, label=f"{name}: mean of 50 steps")
ax.set(xlabel="step", ylabel="ELBO estimate, nats", ylim=(-1176, -1167))
_ = ax.legend(loc="lower right")

# %% [markdown]
# Read it like this:
#
# * Each step sees a random estimate. Look at the mean of many steps: it rises, and then it is flat. When the mean of a
#   window of steps gains nothing on the one before, the learning rate is lowered; when that no longer helps, the fit
#   ends. A curve that is cut off while it rises would be a bad sign, and `status` would say so.
# * The difference between the two ends is a difference in Kullback-Leibler distance to the posterior. Full rank is
#   closer.
# * The height says nothing about how close either of them is. The Pareto k in `status` says something: it looks at the
#   tails of posterior over guide. Both are below the limit, so nothing was missed badly. How good the widths are, it
#   does not say. For that we need something better to compare with.
#
# ## NUTS: draws from the posterior
#
# Four chains. Each starts from a short EM run of its own. The warm-up is short to keep this page quick; the diagnostics
# below must tell whether it was enough.

# %%
nuts = NUTS(chains=4, warmup=150, draws=300) if full else NUTS(chains=4, warmup=12, draws=12, max_tree_depth=4)
mcmc = infer(model, table, nuts, seed=1)
print(mcmc.status)
az.summary(mcmc.to_arviz(log_likelihood=False), var_names=["weights", "loc"]).round(2)

# %% [markdown]
# ### An alarm that is none: r-hat far above 1
#
# r-hat compares the spread between chains with the spread within them. It should be below 1.01. Here it is far above
# that in every row, and all draws together count for a handful (`ess_bulk`). Before we blame the sampler, look at the
# draws:

# %%
fig = plot_components(mcmc.draws, dims=model.dims, sites=["loc"], feature_names=list(table.columns))

# %% [markdown]
# No chain wanders. But some call the short eruptions "component 0", others call them "component 1". Nothing in the
# model says which is which: swapping the two names leaves the likelihood and the prior as they are. This is *label
# switching*. The density of the data is the same in every chain; a table row like `loc[0]` is a mean over two different
# things, and means nothing.
#
# Two checks before anything is repaired:
#
# * a quantity without labels, such as the log joint density `lp`, must have a good r-hat already now;
# * `permutations_of` says how the names would have to change, and `count_switches` how often they do.

# %%
labelled, free = rhat(mcmc.draws["loc"].numpy()).max(), float(rhat(mcmc.sample_stats["lp"].numpy()))
switches = count_switches(permutations_of(mcmc, reference=em.sites()))
print(f"largest r-hat of loc: {labelled:.2f}; r-hat of lp, which has no labels: {free:.2f}")
print(f"draws named unlike the one before: {switches.draws:.0%}; chains named unlike the others: {switches.chains:.0%}")
assert switches.draws == 0
if full:
    assert labelled > 1.4
    assert free < 1.02  # perfect chains of this length give up to 1.01; lp is autocorrelated, hence the room

# %% [markdown]
# No chain ever changed its mind: two names, fixed at the start of each chain. `relabel` matches the names over all
# draws. With `reference` it also takes the numbers from another fit, here from EM.

# %%
matched = relabel(mcmc, reference=em.sites())
data = matched.to_arviz()
az.summary(data, var_names=["weights", "loc"]).round(2)

# %%
fig = plot_components(matched.draws, dims=model.dims, sites=["loc"], feature_names=list(table.columns))

# %% [markdown]
# Now the chains lie on top of each other, the rank curves stay mostly within their band, and r-hat is 1.00.
#
# What `relabel` does not do: it never moves a chain to another mode. Had one chain found a different *solution*, r-hat
# of `lp` would have shown it, and r-hat of the sites would still be bad after relabelling.

# %%
worst_rhat = max(rhat(value.numpy()).max() for value in matched.draws.values())
fewest_ess = min(ess(value.numpy()).min() for value in matched.draws.values())
print(f"worst r-hat {worst_rhat:.3f}, smallest effective sample size {fewest_ess:.0f} of {4 * nuts.draws} draws")
if full:
    assert worst_rhat < 1.02
    assert fewest_ess > 400  # 100 for each chain, the usual least for r-hat and ESS themselves to be trusted

# %% [markdown]
# ### What the sampler says about itself
#
# | column | good | bad means |
# |---|---|---|
# | divergent | 0 | the step is too long for a sharp corner, and the draws miss it: raise `target_accept` |
# | acceptance | near 0.8 or above | far below: warm-up was too short |
# | gradients per draw | a few to some dozens | at 1023 the trajectory was cut off (`max_tree_depth`) |
# | BFMI | above 0.3 | heavy tails are explored slowly: more draws, or another parameterisation |
#
# BFMI compares how much the energy changes from draw to draw with how much it varies in all.

# %%
stats = {name: value.double() for name, value in mcmc.sample_stats.items()}
by_chain = pd.DataFrame(
    {
        "divergent": stats["diverging"].sum(1).int(),
        "acceptance": stats["acceptance_rate"].mean(1),
        "step size": stats["step_size"][:, -1],
        "gradients per draw": stats["n_steps"].mean(1),
        "BFMI": stats["energy"].diff(dim=1).square().mean(1) / stats["energy"].var(1),
    },
    index=pd.Index(range(4), name="chain"),
)
if full:
    assert by_chain["divergent"].sum() == 0
    assert by_chain["acceptance"].min() > 0.7
    assert by_chain["BFMI"].min() > 0.5
by_chain.round(2)

# %%
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
bins = np.linspace(-12, 14, 53)
centred = stats["energy"] - stats["energy"].mean(1, keepdim=True)
ax.hist(centred.flatten().numpy(), bins, color="0.8", label="energy, less its mean")
change = stats["energy"].diff(dim=1).flatten().numpy()
ax.hist(change, bins, histtype="step", linewidth=1.5, label="its change from draw to draw")
ax.set(xlabel="nats", yticks=[])
_ = ax.legend()

# %% [markdown]
# The two histograms should have about the same width. Were the changes much narrower, the sampler would need many draws
# to get from one end of the energies to the other. `az.plot_energy(data)` draws the same.
#
# ## What SVI got right, and what not
#
# NUTS is now the judge. We compare standard deviations (sd), those of each guide divided by those of NUTS. The judge
# has an error of its own; the grey bars are two Monte-Carlo standard errors of its sds (`mcse_sd`) to either side.


# %%
judge = az.summary(data, round_to="none")
judge = judge.drop([row for row in judge.index if "waiting, eruptions" in row or row == "weights[1]"])  # told already
stats_of = {name: az.summary(fit.to_arviz(), kind="stats", round_to="none") for name, fit in guides.items()}
ratio = pd.DataFrame({name: of["sd"] / judge["sd"] for name, of in stats_of.items()}).loc[judge.index]

fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
error, height = 2 * judge["mcse_sd"] / judge["sd"], np.arange(len(ratio))
ax.barh(height, 2 * error, left=1 - error, color="0.88", label="two errors of NUTS")
ax.axvline(1, color="0.5", linewidth=0.8)
for name, marker in zip(guides, "os", strict=True):
    ax.plot(ratio[name], height, marker, label=name)
ax.set_yticks(height, ratio.index)
ax.invert_yaxis()
ax.set(xlabel="sd of the guide / sd of NUTS")
_ = fig.legend(loc="outside upper center", ncols=3)

# %%
w = em.sites()["weights"][0]
share_std = float((w * (1 - w) / len(table)).sqrt())
weight_stds = pd.concat([pd.Series({"NUTS": 1.0}), ratio.loc["weights[0]"]]) * judge.loc["weights[0]", "sd"]
print("mean of the ratios:", ratio.mean().round(2).to_dict())
print(f"sd of weights[0]: {weight_stds.round(4).to_dict()}; √(w(1 − w)/N) = {share_std:.4f}")
assert abs(share_std - 0.029) < 5e-4  # half of the last digit in the text
if full:
    # The errors of NUTS, 3 % each, largely average out over the eleven rows; those of 4,000 independent draws are 1 %.
    assert 0.95 < ratio["full rank"].mean() < 1.03
    assert (ratio["full rank"] - 1).abs().max() < 0.1
    assert ratio["full rank"].mean() - ratio["mean field"].mean() > 0.02
    assert (weight_stds / share_std - 1).abs().max() < 0.12  # four times 3 %

# %% [markdown]
# Full rank comes within a few percent on average, and within a tenth everywhere. The mean field is too narrow nearly
# everywhere.
#
# Where both guides leave a bar on the same side, suspect the judge too: one bar in twenty is missed by chance. The
# weight can be checked without any method. Nearly every eruption is clearly in one group, so its sd must be close to
# that of a share, √(w(1 − w)/N) = 0.029.
#
# One reason why the mean field is too narrow can be read off: in each component the mean eruption and the mean wait are
# correlated. A guide without correlations can only give the spread of one *with the other held still*, which for a
# Gaussian is smaller by √(1 − ρ²).


# %%
def correlation(sites):
    """Posterior correlation of mean eruption and mean wait, for each component."""
    loc = sites["loc"].reshape(-1, 2, 2)
    return np.array([np.corrcoef(loc[:, k].T.numpy())[0, 1] for k in (0, 1)])


rho = {name: correlation(fit.sample(4000, seed=1)) for name, fit in guides.items()}
rho["NUTS"] = correlation(matched.draws)
means = ratio.loc[[row for row in ratio.index if row.startswith("loc")]].mean()
expected = np.sqrt(1 - rho["NUTS"] ** 2).mean()
print("correlation:", {name: value.round(2).tolist() for name, value in rho.items()})
print(f"sds of the four means, mean field / NUTS: {means['mean field']:.2f}; √(1 − ρ²) = {expected:.2f}")
assert np.abs(rho["mean field"]).max() < 0.065  # zero, but for 4,000 draws: four times 1 / sqrt(4000)
if full:
    assert rho["NUTS"].min() > 0.2  # the sampling error of a correlation is 1 / sqrt(effective draws), 0.03
    # Four ratios, each uncertain by 3 % from NUTS and 1 % from the guide's draws: 2 % for their mean, times three.
    assert abs(means["mean field"] - expected) < 0.06

# %% [markdown]
# So SVI has the means, and with full rank nearly the widths. That it has them, SVI alone cannot tell.
#
# ## The fitted density
#
# Given draws instead of a point, the same picture shows the uncertainty: one ellipse for each of 30 draws.

# %%
ax = plot_density(table, model, matched.draws)

# %% [markdown]
# ## Does the model reproduce the data?
#
# Good chains say that the posterior of *this model* was found. They do not say that the model is any good. For that,
# simulate data sets from the posterior and lay the real one over them.

# %%
fig = plot_predictive_check(table, data["posterior_predictive"]["x"].values)

# %% [markdown]
# The replicated curves enclose the observed one, and no p-value is near 0 or 1. Do not stop here. Mean and spread are
# what the model was fitted to; it would be odd if it missed them. Ask for something that the fit did *not* aim at. The
# components are Gaussian, hence symmetric. Are the short eruptions?


# %%
def skewness_of_short(eruptions):
    """Third standardised moment of the eruptions below 3 minutes."""
    short = eruptions[eruptions < 3]
    return ((short - short.mean()) ** 3).mean() / short.std() ** 3


replicated = data["posterior_predictive"]["x"].values.reshape(-1, *table.shape)
skewness = np.array([skewness_of_short(copy[:, 0]) for copy in replicated])
observed = skewness_of_short(table["eruptions"].to_numpy())
p_value = (skewness >= observed).mean()
print(f"skewness of the short eruptions: observed {observed:.2f}, replicated {skewness.mean():.2f}, p = {p_value:.2f}")

fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ax.hist(skewness, np.arange(-1.2, 1.4, 0.1), color="#56B4E9", label=f"replicated, {len(skewness)} data sets")
ax.axvline(observed, color="black", label="observed")
ax.set(xlabel="skewness of the short eruptions", yticks=[])
_ = ax.legend(loc="upper left")
assert observed > 1
assert p_value < 0.01

# %% [markdown]
# They are not. They begin sharply and tail off slowly, and no replicated data set looks like that. So this model finds
# the two groups and their means well, and would be a poor guide to the shortest eruptions. That is a use of the model
# we can now decide on.
#
# ## One, two or three components?
#
# `az.loo` estimates how well each observation is predicted from all the others (the expected log predictive density,
# elpd; higher is better). It needs the log-likelihood of every single row with its unknown component summed out, which
# `to_arviz` has put there. Labels do not matter to it. We fit all three models with `ChEES()`, which runs 64 short
# chains as one batch and needs some seconds for each; [the third tutorial](03_many_chains.ipynb) is about it.

# %%
many_chains = ChEES(draws=400) if full else ChEES(warmup=12, draws=8)  # many draws: the Pareto k below are noisy
fits = {k: infer(GaussianMixture(k), table, many_chains, seed=0) for k in (1, 2, 3)}
np.seterr(over="ignore")  # with many draws ArviZ's fit of a tail gives the worst candidates a weight of exp(-large)
comparison = az.compare({f"K = {k}": fit.to_arviz() for k, fit in fits.items()})
one, two = comparison.loc["K = 1"], comparison.loc["K = 2"]
assert one["elpd_diff"] > 8 * one["dse"]
if full:
    assert two["elpd_diff"] < 2 * two["dse"]
comparison.round(2)

# %% [markdown]
# One component is out of the question: the difference is many times its standard error `dse`. Between two and three it
# is about one `dse`: these data do not decide. A third component mends the shape of the groups (we have just seen what
# is wrong with it) and need not be a third kind of eruption. Take two if you want to speak of groups; three if you want
# the density. `weight` is how much of each to mix for the best predictions. It is not the probability of a model.
#
# A word of caution. `az.loo` takes whatever it is given for draws of the posterior, those of a guide too. Three methods
# fitted the model with two components. Do they agree?

# %%
methods = az.compare({"NUTS": data, "SVI": full_rank.to_arviz(), "ChEES": fits[2].to_arviz()})
if full:
    assert methods["elpd_diff"].max() < 1  # over several seeds SVI scatters about NUTS by 0.2: five times that
methods.round(2)

# %% [markdown]
# ## What a point cannot tell
#
# EM and MAP give a point. It is put into a group of its own, `point_estimate`, not into `posterior`: a table of sds or
# r-hats of a point would be nonsense, and `az.loo` would take one draw for certainty. Both refuse.

# %%
point = em.to_arviz()
print("a group posterior:", "posterior" in point, "- a group point_estimate:", "point_estimate" in point)
assert "posterior" not in point
for refused in (lambda: em.sample(100, seed=0), lambda: az.loo(point)):
    try:
        refused()
    except (MethodError, TypeError, ValueError, KeyError, AttributeError) as error:
        print(f"\n{type(error).__name__}: {error}")
    else:
        raise AssertionError("a point was taken for a posterior")

# %% [markdown]
# ## Keep it
#
# A fit is saved to one file with its data, its settings and its status. Loading needs neither the data nor a refit.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "faithful.safetensors"
    matched.save(file)
    again = load_posterior(file)
assert all(torch.equal(again.draws[name], value) for name, value in matched.draws.items())
print(again.method, again.status, sep="\n")

# %% [markdown]
# ## What to look at, in which order
#
# 1. **`status`** of every fit. Its text says what to do.
# 2. **All objectives** of the restarts. Several values: the best may not be the last word. One value: good, if the
#    starts were.
# 3. **r-hat of `lp`**. Bad: the chains are in different places; run longer, or look for several modes.
# 4. **`relabel`**, then **r-hat of the sites**: below 1.01. Bad only before relabelling: it was the names.
# 5. **Effective sample size**: at least 100 for each chain.
# 6. **Divergences, acceptance, BFMI**, chain by chain.
# 7. **The trace**. No number replaces it.
# 8. **The predictive check**. Only now is the model itself on trial.
# 9. **`az.loo` and `az.compare`**: is the Pareto k of all rows good? Is the difference several times its `dse`?
# 10. Then, and not before, **the answer**: weights, means, ellipses.
