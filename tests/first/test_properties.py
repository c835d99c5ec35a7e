"""Laws for whatever table and parameters: a result that keeps them, or an error with its cause.

Each law is tried on a few fixed examples, and in the slow suite on many that differ each time.
"""

import itertools
import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first.schedules import (
    LogisticSchedule,
    TruncatedNormalSchedule,
    UniformSchedule,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def law(few, many):
    """Return a decorator that makes two tests of a law: of few examples, and a slow one of many."""

    def decorate(function):
        def check(case):
            with warnings.catch_warnings():
                for message in DOCUMENTED_WARNINGS:
                    warnings.filterwarnings("ignore", message, UserWarning)
                # scikit-learn looks for infinities in the sum of all numbers.
                warnings.filterwarnings("ignore", "invalid value .* in reduce", RuntimeWarning)
                function(case)

        strategy = st.deferred(lambda: CASES[function.__name__])
        quick = settings(max_examples=few, derandomize=True, **COMMON)(given(strategy)(check))
        slow = settings(max_examples=many, **COMMON)(given(strategy)(check))

        @pytest.mark.parametrize(
            "examples",
            [pytest.param(quick, id="few"), pytest.param(slow, id="many", marks=pytest.mark.slow)],
        )
        def test(examples):
            examples()

        return test

    return decorate


#: What the estimators say about tables that they nevertheless fit.
DOCUMENTED_WARNINGS = [
    "There are fewer than 40",
    r"Column\(s\) .* (are constant|have many equal)",
    r"experts names .*, which are not possible for these rows",
    r"(reference|preconditioner)='\w+' is not better than",
    r"false_alarm_rate=.* needs at least",
]

QUICK = {"max_epochs": 0, "score_tol": 0.5, "random_state": 0}
TINY_NETWORK = {
    "max_epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "hidden_size": 8,
    "n_blocks": 1,
}

# -- tables ----------------------------------------------------------------------------------

#: Columns by what is odd about them; each is made of a generator and a number of rows.
CONTINUOUS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "skewed": lambda rng, n: rng.lognormal(sigma=2.0, size=n),
    "counts": lambda rng, n: rng.poisson(3.0, n).astype(float),
    "point mass": lambda rng, n: np.where(rng.random(n) < 0.4, 0.0, rng.normal(size=n)),
    "two values": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "constant": lambda rng, n: np.full(n, rng.normal()),
    "nearly constant": lambda rng, n: 1.0 + 1e-13 * rng.normal(size=n),
    "one far value": lambda rng, n: np.where(np.arange(n) == 0, 1e9, rng.normal(size=n)),
}
DISCRETE = {
    "integers": lambda rng, n: rng.integers(0, 4, n),
    "one integer": lambda rng, n: np.full(n, 7),
    "booleans": lambda rng, n: rng.random(n) < 0.3,
    "texts": lambda rng, n: rng.choice(["red", "blue", "a longer text", ""], n),
    "rare category": lambda rng, n: np.where(np.arange(n) == 0, "rare", "usual"),
    "missing texts": lambda rng, n: rng.choice(np.array(["x", "y", None], dtype=object), n),
    "unordered": lambda rng, n: pd.Categorical(rng.choice(list("abc"), n), list("abcd")),
    "ordered": lambda rng, n: pd.Categorical(
        rng.choice(["low", "high"], n), ["low", "middle", "high"], ordered=True
    ),
    "halves": lambda rng, n: rng.integers(0, 3, n) / 2,
}


@dataclass
class Case:
    """A table, weights and parameters; ``cause`` is a pattern of the error that they have to give.

    With no cause the fit has to succeed.
    """

    X: object
    weight: np.ndarray | None = None
    parameters: dict = field(default_factory=dict)
    cause: str | None = None

    @property
    def n_rows(self):
        return len(self.X)

    @property
    def used(self):
        """Numbers of the rows of positive weight; the others are not fitted."""
        return np.arange(self.n_rows) if self.weight is None else np.flatnonzero(self.weight)

    def rows(self, index):
        """Return some rows in the same container."""
        if isinstance(self.X, pd.DataFrame):
            return self.X.iloc[index]
        return [self.X[i] for i in index] if isinstance(self.X, list) else self.X[index]

    def fit(self, estimator, index=None, weight=None):
        """Return the estimator fitted to some of the rows, all by default."""
        if index is None:
            index, weight = np.arange(self.n_rows), self.weight
        arguments = {} if weight is None else {"sample_weight": weight}
        return estimator.fit(self.rows(index), **arguments)


def fitted_or_refused(case, estimator):
    """Return the fitted estimator, or None if it was refused for the right cause."""
    if case.cause is not None:
        with pytest.raises((ValueError, TypeError)) as error:
            case.fit(estimator)
        assert re.search(case.cause, str(error.value)), error.value
        return None
    try:
        return case.fit(estimator)
    except FloatingPointError:
        # The documented end of a training whose first epoch was lost.
        assert case.parameters.get("max_epochs", 0) > 0
        return None


def containers(values):
    """Return a strategy of containers of the same numbers."""
    finite32 = np.isfinite(np.float32(np.clip(values, -3e38, 3e38))).all()
    makers = [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: pd.DataFrame(x, columns=[f"column {j}" for j in range(x.shape[1])]),
        lambda x: x.astype(object),
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
        read_only,
    ]
    if finite32 and np.abs(values).max(initial=0.0) < 3e38:
        makers.append(lambda x: x.astype(np.float32))
    return st.sampled_from(makers).map(lambda make: make(values))


def read_only(x):
    """Return a copy that must not be written to."""
    x = x.copy()
    x.setflags(write=False)
    return x


@st.composite
def numbers(draw, least_rows=2):
    """Draw a table of finite numbers: of odd columns in odd units, or of any numbers at all."""
    if draw(st.integers(0, 3)) == 0:
        shape = draw(st.tuples(st.integers(least_rows, 50), st.integers(1, 3)))
        any_number = st.floats(allow_nan=False, allow_infinity=False, width=64)
        return draw(arrays.arrays(np.float64, shape, elements=any_number))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    n_rows = draw(st.sampled_from([2, 5, 30, 50, 80]).filter(lambda n: n >= least_rows))
    names = draw(st.lists(st.sampled_from(sorted(CONTINUOUS)), min_size=1, max_size=4))
    columns = []
    for name in names:
        unit = 10.0 ** draw(st.sampled_from([0, 0, 0, 6, -6, 40, -40, 290, -300]))
        shift = draw(st.sampled_from([0.0, 0.0, 1.0, -1e4]))
        columns.append((CONTINUOUS[name](rng, n_rows) + shift) * unit)
    X = np.column_stack(columns)
    copies = draw(st.sampled_from([0, 0, n_rows // 2]))
    X[:copies] = X[n_rows - copies :]
    return X


@st.composite
def weights(draw, n_rows):
    """Draw weights, or None, and whether they are all zero."""
    kind = draw(
        st.sampled_from([*["none"] * 3, "integers", "fractions", "extreme", "one", "zeros"])
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return {
        "none": None,
        "integers": np.append(rng.integers(0, 4, n_rows - 1), 1),
        "fractions": rng.uniform(0.1, 3.0, n_rows) * 10.0 ** draw(st.sampled_from([-200, 0, 200])),
        "extreme": 10.0 ** rng.integers(-45, 45, n_rows)
        * 10.0 ** draw(st.sampled_from([-200, 200])),
        "one": np.where(np.arange(n_rows) == 0, 3.0, 0.0),
        "zeros": np.zeros(n_rows),
    }[kind]


def cause_of_weights(weight):
    """Return the pattern of the error that weights have to give."""
    if weight is not None and not weight.any():
        return "sample_weight|at least one non-zero"
    return None


def some_of(choices):
    """Return a strategy of dicts with some of the parameters."""
    return st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in choices.items()}
    )


def with_network(parameters):
    """Return a strategy of parameters with or without a short training."""
    network = st.sampled_from([{}, {}, TINY_NETWORK])
    return st.builds(lambda p, n: QUICK | n | p, parameters, network)


# -- continuous columns ----------------------------------------------------------------------

DENSITY_PARAMETERS = with_network(
    some_of(
        {
            "reference": ["auto", "gaussian", "gaussian_mixture"],
            "experts": ["auto", ["gaussian"], ["network"], ["gaussian_mixture", "network"]],
            "marginals": ["auto", "standard", "quantile", "yeo_johnson"],
            "schedule": [
                "cosine",
                "ddpm_linear",
                UniformSchedule(),
                LogisticSchedule(loc=-500.0, scale=1e-3),
                TruncatedNormalSchedule(loc=1e6, scale=1e-9),
            ],
            "validation_fraction": [0.2, 0.5],
            "n_frequencies": [0, 1],
            "dropout": [0.0, 0.9],
            "weight_decay": [0.0, 10.0],
            "micro_batch_size": [1, 3],
            "early_stopping": [False],
            "score_tol": [0.5, 0.2],
        }
    )
)


@st.composite
def density_cases(draw):
    """Draw a table, weights and parameters for `IMMSEDensity`."""
    values = draw(numbers())
    weight = draw(weights(len(values)))
    cause = cause_of_weights(weight)
    if draw(st.integers(0, 9)) == 0:
        row, column = draw(st.tuples(*(st.integers(0, size - 1) for size in values.shape)))
        values[row, column] = draw(st.sampled_from([np.inf, -np.inf]))
        return Case(values, weight, draw(DENSITY_PARAMETERS), "infinity")
    return Case(draw(containers(values)), weight, draw(DENSITY_PARAMETERS), cause)


def check_scores(density, case):
    """Check that scores are numbers, and those of a row by itself."""
    scores, std = density.score_samples(case.rows(case.used), return_std=True)
    assert scores.shape == std.shape == (len(case.used),)
    assert scores.dtype == std.dtype == np.float64
    assert np.isfinite(scores).all()
    assert (std >= 0.0).all()
    backwards = density.score_samples(case.rows(case.used[::-1]))
    np.testing.assert_array_equal(backwards[::-1], scores)
    np.testing.assert_array_equal(density.score_samples(case.rows(case.used[:1])), scores[:1])
    return scores, std


def check_order_and_repetition(case, make, scores):
    """Check that rows in another order, repeated instead of weighted, give the same fit."""
    index, weight = case.used, case.weight
    are_counts = weight is None or (weight.max() < 10 and np.array_equal(weight, np.rint(weight)))
    if weight is not None and are_counts:
        index, weight = np.repeat(index, weight[index].astype(int)), None
        if len(index) < 2:
            return
    index = np.random.default_rng(0).permutation(index)
    again = case.fit(make(), index, None if weight is None else weight[index])
    # Sums of fractions depend on their order by rounding.
    tolerance = 0.0 if are_counts else 1e-6
    np.testing.assert_allclose(
        again.score_samples(case.rows(case.used)), scores, rtol=tolerance, atol=tolerance
    )


def check_entropy(density):
    """Check that the bound is a number, or unknown with its error: no rows validate few rows."""
    assert np.isfinite(density.entropy_) or np.isnan([density.entropy_, density.entropy_std_]).all()
    assert not density.entropy_std_ < 0.0


def check_curve_and_samples(density):
    """Check that errors are not negative, weights are shares and samples are rows."""
    check_entropy(density)
    weights_at_nodes = np.array(list(density.expert_weights_.values()))
    if not weights_at_nodes.size:
        with pytest.raises(ValueError, match="no error curve"):
            density.mse_curve()
        return
    assert (weights_at_nodes >= 0.0).all()
    np.testing.assert_allclose(weights_at_nodes.sum(axis=0), 1.0, rtol=1e-9)
    curve = density.mse_curve()
    for errors in (curve.model, *curve.references.values(), *curve.networks.values()):
        assert (errors >= 0.0).all()
        assert np.isfinite(errors).all()


@law(few=4, many=300)
def test_density(case):
    density = fitted_or_refused(case, IMMSEDensity(**case.parameters))
    if density is None:
        return
    scores, _ = check_scores(density, case)
    check_curve_and_samples(density)
    check_order_and_repetition(case, lambda: IMMSEDensity(**case.parameters), scores)
    drawn = density.sample(3, random_state=0)
    assert drawn.shape == (3, density.n_features_in_)
    assert not np.isnan(np.asarray(drawn, dtype=np.float64)).any()


@st.composite
def moderate_cases(draw):
    """Draw a table of few rows of usual size, in units of powers of two."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    names = draw(st.lists(st.sampled_from(["normal", "skewed", "heavy tails"]), min_size=1))
    X = np.column_stack([CONTINUOUS[name](rng, 60) for name in names[:3]])
    return Case(X, parameters=draw(DENSITY_PARAMETERS))


@law(few=2, many=100)
def test_density_in_other_units_has_their_jacobian(case):
    """Exactly, if units differ by powers of two."""
    exponents = np.array([-700, 3, 500])[: case.X.shape[1]]
    plain = fitted_or_refused(case, IMMSEDensity(**case.parameters))
    moved = fitted_or_refused(
        Case(np.ldexp(case.X, exponents), parameters=case.parameters),
        IMMSEDensity(**case.parameters),
    )
    assert (plain is None) == (moved is None)
    if plain is not None:
        expected = plain.score_samples(case.X) - np.log(2.0) * exponents.sum()
        found = moved.score_samples(np.ldexp(case.X, exponents))
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9)


@law(few=2, many=100)
def test_far_rows_score_below_all_others(case):
    # Two strata leave a far row a standard error larger than its score.
    density = fitted_or_refused(case, IMMSEDensity(**case.parameters | {"score_tol": 0.1}))
    if density is None:
        return
    width = np.ptp(case.X, axis=0)
    far = case.X.mean(axis=0) + np.array([[1e3], [1e8], [1e200]]) * width
    scores = density.score_samples(far)
    assert not np.isnan(scores).any()
    assert scores.max() < density.score_samples(case.X).mean()
    assert (np.diff(scores) < 0.0).all()


# -- discrete and mixed columns --------------------------------------------------------------

LEVEL_PARAMETERS = {
    "reference": ["auto", "independent", "latent_class"],
    "experts": ["auto", ["independent"], ["network"], ["latent_class", "network"]],
    "preconditioner": ["auto", "latent_class"],
    "loss": ["mse", "cross_entropy"],
    "handle_unknown": ["good_turing", "error"],
    "validation_fraction": [0.3],
    "score_tol": [0.3, 0.1],
}
DISCRETE_PARAMETERS = with_network(some_of(LEVEL_PARAMETERS | {"likelihood": ["immse", "path"]}))
MIXED_PARAMETERS = with_network(
    some_of(LEVEL_PARAMETERS | {"marginals": ["auto", "standard", "quantile"]})
)


@st.composite
def frames(draw, kinds):
    """Draw a data frame with columns of the kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    n_rows = draw(st.sampled_from([2, 6, 30, 50, 90]))
    names = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))
    return pd.DataFrame({f"{j} {name}": kinds[name](rng, n_rows) for j, name in enumerate(names)})


@st.composite
def level_cases(draw, kinds, parameters):
    """Draw a table with discrete columns, weights and parameters."""
    frame = draw(frames(kinds))
    weight = draw(weights(len(frame)))
    cause = cause_of_weights(weight)
    numeric = [j for j, dtype in enumerate(frame.dtypes) if dtype.kind in "if"]
    if numeric and draw(st.integers(0, 7)) == 0:
        name = frame.columns[draw(st.sampled_from(numeric))]
        frame[name] = frame[name].astype(float)
        frame.loc[len(frame) - 1, name] = np.inf
        weight = None
        cause = f"infinity.*'{name}'"
    return Case(frame, weight, draw(parameters), cause)


def check_unknown_levels(density, case):
    """Check that a category that was never seen is an error, or has a probability."""
    texts = [name for name in case.X if case.X[name].dtype.kind not in "bif"]
    if not texts:
        return
    seen = case.X if case.weight is None else case.X[np.asarray(case.weight) > 0]
    rows = seen.iloc[:2].astype({texts[0]: object})
    rows[texts[0]] = "never seen"
    if density.handle_unknown == "error":
        with pytest.raises(ValueError, match=re.escape(texts[0])):
            density.score_samples(rows)
    else:
        assert np.isfinite(density.score_samples(rows)).all()


@law(few=3, many=250)
def test_discrete_density(case):
    density = fitted_or_refused(case, IMMSEDiscreteDensity(**case.parameters))
    if density is None:
        return
    scores, std = check_scores(density, case)
    # The standard errors come from a few draws in each stratum, so they are rough themselves.
    assert (scores <= 0.05 + 10.0 * std).all()
    check_curve_and_samples(density)
    check_order_and_repetition(case, lambda: IMMSEDiscreteDensity(**case.parameters), scores)
    check_unknown_levels(density, case)
    drawn = density.sample(3, random_state=0)
    assert np.isfinite(density.score_samples(drawn)).all()


@law(few=2, many=80)
def test_probabilities_sum_to_at_most_one(case):
    density = fitted_or_refused(case, IMMSEDiscreteDensity(**case.parameters))
    if density is None:
        return
    levels = [list(values) for values in density.categories_]
    if np.prod([len(values) for values in levels]) > 500:
        return
    states = pd.DataFrame(list(itertools.product(*levels)), columns=case.X.columns, dtype=object)
    log_p, std = density.score_samples(states, return_std=True)
    # The mean of exp is raised by about half the variance.
    most = np.exp(log_p - 0.5 * std**2).sum()
    error = np.sqrt((np.exp(2.0 * log_p) * std**2).sum())
    assert most < 1.05 + 10.0 * error


@law(few=3, many=200)
def test_mixed_density(case):
    density = fitted_or_refused(case, IMMSEMixedDensity(**case.parameters))
    if density is None:
        return
    scores, _ = check_scores(density, case)
    check_curve_and_samples(density)
    check_order_and_repetition(case, lambda: IMMSEMixedDensity(**case.parameters), scores)
    check_unknown_levels(density, case)
    drawn = density.sample(3, random_state=0)
    assert list(drawn.columns) == list(case.X.columns)


# -- ensembles and outliers ------------------------------------------------------------------


@st.composite
def ensemble_cases(draw):
    """Draw a table, and the parameters of the members of an ensemble."""
    values = draw(numbers(least_rows=30))
    members = draw(st.lists(st.sampled_from([{}, TINY_NETWORK]), min_size=1, max_size=3))
    marginals = draw(st.sampled_from(["standard", "quantile"]))
    parameters = draw(
        some_of({"weights": ["stack", "select"], "include_references": [True, False]})
    )
    return Case(values, draw(weights(len(values)).filter(lambda w: w is None or w.any())), {
        "estimators": [
            (f"member {number}", IMMSEDensity(**QUICK | own, marginals=marginals))
            for number, own in enumerate(members)
        ],
        "random_state": 0,
        **parameters,
    })  # fmt: skip


@law(few=2, many=80)
def test_ensemble(case):
    ensemble = IMMSEEnsemble(**case.parameters)
    try:
        case.fit(ensemble)
    except FloatingPointError:  # the documented end of a training whose first epoch was lost
        return
    scores, _ = check_scores(ensemble, case)
    check_entropy(ensemble)
    assert all((weight >= 0.0).all() for weight in ensemble.member_weights_.values())
    check_order_and_repetition(case, lambda: IMMSEEnsemble(**case.parameters), scores)


@st.composite
def detector_cases(draw):
    """Draw a table of numbers or of anything, and the parameters of a detector."""
    parameters = draw(
        some_of(
            {
                "contamination": ["auto", 0.1, 0.5],
                "noise_floor": ["auto", None, -100.0, 100.0, [0.0, 7.0]],
                "average": [True, False],
                "trim": [0.0, 0.5],
                "false_alarm_rate": [0.01, 0.5],
            }
        )
    )
    is_table = draw(st.booleans())
    X = draw(frames(CONTINUOUS | DISCRETE)) if is_table else draw(numbers())
    return Case(X, parameters={"random_state": 0} | parameters)


@law(few=3, many=150)
def test_outlier_detector(case):
    detector = case.fit(IMMSEOutlierDetector(**case.parameters))
    scores = detector.score_samples(case.X)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(detector.score_samples(case.rows([0])), scores[:1])
    decision = detector.decision_function(case.X)
    np.testing.assert_array_equal(decision, scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(case.X), np.where(decision < 0.0, -1, 1))
    if detector.contamination == "auto":
        p_values = detector.p_values(case.X)
        assert ((p_values > 0.0) & (p_values <= 1.0)).all()
        # The order of p-values is that of scores.
        assert (np.diff(p_values[np.argsort(scores)]) >= 0.0).all()
    else:
        # Between the rows alongside the percentile, as in scikit-learn.
        assert (decision < 0.0).sum() <= np.ceil(detector.contamination * (case.n_rows - 1))
    parts = detector.explain(case.rows(np.arange(min(case.n_rows, 3))))
    assert np.isfinite(parts.to_numpy()).all()


CASES = {
    "test_density": density_cases(),
    "test_density_in_other_units_has_their_jacobian": moderate_cases(),
    "test_far_rows_score_below_all_others": moderate_cases(),
    "test_discrete_density": level_cases(DISCRETE, DISCRETE_PARAMETERS),
    "test_probabilities_sum_to_at_most_one": level_cases(DISCRETE, DISCRETE_PARAMETERS),
    "test_mixed_density": level_cases(
        {name: CONTINUOUS[name] for name in ("normal", "heavy tails", "point mass", "constant")}
        | DISCRETE,
        MIXED_PARAMETERS,
    ),
    "test_ensemble": ensemble_cases(),
    "test_outlier_detector": detector_cases(),
}


# -- parameters ------------------------------------------------------------------------------

JUNK = [
    object(),
    np.nan,
    ["nonsense"],
    "nonsense",
    -1,
    0,
    1.5,
    np.inf,
    -np.inf,
    True,
    None,
    [],
    {},
    {"nonsense": 1},
    np.array([1.0, np.nan]),
    1j,
    int,
]
ROWS = np.random.default_rng(0).normal(size=(60, 2))
LEVELS = np.random.default_rng(0).integers(0, 3, size=(60, 2))
UNTRAINED = TINY_NETWORK | QUICK
SUBJECTS = {
    "density": (IMMSEDensity(**UNTRAINED), ROWS),
    "discrete": (IMMSEDiscreteDensity(**UNTRAINED), LEVELS),
    "mixed": (IMMSEMixedDensity(**UNTRAINED), ROWS),
    "ensemble": (IMMSEEnsemble([("one", IMMSEDensity(**UNTRAINED))], random_state=0), ROWS),
    "detector": (IMMSEOutlierDetector(contamination=0.1, random_state=0), ROWS),
}
#: Callbacks are skorch's, which says itself what is wrong with them.
PARAMETERS = [
    (subject, name)
    for subject, (estimator, _) in SUBJECTS.items()
    for name in estimator.get_params(deep=False)
    if name != "callbacks"
]


@pytest.mark.parametrize(("subject", "name"), PARAMETERS)
@pytest.mark.parametrize(
    "values",
    [pytest.param(JUNK[:2], id="few"), pytest.param(JUNK, id="many", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:experts names", "ignore:.*is not better than")
@pytest.mark.changes_global_state  # one of the values is numpy's own generator
def test_junk_parameters_are_used_or_refused_by_name(subject, name, values):
    estimator, X = SUBJECTS[subject]
    for junk in values:
        changed = type(estimator)(**estimator.get_params(deep=False) | {name: junk})
        message = error_of_fit(changed, X)
        if message is None:
            assert np.isfinite(changed.score_samples(X)).all(), junk
        else:
            assert name in message or name.rstrip("s") in message, (junk, message)


def error_of_fit(estimator, X):
    """Return what the documented error of a fit says, or None if there is none."""
    try:
        estimator.fit(X)
    except (ValueError, TypeError) as error:
        return str(error)
    return None
