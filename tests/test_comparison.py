from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from scipy import stats

from probmix.arviz import Group, convert
from probmix.comparison import compare, leave_one_out
from probmix.errors import DataError, MethodError

X = np.random.default_rng(1).normal(0.3, 1.0, size=40)


def tree(x=X, loc=None, num_draws=500, seed=0):
    """Exact posterior draws of a normal mean under a flat prior (known variance 1), or draws about another mean."""
    centre = x.mean() if loc is None else loc
    mu = np.random.default_rng(seed).normal(centre, len(x) ** -0.5, size=(4, num_draws))
    groups = {
        "posterior": Group({"mu": mu}),
        "log_likelihood": Group({"x": stats.norm.logpdf(x, mu[..., None])}),
        "observed_data": Group({"x": x}, leading=()),
    }
    return convert(groups)


def point():
    return convert({"point_estimate": Group({"mu": 0.0}, leading=()), "observed_data": Group({"x": X}, leading=())})


def test_the_score_is_the_closed_form_one():
    # Without row n the mean's posterior is Normal(mean of the others, 1 / (N - 1)), so that row n has predictive
    # variance 1 + 1 / (N - 1).
    others = (X.sum() - X) / (len(X) - 1)
    exact = stats.norm.logpdf(X, others, np.sqrt(1 + 1 / (len(X) - 1))).sum()
    # Over 100 seeds the score of 2000 draws strays from the closed form by a standard deviation of 0.029: five of them.
    assert leave_one_out(tree()).elpd_loo == pytest.approx(exact, abs=0.15)
    in_sample = stats.norm.logpdf(X, X.mean()).sum()  # the control: not left out
    assert abs(in_sample - exact) > 0.5


def test_score_is_arviz_own():
    score, own = leave_one_out(tree()), az.loo(tree(), pointwise=True)
    assert score.worst_pareto_k == pytest.approx(float(own.pareto_k.max()))
    assert score.se == pytest.approx(own.se)


def test_a_point_and_a_handful_of_draws_have_no_score():
    assert leave_one_out(point()) is None
    assert leave_one_out(tree(num_draws=6)) is None
    assert leave_one_out(tree(num_draws=7)) is not None


def test_comparison_puts_the_better_result_first_and_says_by_how_much():
    good, off = tree(), tree(loc=1.5)
    table = compare({"off": off, "good": good})
    pointwise = {name: np.asarray(az.loo(t, pointwise=True).loo_i) for name, t in {"good": good, "off": off}.items()}
    difference = pointwise["good"] - pointwise["off"]
    assert table.index.tolist() == ["good", "off"]
    assert table["elpd_diff"].tolist() == pytest.approx([0.0, difference.sum()])
    # ArviZ 0.x divides by N, ArviZ 1.x by N - 1: 1.3 % apart for 40 rows.
    assert table.loc["off", "dse"] == pytest.approx(np.sqrt(len(X)) * difference.std(), rel=0.02)
    assert table["weight"].sum() == pytest.approx(1)
    assert table.loc["good", "weight"] > 0.9
    assert table.loc["off", "worst_pareto_k"] == pytest.approx(leave_one_out(off).worst_pareto_k)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (point(), MethodError, "b is a single point.*--method svi or --method nuts"),
        (tree(X[:-1]), DataError, "got 40 rows in a and 39 in b. Fit both to the same rows"),
        (tree(X + 1), DataError, "a and b hold other values or columns. Fit both .* same --columns"),
        (tree(num_draws=5), DataError, "b: expected 25 draws or more, got 20. Fit it again with more --draws"),
        (convert({"posterior": Group({"mu": np.zeros((4, 9))})}), DataError, "b: expected a group log_likelihood"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, error, message):
    with pytest.raises(error, match=message):
        compare({"a": tree(), "b": other})


def test_one_result_is_not_enough():
    with pytest.raises(DataError, match=r"two results or more to compare, got 1: \['a'\]"):
        compare({"a": tree()})


def test_the_inputs_are_not_changed():
    one = tree()
    before = one["log_likelihood"]["x"].values.copy()
    compare({"a": one, "b": tree(seed=1)})
    np.testing.assert_array_equal(one["log_likelihood"]["x"].values, before)
