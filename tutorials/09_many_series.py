# %% [markdown]
# # Many series, any prior, every method
#
# A random scale is one unknown number for each data set ([tutorial 6](06_scale_mixtures.ipynb) says what it buys). With
# many small data sets its law can be learnt, and then it pays. We learn it, look at what other laws cost (nothing), and
# run one program through EM, MAP, SVI and many chains.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os
from unittest import mock

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

from probmix.burr import BurrXII
from probmix.datasets import load_faithful
from probmix.inference import EM, MAP, SVI, ChEES, infer
from probmix.models import ScaleMixtureNNGP, ScaleMixtureProcess
from probmix.nngp import NNGPKernel
from probmix.quantiles import quantile
from probmix.scale_integral import importance_sample, log_integral, nodes
from probmix.scale_mixture_normal import ScaleMixtureNormal

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and steps, no assert that needs many
many_chains = ChEES(compile=False) if full else ChEES(warmup=12, draws=8, compile=False)

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# One kernel throughout, that of a network with two hidden layers; its hyperparameters are fixed until the last section.

# %%
kernel = NNGPKernel(depth=2, activation="erf", weight_var=4.0, bias_var=1.0, readout=False)
scale_prior = dist.InverseGamma(2.0, 2.0)
colours = {"Gaussian": "C0", "Student-t": "C1", "Burr": "C2"}
s = torch.logspace(-2, 2, 801)
x_five = torch.tensor([-2.0, -1.2, -0.3, 0.5, 1.1])[:, None]
rng = np.random.default_rng(0)
x_many = torch.as_tensor(rng.uniform(-2, 2, 200))[:, None]
y_many = torch.sin(1.5 * x_many[:, 0]) + 0.1 * torch.as_tensor(rng.normal(size=200))

# %% [markdown]
# ## Where a random scale pays most: several data sets
#
# One data set has one s. Thirty have thirty, and then the prior of s can be learnt. Here are 30 short series whose
# sizes vary a lot (log-normally, so that no inverse gamma is the truth). A program for all of them has two unknowns,
# the parameters of the inverse gamma, and one plate. `ScaleMixtureNormal` is the law of a whole series, with its s
# integrated out.


# %%
def many_series(y, tril):
    shape = pyro.sample("shape", dist.LogNormal(0.7, 1.0))
    rate = pyro.sample("rate", dist.LogNormal(0.7, 1.5))
    with pyro.plate("series", len(y)):
        pyro.sample("y", ScaleMixtureNormal(y.new_zeros(y.shape[1]), tril, dist.InverseGamma(shape, rate)), obs=y)


torch.manual_seed(2)
x_series = torch.cat([x_five, torch.tensor([1.6, 2.0, 2.4, 2.8, 3.2])[:, None]])
with torch.no_grad():
    tril = torch.linalg.cholesky(kernel(x_series).to_dense() + 0.01 * torch.eye(10))
sizes = dist.LogNormal(np.log(3.0), 1.0)
of_series = ScaleMixtureNormal(torch.zeros(10), tril, sizes)
seen, coming = of_series.sample((30,)), of_series.sample((10_000 if full else 100,))
fit = infer(many_series, (seen, tril), many_chains, seed=0)
print(fit.status)
az.summary(fit.to_arviz(log_likelihood=False)).round(3)

# %% [markdown]
# Then new series come. We see their first five values and predict the other five, with what the 30 series have taught
# us. The rivals are a Gaussian process with one s for all, the best for the 30 series; one whose s is fitted to the
# five values seen; and the Student-t process with a prior that nobody has learnt, InverseGamma(2, 2).


# %%
def length(y):
    """Squared length of whitened series, and their number of values."""
    n = y.shape[1]
    return torch.linalg.solve_triangular(tril[:n, :n], y.mT, upper=False).square().sum(0), n


def log_score(prior):
    """Log density of the last five values of each new series given the first five, (*b, series) for priors (*b, 1)."""
    tall, short = (ScaleMixtureNormal(torch.zeros(n), tril[:n, :n], prior) for n in (10, 5))
    return tall.log_prob(coming), short.log_prob(coming[:, :5])


def averaged(values):
    return values.logsumexp(0) - np.log(len(values))


def gaussian_score(s):
    q_all, q_first = length(coming)[0], length(coming[:, :5])[0]
    return (
        -0.5 * (q_all - q_first) / s - 2.5 * (2 * torch.pi * torch.as_tensor(s)).log() - tril.diagonal()[5:].log().sum()
    )


draws = fit.sample(200, seed=0)
learnt_prior = dist.InverseGamma(draws["shape"][:, None], draws["rate"][:, None])
q, n = length(seen)
scores = {
    "Gaussian, one s": gaussian_score(q.mean() / n),
    "Gaussian, s fitted": gaussian_score(length(coming[:, :5])[0] / 5),
    "Student-t, not learnt": torch.sub(*log_score(scale_prior)),
    "Student-t, learnt": torch.sub(*(averaged(values) for values in log_score(learnt_prior))),
    "the law of the sizes itself": torch.sub(*log_score(sizes)),
}
best = scores["the law of the sizes itself"]
lost = pd.DataFrame(
    {
        name: (float((best - value).mean()), float((best - value).std() / len(best) ** 0.5))
        for name, value in scores.items()
    },
    index=["nats lost per series", "standard error"],
).T.iloc[:-1]

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
shades = plt.get_cmap("viridis")((q / n).log().argsort().argsort() / len(q))
for values, shade in zip(seen, shades, strict=True):
    left.plot(x_series, values, color=shade, linewidth=1)
left.set(xlabel="x", ylabel="y", title="30 series, coloured by size")
density = s * learnt_prior.expand((200, 1)).log_prob(s).exp()
middle.fill_between(s, *density.quantile(torch.tensor([0.05, 0.95]), 0), color="C1", alpha=0.25, linewidth=0)
middle.plot(s, density.mean(0), color="C1", label="learnt, with 90 %")
middle.plot(s, s * sizes.log_prob(s).exp(), color="black", linewidth=1, label="truth: log-normal")
middle.plot(s, s * scale_prior.log_prob(s).exp(), color="0.6", label="InverseGamma(2, 2)")
middle.plot(q / n, torch.full_like(q, -0.02), "|", color="black", markersize=7)
middle.set(
    xscale="log", xlabel="s; bars: q / n of each series", title="density of log s", xlim=(0.05, 100), ylim=(-0.05, 0.8)
)
middle.legend(fontsize="small", loc="upper left")
right.barh(lost.index, lost["nats lost per series"], xerr=2 * lost["standard error"], color=["C0", "C0", "0.6", "C1"])
right.invert_yaxis()
right.set(xlabel="nats lost per series, ± two errors", title="five values predicted from five")
lost.round(3)

# %% [markdown]
# The learnt prior loses next to nothing against the law that the sizes were drawn from, although it has another shape.
# The one that nobody has learnt loses a little more. To fit s to five values, or to take one s for all, costs more than
# half a nat for each series. This is what a scale mixture is for: **few data each, sizes that vary from one data set to
# the next, and data sets to learn their law from.**

# %%
if full:
    nats = lost["nats lost per series"]
    assert nats["Student-t, learnt"] < 0.03
    assert nats["Student-t, learnt"] < nats["Student-t, not learnt"] < 0.1
    assert nats["Gaussian, s fitted"] > 0.5
    assert nats["Gaussian, one s"] > 0.5

# %% [markdown]
# ## Any prior, one factorisation
#
# All that a prior H of s asks of the data is n and q, two numbers. What is left is an integral over one positive
# number, whatever H is: in closed form for the inverse gamma, by a quadrature of 256 nodes otherwise. So Burr,
# half-Cauchy or a prior of your own costs what the Gaussian process costs, one factorisation of the covariance:

# %%
names = {
    "InverseGamma(2, 2)": scale_prior,
    "Burr(2, 2)": BurrXII(2.0, 2.0),
    "HalfCauchy(1)": dist.HalfCauchy(1.0),
    "LogNormal(0, 1)": dist.LogNormal(0.0, 1.0),
}
factorise, solver = torch.linalg.cholesky, {}
for name, prior in names.items():
    with mock.patch.object(torch.linalg, "cholesky", side_effect=factorise) as counted:
        model = ScaleMixtureProcess(kernel=kernel, scale_prior=prior, noise_var=0.01)
        with pyro.poutine.trace() as trace:
            model(x_many, y_many)
        evidence = trace.trace.log_prob_sum()
    solver[name] = (float(evidence), counted.call_count)
pd.DataFrame(solver.values(), index=list(solver), columns=["log evidence, n = 200", "factorisations"]).round(2)

# %%
assert [calls for _, calls in solver.values()] == [1] * 4
q_many, sizes_of_data = torch.tensor(300.0), (1.5, 25.0)
exact, by_nodes = log_integral(scale_prior, 200, q_many), nodes(scale_prior, 200, q_many).log_integral
print(f"Student-t, quadrature less closed form: {by_nodes - exact:.0e} nats")
assert abs(by_nodes - exact) < 1e-10

# %% [markdown]
# The usual alternative is importance sampling: draw s from its prior and weight. `importance_sample` is there as a
# check, with its effective sample size (ESS) and Pareto k. Here are 1,000 draws, on data whose size the prior expects
# (q / n = 1.5) and on the same data five times as high, as if one had forgotten to standardise them.

# %%
ns = [2, 5, 10, 20, 50, 100, 200, 500]
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharex=True)
rows = {}
for name, colour in (("InverseGamma(2, 2)", "C1"), ("Burr(2, 2)", "C2")):
    for size, style in zip(sizes_of_data, ("-", "--"), strict=True):
        label, curves = f"{name}, q / n = {size:g}", []
        for n in ns:
            exact = float(log_integral(names[name], n, torch.tensor(size * n)))
            drawn = [importance_sample(names[name], n, torch.tensor(size * n), seed=seed) for seed in range(20)]
            found = [(one.ess, one.pareto_k, abs(float(one.log_integral) - exact)) for one in drawn]
            curves.append(np.median(found, 0))
        for ax, values in zip(axes, np.array(curves).T[[0, 2]], strict=True):
            ax.plot(ns, values, style, color=colour, marker="o", markersize=3, label=label)
        rows[label] = curves[ns.index(200)]
axes[0].set(xscale="log", yscale="log", xlabel="n", ylabel="ESS", title="effective draws of 1,000")
axes[1].set(yscale="log", xlabel="n", ylabel="nats", title="error of the log evidence")
axes[1].legend(fontsize="small")
sampled = pd.DataFrame(rows, index=["ESS", "Pareto k", "error, nats"]).T
sampled.round(2)

# %% [markdown]
# At n = 200 (the table; medians of 20 seeds) some hundred draws of 1,000 still count if the prior expects the data. If
# it does not, one or two do, and the log evidence under Burr's prior is off by more than a hundred nats. Pareto k sees
# that. The quadrature does not notice.

# %%
bad, good = sampled[sampled.index.str.endswith("25")], sampled[sampled.index.str.endswith("1.5")]
assert good["ESS"].between(50, 250).all()
assert (good["Pareto k"] < 0.7).all()
assert (bad["ESS"] < 5).all()
assert (bad["Pareto k"] > 0.7).all()
assert bad.loc["Burr(2, 2), q / n = 25", "error, nats"] > 100

# %% [markdown]
# ## One program, four methods
#
# So far the hyperparameters were fixed. `ScaleMixtureNNGP` gives them priors: variances of weights and biases, overall
# size, noise. It is a Pyro program like any other, so everything in `infer` applies. Real data now: the first 40
# eruptions of Old Faithful, how long one lasted and how long the next one kept people waiting. The other 232 are for
# checking.

# %%
geyser = load_faithful().x
geyser = (geyser - geyser[:40].mean(0)) / geyser[:40].std(0)
(x_train, y_train), (x_test, y_test) = ((part[:, :1], part[:, 1]) for part in (geyser[:40], geyser[40:]))
model = ScaleMixtureNNGP(depth=2, activation="erf")  # scale_prior=InverseGamma(2, 2)

methods = {
    "EM": EM(restarts=2) if full else EM(restarts=1, max_steps=5),
    "MAP": MAP(),
    "SVI": SVI(guide="full_rank", compile=False, max_steps=10_000 if full else 50),
    "ChEES": many_chains,
}
fits = {name: infer(model, (x_train, y_train), method, seed=0) for name, method in methods.items()}
for name, one in fits.items():
    print(f"{name}: {one.status}")
pd.DataFrame({name: {site: float(value) for site, value in one.sites().items()} for name, one in fits.items()}).round(3)

# %% [markdown]
# EM takes s for the missing datum: its expectation is a closed form, `1 / E[1/s]`, then the other sites climb. It ends
# where MAP does. `sites()` of a point is the point; of SVI and ChEES it is the one best draw. The draws are the answer:

# %%
if full:
    heights = [
        float(fits[name].log_density.log_joint({k: v[None] for k, v in fits[name].sites().items()}))
        for name in ("EM", "MAP")
    ]
    print(f"log joint density: EM {heights[0]:.5f}, MAP {heights[1]:.5f}")
    assert abs(heights[0] - heights[1]) < 1e-3
az.summary(fits["ChEES"].to_arviz(log_likelihood=False)).round(3)

# %% [markdown]
# `model.predictive` takes one set of sites and returns a Student-t, or draws of them and returns the mixture of
# processes, one for each draw.

# %%
one = model.predictive(x_test, fits["MAP"].sites(), x_train, y_train)
predictions = {"Student-t, MAP": one}
for name in ("SVI", "ChEES"):
    sites = fits[name].sample(200, seed=0)
    predictions[f"Student-t, {name}"] = model.predictive(x_test, sites, x_train, y_train)
plain = ScaleMixtureNNGP(depth=2, activation="erf", scale_prior=None)
plain_sites = infer(plain, (x_train, y_train), MAP(), seed=0).sites()
predictions["Gaussian, MAP"] = plain.predictive(x_test, plain_sites, x_train, y_train)
held_out = pd.Series({name: float(law.log_prob(y_test).mean()) for name, law in predictions.items()})
held_out.to_frame("nats per eruption held out").round(3)

# %%
grid = torch.linspace(-2.3, 3.5, 121)[:, None]
laws_on_grid = {
    "Gaussian, MAP": plain.predictive(grid, plain_sites, x_train, y_train),
    "Student-t, ChEES": model.predictive(grid, fits["ChEES"].sample(200, seed=0), x_train, y_train),
}
fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for ax, (name, law) in zip(axes, laws_on_grid.items(), strict=True):
    colour = colours[name.split(",")[0]]
    for level, shade in ((0.99, 0.15), (0.9, 0.25), (0.5, 0.35)):
        low, high = quantile(law, [(1 - level) / 2, (1 + level) / 2])
        ax.fill_between(grid[:, 0], low, high, color=colour, alpha=shade, linewidth=0)
    ax.plot(x_test, y_test, ".", color="0.4", markersize=3, label="held out")
    ax.plot(x_train, y_train, "o", color="black", markersize=3.5, label="the 40 of the fit")
    ax.set(xlabel="duration, standardised", ylim=(-3.3, 3.3), title=f"{name}: 50, 90 and 99 %")
axes[0].set_ylabel("waiting time, standardised")
_ = axes[0].legend(fontsize="small", loc="lower right")

# %% [markdown]
# With 40 observations Gaussian and Student-t differ by hundredths of a nat, as tutorial 6 has promised. Averaging over
# the hyperparameters gains more than the tail does, and in the same way: a Gaussian process whose overall size has a
# prior and is integrated out *is* a scale mixture.

# %%
if full:
    assert held_out.max() - held_out.min() < 0.05
    gaussian, student, averaged_over = held_out[["Gaussian, MAP", "Student-t, MAP", "Student-t, ChEES"]]
    assert averaged_over - student > student - gaussian > 0
