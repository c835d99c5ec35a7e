"""The stages of a fit, each by itself: schema, split, references, stack, model."""

import dataclasses

import numpy as np
import pytest
import torch

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._fit.ensemble_model import EnsembleModel
from sk_itdiffusion._first._fit.experts import Experts, Mixing
from sk_itdiffusion._first._fit.fitting import fit_table_model
from sk_itdiffusion._first._fit.map_choice import choose_map
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.schema import KnownColumns, read_schema
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.selection import EarlierReferences, fit_references
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import split_rows
from sk_itdiffusion._first._fit.stacking import stacked_model
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._table.space import ColumnKind

pytestmark = pytest.mark.usefixtures("brief_fits")

SEEDS = Seeds(split=1, mixtures=2, network=3, scoring=4)
KINDS = [ColumnKind(), ColumnKind(), ColumnKind(3)]


def settings(**values):
    """Return the settings of a fit without networks."""
    density = IMMSEMixedDensity(max_epochs=0, random_state=0)
    density.kinds_ = ["continuous", "continuous", "nominal"]
    return density._settings().changed(**values)


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 3, n)
    x = rng.normal(4.0 * code, 1.0)
    return np.column_stack([x, rng.normal(size=n) + x, code])


def stages(values, asked, weight=None):
    """Return what each stage gives."""
    weight = np.ones(len(values)) if weight is None else weight
    schema, observed = read_schema(values, weight, KINDS, asked, SEEDS)
    rows = observed.rows.with_values(schema.space.standardized(observed.rows.X))
    train, valid = split_rows(rows, schema.space, asked, SEEDS.split, observed.groups)
    split = choose_map(schema, train, valid, asked, SEEDS.mixtures)
    split, references = fit_references(split, schema, asked, SEEDS.mixtures)
    return schema, observed, split, references


@pytest.fixture(scope="module")
def staged():
    return stages(table(), settings())


def experts_of(schema, split, references):
    return Experts(
        space=split.space,
        references=references.references,
        plain=references.plain,
        preconditioner=references.preconditioner,
        nets={},
        grid=references.grid,
        seeds=SEEDS,
        device=torch.device("cpu"),
    )


# -- schema ----------------------------------------------------------------------------------


def test_schema_standardises_distinct_rows_with_their_weights():
    values = table()
    weight = np.random.default_rng(1).integers(1, 4, len(values)).astype(float)
    schema, observed = read_schema(values, weight, KINDS, settings(), SEEDS)
    assert (schema.n_continuous, schema.has_categories, schema.has_images) == (2, True, False)
    assert schema.resolution == 0.0
    repeated = np.repeat(values, weight.astype(int), axis=0)
    standardizer = schema.space.standardizer
    np.testing.assert_allclose(standardizer.center, repeated[:, :2].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(standardizer.scale, repeated[:, :2].std(axis=0), rtol=1e-12)
    again, twice = read_schema(repeated, np.ones(len(repeated)), KINDS, settings(), SEEDS)
    assert np.array_equal(twice.rows.X, observed.rows.X)
    np.testing.assert_allclose(twice.rows.share, observed.rows.share, rtol=1e-12)
    np.testing.assert_allclose(again.space.standardizer.scale, standardizer.scale, rtol=1e-12)


def test_schema_of_an_earlier_fit_is_kept():
    schema, _ = read_schema(table(), np.ones(300), KINDS, settings(), SEEDS)
    known = KnownColumns(schema.space)
    again, _ = read_schema(2.0 * table(seed=1), np.ones(300), KINDS, settings(), SEEDS, known)
    assert again.space is schema.space
    constant = table(seed=1)
    constant[:, 1] = 0.0
    with pytest.raises(ValueError, match="warm_start requires the same columns"):
        read_schema(constant, np.ones(300), KINDS, settings(), SEEDS, known)


# -- split -----------------------------------------------------------------------------------


def test_split_divides_the_rows(staged):
    schema, observed, split, _ = staged
    parts = np.concatenate([split.train.X, split.valid.X])
    assert len(parts) == len(observed.rows)
    assert len(split.valid) == 30
    assert split.judged
    standardized = split.space.rows(schema.space.standardized(observed.rows.X))[0]
    ours, theirs = (np.unique(rows, axis=0) for rows in (parts, standardized))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_few_rows_are_not_divided():
    _, _, split, references = stages(table(30), settings())
    assert split.train is split.valid or np.array_equal(split.train.X, split.valid.X)
    assert not split.judged
    assert list(references.references) == ["independent"]


# -- references ------------------------------------------------------------------------------


def test_references_are_those_that_the_table_has(staged):
    schema, _, split, references = staged
    assert references.plain == references.preconditioner == "independent"
    assert references.control == "latent_class"  # columns depend on each other by their class
    assert np.array_equal(references.grid, references.logsnr)
    assert np.isfinite(split.optimism.families["latent_class"]).all()
    earlier = EarlierReferences(
        references.references, "independent", references.control, references.grid
    )
    _, kept = fit_references(split, schema, settings(), 99, earlier)
    assert all(kept.references[name] is r for name, r in references.references.items())
    assert kept.control == references.control


# -- stack and model -------------------------------------------------------------------------


def test_stack_lowers_the_validation_error_of_each_expert(staged):
    schema, _, split, references = staged
    model = stacked_model(
        experts_of(schema, split, references), references, split, schema, settings()
    )
    assert model.weights.shape == (len(model.logsnr), len(model.expert_names))
    np.testing.assert_allclose(model.weights.sum(axis=1), 1.0, rtol=1e-9)
    errors = np.array(list(model.curve.references.values()))
    assert (model.curve.model <= errors.min(axis=0) + 1e-9).all()
    assert np.isfinite(model.entropy)


def test_stages_one_after_the_other_are_the_fit(staged):
    """The pipeline adds nothing: the same model, number by number."""
    schema, _, split, references = staged
    alone = stacked_model(
        experts_of(schema, split, references), references, split, schema, settings()
    )

    class Fixed:
        def randint(self, high, size):
            return np.array([SEEDS.split, SEEDS.mixtures, SEEDS.network, SEEDS.scoring])

    whole = fit_table_model(table(), np.ones(300), KINDS, settings(), Fixed())
    assert whole.seeds == SEEDS
    new = table(20, seed=5)
    for ours, theirs in zip(
        alone.log_density(new, Tolerance(0.3)), whole.log_density(new, Tolerance(0.3)), strict=True
    ):
        assert np.array_equal(ours, theirs)
    assert alone.entropy == whole.entropy


def test_built_models_cannot_be_changed():
    X = np.random.default_rng(0).normal(size=(150, 2))
    density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    members = [("a", density), ("b", IMMSEDensity(max_epochs=0, random_state=1))]
    ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
    detector = IMMSEOutlierDetector(density, contamination=0.1, trim=0.0, random_state=0).fit(X)
    models = [density._model, ensemble._model, detector._score.model]
    assert [type(model) for model in models] == [TableModel, EnsembleModel, TableModel]
    for model in models:
        for each in dataclasses.fields(model):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(model, each.name, getattr(model, each.name))


def test_mixing_is_the_stack_of_its_experts(staged):
    """At a node it is the weighted mean of the predictions."""
    _, _, _, references = staged
    names = list(references.references)
    experts = {name: references.references[name].denoise for name in names}
    weights = np.random.default_rng(0).dirichlet(np.ones(len(names)), len(references.grid))
    mixing = Mixing(references.control, references.grid, names, weights)
    node = len(references.grid) // 2
    layout = references.references["independent"].layout
    z = torch.from_numpy(np.random.default_rng(1).normal(size=(5, layout.n_points)))
    logsnr = torch.full((5,), float(references.grid[node]), dtype=torch.float64)
    control, stack = mixing.paired(experts)(z, logsnr)
    expected = sum(
        w * experts[name](z, logsnr) for w, name in zip(weights[node], names, strict=True)
    )
    torch.testing.assert_close(stack, expected)
    torch.testing.assert_close(control, experts[references.control](z, logsnr))


def test_settings_are_found_in_their_stage():
    found = settings(max_epochs=7, verbose=2, marginals="standard")
    assert found.training.max_epochs == 7
    assert (found.runtime.verbose, found.model.marginals) == (2, "standard")
    with pytest.raises(TypeError, match="no settings"):
        found.changed(epochs=3)
    flat = {
        each.name: getattr(part, each.name)
        for part in (found.model, found.training, found.runtime)
        for each in dataclasses.fields(part)
    }
    assert FitSettings.of(**flat) == found
