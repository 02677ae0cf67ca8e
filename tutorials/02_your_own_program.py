# %% [markdown]
# # Your own program: counts with too many zeros
#
# probmix runs any Pyro program, not only its own models. Here we write one with a discrete unknown in every row, let
# MAP, SVI and NUTS loose on it, and hold each of them against the exact answer, which this small problem has.
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
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import optimize, stats

from probmix.arviz import ess, rhat
from probmix.errors import MethodError, ProgramError
from probmix.inference import EM, MAP, NUTS, SVI, infer
from probmix.posterior import load_posterior

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and steps, no assert that needs many
warmup, draws, max_steps = (150, 400, 10_000) if full else (40, 25, 200)

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Data of which we know the truth
#
# A moth trap hangs out for 300 nights. On a good night it catches a Poisson number of moths. On some nights the lamp
# has failed and it catches none. Nobody wrote down which nights those were: a zero may be a failed lamp or bad luck.

# %%
rng = np.random.default_rng(1)
true_share, true_rate, nights = 0.3, 2.0, 300
failed = rng.random(nights) < true_share
counts = np.where(failed, 0, rng.poisson(true_rate, nights)).astype(float)

values = np.arange(counts.max() + 1)
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
ax.bar(values, [(counts == value).sum() for value in values], color="0.8", label="observed")
ax.plot(values, nights * stats.poisson.pmf(values, counts.mean()), "o-", color="C1", label="Poisson with the same mean")
ax.set(xlabel="moths in a night", ylabel="nights")
_ = ax.legend()

# %% [markdown]
# ## The program
#
# A plain function. `inflated` is 1 where the lamp failed. There is one for each night, so it stands inside the plate.


# %%
def zero_inflated(counts):
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("night", len(counts)):
        inflated = pyro.sample("inflated", dist.Bernoulli(share))
        pyro.sample("count", dist.Poisson(torch.where(inflated == 1, 0.0, rate)), obs=counts)


# %% [markdown]
# Two things to know about such programs:
#
# * You do not sum over `inflated`. probmix finds discrete sites and sums them out, exactly.
# * Write `torch.where`, not `rate * (1 - inflated)`. Both have the same value. But for a night with moths and a failed
#   lamp the log probability is minus infinity, and the product has the gradient 0 · ∞, which is not a number.
#
# ## The exact answer
#
# There are two continuous unknowns, so we can lay a grid over them and sum. This is our judge: it is written by hand
# with SciPy and shares no code with the fits. Written out, a night has the probability
#
# $$p(0) = s + (1 - s)\,e^{-r}, \qquad p(c) = (1 - s)\,\mathrm{Poisson}(c \mid r) \quad (c > 0),$$
#
# with $s$ the share of failed lamps and $r$ the rate of moths.


# %%
def log_likelihood(share, rate, count):
    """One night, the lamp summed out by hand."""
    lamp_on = np.log1p(-share) + stats.poisson.logpmf(count, rate)
    return np.where(count == 0, np.logaddexp(np.log(share), lamp_on), lamp_on)


def log_joint(share, rate):
    """All nights and both priors."""
    terms = [(counts == value).sum() * log_likelihood(share, rate, value) for value in values]
    return sum(terms) + stats.beta.logpdf(share, 1, 1) + stats.gamma.logpdf(rate, 2)


share_grid, rate_grid = np.linspace(0.08, 0.48, 401)[:, None], np.linspace(1.2, 2.8, 401)
height = log_joint(share_grid, rate_grid)
cell = (share_grid[1, 0] - share_grid[0, 0]) * (rate_grid[1] - rate_grid[0])
log_evidence = height.max() + np.log(np.exp(height - height.max()).sum() * cell)
mass = np.exp(height - log_evidence) * cell


def moments(share, rate, weight):
    """Means, standard deviations and correlation under any weights."""
    mean = (weight * share).sum(), (weight * rate).sum()
    cross = (weight * (share - mean[0]) * (rate - mean[1])).sum()
    std = np.sqrt((weight * (share - mean[0]) ** 2).sum()), np.sqrt((weight * (rate - mean[1]) ** 2).sum())
    return {"share": mean[0], "rate": mean[1], "share sd": std[0], "rate sd": std[1], "corr": cross / std[0] / std[1]}


exact = moments(share_grid, rate_grid, mass)
print("log evidence", round(log_evidence, 3), {name: round(float(value), 3) for name, value in exact.items()})
assert mass[[0, -1]].sum() + mass[:, [0, -1]].sum() < 1e-6  # nothing is cut off at the edges of the grid

# %% [markdown]
# ## EM says no, and says what works
#
# EM needs a model with a closed form. A plain function has none. The error names the methods that do run it.

# %%
refusal = ""
try:
    infer(zero_inflated, counts, EM(), seed=0)
except MethodError as error:
    refusal = str(error)
print(refusal)
assert "MAP(), SVI() and NUTS()" in refusal

# %% [markdown]
# ## MAP
#
# `MAP()` must find the top of the surface that SciPy finds with the hand-written formula.

# %%
map_fit = infer(zero_inflated, counts, MAP(), seed=0)
top = optimize.minimize(lambda at: -log_joint(*at), x0=[0.5, 1.0], bounds=[(1e-6, 1 - 1e-6), (1e-6, 20)], tol=1e-10)
print(map_fit.status)
print({name: round(float(value), 4) for name, value in map_fit.sites().items()}, "SciPy:", top.x.round(4))

# MAP stops where a step gains less than 1e-6 nats, within sqrt(2e-6) = 0.0014 posterior sd of the top; SciPy closer.
for name, value in zip(("share", "rate"), top.x, strict=True):
    assert abs(float(map_fit.sites()[name]) - value) < 0.003 * exact[f"{name} sd"]
assert abs(map_fit.objective + top.fun) < 1e-5

# %% [markdown]
# ## NUTS
#
# Nothing new to learn: data, program, method, seed.

# %%
mcmc = infer(zero_inflated, counts, NUTS(chains=4, warmup=warmup, draws=draws), seed=0)
data = mcmc.to_arviz()
print(mcmc.status)
if full:
    assert mcmc.sample_stats["diverging"].sum() == 0
    assert max(rhat(value.numpy()) for value in mcmc.draws.values()) < 1.02
    assert min(ess(value.numpy()) for value in mcmc.draws.values()) > 400  # 100 for each chain
az.summary(data).round(3)

# %% [markdown]
# ## SVI, and a guide of your own
#
# The built-in guide is a Gaussian on unconstrained scales, here with its correlation. It starts at the MAP: sites are
# what one fit hands to the next.
#
# A guide may also be a function of yours. It takes the same arguments as the program and samples the same *continuous*
# sites. The discrete site does not appear: it is summed out. This one is a Beta times a Gamma, the right supports but
# no correlation.


# %%
def beta_times_gamma(counts):
    share_mean = pyro.param("share_mean", torch.tensor(0.5), constraint=constraints.unit_interval)
    share_size = pyro.param("share_size", torch.tensor(20.0), constraint=constraints.positive)
    rate_mean = pyro.param("rate_mean", torch.tensor(1.0), constraint=constraints.positive)
    rate_size = pyro.param("rate_size", torch.tensor(20.0), constraint=constraints.positive)
    pyro.sample("share", dist.Beta(share_mean * share_size, (1 - share_mean) * share_size))
    pyro.sample("rate", dist.Gamma(rate_size, rate_size / rate_mean))


built_in = infer(zero_inflated, counts, SVI(init=map_fit.sites(), max_steps=max_steps), seed=0)
own = infer(zero_inflated, counts, SVI(guide=beta_times_gamma, max_steps=max_steps), seed=0)
guides = {"built-in guide": built_in, "own guide": own}
for name, fit in guides.items():
    print(
        f"{name:15} ELBO {fit.elbo[0]:.3f} ± {fit.elbo[1]:.3f}, {log_evidence - fit.elbo[0]:.3f} below the log evidence"
    )

# %% [markdown]
# The ELBO is a lower bound of the log evidence, and the gap is the Kullback-Leibler distance of the guide from the
# posterior. Usually the evidence is not known. Here it is, so the gap can be read off.

# %%
for fit in guides.values():
    assert fit.elbo[0] < log_evidence + 4 * fit.elbo[1]  # a bound, up to the Monte-Carlo error of its estimate
if full:
    assert log_evidence - built_in.elbo[0] < 0.05

fig, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
for colour, (name, fit) in zip(("C0", "C1"), guides.items(), strict=True):
    steps = pd.Series(fit.history["elbo"][0].numpy())
    ax.plot(steps, color=colour, alpha=0.25, linewidth=0.5)
    ax.plot(steps.rolling(50).mean(), color=colour, label=f"{name}: mean of 50 steps")
ax.axhline(log_evidence, color="black", linestyle="--", linewidth=1, zorder=1, label="log evidence, from the grid")
ax.set(xlabel="step", ylabel="ELBO estimate, nats", ylim=(log_evidence - 6, log_evidence + 2.5))
_ = ax.legend(fontsize="small", loc="lower right")

# %% [markdown]
# The two curves come from two engines. A built-in Gaussian guide takes natural-gradient steps, in its own units: few
# steps, little noise. A guide of your own is run by Pyro's engine with Adam: more steps, more noise. Both stop by the
# same rule.
#
# Both have a warning label in their `status`, the Pareto k of posterior over guide. Read it for what it is. It looks at
# the far tails, where a normal distribution falls off faster than this posterior; the gap above looks at the bulk. The
# built-in guide gets a warning, and yet is within 0.05 nats. A warning means: compare with draws before you rely on it.
# That is done next.

# %%
for name, fit in guides.items():
    print(f"{name:15} {fit.history['elbo'].shape[1]:4} steps, {fit.status}")
if full:
    assert built_in.history["elbo"].shape[1] < own.history["elbo"].shape[1]
    assert built_in.pareto_k > 0.67

# %% [markdown]
# ## All answers beside the exact one

# %%
chosen = {"NUTS": mcmc.draws} | {name: fit.sample(4000, seed=1) for name, fit in guides.items()}
flat = {name: [sites[site].flatten().numpy() for site in ("share", "rate")] for name, sites in chosen.items()}
answers = pd.DataFrame({"exact": exact} | {name: moments(*pair, 1 / pair[0].size) for name, pair in flat.items()}).T

for site in ("share", "rate"):
    off = (answers[site] - exact[site]).abs() / exact[f"{site} sd"]
    assert off["NUTS"] < 4 / np.sqrt(ess(mcmc.draws[site].numpy()))  # four Monte-Carlo errors
    if full:
        for name, fit in guides.items():
            # A Gaussian whose mean is off by d sd is d²/2 nats away: the gap bounds d. Four errors of the draws on top.
            gap = max(log_evidence - fit.elbo[0], 0) + 4 * fit.elbo[1]
            assert off[name] < np.sqrt(2 * gap) + 4 / np.sqrt(4000)
answers.round(3)

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharex=True, sharey=True)
falling = np.sort(mass, axis=None)[::-1]
levels = np.log(falling[np.searchsorted(falling.cumsum(), [0.99, 0.95, 0.75, 0.25])])  # contours that enclose so much
for ax, (name, (share, rate)) in zip(axes, flat.items(), strict=True):
    keep = np.linspace(0, share.size - 1, min(500, share.size)).astype(int)
    ax.plot(share[keep], rate[keep], ".", color="C0", markersize=3, alpha=0.5)
    across, up = share_grid[:, 0], rate_grid
    ax.contour(across, up, np.log(mass).T, levels=levels, colors="black", linewidths=0.8, linestyles="solid")
    ax.plot(true_share, true_rate, "*", color="C3", markersize=10)
    ax.set(title=name, xlabel="share", xlim=(0.1, 0.45), ylim=(1.4, 2.6))
_ = axes[0].set_ylabel("rate")

# %% [markdown]
# Lines: the exact posterior (25, 75, 95 and 99 %). Star: the truth. NUTS and the built-in guide fill the lines. Our own
# guide lies across them: it has the widths but no tilt. More failed lamps and more moths on good nights explain the
# same zeros, so the two unknowns rise together; a guide that is a product cannot say so. That, not its supports, is
# what it paid for with its lower ELBO.

# %%
assert 0.3 < exact["corr"] < 0.4
assert abs(answers.loc["own guide", "corr"]) < 0.065  # zero, but for 4,000 draws: four times 1 / sqrt(4000)
if full:
    assert abs(answers.loc["built-in guide", "corr"] - exact["corr"]) < 0.1
    assert built_in.elbo[0] - own.elbo[0] > 0  # the expected loss of a product is -log(1 - corr²) / 2 = 0.07 nats
print("nats that a Gaussian loses by giving up this correlation:", round(-np.log(1 - exact["corr"] ** 2) / 2, 3))

# %% [markdown]
# ## The likelihood of every row
#
# `az.loo` needs log p(row | sites) for every row and draw. For a program with discrete sites Pyro does not offer it;
# `to_arviz` sums `inflated` out row by row. We check all of them against the formula written by hand above.

# %%
by_row = data["log_likelihood"]["count"]
by_hand = log_likelihood(*(mcmc.draws[site].numpy()[..., None] for site in ("share", "rate")), counts)
print(dict(by_row.sizes), "largest difference", float(np.abs(by_row.values - by_hand).max()))
assert np.abs(by_row.values - by_hand).max() < 1e-12  # some ten roundings of numbers below 20 in float64

# %% [markdown]
# ## Is the inflation needed?
#
# The rival: a plain Poisson. Same data, same methods, and `az.compare` takes both.


# %%
def poisson(counts):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("night", len(counts)):
        pyro.sample("count", dist.Poisson(rate), obs=counts)


rival = infer(poisson, counts, NUTS(chains=4, warmup=warmup, draws=draws), seed=0)
rival_data = rival.to_arviz()
comparison = az.compare({"zero-inflated": data, "Poisson": rival_data})
loser = comparison.iloc[1]
assert comparison.index[0] == "zero-inflated"
assert loser["elpd_diff"] > 4 * loser["dse"]
comparison.round(2)

# %% [markdown]
# The difference in expected log predictive density is more than four times its own standard error (`dse`). The
# predictive check says *why* the Poisson loses: it cannot make as many zeros as there are.

# %%
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
observed_zeros = (counts == 0).mean()
shares = {}
for colour, (name, container) in zip(("C1", "C0"), {"Poisson": rival_data, "zero-inflated": data}.items(), strict=True):
    replicated = container["posterior_predictive"]["count"].values.reshape(-1, nights)
    shares[name] = (replicated == 0).mean(1)
    p_value = (shares[name] >= observed_zeros).mean()
    ax.hist(shares[name], np.arange(0.1, 0.6, 0.01), color=colour, alpha=0.7, label=f"{name}: p = {p_value:.2f}")
ax.axvline(observed_zeros, color="black", label="observed")
ax.set(xlabel="share of zeros in replicated data", yticks=[])
_ = ax.legend()
assert (shares["Poisson"] >= observed_zeros).mean() < 0.01
assert 0.05 < (shares["zero-inflated"] >= observed_zeros).mean() < 0.95

# %% [markdown]
# ## Was the lamp off?
#
# Summing a discrete site out does not lose it. Given the two numbers of a draw, Bayes' rule gives the probability that
# a night with zero moths was a night with a failed lamp: s / (s + (1 − s) e⁻ʳ). Over all draws this is a posterior
# distribution, with its own uncertainty.

# %%
share, rate = flat["NUTS"]
structural = share / (share + (1 - share) * np.exp(-rate))
truth = failed[counts == 0].mean()
print(f"P(lamp failed | no moths) = {structural.mean():.2f}, sd {structural.std():.2f}")
print(f"in the simulated data the lamp had failed on {truth:.2f} of the {(counts == 0).sum()} nights without moths")

fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ax.hist(structural, 40, color="C0", alpha=0.7, label="posterior")
ax.axvline(truth, color="C3", label="share in the simulated data")
ax.set(xlabel="probability that a zero is structural", yticks=[])
_ = ax.legend()

exact_structural = (mass * share_grid / (share_grid + (1 - share_grid) * np.exp(-rate_grid))).sum()
assert abs(structural.mean() - exact_structural) < 4 * structural.std() / np.sqrt(ess(structural.reshape(4, -1)))
# The share among these nights scatters about its probability as a binomial one does; three times both spreads together.
scatter = np.sqrt(exact_structural * (1 - exact_structural) / (counts == 0).sum())
assert abs(truth - structural.mean()) < 3 * np.hypot(scatter, structural.std())

# %% [markdown]
# ## Keep it
#
# No data file can hold a function. The file knows that it needs yours, and asks for it by name.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "moths.safetensors"
    mcmc.save(file)
    try:
        load_posterior(file)
    except ProgramError as error:
        print(str(error).replace(str(file), file.name))
    again = load_posterior(file, program=zero_inflated)
assert torch.equal(again.draws["rate"], mcmc.draws["rate"])

# %% [markdown]
# ## What to take home
#
# 1. Write the program as you would for Pyro. Put discrete sites that belong to a row into the row's plate.
# 2. Choose between two values with `torch.where`, so that gradients stay finite.
# 3. `MAP` for a first look, `SVI` for a fast answer, `NUTS` to be sure. `EM` only for models with a closed form.
# 4. The likelihood of every row is there: use `az.loo` and `az.compare`.
# 5. What was summed out can be asked for afterwards, by Bayes' rule, draw by draw.
