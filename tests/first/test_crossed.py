"""Latent classes that are crossed with normal components: fits, and tables that need them."""

import numpy as np
import pandas as pd
import pytest
import torch

from first.test_missing_references import completely_at_random, is_within_errors
from sk_itdiffusion import IMMSEMixedDensity
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout, Variable
from sk_itdiffusion._first.references import (
    CrossedMixtureReference,
    GaussianMixtureReference,
    LatentClassReference,
)
from sk_itdiffusion._first.references.crossed_fit import (
    _Evidence,
    _Pairs,
    _reference,
    _step,
    fit_crossed_mixture,
)
from sk_itdiffusion._first.references.families.judges import Judges
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.latent_class import fit_latent_class
from sk_itdiffusion._first.references.mixture_fit import with_wide_components

#: Largest variances of wide components.
WIDE = np.full(2, np.inf)


def truly_crossed():
    """Return two classes of two discrete columns, crossed with four components of two columns."""
    tables = [np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])]
    layout = Layout(0, [Variable(2), Variable(3)])
    means = 4.0 * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    mixture = GaussianMixtureReference(np.full(4, 0.25), means, [np.eye(2)] * 4)
    ratios = [[1.8, 1.8, 0.2, 0.2], [0.2, 0.2, 1.8, 1.8]]
    return CrossedMixtureReference(
        LatentClassReference(layout, [0.5, 0.5], tables), mixture, ratios
    )


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_crossed_classes_are_right_where_entries_are_missing(share):
    truth, fits = truly_crossed(), []
    states = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).double()
    for seed in range(5):
        X = completely_at_random(truth.sample(3000, np.random.RandomState(seed)), share, seed)
        rows = WeightedRows(X, np.ones(len(X)))
        fit = fit_crossed_mixture(
            rows, truth.layout, truth.continuous, 2, np.random.RandomState(seed)
        )
        given = [fit.given([0], [x]).marginal([1, 2]) for x in (-4.0, 4.0)]
        fits.append(np.concatenate([part.log_prob(states).exp().numpy() for part in given]))
    expected = [truth.given([0], [x]).marginal([1, 2]) for x in (-4.0, 4.0)]
    assert is_within_errors(
        fits, np.concatenate([part.log_prob(states).exp().numpy() for part in expected])
    )


def test_steps_of_crossed_classes_raise_the_likelihood_of_what_is_observed():
    """Up to the prior of one row for each class, which is nothing alongside two thousand rows."""
    truth = truly_crossed()
    X = completely_at_random(truth.sample(2000, np.random.RandomState(0)), 0.3, 1)
    rows, source = WeightedRows(X, np.ones(2000)), np.random.RandomState
    start = fit_latent_class(
        WeightedRows(X[:, 2:], rows.weight), truth.classes.layout, 3, source(0)
    )
    evidence = _Evidence.of(rows, truth.layout, truth.continuous)
    pairs = _Pairs(
        np.log(np.concatenate(start._tables_of_variables(), axis=1)),
        start.log_weights.exp().numpy()[:, None] * evidence.share_of_components,
    )
    reached = []
    for _ in range(12):
        fit = _reference(truth.classes.layout, truth.continuous, pairs)
        now, pairs = _step(evidence, pairs, 4, 1.0)
        assert now == pytest.approx(log_likelihoods(fit, X).mean(), abs=1e-9)
        reached.append(now)
    assert np.all(np.diff(reached) > -1e-3)
    assert reached[-1] > reached[0] + 0.1


def test_wide_components_are_independent_of_the_classes():
    truth = truly_crossed()
    X = truth.sample(500, np.random.RandomState(0))
    wide = with_wide_components(truth.continuous, X[:, :2], np.ones(500), WIDE)
    rows = WeightedRows(X, np.ones(500))
    fit = fit_crossed_mixture(rows, truth.layout, wide, 2, np.random.RandomState(0))
    np.testing.assert_allclose(fit.ratios[:, 4:] / fit.ratios[:1, 4:], 1.0, rtol=1e-9)
    narrow = fit.without_wide_components()
    assert narrow.continuous.n_components == 4
    assert narrow.without_wide_components() is narrow
    # What is far from all rows tells nothing of the categories, and much without wide components.
    far = np.array([1e4, 0.0])
    probability = fit.given([0, 1], far).log_prob(torch.zeros(1, 2).double()).exp()
    marginal = fit.marginal([2, 3]).log_prob(torch.zeros(1, 2).double()).exp()
    assert probability.item() == pytest.approx(marginal.item(), rel=0.05)


@pytest.mark.parametrize("far", [1e6, 1e9, 1e12])
def test_draws_given_numbers_far_out_have_the_probabilities(far):
    truth = truly_crossed()
    wide = with_wide_components(
        truth.continuous, truth.sample(500, np.random.RandomState(0))[:, :2], np.ones(500), WIDE
    )
    reference = CrossedMixtureReference(
        truth.classes, wide, np.hstack([truth.ratios, [[0.4, 0.4, 0.4], [1.6, 1.6, 1.6]]])
    )
    rows = np.full((4000, 4), np.nan)
    rows[:, 0] = far
    uniform = np.random.default_rng(0).uniform(1e-9, 1.0 - 1e-9, size=(4000, 6))
    drawn = reference.complete(torch.from_numpy(rows), torch.from_numpy(uniform))[:, 2]
    conditional = reference.given([0], [far]).marginal([1])
    probability = conditional.log_prob(torch.tensor([[1.0]]).double()).exp().item()
    given = torch.tensor([[True, False, False, False]])
    row = torch.tensor([[far, np.nan, 1.0, np.nan]]).double()
    assert reference.conditional_log_prob(row, given).exp().item() == pytest.approx(probability)
    error = np.sqrt(probability * (1.0 - probability) / 4000)
    assert abs(drawn.mean().item() - probability) < 4.0 * error


def dependent_table(n, seed):
    """Return a table whose category tells the quadrant of fine structure, and another category."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    angle = rng.uniform(0.0, np.pi, n) + np.pi * kind
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.05 * rng.normal(size=(n, 2))
    label = np.where(rng.uniform(size=n) < 0.9, kind, 1 - kind)
    return pd.DataFrame({"x": ring[:, 0], "y": ring[:, 1], "kind": np.array(["a", "b"])[label]})


def test_categories_depend_on_finely_modelled_numbers():
    # The category has the entropy of one bit, and given the ring that of a share of 0.9.
    truth = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    density = IMMSEMixedDensity(max_epochs=0, random_state=0).fit(dependent_table(600, 0))
    assert "crossed_mixture" in density.references_
    found = density.score_samples(dependent_table(2000, 1), given=["x", "y"])
    # The sampling error of 2000 rows is 0.015, and 600 rows leave about 0.04 nats open.
    assert -found.mean() < truth + 0.1


def judges_of(rows, n_valid, in_counts=False):
    valid = rows.take(np.arange(n_valid))
    return Judges.of(rows, valid, in_counts, np.random.RandomState(0))


def test_folds_keep_together_what_is_not_independent():
    group = np.arange(600) // 5
    rows = WeightedRows(np.arange(600.0)[:, None], np.ones(600), group=group)
    folds = judges_of(rows, 40).folds
    assert len(folds) == 4
    for train, judge in folds:
        assert not np.isin(judge.group, train.group).any()
        np.testing.assert_array_equal(np.sort(np.append(train.X, judge.X)), rows.X[:, 0])
        assert 60 < len(judge) < 200
    together = np.concatenate([judge.X for _, judge in folds])
    assert len(np.unique(together)) == len(together)
    assert judges_of(rows, 500).folds == []


def test_folds_of_observations_divide_equal_rows_by_chance():
    counts = np.array([400.0, 80.0, 15.0, 5.0])
    rows = WeightedRows(np.arange(4.0)[:, None], counts)
    valid = rows.take(np.array([2]))  # 15 observations
    judges = Judges.of(rows, valid, True, np.random.RandomState(0))
    assert len(judges.folds) == 8
    found = np.zeros((8, 4))
    for number, (train, judge) in enumerate(judges.folds):
        own, others = np.zeros(4), np.zeros(4)
        own[judge.X[:, 0].astype(int)], others[train.X[:, 0].astype(int)] = (
            judge.weight,
            train.weight,
        )
        np.testing.assert_allclose(own + others, counts)
        found[number] = own
    np.testing.assert_allclose(found.sum(axis=1), 500 / 9, atol=1.0)
    assert judges.n_observations == 15.0 + found.sum()
    # Equal shares in all folds would make independent columns look dependent.
    spread = found[:, 0].var(ddof=1) / (500 / 9 * 0.8 * 0.2 * (8 / 9))
    assert 0.2 < spread < 3.0  # the 0.002 and 0.998 quantiles of a mean of 7 squares
