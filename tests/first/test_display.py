"""The pictures show the numbers that the estimators have, and change nothing else."""

import io
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.interpolate import RegularGridInterpolator
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_itdiffusion import (
    IMMSEConditionalDensity,
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
)
from sk_itdiffusion._first.display import (
    BoundHistoryDisplay,
    DensityContourDisplay,
    EnsembleWeightsDisplay,
    MSECurveDisplay,
    OutlierExplanationDisplay,
    PredictionIntervalDisplay,
    PredictiveFanDisplay,
    ProbabilityIntegralDisplay,
    SamplePairDisplay,
)
from sk_itdiffusion._first.display.marginal import averaged_conditionals
from sk_itdiffusion._first.display.style import expert_styles

plt = pytest.importorskip("matplotlib.pyplot")

pytestmark = pytest.mark.usefixtures("brief_fits")

SMALL = {
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "hidden_size": 16,
    "n_blocks": 1,
    "score_tol": 0.5,
    "random_state": 0,
}


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    ring = rng.uniform(0.0, 2.0 * np.pi, n)
    noise = 0.1 * rng.normal(size=(3, n))
    return np.column_stack([np.cos(ring), np.sin(ring), np.cos(ring) + 2.0]) + noise.T


def table(n=240):
    rng = np.random.default_rng(1)
    colour = rng.choice(["red", "green", "blue"], size=n)
    size = rng.normal(2.0 * (colour == "red"))
    frame = {"colour": colour, "size": size, "weight": size + rng.normal(size=n)}
    return pd.DataFrame(frame | {"legs": rng.integers(2, 5, n)})


@pytest.fixture(scope="module")
def density():
    return IMMSEDensity(**SMALL, n_networks=1).fit(rows(200))


@pytest.fixture(scope="module")
def plane():
    return IMMSEDensity(**SMALL, n_networks=1).fit(rows(200)[:, :2])


@pytest.fixture(scope="module")
def ensemble():
    members = [
        ("a", IMMSEDensity(**SMALL, n_networks=1)),
        ("b", IMMSEDensity(**(SMALL | {"reference": "gaussian", "random_state": 1}), n_networks=1)),
    ]
    return IMMSEEnsemble(members, random_state=0).fit(rows(200))


@pytest.fixture(scope="module")
def mixed():
    return IMMSEMixedDensity(categorical_features=["colour", "legs"], **SMALL).fit(table())


class Detector(BaseEstimator):
    """A detector whose explanations are known."""

    def fit(self, X):
        self.n_features_in_ = np.shape(X)[1]
        return self

    def explain(self, X):
        index = X.index if isinstance(X, pd.DataFrame) else None
        return pd.DataFrame(-(np.asarray(X, dtype=np.float64) ** 2), index=index)


@pytest.fixture(scope="module")
def detector():
    return Detector().fit(rows())


@pytest.fixture(scope="module")
def conditional():
    """Fit the first column given the others, by a linear model."""
    X = rows()
    return IMMSEConditionalDensity(LinearRegression(), random_state=0).fit(X[:, 1:], X[:, 0])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def all_displays(density, ensemble, mixed, detector, plane, conditional, **kwargs):
    """Draw every display once, and return them."""
    return [
        MSECurveDisplay.from_estimator(density, **kwargs),
        BoundHistoryDisplay.from_estimator(mixed, **kwargs),
        DensityContourDisplay.from_estimator(
            plane, rows()[:, :2], grid_resolution=5, n_points=9, **kwargs
        ),
        EnsembleWeightsDisplay.from_estimator(ensemble, **kwargs),
        OutlierExplanationDisplay.from_estimator(detector, rows(), 3, **kwargs),
        SamplePairDisplay.from_estimator(density, rows(), n_rows=20, **kwargs),
        PredictiveFanDisplay.from_estimator(conditional, rows()[:, 1:], 1, **kwargs),
        ProbabilityIntegralDisplay.from_estimator(
            conditional, rows()[:, 1:], rows()[:, 0], **kwargs
        ),
        PredictionIntervalDisplay.from_estimator(
            conditional, rows()[:, 1:], rows()[:, 0], **kwargs
        ),
    ]


@pytest.fixture
def fitted(density, ensemble, mixed, detector, plane, conditional):
    return density, ensemble, mixed, detector, plane, conditional


def polygon_area(collection):
    """Return the signed area of a filled shape by the shoelace formula, without orientation."""
    total = 0.0
    for path in collection.get_paths():
        x, y = path.vertices[:-1].T
        total += 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return total


# -- all displays ----------------------------------------------------------------------------


def test_given_axes_are_drawn_on_and_no_figure_is_made(fitted):
    ax = plt.figure().subplots()
    before = plt.get_fignums()
    for display in all_displays(*fitted, ax=ax):
        assert display.ax_ is ax
        assert display.figure_ is ax.figure
    assert plt.get_fignums() == before


def test_pictures_can_be_saved_and_axes_tell_their_units(fitted):
    """Warnings, such as those of labels that find no place, are errors."""
    for display in all_displays(*fitted):
        display.figure_.savefig(io.BytesIO(), format="png")
        labels = [(ax.get_xlabel(), ax.get_ylabel()) for ax in display.figure_.axes]
        assert any(any(pair) for pair in labels)
    units = {
        MSECurveDisplay: "log-SNR",
        BoundHistoryDisplay: "nats per row",
        OutlierExplanationDisplay: "nats",
        EnsembleWeightsDisplay: "log-SNR",
    }
    for display in all_displays(*fitted):
        if type(display) in units:
            text = display.ax_.get_xlabel() + display.ax_.get_ylabel()
            assert units[type(display)] in text


def test_plot_returns_the_display_and_may_be_called_again(fitted):
    for display in all_displays(*fitted):
        first = display.figure_
        assert display.plot() is display
        assert display.figure_ is not first


def test_settings_of_matplotlib_do_not_change_and_are_obeyed(fitted):
    """The guard of global state compares the settings around the test."""
    with plt.rc_context({"axes.labelcolor": "red"}):
        displays = all_displays(*fitted)
    assert displays[0].ax_.xaxis.label.get_color() == "red"
    assert plt.rcParams["axes.labelcolor"] != "red"


@pytest.mark.parametrize(
    ("display", "estimator", "arguments"),
    [
        (MSECurveDisplay, IMMSEDensity(), ()),
        (BoundHistoryDisplay, IMMSEDensity(), ()),
        (EnsembleWeightsDisplay, IMMSEEnsemble([("a", IMMSEDensity())]), ()),
        (DensityContourDisplay, IMMSEDensity(), (rows(),)),
        (OutlierExplanationDisplay, Detector(), (rows(),)),
        (SamplePairDisplay, IMMSEDensity(), (rows(),)),
        (PredictiveFanDisplay, IMMSEConditionalDensity(), (rows(), 0)),
        (ProbabilityIntegralDisplay, IMMSEConditionalDensity(), (rows(), rows()[:, 0])),
        (PredictionIntervalDisplay, IMMSEConditionalDensity(), (rows(), rows()[:, 0])),
    ],
)
def test_unfitted_estimators_are_refused(display, estimator, arguments):
    with pytest.raises(NotFittedError, match=type(estimator).__name__):
        display.from_estimator(estimator, *arguments)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("display", "needed", "arguments"),
    [
        (MSECurveDisplay, "mse_curve", ()),
        (BoundHistoryDisplay, "history_", ()),
        (EnsembleWeightsDisplay, "logsnr_", ()),
        (DensityContourDisplay, "score_samples", (rows(),)),
        (OutlierExplanationDisplay, "explain", (rows(),)),
        (SamplePairDisplay, "sample", (rows(),)),
    ],
)
def test_estimators_of_another_kind_are_refused(display, needed, arguments):
    with pytest.raises(TypeError, match=f"'{needed}'; StandardScaler"):
        display.from_estimator(StandardScaler().fit(rows()), *arguments)


def test_displays_say_how_to_install_matplotlib(monkeypatch):
    weights = EnsembleWeightsDisplay(logsnr=[0, 1], weights={"a": [1, 1]})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"EnsembleWeightsDisplay\.plot requires matplotlib") as e:
        weights.plot()
    assert 'pip install "sk_itdiffusion[plot]"' in str(e.value)
    with pytest.raises(ImportError, match=r"MSECurveDisplay\.from_estimator requires matplotlib"):
        MSECurveDisplay.from_estimator(None)


def test_experts_are_told_apart_without_colours():
    """Lines by their dashes or markers, areas by their hatches."""
    names = ["network", "gaussian", "gaussian_mixture", "latent_class", "reference"]
    styles = expert_styles([*names, "dense_network", "mine"]).values()
    assert len({(str(style.linestyle), style.marker) for style in styles}) == len(styles)
    assert len({style.hatch for style in styles}) == len(styles)
    many = expert_styles([f"member_{i}" for i in range(12)]).values()
    assert len({(style.color, style.hatch) for style in many}) == 12


def test_an_expert_looks_the_same_in_all_displays(ensemble):
    curve = MSECurveDisplay.from_estimator(ensemble)
    stack = EnsembleWeightsDisplay.from_estimator(ensemble)
    for name, area in stack.areas_.items():
        drawn = plt.matplotlib.colors.to_rgb(curve.lines_[name].get_color())
        np.testing.assert_allclose(area.get_facecolor()[0][:3], drawn)


# -- error curves ----------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["error", "gain"])
def test_curves_are_those_of_the_estimator(density, quantity):
    X = rows(40, seed=2)
    curve = density.mse_curve(X)
    display = MSECurveDisplay.from_estimator(density, X, quantity=quantity, show_stderr=True)
    errors = {**curve.references, **curve.networks}
    assert display.lines_.keys() == errors.keys() > {"gaussian", "network"}
    drawn = [(display.model_line_, curve.model)]
    drawn += [(display.lines_[name], errors[name]) for name in errors]
    for line, expected in drawn:
        x, y = line.get_data()
        np.testing.assert_array_equal(x, curve.logsnr)
        if quantity == "gain":
            expected = 0.5 * (curve.references["gaussian"] - expected)
        np.testing.assert_array_equal(y, expected)
    assert len(display.bands_) == (len(drawn) if quantity == "error" else 0)


def test_bands_are_two_standard_errors(density):
    curve = density.mse_curve()
    display = MSECurveDisplay.from_estimator(density, show_stderr=True)
    extents = display.bands_[0].get_datalim(display.ax_.transData)
    np.testing.assert_allclose(extents.ymax, (curve.model + 2 * curve.model_stderr).max())


def test_members_may_have_any_name():
    curves = {"model": [1.0, 2.0], "n": [2.0, 2.0], "what": [3.0, 3.0]}
    weights = {"model": [0.5, 0.2], "n": [0.5, 0.2], "what": [0.0, 0.6]}
    display = MSECurveDisplay(
        logsnr=[0, 1], model=[0.0, 1.0], references=curves, weights=weights
    ).plot()
    np.testing.assert_array_equal(display.lines_["model"].get_ydata(), [1.0, 2.0])
    np.testing.assert_array_equal(display.model_line_.get_ydata(), [0.0, 1.0])
    assert list(EnsembleWeightsDisplay(logsnr=[0, 1], weights=weights).plot().areas_) == [*curves]


def test_half_the_shaded_area_is_the_difference_of_entropies(ensemble):
    """The ensemble's bounds and each expert's are on the rows, noise and nodes of the curve."""
    for reference in ensemble.mse_curve().references:
        display = MSECurveDisplay.from_estimator(ensemble, reference=reference)
        difference = ensemble.member_entropies_[reference] - ensemble.entropy_
        np.testing.assert_allclose(display.information_gap, difference, atol=1e-10)


def test_gap_of_one_estimator_is_what_its_entropy_gains():
    """The same seed gives the same validation rows, whatever the experts are.

    The curve has the weights that suit these rows best, which `entropy_` does not trust.
    """
    same = SMALL | {"reference": "gaussian", "marginals": "standard"}
    gaussian = IMMSEDensity(experts=["gaussian"], **(same | {"max_epochs": 0})).fit(rows())
    density = IMMSEDensity(**same).fit(rows())
    display = MSECurveDisplay.from_estimator(density, reference="gaussian")
    assert display.information_gap > 0.01
    flattered = display.information_gap - (gaussian.entropy_ - density.entropy_)
    assert 0.0 <= flattered < density.entropy_std_


@pytest.mark.parametrize(("quantity", "share"), [("error", 0.5), ("gain", 1.0)])
def test_shaded_area_is_the_information_gap(quantity, share):
    """With curves that do not cross, the polygon itself is measured."""
    logsnr = np.array([-2.0, -1.0, 1.0, 4.0])
    model, reference = np.array([0.0, 0.5, 1.0, 2.0]), np.array([0.0, 1.0, 1.5, 2.0])
    display = MSECurveDisplay(logsnr=logsnr, model=model, references={"q": reference})
    area = polygon_area(display.plot(quantity=quantity).gap_)
    assert share * area == pytest.approx(display.information_gap)
    assert display.information_gap == pytest.approx(0.5 * (0.25 + 1.0 + 0.75))
    assert "1 nats" in display.legend_.get_texts()[-1].get_text()


def test_strip_shows_the_expert_of_most_weight(density):
    display = MSECurveDisplay.from_estimator(density)
    stretches = [(s.get_x(), s.get_x() + s.get_width(), s.get_gid()) for s in display.strip_]
    assert stretches[0][0] == density.logsnr_[0]
    assert stretches[-1][1] == pytest.approx(density.logsnr_[-1])
    for (_, stop, name), (start, _, other) in pairwise(stretches):
        assert stop == pytest.approx(start)
        assert name != other
    for node, logsnr in enumerate(density.logsnr_):
        chosen = next(name for start, stop, name in stretches if start <= logsnr <= stop + 1e-9)
        weights = {name: values[node] for name, values in density.expert_weights_.items()}
        assert weights[chosen] == max(weights.values())


def test_curves_may_be_drawn_without_weights_and_strip(density):
    curve = density.mse_curve()
    display = MSECurveDisplay(
        logsnr=curve.logsnr, model=curve.model, references=curve.references, name="mine"
    ).plot()
    assert display.strip_ == []
    assert display.legend_.get_texts()[0].get_text() == "mine"


def test_model_without_network_has_a_curve():
    plain = IMMSEDensity(max_epochs=0, random_state=0).fit(rows())
    display = MSECurveDisplay.from_estimator(plain)
    assert "network" not in display.lines_
    assert display.information_gap >= -1e-12


def test_curve_errors_name_the_argument(density):
    with pytest.raises(ValueError, match=r"reference must be one of \['gaussian'"):
        MSECurveDisplay.from_estimator(density, reference="unknown")
    with pytest.raises(ValueError, match="quantity must be one of"):
        MSECurveDisplay.from_estimator(density, quantity="area")
    with pytest.raises(ValueError, match="model must have one entry for each of the 2 nodes"):
        MSECurveDisplay(logsnr=[0, 1], model=[1, 2, 3], references={"q": [1, 2]})
    with pytest.raises(ValueError, match="logsnr must be at least two increasing numbers"):
        MSECurveDisplay(logsnr=[1, 0], model=[1, 2], references={"q": [1, 2]})
    with pytest.raises(ValueError, match="at least one curve"):
        MSECurveDisplay(logsnr=[0, 1], model=[1, 2], references={})
    with pytest.raises(ValueError, match="2 features"):
        MSECurveDisplay.from_estimator(density, rows()[:, :2])


# -- history ---------------------------------------------------------------------------------


def test_history_is_that_of_the_estimator(density):
    display = BoundHistoryDisplay.from_estimator(density)
    history = pd.DataFrame(density.history_)
    for line, name in ((display.train_line_, "train_bound"), (display.valid_line_, "valid_bound")):
        np.testing.assert_array_equal(line.get_xdata(), history["epoch"])
        np.testing.assert_array_equal(line.get_ydata(), history[name])
    best = history.loc[history["valid_bound"].idxmin()]
    assert display.best_epoch == best["epoch"]
    np.testing.assert_array_equal(
        display.best_.get_data(), [[best["epoch"]], [best["valid_bound"]]]
    )
    np.testing.assert_array_equal(display.entropy_line_.get_ydata(), [density.entropy_] * 2)
    # The network alone is another model than the finished one, and the legend says which is which.
    texts = [text.get_text() for text in display.legend_.get_texts()]
    assert (
        f"best of this network: epoch {best['epoch']:.0f}, {best['valid_bound']:.4g} nats" in texts
    )
    assert f"finished model, all experts: {density.entropy_:.4g} nats" in texts
    assert display.train_ax_ is display.ax_


def test_best_epoch_is_that_of_the_validation_rows():
    display = BoundHistoryDisplay(
        epoch=[1, 2, 3], train_bound=[3.0, 2.0, 1.0], valid_bound=[3.0, 2.5, 2.7]
    ).plot()
    np.testing.assert_array_equal(display.best_.get_data(), [[2], [2.5]])
    assert display.entropy_line_ is None


def test_cross_entropy_has_an_axis_of_its_own(mixed):
    display = BoundHistoryDisplay.from_estimator(mixed)
    assert display.train_ax_ is not display.ax_
    assert "cross-entropy" in display.train_ax_.get_ylabel()
    assert {text.get_text() for text in display.legend_.get_texts()} >= {
        "validation rows",
        "training cross-entropy (right)",
    }


def test_cross_entropy_is_only_that_of_levels():
    X = rows(100)
    without_levels = IMMSEMixedDensity(**SMALL).fit(X)
    assert BoundHistoryDisplay.from_estimator(without_levels).train_loss == "bound"
    levels = IMMSEDiscreteDensity(loss="mse", **SMALL).fit((X > 0).astype(int))
    assert BoundHistoryDisplay.from_estimator(levels).train_loss == "bound"


def test_estimators_without_history_are_refused(ensemble):
    plain = IMMSEDensity(max_epochs=0, random_state=0).fit(rows())
    with pytest.raises(ValueError, match="has no trained network"):
        BoundHistoryDisplay.from_estimator(plain)
    with pytest.raises(TypeError, match="one member of an ensemble"):
        BoundHistoryDisplay.from_estimator(ensemble)
    BoundHistoryDisplay.from_estimator(ensemble.named_estimators_["a"])
    with pytest.raises(ValueError, match="no epochs"):
        BoundHistoryDisplay(epoch=[], train_bound=[], valid_bound=[])
    with pytest.raises(ValueError, match="train_loss must be"):
        BoundHistoryDisplay(epoch=[1], train_bound=[1], valid_bound=[1], train_loss="mse")


# -- contours --------------------------------------------------------------------------------


def test_contours_are_log_densities_of_the_grid(plane):
    X = rows()[:, :2]
    display = DensityContourDisplay.from_estimator(plane, X, grid_resolution=7, margin=0.25)
    grid = np.column_stack([display.xx0.ravel(), display.xx1.ravel()])
    np.testing.assert_array_equal(display.log_density.ravel(), plane.score_samples(grid))
    width = np.ptp(X, axis=0)
    np.testing.assert_allclose(grid.min(axis=0), X.min(axis=0) - 0.25 * width)
    np.testing.assert_allclose(grid.max(axis=0), X.max(axis=0) + 0.25 * width)


def test_lines_lie_where_the_interpolated_log_density_has_their_level(plane):
    display = DensityContourDisplay.from_estimator(
        plane, rows()[:, :2], grid_resolution=12, plot_method="contour"
    )
    at = RegularGridInterpolator((display.xx1[:, 0], display.xx0[0]), display.log_density)
    n_vertices = 0
    for level, segments in zip(display.surface_.levels, display.surface_.allsegs, strict=True):
        for segment in segments:
            # Clipped: at the edge of the grid vertices are rounded.
            np.testing.assert_allclose(
                at(segment[:, ::-1].clip(*corners(display))), level, atol=1e-6
            )
            n_vertices += len(segment)
    assert n_vertices > 20


def corners(display):
    low = display.xx1[0, 0], display.xx0[0, 0]
    return low, (display.xx1[-1, -1], display.xx0[-1, -1])


def test_mesh_has_the_values_and_colours_reach_as_deep_as_asked(plane):
    display = DensityContourDisplay.from_estimator(
        plane, rows()[:, :2], grid_resolution=6, plot_method="pcolormesh", depth=4.0
    )
    np.testing.assert_array_equal(
        np.ravel(display.surface_.get_array()), display.log_density.ravel()
    )
    low, high = display.surface_.get_clim()
    assert high - low == pytest.approx(4.0)
    assert 0.0 <= high - display.log_density.max() < 0.2


def test_other_columns_are_fixed_at_given_values_or_medians(density):
    X = rows(301)
    display = DensityContourDisplay.from_estimator(density, X, columns=[2, 0], grid_resolution=4)
    median = float(np.median(X[:, 1]))
    assert display.fixed == {"x1": median}
    assert (display.xlabel, display.ylabel) == ("x2", "x0")
    assert display.ax_.get_title().replace("\xa0", " ") == f"at x1 = {median:.4g}"
    grid = np.column_stack([display.xx1.ravel(), np.full(16, median), display.xx0.ravel()])
    np.testing.assert_array_equal(display.log_density.ravel(), density.score_samples(grid))
    given = DensityContourDisplay.from_estimator(
        density, X, columns=[2, 0], fixed={1: -0.5}, grid_resolution=4
    )
    grid[:, 1] = -0.5
    np.testing.assert_array_equal(given.log_density.ravel(), density.score_samples(grid))


def test_data_frames_with_levels_have_contours(mixed):
    X = table()
    display = DensityContourDisplay.from_estimator(
        mixed, X, columns=["size", "weight"], fixed={"colour": "blue"}, grid_resolution=4
    )
    assert display.fixed == {"colour": "blue", "legs": int(np.sort(X["legs"])[119])}
    grid = pd.DataFrame(
        {
            "colour": "blue",
            "size": display.xx0.ravel(),
            "weight": display.xx1.ravel(),
            "legs": display.fixed["legs"],
        }
    )
    np.testing.assert_array_equal(display.log_density.ravel(), mixed.score_samples(grid))
    usual = DensityContourDisplay.from_estimator(mixed, X, columns=[1, 2], grid_resolution=2)
    assert usual.fixed["colour"] == X["colour"].mode()[0]


def test_frames_of_polars_and_pipelines_have_contours(plane):
    polars = pytest.importorskip("polars")
    X = rows()[:, :2]
    frame = polars.DataFrame(X, schema=["a", "b"])
    density = make_pipeline(StandardScaler(), IMMSEDensity(**(SMALL | {"max_epochs": 0}))).fit(X)
    on_array = DensityContourDisplay.from_estimator(density, X, grid_resolution=3)
    named = IMMSEDensity(**(SMALL | {"max_epochs": 0})).fit(frame)
    on_frame = DensityContourDisplay.from_estimator(named, frame, grid_resolution=3)
    assert (on_array.xlabel, on_frame.xlabel) == ("x0", "a")
    np.testing.assert_array_equal(on_array.xx0, on_frame.xx0)


def test_points_are_rows_and_only_where_they_belong(plane, density):
    X = rows()[:, :2]
    display = DensityContourDisplay.from_estimator(plane, X, grid_resolution=3, n_points=10)
    points = np.asarray(display.points_.get_offsets())
    assert len(points) == 10
    assert {tuple(point) for point in points} <= {tuple(row) for row in X}
    cut = DensityContourDisplay.from_estimator(density, rows(), grid_resolution=3)
    assert cut.points_ is None


class ExactGaussian(BaseEstimator):
    """An estimator whose density and marginals are known."""

    def __init__(self, covariance):
        self.covariance = covariance

    def fit(self, X):
        self.n_features_in_ = np.shape(X)[1]
        return self

    def score_samples(self, X):
        return stats.multivariate_normal.logpdf(X, cov=self.covariance)

    def marginal(self, display, pair):
        points = np.stack([display.xx0, display.xx1], axis=-1)
        return stats.multivariate_normal.logpdf(points, cov=self.covariance[np.ix_(pair, pair)])


CORRELATED = np.array(
    [[1.0, 0.6, 0.0, 0.3], [0.6, 2.0, -0.4, 0.0], [0, -0.4, 1, 0], [0.3, 0, 0, 1]]
)


def exact_gaussian(covariance, n=4000):
    X = np.random.default_rng(0).multivariate_normal(np.zeros(len(covariance)), covariance, n)
    return ExactGaussian(covariance).fit(X), X


@pytest.mark.parametrize("pair", [[0, 1], [3, 1]])
def test_marginal_of_a_normal_distribution_is_normal(pair):
    estimator, X = exact_gaussian(CORRELATED)
    display = DensityContourDisplay.from_estimator(
        estimator, X, columns=pair, marginal=True, n_averaged=400, grid_resolution=24
    )
    exact = estimator.marginal(display, pair)
    near = exact > exact.max() - 4.0
    deviation = (display.log_density - exact)[near]
    # Neighbouring points share their error, so that it may be beyond its standard error on all.
    assert np.sqrt(np.mean((deviation / display.log_density_std[near]) ** 2)) < 2.5
    assert np.abs(deviation).max() < 0.3


def test_standard_errors_of_marginals_are_those_of_repetitions():
    xx0, xx1 = np.meshgrid(np.linspace(-4, 4, 12), np.linspace(-6, 6, 12))
    pair = np.stack([xx0, xx1], axis=-1)
    exact = stats.multivariate_normal.logpdf(pair, cov=CORRELATED[:2, :2])
    near = exact > exact.max() - 3.0
    squares = []
    for others in exact_gaussian(CORRELATED)[1][:, 2:].reshape(80, 50, 2):
        repeated = np.broadcast_to(others[:, None, None], (50, 12, 12, 2))
        points = np.concatenate([np.broadcast_to(pair, (50, 12, 12, 2)), repeated], axis=-1)
        found = averaged_conditionals(
            stats.multivariate_normal.logpdf(points, cov=CORRELATED), xx0, xx1
        )
        squares.append(np.mean(((found.log_density - exact)[near] / found.std[near]) ** 2))
    # Were the points of a grid one, the relative standard error would be 0.16; it is less.
    assert np.mean(squares) == pytest.approx(1.0, abs=0.4)


def test_marginal_of_independent_columns_has_no_error_and_sums_to_one():
    estimator, X = exact_gaussian(np.diag([1.0, 2.0, 0.5]))
    display = DensityContourDisplay.from_estimator(estimator, X, marginal=True, n_averaged=3)
    assert display.xx0.shape == (30, 30)
    np.testing.assert_allclose(display.log_density_std, 0.0, atol=1e-7)
    density = np.exp(display.log_density)
    integral = np.trapezoid(np.trapezoid(density, display.xx0[0], axis=1), display.xx1[:, 0])
    assert integral == pytest.approx(1.0, abs=1e-12)
    # The grid reaches beyond 4000 rows, so that less than a thousandth is outside.
    np.testing.assert_allclose(display.log_density, estimator.marginal(display, [0, 1]), atol=1e-3)
    assert display.ax_.get_title() == "averaged over the other columns of 3 rows"
    assert len(display.points_.get_offsets()) == 300


def test_marginal_of_two_columns_is_their_density(plane):
    X = rows()[:, :2]
    quick = {"grid_resolution": 4}
    marginal = DensityContourDisplay.from_estimator(plane, X, marginal=True, **quick)
    cut = DensityContourDisplay.from_estimator(plane, X, **quick)
    np.testing.assert_array_equal(marginal.log_density, cut.log_density)
    assert marginal.n_averaged is marginal.log_density_std is None


def test_levels_are_averaged_out():
    """Of a mixed table: the mixture of the densities given the category, by its shares."""

    class TwoShifts(ExactGaussian):
        def score_samples(self, X):
            shifted = X[["x", "y"]].to_numpy() - 2.0 * (X["level"] == "b").to_numpy()[:, None]
            return stats.multivariate_normal.logpdf(shifted, cov=np.eye(2)) + np.log(0.25)

    rng = np.random.default_rng(0)
    level = pd.Categorical(np.repeat(["a", "b"], [60, 20]))
    frame = pd.DataFrame(rng.normal(size=(80, 2)), columns=["x", "y"]).assign(level=level)
    frame.loc[:1, ["x", "y"]] = [[-5.0, -5.0], [7.0, 7.0]]
    estimator = TwoShifts(None).fit(frame)
    display = DensityContourDisplay.from_estimator(
        estimator, frame, columns=["x", "y"], marginal=True, n_averaged=80, margin=0.0
    )
    points = np.stack([display.xx0, display.xx1], axis=-1)
    exact = 0.75 * stats.multivariate_normal.pdf(points, cov=np.eye(2))
    exact += 0.25 * stats.multivariate_normal.pdf(points - 2.0, cov=np.eye(2))
    near = exact > 1e-6
    np.testing.assert_allclose(display.log_density[near], np.log(exact)[near], atol=1e-3)


def test_coarse_grids_of_marginals_are_noticed():
    estimator, X = exact_gaussian(np.array([[1.0, 0.0, 0.999], [0.0, 1.0, 0.0], [0.999, 0.0, 1.0]]))
    with pytest.warns(
        UserWarning, match=r"too coarse .* wrong by about \d+%. Raise grid_resolution"
    ):
        DensityContourDisplay.from_estimator(estimator, X, marginal=True, grid_resolution=8)


def test_marginal_needs_density_on_the_grid():
    class Nowhere(ExactGaussian):
        def score_samples(self, X):
            return np.full(len(X), -np.inf)

    X = rows()
    with pytest.raises(ValueError, match="The density is 0 on the whole grid"):
        DensityContourDisplay.from_estimator(
            Nowhere(None).fit(X), X, marginal=True, grid_resolution=3
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"marginal": True, "fixed": {2: 0.0}}, "fixed and marginal are mutually exclusive"),
        ({"marginal": True, "n_averaged": 1}, "n_averaged must be"),
        ({"marginal": True, "n_averaged": 2.5}, "n_averaged must be"),
        ({"columns": [0]}, "two columns"),
        ({"columns": [1, 1]}, "two different columns"),
        ({"columns": [0, 3]}, "X has 3 columns"),
        ({"columns": ["a", "b"]}, "which X does not have"),
        ({"fixed": {0: 1.0}}, "one of the two drawn"),
        ({"fixed": {7: 1.0}}, "X has 3 columns"),
        ({"grid_resolution": 1}, "grid_resolution must be"),
        ({"margin": -0.1}, "margin must be"),
        ({"n_points": -1}, "at least 0"),
        ({"plot_method": "surface"}, "plot_method must be"),
        ({"depth": 0.0}, "depth must be"),
    ],
)
def test_contour_errors_name_the_argument(density, arguments, message):
    quick = {"grid_resolution": 2} | arguments
    with pytest.raises(ValueError, match=message):
        DensityContourDisplay.from_estimator(density, rows(), **quick)


def test_contours_need_the_columns_of_the_fit_and_numbers(density, mixed):
    with pytest.raises(ValueError, match="X has 2 columns, but IMMSEDensity was fitted to 3"):
        DensityContourDisplay.from_estimator(density, rows()[:, :2])
    with pytest.raises(ValueError, match="The column 'colour' has nominal categories"):
        DensityContourDisplay.from_estimator(mixed, table(), columns=["colour", "size"])
    with pytest.raises(ValueError, match="one two-dimensional shape"):
        DensityContourDisplay(xx0=[[0, 1]], xx1=[[0, 1]], log_density=[[0, 1]])


# -- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["density", "ensemble"])
def test_areas_are_the_weights_and_fill_the_picture(kind, request):
    estimator = request.getfixturevalue(kind)
    weights = estimator.expert_weights_ if kind == "density" else estimator.member_weights_
    display = EnsembleWeightsDisplay.from_estimator(estimator)
    assert list(display.areas_) == [name for name, values in weights.items() if values.any()]
    np.testing.assert_allclose(np.sum(list(display.weights.values()), axis=0), 1.0)
    total = 0.0
    for name, area in display.areas_.items():
        below, above = heights(area, estimator.logsnr_)
        np.testing.assert_allclose(above - below, weights[name], atol=1e-12)
        np.testing.assert_allclose(below, total, atol=1e-12)
        total = total + weights[name]
    np.testing.assert_allclose(total, 1.0)


def heights(area, x):
    """Return the lower and upper heights of an area at its nodes."""
    vertices = area.get_paths()[0].vertices
    at = [vertices[np.isclose(vertices[:, 0], node), 1] for node in x]
    return np.array([y.min() for y in at]), np.array([y.max() for y in at])


def test_experts_without_any_weight_are_left_out():
    weights = {"a": [0.5, 1.0], "idle": [0.0, 0.0], "b": [0.5, 0.0]}
    display = EnsembleWeightsDisplay(logsnr=[0, 1], weights=weights).plot()
    assert list(display.areas_) == ["a", "b"]
    assert [text.get_text() for text in display.legend_.get_texts()] == ["b", "a"]


def test_weights_that_are_none_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        EnsembleWeightsDisplay(logsnr=[0, 1], weights={"a": [0.5, 1.0]})
    with pytest.raises(ValueError, match="sum to 1"):
        EnsembleWeightsDisplay(logsnr=[0, 1], weights={"a": [1.5, 1.0], "b": [-0.5, 0.0]})
    with pytest.raises(ValueError, match="a must have one entry for each of the 2 nodes"):
        EnsembleWeightsDisplay(logsnr=[0, 1], weights={"a": [1.0]})
    with pytest.raises(ValueError, match="at least one expert"):
        EnsembleWeightsDisplay(logsnr=[0, 1], weights={})


# -- explanations ----------------------------------------------------------------------------


def test_bars_are_differences_from_the_median_row(detector):
    X = pd.DataFrame(rows(), columns=["a", "b", "c"], index=np.arange(300) + 1000)
    parts = detector.explain(X).to_numpy()
    display = OutlierExplanationDisplay.from_estimator(detector, X, -7)
    expected = parts[-7] - np.median(parts, axis=0)
    widths = [bar.get_width() for bar in display.bars_]
    np.testing.assert_allclose(widths, np.sort(expected))
    np.testing.assert_array_equal(display.order_, np.argsort(expected))
    ticks = [text.get_text() for text in display.ax_.get_yticklabels()]
    lowest = "abc"[display.order_[0]]
    assert ticks[0] == f"{lowest} = {X[lowest].iloc[-7]:.4g}"
    assert display.ax_.get_title().startswith("row 1293: ")
    assert f"{abs(expected.sum()):.1f} nats" in display.ax_.get_title()
    assert display.ax_.yaxis_inverted()


def test_bars_of_all_columns_add_up_to_the_score():
    contributions = np.random.default_rng(0).normal(size=30)
    display = OutlierExplanationDisplay(contributions=contributions).plot(max_columns=5)
    widths = [bar.get_width() for bar in display.bars_]
    assert len(widths) == 6
    assert sum(widths) == pytest.approx(contributions.sum())
    assert min(widths) == contributions.min()
    assert display.ax_.get_yticklabels()[-1].get_text() == "25 other columns"
    assert len(OutlierExplanationDisplay(contributions=[1, 2, 3]).plot(max_columns=2).bars_) == 3


def test_single_rows_are_explained_by_their_contributions(detector):
    display = OutlierExplanationDisplay.from_estimator(detector, np.array([[1.0, 3.0, 2.0]]))
    assert [bar.get_width() for bar in display.bars_] == [-9.0, -4.0, -1.0]
    assert display.ax_.get_title() == "row 0: score -14.0 nats"


def test_explanation_errors_name_the_argument(detector):
    frame = pd.DataFrame([[1.0, 2.0]], columns=["a", "b"])
    assert OutlierExplanationDisplay(contributions=frame).labels == ["a", "b"]
    with pytest.raises(ValueError, match="those of one row"):
        OutlierExplanationDisplay(contributions=np.ones((2, 3)))
    with pytest.raises(ValueError, match="labels must have one entry for each of the 2 columns"):
        OutlierExplanationDisplay(contributions=frame, labels=["a"])
    with pytest.raises(ValueError, match="typical must have one entry"):
        OutlierExplanationDisplay(contributions=frame, typical=[1.0])
    with pytest.raises(ValueError, match="needs typical"):
        OutlierExplanationDisplay(contributions=frame).plot(relative=True)
    with pytest.raises(ValueError, match="max_columns must be"):
        OutlierExplanationDisplay(contributions=frame).plot(max_columns=0)
    with pytest.raises(ValueError, match="among the 300 rows"):
        OutlierExplanationDisplay.from_estimator(detector, rows(), 300)


# -- pairs -----------------------------------------------------------------------------------


def test_points_are_rows_and_samples(density):
    X = rows()
    display = SamplePairDisplay.from_estimator(
        density, X, columns=[2, 0], n_rows=50, random_state=3
    )
    samples = density.sample(50, random_state=3)
    shown = np.linspace(0, 299, 50).round().astype(int)
    np.testing.assert_array_equal(display.data_points_[1, 0].get_data(), X[shown][:, [2, 0]].T)
    np.testing.assert_array_equal(display.sample_points_[1, 0].get_data(), samples[:, [2, 0]].T)
    assert display.labels == ["x2", "x0"]
    for ours, theirs in display.histograms_:
        for bars in (ours, theirs):
            counts, edges, _ = bars.get_data()
            assert counts.sum() == pytest.approx(1.0)  # no row lies beyond the bins
            np.testing.assert_array_equal(edges, ours.get_data().edges)


def test_levels_are_counted_and_stand_beside_their_place(mixed):
    X = table()
    display = SamplePairDisplay.from_estimator(mixed, X, columns=["colour", "size"], n_rows=240)
    shares = X["colour"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(display.histograms_[0][0].get_data().values, shares)
    ticks = [text.get_text() for text in display.axes_[1, 0].get_xticklabels()]
    assert ticks == list(shares.index)
    codes = np.searchsorted(shares.index, X["colour"])
    offsets = display.data_points_[1, 0].get_xdata() - codes
    assert (np.abs(offsets) < 0.5).all()
    assert (offsets < 0.0).all()
    sides = display.sample_points_[1, 0].get_xdata()
    assert (sides - np.round(sides) > 0.0).all()


def test_few_integers_stand_beside_their_place_and_have_bins_of_their_own():
    rng = np.random.default_rng(0)
    data, samples = rng.integers(0, 4, (80, 2)), rng.integers(0, 4, (80, 2))
    display = SamplePairDisplay(data=data, samples=samples).plot()
    for values, points in ((data, display.data_points_), (samples, display.sample_points_)):
        drawn = np.column_stack(points[1, 0].get_data())
        np.testing.assert_array_equal(drawn.round(), values)
        assert len(np.unique(drawn[:, 0])) == 80
    counts, edges, _ = display.histograms_[0][0].get_data()
    np.testing.assert_allclose(counts, np.bincount(data[:, 0]) / 80)
    np.testing.assert_array_equal(edges, [-0.5, 0.5, 1.5, 2.5, 3.5])


def test_points_at_two_levels_fill_a_square():
    """Positions next to two categories are independent, so that their correlation is small."""
    n = 400
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.choice(["u", "v"], n) for name in "abc"})
    frame["k"] = rng.integers(0, 3, n)
    display = SamplePairDisplay(data=frame, samples=frame.sample(frac=1.0, random_state=0)).plot()
    for points, side in ((display.data_points_, -0.22), (display.sample_points_, 0.22)):
        for i, j in zip(*np.tril_indices(4, -1), strict=True):
            offsets = np.array([x - np.round(x - side) for x in points[i, j].get_data()])
            # Of independent positions: five standard deviations.
            assert abs(np.corrcoef(offsets)[0, 1]) < 5.0 / np.sqrt(n)
            assert (np.abs(offsets - side) <= 0.8 * 0.22).all()


def test_booleans_have_their_names_and_integers_are_labelled_by_integers():
    rng = np.random.default_rng(0)
    flags = pd.DataFrame({"a": rng.random(60) < 0.3, "b": rng.random(60) < 0.6})
    display = SamplePairDisplay(data=flags, samples=flags).plot()
    display.figure_.canvas.draw()
    bottom, left = display.axes_[1, 0].get_xticklabels(), display.axes_[1, 0].get_yticklabels()
    for labels in (bottom, left):
        assert [text.get_text() for text in labels] == ["False", "True"]
    shares = display.histograms_[0][0].get_data().values
    np.testing.assert_allclose(shares, [1.0 - flags["a"].mean(), flags["a"].mean()])
    numbers = flags.astype(int)
    display = SamplePairDisplay(data=numbers, samples=numbers + 0.1).plot()
    display.figure_.canvas.draw()
    ticks = display.axes_[1, 0].get_xticks()
    np.testing.assert_array_equal(ticks, ticks.round())


def test_legend_tells_of_columns_that_are_not_drawn():
    X = np.random.default_rng(0).normal(size=(60, 8))
    density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    display = SamplePairDisplay.from_estimator(density, X, n_rows=9)
    assert display.axes_.shape == (5, 5)
    assert display.legend_.get_title().get_text() == "the first 5 of 8 columns"
    chosen = SamplePairDisplay.from_estimator(density, X, n_rows=9, columns=range(7))
    assert chosen.legend_.get_title().get_text() == ""
    assert chosen.labels == [f"x{j}" for j in range(7)]


def test_samples_do_not_depend_on_drawing(density):
    """Drawing takes no random numbers, and a seed gives the same picture."""
    first, second = (
        SamplePairDisplay.from_estimator(density, rows(), n_rows=9, random_state=1) for _ in "ab"
    )
    pd.testing.assert_frame_equal(first.samples, second.samples)


def test_an_array_of_axes_is_drawn_on():
    axes = plt.figure().subplots(2, 2)
    display = SamplePairDisplay(data=rows()[:, :2], samples=rows()[:9, :2]).plot(axes)
    assert display.axes_[1, 0] is axes[1, 0]
    assert display.axes_[0, 1] is None
    assert display.ax_ is None
    assert not axes[0, 1].axison
    free = plt.figure().add_axes((0.1, 0.1, 0.4, 0.8))
    inside = SamplePairDisplay(data=rows(), samples=rows()).plot(free)
    assert inside.axes_[2, 2].get_position().x1 == pytest.approx(0.5)
    with pytest.raises(ValueError, match="ax must be an array of shape"):
        SamplePairDisplay(data=rows(), samples=rows()).plot(axes)


def test_missing_numbers_are_not_in_pair_plots():
    data, missing = rows(), np.arange(0, len(rows()), 3)
    with_holes = pd.DataFrame(data)
    with_holes.iloc[missing, 1] = np.nan
    display = SamplePairDisplay(data=with_holes, samples=data).plot()
    complete = SamplePairDisplay(data=np.delete(data, missing, axis=0), samples=data).plot()
    for drawn, expected in zip(display.histograms_[1], complete.histograms_[1], strict=True):
        np.testing.assert_array_equal(drawn.get_data().values, expected.get_data().values)
    assert np.isnan(display.data_points_[2, 1].get_xdata()).sum() == len(missing)


def test_pair_errors_name_the_argument(density):
    with pytest.raises(ValueError, match="data has 3 columns, samples have 2"):
        SamplePairDisplay(data=rows(), samples=rows()[:, :2])
    with pytest.raises(ValueError, match="2 to 12 columns, got 1"):
        SamplePairDisplay.from_estimator(density, rows(), columns=[0], n_rows=5)
    with pytest.raises(ValueError, match="must be finite"):
        SamplePairDisplay(data=np.full((4, 2), np.nan), samples=rows()[:, :2])
    with pytest.raises(ValueError, match="labels must have one entry for each of the 3"):
        SamplePairDisplay(data=rows(), samples=rows(), labels=["a"])
    with pytest.raises(ValueError, match="n_rows must be"):
        SamplePairDisplay.from_estimator(density, rows(), n_rows=0)
    with pytest.raises(ValueError, match="X has 2 columns, but IMMSEDensity was fitted to 3"):
        SamplePairDisplay.from_estimator(density, rows()[:, :2])


# -- predictive distributions ----------------------------------------------------------------


def test_fans_show_the_quantiles_that_are_predicted(conditional):
    X = rows()[:, 1:]
    display = PredictiveFanDisplay.from_estimator(
        conditional, X, 1, row=[[0.3, 0.0]], coverages=(0.5, 0.9), grid_resolution=7
    )
    own = np.column_stack([np.full(7, 0.3), display.feature])
    expected = conditional.predict(own, quantiles=[0.05, 0.25, 0.5, 0.75, 0.95])
    shown = [display.intervals[0.9], display.intervals[0.5]]
    np.testing.assert_allclose(np.hstack(shown), expected[:, [0, 4, 1, 3]], rtol=1e-12)
    np.testing.assert_array_equal(display.line_.get_ydata(), display.median)
    np.testing.assert_allclose(display.median, expected[:, 2], rtol=1e-12)
    ends = display.intervals[0.9]
    trapezoids = (
        np.diff(display.feature)
        * (np.diff(ends, axis=1)[:-1] + np.diff(ends, axis=1)[1:])[:, 0]
        / 2.0
    )
    assert polygon_area(display.bands_[0]) == pytest.approx(trapezoids.sum(), rel=1e-9)
    with pytest.raises(ValueError, match="out of range"):
        PredictiveFanDisplay.from_estimator(conditional, X, 2)
    with pytest.raises(ValueError, match="coverages must be"):
        PredictiveFanDisplay.from_estimator(conditional, X, 1, coverages=(1.0,))
    with pytest.raises(ValueError, match="has no range"):
        PredictiveFanDisplay.from_estimator(conditional, X * [1.0, 0.0], 1)


def test_fans_hold_typical_values_of_other_columns():
    frame = table()
    estimator = IMMSEConditionalDensity(cv=2, random_state=0).fit(
        frame[["colour", "weight"]][:60], frame["size"][:60]
    )
    X = frame[["colour", "weight"]]
    display = PredictiveFanDisplay.from_estimator(estimator, X, "weight", y=frame["size"])
    held = pd.DataFrame({"colour": X["colour"].mode()[0], "weight": display.feature})
    expected = estimator.predict(held, quantiles=[0.5])[:, 0]
    np.testing.assert_allclose(display.median, expected, rtol=1e-12)
    assert (display.feature_name, display.target_name) == ("weight", "size")
    with pytest.raises(ValueError, match="must be a column of numbers"):
        PredictiveFanDisplay.from_estimator(estimator, X, "colour")


def test_bars_are_the_shares_of_the_transforms(conditional):
    X, y = rows()[:, 1:], rows()[:, 0]
    display = ProbabilityIntegralDisplay.from_estimator(conditional, X, y, n_bins=5)
    below = conditional.cdf(X, y)
    shares = [((below >= k / 5) & (below < (k + 1) / 5)).mean() for k in range(5)]
    np.testing.assert_allclose([bar.get_height() / 5 for bar in display.bars_], shares, rtol=1e-12)
    # 5 uniform bars are all in their bands in most of many draws, those of a wrong scale are not.
    uniform = np.random.default_rng(0).random((200, 1000))
    low, high = display.plot().band_.get_y(), display.band_.get_y() + display.band_.get_height()
    assert low < 1.0 < high
    band = ProbabilityIntegralDisplay(probability=uniform[0], n_bins=5).plot().band_
    low, high = band.get_y(), band.get_y() + band.get_height()
    heights = np.array([np.histogram(u, 5, (0.0, 1.0))[0] / 200.0 for u in uniform])
    inside = ((low <= heights) & (heights <= high)).mean()
    assert 0.93 < inside < 0.98
    with pytest.raises(ValueError, match="n_bins"):
        ProbabilityIntegralDisplay(probability=below, n_bins=1)


def test_intervals_that_miss_their_target_are_drawn_apart(conditional):
    X, y = rows()[:50, 1:], rows()[:50, 0]
    display = PredictionIntervalDisplay.from_estimator(conditional, X, y, coverage=0.6)
    low, high = conditional.predict_interval(X, coverage=0.6).T
    inside = (low <= y) & (y <= high)
    assert display.share_covered == inside.mean()
    for drawn, chosen in ((display.covered_, inside), (display.missed_, ~inside)):
        segments = np.array(drawn.get_segments())
        np.testing.assert_allclose(segments[:, :, 0].T, [y[chosen], y[chosen]])
        np.testing.assert_allclose(segments[:, :, 1], np.column_stack([low, high])[chosen])
    with pytest.raises(TypeError, match="'cdf'"):
        ProbabilityIntegralDisplay.from_estimator(LinearRegression().fit(X, y), X, y)
