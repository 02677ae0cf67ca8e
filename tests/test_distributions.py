from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal
from scipy.special import multigammaln
from torch import Tensor

from probmix.distributions import InverseWishart, ShiftedLogNormal, log_multigamma
from probmix.positive_definite import LogCholeskyTransform


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


@pytest.fixture
def _unvalidated() -> Iterator[None]:
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def scatter_matrix(size: int) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_log_density_is_that_of_scipy(size: int) -> None:
    df, scatter = size + 2.5, scatter_matrix(size)
    value = InverseWishart(df, scatter).sample((20,))
    expected = scipy.stats.invwishart(df, scatter.numpy()).logpdf(np.moveaxis(value.numpy(), 0, -1))
    # Both factor matrices with a condition number of up to about 1e4.
    np.testing.assert_allclose(InverseWishart(df, scatter).log_prob(value).numpy(), expected.ravel(), rtol=1e-10)


def test_in_one_dimension_it_is_the_inverse_gamma() -> None:
    value = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    wishart = InverseWishart(5.0, torch.tensor([[3.0]], dtype=torch.float64)).log_prob(value[:, None, None])
    gamma = scipy.stats.invgamma(2.5, scale=1.5).logpdf(value.numpy())
    np.testing.assert_allclose(wishart.numpy(), gamma, rtol=1e-13)


def test_the_density_integrates_to_one_over_the_free_entries() -> None:
    """By the trapezoidal rule over the free vector, whose tails are below 1e-7 at the edges of the grid."""
    grid = torch.linspace(-1.0, 1.0, 81, dtype=torch.float64)
    z = torch.cartesian_prod(4 * grid, 2 * grid, 4 * grid)
    transform = LogCholeskyTransform()
    matrix = transform(z)
    prior = InverseWishart(12.0, torch.tensor([[2.0, 0.5], [0.5, 1.5]], dtype=torch.float64), validate_args=False)
    log_density = prior.log_prob(matrix) + transform.log_abs_det_jacobian(z, matrix)
    cell = float(32 * (grid[1] - grid[0]) ** 3)
    assert float(log_density.exp().sum() * cell) == pytest.approx(1.0, abs=1e-6)


def test_mean_and_mode_are_those_of_scipy() -> None:
    prior, reference = InverseWishart(7.0, scatter_matrix(3)), scipy.stats.invwishart(7.0, scatter_matrix(3).numpy())
    np.testing.assert_allclose(prior.mean.numpy(), reference.mean(), rtol=1e-13)
    np.testing.assert_allclose(prior.mode.numpy(), reference.mode(), rtol=1e-13)


def test_the_mode_is_where_the_gradient_vanishes() -> None:
    prior = InverseWishart(4.0, scatter_matrix(3))
    gradient = torch.func.grad(
        lambda value: InverseWishart(4.0, scatter_matrix(3), validate_args=False).log_prob(value)
    )
    assert gradient(prior.mode).abs().max() < 1e-10  # terms of order 1 to 10 that cancel in float64
    assert gradient(prior.mode * 1.1).abs().max() > 1e-2


def test_there_is_no_mean_up_to_d_plus_one_degrees_of_freedom() -> None:
    prior = InverseWishart(torch.tensor([3.0, 4.0]), torch.eye(2))
    assert prior.mean[0].isnan().all()
    torch.testing.assert_close(prior.mean[1], torch.eye(2))


def smallest_p_value(draws: Tensor, df: float, scatter: Tensor) -> float:
    """Null: an inverse Wishart's diagonal entries are inverse gamma, and so is the variance in any other direction."""
    size = scatter.shape[-1]
    directions = torch.cat([torch.eye(size), torch.ones(1, size), torch.arange(1.0, size + 1)[None]]).double()
    p_values = []
    for direction in directions:
        variance = torch.einsum("i,nij,j->n", direction, draws, direction)
        scale = float(direction @ scatter @ direction) / 2
        reference = scipy.stats.invgamma((df - size + 1) / 2, scale=scale)
        p_values.append(scipy.stats.kstest(variance.numpy(), reference.cdf).pvalue)
    return min(p_values)


def test_draws_follow_the_density_and_wrong_ones_are_noticed() -> None:
    """Five Kolmogorov-Smirnov tests; false-alarm rate below 5e-6. The controls have df off by 1 and scatter by 15 %."""
    df, scatter = 5.5, scatter_matrix(3)
    draws = InverseWishart(df, scatter).sample((4000,))
    assert smallest_p_value(draws, df, scatter) > 1e-6
    assert smallest_p_value(draws, df + 1, scatter) < 1e-6
    assert smallest_p_value(draws * 1.15, df, scatter) < 1e-6


def test_the_mean_of_the_inverse_of_draws_is_df_times_the_inverse_scatter() -> None:
    """Null: every entry of the mean of S draws is within 5 standard errors: false-alarm rate 6 * 6e-7."""
    df, scatter = 6.0, scatter_matrix(3)
    precision = torch.linalg.inv(InverseWishart(df, scatter).sample((4000,)))
    error = precision.mean(0) - df * torch.linalg.inv(scatter)
    standard_error = precision.std(0) / 4000**0.5
    assert (error / standard_error).abs().max() < 5
    wrong = precision.mean(0) - (df - 1) * torch.linalg.inv(scatter)
    assert (wrong / standard_error).abs().max() > 5


def test_draws_carry_gradients() -> None:
    """A draw is proportional to the scatter, so that by Euler's theorem <d trace / d S, S> = trace."""
    scatter, df = scatter_matrix(3).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    trace = InverseWishart(df, scatter, validate_args=False).rsample().diagonal().sum()
    by_scatter, by_df = torch.autograd.grad(trace, [scatter, df])
    assert (by_scatter * scatter).sum().item() == pytest.approx(trace.item(), rel=1e-10)
    assert by_df.isfinite()
    assert by_df < 0  # more degrees of freedom, smaller matrices


@pytest.mark.usefixtures("_unvalidated")
def test_vmap_gives_what_a_loop_gives() -> None:
    value = InverseWishart(5.0, scatter_matrix(3)).sample((4,))
    df = torch.tensor([3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    scatter = scatter_matrix(3)
    batched = torch.func.vmap(lambda d, v: InverseWishart(d, scatter).log_prob(v))(df, value)
    loop = torch.stack([InverseWishart(d, scatter).log_prob(v) for d, v in zip(df, value, strict=True)])
    torch.testing.assert_close(batched, loop, rtol=1e-12, atol=0)
    torch.testing.assert_close(InverseWishart(df, scatter).log_prob(value), loop, rtol=1e-12, atol=0)


def test_batches_expand_and_keep_their_dtype() -> None:
    prior = InverseWishart(torch.tensor([5.0, 6.0]), torch.eye(3))
    assert prior.batch_shape == (2,)
    assert prior.event_shape == (3, 3)
    wide = prior.expand((4, 2))
    draws = wide.sample((7,))
    assert draws.shape == (7, 4, 2, 3, 3)
    assert draws.dtype == torch.float32
    assert wide.log_prob(draws).shape == (7, 4, 2)
    torch.testing.assert_close(wide.log_prob(draws), prior.log_prob(draws))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"df must be above D - 1 = 2, got 1\.5: take D \+ 2 = 5"):
        InverseWishart(1.5, torch.eye(3), validate_args=True)
    with pytest.raises(ValueError, match=r"scatter: expected square matrices .* got shape \(3, 2\)"):
        InverseWishart(5.0, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="scatter"):
        InverseWishart(5.0, -torch.eye(3), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        InverseWishart(5.0, torch.eye(3), validate_args=True).log_prob(-torch.eye(3))


def test_log_multigamma_is_that_of_scipy() -> None:
    value = torch.tensor([2.1, 3.0, 50.0], dtype=torch.float64)
    np.testing.assert_allclose(log_multigamma(value, 4).numpy(), multigammaln(value.numpy(), 4), rtol=1e-13)


ROWS = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ torch.tensor(
    [[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64
)
PRIOR = InverseWishart(5.0, torch.eye(2, dtype=torch.float64))
POSTERIOR = InverseWishart(35.0, torch.eye(2, dtype=torch.float64) + ROWS.T @ ROWS)


def covariance_program() -> None:
    """Zero-mean rows with an inverse Wishart covariance: the posterior is POSTERIOR."""
    cov = pyro.sample("cov", PRIOR)
    with pyro.plate("row", len(ROWS)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov), obs=ROWS)


def test_nuts_samples_it() -> None:
    """Null: the mean of 200 draws is within 6 standard errors (at least 40 effective draws); false alarms 1e-8."""
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(covariance_program), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["cov"]
    standard_error = draws.std(0) / 40**0.5
    assert ((draws.mean(0) - POSTERIOR.mean) / standard_error).abs().max() < 6
    assert ((draws.mean(0) - PRIOR.mean) / standard_error).abs().max() > 6


def test_a_delta_guide_finds_the_mode() -> None:
    guide = AutoDelta(covariance_program)
    svi = SVI(covariance_program, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    # Adam stops within some of its last steps, of order 1e-3 in the unconstrained coordinates.
    torch.testing.assert_close(guide.median()["cov"].detach(), POSTERIOR.mode, rtol=5e-3, atol=5e-3)


def test_a_multivariate_normal_guide_comes_close_to_the_evidence() -> None:
    """The ELBO is below the log evidence, and within 0.3 of it: 30 rows leave a nearly Gaussian posterior."""
    guide = AutoMultivariateNormal(covariance_program, init_scale=0.1)
    decaying = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / 400)})
    svi = SVI(covariance_program, guide, decaying, Trace_ELBO())
    for _ in range(400):
        svi.step()
    elbo = -Trace_ELBO(num_particles=300).loss(covariance_program, guide)
    cov = torch.eye(2, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov)
    log_evidence = (PRIOR.log_prob(cov) + normal.log_prob(ROWS).sum() - POSTERIOR.log_prob(cov)).item()
    assert log_evidence - 0.3 < elbo < log_evidence + 0.1  # Monte Carlo error of the ELBO: below 0.03


# --- log-normal above a bound ---------------------------------------------------------------------------------------

SHIFTED = {"log_loc": 0.3, "log_std": 0.8, "least": -1.5}


def shifted() -> ShiftedLogNormal:
    return ShiftedLogNormal(**{name: torch.tensor(value, dtype=torch.float64) for name, value in SHIFTED.items()})


def test_shifted_log_normal_is_scipys():
    theirs = scipy.stats.lognorm(SHIFTED["log_std"], loc=SHIFTED["least"], scale=np.exp(SHIFTED["log_loc"]))
    values = torch.tensor([-1.4, 0.0, 2.0, 30.0], dtype=torch.float64)
    np.testing.assert_allclose(shifted().log_prob(values), theirs.logpdf(values.numpy()), rtol=1e-12)
    assert float(shifted().mean) == pytest.approx(theirs.mean())
    assert float(shifted().variance) == pytest.approx(theirs.var())


def test_shifted_log_normal_draws():
    """Null: draws have this law. Kolmogorov-Smirnov on 4,000, false alarm 1e-6; a bound 0.2 lower is told apart."""
    drawn = shifted().sample((4000,)).numpy()
    theirs = [
        scipy.stats.lognorm(SHIFTED["log_std"], loc=SHIFTED["least"] - off, scale=np.exp(SHIFTED["log_loc"])).cdf
        for off in (0.0, 0.2)
    ]
    assert scipy.stats.kstest(drawn, theirs[0]).pvalue > 1e-6
    assert scipy.stats.kstest(drawn, theirs[1]).pvalue < 1e-6


def test_shifted_log_normal_is_unconstrained_by_torchs_own_transform():
    """Every real number maps inside; batches expand; below the bound a validated density refuses."""
    prior = shifted().expand((2,))
    assert prior.batch_shape == (2,)
    unconstrained = torch.linspace(-20, 20, 9, dtype=torch.float64)
    inside = torch.distributions.biject_to(shifted().support)(unconstrained)
    assert (inside > SHIFTED["least"]).all()
    assert shifted().log_prob(inside).isfinite().all()
    with pytest.raises(ValueError, match="support"):
        ShiftedLogNormal(prior.log_loc, prior.log_std, prior.least, validate_args=True).log_prob(torch.full((2,), -1.6))
    with pytest.raises(ValueError, match="scale"):
        ShiftedLogNormal(prior.log_loc, -prior.log_std, prior.least, validate_args=True)
