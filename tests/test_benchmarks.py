"""Benchmarks of continuous tables: data, measurements in other processes, and their tables."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from seeds import shifted
from torch.nn.utils import skip_init

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from imputation import mean_ranks
from imputation_data import Imputed, Table, holes, measures
from patterns import HalfGivenHalf, halves_of
from peers import make_peer
from processes import MeasurementError, call_in_fresh_process, peak_megabytes
from results import ArrayFolder
from sampling import energy_distance
from scaling import Cell, exponent, measure
from tabular import TrueDensity, best_peer, mean_lead, paired_difference
from tabular_data import (
    TABLES,
    dequantized,
    distinct_rows,
    load_table,
    noise_width,
    random_split,
    random_subsample,
)
from throughput import linear_products, with_backward

from sk_itdiffusion.datasets import load_density

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def rounded_rows(n=400, seed=0):
    """Return rows of which the first two columns are on lattices, and have ties."""
    X = np.random.default_rng(seed).normal(size=(n, 3))
    X[:, 0] = 0.05 * np.rint(X[:, 0] / 0.05)
    X[:, 1] = np.rint(3.0 * X[:, 1])
    return X


# --- Data -----------------------------------------------------------------------------------


def test_noise_stays_in_the_lattice_cell_and_leaves_no_ties():
    X = rounded_rows()
    noisy = dequantized(X, seed=1)
    cell = np.array([0.05, 1.0, 0.0])
    assert (np.abs(noisy - X) <= cell / 2 + 1e-12).all()
    assert all(len(np.unique(column)) == len(X) for column in noisy.T)
    np.testing.assert_array_equal(noisy[:, 2], X[:, 2])
    # Uniform: the mean of n offsets has the standard error cell / sqrt(12 n).
    offset = (noisy - X)[:, :2] / cell[:2]
    assert (np.abs(offset.mean(axis=0)) < 5.0 / math.sqrt(12 * len(X))).all()
    assert (np.abs(offset.std(axis=0) * math.sqrt(12.0) - 1.0) < 0.2).all()


@pytest.mark.parametrize(
    ("column", "width"),
    [
        ([0.005, 0.02, 0.02, 0.04], 0.005),  # multiples of 0.005 from the first value on
        ([1.0, 1.001, 7.77, 7.77], 0.001),  # no lattice: the smallest difference
        ([1.0, 2.0, 3.0], 0.0),  # no ties
        ([2.0, 2.0], 0.0),
    ],
)
def test_noise_has_the_width_of_the_step_of_columns_with_ties(column, width):
    if column[0] == 0.005:
        column = [*column, 0.01]
    assert noise_width(np.array(column)) == pytest.approx(width, rel=1e-9)


def test_one_of_equal_rows_is_kept_in_the_order_given():
    X = np.array([[3.0, 1.0], [1.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    np.testing.assert_array_equal(distinct_rows(X), X[[0, 1, 3]])


def test_every_row_is_in_one_part_and_fitted_rows_are_standardised():
    X = np.random.default_rng(shifted(0)).lognormal(size=(203, 2))
    split = random_split(X, seed=3)
    assert len(split.test) == len(split.valid) == 20
    fitted = np.concatenate([split.train, split.valid])
    np.testing.assert_allclose(fitted.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(fitted.std(axis=0), 1.0, atol=1e-12)
    together = np.concatenate([fitted, split.test]) * split.scale + split.center
    np.testing.assert_allclose(np.sort(together, axis=0), np.sort(X, axis=0), rtol=1e-12)


def test_subsamples_are_tested_on_other_rows():
    X = np.arange(300.0)[:, None]
    split = random_subsample(X, 50, 100, seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (45, 5, 100)
    rows = np.concatenate([split.train, split.valid, split.test]) * split.scale + split.center
    assert len(np.unique(np.rint(rows))) == 150


def test_true_density_of_standardised_rows_is_that_of_the_standardised_mixture():
    density = load_density("twonorm")
    split = random_split(7.0 * density.sample(300, random_state=shifted(0)) - 1.0, seed=0)
    scaled = type(density)(
        density.weights,
        (density.means - split.center) / split.scale,
        density.covariances / np.outer(split.scale, split.scale),
    )
    expected = scaled.log_prob(split.test)
    actual = TrueDensity("twonorm", split).score_samples(split.test)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_one_gaussian_has_the_moments_of_all_rows():
    X = np.random.default_rng(shifted(0)).normal(size=(200, 3)) @ np.diag([1.0, 5.0, 0.1])
    peer = make_peer("gaussian").fit(X[:150], X[150:], seed=0)
    exact = multivariate_normal(X.mean(axis=0), np.cov(X.T, bias=True)).logpdf(X)
    # scikit-learn adds 1e-6 to the variances, which are nearly 1: 1e-6 nats per squared distance.
    np.testing.assert_allclose(peer.score_samples(X), exact, atol=3e-5)


# --- Processes ------------------------------------------------------------------------------


def test_calls_in_other_processes_return_fail_and_are_stopped():
    assert call_in_fresh_process(math.hypot, 3.0, 4.0) == 5.0
    with pytest.raises(MeasurementError, match="ValueError"):
        call_in_fresh_process(math.sqrt, -1.0)
    with pytest.raises(MeasurementError, match="exit code 3"):
        call_in_fresh_process(os._exit, 3)


def test_calls_that_take_too_long_are_stopped():
    with pytest.raises(MeasurementError, match="more than 0 s"):
        call_in_fresh_process(math.sqrt, 2.0, most_seconds=0.0)


def test_peak_memory_of_a_process_is_its_own():
    # This process has loaded torch, the other one only Python's own modules.
    assert 2.0 < call_in_fresh_process(peak_megabytes) < 0.5 * peak_megabytes()


def test_failed_sizes_are_recorded_with_the_reason():
    record = measure(Cell(100, 2, 10, 0, True, 1), most_seconds=0.0)
    assert record == {"failed": "measure_fit: took more than 0 s"}


# --- Tables ---------------------------------------------------------------------------------


def test_arrays_are_found_by_their_record(tmp_path):
    key = {"dataset": "a", "seed": 0, "method": "m", "setting": "default, copies kept"}
    ArrayFolder(tmp_path / "out.jsonl").add(np.arange(3.0), **key)
    again = ArrayFolder(tmp_path / "out.jsonl")
    np.testing.assert_array_equal(again.find(**key), np.arange(3.0))
    assert again.find(**{**key, "seed": 1}) is None
    assert ArrayFolder(None).find(**key) is None


def test_paired_differences_have_the_error_of_the_differences():
    generator = np.random.default_rng(shifted(0))
    rows = {}
    for seed, lead in enumerate((0.1, 0.3, 0.2)):
        peer = generator.normal(scale=50.0, size=1000)
        rows["table", seed, "flow"] = peer
        rows["table", seed, "immse_density"] = peer + lead + generator.normal(scale=0.1, size=1000)
    mean, error = paired_difference(rows, "table", "flow")
    assert mean == pytest.approx(0.2, abs=5 * 0.1 / math.sqrt(1000))
    assert error == pytest.approx(0.1 / math.sqrt(1000), rel=0.1)
    assert paired_difference(rows, "table", "absent") is None
    rows |= {("other", *key[1:]): value for key, value in rows.items() if key[1] == 0}
    only = paired_difference(rows, "other", "flow")[0]
    assert float(mean_lead(rows, {"table": "flow", "other": "flow"})) == pytest.approx(
        (mean + only) / 2, abs=6e-4
    )


def test_the_best_peer_is_neither_the_library_nor_the_truth():
    medians = {"immse_density": -1.0, "a": -3.0, "b": -2.0, "true_density": -0.5}
    assert best_peer(medians) == "b"
    assert best_peer({"immse_density": -1.0}) is None


def test_exponents_are_those_of_powers():
    sizes = np.array([10.0, 100.0, 1000.0])
    assert exponent(sizes, 3.0 * sizes**1.7) == pytest.approx(1.7)


def test_products_are_those_of_the_linear_layers():
    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # Not initialised, which would draw from torch's generator.
            layers = [skip_init(torch.nn.Linear, *size) for size in ((2, 7), (7, 2))]
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, z, logsnr):
            return self.layers(z)

    products = linear_products(Denoiser(), torch.zeros(5, 2), torch.zeros(5))
    assert products == [(5, 2, 7), (5, 7, 2)]
    # Each product of a forward pass has two of as much work in the backward pass.
    trained = with_backward(products)
    assert sum(map(math.prod, trained)) == 3 * sum(map(math.prod, products))


# --- Imputed entries --------------------------------------------------------------------------


def table_with_categories(n=300, seed=0):
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1]
    return Table(np.column_stack([numbers, rng.integers(3, size=n)]), np.arange(4) == 3)


@pytest.mark.parametrize("mechanism", ["mcar", "mar"])
def test_share_of_missing_entries_and_complete_columns(mechanism):
    missing = holes(table_with_categories(2000), mechanism, seed=0)
    assert missing.mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.25 / missing.size))
    assert (missing.sum(axis=0) == 0).sum() == (2 if mechanism == "mar" else 0)


def test_measures_of_imputed_entries():
    table = table_with_categories()
    missing = holes(table, "mcar", seed=0)
    perfect, _ = measures(table, missing, Imputed(table.values[None]))
    assert perfect == {"mae": 0.0, "rmse": 0.0, "wasserstein": 0.0, "row_distance": 0.0} | {
        "accuracy": 1.0
    }
    moved = table.values + table.values.std(axis=0) * [1.0, 1.0, 1.0, 0.0]
    completed = np.where(missing, moved, table.values)
    record, of_columns = measures(table, missing, Imputed(np.tile(completed, (20, 1, 1))))
    for name in ("mae", "rmse", "wasserstein"):
        assert record[name] == pytest.approx(1.0)
    assert record["coverage"] == 0.0
    assert np.isnan(of_columns[:4, 3]).all()
    # A table whose rows are in another order is the same distribution.
    order = np.random.default_rng(shifted(0)).permutation(len(missing))
    record, _ = measures(table, missing, Imputed(table.values[order][None]))
    assert record["row_distance"] == pytest.approx(0.0, abs=1e-12)


def test_ranks_are_better_where_errors_are_smaller_and_accuracies_larger():
    blocks = [
        {"a": {"mae": 1.0, "accuracy": 0.5}, "b": {"mae": 2.0, "accuracy": 0.9}},
        {"a": {"mae": 3.0}, "b": {"mae": 3.0}},
    ]
    np.testing.assert_array_equal(mean_ranks(blocks, ["a", "b"], "mae"), [1.25, 1.75])
    np.testing.assert_array_equal(mean_ranks(blocks, ["a", "b"], "accuracy"), [2.0, 1.0])


# --- Scripts --------------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path):
    """Return a folder with small tables in the place of two of the real ones."""
    folder = tmp_path / "data" / "uci"
    folder.mkdir(parents=True)
    sources = {"phoneme": np.hstack([rounded_rows(), rounded_rows(seed=1)])}
    sources["twonorm"] = load_density("twonorm").sample(300, random_state=shifted(0))
    for name, X in sources.items():
        np.savez(folder / TABLES[name].name, X=X)
    return folder.parent


def test_tables_are_read_with_their_continuous_columns(data_dir):
    X = load_table("phoneme", data_dir)
    assert X.shape == (400, 5)
    np.testing.assert_array_equal(X, load_table("phoneme", data_dir))


def run_script(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--threads", "1", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def likelihoods_of(printed):
    return printed.partition("Mean log-likelihood")[2].partition("Costs")[0]


@pytest.mark.slow
def test_tabular_script_measures_once_and_prints_its_tables(data_dir, tmp_path):
    pytest.importorskip("zuko")
    output = tmp_path / "results.jsonl"
    arguments = ["--data-dir", str(data_dir), "--datasets", "twonorm", "phoneme", "--seeds", "0"]
    arguments += ["--output", str(output)]
    printed = run_script("tabular.py", *arguments)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == 7 + 6
    assert len(list((tmp_path / "results_rows").iterdir())) == len(records)
    assert "| twonorm |" in printed
    again = run_script("tabular.py", *arguments, "--again", "kernel_density")
    assert len(output.read_text().splitlines()) == len(records) + 2
    assert likelihoods_of(again) == likelihoods_of(printed)


@pytest.mark.slow
def test_small_tables_script_prints_a_row_for_each_table(data_dir, tmp_path):
    arguments = ["--data-dir", str(data_dir), "--datasets", "twonorm", "phoneme"]
    printed = run_script("small_tables.py", *arguments)
    assert "| twonorm | 60 |" in printed
    assert "| phoneme | 60 |" in printed


@pytest.mark.slow
def test_dequantization_script_prints_a_row_for_each_table(tmp_path):
    output = tmp_path / "results.jsonl"
    printed = run_script("dequantization.py", "--output", str(output))
    assert printed.count("| 200 |") == 3
    assert len(output.read_text().splitlines()) == 3 * 2 * 2


@pytest.mark.slow
def test_scoring_error_script_prints_a_row_for_each_tolerance(data_dir, tmp_path):
    output = tmp_path / "results.jsonl"
    arguments = ["--data-dir", str(data_dir), "--datasets", "phoneme", "--output", str(output)]
    printed = run_script("scoring_error.py", *arguments)
    assert printed.count("| phoneme |") == 4
    records = [json.loads(line) for line in output.read_text().splitlines()]
    # What is reported is of the size of the true error.
    rows, mean = records[:-1], records[-1]
    errors = [record["error"] for record in rows]
    assert errors[-1] <= errors[0]
    assert all(0.3 < record["z_scores"] < 3.0 for record in rows)
    assert abs(mean["difference"]) < 0.1
    run_script("scoring_error.py", *arguments)
    assert len(output.read_text().splitlines()) == len(records)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["throughput.py", "scaling.py"])
def test_scripts_without_data_resume(name, tmp_path):
    output = tmp_path / "results.jsonl"
    run_script(name, "--output", str(output))
    finished = output.read_text()
    assert finished
    assert "failed" not in finished
    run_script(name, "--output", str(output))
    assert output.read_text() == finished


@pytest.mark.slow
def test_conditional_script_measures_once(tmp_path):
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(200, 2))
    (tmp_path / "conditional").mkdir()
    for name, y in (("yacht", X[:, 0]), ("wine", np.clip(np.rint(X[:, 0] + 5.0), 3, 8))):
        arrays = {"X": X, "y": y, "test": np.arange(160, 200)[None]}
        np.savez(tmp_path / "conditional" / f"{name}.npz", **arrays)
    output = tmp_path / "results.jsonl"
    arguments = ["--data-dir", str(tmp_path), "--datasets", "yacht", "wine", "--splits", "0"]
    arguments += ["--methods", "immse", "base_normal", "boosting", "--output", str(output)]
    printed = run_script("conditional.py", *arguments)
    assert "| yacht |" in printed.partition("Coverage")[2]
    finished = output.read_text()
    assert len(finished.splitlines()) == 4
    run_script("conditional.py", *arguments)
    assert output.read_text() == finished


@pytest.mark.slow
def test_imputation_script_measures_once(tmp_path):
    output = tmp_path / "results.jsonl"
    arguments = ["--data-dir", str(tmp_path), "--datasets", "iris", "--output", str(output)]
    printed = run_script("imputation.py", *arguments)
    assert "Mean ranks, of 2 tables and ways of missing" in printed
    finished = output.read_text()
    assert len(finished.splitlines()) == 14
    run_script("imputation.py", *arguments)
    assert output.read_text() == finished


@pytest.mark.slow
def test_sampling_script_compares_samples_with_scores_and_fresh_rows():
    printed = run_script("sampling.py", "--densities", "correlated_gaussian")
    assert printed.count("samples less q") == 2
    assert "energy distance: samples" in printed


@pytest.mark.slow
def test_sampling_steps_script_compares_both_methods_and_their_times():
    printed = run_script("sampling_steps.py", "--sources", "banana", "--seeds", "0", "1")
    assert printed.count("from fine steps") == 4
    assert printed.count("| banana |") == 1
    assert "50 samples of 10 columns" in run_script("sampling_steps.py", "--timing")


@pytest.mark.slow
def test_flow_of_halves_learns_the_conditionals_of_a_normal_distribution():
    pytest.importorskip("zuko")
    covariance = 0.7 ** np.abs(np.subtract.outer(range(4), range(4)))
    X = np.random.default_rng(shifted(0)).multivariate_normal(np.zeros(4), covariance, size=6000)
    train, valid, test = X[:4000], X[4000:5000], X[5000:]
    flow = HalfGivenHalf(seed=0, max_steps=1500).fit(train, valid)
    gaps = []
    for rows, given in halves_of(test, seed=0):
        part = covariance[np.ix_(given, given)]
        of_given = multivariate_normal(np.zeros(2), part).logpdf(test[rows][:, given])
        of_all = multivariate_normal(np.zeros(4), covariance).logpdf(test[rows])
        gaps.append(of_all - of_given - flow.score_samples(test[rows], given))
    assert -0.02 < np.concatenate(gaps).mean() < 0.1


def test_energy_distance_is_that_of_two_normal_distributions():
    """Of N(0, 1) and N(d, 1): E|X - Y| is known in closed form, within five standard errors."""
    rng = np.random.default_rng(shifted(0))
    shift, n, root = 1.0, 1000, np.sqrt(2.0)
    apart = 2.0 * np.exp(-(shift**2) / 4.0) / np.sqrt(np.pi) + shift * (
        2.0 * norm.cdf(shift / root) - 1.0
    )
    expected = 2.0 * apart - 4.0 / np.sqrt(np.pi)
    found = [
        energy_distance(rng.normal(size=(n, 1)), shift + rng.normal(size=(n, 1))) for _ in range(10)
    ]
    assert abs(np.mean(found) - expected) < 5.0 * np.std(found, ddof=1) / np.sqrt(10)
