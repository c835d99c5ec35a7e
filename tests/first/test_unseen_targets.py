"""Categories and counts of targets that fit has not seen."""

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_score

from sk_itdiffusion import IMMSEConditionalDensity, IMMSEDiscreteDensity

pytestmark = pytest.mark.usefixtures("brief_fits")

LINEAR = IMMSEConditionalDensity(
    [LogisticRegression(), LinearRegression()], cv=2, max_epochs=0, random_state=0
)


def counts(n=200):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 1))
    return X, rng.poisson(np.exp(0.3 * X[:, 0]))


def test_counts_can_be_cross_validated():
    """The largest count is in one fold only."""
    X, y = counts()
    assert (y == y.max()).sum() == 1
    assert np.isfinite(cross_val_score(LINEAR, X, y, cv=5)).all()


@pytest.mark.parametrize("scale", [1, 300], ids=["filled", "with gaps"])
def test_probabilities_of_all_counts_sum_to_one(scale):
    X, y = counts()
    fitted = clone(LINEAR).fit(X, scale * y)
    every = np.arange(40_000)
    for row in (X[0], X[1] + 2.0):
        log_probability = fitted.score_samples(np.tile(row, (len(every), 1)), every)
        # One event of other values, such as -1, has the rest.
        rest = np.exp(fitted.score_samples(row[None], [-1]))
        assert np.exp(log_probability).sum() + rest == pytest.approx(1.0, abs=2e-4)


def test_mass_of_unseen_targets_is_that_of_discrete_columns_whatever_the_features():
    X, y = counts()
    y = pd.Series(y, name="count")
    names = y.map({0: "none", 1: "one", 2: "two"}).fillna("many")
    names.iloc[:3] = ["rare", "odd", "odd"]
    density = IMMSEDiscreteDensity(max_epochs=0, random_state=0)
    for target, new in ((y, [9, 12, 40]), (names, ["x", "y", "z"])):
        expected = clone(density).fit(target.to_frame()).score_samples(pd.DataFrame({"count": new}))
        fitted = clone(LINEAR).fit(X, target)
        for row in X[:3]:
            found = fitted.score_samples(np.tile(row, (3, 1)), new)
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Two categories are in a row of their own or would be: (1 + 1) / (200 + 2).
    np.testing.assert_allclose(found, np.log(2 / 202), rtol=1e-12)
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1.0, rtol=1e-12)
    known = [np.exp(fitted.score_samples(X, [name] * 200)) for name in fitted.classes_]
    np.testing.assert_allclose(np.sum(known, axis=0), 1.0 - 2 / 202, rtol=1e-12)


def test_booleans_have_no_other_values():
    X, y = counts()
    fitted = clone(LINEAR).fit(X, y > 0)
    total = np.exp(fitted.score_samples(X, y > 0)) + np.exp(fitted.score_samples(X, y == 0))
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    with pytest.raises(ValueError, match="has categories that fit has not seen"):
        fitted.score_samples(X[:1], [7])


def test_weights_are_repetitions_of_targets_too():
    X, y = counts(120)
    weight = np.random.default_rng(1).integers(0, 3, 120)
    weighted = clone(LINEAR).fit(X, y, sample_weight=weight)
    repeated = clone(LINEAR).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    new = np.arange(120)
    np.testing.assert_array_equal(weighted.score_samples(X, new), repeated.score_samples(X, new))


def test_other_targets_are_scored_without_the_unseen_one():
    X, y = counts(300)
    colour = np.where(X[:, 0] + y > 1.0, "red", "blue")
    size = 2.0 * (colour == "red") + y + X[:, 0] + np.random.default_rng(2).normal(size=300)
    targets = pd.DataFrame({"colour": colour, "size": size, "count": y})
    fitted = clone(LINEAR).fit(X, targets)
    grid = np.linspace(-30.0, 50.0, 801)
    X_grid = np.tile(X[0], (801, 1))
    rows = pd.DataFrame({"colour": "red", "size": grid, "count": 0})

    def density(**parts):
        return np.exp(fitted.score_samples(X_grid, rows.assign(**parts)))

    mass = 1.0 / 302
    without = sum(density(colour=each) for each in ("red", "blue")) / (1.0 - mass)
    np.testing.assert_allclose(density(colour="green"), mass * without, rtol=1e-9)
    # Neither of both is known: the density of the number alone.
    total = trapezoid(density(colour="green", count=90), grid)
    apart = clone(LINEAR).fit(X, targets["count"]).score_samples(X[:1], [90])
    assert total == pytest.approx(mass * np.exp(apart[0]), rel=1e-4)
