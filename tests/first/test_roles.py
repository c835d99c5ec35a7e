"""Networks with roles: parts of rows given other parts, from denoisers."""

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity
from sk_itdiffusion._first._fit import pattern_stacking
from sk_itdiffusion._first._fit.pattern_stacking import drivers_of_missingness
from sk_itdiffusion._first._fit.patterns import (
    N_CLASSES,
    PatternStack,
    Question,
    conditional_log_density,
)
from sk_itdiffusion._first._fit.roles import RoleObjective, draw_roles
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._immse.cubature import NoiseRule, PiecewiseDensity, row_keys
from sk_itdiffusion._first._immse.errors import ErrorCalibration, Tolerance
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.denoisers import LogSNREmbedding, ResidualMLP
from sk_itdiffusion._first.denoisers.levels import n_category_outputs, n_periodic_inputs
from sk_itdiffusion._first.denoisers.role_levels import RoleLevelDenoiser, n_role_inputs
from sk_itdiffusion._first.denoisers.roles import (
    RoleDenoiser,
    conditional_noise,
    distinct_rows,
    with_roles,
)
from sk_itdiffusion._first.layout import Layout, Variable
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    LatentClassReference,
    ReferenceMixture,
)

NAN = np.nan
ANALYTIC = {"max_epochs": 0, "marginals": "standard", "bounds": None, "random_state": 0}
#: A network so small that it trains in a second, beside the normal distribution.
QUICK = ANALYTIC | {
    "patterns": "any",
    "experts": ["network", "gaussian"],
    "max_epochs": 4,
    "steps_per_epoch": 60,
    "batch_size": 128,
    "n_networks": 1,
    "n_blocks": 1,
    "hidden_size": 48,
    "early_stopping": False,
}


def generator(seed=0):
    return CopyableGenerator().manual_seed(seed)


def curved_rows(n=300, seed=0):
    """Return rows of which each column, given the first, is normal."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=n)
    second = first**2 - 1.0 + 0.3 * rng.normal(size=n)
    return np.column_stack([first, second, 0.5 * rng.normal(size=n) - first])


def curved_log_density(X):
    """Return log p(second | first), the conditional density of `curved_rows`."""
    return stats.norm.logpdf(X[:, 1], X[:, 0] ** 2 - 1.0, 0.3)


@pytest.fixture(scope="module")
def curved():
    """Return a fit to `curved_rows`, with few rows to calibrate errors by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pattern_stacking, "ROWS_TO_CALIBRATE", 6)
        patch.setattr(pattern_stacking, "ROWS_OF_A_CLASS", 24)
        return IMMSEDensity(**QUICK).fit(curved_rows())


def normal(d, seed=0):
    root = np.random.default_rng(seed).normal(size=(d, d + 2))
    return GaussianReference(np.linspace(-0.5, 0.5, d), root @ root.T / d)


def mixture():
    """Return a mixture of three columns that is far from a normal distribution."""
    covariances = np.array(
        [[[1.0, c, 0.2], [c, 0.8, 0.3 * c], [0.2, 0.3 * c, 0.6]] for c in (0.7, -0.7)]
    )
    means = np.array([[1.2, 0.0, -0.5], [-1.0, 0.4, 0.6]])
    return GaussianMixtureReference([0.4, 0.6], means, covariances)


PATTERNS = {
    "marginal": ([1], []),
    "marginal of two": ([0, 2], []),
    "one given one": ([2], [0]),
    "one given two": ([1], [0, 2]),
    "two given one": ([0, 2], [1]),
}


def masks(pattern, n=1):
    """Return targets and given columns of n rows of three columns."""
    found = np.zeros((2, n, 3), dtype=bool)
    for mask, columns in zip(found, PATTERNS[pattern], strict=True):
        mask[:, columns] = True
    return found


def exact_stack():
    """Return experts and their weights: a normal distribution as control variate, the mixture."""
    model = IMMSEDensity(experts=["gaussian"], **ANALYTIC).fit(curved_rows(60))._model
    grid = np.linspace(-6.0, 11.0, 35)
    rows = mixture().sample(2_000, np.random.RandomState(0))
    references = {"gaussian": GaussianReference.fit(rows), "gaussian_mixture": mixture()}
    experts = replace(model, references=references, grid=grid)
    weights = np.zeros((N_CLASSES, len(grid), 2))
    weights[:, :, 1] = 1.0
    flat = PiecewiseDensity(grid[[0, -1]], np.ones(1))
    errors = ErrorCalibration(np.array([0.0]), np.array([0.05]), np.full(3, 1.0), np.full(3, 1.0))
    rule = IntegrationRule(flat, NoiseRule.for_scoring(3, 0), 8, errors)
    names = ["gaussian", "gaussian_mixture"]
    stack = PatternStack("gaussian", grid, names, weights, (rule,) * N_CLASSES, np.zeros(3, bool))
    return experts, stack


# -- the denoiser ------------------------------------------------------------------------------


def test_normal_distribution_of_targets_is_that_given_the_other_columns():
    reference, rng = normal(4), np.random.default_rng(0)
    for target, given in itertools.product(range(1, 16), range(16)):
        if target & given:
            continue
        targets, knowns = (
            np.array([mask >> j & 1 for j in range(4)], bool) for mask in (target, given)
        )
        values, level = rng.normal(size=(1, 4)), torch.tensor([rng.uniform(-3, 5)]).double()
        wide = with_roles(
            torch.from_numpy(values),
            torch.from_numpy(targets)[None],
            torch.from_numpy(knowns)[None],
        )
        found = conditional_noise(reference, wide, level).numpy()[0]
        question = Question(targets, knowns, np.where(knowns, values, 0.0))
        z = torch.from_numpy(values[:, targets])
        expected = question.of(reference).denoise(z, level).numpy()[0]
        np.testing.assert_allclose(found[targets], expected, atol=1e-10)
        assert not found[~targets].any()


@pytest.mark.parametrize("d", [3, 20])
def test_noise_of_a_row_does_not_depend_on_the_roles_in_other_rows(d):
    target, given = (role[torch.arange(24) % 5] for role in draw_roles(5, d, generator()))
    wide = with_roles(torch.randn(24, d, generator=generator()).double(), target, given)
    level = torch.linspace(-4.0, 6.0, 24).double()
    together = conditional_noise(normal(d), wide, level)
    alone = [conditional_noise(normal(d), wide[[i]], level[[i]]) for i in range(24)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [2, 30, 95])
def test_equal_rows_are_found_among_flags(n):
    flags = torch.rand(6, n, generator=generator()) < 0.5
    flags = flags[torch.randint(6, (50,), generator=generator())]
    first, group = distinct_rows(flags)
    assert torch.equal(flags[first[group]], flags)
    assert len(first) == len(flags.unique(dim=0))


def role_denoiser(d=3):
    embedding = LogSNREmbedding(-4.0, 8.0)
    backbone = ResidualMLP(
        3 * d, embedding, width=16, n_blocks=1, generator=generator(), n_periodic=d, n_outputs=d
    )
    torch.nn.init.normal_(backbone.outlet.weight, generator=generator(1))
    return RoleDenoiser(backbone, normal(d).float(), embedding)


@torch.no_grad()
def test_network_does_not_see_missing_entries_nor_predict_other_columns():
    denoiser, rows = role_denoiser(), torch.randn(8, 3, generator=generator())
    level = torch.linspace(-3, 6, 8)
    target = torch.tensor([True, False, False]).expand(8, 3)
    given = torch.tensor([False, True, False]).expand(8, 3)
    seen = denoiser.correction_to(with_roles(rows, target, given), level)
    hidden = torch.where(target | given, rows, torch.full_like(rows, torch.nan))
    torch.testing.assert_close(
        denoiser.correction_to(with_roles(hidden, target, given), level), seen, rtol=0, atol=0
    )
    assert not seen[:, 1:].any()
    assert seen[:, 0].abs().min() > 0.0
    # Given nothing, with all columns as targets, it is a denoiser of rows.
    everywhere = torch.ones(8, 3, dtype=torch.bool)
    wide = with_roles(rows, everywhere, ~everywhere)
    constants = denoiser.constants(wide, level)
    both = constants.pop("baseline") + denoiser.correction(wide, level, **constants)
    torch.testing.assert_close(denoiser(rows, level), both, rtol=1e-4, atol=1e-5)


def test_roles_in_training():
    target, given = draw_roles(6_000, 5, generator())
    assert bool(target.any(1).all())
    assert not bool((target & given).any())
    shares = target.all(1), ~target.all(1) & ~given.any(1), (target | given).all(1) & given.any(1)
    assert all(0.1 < float(share.float().mean()) < 0.6 for share in shares)
    # Whatever is hidden from the network, all other columns are targets and given equally often.
    assert float(target.float().mean(0).std()) < 0.02
    again = draw_roles(6_000, 5, generator())
    assert torch.equal(again[0], target)
    assert torch.equal(again[1], given)


def test_missing_entries_of_training_rows_are_neither_targets_nor_given():
    objective = RoleObjective(role_denoiser(), Layout(3), generator())
    rows = torch.randn(512, 3, generator=generator())
    rows[::2, 1] = torch.nan
    batch = {"x": rows, "eps": torch.randn(512, 3, generator=generator(1))}
    batch |= {"logsnr": torch.zeros(512), "importance": torch.ones(512)}
    ready = objective.with_constants(batch)
    flags = ready["z"][:, 3:]
    assert not flags[::2, [1, 4]].any()
    assert flags[1::2, [1, 4]].any()
    loss = objective.train()(**ready)
    assert bool(loss.isfinite().all())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parts_of_rows_are_judged_by_what_their_reference_leaves(pattern):
    """The partner of a network with roles denoises the targets as their own distribution does."""
    exact, d, n = mixture(), 3, 128
    target, given = (torch.from_numpy(mask) for mask in masks(pattern, n))

    class Objective(RoleObjective):
        def drawn_roles(self, rows):
            return {"target": target, "given": given}

    objective = Objective(
        role_denoiser(d), Layout(d), generator(), partner=lambda question: question.of(exact)
    )
    rows = torch.from_numpy(exact.sample(n, np.random.RandomState(0)))
    batch = {"x": rows, "eps": torch.randn(n, d, generator=generator()).double()}
    batch |= {"logsnr": torch.linspace(-3.0, 5.0, n).double(), "importance": torch.ones(n)}
    whole = [lambda z, level: exact.denoise(z, level)]
    ((found, _),) = objective.judged([(batch, torch.zeros(n))], whole)
    assert set(found["kind"].tolist()) == {2 if given.any() else 0 if target.all() else 1}
    for i in range(0, n, 16):
        mask, known = target[i].numpy(), given[i].numpy()
        question = Question(mask, known, np.where(known, rows[[i]].numpy(), 0.0))
        level, eps = batch["logsnr"][[i]], batch["eps"][[i]]
        z = add_noise(rows[[i]], eps, level)[:, target[i]]
        left = eps[:, target[i]] - question.of(exact).denoise(z, level)
        torch.testing.assert_close(
            found["unexplained"][[i]][:, target[i]], left, rtol=1e-5, atol=1e-6
        )
        assert not found["unexplained"][i, ~target[i]].any()


# -- the integral, with denoisers that are exact -------------------------------------------------


@pytest.mark.parametrize("pattern", others_slow(PATTERNS, 3))
def test_integral_of_the_exact_denoiser_is_the_conditional_log_density(pattern):
    experts, stack = exact_stack()
    rows = mixture().sample(24, np.random.RandomState(0))
    target, given = masks(pattern, len(rows))
    rows[~(target | given)] = NAN
    found, _ = stack.log_densities(experts, rows, target, given, Tolerance(0.02, 64))
    expected = conditional_log_density(mixture(), rows, target, given)
    # 64 draws: errors of the rows are about 0.03 nats, of their mean 0.01.
    np.testing.assert_allclose(found, expected, atol=0.25)
    assert abs(found.mean() - expected.mean()) < 0.04


@pytest.mark.parametrize("pattern", ["marginal", "one given two"])
def test_flow_of_the_exact_denoiser_draws_from_the_conditional_distribution(pattern):
    experts, stack = exact_stack()
    (target,), (given,) = masks(pattern)
    question = Question(target, given, np.where(given, [[0.3, 0.0, 0.8]], 0.0))
    keys = row_keys(np.arange(1_000.0)[:, None], seed=1)
    drawn = stack.draws(experts, question, keys)
    exact = question.of(mixture()).sample(20_000, np.random.RandomState(0))
    assert stats.ks_2samp(drawn[:, 0], exact[:, 0]).pvalue > 0.01
    np.testing.assert_array_equal(stack.draws(experts, question, keys), drawn)


LAYOUT = Layout(0, [Variable(3), Variable(2, np.array([-1.0, 1.0])), Variable(4)])


def classes():
    """Return a mixture of two classes of rows of categories, and independent columns."""
    rng = np.random.default_rng(3)
    tables = [rng.dirichlet(np.full(v.n_categories, 0.5), size=2) + 0.02 for v in LAYOUT.variables]
    marginals = [0.5 * table.sum(axis=0) for table in tables]
    return (
        LatentClassReference(LAYOUT, [0.5, 0.5], tables),
        IndependentReference(LAYOUT, marginals),
    )


@pytest.mark.parametrize("pattern", ["marginal of two", "one given two"])
def test_integral_of_categories_is_their_conditional_log_probability(pattern):
    experts, stack = exact_stack()
    latent, independent = classes()
    space = replace(experts.space, layout=LAYOUT, continuous=np.arange(0), discrete=np.arange(3))
    references = {"gaussian": independent, "gaussian_mixture": latent}
    experts = replace(experts, space=space, references=references)
    rows = np.array(list(itertools.product(range(3), range(2), range(4))), dtype=np.float64)
    target, given = masks(pattern, len(rows))
    rows[~(target | given)] = NAN
    if pattern == "marginal of two":
        rows, target, given = rows[:4], target[:4], given[:4]
    found, _ = stack.log_densities(experts, rows, target, given, Tolerance(0.01, 2048))
    expected = conditional_log_density(latent, rows, target, given)
    # Errors of a row are about 0.05 nats.
    np.testing.assert_allclose(found, expected, atol=0.3)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.12


@torch.no_grad()
def test_categories_that_are_missing_are_not_seen():
    layout = Layout(1, [Variable(3), Variable(2, np.array([-1.0, 1.0]))])
    embedding = LogSNREmbedding(-4.0, 8.0)
    n_outputs = 1 + n_category_outputs(layout)
    backbone = ResidualMLP(
        n_role_inputs(layout),
        embedding,
        width=16,
        n_blocks=1,
        n_outputs=n_outputs,
        n_periodic=n_periodic_inputs(layout),
        generator=generator(),
    )
    torch.nn.init.normal_(backbone.outlet.weight, generator=generator(1))
    plain = IndependentReference(layout, [[0.2, 0.3, 0.5], [0.4, 0.6]], normal(1))
    denoiser = RoleLevelDenoiser(backbone, plain.float(), embedding)
    points = torch.randn(6, layout.n_points, generator=generator())
    level, columns = torch.linspace(-3, 6, 6), layout.columns_of_points()
    target = torch.tensor([False, True, False]).expand(6, 3)
    given = torch.tensor([True, False, False]).expand(6, 3)
    seen = denoiser.correction_to(with_roles(points, target, given, columns), level)
    other = torch.where((target | given)[:, columns], points, points + 1.0)
    again = denoiser.correction_to(with_roles(other, target, given, columns), level)
    torch.testing.assert_close(again, seen, rtol=0, atol=0)
    of_target = target[0, columns]
    assert not seen[:, ~of_target].any()
    assert seen[:, of_target].abs().max() > 0.0
    everywhere = torch.ones(6, 3, dtype=torch.bool)
    wide = with_roles(points, everywhere, ~everywhere, columns)
    baseline, correction = denoiser.parts(wide, level)
    torch.testing.assert_close(denoiser(points, level), baseline + correction)
    torch.testing.assert_close(baseline, plain.denoise(points, level), rtol=1e-4, atol=1e-5)


# -- estimators --------------------------------------------------------------------------------


def test_networks_answer_for_parts_of_rows(curved):
    X = curved_rows(30, seed=1)
    log_density, std = curved.score_samples(X, given=[0, 2], return_std=True)
    references = IMMSEDensity(**ANALYTIC, experts=["gaussian"]).fit(curved_rows())
    of_references = references.score(X, given=[0, 2])
    truth = curved_log_density(X).mean()
    # After few steps the network has a part of what the normal distribution lacks.
    assert of_references + 0.4 < log_density.mean() < truth + 0.1
    assert 0.0 < std.max() < 1.0
    view = curved.conditional(given=[0, 2])
    np.testing.assert_array_equal(view.score_samples(X), log_density)
    # A row's score does not depend on the other rows.
    alone = [curved.score_samples(X[i : i + 1], given=[0, 2])[0] for i in (3, 17)]
    np.testing.assert_array_equal(alone, log_density[[3, 17]])
    # Parts that are scored one after the other make the same as both together.
    holes = np.where(np.arange(3) == 1, NAN, X)
    chain = curved.score_samples(holes) + log_density
    assert abs(chain.mean() - curved.score(X)) < 0.5


def test_gains_of_classes_are_those_of_new_rows(curved):
    """Of one column given others, whose patterns are drawn anew; and who answers is told."""
    for number, each in enumerate(curved.pattern_gains_):
        assert (2 * each["given"] + each["most_columns"]) == number
        assert each["networks"] == (curved._model.patterns.rules[number] is not None)
        assert each["networks"] <= (each["gain"] > each["gain_std"])
        assert each["n_rows"] == 24
    told = curved.pattern_gains_[2]
    assert told["networks"]
    assert curved.missingness_columns_ == []
    X = curved_rows(60, seed=3)
    rows = WeightedRows(X, np.ones(len(X)))
    split = MappedSplit(curved._model.space, rows, rows, np.zeros(len(X)))
    asked = pattern_stacking.rows_of_class(split, 2, np.zeros(3, dtype=bool), 0)
    silent = copy.deepcopy(curved)
    silent._model = replace(curved._model, patterns=None)
    gains = []
    for row, target, given in zip(asked.rows.X, asked.target, asked.given, strict=True):
        part = np.where(target | given, row, NAN)[None]
        columns = np.flatnonzero(given).tolist()
        with_networks, without = (
            each.score_samples(part, given=columns)[0] for each in (curved, silent)
        )
        gains.append(with_networks - without)
    error = np.hypot(np.std(gains) / np.sqrt(len(gains)), told["gain_std"])
    assert abs(np.mean(gains) - told["gain"]) < 4.0 * error


def test_columns_on_which_it_depends_what_is_missing_are_named(curved):
    drivers = np.array([False, False, True])
    named = copy.deepcopy(curved)
    named._model = replace(curved._model, patterns=replace(curved._model.patterns, drivers=drivers))
    named._publish()
    assert named.missingness_columns_ == [2]
    named.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    named._publish()
    assert named.missingness_columns_ == ["c"]


def test_files_and_pickles_answer_the_same(curved, tmp_path):
    X = curved_rows(20, seed=2)
    expected = curved.score_samples(X, given=[0])
    curved.save(tmp_path / "density")
    for copied in (
        sk_itdiffusion.load(tmp_path / "density"),
        pickle.loads(pickle.dumps(curved)),
    ):
        np.testing.assert_array_equal(copied.score_samples(X, given=[0]), expected)
        assert copied.pattern_gains_ == curved.pattern_gains_


def test_draws_of_entries_follow_the_curve(curved):
    X = np.full((13, 3), NAN)
    X[:, 0] = np.linspace(-1.8, 1.8, 13)
    completed = curved._model.complete(X, 16, 0)
    np.testing.assert_array_equal(completed[:, :, 0], np.tile(X[:, 0], (16, 1)))
    # The normal distribution knows no relation of the second column to the first one.
    means = completed[:, :, 1].mean(axis=0)
    assert np.corrcoef(means, X[:, 0] ** 2)[0, 1] > 0.6
    # A row's draws do not depend on the other rows.
    alone = curved._model.complete(X[5:6], 16, 0)
    np.testing.assert_array_equal(alone[:, 0], completed[:, 5])
    drawn = curved.conditional([0]).sample(X[[1, 6]], n_samples=40, random_state=0)
    assert drawn[0, :, 0].mean() > drawn[1, :, 0].mean() + 0.5
    # Means are those of such draws.
    means = curved.conditional([0]).mean(X[[1, 6]], 1, n_draws=40)
    assert means[0] > means[1] + 0.5


SHORT = QUICK | {"max_epochs": 1, "steps_per_epoch": 5, "patterns": "auto"}


def test_references_draw_where_networks_have_no_say(curved):
    model, values = curved._model, np.full((3, 3), NAN)
    silent = replace(model, patterns=replace(model.patterns, rules=(None,) * N_CLASSES))
    references = replace(model, patterns=None)
    np.testing.assert_array_equal(silent.complete(values, 5, 0), references.complete(values, 5, 0))


@pytest.mark.parametrize("far", [-3.4e38, 1e40, 1e99])
def test_given_values_beyond_single_precision_give_numbers(curved, far):
    drawn = np.asarray(curved.conditional([0]).sample([[far, NAN, NAN]], 5, random_state=0))
    assert np.isfinite(drawn).all()
    rows = np.array([[far, 0.0, 0.0], [far, 1.0, 1.0]])
    assert not np.isnan(curved.score_samples(rows, given=[0])).any()


def test_networks_have_roles_if_entries_are_missing(capsys):
    X = curved_rows(60)
    X[::5, 1] = NAN
    density = IMMSEDensity(**SHORT | {"verbose": 1}).fit(X)
    assert isinstance(density.net_.module_.averaged, RoleDenoiser)
    # A line tells of each class of patterns.
    (line,) = [part for part in capsys.readouterr().err.split("\n") if "Gain of networks" in part]
    assert line.count("used)") + line.count("not judged") == len(density.pattern_gains_) == 4
    analytic = SHORT | {"max_epochs": 0, "experts": ["gaussian"], "verbose": 1}
    density = IMMSEDensity(**analytic).fit(X)
    assert density.net_ is None
    assert density.pattern_gains_ == []
    assert "Gain" not in capsys.readouterr().err


@pytest.mark.slow
def test_auto_is_joint_for_complete_rows():
    X = curved_rows(60)
    whole = IMMSEDensity(**SHORT).fit(X)
    joint = IMMSEDensity(**SHORT | {"patterns": "joint"}).fit(X)
    np.testing.assert_array_equal(whole.score_samples(X), joint.score_samples(X))
    assert not isinstance(whole.net_.module_.averaged, RoleDenoiser)


@pytest.mark.slow
def test_tables_of_numbers_and_categories(tmp_path):
    """A network learns that the category is the sign of a product, also from rows with holes."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(2_000, 2))
    table = pd.DataFrame(numbers, columns=["a", "b"])
    table["sign"] = pd.Categorical(np.where(numbers.prod(axis=1) > 0, "plus", "minus"))
    holes = table.copy()
    holes.loc[rng.random(2_000) < 0.2, "a"] = NAN
    settings = QUICK | {"experts": ["network", "independent"], "max_epochs": 15}
    settings |= {"reference": "independent", "hidden_size": 64}
    del settings["n_networks"]
    new = table[:200]
    for rows in (table, holes):
        density = IMMSEMixedDensity(**settings).fit(rows)
        of_sign = density.score_samples(new, given=["a", "b"])
        assert np.log(0.5) + 0.2 < of_sign.mean() < 0.01
        density.save(tmp_path / "density")
        again = sk_itdiffusion.load(tmp_path / "density").score_samples(new, given=["a", "b"])
        np.testing.assert_array_equal(again, of_sign)
        drawn = density.conditional(["a", "b"]).sample(new, random_state=0)
        # Draws are as often right as the probabilities say; 200 rows have an error of 0.035.
        is_right = np.asarray(drawn["sign"]) == np.asarray(new["sign"])
        assert abs(is_right.mean() - np.exp(of_sign).mean()) < 0.11


ERRORS = {
    "for images": lambda X: IMMSEDiscreteDensity(patterns="any", image_shape=(1, 3)).fit(
        np.rint(X)
    ),
    "images": lambda X: IMMSEDensity(patterns="any", image_shape=(1, 3)).fit(X),
    "more than 64": lambda X: IMMSEDensity(patterns="any").fit(np.tile(X, (1, 22))),
    "dequantize": lambda X: IMMSEDensity(patterns="any", dequantize=0.5).fit(np.rint(2 * X) / 2),
    "got 'any'": lambda X: IMMSEDensity(patterns="any").partial_fit(X),
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_networks_with_roles_are_not_for(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message](curved_rows(60))


# -- missing at random ---------------------------------------------------------------------------


def hidden_at_random(n, seed=0):
    """Return normal rows whose second entry is hidden from 80% of the rows with a positive first.

    The correlation is 0.8.
    """
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], size=n)
    X[(X[:, 0] > 0) & (rng.random(n) < 0.8), 1] = NAN
    return X


def as_split(X):
    rows = WeightedRows(X, np.ones(len(X)))
    space = IMMSEDensity(experts=["gaussian"], **ANALYTIC).fit(curved_rows(60))._model.space
    return MappedSplit(space, rows, rows.take(np.arange(50)), np.zeros(50))


def test_columns_that_tell_what_is_missing_are_found():
    at_random = drivers_of_missingness(as_split(hidden_at_random(1_000)))
    assert at_random.tolist() == [True, False]
    X = np.random.default_rng(0).normal(size=(1_000, 2))
    X[np.random.default_rng(1).random((1_000, 2)) < 0.3] = NAN
    assert not drivers_of_missingness(as_split(X)).any()


def test_chance_seldom_looks_like_a_dependence():
    """Of 400 differences with rare categories, few holes and uneven weights."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        weight, first = rng.uniform(0.5, 2.0, size=300), rng.random(300) < 0.1
        values = np.stack([rng.normal(size=300), rng.normal(size=300) ** 2])
        flags = rng.random((2, 300)) < [[0.02], [0.3]]
        every = np.concatenate([values, flags.astype(float)])
        found.append(pattern_stacking.standardized_difference(every, weight, first, False))
    # Two-sided 1% of normal differences are beyond 2.58; squares have a longer tail.
    assert (np.abs(found) > 2.58).mean() < 0.03
    assert np.std(np.array(found)[:, 0]) == pytest.approx(1.0, abs=0.2)


def test_networks_have_a_say_only_where_what_tells_of_missingness_is_given():
    _, stack = exact_stack()
    stack = replace(stack, drivers=np.array([True, False, False]))
    target, given = np.concatenate([masks(pattern) for pattern in PATTERNS], axis=1)
    has_say = dict(zip(PATTERNS, stack.has_say(target, given), strict=True))
    assert has_say == {
        "marginal": False,
        "marginal of two": False,
        "one given one": True,
        "one given two": True,
        "two given one": False,
    }
    # Of targets among which it is, the references tell of it, and networks of the others given it.
    reduced = stack.with_drivers_given(*masks("marginal of two"))
    assert [part[0].tolist() for part in reduced] == [[False, False, True], [True, False, False]]


def test_draws_are_of_the_law_that_is_scored_where_what_tells_of_missingness_is_missing():
    """It is drawn from the references, and the other columns are by the denoisers, given it."""
    experts, stack = exact_stack()
    truth = mixture()
    # Of the references only the first column is right.
    means = np.column_stack([truth.means[:, 0], np.full((2, 2), 30.0)])
    wrong = GaussianMixtureReference(truth.log_weights.exp(), means, np.eye(3)[None].repeat(2, 0))
    stack = replace(stack, drivers=np.array([True, False, False]))
    model = replace(experts, parts=ReferenceMixture([1.0], [wrong]), patterns=stack)
    drawn = model.complete(np.full((1, 3), NAN), 800, 0)[:, 0]
    rows = model.space.rows(model.space.standardized(drawn))[0]
    exact = truth.sample(20_000, np.random.RandomState(0))
    sides = [rows, exact]
    for projection in (*np.eye(3), [1.0, -1.0, 0.5], [1.0, 1.0, 1.0]):
        assert stats.ks_2samp(*(side @ projection for side in sides)).pvalue > 0.01
    # The draws of a row, here with the third column given, do not depend on the other rows.
    holes = np.full((40, 3), NAN)
    holes[:, 2] = np.linspace(-1.0, 1.0, 40)
    holes[::3, 0] = 0.5
    together = model.complete(holes, 3, 0)
    alone = model.complete(holes[[17]], 3, 0)
    np.testing.assert_array_equal(alone[:, 0], together[:, 17])


@pytest.mark.slow
def test_mean_is_that_of_the_population_with_networks_too():
    """The mean of the entries that are left is -0.43; 0.05 is what the design of the fit allows."""
    X = hidden_at_random(4_000)
    settings = QUICK | {"experts": "auto", "max_epochs": 20}
    density = IMMSEDensity(**settings).fit(X)
    if density._model.patterns is not None:
        assert density._model.patterns.drivers.tolist() == [True, False]
    second = density.marginal([1])
    assert abs(second.sample(20_000, random_state=0).mean()) < 0.08
    completed = density._model.complete(X, 1, 0)[0]
    assert abs(completed[:, 1].mean()) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_conditionals_of_a_normal_distribution(share):
    """Closed forms of any conditional, within 0.05 nats in the mean."""
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]])
    truth = GaussianReference(np.zeros(3), covariance)
    X, new = (rng.multivariate_normal(np.zeros(3), covariance, size=n) for n in (3_000, 400))
    X[rng.random(X.shape) < share] = NAN
    density = IMMSEDensity(**QUICK | {"experts": "auto", "max_epochs": 12}).fit(X)
    for pattern in PATTERNS:
        target, given = masks(pattern, len(new))
        rows = np.where(target | given, new, NAN)
        columns = PATTERNS[pattern][1] or None
        found = density.score_samples(rows, given=columns)
        expected = conditional_log_density(truth, rows, target, given)
        assert abs(found.mean() - expected.mean()) < 0.05


@pytest.mark.slow
def test_holes_are_learned_around():
    """Networks that are trained on observed entries are better than the references."""
    X, new = curved_rows(3_000), curved_rows(300, seed=1)
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.2, NAN, X)
    settings = QUICK | {"max_epochs": 20}
    density = IMMSEDensity(**settings).fit(holes)
    assert not density._model.patterns.drivers.any()
    references = IMMSEDensity(**settings | {"max_epochs": 0, "experts": ["gaussian"]}).fit(holes)
    gain = density.score_samples(new) - references.score_samples(new)
    assert gain.mean() > 0.3
    truth = curved_log_density(new).mean()
    assert truth - 0.5 < density.score(new, given=[0, 2]) < truth + 0.05
    observed = np.where(np.random.default_rng(2).random(new.shape) < 0.3, NAN, new)
    gained = density.score(observed) - references.score(observed)
    assert gained > 0.1
    # Samples are those of the networks.
    drawn = density.sample(500, random_state=0)
    assert np.corrcoef(drawn[:, 0] ** 2, drawn[:, 1])[0, 1] > 0.6
    # The validation bound is that of observed parts.
    again = np.where(np.random.default_rng(3).random(new.shape) < 0.2, NAN, new)
    error = np.hypot(density.entropy_std_, density.score_samples(again).std() / np.sqrt(300))
    assert abs(density.entropy_ + density.score(again)) < 4.0 * error


@pytest.mark.slow
def test_columns_may_come_in_any_order():
    X, new = curved_rows(1_500), curved_rows(200, seed=1)
    settings = QUICK | {"max_epochs": 15}
    order = [2, 0, 1]
    first = IMMSEDensity(**settings).fit(X).score(new, given=[0])
    second = IMMSEDensity(**settings).fit(X[:, order]).score(new[:, order], given=[1])
    assert abs(first - second) < 0.15


def test_patterns_of_one_row_have_noise_of_their_own(curved):
    """Else weights would be judged on the noise that they are fitted to, where states are few."""
    model = curved._model
    rows = WeightedRows(np.tile(model.space.standardized(curved_rows(1)), (4, 1)), np.ones(4))
    target = np.ones(rows.X.shape, dtype=bool)
    chosen = pattern_stacking.PatternRows(rows, target, ~target)
    gram = pattern_stacking.profile_of_parts(model.patterns, model, chosen).gram
    assert all(len(np.unique(part)) == 4 for part in gram[:, :, 0, 0])


def test_classes_without_rows_have_no_rule(monkeypatch, curved):
    monkeypatch.setattr(pattern_stacking, "MIN_ROWS_OF_A_CLASS", 10**6)
    model = curved._model
    rows = WeightedRows(curved_rows(40), np.ones(40))
    split = MappedSplit(model.space, rows, rows, np.zeros(40))
    found, gains = pattern_stacking.fit_pattern_stack(model, model.parts, model.expert_names, split)
    assert found is None
    assert not any(each.is_used or each.n_rows for each in gains)
    assert np.isnan([each.gain for each in gains]).all()
