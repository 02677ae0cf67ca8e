# %% [markdown]
# # Many chains, and honest answers
#
# You know Pyro. Here a program of yours is traced once and then runs 64 chains as one batch. Then we are honest about
# the answer: do the chains agree, what did they miss, how good is a cheap approximation, and is the whole thing
# calibrated?
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os
from itertools import combinations

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import expit, logsumexp

from probmix.arviz import ess
from probmix.calibration import calibrate
from probmix.datasets import load_faithful
from probmix.diagnostics import nested_rhat, nested_rhat_limit
from probmix.inference import SVI, ChEES, Laplace, infer
from probmix.models import GaussianMixture
from probmix.plots import plot_calibration
from probmix.relabel import relabel

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and steps, no assert that needs many
summers, nights = (8, 12) if full else (4, 4)
many_chains = ChEES(compile=False) if full else ChEES(warmup=12, draws=8, compile=False)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## A hidden Markov chain
#
# A moth trap again: twelve nights in a row, in each of eight summers. On cold nights few moths fly, on warm nights
# many. Nobody wrote down the weather, but it persists from one night to the next.
#
# We simulate, so that we know the truth. The simulator is plain NumPy; we shall need it again.


# %%
def simulate_counts(rng, log_rate, jump, stay, shape):
    """Counts (..., *shape) for parameters (...); `shape` is (summers, nights)."""
    rates = np.exp(np.stack([log_rate, log_rate + jump], -1))
    warm = np.empty((*np.shape(log_rate), *shape), dtype=int)
    warm[..., 0] = rng.random(warm.shape[:-1]) < 0.5
    for t in range(1, shape[1]):
        stays = rng.random(warm.shape[:-1]) < np.take_along_axis(stay, warm[..., t - 1], -1)
        warm[..., t] = np.where(stays, warm[..., t - 1], 1 - warm[..., t - 1])
    flat = np.take_along_axis(rates, warm.reshape(*rates.shape[:-1], -1), -1)
    return rng.poisson(flat).reshape(warm.shape).astype(float), warm


truth = {"log_rate": np.log(1.5), "jump": np.log(4.0), "stay": np.array([0.9, 0.8])}
counts, warm = simulate_counts(np.random.default_rng(1), **truth, shape=(summers, nights))

fig, axes = plt.subplots(2, 4, figsize=(10, 3.6), layout="constrained", sharex=True, sharey=True)
for summer, (ax, row) in enumerate(zip(axes.flat, counts, strict=False)):
    ax.bar(np.arange(nights), row, color=np.where(warm[summer], "C1", "C0"))
    ax.set_title(f"summer {summer}", fontsize="small")
_ = fig.supxlabel("night; height: moths; orange: warm, which the program is not told", fontsize="medium")

# %% [markdown]
# The program is what you would write for Pyro: `pyro.markov` over the nights, a plate over the summers. probmix finds
# the discrete sites and sums them out, along the chain, so 2¹² paths cost twelve small steps. The rates are a base and
# a positive jump, so that state 1 is always the one with more moths: the two names cannot be switched.


# %%
def weather(counts, jump_std=0.5):
    log_rate = pyro.sample("log_rate", dist.Normal(0.5, 1.0))
    jump = pyro.sample("jump", dist.LogNormal(0.0, jump_std))
    stay = pyro.sample("stay", dist.Beta(torch.tensor([4.0, 4.0]), 2.0).to_event(1))
    rates = torch.stack([log_rate, log_rate + jump]).exp()
    change = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
    with pyro.plate("summer", len(counts)):
        state = None
        for t in pyro.markov(range(counts.shape[1])):
            chances = torch.full((2,), 0.5) if state is None else change[state]
            state = pyro.sample(f"state_{t}", dist.Categorical(chances))
            pyro.sample(f"count_{t}", dist.Poisson(rates[state]), obs=counts[:, t])


# %% [markdown]
# ## 64 chains as one batch
#
# `ChEES()` is Hamiltonian Monte Carlo in which all chains take the same number of steps. One evaluation of the batch
# moves them all, and warm-up learns one step size, one trajectory length and one metric from all of them.

# %%
fit = infer(weather, counts, many_chains, seed=0)
print(fit.status)
az.summary(fit.to_arviz(log_likelihood=False)).round(3)

# %% [markdown]
# ### Is it the right density?
#
# Before we believe the draws, we check what was sampled. The forward algorithm, by hand, for many parameters at once:


# %%
def log_forward(log_rate, jump, stay):
    """Log likelihood (...) of all counts, states summed out by the forward algorithm, in NumPy."""
    rates = np.exp(np.stack([log_rate, log_rate + jump], -1))[..., None, :]
    rows = [np.stack([stay[..., 0], 1 - stay[..., 0]], -1), np.stack([1 - stay[..., 1], stay[..., 1]], -1)]
    log_change = np.log(np.stack(rows, -2))[..., None, :, :]  # (..., summer, from, to)
    forward = np.log(0.5) + stats.poisson.logpmf(counts[:, 0, None], rates)  # (..., summer, state)
    for count in counts.T[1:]:
        forward = logsumexp(forward[..., None] + log_change, axis=-2) + stats.poisson.logpmf(count[:, None], rates)
    return logsumexp(forward, axis=-1).sum(-1)


def log_joint(log_rate, jump, stay):
    prior = (
        stats.norm.logpdf(log_rate, 0.5, 1) + stats.lognorm.logpdf(jump, 0.5) + stats.beta.logpdf(stay, 4, 2).sum(-1)
    )
    return log_forward(log_rate, jump, stay) + prior


some = {name: value.flatten(0, 1)[::50] for name, value in fit.draws.items()}
by_probmix = fit.log_density.log_joint(some).numpy()
by_hand = log_joint(*(some[name].numpy() for name in ("log_rate", "jump", "stay")))
print(f"{len(by_hand)} draws, largest difference {np.abs(by_probmix - by_hand).max():.1e} nats")
assert np.abs(by_probmix - by_hand).max() < 1e-9

# %% [markdown]
# ### Do the chains agree?
#
# The 64 chains started at 8 points, 8 chains each: 8 *superchains*. Chains of one superchain show what is noise,
# different superchains show what was not forgotten. The *nested r-hat* compares the two. Unlike the plain one it does
# not need long chains: where the start is forgotten, 64 chains of 100 draws are plenty. `nested_rhat_limit` says what
# short chains are allowed. You need not call either: `fit.status` has looked, and would name those that stand apart.

# %%
z = fit.log_density.unconstrain(fit.draws).numpy()  # (chain, draw, coordinate)
agreement = pd.DataFrame(
    {"nested r-hat": nested_rhat(z, 8), "limit": nested_rhat_limit(z, 8, quantities=4)},
    index=["log_rate", "log jump", "logit stay[0]", "logit stay[1]"],
)
if full:
    assert (agreement["nested r-hat"] < agreement["limit"]).all()
    assert "agree" not in fit.status.message  # it speaks of agreement only where there is none
agreement.round(3)

# %%
stat = {name: value.double().numpy() for name, value in fit.sample_stats.items()}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
ranks = stats.rankdata(fit.draws["jump"].numpy()).reshape(8, -1)
for superchain, values in enumerate(stat["lp"].reshape(8, 8, -1)):
    left.plot(values.T, color=f"C{superchain}", linewidth=0.4, alpha=0.5)
    share = np.histogram(ranks[superchain], 20, (0, ranks.size))[0] / (ranks[superchain].size / 20)
    middle.stairs(share, np.linspace(0, 1, 21), color=f"C{superchain}")
left.set(xlabel="draw", ylabel="log density, nats", title="64 traces, 8 superchains")
middle.set(xlabel="rank of jump / draws", title="ranks / expected, 8 superchains", ylim=(0, 2))
centred = stat["energy"] - stat["energy"].mean(1, keepdims=True)
right.hist(centred.ravel(), 40, color="0.8", density=True, label="energy, less its mean")
right.hist(np.diff(stat["energy"], axis=1).ravel(), 40, histtype="step", density=True, label="its change")
right.set(xlabel="nats", yticks=[], title="energy")
_ = right.legend(fontsize="x-small")

# %% [markdown]
# Left: no colour stands apart. Middle: no superchain holds more than its share of low or high values. Right: the energy
# changes within one draw by as much as it varies in all.
#
# ### What did it cost?
#
# Every draw of a chain costs the gradients in `n_steps`. All chains share one batched evaluation, so there are two
# prices: effective draws per gradient *of one chain* (what statisticians compare) and per *batched evaluation* (what
# you wait for).

# %%
gradients = stat["n_steps"][0].sum()  # the same for all chains
effective = min(ess(value.numpy()).min() for value in fit.draws.values())
print(f"smallest effective sample size: {effective:.0f} of {stat['lp'].size} draws")
print(f"per gradient of a chain: {effective / gradients / 64:.2f}; per batched evaluation: {effective / gradients:.0f}")
if full:
    assert effective > 0.5 * stat["lp"].size
    assert gradients / many_chains.draws < 5

# %% [markdown]
# More than half of the draws are effective, at fewer than five gradients each. When should you take 64 chains, and when
# the four of `NUTS()`?
#
# * `ChEES()` where a batch of 64 costs little more than one: small and medium data, or a GPU. Results come sooner, and
#   8 starts see more than 4. Its warm-up is short, because 64 chains learn together.
# * `NUTS()` where one gradient already fills the machine, or the program cannot be traced as a batch (probmix warns),
#   or the posterior has corners of very different width, for which one common trajectory length is a poor fit.
# * `NUTS(engine="nutpie")` is the No-U-Turn sampler with another engine (`pip install "probmix[nutpie]"`): its chains
#   are answered in one batch too.
#
# ## What many chains see and four do not
#
# Does the catch follow the moon? We have the log catch of 27 nights in three campaigns, with known noise, and fit a
# wave of unknown period. Between the campaigns nobody counted the waves, so several periods fit: there are several
# modes.


# %%
rng = np.random.default_rng(1)
days = np.concatenate([start + np.sort(rng.choice(14, 9, replace=False)) for start in (0, 90, 150)]).astype(float)
angle = 2 * np.pi * days / 29.5
log_catch = 2.0 + 0.8 * np.cos(angle) + 0.4 * np.sin(angle) + 0.5 * rng.normal(size=len(days))


def moon(days, log_catch):
    period = pyro.sample("period", dist.LogNormal(np.log(30.0), 0.3))
    level = pyro.sample("level", dist.Normal(2.0, 1.0))
    wave = pyro.sample("wave", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    angle = 2 * torch.pi * days / period
    with pyro.plate("night", len(days)):
        mean = level + wave[0] * angle.cos() + wave[1] * angle.sin()
        pyro.sample("log_catch", dist.Normal(mean, 0.5), obs=log_catch)


lunar = infer(moon, (days, log_catch), many_chains, seed=0)
print(lunar.status)

# %% [markdown]
# The status says which superchains sit elsewhere and by how many nats. Nothing was dropped: all 64 chains are kept, for
# you to decide. For a given period the problem is linear and Gaussian, so here the posterior of the period has a closed
# form, and we can see where everybody sits.


# %%
def log_posterior(period):
    """Log p(log_catch, period): level and wave integrated out, a normal distribution."""
    waves = np.stack([np.ones_like(days), np.cos(2 * np.pi * days / period), np.sin(2 * np.pi * days / period)], 1)
    marginal = stats.multivariate_normal(2 * waves[:, 0], waves @ waves.T + 0.25 * np.eye(len(days)))
    return marginal.logpdf(log_catch) + stats.lognorm.logpdf(period, 0.3, scale=30)


periods = np.geomspace(10, 95, 4001)
height = np.array([log_posterior(period) for period in periods])
mass = np.exp(height) * np.gradient(periods)
places = lunar.draws["period"].reshape(8, -1)

fig, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
ax.plot(periods, height - height.max(), color="black", linewidth=1, label="exact")
for superchain, draws in enumerate(places):
    spread, up = np.quantile(draws, [0.05, 0.95]), 2.0 + 0.9 * superchain
    ax.plot(spread, [up, up], color=f"C{superchain}", linewidth=3)
    ax.plot(draws.median(), up, "o", color=f"C{superchain}")
    ax.annotate(str(superchain), (spread[1], up), (8, -4), textcoords="offset points", fontsize=8)
ax.set(ylim=(-20, 10), xlabel="period, days", ylabel="log density below the top, nats")
_ = ax.set_title("curve: exact posterior. Bars: 90 % of the draws of each superchain", fontsize="small")

# %% [markdown]
# Most superchains are in one mode and stay there. How bad would four chains have been? Think of the four as four of
# these eight starts, and ask how often both modes that matter (29 and 21 days) would have been met:

# %%
distance = {"29 days": np.log(places.numpy() / 29.2), "21 days": np.log(places.numpy() / 21.1)}
near = {name: (np.abs(far) < 0.08).mean(1) > 0.5 for name, far in distance.items()}
fours = list(combinations(range(8), 4))
both = np.mean([all(found[list(four)].any() for found in near.values()) for four in fours])
print(f"29 and 21 days found by {[int(found.sum()) for found in near.values()]} starts; {both:.0%} of fours meet both")
if full:
    assert "another mode" in lunar.status.message
    assert all(found.any() for found in near.values())
    assert both < 0.5

# %% [markdown]
# Eight starts met both; four would have done so less than half of the time. What to do, then? Three things, in order.
#
# **1. Other names or another place?** If the log density agrees and the coordinates do not, components have other
# labels in other chains. `status` says so, and `relabel` repairs it:

# %%
mixture = infer(GaussianMixture(3, "spherical"), load_faithful().frame(), many_chains, seed=0)
print(mixture.status)
before, after = (nested_rhat(each.draws["loc"].numpy(), 8).max() for each in (mixture, relabel(mixture)))
print(f"largest nested r-hat of loc: {before:.2f}, after relabel: {after:.3f}")
if full:
    assert "relabel" in mixture.status.message
    assert before > 1.5
    assert after < 1.02

# %% [markdown]
# **2. How much does each mode weigh?** The share of chains in a mode says how often a start ended there, and nothing
# about its mass. `Laplace()`, started in a mode, gives the log evidence of that mode alone. Here the closed form can be
# asked whether that is any good.

# %%
weights, lp = {}, lunar.sample_stats["lp"]
for name, found in near.items():
    best = lp.where(torch.tensor(found.repeat(8))[:, None], -torch.inf).argmax()
    start = {site: value.flatten(0, 1)[best] for site, value in lunar.draws.items()}
    mode = infer(moon, (days, log_catch), Laplace(init=start, restarts=1), seed=0)
    exact = mass[np.abs(periods / float(start["period"]) - 1) < 0.12].sum()
    row = {"superchains": found.sum(), "Laplace": mode.log_evidence, "exact": np.log(exact)}
    weights[name] = {**row, "exact share of the posterior": exact / mass.sum()}
weights = pd.DataFrame(weights).T
if full:
    assert (weights["Laplace"] - weights["exact"]).abs().max() < 0.1
    assert weights["exact share of the posterior"].sum() > 0.99
weights.round(3)

# %% [markdown]
# Laplace is within 0.1 nats of the exact log evidence of each mode, and the two modes hold more than 99 % of the
# posterior. The others, where more superchains ended than in these two, can be forgotten.
#
# **3. Start in the best one, or accept.** If one mode outweighs the others, start all chains there. `fit.sites()` is
# the best draw.

# %%
settled = infer(moon, (days, log_catch), ChEES(**{**vars(many_chains), "init": lunar.sites()}), seed=0)
print(settled.status)
inside = np.abs(periods / 29.2 - 1) < 0.12
exact_mean = (mass * periods)[inside].sum() / mass[inside].sum()
exact_std = np.sqrt((mass * (periods - exact_mean) ** 2)[inside].sum() / mass[inside].sum())
period = settled.draws["period"].numpy()
print(f"period {period.mean():.2f} ± {period.std():.2f} days; exact, in this mode: {exact_mean:.2f} ± {exact_std:.2f}")
if full:
    assert "mode" not in settled.status.message
    assert abs(period.mean() - exact_mean) < 4 * exact_std / np.sqrt(ess(period))
    assert abs(period.std() / exact_std - 1) < 0.1

# %% [markdown]
# That is an answer *given this mode*: say so when you report it, and add what the other one weighs.
#
# ## Approximations, with a warning label
#
# Back to the weather. `Laplace()` puts a normal distribution on the highest point, with the exact curvature there.
# `SVI` looks for the normal distribution that is closest on the whole: `"diagonal"` without correlations, `"full_rank"`
# with. Each carries a label: Pareto k, from the importance ratios of posterior and guide. Above its limit of 0.67 the
# guide is too far from the posterior to be repaired, even by weighting its draws.

# %%
laplace = infer(weather, counts, Laplace(), seed=0)
settings = {"init": laplace.sites(), "compile": False, "max_steps": 10_000 if full else 50}
guides = {
    "Laplace": laplace,
    "SVI, diagonal": infer(weather, counts, SVI(guide="diagonal", **settings), seed=0),
    "SVI, full rank": infer(weather, counts, SVI(guide="full_rank", **settings), seed=0),
}
drawn = {name: guide.sample(4000, seed=1) for name, guide in guides.items()}
judge = {name: value.flatten(0, 1) for name, value in fit.draws.items()}
table = pd.DataFrame({"Pareto k": {name: guide.pareto_k for name, guide in guides.items()}})
for site in ("log_rate", "jump"):
    table[f"sd of {site} / ChEES"] = [float(sites[site].std() / judge[site].std()) for sites in drawn.values()]
rho = float(np.corrcoef(judge["log_rate"], judge["jump"])[0, 1])
print(guides["SVI, diagonal"].status)
print(f"correlation of log_rate and jump: {rho:.2f}; √(1 − ρ²) = {np.sqrt(1 - rho**2):.2f}")
if full:
    assert table.loc["SVI, full rank", "Pareto k"] + 0.1 < table.loc["SVI, diagonal", "Pareto k"] < 0.67
    widths = table.drop(columns="Pareto k")
    assert (widths.loc["SVI, diagonal"] - np.sqrt(1 - rho**2)).abs().max() < 0.1
    assert widths.loc["SVI, diagonal"].max() < 0.8
    assert (widths.loc["SVI, full rank"] - 1).abs().max() < 0.1
table.round(2)

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), layout="constrained", sharex=True, sharey=True)
for ax, (name, sites) in zip(axes, drawn.items(), strict=True):
    ax.plot(judge["log_rate"][::4], judge["jump"][::4], ".", color="0.75", markersize=3, label="ChEES")
    ax.plot(sites["log_rate"][:600], sites["jump"][:600], ".", color="C1", markersize=2.5, label="guide")
    ax.plot(truth["log_rate"], truth["jump"], "*", color="C3", markersize=10, label="truth")
    ax.set(xlabel="log_rate", ylabel="jump", title=f"{name}: k {guides[name].pareto_k:.2f}")
_ = axes[0].legend(fontsize="x-small", loc="lower left")

# %% [markdown]
# The draws of ChEES (grey) are the judge. A low base rate with a high jump fits as well as the opposite. A guide
# without correlation cannot lie along that, and shrinks until it fits across: its sds are those of ChEES times √(1 −
# ρ²), within 0.1. Full rank is within a tenth.
#
# Mind what the label does not promise. The diagonal guide has the higher k, yet below the limit, and its sds are a
# fifth too small or worse. Pareto k speaks of draws *weighted* by posterior over guide, whose tails it looks at. It
# does not say that unweighted draws have the right spread. For that take full rank, or draws of the posterior.
#
# ### Which model? The log evidence
#
# Does the weather persist at all? The rival draws it anew every night. Laplace gives the log evidence of both. We check
# both by Gauss-Hermite quadrature, with the hand-written densities.


# %%
def memoryless(counts):
    log_rate = pyro.sample("log_rate", dist.Normal(0.5, 1.0))
    jump = pyro.sample("jump", dist.LogNormal(0.0, 0.5))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    rates = torch.stack([log_rate, log_rate + jump]).exp()
    with pyro.plate("summer", counts.shape[0], dim=-2), pyro.plate("night", counts.shape[1], dim=-1):
        warm = pyro.sample("warm", dist.Bernoulli(share)).long()
        pyro.sample("count", dist.Poisson(rates[warm]), obs=counts)


def weather_by_hand(z):
    """Log joint of unconstrained z (..., dim): log_rate, log jump, logits; the next one likewise."""
    stay = expit(z[..., 2:])
    return log_joint(z[..., 0], np.exp(z[..., 1]), stay) + z[..., 1] + np.log(stay * (1 - stay)).sum(-1)


def memoryless_by_hand(z):
    log_rate, jump, share = z[..., 0], np.exp(z[..., 1]), expit(z[..., 2])
    cold, hot = (stats.poisson.logpmf(counts, np.exp(v)[..., None, None]) for v in (log_rate, log_rate + jump))
    each = np.logaddexp(np.log1p(-share)[..., None, None] + cold, np.log(share)[..., None, None] + hot).sum((-1, -2))
    prior = stats.norm.logpdf(log_rate, 0.5, 1) + stats.lognorm.logpdf(jump, 0.5) + stats.beta.logpdf(share, 2, 2)
    return each + prior + z[..., 1] + np.log(share * (1 - share))


def quadrature(log_density, loc, cov, nodes):
    """Log of the integral of exp(log_density), by Gauss-Hermite nodes stretched to a normal distribution."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * len(loc), indexing="ij"), -1).reshape(-1, len(loc))
    log_w = sum(np.log(part) for part in np.meshgrid(*[w] * len(loc), indexing="ij")).ravel()
    tril = np.linalg.cholesky(cov)
    return logsumexp(log_density(loc + grid @ tril.T) + log_w + 0.5 * (grid**2).sum(1)) + np.log(np.diag(tril)).sum()


rival = infer(memoryless, counts, Laplace(), seed=0)
evidence = {}
for name, by_hand, approximate in (("chain", weather_by_hand, laplace), ("memoryless", memoryless_by_hand, rival)):
    normal = approximate.guide.distribution()
    loc, cov = normal.loc.numpy(), normal.covariance_matrix.numpy()
    nodes = {f"quadrature, {n} nodes": quadrature(by_hand, loc, 1.3 * cov, n) for n in (9, 11)}
    evidence[name] = {"Laplace": approximate.log_evidence, **nodes}
evidence = pd.DataFrame(evidence).T
evidence.loc["ahead by"] = evidence.loc["chain"] - evidence.loc["memoryless"]
if full:
    coarse, fine = evidence["quadrature, 9 nodes"], evidence["quadrature, 11 nodes"]
    assert (coarse - fine).abs().max() < 0.02
    assert (evidence["Laplace"] - fine).abs().max() < 0.1
    assert fine["ahead by"] > 10
evidence.round(3)

# %% [markdown]
# Laplace is within 0.1 nats, and the weather persists: the chain is ahead by more than 10 nats. Only one mode is
# counted: for a mixture with K components that can be renumbered, add log K!.
#
# ## Is all of this calibrated?
#
# One fit to one data set can be right by luck. `calibrate` draws true values from the prior, simulates a data set from
# each, fits all of them (with ChEES as one batch, each data set with a tuning of its own), and looks at the ranks of
# the true values among the draws. For a correct program and method they are uniform. The simulator is written apart
# from the program, so that an error in either is found. To be quick we take three summers of eight nights.


# %%
shape, settings = ((3, 8), {"simulations": 100, "draws": 49}) if full else ((2, 3), {"simulations": 10, "draws": 5})
quick = ChEES(chains=8, superchains=4, warmup=40 if full else 10, draws=40 if full else 20, compile=False)


def from_the_prior(num):
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    sites = {"log_rate": rng.normal(0.5, 1, num), "jump": rng.lognormal(0, 0.5, num), "stay": rng.beta(4, 2, (num, 2))}
    return sites, simulate_counts(rng, **sites, shape=shape)[0]


right_prior = calibrate(weather, from_the_prior, quick, **settings, seed=0)
print(right_prior)
fig = plot_calibration(right_prior)
assert right_prior.ok or not full

# %% [markdown]
# All lines keep within the band. Data sets with divergent transitions are counted, not dropped.
#
# A test that never fails proves nothing. So we make a mistake that is easy to make: the variance, 0.25, is written
# where the standard deviation, 0.5, belongs.

# %%
wrong_prior = calibrate(lambda counts: weather(counts, jump_std=0.25), from_the_prior, quick, **settings, seed=0)
print(wrong_prior)
if full:
    assert not wrong_prior.ok
    assert "too narrow" in wrong_prior.quantities["jump"].words
    assert wrong_prior.quantities["stay[0]"].words == ""
fig = plot_calibration(wrong_prior)

# %% [markdown]
# It is seen, and the table names the site: the posterior of `jump` is too narrow. `stay`, whose prior is right, is not
# accused.
#
# ## To compile or not
#
# All methods trace the program once for each size of the batch, into a flat graph. A program with many steps in a
# Python loop takes some seconds for that, before the first draw. With `compile=True` the graph is compiled as well:
# gradients become faster, but compiling takes from some seconds to minutes, and needs a C++ compiler (or a GPU).
# `"auto"`, the default, compiles where a compiler is there and the uncompiled gradients would take longer than about
# forty seconds; it counts operations, not time, so the same fit takes the same path. On this page everything runs with
# `compile=False`, so that every machine can run it.

# %%
assert (ChEES().compile, many_chains.compile) == ("auto", False)

# %% [markdown]
# ## What to take home
#
# 1. Check the log density once against something written by hand. It costs ten lines.
# 2. Read `status` first: it says whether superchains agree, who stands apart, and by how much.
# 3. Chains in different modes are news about the posterior. Look, weigh (`Laplace`), then choose; `relabel` for labels.
# 4. A guide without a Pareto k is an opinion. Draws are the judge.
# 5. `calibrate` before you trust a program of your own, and once with a mistake put in by hand.
