"""Families of references: which take part in a fit, and one kept outside the package."""

import pickle

import numpy as np
import pytest
import torch
from outside import StudentTFamily, StudentTReference
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import sk_itdiffusion
from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion._fit.schema import Schema
from sk_itdiffusion._fit.selection import families_of, fit_families
from sk_itdiffusion._fit.splitting import MappedSplit
from sk_itdiffusion._table.rows import WeightedRows
from sk_itdiffusion.display import MSECurveDisplay
from sk_itdiffusion.references import GaussianReference, ReferenceFamily
from sk_itdiffusion.references.families import BUILT_IN_FAMILIES, Demand, FamilyContext

LAW = stats.multivariate_t([5.0, -3.0], [[2.0, 0.8], [0.8, 1.0]], df=2.5)
QUICK = {"hidden_size": 8, "max_epochs": 1, "steps_per_epoch": 5, "batch_size": 64}


def rows(n=500, seed=0):
    return LAW.rvs(n, random_state=seed)


def density(*experts, **parameters):
    """Return an estimator without maps, which would take the heavy tails away."""
    settings = {"marginals": "standard", "max_epochs": 0, "random_state": 0} | parameters
    return IMMSEDensity(experts=["auto", *experts], **settings)


@pytest.fixture(scope="module")
def fitted():
    return density(StudentTFamily()).fit(rows())


class NoisyFamily(ReferenceFamily):
    """A normal distribution that is wider by chance."""

    name = "noisy"

    def __init__(self, log_width=1.0):
        self.log_width = log_width

    def fit(self, split, context):
        train = split.continuous_train
        normal = GaussianReference.fit(train.X, train.weight)
        factor = np.exp(self.log_width * context.random_state.uniform(0.5, 1.5))
        return GaussianReference(normal.mean, factor * normal.covariance)


class HoldingFamily(NoisyFamily):
    name = "holding"
    holds_rows = True


class DearFamily(StudentTFamily):
    name = "dear"
    least_gain = 50.0


class NarrowFamily(NoisyFamily):
    name = "narrow"
    shares_grid = False


# -- one of the user's own, from the fit to the file ---------------------------------------------


def test_family_of_ones_own_takes_part(fitted):
    assert {"gaussian", "student_t"} <= set(fitted.expert_weights_)
    assert fitted.expert_weights_["student_t"].max() > 0.1
    assert type(fitted.references_["student_t"]) is StudentTReference


def test_density_of_the_family_alone_is_that_of_its_reference():
    """And it is near the law, but for the tails beyond the nodes of the mixture."""
    alone = IMMSEDensity(experts=[StudentTFamily()], marginals="standard", max_epochs=0)
    alone.set_params(random_state=0).fit(rows(2000))
    assert list(alone.expert_weights_) == ["student_t"]
    new = rows(1000, seed=1)
    standardizer = alone._model.space.standardizer
    standardized = torch.from_numpy((new - standardizer.center) / standardizer.scale)
    expected = alone.reference_.log_prob(standardized) - np.log(standardizer.scale).sum()
    found = alone.score_samples(new)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    near = LAW.logpdf(new) > -8.0
    assert abs((found - LAW.logpdf(new))[near].mean()) < 0.1


def test_family_is_a_parameter(fitted, tmp_path):
    """Clones, pickles, warm starts and files know it."""
    new = rows(20, seed=1)
    expected = fitted.score_samples(new)
    assert np.array_equal(clone(fitted).fit(rows()).score_samples(new), expected)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.score_samples(new), expected)
    again.set_params(warm_start=True).fit(rows())
    with pytest.raises(ValueError, match="experts changed"):
        again.set_params(experts=["auto", StudentTFamily(degrees=(3.0,))]).fit(rows())
    fitted.save(tmp_path / "model")
    missing = r"classes=\[StudentT(Family|Reference), StudentT(Family|Reference)\]"
    with pytest.raises(ValueError, match=missing):
        sk_itdiffusion.load(tmp_path / "model")
    classes = [StudentTFamily, StudentTReference]
    loaded = sk_itdiffusion.load(tmp_path / "model", classes=classes)
    assert np.array_equal(loaded.score_samples(new), expected)
    assert loaded.experts[1].degrees == (2.5, 4.0, 8.0)


def test_family_in_worker_processes():
    search = GridSearchCV(
        density(), {"experts": [["auto"], ["auto", StudentTFamily()]]}, cv=2, n_jobs=2
    )
    search.fit(rows(200))
    assert isinstance(search.best_params_["experts"][1], StudentTFamily)


def test_family_in_an_ensemble_with_a_network():
    members = [
        ("student", density(StudentTFamily(), **QUICK)),
        ("normal", density(reference="gaussian", max_epochs=0)),
    ]
    ensemble = IMMSEEnsemble(members, random_state=0).fit(rows(300))
    assert "student_t" in ensemble.member_weights_
    assert ensemble.entropy_ <= ensemble.member_entropies_["student"]
    assert np.isfinite(ensemble.score_samples(rows(20, seed=1))).all()


def test_family_in_a_detector():
    detector = IMMSEOutlierDetector(
        density(StudentTFamily()), trim=0.0, contamination=0.05, random_state=0
    ).fit(rows(300))
    assert "student_t" in detector.members_
    X = np.vstack([rows(10, seed=1), [[60.0, -60.0]]])
    scores = detector.score_samples(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), scores, rtol=1e-9)
    assert scores.argmin() == len(X) - 1


def test_family_in_a_display(fitted):
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = MSECurveDisplay.from_estimator(fitted)
    labels = [text.get_text() for text in shown.ax_.get_legend().get_texts()]
    plt.close(shown.figure_)
    assert any("student_t" in label for label in labels)


# -- which take part -----------------------------------------------------------------------------


def test_names_of_experts_are_checked():
    for experts, message in [
        (["auto", "nothing"], "list of names from"),
        ([], "list of names from"),
        ([type("Double", (StudentTFamily,), {"name": "gaussian"})()], "name 'gaussian'"),
        (["auto", StudentTFamily(), StudentTFamily()], "name 'student_t'"),
    ]:
        with pytest.raises(ValueError, match=message):
            IMMSEDensity(experts=experts, max_epochs=0).fit(rows(100))


def test_families_have_seeds_of_their_own():
    """Whichever is fitted first, references are the same, bit by bit."""
    X = np.vstack([rows(200), rows(200, seed=1) + 30.0])
    model = density().fit(X)._model
    mapped = WeightedRows(model.space.standardized(X), np.ones(len(X)))
    split = MappedSplit(model.space, mapped, mapped.take(np.arange(100)), np.zeros(100))
    context = FamilyContext(schema_of(model))
    families = [*families_of(BUILT_IN_FAMILIES, context.schema, Demand()), NoisyFamily()]
    forwards, _ = fit_families(families[:2] + families[3:], split, context, 7)
    backwards, _ = fit_families([families[3], *families[:2]], split, context, 7)
    assert list(backwards) == ["noisy", "gaussian", "gaussian_mixture"]
    for name, reference in forwards.items():
        for ours, theirs in zip(reference.buffers(), backwards[name].buffers(), strict=True):
            assert np.array_equal(ours, theirs)
    others, _ = fit_families([families[3]], split, context, 8)
    assert not np.array_equal(others["noisy"].covariance, forwards["noisy"].covariance)


def test_family_that_holds_rows_is_fitted_anew_and_does_not_rank_them():
    estimator = density(HoldingFamily(), **QUICK, warm_start=True).fit(rows(300))
    assert "holding" in estimator.references_
    kept, held = (estimator.references_[name] for name in ("gaussian", "holding"))
    estimator.fit(rows(300, seed=1))
    assert estimator.references_["gaussian"] is kept
    assert estimator.references_["holding"] is not held
    detector = IMMSEOutlierDetector(density(HoldingFamily(), **QUICK), random_state=0)
    assert "holding" not in detector.fit(rows(150)).estimator_.references_


def test_family_that_gains_less_than_it_costs_is_left_out():
    assert "dear" not in density(DearFamily()).fit(rows()).references_
    listed = IMMSEDensity(experts=["gaussian", DearFamily()], max_epochs=0, random_state=0)
    assert "dear" in listed.set_params(marginals="standard").fit(rows()).references_


def test_grid_of_networks_need_not_reach_as_far_as_a_reference():
    narrow = density(NarrowFamily(log_width=-12.0), **QUICK).fit(rows(300))
    model = narrow._model
    assert len(model.grid) < len(model.logsnr)
    assert np.array_equal(model.logsnr[: len(model.grid)], model.grid)
    embedding = narrow.net_.module_.denoiser.embedding
    assert float(embedding.middle + embedding.half_width) == pytest.approx(model.grid[-1])


def test_families_that_take_part_follow_from_the_table_and_the_demand():
    X = rows(100)
    continuous = density(max_epochs=0).fit(X)._model
    table = IMMSEMixedDensity(max_epochs=0, random_state=0)
    mixed = table.fit([[str(int(row[0])), row[1]] for row in X])._model

    def names(model, judged=True, **demand):
        schema = schema_of(model)
        chosen = families_of(BUILT_IN_FAMILIES, schema, Demand(**demand), judged)
        return [family.name for family in chosen]

    everything = ["gaussian", "gaussian_mixture", "kernel_density"]
    assert names(continuous) == everything
    assert names(continuous, judged=False) == ["gaussian"]
    assert names(continuous, with_networks=False) == everything[:2]
    assert names(continuous, ranks_training_rows=True) == everything[:2]
    assert names(continuous, reference="gaussian") == ["gaussian"]
    assert names(continuous, reference="kernel_density") == everything
    assert names(mixed) == ["independent", "gaussian_mixture", "latent_class"]
    assert names(mixed, reference=None) == ["independent"]
    asked = {"reference": None, "automatic": False, "names": ("latent_class",)}
    assert names(mixed, **asked) == ["independent", "latent_class"]


def schema_of(model):
    step = np.zeros(model.space.layout.n_continuous)
    return Schema(model.space, step, model.dequantizer, model.has_images, model.device)
