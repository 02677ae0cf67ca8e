# %% [markdown]
# # What a scale mixture buys, and what it does not
#
# A wide network with random weights is a Gaussian process. Give the variance of its last layer a prior, and it is a
# *scale mixture* of Gaussian processes: a Student-t process if the prior is an inverse gamma, something else if it is
# not. Heavier tails sound like robustness, and like better uncertainty everywhere. They are neither. We take one kernel
# and three processes, and look at what changes.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import ScaleKernel
from gpytorch.priors import LogNormalPrior
from scipy import stats
from scipy.special import gammaln

from probmix.burr import BurrXII
from probmix.inference import ChEES, infer
from probmix.models import ScaleMixtureProcess, StudentTProcess
from probmix.nngp import NNGPKernel
from probmix.quantiles import quantile
from probmix.scale_mixture_normal import ScaleMixtureNormal

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and steps, no assert that needs many
many_chains = ChEES(compile=False) if full else ChEES(warmup=12, draws=8, compile=False)
data_sets = 20_000 if full else 500

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## One kernel, three processes
#
# The kernel is that of a network with two hidden layers. All hyperparameters are fixed for now, so that only the prior
# of the common variance s differs: no prior (s = 1, the Gaussian process), an inverse gamma (the Student-t process,
# here with 4 degrees of freedom), and Burr's distribution, which has no closed form. We show them five points, and then
# the same five points four times as high.

# %%
kernel = NNGPKernel(depth=2, activation="erf", weight_var=4.0, bias_var=1.0, readout=False)
models = {
    "Gaussian": ScaleMixtureProcess(kernel=kernel, scale_prior=None, noise_var=0.01),
    "Student-t": StudentTProcess(kernel=kernel, df=4.0, noise_var=0.01),
    "Burr": ScaleMixtureProcess(kernel=kernel, scale_prior=BurrXII(2.0, 2.0), noise_var=0.01),
}
colours = dict(zip(models, ["C0", "C1", "C2"], strict=True))
x = torch.tensor([-2.0, -1.2, -0.3, 0.5, 1.1])[:, None]
y = torch.sin(1.5 * x[:, 0])
x_new = torch.linspace(-4, 4, 201)[:, None]


def conditioned(x, y):
    """Every process given the data; there are no sites, as everything is fixed."""
    return {name: model.condition(x, y, {}) for name, model in models.items()}


# %% [markdown]
# A prediction is `loc + std(x) * z`. Both `loc` and `std` come from the kernel and are the same for all three. Only the
# law of z differs, and it is the *same for all inputs*: standard normal, Student-t, or a mixture of normals. So one
# number says how wide all bands of a process are: the quantile of z.


# %%
def band(process, rows=x_new, level=0.95):
    """Ends of the central interval of an observation at every row."""
    return quantile(process.predictive(rows), [(1 - level) / 2, (1 + level) / 2])


def reach(process, given, rows=x_new):
    """Half the width of the interval in units of the Gaussian process, at every row."""
    low, high = band(process, rows)
    return 0.5 * (high - low) / given["Gaussian"].predictive(rows).stddev


fig, axes = plt.subplots(2, 3, figsize=(11, 5), layout="constrained", sharex=True, sharey="row")
reaches = {}
for row, height in zip(axes, (1, 4), strict=True):
    given = conditioned(x, height * y)
    for ax, (name, process) in zip(row, given.items(), strict=True):
        loc, widths = process.predictive(x_new).mean, reach(process, given)
        assert torch.allclose(widths, widths[0], rtol=1e-8)  # the same at all inputs
        reaches[name, height] = float(widths[0])
        ax.fill_between(x_new[:, 0], *band(process), color=colours[name], alpha=0.25, linewidth=0)
        ax.plot(x_new, loc, color=colours[name])
        ax.plot(x, height * y, "o", color="black", markersize=4)
        ax.set_title(f"{name}: mean ± {reaches[name, height]:.2f} std(x)", fontsize="medium")
        assert torch.allclose(loc, given["Gaussian"].predictive(x_new).mean, atol=1e-12, rtol=0)
for ax, label in zip(axes[:, 0], ("y", "y, four times as high"), strict=True):
    ax.set_ylabel(label)
_ = fig.supxlabel("x; line: mean, shaded: central interval of 95 %", fontsize="medium")

# %% [markdown]
# The means are the same to rounding: at the same hyperparameters **a scale mixture never changes the mean**. The bands
# of a Gaussian process do not depend on y at all; the data are four times as high, and it is as sure as before. The
# mixtures have learnt from five points that s is larger, and widen all bands alike.

# %%
given = conditioned(x, y)
assert abs(reaches["Gaussian", 4] - reaches["Gaussian", 1]) < 1e-9
assert reaches["Student-t", 4] > 2 * reaches["Student-t", 1]
assert reaches["Burr", 4] > 2 * reaches["Burr", 1]

# %% [markdown]
# ## What is known about s, with few data and with many
#
# That is all there is to a scale mixture: one unknown number s. Its likelihood is `s^(-n/2) exp(-q / 2s)`, where q is
# the squared length of the whitened data, so that log s is known to about √(2/n). `process.scale` is its posterior.

# %%
rng = np.random.default_rng(0)
x_many = torch.as_tensor(rng.uniform(-2, 2, 200))[:, None]
y_many = torch.sin(1.5 * x_many[:, 0]) + 0.1 * torch.as_tensor(rng.normal(size=200))
laws = {5: given, 200: conditioned(x_many, y_many)}
z = torch.linspace(-60, 60, 24_001)  # so far that nothing is left out


def density_of_z(process, given, row=x_new[:1]):
    """Density of a new observation in units of the Gaussian process, which is the same at every input."""
    law, std = process.predictive(row), given["Gaussian"].predictive(row).stddev
    return (law.log_prob(law.mean + std * z) + std.log()).exp()


fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
s = torch.logspace(-2, 2, 801)
rows = []
priors = {"Student-t": dist.InverseGamma(2.0, 2.0), "Burr": BurrXII(2.0, 2.0)}
for ax, (name, prior) in zip(axes[:2], priors.items(), strict=True):
    ax.plot(s, s * prior.log_prob(s).exp(), color="0.6", label="prior")
    for (n, processes), style in zip(laws.items(), ("--", "-"), strict=True):
        ax.plot(s, s * processes[name].scale.log_prob(s).exp(), style, color=colours[name], label=f"n = {n}")
        known = models[name].expected_scale(*((x, y) if n == 5 else (x_many, y_many)), {})
        normal = dist.Normal(0.0, known.sqrt())
        density = density_of_z(processes[name], processes)
        distance = 0.5 * float((density - normal.log_prob(z).exp()).abs().sum() * (z[1] - z[0]))
        far = float(density[(z / known.sqrt() - 4).abs().argmin()].log() - normal.log_prob(4 * known.sqrt()))
        rows.append((name, n, distance, far))
        if n == 5:
            u = z / known.sqrt()
            axes[2].plot(u, (density * known.sqrt()).log(), color=colours[name], label=name)
    ax.set(xscale="log", xlabel="s", title=f"{name}: density of log s", ylim=(0, 2.2) if n == 5 else None)
    ax.legend(fontsize="small")
axes[2].plot(z, dist.Normal(0.0, 1.0).log_prob(z), color=colours["Gaussian"], label="Gaussian")
axes[2].set(xlim=(-7, 7), ylim=(-20, 0.5), xlabel="z / √s", title="log density of a prediction, n = 5")
axes[2].legend(fontsize="small")
nearly = pd.DataFrame(rows, columns=["process", "n", "total variation", "nats at four std"]).set_index(["process", "n"])
nearly.round(4)

# %% [markdown]
# The table compares each predictive density with the normal one that has the best single value of s. With five data
# they differ by some hundredths in total variation (the largest error in the probability of anything), and at four
# standard deviations by more than two nats. With 200 the total variation is below 0.002. **With some hundreds of
# observations the predictions of a scale mixture are nearly normal**: about a quarter of a nat is left, four standard
# deviations out.

# %%
assert (nearly.xs(5, level="n")["total variation"] > 0.02).all()
assert (nearly.xs(200, level="n")["total variation"] < 0.002).all()
assert (nearly.xs(5, level="n")["nats at four std"] > 2).all()
assert (nearly.xs(200, level="n")["nats at four std"] < 0.28).all()

# %% [markdown]
# ## It is not robust
#
# One s is common to all points, so a scale mixture can only say that *everything* varies more than expected. It cannot
# say that one point is wrong. Here are 25 points, one of them moved.

# %%
torch.manual_seed(0)
x_line = torch.linspace(-2, 2, 25)[:, None]
clean = torch.sin(1.5 * x_line[:, 0]) + 0.1 * torch.randn(25)
moved = clean.clone()
moved[16] -= 3.0

before, after = conditioned(x_line, clean), conditioned(x_line, moved)
widened = float(reach(after["Student-t"], after)[0] / reach(before["Student-t"], before)[0])
same_mean = (after["Student-t"].predictive(x_new).mean - after["Gaussian"].predictive(x_new).mean).abs().max()
print(
    f"all bands of the Student-t process are {widened:.1f} times as wide; its mean is the Gaussian's: {same_mean:.0e}"
)
assert same_mean < 1e-12
assert widened > 1.8

# %% [markdown]
# What one wants here is another model: heavy-tailed *noise*, a variance of its own for each point. It is a few lines in
# Pyro (and in GPyTorch a `StudentTLikelihood`). The covariance of the function is that of the same kernel; a priori the
# noise has a Student-t distribution with two degrees of freedom.


# %%
def heavy_tailed_noise(y, covariance, noise_var):
    with pyro.plate("point", len(y)):
        factor = pyro.sample("factor", dist.InverseGamma(torch.ones(()), torch.ones(())))
    noise = torch.diag_embed(noise_var * factor)
    pyro.sample("y", dist.MultivariateNormal(y.new_zeros(len(y)), covariance + noise), obs=y)


with torch.no_grad():
    covariance, cross = kernel(x_line).to_dense(), kernel(x_new, x_line).to_dense()
centred = moved - moved.mean()
robust = infer(heavy_tailed_noise, (centred, covariance, 0.01), many_chains, seed=0)
factor = robust.sample(400, seed=0)["factor"]
solved = torch.linalg.solve(covariance + 0.01 * torch.diag_embed(factor), centred[:, None])
robust_mean = moved.mean() + (cross @ solved).mean(0)[:, 0]

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for ax, values, processes in zip(axes, (clean, moved), (before, after), strict=True):
    for name in ("Student-t", "Gaussian"):
        ax.fill_between(x_new[:, 0], *band(processes[name]), color=colours[name], alpha=0.25, linewidth=0, label=name)
    ax.plot(x_new, processes["Gaussian"].predictive(x_new).mean, color="black", linewidth=1, label="mean of both")
    ax.plot(x_line, values, "o", color="black", markersize=3.5)
    ax.set(xlabel="x", xlim=(-3, 3), ylim=(-2.6, 2))
axes[0].set(ylabel="y", title="25 points")
axes[1].plot(x_new, robust_mean, "--", color="C3", label="heavy-tailed noise")
axes[1].set_title(f"one of them moved: all Student-t bands × {widened:.1f}")
_ = axes[1].legend(fontsize="small", loc="upper left")

# %% [markdown]
# Both processes follow the outlier alike. The Student-t process is less sure afterwards, everywhere, which is honest
# but not what one would call robust. With heavy-tailed noise the moved point has a variance more than fifty times that
# of any other, and the curve passes it by: at its place it moves by less than a tenth of what the others do.

# %%
place = int((x_new[:, 0] - x_line[16]).abs().argmin())
pulled = after["Gaussian"].predictive(x_new).mean[place] - before["Gaussian"].predictive(x_new).mean[place]
passed = robust_mean[place] - before["Gaussian"].predictive(x_new).mean[place]
typical = factor.median(0).values
print(f"the curve at the outlier moves by {pulled:.2f}; with heavy-tailed noise by {passed:.2f}")
print(f"median variance of its noise: {typical[16]:.0f}; largest of the others: {np.delete(typical, 16).max():.1f}")
if full:
    assert abs(passed) < 0.1 * abs(pulled)
    assert typical[16] > 50 * np.delete(typical, 16).max()

# %% [markdown]
# ## The degrees of freedom cannot be learnt from one data set
#
# Fit the degrees of freedom ν of a Student-t process by maximum likelihood, with its overall scale free, and they run
# away. For each ν the best scale is the one that makes q equal to n, and what is left of the evidence is
#
# $$g(\nu) = \log\Gamma\big(\tfrac{\nu + n}{2}\big) - \log\Gamma\big(\tfrac{\nu}{2}\big) - \tfrac n2 \log\tfrac\nu2
# - \tfrac{\nu + n}{2} \log\big(1 + \tfrac n\nu\big) + \mathrm{const}
# \;\approx\; -\tfrac12 \log\tfrac{\nu + n}{\nu}$$
#
# below that of the Gaussian process. It does not depend on the data at all, and it rises for ever.


# %%
def profile(df, n):
    """Log evidence at the best scale, less that of the Gaussian process at its best."""
    rising = gammaln((df + n) / 2) - gammaln(df / 2) - n / 2 * np.log(df / 2)
    return rising - (df + n) / 2 * np.log1p(n / df) + n / 2


def best_evidence(process, x, y):
    """The same from probmix: log evidence with y in the units that suit the process best."""
    law = process.joint(x)
    units = torch.logspace(-2, 2, 4001)[:, None]
    return (law.log_prob(law.loc + (y - law.loc) * units) + len(y) * units[:, 0].log()).max()


df = np.geomspace(0.5, 1e4, 200)
gaussian = best_evidence(models["Gaussian"].process(x_line, clean, {}), x_line, clean)
for one in (1.0, 4.0, 50.0):
    student = StudentTProcess(kernel=kernel, df=one, noise_var=0.01).process(x_line, clean, {})
    assert abs(best_evidence(student, x_line, clean) - gaussian - profile(one, 25)) < 1e-3
for n in (5, 25, 200):
    assert (np.diff(profile(df, n)) > 0).all()

# %% [markdown]
# So ν must be fixed, or have a prior, and then the prior is what one gets: one data set has one s, and one draw says
# nothing about the tail of a distribution whose scale is free. (With a flat prior of the log scale the posterior of ν
# *is* its prior, exactly.) Here ν has a Gamma(2, 0.1), a common choice, and the sizes of function and noise have
# log-normal priors, four e-folds wide.

# %%
df_prior = dist.Gamma(2.0, 0.1)
scaled = ScaleKernel(kernel, outputscale_prior=LogNormalPrior(0.0, 4.0))
any_size = StudentTProcess(kernel=scaled, df=df_prior, noise_var=dist.LogNormal(np.log(0.01), 4.0))
learnt = infer(any_size, (x_line, clean), many_chains, seed=0)
draws = learnt.draws["df"].flatten()

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for n, shade in zip((5, 25, 200), (0.4, 0.7, 1.0), strict=True):
    left.plot(df, profile(df, n), color=colours["Student-t"], alpha=shade, label=f"n = {n}")
    left.plot(df, -0.5 * np.log1p(n / df), ":", color="black", linewidth=1)
left.plot([], [], ":", color="black", label="−½ log((ν + n) / ν)")
left.set(xscale="log", xlabel="degrees of freedom ν", ylabel="nats below the Gaussian process")
left.set_title("evidence at the best scale")
left.legend(fontsize="small", loc="lower right")
right.hist(draws, np.linspace(0, 80, 41), density=True, color=colours["Student-t"], alpha=0.4, label="posterior")
right.plot(df[df < 80], df_prior.log_prob(torch.as_tensor(df[df < 80])).exp(), color="0.3", label="prior")
right.set(xlabel="degrees of freedom ν", yticks=[], title="ν with a prior, n = 25")
right.legend(fontsize="small")

levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
from_prior = stats.gamma.ppf(levels, 2, scale=10)
quantiles = pd.DataFrame({"prior": from_prior, "posterior": draws.quantile(levels)}, index=levels.tolist()).T
if full:
    assert (quantiles.loc["posterior"] / quantiles.loc["prior"] - 1).abs().max() < 0.1
quantiles.round(1)

# %% [markdown]
# The quantiles differ by less than a tenth. What does the choice cost? Four degrees of freedom lie two nats below the
# Gaussian process at n = 200, and less than one at n = 5; no data will contradict them, and none will confirm them.

# %%
assert -2.1 < profile(4.0, 200) < -1.9
assert profile(4.0, 5) > -1

# %% [markdown]
# ## Where it pays: few data
#
# Now for the good news. We draw many data sets of five observations, each with an s of its own, and predict a sixth
# observation. There are three candidates: the Gaussian process with s = 1, the Gaussian process with the s that
# maximises its likelihood, q / n, as one would fit it, and the Student-t process.
#
# The last of six whitened observations *is* the error of the prediction in units of its standard deviation, so all data
# sets take one line.

# %%
x_six = torch.tensor([-2.0, -1.2, -0.3, 0.5, 1.1, 3.5])[:, None]
scale_prior = dist.InverseGamma(2.0, 2.0)


def whitened(x, law_of_s, num):
    """Data sets (num, n) of the process with variances from a law, whitened: N(0, s) each, s common."""
    with torch.no_grad():
        tril = torch.linalg.cholesky(kernel(x).to_dense() + 0.01 * torch.eye(len(x)))
        y = ScaleMixtureNormal(torch.zeros(len(x)), tril, law_of_s).sample((num,))
        return torch.linalg.solve_triangular(tril, y.mT, upper=False).mT


def missed(white, levels):
    """Share of the last observations beyond the interval that should miss them with these probabilities."""
    q, error, n = white[:, :-1].square().sum(1).numpy(), white[:, -1].abs().numpy(), white.shape[1] - 1
    tails = {
        "Gaussian, s = 1": 2 * stats.norm.sf(error),
        "Gaussian, s fitted": 2 * stats.norm.sf(error / np.sqrt(q / n)),
        "Student-t": 2 * stats.t.sf(error / np.sqrt((4 + q) / (4 + n)), 4 + n),
    }
    return {name: np.array([(tail < level).mean() for level in levels]) for name, tail in tails.items()}


torch.manual_seed(0)
misses = np.geomspace(0.002, 0.9, 60)
styles = dict(zip(["Gaussian, s = 1", "Gaussian, s fitted", "Student-t"], ["C0:", "C0-", "C1-"], strict=True))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
settings = {
    "n = 5, s as the prior says": (x_six, scale_prior),
    "n = 5, s log-normal, around 3": (x_six, dist.LogNormal(np.log(3.0), 1.0)),
    "n = 50, s as the prior says": (torch.linspace(-2, 2, 51)[:, None], scale_prior),
}
coverage = {}
for ax, (title, (rows, law)) in zip(axes, settings.items(), strict=True):
    white = whitened(rows, law, data_sets)
    for name, share in missed(white, misses).items():
        ax.plot(misses, np.where(share > 0, share, np.nan), styles[name], label=name)
    ax.plot(misses, misses, color="0.6", linewidth=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="promised share of misses", title=title)
    coverage[title] = {k: 1 - v for k, v in missed(white, [0.5, 0.1, 0.01]).items()}
axes[0].set_ylabel("share of misses")
axes[0].legend(fontsize="small")
table = pd.concat({title: pd.DataFrame(rows, index=["50 %", "90 %", "99 %"]).T for title, rows in coverage.items()})
(100 * table).round(1)

# %% [markdown]
# The table says how many of 100 new observations the intervals contain. Where s has the law that the prior says, the
# Student-t process keeps its promises. The fitted Gaussian process has about the right size, but takes it for certain:
# its 99 % are 95 %, five times the misses. With 50 observations the difference has nearly gone.
#
# In the middle the variances are larger than the prior expects. With five data the prior matters: now the Student-t
# process misses too often as well, though less often than the others where it hurts, in the tail. The remedy is not a
# cleverer tail but a better prior, which [tutorial 9](09_many_series.ipynb) learns.

# %%
first, second, third = (table.loc[title] for title in settings)
promised = np.array([0.5, 0.9, 0.99])
error_std = np.sqrt(promised * (1 - promised) / data_sets)
if full:
    assert (np.abs(first.loc["Student-t"] - promised) < 4 * error_std).all()
    assert 0.94 < first.loc["Gaussian, s fitted", "99 %"] < 0.955
    assert third.loc["Gaussian, s fitted", "99 %"] > 0.98
    assert second.loc["Student-t", "90 %"] < 0.87
    assert second["99 %"].idxmax() == "Student-t"

# %% [markdown]
# ### Near and far
#
# One hears that heavy tails help *far from the data*. Of this model that is not true in the way one thinks. As z has
# the same law everywhere, the gain of a prediction, in nats, is the same near and far. What counts is how few data
# there are, and how many points one predicts *together*: they share the error of s. Far away one merely notices more,
# because there is nothing but the band.


# %%
def gain(white, n):
    """Mean log score of the Student-t process less that of the fitted Gaussian process, all points together."""
    q, m = white[:, :n].square().sum(1), white.shape[1] - n
    new = white[:, n:]
    posterior = dist.InverseGamma(2 + n / 2, 2 + q / 2)
    student = ScaleMixtureNormal(torch.zeros(m), torch.eye(m), posterior).log_prob(new)
    difference = student - dist.Normal(0.0, (q / n).sqrt()[:, None]).log_prob(new).sum(1)
    return float(difference.mean()), float(difference.std() / len(white) ** 0.5)


torch.manual_seed(1)
x_five, rows = x_six[:5], {}
places = {
    "1 near (0.1)": [0.1],
    "1 far (8)": [8.0],
    "10 near": np.linspace(-1.9, 1, 10),
    "10 far": np.linspace(6, 9, 10),
}
for name, place in places.items():
    white = whitened(torch.cat([x_five, torch.as_tensor(place)[:, None]]), scale_prior, data_sets)
    rows[name] = gain(white, 5)
gains = pd.DataFrame(rows, index=["gain, nats", "standard error"])
gains.round(3)

# %% [markdown]
# The gain near and far is the same up to its error; for ten points together it is ten times that of one.

# %%
if full:
    near_and_far = gains.loc["gain, nats", ["1 near (0.1)", "1 far (8)"]]
    assert (
        abs(near_and_far.iloc[0] - near_and_far.iloc[1]) < 4 * gains.loc["standard error"].iloc[:2].pow(2).sum() ** 0.5
    )
    assert (near_and_far > 0.1).all()
    assert gains.loc["gain, nats", "10 far"] > 7 * near_and_far["1 far (8)"]

# %% [markdown]
# ## What to take home
#
# 1. At the same hyperparameters the mean is that of the Gaussian process, and all bands change by one factor.
# 2. It is not robust to outliers. Heavy-tailed noise is, which is another model.
# 3. Fix the degrees of freedom, or give them a prior; one data set says nothing about them.
# 4. With hundreds of observations, do not bother. With five, the bands are right where fitted ones are too narrow.
#
# Where it pays most is many small data sets, whose sizes have a law that can be learnt: see [the next tutorial on scale
# mixtures](09_many_series.ipynb), which also has other priors and every method of `infer`.
