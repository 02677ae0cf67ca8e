# %% [markdown]
# # From wide networks to the process
#
# Take a neural network, draw all of its weights at random, and let its layers grow. In the limit it is a Gaussian
# process, whose kernel is a closed form of depth, activation and the variances of weights and biases. We watch it
# happen, see what each of these settings does, make the last layer's variance random, and then do regression with
# networks that never existed.
#
# Every number in the text is checked by an `assert` in the cell next to it. If one stops being true, this page fails.

# %%
import os

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from gpytorch.kernels import LinearKernel, RBFKernel, ScaleKernel
from gpytorch.priors import LogNormalPrior
from scipy import stats
from sklearn.datasets import load_digits

from probmix.datasets import load_diabetes_145
from probmix.inference import MAP, ChEES, infer
from probmix.models import ScaleMixtureNNGP, ScaleMixtureProcess
from probmix.network_comparison import compare_with_limit
from probmix.nngp import NNGPKernel, NTKKernel
from probmix.nngp_convolutional import ConvNNGPKernel
from probmix.process import Process
from probmix.wide_networks import LimitLaw, WideNetwork

full = not os.environ.get("PROBMIX_SMOKE")  # the tests set it: few draws and networks, no assert that needs many
num_networks = 20_000 if full else 500
few_chains = ChEES(chains=16, superchains=4, draws=100, compile=False)
few_chains = few_chains if full else ChEES(chains=8, superchains=4, warmup=12, draws=8, compile=False)

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Functions drawn from networks
#
# `WideNetwork` is the prior of a fully connected network; `sample` draws networks and evaluates them at the rows of x.
# Here are networks with three hidden layers of 2, 16 and 256 units, and draws of the limit: `NNGPKernel` with the same
# settings is its covariance. In the lower row the variance of the last layer's weights, the same for all weights of one
# network, is itself drawn from an inverse gamma.

# %%
x_line = torch.linspace(-3, 3, 241)[:, None]
settings = {"depth": 3, "activation": "erf", "weight_var": 8.0, "bias_var": 1.0, "readout": False}
with torch.no_grad():
    limit_cov = NNGPKernel(**settings)(x_line).to_dense()
scale_prior = dist.InverseGamma(2.0, 2.0)

fig, axes = plt.subplots(2, 4, figsize=(11, 5), layout="constrained", sharex=True, sharey="row")
for row, prior, label in zip(axes, (None, scale_prior), ("f(x), s = 1", "f(x), s random"), strict=True):
    for ax, width in zip(row, (2, 16, 256, None), strict=True):
        if width is None:
            functions = LimitLaw(limit_cov, prior).sample(8, seed=3)
        else:
            functions = WideNetwork(width, **settings).sample(x_line, 8, seed=3, scale_prior=prior)
        ax.plot(x_line, functions.T, linewidth=1)
        if prior is None:
            ax.set_title(f"width {width}" if width else "limit", fontsize="medium")
    row[0].set_ylabel(label)
_ = fig.supxlabel("x", fontsize="medium")

# %% [markdown]
# Two units can do little but step, sixteen are on their way, and 256 look like the limit. The lower row has something
# that no width will take away: some networks are large *throughout*, and others small. That is a scale mixture, and
# [tutorial 6](06_scale_mixtures.ipynb) is about what it is good for.
#
# ## What depth and activation do
#
# A kernel of a fully connected network looks at the lengths of two inputs and at the angle between them. So we put
# inputs on a circle and draw the correlation of the outputs against the angle. The dots are 20,000 networks of width
# 128.

# %%
angles = torch.linspace(0, torch.pi, 181)


def circle(angle):
    """Inputs at some angles; of two columns, and as long as a standardised input is on average."""
    return 2**0.5 * torch.stack([angle.cos(), angle.sin()], -1)


def correlation(**settings):
    """Correlation of the outputs at angle 0 and at all angles."""
    with torch.no_grad():
        cov = NNGPKernel(**settings)(circle(angles[:1]), circle(angles)).to_dense()[0]
    return cov / cov[0]


few = torch.arange(0, 181, 30)
fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
off = []
for colour, activation in enumerate(("relu", "erf", "gelu", "sign", "cos")):
    one = {"depth": 2, "activation": activation, "weight_var": 2.0, "bias_var": 0.0}
    axes[0].plot(angles.rad2deg(), correlation(**one), color=f"C{colour}", label=activation)
    outputs = WideNetwork(128, **one).sample(circle(angles[few]), num_networks, seed=0)
    drawn = (outputs[:, :1] * outputs).mean(0) / outputs.square().mean(0).mean()
    axes[0].plot(angles[few].rad2deg(), drawn, "o", color=f"C{colour}", markersize=3)
    off.append(float((drawn - correlation(**one)[few]).abs().max()))
for shade, depth in zip((0.25, 0.5, 0.75, 1.0), (1, 3, 10, 30), strict=True):
    line = correlation(depth=depth, activation="relu", weight_var=2.0, bias_var=0.0)
    axes[1].plot(angles.rad2deg(), line, color="C0", alpha=shade, label=f"depth {depth}")
for colour, weight_var in zip(("C9", "C1", "C3"), (0.5, 1.5, 8.0), strict=True):
    line = correlation(depth=10, activation="erf", weight_var=weight_var, bias_var=0.05)
    axes[2].plot(angles.rad2deg(), line, color=colour, label=f"weight_var = {weight_var:g}")
for ax, title in zip(axes, ("two hidden layers", "ReLU, deeper", "erf, ten layers"), strict=True):
    ax.set(xlabel="angle between inputs", xticks=[0, 45, 90, 135, 180], title=title)
    ax.legend(fontsize="small", loc="lower left")
_ = axes[0].set_ylabel("correlation of outputs")

# %% [markdown]
# Left: odd activations (erf, sign) make opposite inputs opposite, even ones (cosine) make them equal. The sign's kernel
# has a cusp at 0: its functions are rough. Middle: with depth a ReLU network forgets the angle; after 30 layers even
# opposite inputs correlate by more than 0.9. Right: an erf network with small weights does the same, and one with large
# weights the contrary: inputs 10 degrees apart have little in common. Where it is between, one can go deep.

# %%
deep = correlation(depth=30, activation="relu", weight_var=2.0, bias_var=0.0)
assert deep.min() > 0.9
assert correlation(depth=10, activation="erf", weight_var=0.5, bias_var=0.05).min() > 0.9
assert abs(correlation(depth=10, activation="erf", weight_var=8.0, bias_var=0.05)[10]) < 0.3
assert correlation(depth=2, activation="erf", weight_var=2.0, bias_var=0.0)[-1] < -0.999
assert correlation(depth=2, activation="cos", weight_var=2.0, bias_var=0.0)[-1] > 0.999
print(f"largest difference of networks and closed form: {max(off):.3f}")
assert not full or max(off) < 0.05

# %% [markdown]
# ## How wide is wide?
#
# The eye is no test. `compare_with_limit` compares a sample of networks with the law that they should tend to, at some
# inputs: moments, marginal distributions, the length of the whole vector of outputs, tails, and a kernel two-sample
# test (MMD). Its p-values allow for the number of lines. Here is a ReLU network of three layers, 16 and 256 wide.

# %%
x = torch.tensor([[1.0, 0.5, -1.0], [-0.3, 1.2, 0.4], [0.2, -0.8, 1.0], [1.1, 1.0, 1.0]])
with torch.no_grad():
    limit = LimitLaw(NNGPKernel(depth=3, activation="relu")(x).to_dense())
comparisons = {}
for width in (16, 256):
    outputs = WideNetwork(width, depth=3, activation="relu").sample(x, 2000 if full else 300, seed=0)
    comparisons[width] = compare_with_limit(outputs, limit, seed=0)
    print(f"width {width}\n{comparisons[width]}\n")
if full:
    assert {"kurtosis", "norm"} <= set(comparisons[16].differing)
    assert comparisons[256].ok

# %% [markdown]
# At width 16 the variances are right, as they are at *every* width up to the error of sampling, but tails are heavy: a
# finite network of several layers has a random kernel, and is itself a mixture of Gaussian processes. The kurtosis and
# the norm see that first. At width 256 nothing is visible in 2,000 networks. That is not to say that there is nothing:
# the excess of the kurtosis falls like 1 / width, so a larger sample sees it at any width.

# %%
widths = [4, 8, 16, 32, 64, 128]
lines = {("relu", 1): "C0:", ("relu", 3): "C0-", ("erf", 1): "C1:", ("erf", 3): "C1-"}
points = torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
excess = {}
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for (activation, depth), style in lines.items():
    values, errors = [], []
    for width in widths:
        num = num_networks * max(1, 64 // width)
        network = WideNetwork(width, depth, activation, readout=False)
        u = network.sample(points, num, seed=1)[:, 0]
        u = u / u.square().mean().sqrt()
        values.append(float(u.pow(4).mean() - 3))
        errors.append((24 / num) ** 0.5)  # of normal outputs
        if (activation, depth) == ("relu", 3) and width in (4, 16, 128):
            theory = stats.norm.ppf((np.arange(len(u)) + 0.5) / len(u))
            thin = slice(None, None, max(1, 64 // width))
            right.plot(theory[thin], u.sort().values[thin], ".", markersize=2, label=f"width {width}")
    excess[activation, depth] = np.array(values)
    visible = np.where(excess[activation, depth] > 4 * np.array(errors), excess[activation, depth], np.nan)
    left.plot(widths, visible, style, marker="o", markersize=3, label=f"{activation}, depth {depth}")
left.plot(widths, 60 / np.array(widths), color="0.6", linewidth=1, label="∝ 1 / width")
left.set(xscale="log", yscale="log", xticks=widths, xticklabels=widths, xlabel="width", ylabel="excess kurtosis")
left.minorticks_off()
left.set_title("as far as some 100,000 networks show it", fontsize="medium")
left.legend(fontsize="small")
right.plot([-4, 4], [-4, 4], color="0.6", linewidth=1)
right.set(xlim=(-4, 4), ylim=(-12, 12), xlabel="normal quantile", ylabel="output / its standard deviation")
right.set_title("ReLU, depth 3", fontsize="medium")
_ = right.legend(fontsize="small", markerscale=4)

# %% [markdown]
# Deeper networks need more width, and ReLU needs much more than erf, whose activations are bounded: at depth 3 more
# than ten times the width for the same excess.

# %%
if full:
    product = excess["relu", 3] * np.array(widths)
    assert product[1:5].max() / product[1:5].min() < 2
    assert (excess["relu", 3] > 2 * excess["relu", 1])[:4].all()
    assert (excess["relu", 3] > 10 * excess["erf", 3])[:3].all()

# %% [markdown]
# ## A random variance of the last layer
#
# Give the variance of the last weights an inverse gamma prior, and the outputs are Student-t in the limit, with 2a
# degrees of freedom. `readout=False` says that this variance is the whole of the last layer's. One variance for the
# whole network: so the outputs at all inputs are large together, or small together. We look at two inputs at a right
# angle, whose outputs have no correlation at all.

# %%
pair = circle(torch.tensor([0.0, torch.pi / 2]))
odd = {"depth": 2, "activation": "erf", "weight_var": 2.0, "bias_var": 0.0, "readout": False}
with torch.no_grad():
    pair_cov = NNGPKernel(**odd)(pair).to_dense()
outputs = WideNetwork(512, **odd).sample(pair, 10_000 if full else 300, seed=0, scale_prior=scale_prior)
u = outputs / pair_cov.diagonal().sqrt()

fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
levels = (np.arange(len(u)) + 0.5) / len(u)
laws = {"normal of the same variance": stats.norm(scale=2**0.5), "Student-t, 4 degrees of freedom": stats.t(4)}
for ax, (name, law) in zip(axes, laws.items(), strict=False):
    edge = float(law.ppf(levels[-1]))
    ax.plot([-edge, edge], [-edge, edge], color="0.6", linewidth=1)
    ax.plot(law.ppf(levels), u[:, 0].sort().values, ".", color="C1", markersize=3)
    ax.set(xlabel="quantile of the law", title=name, ylim=(-16, 16))
axes[0].set_ylabel("output / its standard deviation at s = 1")
axes[2].plot(*u.T, ".", color="C1", markersize=2)
axes[2].set(xlim=(-9, 9), ylim=(-9, 9), aspect="equal", xlabel="output at one input", ylabel="at the other")
axes[2].set_title("large together, without correlation")

far = u.abs() > 4
one, both = float(far.double().mean()), float(far.all(1).double().mean())
print(f"beyond 4: {one:.2%} at one input; {both:.2%} at both, where independent ones would be {one**2:.3%}")
if full:
    assert abs(pair_cov[0, 1]) < 1e-12
    assert both > 10 * one**2

# %% [markdown]
# The comparison knows both laws, and a third that is sometimes taken for the second: Student-t at each input, with a
# scale *of its own* for each. Its marginals are right, and only the length of the whole vector gives it away.

# %%
own_scales = WideNetwork(512, **odd).sample(pair, len(u), seed=5) * scale_prior.sample(u.shape).sqrt()
verdicts = {
    "networks, Student-t limit": compare_with_limit(outputs, LimitLaw(pair_cov, scale_prior), seed=0),
    "networks, normal limit": compare_with_limit(outputs, LimitLaw(2 * pair_cov), seed=0),
    "own scales, Student-t limit": compare_with_limit(own_scales, LimitLaw(pair_cov, scale_prior), seed=0),
}
for name, verdict in verdicts.items():
    print(f"{name}: {verdict.verdict}")
if full:
    right_law, normal_law, wrong_joint = verdicts.values()
    assert right_law.ok
    assert {"marginals", "norm"} <= set(normal_law.differing)
    assert "norm" in wrong_joint.differing
    assert "marginals" not in wrong_joint.differing

# %% [markdown]
# ## Regression with networks that never existed
#
# 145 adults drank glucose. We predict their insulin from their glucose before and after (all in logarithms,
# standardised). It is no straight line: with overt diabetes glucose is high and insulin low. The rivals share
# everything but the kernel: linear, Gaussian (RBF), networks of one and of three ReLU layers, and the neural tangent
# kernel (NTK) of the latter. The NTK is what gradient descent on *all* layers of a wide network follows; the NNGP is
# what a Bayesian would make of the same network. Sizes, noise and the variances of weights and biases are found by
# `MAP()`; then every adult is predicted from the 144 others, in closed form.

# %%
logs = load_diabetes_145().x.log()
logs = (logs - logs.mean(0)) / logs.std(0)
rows_used = slice(None) if full else slice(None, None, 5)
glucose, insulin = logs[rows_used, :2], logs[rows_used, 2]

size = {"outputscale_prior": LogNormalPrior(0.0, 1.5)}
variances = {"weight_var_prior": LogNormalPrior(np.log(2.0), 0.5), "bias_var_prior": LogNormalPrior(np.log(0.1), 1.5)}
kernels = {
    "linear": LinearKernel(variance_prior=LogNormalPrior(-2.0, 1.5)),
    "RBF": ScaleKernel(RBFKernel(lengthscale_prior=LogNormalPrior(0.0, 1.0)), **size),
    "NNGP, depth 1": ScaleKernel(NNGPKernel(depth=1, readout=False, **variances), **size),
    "NNGP, depth 3": ScaleKernel(NNGPKernel(depth=3, readout=False, **variances), **size),
    "NTK, depth 3": ScaleKernel(NTKKernel(depth=3, readout=False, **variances), **size),
}
processes, rows = {}, {}
for name, kernel in kernels.items():
    model = ScaleMixtureProcess(kernel=kernel, scale_prior=None)
    fit = infer(model, (glucose, insulin), MAP(restarts=4 if full else 1), seed=0)
    processes[name] = model.condition(glucose, insulin, fit.sites())
    others = processes[name].leave_one_out(insulin)
    rows[name] = others.log_prob.numpy(), float((others.predictive.mean - insulin).square().mean().sqrt())
table = pd.DataFrame(
    {
        name: {
            "root mean squared error": squared,
            "log density": density.mean(),
            "gain over linear": (density - rows["linear"][0]).mean(),
            "± standard error": (density - rows["linear"][0]).std() / len(density) ** 0.5,
        }
        for name, (density, squared) in rows.items()
    }
).T
table.round(3)

# %%
across, up = torch.meshgrid(torch.linspace(-2.2, 3.6, 80), torch.linspace(-1.9, 3.0, 80), indexing="xy")
grid = torch.stack([across, up], -1).reshape(-1, 2)
shown = ["linear", "RBF", "NNGP, depth 3", "NTK, depth 3"]
fig, axes = plt.subplots(1, 4, figsize=(11.5, 3.4), layout="constrained", sharex=True, sharey=True)
for ax, name in zip(axes, shown, strict=True):
    mean = processes[name].predictive(grid, noise=False).mean.reshape(80, 80)
    colours = ax.contourf(across, up, mean, np.linspace(-2.8, 2.8, 15), cmap="RdBu_r", extend="both")
    ax.scatter(*glucose.T, c=insulin, cmap="RdBu_r", vmin=-2.8, vmax=2.8, s=14, edgecolors="black", linewidths=0.4)
    ax.set(title=name, xlabel="glucose, fasting")
axes[0].set_ylabel("glucose, test")
_ = fig.colorbar(colours, ax=axes, label="insulin, log, standardised", ticks=[-2, 0, 2])

# %% [markdown]
# All curved kernels beat the straight line, by about a tenth of a nat per adult, more than two standard errors. Among
# each other they are equal, within the errors: depth, or which kernel of the same network, is nothing that 145 rows
# could decide. They do differ where there are no data: an RBF returns to the mean, a ReLU network goes on as it was
# going.

# %%
overt = load_diabetes_145().target == 2
assert logs[overt, 2].mean() < logs[~overt, 2].mean() - 1
assert (logs[overt, :2].min(0).values > logs[~overt, :2].mean(0)).all()
far = {name: float(process.predictive(torch.tensor([[30.0, 30.0]])).mean) for name, process in processes.items()}
if full:
    assert abs(far["RBF"]) < 0.01
    assert far["NNGP, depth 3"] < 5 * float(insulin.min())
    assert (table["gain over linear"].iloc[1:] > 2 * table["± standard error"].iloc[1:]).all()
    assert table["gain over linear"].iloc[1:].max() - table["gain over linear"].iloc[1:].min() < 0.03

# %% [markdown]
# ## What data say about weights and biases
#
# The variances of weights and biases have priors, so they have a posterior. `ScaleMixtureNNGP` is the kernel above with
# such priors in it (and with `scale_prior=None` plainly Gaussian). We give it every second adult, so that it runs in
# seconds.

# %%
model = ScaleMixtureNNGP(depth=3, activation="relu", scale_prior=None)
posterior = infer(model, (glucose[::2], insulin[::2]), few_chains, seed=0)
print(posterior.status)
az.summary(posterior.to_arviz(log_likelihood=False)).round(3)

# %%
draws = {name.split(".")[-1]: value.flatten().log() for name, value in posterior.draws.items()}
weight, bias, outputscale = (draws[name] for name in ("weight_var", "bias_var", "outputscale"))
prior_std = {"weight_var": 0.5, "bias_var": 1.5, "outputscale": 1.5}

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for ax, (name, loc) in zip(axes, (("weight_var", np.log(2.0)), ("bias_var", np.log(0.1))), strict=False):
    at = np.linspace(loc - 3.5 * prior_std[name], loc + 3.5 * prior_std[name], 200)
    ax.hist(draws[name], 30, density=True, color="C1", alpha=0.4, label="posterior")
    ax.plot(at, stats.norm.pdf(at, loc, prior_std[name]), color="0.3", label="prior")
    ax.set(xlabel=f"log {name}", yticks=[])
axes[0].legend(fontsize="small")
axes[2].plot(weight, outputscale, ".", color="C1", markersize=2.5)
line = np.array([float(weight.min()), float(weight.max())])
axes[2].plot(line, outputscale.mean().item() - 3 * (line - weight.mean().item()), color="0.3", label="slope −3")
axes[2].set(xlabel="log weight_var", ylabel="log outputscale")
_ = axes[2].legend(fontsize="small")

# %% [markdown]
# About the variance of the weights the posterior says little more than the prior did. The reason is in the third
# picture: a ReLU lets factors through, so three layers of weights multiply the outputs, as far as biases are small, by
# `weight_var³`, and only the product with the overall size can be seen. Of that the standard deviation falls to less
# than half of what it was. Such a ridge is harmless if one averages over it, and a nuisance to whoever wants to
# *interpret* a weight variance.

# %%
together = outputscale + 3 * weight
before = (prior_std["outputscale"] ** 2 + 9 * prior_std["weight_var"] ** 2) ** 0.5
print(f"std of log(outputscale · weight_var³): {before:.2f} in the prior, {together.std():.2f} in the posterior")
if full:
    assert 0.6 < weight.std() / prior_std["weight_var"] < 1.1
    assert np.corrcoef(weight, outputscale)[0, 1] < -0.6
    assert together.std() < before / 2

# %% [markdown]
# ## Convolutions
#
# `ConvNNGPKernel` is the limit of a convolutional network with many channels. Its last step decides what it is. If the
# image is flattened, every position has weights of its own, and in the limit the network cannot tell that neighbouring
# positions are related. With global average pooling it can, and costs the square of the number of pixels. We learn
# digits from 50 images of 8 x 8 pixels, by regression on ten columns of zeros and ones, and test on 200 others; then on
# the same 200, moved to the right by one pixel.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
num_train, num_test = (50, 200) if full else (20, 20)
learnt, tested = order[:num_train], order[-num_test:]
images, labels = torch.as_tensor(digits.images) / 16, torch.as_tensor(digits.target)
one_hot = torch.nn.functional.one_hot(labels[learnt], 10) - 0.1
moved = torch.roll(images[tested], 1, dims=2)

kernels = {
    "dense": NNGPKernel(depth=2),
    "convolutional, flattened": ConvNNGPKernel((8, 8, 1), depth=2),
    "convolutional, pooled": ConvNNGPKernel((8, 8, 1), depth=2, pooling="average"),
}
right = {}
for name, kernel in kernels.items():
    with torch.no_grad():
        process = Process(kernel, torch.tensor(1e-4), None, torch.zeros(10)).condition(
            images[learnt].flatten(1), one_hot
        )
        guesses = [process.predictive(x.flatten(1)).mean.argmax(-1) for x in (images[tested], moved)]
    right[name] = [float((guess == labels[tested]).double().mean()) for guess in guesses]
accuracy = pd.DataFrame(right, index=["as they are", "moved by a pixel"]).T

fig, axes = plt.subplots(1, 3, figsize=(11, 2.6), layout="constrained", width_ratios=(2, 2, 3))
for ax, some, title in zip(axes, (images[tested], moved), accuracy, strict=False):
    framed = np.pad(some[:10], ((0, 0), (1, 1), (1, 1)))
    ax.imshow(np.vstack([np.hstack(framed[:5]), np.hstack(framed[5:])]), cmap="Greys")
    ax.set(xticks=[], yticks=[], title=title)
accuracy.plot.barh(ax=axes[2], color=["C0", "C1"], width=0.7)
axes[2].invert_yaxis()
axes[2].set(xlabel="share of digits that are right", xlim=(0, 1.5), xticks=[0, 0.25, 0.5, 0.75, 1])
axes[2].legend(fontsize="small", loc="center right")
accuracy.round(3)

# %% [markdown]
# In place, the three are less than ten per cent apart, and 200 images cannot tell them from each other (a standard
# error is two and a half). Moved by a pixel, the dense and the flattened network are right less than half of the time;
# the pooled one, for which a digit is a digit wherever it is, more than two thirds of the time. A kernel is an
# assumption, and this one shows.

# %%
error_of_share = (0.85 * 0.15 / num_test) ** 0.5
if full:
    assert accuracy["as they are"].max() - accuracy["as they are"].min() < 3 * error_of_share
    assert accuracy.loc[["dense", "convolutional, flattened"], "moved by a pixel"].max() < 0.5
    assert accuracy.loc["convolutional, pooled", "moved by a pixel"] > 0.66

# %% [markdown]
# ## What to take home
#
# 1. The kernel of a wide network is a closed form of depth, activation and two variances. Look at it against the angle.
# 2. `compare_with_limit` says whether a width is wide enough for the inputs and the sample at hand, and in what not.
# 3. A random variance of the last layer makes outputs Student-t, and large or small together.
# 4. For small tables these kernels are good, and so are others. They differ away from the data.
# 5. Weight variances are hardly identified for ReLU. Average over them.
