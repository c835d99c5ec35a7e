"""Families of references: which take part in a fit, and one kept outside the package."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV

import sk_itdiffusion
from first.marks import others_slow
from first.outside import StudentTFamily, StudentTReference
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._fit.schema import Schema
from sk_itdiffusion._first._fit.selection import families_of, fit_families
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.display import MSECurveDisplay
from sk_itdiffusion._first.references import GaussianReference, ReferenceFamily
from sk_itdiffusion._first.references.families import (
    BUILT_IN_FAMILIES,
    Demand,
    FamilyContext,
    JudgedReference,
    LatentClassFamily,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

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


class ClassesAgain(LatentClassFamily):
    """The classes of the library with another seed, so that one of the two is the likelier."""

    name = "again"


class DearClasses(ClassesAgain):
    least_gain = 0.5


class NarrowClasses(ClassesAgain):
    shares_grid = False


# -- one of the user's own, from the fit to the file ---------------------------------------------


def test_family_of_ones_own_takes_part(fitted):
    assert {"gaussian", "student_t"} <= set(fitted.expert_weights_)
    assert fitted.expert_weights_["student_t"].max() > 0.1
    assert type(fitted.references_["student_t"]) is StudentTReference


def test_density_of_the_family_alone_is_that_of_its_reference():
    """And it is near the law, except for the tails beyond the nodes of the mixture."""
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


@pytest.mark.slow
def test_family_in_worker_processes():
    search = GridSearchCV(
        density(), {"experts": [["auto"], ["auto", StudentTFamily()]]}, cv=2, n_jobs=2
    )
    search.fit(rows(200))
    assert isinstance(search.best_params_["experts"][1], StudentTFamily)


@pytest.mark.slow
def test_family_in_an_ensemble_with_a_network():
    members = [
        ("student", density(StudentTFamily(), **QUICK, n_networks=1)),
        ("normal", density(reference="gaussian", max_epochs=0)),
    ]
    ensemble = IMMSEEnsemble(members, random_state=0).fit(rows(300))
    assert "student_t" in ensemble.member_weights_
    # Few rows draw the weights back to the plainest expert, so that this holds except for chance.
    assert ensemble.entropy_ <= ensemble.member_entropies_["student"] + ensemble.entropy_std_
    assert np.isfinite(ensemble.score_samples(rows(20, seed=1))).all()


def test_family_in_a_detector():
    estimator = IMMSEDensity(experts=[StudentTFamily()], marginals="standard", max_epochs=0)
    detector = IMMSEOutlierDetector(estimator, trim=0.0, contamination=0.05, random_state=0).fit(
        rows(300)
    )
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
        (["auto", StudentTFamily(), StudentTFamily()], "name 'student_t'"),
        (["auto", 3.0], "list of names from"),
        (StudentTFamily(), r"must be a list: experts=\['auto', StudentTFamily\(...\)\]"),
        (StudentTFamily, r"class StudentTFamily, .*experts=\['auto', StudentTFamily\(\)\]"),
        (["auto", StudentTFamily], r"class StudentTFamily, .*experts=\['auto', StudentTFamily"),
    ]:
        with pytest.raises(ValueError, match=message):
            IMMSEDensity(experts=experts, max_epochs=0).fit(rows(100))


def named(name, base=StudentTFamily, **attributes):
    return type("Named", (base,), {"name": name, **attributes})()


RESERVED = [
    "gaussian",
    "independent",
    "crossed_mixture",
    "latent_class",
    "network",
    "network_2",
    "networks",
]
RESERVED += ["dense_network", "model", "reference", "auto", "two__parts"]


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_stand_for_something_else_are_reserved(name):
    with pytest.raises(ValueError, match=f"name '{name}', which is reserved: Named needs another"):
        density(named(name)).fit(rows(100))
    with pytest.raises(ValueError, match=f"name '{name}', which is reserved"):
        discrete(named(name, LatentClassFamily)).fit(levels(100))


def test_families_need_a_name_that_is_kept():
    class Nameless(ReferenceFamily):
        fit = StudentTFamily.fit

    for family in (Nameless(), named(None), named(3), named("")):
        with pytest.raises(ValueError, match=r"Name.* needs a name: set its class attribute"):
            density(family).fit(rows(100))
    family = StudentTFamily()
    family.name = "other"
    with pytest.raises(ValueError, match="name 'other', but its clone 'student_t'"):
        density(family).fit(rows(100))


def test_families_that_are_needed_have_to_be_there_in_some_order():
    for families, message in [
        ([named("a", needs=("nothing",))], r"Named.needs names \['nothing'\].*'a'"),
        ([named("a", needs="gaussian")], "tuple of names of families, got 'gaussian'"),
        ([named("a", needs=("a",))], "in a cycle: a needs a"),
        ([named("a", needs=("b",)), named("b", needs=("a",))], "(a needs b|b needs a) needs"),
    ]:
        with pytest.raises(ValueError, match=message):
            density(*families).fit(rows(100))


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


def names_taking_part(*families, judged=True, **demand):
    """Return the names of the families that take part, in the order in which they are fitted."""
    schema = schema_of(density(max_epochs=0).fit(rows(100))._model)
    chosen = families_of([*BUILT_IN_FAMILIES, *families], schema, Demand(**demand), judged)
    return [family.name for family in chosen]


class ByDefaultFamily(NoisyFamily):
    """One that takes part where any control variate will do, and needs no validation rows."""

    name = "by_default"
    is_judged = False

    def by_default(self, demand):
        return demand.is_open


def test_what_needs_no_judgement_need_not_take_part():
    assert names_taking_part(ByDefaultFamily(), judged=False) == ["gaussian", "by_default"]
    assert names_taking_part(ByDefaultFamily(), reference="gaussian") == ["gaussian"]
    chosen = names_taking_part(ByDefaultFamily(), reference="gaussian", names=("by_default",))
    assert chosen == ["gaussian", "by_default"]


def test_families_that_are_needed_are_fitted_before():
    """Transitively, also for those that nobody asked for; those that are not possible are not."""
    first, last = named("first", needs=("middle",)), named("last", needs=("gaussian_mixture",))
    middle = named("middle", ByDefaultFamily, needs=("last", "latent_class"))
    chosen = names_taking_part(first, middle, last, reference="gaussian")
    assert chosen == ["gaussian", "gaussian_mixture", "last", "middle", "first"]
    chosen = names_taking_part(first, middle, last, judged=False, names=("first",))
    assert chosen == ["gaussian", "middle"]
    order = []

    class Recorded(NoisyFamily):
        def fit(self, split, context):
            order.append((self.name, tuple(sorted(context.references))))
            return super().fit(split, context)

    parts = [named("one", Recorded, needs=("two",)), named("two", Recorded)]
    density(*parts, reference="gaussian").fit(rows(100))
    assert order == [("two", ("gaussian",)), ("one", ("gaussian", "two"))]


def test_references_of_others_cannot_be_changed():
    class Meddling(NoisyFamily):
        name = "meddling"

        def fit(self, split, context):
            context.references["gaussian"] = None

    with pytest.raises(TypeError, match="does not support item assignment"):
        density(Meddling()).fit(rows(100))


def test_what_a_family_stores_does_not_change_the_parameter():
    class Storing(NoisyFamily):
        name = "storing"

        def fit(self, split, context):
            self.log_width = self.seen_ = self.log_width + 1.0
            return super().fit(split, context)

    estimator = density(Storing())
    first = estimator.fit(rows(100)).references_["storing"].covariance
    assert vars(estimator.experts[1]) == {"log_width": 1.0}
    assert np.array_equal(estimator.fit(rows(100)).references_["storing"].covariance, first)


@pytest.mark.filterwarnings("ignore:There are fewer than 40")
def test_family_that_takes_no_part_is_told_of_with_the_reason():
    class Nothing(StudentTFamily):
        name = "nothing"

        def fit(self, split, context):
            return None

    text = [[str(int(row[0])), row[1]] for row in rows(100)]
    mixed = IMMSEMixedDensity(experts=["auto", StudentTFamily()], max_epochs=0, random_state=0)
    alone = IMMSEDensity(experts=[Nothing()], max_epochs=0, random_state=0)
    silent = density(named("silent", ByDefaultFamily), reference="gaussian")
    for estimator, X, reason in [
        (mixed, text, "'student_t' .*it is made for tables whose varying columns are continuous"),
        (density(StudentTFamily()), rows(30), "'student_t' .*there are fewer than 40 rows"),
        (density(Nothing()), rows(100), "'nothing' .*not useful: its fit returned None"),
        (alone, rows(100), "'nothing' .*not useful: its fit returned None"),
        (density(HoldingFamily()), rows(100), "'holding' .*only in fits with networks"),
        (silent, rows(100), "'silent' .*by default in such a fit"),
    ]:
        with pytest.warns(UserWarning, match=f"The family {reason}") as caught:
            estimator.fit(X)
        assert sum("The family" in str(each.message) for each in caught) == 1
        assert not any("experts names" in str(each.message) for each in caught)


def test_built_in_family_that_is_asked_for_in_vain_gives_its_reason():
    X = np.random.default_rng(0).normal(size=(60, 20))  # for two components too few
    names = ["gaussian", "gaussian_mixture"]
    with pytest.warns(UserWarning, match="'gaussian_mixture', it is, .*than one normal distrib"):
        IMMSEDensity(experts=names, max_epochs=0, random_state=0).fit(X)
    text = [[str(int(row[0])), row[1]] for row in rows(100)]
    experts = ["independent", "gaussian"]
    with pytest.warns(UserWarning, match="'gaussian', it is made for tables without discrete"):
        IMMSEMixedDensity(experts=experts, max_epochs=0, random_state=0).fit(text)


class ReturningFamily(ReferenceFamily):
    """One that returns what it has been given."""

    name = "returning"

    def __init__(self, value):
        self.value = value

    def fit(self, split, context):
        return self if isinstance(self.value, str) else self.value

    def __sklearn_clone__(self):
        return self


def normal(d=2, **methods):
    """Return a normal distribution of which some methods return something else."""
    cls = type("Wrong", (GaussianReference,), methods)
    return cls(np.zeros(d), np.eye(d))


def changed(method, change):
    return {method: lambda self, *args: change(getattr(GaussianReference, method)(self, *args))}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "an object of type int"),
        (np.zeros(2), "an object of type ndarray"),
        (GaussianReference, "the class GaussianReference"),
        (GaussianMixture(2), "an object of type GaussianMixture"),
        ("itself", "an object of type ReturningFamily"),
        (normal(3), "n_features is 3, but the rows of this table are points of 2"),
        (normal(**changed("log_prob", torch.mean)), r"log_prob must .* of shape \(\)"),
        (normal(**changed("log_prob", lambda x: x[:, None])), r"log_prob must .*shape \(8, 1\)"),
        (normal(**changed("log_prob", torch.Tensor.float)), "log_prob must .*got torch.float32"),
        (normal(**changed("log_prob", torch.Tensor.numpy)), "log_prob must .*of type ndarray"),
        (normal(**changed("log_prob", lambda x: x * torch.nan)), "log_prob must be finite .*NaN"),
        (normal(**changed("log_prob", lambda x: x - torch.inf)), "log_prob must be .*infinite"),
        (normal(**changed("denoise", lambda x: x[:, 0])), r"denoise must .*of shape \(8,\)"),
        (normal(**changed("denoise", lambda x: x * torch.nan)), "denoise must be finite .*NaN"),
        (normal(variance_range=lambda self: (0.0, 1.0)), "variance_range must return a positive"),
        (normal(variance_range=lambda self: (1.0, np.inf)), "variance_range must return a"),
        (normal(logsnr_range=lambda self, _: (np.nan, 1.0)), "logsnr_range must return two fin"),
    ],
)
def test_what_a_family_returns_has_to_be_a_reference_of_the_table(value, message):
    with pytest.raises((TypeError, ValueError), match=f"ReturningFamily.fit .*{message}"):
        density(ReturningFamily(value)).fit(rows(100))


def test_how_far_a_choice_flatters_is_a_number_for_each_validation_row():
    class Flattered(NoisyFamily):
        name = "flattered"

        def fit_judged(self, split, context):
            return JudgedReference(self.fit(split, context), np.zeros(3))

    class Bare(NoisyFamily):
        name = "bare"
        fit_judged = NoisyFamily.fit

    with pytest.raises(ValueError, match=r"Flattered.fit_judged .*optimism of shape \(10,\)"):
        density(Flattered()).fit(rows(100))
    with pytest.raises(TypeError, match=r"Bare.fit_judged must return a JudgedReference"):
        density(Bare()).fit(rows(100))


@pytest.mark.slow
def test_family_that_holds_rows_is_fitted_anew_and_does_not_rank_them():
    estimator = density(HoldingFamily(), **QUICK, warm_start=True).fit(rows(300))
    assert "holding" in estimator.references_
    kept, held = (estimator.references_[name] for name in ("gaussian", "holding"))
    estimator.fit(rows(300, seed=1))
    assert estimator.references_["gaussian"] is kept
    assert estimator.references_["holding"] is not held
    detector = IMMSEOutlierDetector(
        density(HoldingFamily(), **QUICK), contamination=0.1, trim=0.0, random_state=0
    )
    with pytest.warns(UserWarning, match="'holding' .* will be ranked among themselves"):
        detector.fit(rows(150))
    assert "holding" not in detector.estimator_.references_


def test_family_that_gains_less_than_it_costs_is_left_out():
    assert "dear" not in density(DearFamily()).fit(rows()).references_
    listed = IMMSEDensity(experts=["gaussian", DearFamily()], max_epochs=0, random_state=0)
    assert "dear" in listed.set_params(marginals="standard").fit(rows()).references_


def levels(n=450, seed=0):
    """Return rows of four columns that mostly are the same of three categories."""
    rng = np.random.default_rng(seed)
    common, other = rng.integers(0, 3, n)[:, None], rng.integers(0, 3, (n, 4))
    return np.where(rng.random((n, 4)) < 0.8, common, other)


def discrete(*experts, **parameters):
    settings = {"max_epochs": 0, "random_state": 0, "score_tol": 0.5} | parameters
    return IMMSEDiscreteDensity(experts=["auto", *experts], **settings)


@pytest.mark.parametrize("seed", others_slow(range(3)))
def test_family_that_gains_too_little_may_have_been_the_control_variate(seed, usual_fits):
    """It leaves the density that there is without it: on some of the seeds it is the likeliest."""
    X = levels(seed=seed)
    without = discrete().fit(X)
    dear = discrete(DearClasses()).fit(X)
    assert "again" in discrete(ClassesAgain()).fit(X).expert_weights_
    assert list(dear.references_) == list(without.references_)
    assert np.array_equal(dear.score_samples(X), without.score_samples(X))


def test_family_beyond_the_grid_of_networks_may_have_no_range_of_its_own():
    """Categories alone say how far the log-SNR goes."""
    model = discrete(NarrowClasses()).fit(levels())._model
    assert "again" in model.references
    assert np.array_equal(model.grid, model.logsnr)


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
    all_mixed = ["independent", "gaussian_mixture", "latent_class", "crossed_mixture"]
    assert names(mixed) == all_mixed
    assert names(mixed, reference=None) == ["independent"]
    asked = {"reference": None, "automatic": False, "names": ("latent_class",)}
    assert names(mixed, **asked) == ["independent", "latent_class"]


def schema_of(model):
    step = np.zeros(model.space.layout.n_continuous)
    return Schema(model.space, step, model.dequantizer, model.has_images, model.device)
