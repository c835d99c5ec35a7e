"""References fitted to rows that lack entries: expectation-maximisation over patterns of holes."""

import time

import numpy as np
import pytest
import torch
from seeds import shifted

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout, Variable
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    LowRankGaussianReference,
    ReferenceMixture,
)
from sk_itdiffusion._first.references.families.kernel_density import (
    fit_kernel_density_by_validation,
)
from sk_itdiffusion._first.references.gaussian import fitted_moments, observed_moments
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.latent_class import (
    category_counts,
    fit_latent_class,
    smoothed_marginals,
)
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture
from sk_itdiffusion._first.references.normal_parts import NormalParts, blocks_of_rows
from sk_itdiffusion._first.references.plain import fit_plain_reference

TRUTH = (
    np.array([0.3, 0.7]),
    np.array([[-2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    np.array(
        [
            [[0.5, 0.2, 0.0], [0.2, 0.6, 0.1], [0.0, 0.1, 0.4]],
            [[1.0, -0.5, 0.2], [-0.5, 1.0, 0.0], [0.2, 0.0, 0.7]],
        ]
    ),
)


def completely_at_random(X, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.uniform(size=X.shape) < share, np.nan, X)


def at_random(n, seed):
    """Return rows of correlation 0.8, of which those with x1 > 0 lack x2 in 80% of cases."""
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], size=n)
    X[(X[:, 0] > 0.0) & (rng.uniform(size=n) < 0.8), 1] = np.nan
    return X


def standard_error(values):
    return np.std(values, axis=0, ddof=1) / np.sqrt(len(values))


def is_within_errors(found, truth):
    """Whether the mean over fits is within four of its standard errors (and 0.02) of the truth."""
    off = np.abs(np.mean(found, axis=0) - truth)
    return bool((off < 4.0 * standard_error(found) + 0.02).all())


# -- normal distributions --------------------------------------------------------------------


def test_mean_is_right_where_entries_are_missing_at_random():
    """That of what was observed is off by 0.43, since low values are missing seldom."""
    fits, alone = [], []
    for seed in range(8):
        X = at_random(2000, seed)
        fit = GaussianReference.fit(X)
        fits.append(np.append(fit.mean, fit.covariance[np.tril_indices(2)]))
        alone.append(np.nanmean(X[:, 1]))
    assert is_within_errors(fits, [0.0, 0.0, 1.0, 0.8, 1.0])
    assert np.mean(alone) < -0.35


def test_parameters_are_right_where_entries_are_missing_completely_at_random():
    rng = np.random.default_rng(shifted(0))
    root = rng.normal(size=(5, 5)) / np.sqrt(5.0)
    truth = root @ root.T + 0.1 * np.eye(5)
    fits = []
    for seed in range(8):
        X = np.random.default_rng(seed).multivariate_normal(np.arange(5.0), truth, size=1000)
        fit = GaussianReference.fit(completely_at_random(X, 0.4, seed))
        fits.append(np.append(fit.mean, fit.covariance))
    assert is_within_errors(fits, np.append(np.arange(5.0), truth))


def test_each_step_raises_the_likelihood_of_what_is_observed():
    X = completely_at_random(at_random(500, 0), 0.2, 1)
    X = X[~np.isnan(X).all(axis=1)]
    share = np.full(len(X), 1.0 / len(X))
    mean, covariance = observed_moments(X, share)
    blocks = blocks_of_rows(X, 1)
    reached = []
    for _ in range(20):
        reference = GaussianReference(mean, covariance)
        parts = NormalParts.of_covariances(mean[None], covariance[None])
        moments = parts.moments(X, share, np.zeros((1, 1)), blocks)
        mean, covariance = moments.mean[0], moments.covariance[0]
        reached.append(moments.log_likelihood)
        assert reached[-1] == pytest.approx(share @ log_likelihoods(reference, X), abs=1e-10)
    assert np.all(np.diff(reached) > -1e-12)
    likeliest = GaussianReference(*fitted_moments(X, share))
    # The fit ends 1e-5 nats below the greatest likelihood at most.
    assert share @ log_likelihoods(likeliest, X) > reached[-1] - 2e-5


def test_expected_fourth_powers_are_those_of_completed_rows():
    """Of which the shrinkage is made; a mean over draws is within four of its errors."""
    reference = GaussianReference(TRUTH[1][0], TRUTH[2][1])
    X = completely_at_random(reference.sample(40, np.random.RandomState(shifted(0))), 0.4, 1)
    parts = NormalParts.of_covariances(TRUTH[1][:1], TRUTH[2][1:])
    weight = np.full(40, 1.0 / 40.0)
    blocks = blocks_of_rows(X, 1)
    found = parts.moments(X, weight, np.zeros((1, 1)), blocks, is_fourth=True).fourth[0]
    rng = np.random.default_rng(shifted(2))
    means = []
    for _ in range(400):
        uniform = torch.from_numpy(rng.uniform(size=(40, 5)))
        drawn = reference.complete(torch.from_numpy(X), uniform).numpy()
        means.append(np.square(np.square(drawn - TRUTH[1][0]).sum(axis=1)).mean())
    assert abs(np.mean(means) - found) < 4.0 * standard_error(means)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_without_entries_and_repetition(weighted):
    X = at_random(200, 3)
    counts = np.random.default_rng(shifted(4)).integers(1, 4, size=len(X)).astype(float)
    empty = np.vstack([X, np.full((5, 2), np.nan)])
    weight = np.append(counts, np.full(5, 7.0)) if weighted else None
    found = GaussianReference.fit(empty, weight)
    expected = GaussianReference.fit(X, counts if weighted else None)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance)
    if weighted:
        # Moments before shrinkage, which rests on the effective number of rows.
        of_weights = fitted_moments(X, counts)
        repeated = np.repeat(X, counts.astype(int), axis=0)
        of_rows = fitted_moments(repeated, np.ones(len(repeated)))
        for one, other in zip(of_weights, of_rows, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-8)


def test_column_that_is_missing_in_all_rows_is_standard_normal():
    X = np.column_stack([np.random.default_rng(shifted(0)).normal(size=100), np.full(100, np.nan)])
    fit = GaussianReference.fit(X)
    assert float(fit.mean[1]) == 0.0
    assert float(fit.covariance[1, 1]) == pytest.approx(1.0, abs=0.2)


def test_low_rank_needs_complete_rows():
    with pytest.raises(ValueError, match="complete rows"):
        LowRankGaussianReference.fit(at_random(20, 0), 1, np.random.RandomState(shifted(0)))


# -- mixtures --------------------------------------------------------------------------------


def test_mixture_is_right_where_entries_are_missing():
    fits = []
    for seed in range(6):
        truth = GaussianMixtureReference(*TRUTH)
        X = completely_at_random(truth.sample(2000, np.random.RandomState(seed)), 0.3, seed)
        fit = fit_gaussian_mixture(X, 2, np.random.RandomState(seed))
        kept = fit.without_wide_components()
        order = np.argsort(kept.means[:, 0].numpy())
        spread = torch.einsum("kde,ke,kfe->kdf", kept.basis, kept.variances, kept.basis)
        parts = (kept.log_weights.exp().numpy(), kept.means.numpy(), spread.numpy())
        fits.append(np.concatenate([part[order].ravel() for part in parts]))
        # Held-out parts of rows are nearly as likely as under the truth: 21 parameters cost 21/2
        # nats in 2000 complete rows, and a few times as many in rows with holes.
        new = completely_at_random(truth.sample(1000, np.random.RandomState(shifted(99))), 0.3, 99)
        lost = log_likelihoods(truth, new).mean() - log_likelihoods(fit, new).mean()
        assert lost < 0.03
    assert is_within_errors(fits, np.concatenate([part.ravel() for part in TRUTH]))


def test_mixture_of_few_distinct_rows_and_limited_variances():
    X = np.tile(np.array([[0.0, np.nan], [1.0, 2.0], [np.nan, 3.0]]), (10, 1))
    fit = fit_gaussian_mixture(X, 5, np.random.RandomState(shifted(0)))
    assert fit.without_wide_components().n_components <= 3
    assert np.isfinite(log_likelihoods(fit, X)).all()
    X = completely_at_random(np.random.default_rng(shifted(0)).normal(size=(300, 2)) * 3.0, 0.3, 1)
    largest = np.array([1.0, np.inf])
    limited = fit_gaussian_mixture(
        X, 2, np.random.RandomState(shifted(0)), largest_variances=largest
    )
    spread = torch.einsum("kde,ke,kde->kd", limited.basis, limited.variances, limited.basis)
    assert float(spread[:, 0].max()) < 1.0 + 1e-9


@pytest.mark.slow
def test_thousands_of_patterns():
    """Nearly every row has a pattern of its own; a generous limit, ten times what it takes."""
    rng = np.random.default_rng(shifted(0))
    root = rng.normal(size=(16, 16)) / 4.0 + np.eye(16)
    X = completely_at_random(rng.normal(size=(6000, 16)) @ root, 0.4, 1)
    assert len(np.unique(np.isnan(X), axis=0)) > 5000
    begun = time.perf_counter()
    normal = GaussianReference.fit(X)
    mixture = fit_gaussian_mixture(X, 3, np.random.RandomState(shifted(0)), max_iter=3)
    scores = [log_likelihoods(reference, X) for reference in (normal, mixture)]
    assert time.perf_counter() - begun < 30.0
    assert np.isfinite(scores).all()
    truth = GaussianReference(np.zeros(16), root.T @ root)
    # Of 152 parameters half a nat each is gained in the rows that are fitted.
    gained = (scores[0] - log_likelihoods(truth, X)).mean()
    assert -0.01 < gained < 0.05


def test_too_many_patterns_are_a_sample_of_rows(monkeypatch):
    """The sample does not depend on which entries are missing: the mean stays right."""
    from sk_itdiffusion._first.references import parts

    X = np.column_stack(
        [at_random(4000, 0), np.random.default_rng(shifted(1)).normal(size=(4000, 6))]
    )
    X[:, 2:] = completely_at_random(X[:, 2:], 0.5, 2)
    monkeypatch.setattr(parts, "_MAX_WORK", 5000.0)
    kept = parts.affordable_rows(X, 1, 1)
    assert 50 < len(kept) < 3000
    # Four standard errors of a mean of so few rows, most of which lack the column.
    assert abs(float(GaussianReference.fit(X).mean[1])) < 4.0 / np.sqrt(0.5 * len(kept))
    monkeypatch.setattr(parts, "_MAX_WORK", 10.0)
    few = GaussianReference.fit(X)
    expected = np.nanmean(X, axis=0)
    np.testing.assert_allclose(few.mean, expected, atol=1e-10)
    off = few.covariance.numpy() - np.diag(np.diag(few.covariance.numpy()))
    assert np.abs(off).max() < 1e-12


# -- discrete columns ------------------------------------------------------------------------


def two_classes(n, n_continuous, seed):
    rng = np.random.default_rng(seed)
    of_row = rng.choice(2, size=n, p=[0.3, 0.7])
    tables = [
        np.array([[0.9, 0.1], [0.2, 0.8]]),
        np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]),
        np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]),
    ]
    codes = [(rng.uniform(size=(n, 1)) > np.cumsum(t, axis=1)[of_row]).sum(axis=1) for t in tables]
    continuous = rng.normal(size=(n, n_continuous)) + 3.0 * of_row[:, None]
    layout = Layout(n_continuous, [Variable(len(table[0])) for table in tables])
    return layout, np.column_stack([continuous, *codes]).astype(float), tables


@pytest.mark.parametrize("n_continuous", [0, 2])
def test_classes_are_right_where_entries_are_missing(n_continuous):
    fits = []
    for seed in range(5):
        layout, X, tables = two_classes(3000, n_continuous, seed)
        X = completely_at_random(X, 0.3, seed)
        rows = WeightedRows(X, np.ones(len(X)))
        fit = fit_latent_class(rows, layout, 2, np.random.RandomState(seed))
        marginals = [fit.marginal([j]) for j in range(n_continuous, layout.n_columns)]
        pair = fit.marginal([n_continuous, n_continuous + 1])
        states = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).double()
        found = [pair.log_prob(states).exp().numpy()]
        found += [
            part.log_prob(torch.arange(len(t[0]), dtype=torch.float64)[:, None]).exp().numpy()
            for part, t in zip(marginals, tables, strict=True)
        ]
        if n_continuous:
            found.append(np.sort(fit.continuous.means.numpy(), axis=0).ravel())
        fits.append(np.concatenate(found))
    share = np.array([0.3, 0.7])
    truth = [np.einsum("k,ka,kb->ab", share, tables[0], tables[1]).ravel()]
    truth += [share @ table for table in tables]
    if n_continuous:
        truth.append(np.repeat([0.0, 3.0], n_continuous))
    assert is_within_errors(fits, np.concatenate(truth))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_weights_of_classes_have_no_unit(share):
    """Priors count observations: with weights in small units they were worth nothing."""
    layout, X, _ = two_classes(60, 1, 0)
    X, weight = (
        completely_at_random(X, share, 1),
        np.random.default_rng(shifted(0)).exponential(size=60),
    )
    fits = [
        fit_latent_class(
            WeightedRows(X, unit * weight), layout, 4, np.random.RandomState(shifted(0))
        )
        for unit in (1.0, 1024.0)
    ]
    seen = ~np.isnan(X).all(axis=1)
    found = [log_likelihoods(fit, X[seen]) for fit in fits]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_frequencies_are_those_of_what_is_observed():
    layout, X, _ = two_classes(200, 1, 0)
    X = completely_at_random(X, 0.4, 1)
    rows = WeightedRows(X, np.arange(1.0, 201.0))
    for j, counts in enumerate(category_counts(rows, layout)):
        for code, count in enumerate(counts):
            assert count == rows.weight[X[:, 1 + j] == code].sum()
    plain = fit_plain_reference(rows, layout)
    assert isinstance(plain, IndependentReference)
    for found, expected in zip(plain.marginals(), smoothed_marginals(rows, layout), strict=True):
        np.testing.assert_allclose(found, expected)


def test_steps_of_classes_raise_the_likelihood_of_what_is_observed():
    """Up to the prior of one row for each class, which is nothing alongside two thousand rows."""
    layout, X, _ = two_classes(2000, 1, 0)
    rows = WeightedRows(completely_at_random(X, 0.3, 1), np.ones(2000))
    reached = [
        log_likelihoods(
            fit_latent_class(rows, layout, 3, np.random.RandomState(shifted(0)), max_iter=n), rows.X
        ).mean()
        for n in (1, 2, 4, 8, 16)
    ]
    assert np.all(np.diff(reached) > -1e-4)


# -- kernels and mixtures of references ------------------------------------------------------


def test_kernels_are_those_of_complete_rows():
    rng = np.random.default_rng(shifted(0))
    X = rng.choice([-1.0, 1.0], size=(600, 2)) + 0.02 * rng.normal(size=(600, 2))
    X = completely_at_random(X, 0.2, 1)
    train, valid = (WeightedRows(part, np.ones(len(part))) for part in (X[:400], X[400:]))
    plain = GaussianReference.fit(train.X)
    density = fit_kernel_density_by_validation(train, valid, plain, 0.0)
    complete = train.X[~np.isnan(train.X).any(axis=1)]
    np.testing.assert_array_equal(density.points.numpy(), complete)
    gain = log_likelihoods(density, valid.X) - log_likelihoods(plain, valid.X)
    assert gain.mean() > 1.0
    train.X[:, 0] = np.where(np.arange(400) < 9, train.X[:, 0], np.nan)
    assert fit_kernel_density_by_validation(train, valid, plain, 0.0) is None


def test_weights_of_references_have_the_greatest_likelihood():
    """By the mean ratio no member is likelier than the mixture, and those used are as likely."""
    references = [
        GaussianReference([0.0, 0.0], np.eye(2)),
        GaussianReference([3.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]),
        GaussianReference([-30.0, 0.0], np.eye(2)),
    ]
    truth = ReferenceMixture([0.25, 0.75], references[:2])
    X = completely_at_random(truth.sample(3000, np.random.RandomState(shifted(0))), 0.3, 1)
    rows = WeightedRows(
        X, np.random.default_rng(shifted(2)).integers(1, 4, size=3000).astype(float)
    )
    fit = ReferenceMixture.fit(references, rows)
    seen = ~np.isnan(X).all(axis=1)
    share = rows.weight * seen / (rows.weight @ seen)
    mixed = log_likelihoods(fit, X)
    ratios = [float(share @ np.exp(log_likelihoods(r, X) - mixed)) for r in references]
    assert max(ratios) < 1.001
    assert ratios[0] == pytest.approx(1.0, abs=1e-3)
    assert fit.weights[2] < 1e-6
    # The error of a share of so many rows is 0.01, and overlap doubles it at most.
    assert fit.weights[1] == pytest.approx(0.75, abs=0.06)
    assert fit.weights.sum() == pytest.approx(1.0)
    nothing = WeightedRows(np.full((3, 2), np.nan), np.ones(3))
    np.testing.assert_allclose(ReferenceMixture.fit(references, nothing).weights, 1.0 / 3.0)


def test_mixture_of_references_refuses_what_does_not_fit():
    one, two = GaussianReference([0.0], [[1.0]]), GaussianReference([0.0, 0.0], np.eye(2))
    with pytest.raises(ValueError, match="same columns"):
        ReferenceMixture([0.5, 0.5], [one, two])
    with pytest.raises(ValueError, match="positive"):
        ReferenceMixture([1.0, 0.0], [one, one])
    with pytest.raises(ValueError, match="same columns"):
        ReferenceMixture([], [])
