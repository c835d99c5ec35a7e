"""The contract of all references, each against sums over a grid of rows.

A reference is summed over all states of its discrete columns and a fine grid of its continuous
ones.  On the grid the log-density, the denoiser, the smoothed density and the samples have an
oracle that knows nothing of the reference but its log-density.
"""

import collections
import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from seeds import shifted

from first.outside import StudentTReference
from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._fit.experts import Mixing
from sk_itdiffusion._first._fit.grids import logsnr_range
from sk_itdiffusion._first._immse.likelihood import StackedDenoiser
from sk_itdiffusion._first._immse.places import EVALUATIONS_IN_A_TILE, SINGLE_APART
from sk_itdiffusion._first.channel import add_noise, noise_from_data
from sk_itdiffusion._first.layout import Layout, Variable, lattice_values
from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder
from sk_itdiffusion._first.references import (
    ContinuousReference,
    CrossedMixtureReference,
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    PlainReference,
    Reference,
    ReferenceFamily,
    ReferenceMixture,
)
from sk_itdiffusion._first.references.judging import conditional_log_likelihoods, log_likelihoods

pytestmark = pytest.mark.usefixtures("brief_fits")

MIXTURE = ([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0], [0, 1.0]]])
VARIABLES = [Variable(2, lattice_values(2, 0.5, 0.5)), Variable(3), Variable(4, np.arange(4) - 1.0)]
PROBABILITIES = [[0.4, 0.6], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]]


def mixture(d):
    """Return a mixture of one or two columns."""
    weights, means, covariances = (np.array(part) for part in MIXTURE)
    return GaussianMixtureReference(weights, means[:, :d], covariances[:, :d, :d])


def kernels(d):
    points = np.random.default_rng(shifted(0)).normal(size=(12, d))
    weights = np.arange(1.0, 13.0)
    return KernelDensityReference(points, 0.1 * np.eye(d) + 0.02, mixture(d), 0.3, weights)


def classes(n_continuous):
    rng = np.random.default_rng(shifted(1))
    tables = [rng.dirichlet(np.ones(len(p)), size=2) for p in PROBABILITIES]
    continuous = mixture(n_continuous) if n_continuous else None
    return LatentClassReference(Layout(n_continuous, VARIABLES), [0.3, 0.7], tables, continuous)


def crossed(d):
    """Return two classes crossed with the two components of d columns, and a wide one."""
    weights, means, covariances = (np.array(part) for part in MIXTURE)
    continuous = GaussianMixtureReference(
        [*(0.9 * weights), 0.1],
        np.vstack([means[:, :d], np.zeros((1, d))]),
        np.concatenate([covariances[:, :d, :d], 1.5 * np.eye(d)[None]]),
        n_wide=1,
    )
    return CrossedMixtureReference(classes(0), continuous, [[1.8, 0.3, 1.0], [0.2, 2.5, 0.7]])


def independent(continuous):
    n_continuous = 0 if continuous is None else continuous.n_features
    return IndependentReference(Layout(n_continuous, VARIABLES), PROBABILITIES, continuous)


REFERENCES = {
    "normal": lambda: GaussianReference([0.5, -0.5], [[1.0, 0.6], [0.6, 0.8]]),
    "normal, one column": lambda: GaussianReference([0.5], [[0.7]]),
    "mixture": lambda: mixture(2),
    "kernels": lambda: kernels(2),
    "kernels, one column": lambda: kernels(1),
    "low rank": lambda: LowRankGaussianReference([0.2, 0.0], [[0.6], [0.8]], [1.5], 0.4),
    "Student t, of the user's own": lambda: StudentTReference(
        [0.2, -0.1], [[0.3, 0.1], [0.1, 0.2]], 5.0
    ),
    "independent": lambda: independent(None),
    "independent alongside a normal column": lambda: independent(GaussianReference([0.5], [[0.7]])),
    "independent alongside a column of low rank": lambda: independent(
        LowRankGaussianReference([0.2], [[1.0]], [1.5], 0.4)
    ),
    "independent alongside a mixture": lambda: independent(mixture(1)),
    "classes": lambda: classes(0),
    "classes with a continuous column": lambda: classes(1),
    "classes crossed with components": lambda: crossed(1),
    "mixture of references": lambda: ReferenceMixture(
        [0.2, 0.5, 0.3], [REFERENCES["normal"](), mixture(2), kernels(2)]
    ),
    "mixture of references of mixed columns": lambda: ReferenceMixture(
        [0.4, 0.6], [independent(GaussianReference([0.5], [[0.7]])), classes(1)]
    ),
}


@dataclass(frozen=True)
class Grid:
    """All rows of a grid, their points, and the probability of each under a reference."""

    reference: Reference
    rows: torch.Tensor
    points: torch.Tensor
    probability: torch.Tensor
    n_continuous: int

    @classmethod
    def of(cls, reference):
        layout = getattr(reference, "layout", None) or Layout(reference.n_features)
        n_steps = {0: 1, 1: 801, 2: 201}[layout.n_continuous]
        axes = [np.linspace(-7.0, 7.0, n_steps)] * layout.n_continuous
        axes += [np.arange(variable.n_categories) for variable in layout.variables]
        rows = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1)
        rows = torch.from_numpy(rows.astype(np.float64))
        cell = (14.0 / (n_steps - 1)) ** layout.n_continuous if layout.n_continuous else 1.0
        probability = reference.log_prob(rows).exp() * cell
        return cls(reference, rows, layout.embed(rows), probability, layout.n_continuous)

    def joint(self, z, logsnr):
        """Return p(row) p(z | row) up to a factor of z, (B, n_rows)."""
        signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
        squares = (z[:, None] - signal[:, None, None] * self.points).square().sum(2)
        return self.probability * (-0.5 * squares / noise[:, None]).exp()


@pytest.fixture(scope="module", params=list(REFERENCES))
def grid(request):
    return Grid.of(REFERENCES[request.param]())


def noisy_points(grid, level, n=8):
    """Return rows of the grid, drawn at random, with noise, and the category of each."""
    rng = np.random.default_rng(shifted(2))
    chosen = rng.choice(len(grid.rows), size=n, p=(grid.probability / grid.probability.sum()))
    eps = torch.from_numpy(rng.normal(size=(n, grid.points.shape[1])))
    logsnr = torch.full((n,), level, dtype=torch.float64)
    return grid.rows[chosen], eps, add_noise(grid.points[chosen], eps, logsnr), logsnr


def test_total_is_one(grid):
    assert grid.probability.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("level", [-3.0, 0.5, 3.0])
def test_denoiser_is_the_conditional_mean(grid, level):
    _, _, z, logsnr = noisy_points(grid, level)
    joint = grid.joint(z, logsnr)
    mean = joint @ grid.points / joint.sum(1, keepdim=True)
    expected = noise_from_data(z, mean, logsnr)
    torch.testing.assert_close(grid.reference.denoise(z, logsnr), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", [-3.0, 0.5, 3.0])
def test_smoothed_density_is_the_mean_over_the_noise(grid, level):
    """For continuous columns a density of rows plus noise; for categories relative to the noise."""
    rows, eps, z, logsnr = noisy_points(grid, level)
    signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
    expected = grid.joint(z, logsnr).sum(1).log()
    m = grid.n_continuous
    # The density of z / signal, of which rows plus noise of variance exp(-category) are an example.
    expected += m * (signal.log() - 0.5 * (2 * math.pi * noise).log())
    expected += 0.5 * eps[:, m:].square().sum(1)
    found = grid.reference.smoothed_log_prob(rows, eps, level)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_noise_the_smoothed_density_is_the_density(grid):
    rows, eps, _, _ = noisy_points(grid, 0.0)
    found = grid.reference.smoothed_log_prob(rows, eps, math.inf)
    torch.testing.assert_close(found, grid.reference.log_prob(rows))


@pytest.mark.parametrize("level", [-3.0, 0.5, 3.0])
def test_moments_are_those_of_the_noise_given_the_noisy_row(grid, level):
    """Whether they are known in closed form, or come from the denoiser as they do by default."""
    rows, eps, z, logsnr = noisy_points(grid, level)
    joint = grid.joint(z, logsnr)
    posterior = joint / joint.sum(1, keepdim=True)
    signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    leading = (z[:, None] - signal[:, None, None] * grid.points) / noise[:, None, None]
    mean = (posterior[:, :, None] * leading).sum(1)
    square = (posterior[:, :, None] * leading.square()).sum(1)
    with torch.no_grad():  # as scores are calculated
        for found in (
            grid.reference.noise_moments(rows, eps, level),
            Reference.noise_moments(grid.reference, rows, eps, level),
        ):
            torch.testing.assert_close(found, (mean, square), rtol=1e-5, atol=2e-5)
            assert not any(part.requires_grad for part in found)


def test_strong_smoothing_leaves_one_mode(grid):
    rows = grid.rows[::7]
    found = grid.reference.modes(rows, 100.0)
    assert found is None or (found.shape == (len(rows),) and len(np.unique(found)) == 1)


def test_samples_have_the_frequencies(grid):
    check_frequencies(grid, grid.reference.sample(20_000, np.random.RandomState(shifted(0))))


def check_frequencies(grid, drawn):
    """Counts in cells of the grid by a chi-squared test; cells that expect few samples are one."""
    n_samples = len(drawn)
    # Edges lie midway between points of the grid, whose sums are then accurate to its square.
    places = np.unique(grid.rows[:, : grid.n_continuous])
    edges = 0.5 * (places[1:] + places[:-1])[:: max(1, len(places) // 25)]

    def cells(rows):
        binned = [np.digitize(column, edges) for column in rows[:, : grid.n_continuous].T]
        codes = np.rint(rows[:, grid.n_continuous :]).astype(int).T
        return list(zip(*binned, *codes, strict=True))

    expected = collections.Counter()
    for cell, p in zip(cells(grid.rows.numpy()), grid.probability.tolist(), strict=True):
        expected[cell] += n_samples * p
    counts = collections.Counter(cells(drawn))
    plenty = [cell for cell, number in expected.items() if number >= 10.0]
    observed = np.array([counts[cell] for cell in plenty])
    wanted = np.array([expected[cell] for cell in plenty])
    observed = np.append(observed, n_samples - observed.sum())
    wanted = np.append(wanted, max(n_samples - wanted.sum(), 1.0))
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_rows_do_not_depend_on_each_other(grid):
    rows, _, z, logsnr = noisy_points(grid, 1.0)
    together = grid.reference.denoise(z, logsnr)
    alone = torch.cat([grid.reference.denoise(z[i : i + 1], logsnr[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    one = torch.cat([grid.reference.log_prob(row[None]) for row in rows])
    torch.testing.assert_close(grid.reference.log_prob(rows), one, rtol=1e-12, atol=1e-12)


def test_background_is_denoised_on_the_way(grid):
    _, _, z, logsnr = noisy_points(grid, 1.0)
    background = grid.reference.shared_background
    noise, of_background = grid.reference.denoise_with_background(z, logsnr)
    assert torch.equal(noise, grid.reference.denoise(z, logsnr))
    assert (of_background is None) == (background is None)
    if background is not None:
        torch.testing.assert_close(of_background, background.denoise(z, logsnr))


def test_single_precision_is_near(grid):
    _, _, z, logsnr = noisy_points(grid, 1.0)
    single = copy.deepcopy(grid.reference).float()
    found = single.denoise(z.float(), logsnr.float())
    assert found.dtype == torch.float32
    expected = grid.reference.denoise(z, logsnr)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_sizes_are_told(grid):
    assert 1 <= grid.reference.n_fused <= grid.reference.n_intermediate
    assert grid.reference.n_features == grid.points.shape[1]


CONTINUOUS = [name for name, make in REFERENCES.items() if isinstance(make(), ContinuousReference)]
PLAIN = ["normal", "normal, one column", "low rank"]
PLAIN += ["independent", "independent alongside a normal column"]
PLAIN += ["independent alongside a column of low rank"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_standardised_reference_moves_by_the_jacobian(name):
    reference = REFERENCES[name]()
    d = reference.n_features
    center, scale = np.linspace(-1.0, 2.0, d), np.full(d, 3.0)
    X = np.random.default_rng(shifted(3)).normal(size=(6, d))
    moved = reference.standardized(center, scale)
    found = moved.log_prob(torch.from_numpy((X - center) / scale))
    expected = reference.log_prob(torch.from_numpy(X)) + np.log(scale).sum()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_variance_range_holds_all_directions(name):
    """The greatest is that of the whole, the least no more than that of any direction."""
    reference = REFERENCES[name]()
    drawn = reference.sample(50_000, np.random.RandomState(shifted(0)))
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(drawn.T)))
    least, greatest = reference.variance_range()
    assert greatest == pytest.approx(variances[-1], rel=0.05)
    assert 0.0 < least <= 1.05 * variances[0]


# -- evaluations in batches ------------------------------------------------------------------


def narrow_kernels():
    """Return kernels most of which are far from any point."""
    points = np.random.default_rng(shifted(0)).normal(size=(700, 2))
    return KernelDensityReference(points, 1e-3 * np.eye(2), mixture(2), 0.1)


class Wrapped(ContinuousReference):
    """A reference of the user's own, which evaluates another one and says what that one says."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.n_features = inner, inner.n_features

    @property
    def looks_at_tiles(self):
        return self.inner.looks_at_tiles

    @property
    def shared_background(self):
        return self.inner.shared_background

    def denoise_with_background(self, z, logsnr):
        return self.inner.denoise_with_background(z, logsnr)

    def denoise(self, z, logsnr):
        return self.denoise_with_background(z, logsnr)[0]

    def log_prob(self, x):
        return self.inner.log_prob(x)

    def smoothed_log_prob(self, rows, eps, logsnr):
        return self.inner.smoothed_log_prob(rows, eps, logsnr)

    def sample(self, n_samples, random_state):
        return self.inner.sample(n_samples, random_state)

    def standardized(self, center, scale):
        return Wrapped(self.inner.standardized(center, scale))

    def variance_range(self):
        return self.inner.variance_range()


class WrappedKernels(ReferenceFamily):
    name = "wrapped"

    def fit(self, split, context):
        points = split.continuous_train.X
        unit = np.eye(points.shape[1])
        normal = GaussianMixtureReference([1.0], 0.0 * unit[:1], unit[None])
        return Wrapped(KernelDensityReference(points, 1e-3 * unit, normal, 0.1))


MANY = {
    **REFERENCES,
    "narrow kernels": narrow_kernels,
    "independent alongside narrow kernels": lambda: independent(narrow_kernels()),
    "narrow kernels, of the user's own": lambda: Wrapped(narrow_kernels()),
}


def is_alone_in_its_batch(reference, n_together):
    """Return whether a row's predictions are the same to the last bit wherever it is in a batch.

    Each row has so many of its points.
    """
    rng = np.random.default_rng(shifted(4))
    n_rows = 256 // n_together
    rows = torch.from_numpy(reference.sample(n_rows, np.random.RandomState(shifted(0))))
    x = reference.points_of(rows).repeat_interleave(n_together, 0)
    level = torch.full((256,), 5.0, dtype=torch.float64)
    z = add_noise(x, torch.from_numpy(rng.normal(size=x.shape)), level)
    order = torch.from_numpy(rng.permutation(n_rows))
    places = (order[:, None] * n_together + torch.arange(n_together)).flatten()
    found = reference.denoise(z[places], level)
    return torch.equal(found, reference.denoise(z, level)[places])


@pytest.mark.parametrize("name", list(MANY))
def test_points_beside_a_row_change_it_only_in_references_that_look_at_tiles(name):
    reference = MANY[name]()
    assert is_alone_in_its_batch(reference, EVALUATIONS_IN_A_TILE)
    if "narrow" in name:
        assert reference.looks_at_tiles
        assert not is_alone_in_its_batch(reference, SINGLE_APART)
    if not reference.looks_at_tiles:
        assert is_alone_in_its_batch(reference, SINGLE_APART)


def test_rows_have_tiles_of_their_own_in_models_that_look_at_them():
    X = np.random.default_rng(shifted(5)).normal(size=(100, 2))
    density = IMMSEDensity(
        experts=["gaussian"], marginals="standard", max_epochs=0, random_state=shifted(0)
    )
    assert density.fit(X)._model.evaluations_apart == SINGLE_APART
    density.set_params(experts=["gaussian", WrappedKernels()]).fit(X)
    assert density._model.evaluations_apart == EVALUATIONS_IN_A_TILE


def test_background_that_is_an_expert_is_evaluated_once(monkeypatch):
    control = Wrapped(narrow_kernels())
    experts = {"mixture": mixture(2), "wrapped": control}
    nodes, weights = np.linspace(-4.0, 8.0, 7), np.tile([0.4, 0.6], (7, 1))
    rng = np.random.default_rng(shifted(6))
    z, logsnr = (torch.from_numpy(part) for part in (rng.normal(size=(64, 2)), np.zeros(64)))
    expected = StackedDenoiser(experts, nodes, weights).paired_with(control)(z, logsnr)
    asked = []
    plain = GaussianMixtureReference.density_and_noise
    monkeypatch.setattr(
        GaussianMixtureReference,
        "density_and_noise",
        lambda self, *args: asked.append(self) or plain(self, *args),
    )
    found = Mixing("wrapped", nodes, list(experts), weights).paired(experts)(z, logsnr)
    assert len(asked) == 1
    assert all(torch.equal(one, same) for one, same in zip(found, expected, strict=True))


# -- modes -----------------------------------------------------------------------------------


def test_components_are_one_mode_unless_there_is_a_valley_between_them():
    """Two normal components of one variance have a valley if they are some deviations apart."""
    means = np.array([[-4.0], [-3.5], [4.0]])
    mixture = GaussianMixtureReference([0.3, 0.3, 0.4], means, np.ones((3, 1, 1)))
    rows = torch.tensor([[-5.0], [-4.0], [-3.0], [3.0], [6.0]], dtype=torch.float64)
    first, *others = mixture.modes(rows, 0.0)
    assert [mode == first for mode in others] == [True, True, False, False]
    grid = torch.linspace(-6.0, 6.0, 1201, dtype=torch.float64)[:, None]
    for variance in (0.0, 2.0, 8.0, 30.0):
        heights = mixture.component_log_prob(grid, variance).logsumexp(1)
        between = heights[(grid[:, 0] > -3.5) & (grid[:, 0] < 4.0)].min()
        peaks = mixture.component_log_prob(torch.from_numpy(means), variance).logsumexp(1)
        depth = float(peaks[1:].min() - between)
        assert abs(depth - 1.0) > 0.05  # the threshold is not the question here
        assert len(np.unique(mixture.modes(rows, variance))) == (2 if depth > 1.0 else 1)


# -- ranges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [0.0, 0.01, 3.0])
def test_range_of_several_references_is_that_of_their_variances(resolution):
    """To the last bit: nodes of fits are placed in this range."""
    chosen = [REFERENCES[name]() for name in CONTINUOUS]
    variances = [reference.variance_range() for reference in chosen]
    low = -math.log(max(greatest for _, greatest in variances)) - 4.0
    high = float(np.clip(-math.log(min(least for least, _ in variances)) + 6.9, 10.0, 18.0))
    if resolution > 0.0:
        high = min(high, -2.0 * math.log(0.5 * resolution))
    expected = low, max(high, low + 4.0)
    assert logsnr_range([*chosen, independent(None)], resolution) == expected


def test_range_is_that_of_the_continuous_columns(grid):
    found = grid.reference.logsnr_range(0.1)
    assert (found is None) == (grid.n_continuous == 0)
    if isinstance(grid.reference, ReferenceMixture):
        low, high = zip(*(r.logsnr_range(0.1) for r in grid.reference.references), strict=True)
        assert found == (min(low), max(high))
    elif found is not None:
        continuous = getattr(grid.reference, "continuous", grid.reference)
        assert found == continuous.logsnr_range(0.1)
        # At both ends a normal distribution of any of the variances is known.
        _, greatest = continuous.variance_range()
        assert greatest * math.exp(found[0]) < 0.02
        assert found[1] == pytest.approx(-2.0 * math.log(0.05))


# -- parts of rows ---------------------------------------------------------------------------


def knows_parts(grid):
    if isinstance(grid.reference, StudentTReference):
        pytest.skip("knows nothing of parts of rows")
    return grid.reference


def proper_parts(n_columns):
    """Yield all proper parts of the columns, and the other columns."""
    for size in range(1, n_columns):
        for columns in map(list, itertools.combinations(range(n_columns), size)):
            yield columns, [j for j in range(n_columns) if j not in columns]


def with_holes(rows, share=0.5, seed=7):
    rng = np.random.default_rng(seed)
    holes = torch.from_numpy(rng.uniform(size=rows.shape) < share)
    return rows.masked_fill(holes, torch.nan)


def uniform_numbers(reference, n_rows, seed=8):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(size=(n_rows, reference.n_columns + 2)))


def test_marginal_is_the_sum_over_the_other_columns(grid):
    """The grid ends at 7, and sums over it are accurate to 1e-6 as its total is."""
    reference = knows_parts(grid)
    step = 14.0 / (len(np.unique(grid.rows[:, 0])) - 1)
    for columns, _ in proper_parts(reference.n_columns):
        marginal = reference.marginal(columns)
        assert marginal.n_columns == len(columns)
        kept, place = torch.unique(grid.rows[:, columns], dim=0, return_inverse=True)
        total = torch.zeros(len(kept), dtype=torch.float64)
        total.index_add_(0, place, grid.probability)
        cell = step ** sum(j < grid.n_continuous for j in columns)
        torch.testing.assert_close(marginal.log_prob(kept).exp() * cell, total, rtol=0, atol=1e-6)
        assert marginal.sample(3, np.random.RandomState(shifted(0))).shape == (3, len(columns))


def test_marginal_and_conditional_make_the_joint(grid):
    """In parts of both too, whose order does not matter."""
    reference = knows_parts(grid)
    rows = noisy_points(grid, 1.0)[0]
    close = {"rtol": 0.0, "atol": 1e-8}
    for columns, others in proper_parts(reference.n_columns):
        marginal = reference.marginal(columns)
        for row in rows[:1]:
            conditional = reference.given(columns, row[columns].numpy())
            found = marginal.log_prob(row[None, columns]) + conditional.log_prob(row[None, others])
            torch.testing.assert_close(found, reference.log_prob(row[None]), **close)
            for inner, rest in proper_parts(len(others)):
                # Given some columns, the marginal of others, and given more columns, the same.
                part = [others[j] for j in inner]
                found = conditional.marginal(inner).log_prob(row[None, part])
                more = [others[j] for j in rest]
                both = sorted(columns + part)
                expected = reference.marginal(both).log_prob(row[None, both])
                expected -= marginal.log_prob(row[None, columns])
                torch.testing.assert_close(found, expected, **close)
                twice = conditional.given(inner, row[part].numpy()).log_prob(row[None, more])
                once = reference.given(both, row[both].numpy()).log_prob(row[None, more])
                torch.testing.assert_close(twice, once, **close)
        for inner, _ in proper_parts(len(columns)):
            part = [columns[j] for j in inner]
            found = marginal.marginal(inner).log_prob(rows[:, part])
            torch.testing.assert_close(found, reference.marginal(part).log_prob(rows[:, part]))


def test_density_of_the_observed_part_is_that_of_the_marginal(grid):
    reference = knows_parts(grid)
    rows = with_holes(noisy_points(grid, 1.0, n=64)[0])
    found = reference.observed_log_prob(rows)
    for row, value in zip(rows, found, strict=True):
        kept = np.flatnonzero(~row.isnan()).tolist()
        expected = reference.marginal(kept).log_prob(row[None, kept]) if kept else torch.zeros(1)
        torch.testing.assert_close(value[None], expected.double(), rtol=0, atol=1e-10)
        assert kept or value == 0.0


def given_entries(rows, seed=11):
    """Return some of the observed entries of rows."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(size=rows.shape) < 0.5) & ~rows.isnan()


def test_density_of_a_part_given_another_is_that_of_the_conditional(grid):
    reference = knows_parts(grid)
    rows = with_holes(noisy_points(grid, 1.0, n=24)[0], 0.25)
    given = given_entries(rows)
    found = reference.conditional_log_prob(rows, given)
    by_default, _ = Reference._log_prob_given(reference, rows.numpy(), given.numpy())[::-1]
    np.testing.assert_allclose(found.numpy(), by_default, rtol=0, atol=1e-9)
    nothing = torch.full_like(rows, torch.nan)
    marginal = reference.observed_log_prob(torch.where(given, rows, nothing))
    torch.testing.assert_close(marginal + found, reference.observed_log_prob(rows))
    torch.testing.assert_close(
        reference.conditional_log_prob(rows, torch.zeros_like(given)),
        reference.observed_log_prob(rows),
    )
    assert not reference.conditional_log_prob(rows, ~rows.isnan()).any()
    order = np.random.default_rng(shifted(10)).permutation(len(rows))
    X, mask = rows.numpy(), given.numpy()
    alone = [conditional_log_likelihoods(reference, X[[i]], mask[[i]]) for i in order]
    together = conditional_log_likelihoods(reference, X[order], mask[order])
    np.testing.assert_array_equal(together, np.concatenate(alone))
    with pytest.raises(ValueError, match="must have numbers where entries are given"):
        reference.conditional_log_prob(nothing[:1], ~given[:1] | given[:1])


@pytest.mark.parametrize("far", [1e4, -1e9, 1e100])
def test_density_given_what_is_far_out_is_one_in_total(grid, far):
    """Over all states of the other columns, or a fine grid around draws of the other one."""
    reference = knows_parts(grid)
    if grid.n_continuous == 0 or reference.n_columns == 1:
        pytest.skip("no column is continuous, or there is no other one")
    rows, step = grid.rows[grid.rows[:, 0] == grid.rows[0, 0]], 1.0
    if grid.n_continuous == 2:
        middle = np.median(
            reference.given([0], [far]).sample(101, np.random.RandomState(shifted(0)))
        )
        if abs(middle) > 1e10:
            pytest.skip("numbers are farther apart than the density is wide")
        rows, step = rows.repeat(20, 1), 24.0 / (20 * len(rows) - 1)
        rows[:, 1] = torch.linspace(-12.0, 12.0, len(rows), dtype=torch.float64) + middle
    rows = torch.cat([torch.full_like(rows[:, :1], far), rows[:, 1:]], dim=1)
    given = torch.zeros_like(rows, dtype=torch.bool)
    given[:, 0] = True
    total = step * reference.conditional_log_prob(rows, given).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-4)


def test_points_with_conditionals_of_their_own_are_denoised_one_by_one(grid):
    reference = knows_parts(grid)
    rows, _, _, logsnr = noisy_points(grid, 1.0, n=2)
    layout = getattr(reference, "layout", None) or Layout(reference.n_features)
    rng = np.random.default_rng(shifted(3))
    parts = [([], list(range(reference.n_columns))), *proper_parts(reference.n_columns)]
    for columns, others in parts[::3] + parts[1:2]:
        points = layout.part(others).embed(rows[:, others])
        z = add_noise(points, torch.from_numpy(rng.normal(size=points.shape)), logsnr)
        values = rows[:, columns].numpy()
        found = reference.given_each(columns, values)(z, logsnr)
        each = [reference.given(columns, value) for value in values]
        expected = torch.cat([one(z[[i]], logsnr[[i]]) for i, one in enumerate(each)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        single = copy.deepcopy(reference.given_each(columns, values)).float()
        torch.testing.assert_close(
            single(z.float(), logsnr.float()).double(), expected, rtol=1e-3, atol=1e-3
        )


def test_rows_with_holes_do_not_depend_on_each_other_to_the_last_bit(grid):
    """Nor do complete rows among them, which have the log-density that they always have."""
    reference = knows_parts(grid)
    rows = noisy_points(grid, 1.0, n=41)[0]
    assert torch.equal(reference.observed_log_prob(rows), reference.log_prob(rows))
    holed = torch.cat([with_holes(rows, 0.5), rows[:7], with_holes(rows, 0.1, seed=9)])
    alone = np.concatenate([log_likelihoods(reference, row[None].numpy()) for row in holed])
    order = np.random.default_rng(shifted(10)).permutation(len(holed))
    found = log_likelihoods(reference, holed.numpy()[order])
    np.testing.assert_array_equal(found, alone[order])
    np.testing.assert_array_equal(found[np.argsort(order)[41:48]], alone[41:48])
    np.testing.assert_array_equal(alone[41:48], log_likelihoods(reference, rows[:7].numpy()))
    is_hole = holed.isnan().any(1)
    direct = reference.observed_log_prob(holed)
    np.testing.assert_array_equal(direct[is_hole].numpy(), alone[is_hole.numpy()])
    numbers = uniform_numbers(reference, len(holed))
    together = reference.complete(holed, numbers)
    one = torch.cat(
        [reference.complete(holed[i : i + 1], numbers[i : i + 1]) for i in range(len(holed))]
    )
    assert torch.equal(together, one)
    assert torch.equal(together[~holed.isnan()], holed[~holed.isnan()])


def test_completed_rows_are_distributed_as_all_rows(grid):
    """Entries that were drawn and are drawn anew, given the others, leave the distribution."""
    reference = knows_parts(grid)
    rows = torch.from_numpy(reference.sample(5_000, np.random.RandomState(shifted(1))))
    numbers = uniform_numbers(reference, len(rows))
    for share in (0.5, 1.1):
        drawn = reference.complete(with_holes(rows, share), numbers)
        check_frequencies(grid, drawn.numpy())


def test_parts_in_files_are_the_same_to_the_last_bit(grid):
    reference = knows_parts(grid)
    rows = noisy_points(grid, 1.0)[0]
    for columns, others in proper_parts(reference.n_columns):
        conditional = reference.given(columns, rows[0, columns].numpy())
        for part in (reference.marginal(others), conditional):
            found = stored(part)
            assert torch.equal(found.log_prob(rows[:, others]), part.log_prob(rows[:, others]))


def test_all_columns_and_no_column_are_the_reference_itself(grid):
    reference = grid.reference
    everything = list(range(reference.n_columns))
    assert reference.marginal(everything) is reference
    assert reference.given([], []) is reference
    for wrong in ([], [0, 0], [-1], [reference.n_columns], [0.5], [True]):
        with pytest.raises(ValueError, match="columns must"):
            reference.marginal(wrong)
    with pytest.raises(ValueError, match="at least one other column"):
        reference.given(everything, np.zeros(len(everything)))
    if len(everything) > 1:
        for wrong in ([], [np.nan], [np.inf], [0.0, 0.0]):
            with pytest.raises(ValueError, match="values must be 1 finite"):
                reference.given([0], wrong)
    with pytest.raises(ValueError, match="uniform must have shape"):
        reference.complete(grid.rows[:1], torch.full((1, 1), 0.5))
    with pytest.raises(ValueError, match="above 0 and below 1"):
        reference.complete(grid.rows[:1], torch.ones(1, len(everything) + 2))


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_what_is_no_code_cannot_be_given(value):
    with pytest.raises(ValueError, match="column 0 must be the code of a category, at most 1"):
        classes(0).given([0], [value])


def test_parts_far_from_all_kernels():
    """Where one side is likelier than the other by more than a number can tell."""
    reference = KernelDensityReference(
        np.zeros((3, 2)) + np.arange(3.0)[:, None], 0.01 * np.eye(2) + 0.002, mixture(2), 0.3
    )
    near_background = KernelDensityReference(
        [[0.0, 0.0]],
        np.eye(2),
        GaussianMixtureReference([1.0], [[9.0, 0.0]], [0.05 * np.eye(2)]),
        0.5,
    )
    for kernels_and_more in (reference, near_background):
        for first in (0.05, 3.0, 8.0, 20.0, -50.0):
            row = torch.tensor([[first, 0.3]], dtype=torch.float64)
            conditional = kernels_and_more.given([0], [first])
            found = kernels_and_more.marginal([0]).log_prob(row[:, :1])
            found = found + conditional.log_prob(row[:, 1:])
            expected = kernels_and_more.log_prob(row)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-8)
            assert stored(conditional).log_prob(row[:, 1:]) == conditional.log_prob(row[:, 1:])


def test_references_of_the_users_own_say_what_they_lack():
    reference = REFERENCES["Student t, of the user's own"]()
    half = torch.tensor([[0.1, torch.nan]], dtype=torch.float64)
    numbers = torch.full((1, 4), 0.3, dtype=torch.float64)
    lacks_marginal, lacks_given = (rf"define StudentTReference\.{m}" for m in ("marginal", "given"))
    with pytest.raises(TypeError, match=lacks_marginal):
        reference.marginal([0])
    with pytest.raises(TypeError, match=lacks_marginal):
        reference.observed_log_prob(half)
    with pytest.raises(TypeError, match=lacks_given):
        reference.given([0], [0.0])
    with pytest.raises(TypeError, match=lacks_given):
        reference.complete(half, numbers)
    nothing = torch.full((50, 2), torch.nan, dtype=torch.float64)
    assert reference.observed_log_prob(nothing).tolist() == [0.0] * 50
    drawn = reference.complete(nothing, uniform_numbers(reference, 50))
    assert torch.equal(reference.complete(drawn, uniform_numbers(reference, 50)), drawn)
    assert len(drawn.unique(dim=0)) == 50


@pytest.mark.parametrize("name", ["normal", "kernels"])
def test_marginal_and_given_are_all_that_parts_of_the_users_own_need(name):
    class WithParts(Wrapped):
        def marginal(self, columns):
            return self.inner.marginal(columns)

        def given(self, columns, values):
            return self.inner.given(columns, values)

    inner = REFERENCES[name]()
    own = WithParts(inner)
    grid = Grid.of(inner)
    rows = with_holes(torch.from_numpy(inner.sample(250, np.random.RandomState(shifted(1)))))
    torch.testing.assert_close(own.observed_log_prob(rows), inner.observed_log_prob(rows))
    given = given_entries(rows[:50])
    found = own.conditional_log_prob(rows[:50], given)
    torch.testing.assert_close(found, inner.conditional_log_prob(rows[:50], given))
    check_frequencies(grid, own.complete(rows, uniform_numbers(inner, len(rows))).numpy())


def test_single_precision_knows_parts(grid):
    reference = knows_parts(grid)
    single = copy.deepcopy(reference).float()
    rows = with_holes(noisy_points(grid, 1.0, n=16)[0])
    found = single.observed_log_prob(rows.float())
    assert found.dtype == torch.float32
    expected = reference.observed_log_prob(rows)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    given = given_entries(rows)
    found = single.conditional_log_prob(rows.float(), given)
    expected = reference.conditional_log_prob(rows, given)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


# -- columns by themselves -------------------------------------------------------------------


def test_plain_references():
    found = {name: make() for name, make in REFERENCES.items()}
    plain = [n for n, r in found.items() if isinstance(r, PlainReference) and r.is_plain]
    assert sorted(plain) == sorted(PLAIN)
    with pytest.raises(TypeError, match="not available for a GaussianMixtureReference"):
        found["independent alongside a mixture"].independent()


@pytest.mark.parametrize("level", [-1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", PLAIN)
def test_columns_by_themselves_have_their_marginal_density(name, level):
    """Also where the columns were made independent, and the sum over these is their density."""
    grid = Grid.of(REFERENCES[name]())
    m = grid.n_continuous
    layout = getattr(grid.reference, "layout", Layout(m))
    rows, eps, z, logsnr = noisy_points(grid, min(level, 12.0))
    found = grid.reference.column_log_prob(rows, eps, level)
    alone = grid.reference.independent()
    assert isinstance(alone, PlainReference)
    torch.testing.assert_close(alone.column_log_prob(rows, eps, level), found)
    total = alone.smoothed_log_prob(rows, eps, level)
    torch.testing.assert_close(found.sum(1), total)
    if math.isinf(level):
        return
    owner = m + layout.owners()
    owner[:m] = np.arange(m)
    signal, variance = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
    squares = (z[:, None] - signal[:, None, None] * grid.points).square() / variance[:, None, None]
    for column in range(layout.n_columns):
        here = np.flatnonzero(owner == column)
        density = (-0.5 * squares[:, :, here].sum(2)).exp() @ grid.probability
        expected = density.log()
        if column < m:
            expected += signal.log() - 0.5 * (2 * math.pi * variance).log()
        else:
            expected += 0.5 * eps[:, here].square().sum(1)
        torch.testing.assert_close(found[:, column], expected, rtol=1e-5, atol=1e-5)


def test_columns_tell_little_about_each_other_below_the_log_snr_of_independence():
    """The mutual information of normal columns is known: it is a thousandth of a nat there.

    The log-SNR is found to leading order in the correlations of the noisy columns, here 0.03.
    """
    reference = GaussianReference([0.5, -0.5, 0.0], 0.05 * np.eye(3) + np.ones((3, 3)))
    covariance = reference.covariance.numpy()
    noisy = covariance + math.exp(-reference.independence_logsnr()) * np.eye(3)
    root = np.sqrt(np.diag(noisy))
    information = -0.5 * np.linalg.slogdet(noisy / np.outer(root, root))[1]
    assert information == pytest.approx(0.001, rel=0.1)


# -- files -----------------------------------------------------------------------------------


def stored(reference):
    """Return a reference as it comes out of a file."""
    encoder = Encoder()
    node = encoder.encode(reference)
    arrays = {name: array.copy() for name, array in encoder.arrays.items()}
    device = torch.device("cpu")
    return Decoder(arrays, encoder.objects, {}, device, [StudentTReference]).decode(node)


def test_empty_reference_has_places_for_all_buffers(grid):
    empty = type(grid.reference).from_config(**grid.reference.config())
    assert list(empty._buffers) == list(grid.reference._buffers)
    assert all(value is None for value in empty._buffers.values())
    assert repr(empty.config()) == repr(grid.reference.config())


def test_stored_reference_is_the_same_to_the_last_bit(grid):
    found = stored(grid.reference)
    assert type(found) is type(grid.reference)
    assert repr(found) == repr(grid.reference)
    rows, eps, z, logsnr = noisy_points(grid, 1.0)
    assert torch.equal(found.log_prob(rows), grid.reference.log_prob(rows))
    assert torch.equal(found.denoise(z, logsnr), grid.reference.denoise(z, logsnr))
    for level in (1.0, math.inf):
        ours, theirs = (r.smoothed_log_prob(rows, eps, level) for r in (found, grid.reference))
        assert torch.equal(ours, theirs)
    ours, theirs = (r.sample(5, np.random.RandomState(shifted(0))) for r in (found, grid.reference))
    assert np.array_equal(ours, theirs)
    assert found.logsnr_range(0.1) == grid.reference.logsnr_range(0.1)


class Unusual(GaussianReference):
    """A reference with something that has no place in a file."""

    def __init__(self, value):
        super().__init__([0.0], [[1.0]])
        self.extra = value


@pytest.mark.parametrize("value", [np.zeros(2), len, {"a": 1}, torch.zeros(2)])
def test_what_no_file_can_hold_is_named(value):
    with pytest.raises(TypeError, match=r"Unusual\.extra is not a number or string"):
        Unusual(value).config()
    with pytest.raises(TypeError, match="Unusual has parameters"):
        Unusual(torch.nn.Parameter(torch.zeros(1))).config()


@pytest.mark.parametrize("name", ["denoise", "n_intermediate", "_buffers", "training"])
def test_files_do_not_replace_methods(name):
    config = GaussianReference([0.0], [[1.0]]).config()
    with pytest.raises(ValueError, match="no attribute of a GaussianReference"):
        GaussianReference.from_config(**config | {name: 1.0})
    with pytest.raises(KeyError):
        GaussianReference.from_config(**config | {"buffers": ["denoise"]})


def test_all_of_the_contract_has_to_be_defined():
    class Incomplete(StudentTReference):
        smoothed_log_prob = ContinuousReference.smoothed_log_prob

    with pytest.raises(TypeError, match=r"abstract method '?smoothed_log_prob"):
        Incomplete([0.0], [[1.0]], 3.0)
