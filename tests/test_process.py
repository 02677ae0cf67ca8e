"""A process before and after data: textbook formulas by NumPy, GPyTorch's exact GP, the chain rule, refits."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from process_cases import LOC, NEW, PRIORS, N, X, Y, alike, every_prior, normal, outputs_too, prior_process, rbf, t
from scipy import stats

from probmix.errors import DataError, ProgramError
from probmix.process import Process
from probmix.process_solvers import DenseSolver

# --- the textbook -----------------------------------------------------------------------------------------------------


def by_numpy(noise_in_new: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Location, variance at s = 1 and squared length of the data under an RBF kernel of length 1.3 and noise 0.2."""

    def k(x, y):
        return np.exp(-0.5 * ((x[:, None] - y[None]) ** 2).sum(-1) / 1.3**2)

    x, new, residuals = X.numpy(), NEW.numpy(), Y[None].numpy() - 0.3
    inverse = np.linalg.inv(k(x, x) + 0.2 * np.eye(N))
    loc = 0.3 + k(new, x) @ inverse @ residuals
    var = np.diag(k(new, new) - k(new, x) @ inverse @ k(x, new)) + 0.2 * noise_in_new
    return loc, var, residuals @ inverse @ residuals


@pytest.mark.parametrize("noise", [True, False])
def test_predictive_is_the_textbooks_t(noise):
    """df = 2a + n; loc is the GP's; squared scale (2a + q a / b) / (2a + n) times b / a times the GP's variance."""
    found = prior_process().condition(X, Y[None]).predictive(NEW, noise=noise)
    loc, var, quadratic = by_numpy(noise)
    scale_var = (2 * 1.5 + quadratic / (2.5 / 1.5)) / (2 * 1.5 + N) * (2.5 / 1.5) * var
    assert torch.equal(found.df, torch.full((4,), 2 * 1.5 + N).double())
    np.testing.assert_allclose(found.loc.numpy(), loc, rtol=1e-10)
    np.testing.assert_allclose(found.scale.square().numpy(), scale_var, rtol=1e-10)


def test_before_data_it_is_the_prior():
    joint = prior_process().joint(NEW)
    cov = (-0.5 * torch.cdist(NEW, NEW).square() / 1.3**2).exp() + t(0.2) * torch.eye(4).double()
    theirs = stats.multivariate_t(np.full(4, 0.3), 2.5 / 1.5 * cov.numpy(), df=3.0)
    assert float(joint.log_prob(NEW[:, 0])) == pytest.approx(theirs.logpdf(NEW[:, 0].numpy()), rel=1e-12)
    alike(prior_process().predictive(NEW), dist.StudentT(t(3.0), t(0.3), (2.5 / 1.5 * t(1.2)).sqrt()).expand((4,)))


class ExactGP(gpytorch.models.ExactGP):
    """GPyTorch's own, with the same kernel, noise and constant mean."""

    def __init__(self) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        likelihood.noise = t(0.2)
        super().__init__(X, Y[None], likelihood)
        self.covar_module, self.mean_module = rbf(), gpytorch.means.ConstantMean().double()
        self.mean_module.constant.data = t(0.3)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.fixture(scope="module")
def exact_gp() -> tuple[float, dist.Normal]:
    """Evidence and predictive distribution."""
    model = ExactGP()
    with torch.no_grad():
        evidence = model.likelihood(model.train()(X)).log_prob(Y[None])
        new = model.likelihood(model.eval()(NEW))
    return float(evidence), dist.Normal(new.mean, new.variance.sqrt())


def test_without_a_prior_it_is_gpytorchs(exact_gp):
    evidence, predictive = exact_gp
    process = prior_process("none")
    assert float(process.joint(X).log_prob(Y[None])) == pytest.approx(evidence, abs=1e-9)
    alike(process.condition(X, Y[None]).predictive(NEW), predictive)


def test_a_certain_scale_is_gpytorchs(exact_gp):
    """a = b: the distance to the Gaussian process falls like 1 / a, to less than 1e-6 of both densities."""
    evidence, predictive = exact_gp
    errors = []
    for shape in (1e4, 1e6, 1e8):
        process = Process(rbf(), t(0.2), dist.InverseGamma(t(shape), t(shape)), t(0.3))
        errors.append(abs(float(process.joint(X).log_prob(Y[None])) - evidence))
    assert errors[2] < 1e-6
    assert 50 < errors[0] / errors[1] < 200
    alike(process.condition(X, Y[None]).predictive(NEW), predictive, 1e-6)


# --- data in steps ----------------------------------------------------------------------------------------------------


@every_prior
@outputs_too
def test_chain_rule(name, outputs):
    """p(y1, y2) = p(y1) p(y2 | y1), to 1e-9."""
    process, y = prior_process(name, outputs), Y[outputs]
    whole = process.joint(X).log_prob(y)
    first = process.joint(X[:9]).log_prob(y[:9])
    second = process.condition(X[:9], y[:9]).joint(X[9:]).log_prob(y[9:])
    torch.testing.assert_close(first + second, whole, rtol=1e-9, atol=1e-9)


@every_prior
@outputs_too
def test_marginals_are_those_of_the_joint(name, outputs):
    """The joint of one row is its marginal, outputs apart."""
    process = prior_process(name, outputs).condition(X, Y[outputs])
    for noise in (True, False):
        marginals = process.predictive(NEW, noise=noise)
        assert marginals.batch_shape == ((4,) if outputs is None else (4, 2))
        if outputs is None:
            points = torch.linspace(-4, 4, 9).double()
            rows = [process.joint(NEW[i : i + 1], noise=noise).log_prob(points[:, None]) for i in range(4)]
            torch.testing.assert_close(marginals.log_prob(points[:, None]), torch.stack(rows, -1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(process.joint(NEW, noise=noise).mean, marginals.mean, rtol=1e-9, atol=1e-9)


@every_prior
@outputs_too
def test_in_two_steps_is_at_once(name, outputs):
    process, y = prior_process(name, outputs), Y[outputs]
    once, twice = process.condition(X, y), process.condition(X[:9], y[:9]).condition(X[9:], y[9:])
    assert type(twice) is Process
    assert once.count == twice.count == y.numel()
    alike(once.predictive(NEW), twice.predictive(NEW))
    torch.testing.assert_close(
        once.joint(NEW).log_prob(Y[outputs][:4]), twice.joint(NEW).log_prob(Y[outputs][:4]), rtol=1e-9, atol=1e-9
    )


@every_prior
def test_outputs_share_scale_and_nothing_else(name):
    """The density of two outputs is that of one long vector with covariance I x K."""
    y = Y[2]
    ours = prior_process(name, 2).joint(X).log_prob(y)
    k = (-0.5 * torch.cdist(X, X).square() / 1.3**2).exp() + t(0.2) * torch.eye(N).double()
    quadratic = float(((y - LOC[2]) * torch.linalg.solve(k, y - LOC[2])).sum())
    normal_part = -float(torch.logdet(k)) - N * math.log(2 * math.pi)
    if name == "none":
        assert float(ours) == pytest.approx(normal_part - 0.5 * quadratic, rel=1e-10)
        return
    support = PRIORS[name].support
    low, high = max(1e-8, float(support.lower_bound)), min(1e8, float(getattr(support, "upper_bound", 1e8)))
    u = np.linspace(math.log(low) + 1e-12, math.log(high) - 1e-12, 200_001)
    integrand = PRIORS[name].log_prob(t(np.exp(u))).numpy() + u - N * u - 0.5 * quadratic * np.exp(-u)
    expected = normal_part + math.log(np.trapezoid(np.exp(integrand), u))
    assert float(ours) == pytest.approx(expected, abs=1e-7)  # the square of a step of 2e-4


@every_prior
@outputs_too
def test_leave_one_out_is_refits(name, outputs):
    process, y = prior_process(name, outputs), Y[outputs]
    found = process.condition(X, y).leave_one_out(y)
    for i in (0, 5, N - 1):
        rest = torch.arange(N) != i
        refit = process.condition(X[rest], y[rest])
        points = torch.linspace(-4, 4, 9).double().reshape(-1, *[1] * y.dim())
        expected = refit.predictive(X[i : i + 1]).log_prob(points)[:, 0]
        torch.testing.assert_close(found.predictive.log_prob(points)[:, i], expected, rtol=1e-8, atol=1e-8)
        joint = refit.joint(X[i : i + 1]).log_prob(y[i : i + 1])
        torch.testing.assert_close(found.log_prob[i], joint, rtol=1e-8, atol=1e-8)


def test_leave_one_out_of_a_single_row_is_the_prior():
    """Nothing is left, and rounding must not make the length of nothing negative."""
    process = prior_process("half-Cauchy")
    found = process.condition(X[:1], Y[None][:1]).leave_one_out(Y[None][:1])
    alike(found.predictive, process.predictive(X[:1]))


# --- facts of the theory ----------------------------------------------------------------------------------------------


@every_prior
def test_one_scale_does_not_make_it_robust(name):
    """An outlier of 100 moves the mean as it does in a Gaussian process, and widens all bands alike."""
    y = Y[None].clone()
    y[3] += 100
    gaussian, mixture = (prior_process(p).condition(X, y).predictive(NEW) for p in ("none", name))
    torch.testing.assert_close(mixture.mean, gaussian.mean, rtol=1e-9, atol=1e-9)
    ratio = (mixture.variance / gaussian.variance).sqrt()
    torch.testing.assert_close(ratio, ratio[:1].expand(4), rtol=1e-9, atol=0)
    assert name in ("none", "uniform") or (ratio > 10).all()


def test_at_two_hundred_rows_it_is_nearly_normal():
    """204 degrees of freedom: Kolmogorov's distance to the normal of the same moments is below 0.002; with 4, 0.04."""
    x = torch.linspace(-3, 3, 200).double()[:, None]
    process = Process(rbf(), t(0.2), dist.InverseGamma(t(2.0), t(2.0)), t(0.0))
    many = process.condition(x, x[:, 0].sin() + 0.4 * normal(200)).predictive(x[:1])
    grid = np.linspace(-8, 8, 2001)
    distances = [
        np.abs(stats.t(df).cdf(grid) - stats.norm(0, math.sqrt(df / (df - 2))).cdf(grid)).max()
        for df in (float(many.df[0]), float(process.predictive(NEW).df[0]))
    ]
    assert distances[0] < 0.002
    assert distances[1] > 0.03


@pytest.mark.parametrize("name", ["inverse gamma", "Burr"])
def test_draws_of_the_joint(name):
    """Null: squared lengths follow their law, an F or the mixture's by quadrature of its density. False alarm 1e-4."""
    torch.manual_seed(0)
    process = prior_process(name).condition(X, Y[None])
    joint = process.joint(NEW)
    lengths = torch.linalg.solve_triangular(
        joint.scale_tril, (joint.sample((4000,)) - joint.loc)[..., None], upper=False
    )
    lengths = lengths.square().sum((-2, -1)).numpy()
    s = process.scale.sample((4000,)).numpy()  # the length is s times a chi-squared of four degrees
    control = s.mean() * 1.2 * stats.chi2(4).rvs(4000, random_state=1)
    assert stats.ks_2samp(lengths, s * stats.chi2(4).rvs(4000, random_state=0)).pvalue > 1e-4
    assert stats.ks_2samp(lengths, control).pvalue < 1e-4
    if name == "inverse gamma":
        rate, shape = process.scale.rate.item(), process.scale.concentration.item()
        assert stats.kstest(lengths / 4, stats.f(4, 2 * shape, scale=rate / shape).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    ("shape", "rows", "finite"), [(0.4, 0, False), (0.9, 0, False), (0.9, 1, True), (0.4, 2, True)]
)
def test_variance_where_degrees_of_freedom_are_few(shape, rows, finite):
    """2a + n degrees: from above two on there is a variance."""
    process = Process(rbf(), t(0.2), dist.InverseGamma(t(shape), t(shape)), t(0.0))
    process = process.condition(X[:rows], Y[None][:rows]) if rows else process
    found = process.predictive(NEW)
    assert found.df[0] == 2 * shape + rows
    assert bool(found.variance.isfinite().all()) is finite


def test_single_precision():
    """1e-4 of the scale: a condition of some 100 times 1e-7."""
    single = Process(rbf().float(), torch.tensor(0.2), dist.HalfCauchy(1.0), torch.tensor(0.3))
    found = single.condition(X.float(), Y[None].float()).predictive(NEW.float())
    expected = prior_process("half-Cauchy").condition(X, Y[None]).predictive(NEW)
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean.double(), expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance.double(), expected.variance, rtol=1e-4, atol=0)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "x", "y", "message"),
    [
        (
            None,
            X[:, 0],
            Y[None],
            r"y of shape \(n,\), got \(14,\) and \(14,\). One row .* a single input column is x\[:, None\]",
        ),
        (None, X[:5], Y[None], r"got \(5, 2\) and \(14,\)"),
        (None, X, Y[2], r"y of shape \(n,\), got \(14, 2\) and \(14, 2\)"),
        (2, X, Y[None], r"y of shape \(n, 2\), got \(14, 2\) and \(14,\)"),
        (2, X, normal(N, 3), r"y of shape \(n, 2\), got \(14, 2\) and \(14, 3\)"),
        (None, X.float(), Y[None], "rows in torch.float64 on cpu, as the process, got torch.float32 on cpu. Convert"),
        (None, X, Y[None].float(), "observations in torch.float64 on cpu, as the process, got torch.float32"),
        (
            None,
            X,
            Y[None].to("meta"),
            "observations in torch.float64 on cpu, as the process, got torch.float64 on meta",
        ),
    ],
)
def test_data_that_do_not_fit(outputs, x, y, message):
    with pytest.raises(DataError, match=message):
        prior_process(outputs=outputs).condition(x, y)


@pytest.mark.parametrize("ask", [Process.predictive, Process.joint])
def test_new_rows_that_do_not_fit(ask):
    process = prior_process().condition(X, Y[None])
    for rows, message in (
        (NEW[:, :1], r"expected rows of shape \(m, 2\), got \(4, 1\)"),
        (NEW[0], r"expected rows of shape \(m, 2\), got \(2,\). One input column is x\[:, None\]"),
        (NEW.float(), "expected rows in torch.float64 on cpu, as the process, got torch.float32"),
    ):
        with pytest.raises(DataError, match=message):
            ask(process, rows)
    with pytest.raises(DataError, match=r"expected rows of shape \(m, d\), got \(2,\)"):
        ask(prior_process(), NEW[0])


def test_inducing_points_that_do_not_fit():
    with pytest.raises(DataError, match=r"expected rows of shape \(m, 2\), got \(6, 1\)"):
        prior_process().condition(X, Y[None], inducing=X[:6, :1])
    through = prior_process().condition(X, Y[None], inducing=X[:6])
    with pytest.raises(ProgramError, match=r"saw them through inducing points. Condition once, on all data together"):
        through.condition(X, Y[None])
    with pytest.raises(ProgramError, match=r"expected a process without data, got one with. Condition once"):
        through.condition(X, Y[None], inducing=X[:6])
    with pytest.raises(
        ProgramError, match=r"noise_var: expected some noise where data are seen through inducing points"
    ):
        prior_process(noise_var=0.0).condition(X, Y[None], inducing=X[:6])
    with pytest.raises(ProgramError, match=r"Call process.condition\(x, y\).leave_one_out\(y\)"):
        through.leave_one_out(Y[None])
    with pytest.raises(ProgramError, match="expected a process conditioned on these observations"):
        prior_process().leave_one_out(Y[None])
    with pytest.raises(ProgramError, match="expected a process conditioned on these observations"):
        prior_process().condition(X, Y[None]).leave_one_out(Y[None][:5])


def test_a_covariance_that_is_not_positive_definite_names_the_hyperparameters():
    """A cosine of one is no kernel: ones on the diagonal, and a lowest eigenvalue of -2.8, beyond any jitter."""

    class Cosine(gpytorch.kernels.RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            return torch.cos(3 - 3 * super().forward(x1, x2, diag=diag))

    kernel = gpytorch.kernels.ScaleKernel(Cosine().double())
    kernel.base_kernel.lengthscale, kernel.outputscale = 1.3, 4.0
    process = Process(kernel, t([0.0, 1e-3]), None, t(0.0))
    message = (
        r"not, even with 0.0001 of its mean diagonal added: ScaleKernel with noise_var 0 to 0.001, outputscale 4, "
        r"base_kernel.lengthscale 1.3. Add observation noise"
    )
    with pytest.raises(ProgramError, match=message):
        process.condition(X, Y[None])


def test_equal_rows_without_noise_get_jitter_and_a_finite_answer():
    """Two observations at one place, 1e-10 of the diagonal apart: their mean, and a scale that says they do not fit."""
    x, y = X[:3][[0, 0, 1]], t([1.0, 1.2, 0.0])
    process = Process(rbf(), t(0.0), PRIORS["inverse gamma"], t(0.0)).condition(x, y)
    assert isinstance(process.solver, DenseSolver)
    found = process.predictive(X[:1])
    assert float(found.mean) == pytest.approx(1.1, abs=1e-3)
    assert float(process.solver.quadratic) > 1e6
