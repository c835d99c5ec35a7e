"""Images, dequantisation, datasets, and the training that they need."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, LoadInitState

import sk_itdiffusion._first._fit.model
import sk_itdiffusion._first._table.streams
from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble
from sk_itdiffusion._first._immse.cubature import row_keys
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.streams import ImageFolder, RowStream
from sk_itdiffusion._first.denoisers import UNetBackbone
from sk_itdiffusion._first.references import GaussianReference, LowRankGaussianReference

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 16,
    "n_blocks": 1,
    "n_networks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "random_state": 0,
}
PLAIN = QUICK | {"reference": "gaussian", "marginals": "standard"}


def lattice_rows(n, seed=0):
    """Return correlated integers."""
    random_state = np.random.RandomState(seed)
    common = random_state.standard_normal((n, 1))
    return np.rint(3.0 * (common + 0.5 * random_state.standard_normal((n, 3))))


# -- dequantisation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dequantized():
    """Return a density of 200 rows of integers."""
    return IMMSEDensity(dequantize=True, **QUICK).fit(lattice_rows(200))


def test_dequantised_gaussian_scores_have_their_closed_form():
    X = lattice_rows(400)
    density = IMMSEDensity(
        dequantize=True,
        experts=["gaussian"],
        reference="gaussian",
        marginals="standard",
        max_epochs=0,
        random_state=0,
    ).fit(X)
    log_density, std = density.score_samples(X, return_std=True)
    reference, scale = density.reference_, density._model.space.standardizer.scale
    center = density._model.space.standardizer.center
    at_lattice = reference.log_prob(torch.from_numpy((X - center) / scale)).numpy()
    precision = torch.linalg.inv(reference.covariance).numpy()
    # The mean of a quadratic form over uniform noise of width 1 / scale.
    spread = 0.5 * (np.diag(precision) / (12.0 * scale**2)).sum()
    exact = at_lattice - np.log(scale).sum() - spread
    z_scores = (log_density - exact) / std
    distinct = np.unique(X, axis=0, return_index=True)[1]
    assert np.abs(z_scores).max() < 6.0
    assert 0.6 < np.sqrt(np.mean(z_scores[distinct] ** 2)) < 1.4


def test_probabilities_do_not_depend_on_the_units(dequantized):
    X = lattice_rows(200)
    second = IMMSEDensity(dequantize=True, **QUICK).fit(4.0 * X)
    scores = dequantized.score_samples(X[:50])
    np.testing.assert_allclose(scores, second.score_samples(4.0 * X[:50]), rtol=1e-9)
    assert dequantized.bits_per_dim(X[:50]) == pytest.approx(
        -scores.mean() / (3 * math.log(2.0)), rel=1e-12
    )


@pytest.mark.slow
def test_dequantised_probabilities_sum_to_at_most_one():
    random_state = np.random.RandomState(0)
    first = random_state.randint(4, size=1500)
    X = np.column_stack([first, (first + random_state.randint(3, size=1500)) % 4])
    density = IMMSEDensity(
        dequantize=True,
        random_state=0,
        max_epochs=5,
        steps_per_epoch=40,
        hidden_size=32,
        n_networks=1,
    ).fit(X[:1000])
    states = np.stack(np.meshgrid(range(4), range(4)), axis=-1).reshape(-1, 2)
    density.set_params(score_tol=0.02)
    log_probability, std = density.score_samples(states, return_std=True)
    occurs = (states[:, 1] - states[:, 0]) % 4 < 3  # the others have next to no probability
    assert std[occurs].mean() < 0.15
    total = np.exp(log_probability - 0.5 * std**2).sum()
    error = np.linalg.norm(std * np.exp(log_probability))
    assert 0.5 < total < 1.0 + 3 * error
    counts = np.unique(X, axis=0, return_counts=True)[1]
    entropy = -(counts / counts.sum() @ np.log(counts / counts.sum()))
    # The entropy of 12 equally likely pairs, which a bound on log-probabilities cannot exceed.
    new = X[1000:].astype(int)  # whose scores are those of their states
    log_density, std = (each.reshape(4, 4)[new[:, 1], new[:, 0]] for each in (log_probability, std))
    error = 3 * (std.max() + log_density.std()) / math.sqrt(500)
    assert -entropy - 1.0 < log_density.mean() < -entropy + error


@pytest.mark.slow
def test_standard_errors_of_dequantised_scores_are_calibrated():
    X = lattice_rows(500)
    density = IMMSEDensity(
        dequantize=True,
        random_state=0,
        experts=["network"],
        n_networks=1,
        max_epochs=4,
        steps_per_epoch=30,
        hidden_size=16,
    ).fit(X[:350])
    rows = np.unique(X[350:430], axis=0)
    rough, std = density.score_samples(rows, return_std=True)
    # Other noise, of the reference's part of the score too.
    seeds = replace(density._model.seeds, scoring=123)
    density._model = replace(density._model, seeds=seeds)
    density.set_params(score_tol=0.03)
    fine, fine_std = density.score_samples(rows, return_std=True)
    z_scores = (rough - fine) / np.hypot(std, fine_std)
    assert 0.6 < np.sqrt(np.mean(z_scores**2)) < 1.5


def test_constant_columns_are_certain_if_rows_have_probabilities(dequantized):
    X = lattice_rows(200)
    padded = np.column_stack([X, np.full(200, 7.0)])
    wider = IMMSEDensity(dequantize=True, **QUICK).fit(padded)
    assert wider.score(padded) == pytest.approx(dequantized.score(X), abs=0.3)
    other = padded[:1].copy()
    other[0, 3] = 8.0
    # Other values have 1 / (n + 2), here half of it on each side of 7.
    ratio = wider.score_samples(other)[0] - wider.score_samples(padded[:1])[0]
    assert math.log(1e-4) < ratio < math.log(0.5 / 202)


def test_values_off_the_lattice_are_errors(dequantized):
    X = lattice_rows(200)
    with pytest.raises(ValueError, match=r"Column\(s\) 1 have values that are not on the lattice"):
        dequantized.score_samples(X[:3] + np.array([0.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match="found no column"):
        IMMSEDensity(dequantize=True, **QUICK).fit(np.random.RandomState(0).rand(100, 2))


@pytest.mark.parametrize("step", [-1.0, [1.0, 2.0], [0.0, 0.0, 0.0], [np.nan, 1.0, 1.0]])
def test_bad_steps_are_errors(step):
    with pytest.raises(ValueError, match="dequantize"):
        IMMSEDensity(dequantize=step, **QUICK).fit(lattice_rows(100))


@pytest.mark.slow
def test_expected_bounds_are_those_of_scores():
    """`entropy_` has the volume of the cells and the constant columns of `score`."""
    X = 3.0 * np.column_stack([lattice_rows(400), np.full(400, 2.0)])
    settings = {**QUICK, "score_tol": 0.5, "validation_fraction": 0.3}
    density = IMMSEDensity(dequantize=True, **settings).fit(X)
    members = [("only", IMMSEDensity(dequantize=True, **settings))]
    ensemble = IMMSEEnsemble(members, random_state=0, validation_fraction=0.3).fit(X)
    scores = density.score_samples(X)
    error = 4 * scores.std() / math.sqrt(120)
    assert density.entropy_ == pytest.approx(-scores.mean(), abs=error)
    assert ensemble.entropy_ == pytest.approx(-ensemble.score(X), abs=error)
    assert density.history_[0]["valid_bound"] == pytest.approx(-scores.mean(), abs=2 * error)


def test_equal_rows_are_nearly_certain():
    """Of each column all other values together have the probability 1 / (n + 2)."""
    X = np.full((50, 2), 3.0)
    density = IMMSEDensity(dequantize=0.5, random_state=0).fit(X)
    assert density.score(X) == pytest.approx(2 * math.log(51 / 52), rel=1e-12)
    assert np.isnan(density.entropy_)  # nothing validates
    others = X[:1] + 0.5 * np.column_stack([np.arange(-100, 101), np.zeros(201)])
    assert np.exp(density.score_samples(others)).sum() == pytest.approx(51 / 52, rel=1e-9)


def test_scores_of_single_rows_are_those_in_a_batch(dequantized):
    X = lattice_rows(200)
    alone = [dequantized.score_samples(row[None])[0] for row in X[:30]]
    np.testing.assert_array_equal(alone, dequantized.score_samples(X)[:30])


def test_steps_of_lattices_of_rounded_numbers_are_found():
    X = (np.random.RandomState(0).randint(2_000, size=(2_000, 1)) / 1_999).astype(np.float32)
    dequantizer = Dequantizer.fit(X.astype(np.float64), None, shared=False, seed=0)
    assert dequantizer.step[0] == pytest.approx(1 / 1_999, rel=1e-6)
    dequantizer.check(X.astype(np.float64), None)


def test_given_steps_are_those_found(dequantized):
    X = lattice_rows(200)
    given = IMMSEDensity(dequantize=[1.0, 1.0, 1.0], **QUICK).fit(X)
    np.testing.assert_array_equal(dequantized.score_samples(X), given.score_samples(X))


def test_samples_of_dequantised_rows_are_on_the_lattice(dequantized):
    rows = dequantized.sample(20, random_state=1)
    np.testing.assert_array_equal(rows, np.rint(rows))


# -- references of images ------------------------------------------------------------------------


def test_low_rank_reference_is_the_gaussian_with_its_covariance():
    random_state = np.random.RandomState(0)
    X = random_state.standard_normal((100, 2)) @ random_state.standard_normal((2, 6))
    X += 0.1 * random_state.standard_normal(X.shape)
    low = LowRankGaussianReference.fit(X, 2, random_state)
    residual, basis = float(low.residual), low.basis
    covariance = residual * torch.eye(6) + (basis * (low.variances - residual)) @ basis.T
    full = GaussianReference(low.mean, covariance)
    points = torch.from_numpy(X[:20])
    torch.testing.assert_close(low.log_prob(points), full.log_prob(points))
    logsnr = torch.linspace(-5.0, 8.0, 20, dtype=torch.float64)
    torch.testing.assert_close(low.denoise(points, logsnr), full.denoise(points, logsnr))
    assert low.variance_range() == pytest.approx(full.variance_range())
    scaled = low.standardized(np.ones(6), np.full(6, 2.0))
    shift = 6 * math.log(2.0)
    torch.testing.assert_close(scaled.log_prob((points - 1.0) / 2.0), low.log_prob(points) + shift)
    # The trace is that of the rows, also if there are fewer of them than columns.
    for rows in (X, X[:5]):
        fitted = LowRankGaussianReference.fit(rows, 2, random_state)
        trace = float(fitted.variances.sum() + (6 - 2) * fitted.residual)
        assert trace == pytest.approx(rows.var(axis=0, ddof=1).sum(), rel=1e-6)
    drawn = low.sample(20_000, random_state)
    np.testing.assert_allclose(np.cov(drawn.T), covariance.numpy(), atol=0.15)


# -- images --------------------------------------------------------------------------------------


def images(n, seed=0):
    """Return images of 6 x 6 pixels with a bright bar, in 8 bits."""
    random_state = np.random.RandomState(seed)
    X = random_state.randint(20, size=(n, 6, 6))
    X[np.arange(n), random_state.randint(6, size=n)] += 200
    return X.astype(np.uint8)


@pytest.fixture(scope="module")
def image_density(diffusers):
    settings = {
        **QUICK,
        "hidden_size": 8,
        "steps_per_epoch": 20,
        "batch_size": 32,
        "learning_rate": 0.03,
    }
    return IMMSEDensity(image_shape=(6, 6), dequantize=True, score_tol=0.5, **settings).fit(
        images(300)
    )


@pytest.mark.slow
def test_a_network_of_images_improves_on_the_gaussian(image_density):
    X = images(60, seed=1)
    log_density, std = image_density.score_samples(X, return_std=True)
    model, rows = image_density._model, X.reshape(60, -1).astype(float)
    standardized = model.space.standardized(rows)
    keys = row_keys(standardized, model.seeds.scoring)
    control = model.control_log_density(rows, standardized, keys, image_density._tolerance())
    gap = log_density - control.log_density - control.log_slope - model.constant_term
    error = math.hypot(np.linalg.norm(std), gap.std() * math.sqrt(60)) / 60
    assert gap.mean() > 3 * error


@pytest.mark.parametrize("has_network", others_slow([False, True]))
def test_flat_and_shaped_images_score_alike_in_any_batch(has_network, request):
    if has_network:
        density = request.getfixturevalue("image_density")
    else:
        settings = {**QUICK, "max_epochs": 0, "score_tol": 0.5}
        density = IMMSEDensity(image_shape=(6, 6), dequantize=True, **settings).fit(images(60))
    X = images(40, seed=1)
    shaped = density.score_samples(X)
    flat = density.score_samples(X.reshape(40, -1))
    np.testing.assert_array_equal(shaped, flat)
    np.testing.assert_array_equal(shaped[7:9], density.score_samples(X[7:9]))


@pytest.mark.usefixtures("diffusers")
def test_dropout_draws_from_the_networks_own_generator():
    points, level = torch.ones(4, 36), torch.zeros(4)

    def outputs():
        source = torch.Generator().manual_seed(3)
        network = UNetBackbone((1, 6, 6), -5.0, 5.0, width=8, dropout=0.5, generator=source)
        torch.nn.init.ones_(network.network.conv_out.weight)
        return network.train()(points, level), network.eval()(points, level)

    before = torch.get_rng_state()
    dropped, kept = outputs()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(outputs()[0], dropped)
    assert (dropped[0] - dropped[1]).abs().max() > 1e-3  # equal images, other masks
    assert torch.equal(kept[0], kept[1])


@pytest.mark.usefixtures("diffusers")
def test_few_images_have_independent_pixels():
    density = IMMSEDensity(image_shape=(6, 6), dequantize=True, **QUICK).fit(images(30))
    covariance = density.reference_.covariance
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-12, rtol=0)


def test_reference_objects_serve_images():
    reference = GaussianReference(np.full(36, 30.0), 900.0 * np.eye(36))
    density = IMMSEDensity(
        image_shape=(6, 6),
        reference=reference,
        experts=["reference"],
        max_epochs=0,
        random_state=0,
        dequantize=True,
    ).fit(images(60))
    X = images(5).reshape(5, -1).astype(float)
    expected = reference.log_prob(torch.from_numpy(X)).numpy() - 0.5 * 36 / (12 * 900)
    log_density, std = density.score_samples(X, return_std=True)
    assert np.abs(log_density - expected).max() < 5 * std.max()


def test_wrong_image_shapes_are_errors():
    with pytest.raises(ValueError, match="has 30 pixels, X has 36 columns"):
        IMMSEDensity(image_shape=(5, 6), **QUICK).fit(images(50).reshape(50, -1))
    with pytest.raises(ValueError, match="image_shape must be"):
        IMMSEDensity(image_shape=(36,), **QUICK).fit(images(50).reshape(50, -1))
    with pytest.raises(ValueError, match="multiple of 8"):
        IMMSEDensity(image_shape=(6, 6), **{**QUICK, "hidden_size": 12}).fit(images(50))


@pytest.mark.slow
def test_scoring_holds_few_copies_of_the_rows(monkeypatch):
    """The memory beyond the rows themselves does not grow with their number."""
    d = 256
    X = np.random.RandomState(0).standard_normal((2_400, d))

    class Shrink(torch.nn.Module):
        def forward(self, z, logsnr):
            return torch.sigmoid(-logsnr).sqrt()[:, None] * z

    density = IMMSEDensity(
        denoiser=Shrink(),
        experts=["network"],
        max_epochs=0,
        score_tol=0.5,
        random_state=0,
    ).fit(X[:300])
    monkeypatch.setattr(sk_itdiffusion._first._fit.model, "NUMBERS_IN_A_PASS", 200 * d)
    peak = {}
    for n in (600, 2_400):
        tracemalloc.start()
        density.score_samples(X[:n])
        peak[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A bit for each validated number, and the scores.
    assert peak[2_400] - peak[600] < 0.5 * 8 * d * 1_800
    monkeypatch.undo()
    whole = density.score_samples(X[:300])
    monkeypatch.setattr(sk_itdiffusion._first._fit.model, "NUMBERS_IN_A_PASS", 77 * d)
    np.testing.assert_array_equal(whole, density.score_samples(X[:300]))


# -- datasets ------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Items as (row, label)."""

    def __init__(self, X):
        self.X = X

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return torch.from_numpy(self.X[index].reshape(1, -1)), 0


def test_a_dataset_that_fits_into_memory_is_the_array():
    X = np.random.RandomState(0).standard_normal((200, 3))
    array = IMMSEDensity(**PLAIN).fit(X)
    dataset = IMMSEDensity(**PLAIN).fit(Rows(X))
    np.testing.assert_array_equal(array.score_samples(X), dataset.score_samples(Rows(X)))
    with pytest.raises(ValueError, match="sample_weight must be None"):
        IMMSEDensity(**QUICK).fit(Rows(X), sample_weight=np.ones(200))


@pytest.mark.slow
def test_larger_datasets_are_streamed(monkeypatch):
    monkeypatch.setattr(sk_itdiffusion._first._table.streams, "NUMBERS_IN_MEMORY", 3 * 400)
    X = np.random.RandomState(0).standard_normal((3_000, 3)) ** 3
    sample, stream = RowStream.beyond_memory(Rows(X), 0, np.random.RandomState(0))
    assert len(sample) == 400
    together = np.vstack([sample, X[stream.indices]])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(X, axis=0))
    trained_on = []

    class Spy(Callback):
        def on_batch_begin(self, net, batch=None, training=False, **kwargs):
            if training:
                trained_on.append(batch[0]["x"].numpy())

    settings = QUICK | {"max_epochs": 4, "steps_per_epoch": 20, "marginals": "quantile"}
    settings |= {"reference": "gaussian", "batch_size": 256}
    density = IMMSEDensity(callbacks=[Spy()], **settings)
    density.fit(Rows(X))
    # All but the 40 rows for validation, whether in memory or streamed.
    assert 2_800 < len(np.unique(np.concatenate(trained_on), axis=0)) <= 2_960
    again = IMMSEDensity(**settings).fit(Rows(X))
    np.testing.assert_array_equal(density.score_samples(X[:50]), again.score_samples(X[:50]))
    assert "_stream" not in vars(density) or density._stream is None


def test_items_of_different_sizes_are_errors():
    class Ragged(Rows):
        def __getitem__(self, index):
            return np.zeros(3 + (index == 5))

    with pytest.raises(ValueError, match="item 0 has 3 numbers, item 5 has 4"):
        IMMSEDensity(**QUICK).fit(Ragged(np.zeros((50, 3))))


def test_items_with_channels_last_are_errors():
    class Items(Rows):
        def __getitem__(self, index):
            return np.zeros((4, 5, 3))

    with pytest.raises(ValueError, match="Put channels first"):
        IMMSEDensity(image_shape=(3, 4, 5), **QUICK).fit(Items(np.zeros(50)))


def test_streamed_items_are_checked(monkeypatch):
    monkeypatch.setattr(sk_itdiffusion._first._table.streams, "NUMBERS_IN_MEMORY", 3 * 300)
    X = lattice_rows(1_000)
    _, stream = RowStream.beyond_memory(Rows(X), 0, np.random.RandomState(0))
    X[stream.indices] += 0.5
    with pytest.raises(ValueError, match="not on the lattice"):
        IMMSEDensity(dequantize=True, **PLAIN).fit(Rows(X))
    X[stream.indices] = np.nan
    with pytest.raises(ValueError, match="not consist of 3 finite numbers"):
        IMMSEDensity(dequantize=True, **PLAIN).fit(Rows(X))


def test_image_folders_hold_their_images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs the extra [images]")
    X = images(4)
    for number, pixels in enumerate(X):
        image.fromarray(pixels).save(tmp_path / f"{number}.png")
    folder = ImageFolder(tmp_path, (1, 6, 6))
    assert len(folder) == 4
    np.testing.assert_array_equal(
        sk_itdiffusion._first._table.streams.read_rows(folder), X.reshape(4, -1)
    )
    with pytest.raises(ValueError, match="Resize it first"):
        ImageFolder(tmp_path, (1, 5, 6))[0]
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(tmp_path / "nothing", (1, 6, 6))


# -- training ------------------------------------------------------------------------------------


def test_gradients_of_parts_sum_to_that_of_the_batch():
    X = np.random.RandomState(0).standard_normal((300, 2)) ** 3
    settings = {**PLAIN, "dropout": 0.0, "batch_size": 64}
    whole = IMMSEDensity(**settings).fit(X[:200])
    parts = IMMSEDensity(micro_batch_size=24, **settings).fit(X[:200])
    bounds = np.array([[row["train_bound"] for row in e.history_] for e in (whole, parts)])
    np.testing.assert_allclose(bounds[0], bounds[1], rtol=1e-4)
    weights = [next(iter(e.net_.module_.denoiser.parameters())) for e in (whole, parts)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def test_validation_batches_are_no_larger_than_parts():
    sizes = []

    class Spy(Callback):
        def on_batch_begin(self, net, batch=None, training=False, **kwargs):
            sizes.append(len(batch[1]) if not training else 0)

    X = np.random.RandomState(0).standard_normal((300, 2))
    IMMSEDensity(micro_batch_size=24, callbacks=[Spy()], **PLAIN).fit(X)
    assert max(sizes) == 24


def test_training_goes_on_from_a_checkpoint(tmp_path):
    X = np.random.RandomState(0).standard_normal((300, 2)) ** 3
    settings = {**PLAIN, "max_epochs": 4, "early_stopping": False, "experts": ["network"]}

    class Interrupt(Checkpoint):
        def on_epoch_end(self, net, **kwargs):
            super().on_epoch_end(net, **kwargs)
            if len(net.history) == 2:
                raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="the machine is gone"):
        IMMSEDensity(callbacks=[Interrupt(monitor=None, dirname=str(tmp_path))], **settings).fit(X)
    checkpoint = Checkpoint(monitor=None, dirname=str(tmp_path))
    resumed = IMMSEDensity(callbacks=[LoadInitState(checkpoint), checkpoint], **settings).fit(X)
    assert [row["epoch"] for row in resumed.history_] == [1, 2, 3, 4]
    whole = IMMSEDensity(**settings).fit(X)
    first = [row["valid_bound"] for row in whole.history_[:2]]
    assert [row["valid_bound"] for row in resumed.history_[:2]] == pytest.approx(first)
    # The noise of the last epochs differs, what has been learned does not.
    best = min(first)
    assert min(row["valid_bound"] for row in resumed.history_[2:]) < best


@pytest.mark.gpu
@pytest.mark.usefixtures("diffusers")
def test_networks_of_images_score_alike_on_gpu_and_cpu():
    device = "cuda" if torch.cuda.is_available() else "mps"
    settings = {**QUICK, "hidden_size": 8, "image_shape": (6, 6), "dequantize": True}
    density = IMMSEDensity(device=device, **settings).fit(images(300))
    X = images(20, seed=1)
    on_gpu, std = density.score_samples(X, return_std=True)
    model = density._model
    for net in model.nets.values():
        net.module_.cpu()
    density._model = replace(model, device=torch.device("cpu"))
    # The same weights and the same noise; single precision on both.
    np.testing.assert_allclose(density.score_samples(X), on_gpu, atol=0.02 * std.max() + 1e-3)
