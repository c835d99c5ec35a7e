"""Distances to the closest record."""

import numpy as np
import pandas as pd
import pytest
from seeds import shifted

from sk_itdiffusion.metrics import distance_to_closest_record


def table(n, seed):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "size": 100.0 * rng.normal(size=n),
            "colour": pd.Categorical(rng.choice(["red", "blue"], n)),
            "known": rng.random(n) < 0.5,
            "count": rng.integers(5, size=n),
        }
    )


def test_distances_are_those_of_all_pairs():
    rows, records, others = table(20, 0), table(30, 1), table(40, 2)
    found = distance_to_closest_record(rows, records, scale_by=others)
    scale = others[["size", "count"]].to_numpy(float).std(axis=0)
    for distance, (_, row) in zip(found, rows.iterrows(), strict=True):
        numbers = (records[["size", "count"]] - row[["size", "count"]]).to_numpy(float) / scale
        differ = (records[["colour", "known"]].astype(object) != row[["colour", "known"]]).sum(
            axis=1
        )
        assert distance == pytest.approx(np.sqrt((numbers**2).sum(axis=1) + differ).min(), abs=1e-6)


def test_copies_are_at_distance_zero_in_any_units():
    records = table(30, 0)
    np.testing.assert_array_equal(distance_to_closest_record(records[5:9], records), 0.0)
    numbers = records[["size", "count"]].to_numpy(float)
    rows = numbers + np.array([3.0, 0.1])
    found = distance_to_closest_record(rows, numbers)
    in_other_units = [0.01, 7.0] * np.stack([rows, numbers])
    np.testing.assert_allclose(distance_to_closest_record(*in_other_units), found, rtol=1e-9)


def test_frames_of_polars_are_read():
    polars = pytest.importorskip("polars")
    rows, records = table(10, 0), table(20, 1)
    found = [
        polars.DataFrame({name: column.to_list() for name, column in each.items()})
        for each in (rows, records)
    ]
    np.testing.assert_array_equal(
        distance_to_closest_record(*found), distance_to_closest_record(rows, records)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[["count", "size", "colour", "known"]], "X must have the same.*another order"),
        (lambda t: t[["size"]], r"X must have the same columns.*lacks \['colour', 'known'"),
        (lambda t: t.assign(age=1.0), r"has \['age'\] too"),
        (lambda t: t[["size", "size"]], "X must not have two columns of the same name"),
        (lambda t: t[:0], "X must have at least one row"),
        (lambda t: t.assign(size=t["colour"]), "Column 'size' of X must hold numbers .* category"),
        (lambda t: t.assign(known=1.0), "Column 'known' of X must hold categories .* float64"),
        (lambda t: t.mask(t["known"]), "Column 'size' of X must not have missing entries"),
        (lambda t: t.assign(size=np.inf), "Column 'size' of X must be finite"),
        (lambda t: t["size"].to_numpy(), "X must be a table with rows and columns, got 1D"),
    ],
)
def test_tables_that_cannot_be_compared_are_errors(change, message):
    records = table(10, 0)
    with pytest.raises(ValueError, match=message):
        distance_to_closest_record(change(records), records)
    with pytest.raises(ValueError, match=message.replace("X", "scale_by")):
        distance_to_closest_record(records, records, scale_by=change(records))


@pytest.mark.parametrize("n_columns", [3, 20])
def test_small_distances_of_numbers_far_from_zero(n_columns):
    records = 1e6 + np.random.default_rng(shifted(0)).normal(size=(300, n_columns))
    np.testing.assert_array_equal(distance_to_closest_record(records, records), 0.0)
    near = distance_to_closest_record(records + 0.001, records, scale_by=records)
    exact = 0.001 * np.sqrt((1.0 / records.var(axis=0)).sum())
    np.testing.assert_allclose(near, exact, rtol=1e-4)
