"""Unusual census records in a table of mixed types
================================================

Which records of a census are the least likely ones, and which of their entries are to blame? The
table is the adult census: 48,842 persons, 8 nominal columns, 4 ordinal and 2 continuous ones, read
from a local copy (``--data PATH``) or else fetched from OpenML. The script:

1. holds out a fifth of the rows and prints their mean log-density under ``IMMSEMixedDensity``, and
   under two of its references alone: independent columns, and a latent class model;
2. takes the least likely of these rows and asks, column by column, how much log p gains if that one
   entry is replaced by the typical value of its column;
3. saves a table of these gains, ``mixed_adult.csv``, and a picture, ``mixed_adult.png``.

.. image:: /images/mixed_adult.png
   :alt: Gains of log p by the typical value of each column, for the three least likely rows

A gain below 0 means that the typical value would not fit the rest of the row. Replacing only one of
``education`` and ``education-num``, which carry the same information, has this effect.

Run ``python examples/mixed_adult.py`` (``--rows 5000`` takes a sample of the rows). ``--quick``
uses 1000 rows and trains for a few steps, as for the picture above, and takes a small synthetic
table unless ``--data`` is given.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import fetch_openml
from sklearn.model_selection import train_test_split

from sk_itdiffusion import IMMSEMixedDensity

CONTINUOUS = ("age", "fnlwgt")
ORDINAL = ("education-num", "capital-gain", "capital-loss", "hours-per-week")
NUMBERS = CONTINUOUS + ORDINAL  # the order of X_num in an .npz file
NOMINAL = (
    "workclass",
    "education",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native-country",
)
MODEL = "IMMSEMixedDensity"
N_SHOWN = 5  # rows explained
N_DRAWN = 3  # of these in the picture
BLUE, ORANGE = "#0072B2", "#D55E00"
N_QUICK = 1000  # rows of --quick


def read_file(path):
    """Return the columns of a CSV or parquet file, or of an .npz file with codes of levels."""
    if path.suffix == ".npz":
        parts = np.load(path, allow_pickle=False)
        columns = dict(zip(NUMBERS, parts["X_num"].T, strict=True))
        levels = json.loads(str(parts["vocab_json"]))
        for (name, known), codes in zip(levels.items(), parts["X_cat"].T, strict=True):
            columns[name] = pd.Categorical.from_codes(codes, known)  # -1 is a missing entry
        return pd.DataFrame(columns)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, skipinitialspace=True)


def fetch():
    """Return the columns from OpenML, or end the script with advice."""
    try:
        return fetch_openml("adult", version=2, as_frame=True).data
    except (OSError, ValueError) as error:  # no network, or an answer that is not the table
        raise SystemExit(
            f"Fetching the adult table from OpenML failed: {error}\n"
            "Download it by other means and give the file by --data PATH: a CSV or parquet file "
            "with a header,\nor an .npz file with the keys X_cat, vocab_json and X_num. "
            "Or try --quick, which needs no data."
        ) from error


def synthesise(n, rng):
    """Return a table whose columns are of the same kinds; three groups make them dependent."""
    group = rng.integers(3, size=n)
    columns = {}
    for name, n_categories in zip(NOMINAL, (8, 16, 7, 14, 6, 5, 2, 41), strict=True):
        code = (rng.geometric(0.5, n) - 1 + 2 * group) % n_categories
        columns[name] = pd.Series([f"{name}-{number}" for number in code])
        if name == "education":
            columns["education-num"] = code + 1
        if name in ("workclass", "occupation", "native-country"):
            columns[name] = columns[name].mask(rng.random(n) < 0.03)
    columns["age"] = np.rint(17 + rng.gamma(2.0, 8.0 + 2.0 * group)).clip(17, 90)
    columns["fnlwgt"] = np.rint(rng.lognormal(12.0, 0.5, n))
    amounts = 500 * rng.integers(1, 30, n)
    columns["capital-gain"] = np.where(rng.random(n) < 0.03 + 0.05 * group, amounts, 0)
    columns["capital-loss"] = np.where(rng.random(n) < 0.03, amounts // 10, 0)
    columns["hours-per-week"] = np.rint(rng.normal(35 + 5 * group, 8)).clip(1, 99)
    return pd.DataFrame(columns)


def prepare(raw, rng):
    """Return the table with a dtype for each column that tells the estimator its kind."""
    raw = raw.reset_index(drop=True)
    raw.columns = [str(name).strip().lower() for name in raw.columns]
    raw.columns = raw.columns.str.replace(r"[._ ]", "-", regex=True)
    lacking = [name for name in NOMINAL + NUMBERS if name not in raw]
    if lacking:
        raise SystemExit(f"The table lacks the column(s) {', '.join(lacking)}.")
    columns = {}
    for name in NOMINAL:
        # Some copies write "?" for a missing entry. Missing entries stay missing: for nominal
        # columns the estimator takes them as a level of their own.
        texts = raw[name].astype(object)
        columns[name] = texts.mask(texts == "?").astype("category")
    for name in ORDINAL:  # integers of few distinct values are ordinal
        columns[name] = raw[name].astype("int64")
    for name in CONTINUOUS:
        # Numbers that were rounded lie on a grid, and there no density exists: the finer a model,
        # the higher its peaks at the grid. With noise as wide as the rounding, each integer stands
        # for its cell, and the mean log-density is at most the mean log-probability of the cells.
        columns[name] = raw[name].astype("float64") + rng.uniform(-0.5, 0.5, len(raw))
    return pd.DataFrame(columns)


def compare(train, test, settings):
    """Fit model and references; return the model, and the test log-densities of all."""
    alone = {
        "independent": {"experts": ["independent"], "max_epochs": 0},
        "latent_class": {
            "experts": ["latent_class"],
            "reference": "latent_class",
            "max_epochs": 0,
        },
    }
    scores, seconds = {}, {}
    for name, parameters in (alone | {MODEL: settings}).items():
        start = time.perf_counter()
        # A few amounts of capital gain or loss occur in test rows only; they are unlikely.
        model = IMMSEMixedDensity(random_state=0, **parameters).fit(train)
        scores[name], numerical = model.score_samples(test, return_std=True)
        seconds[name] = time.perf_counter() - start
    return model, scores, numerical, seconds


def report(scores, numerical, seconds):
    """Print mean log-densities, and how far each reference is behind, row by row."""
    ours = scores[MODEL]
    print(
        f"Mean log-density of {len(ours)} test rows, nats per row (+- standard error over rows)\n"
        f"with respect to Lebesgue measure of {' and '.join(CONTINUOUS)} times counting measure\n"
    )
    print(f"  {'':17} {'mean':>8} {'':7} {f'{MODEL} is better by':>30} {'seconds':>8}")
    for name, values in scores.items():
        mean = f"{values.mean():8.2f} +- {standard_error(values):4.2f}"
        gain = ours - values
        by = f"{gain.mean():.2f} +- {standard_error(gain):.2f}" if values is not ours else ""
        print(f"  {name:17} {mean} {by:>30} {seconds[name]:8.1f}")
    print(f"\nNumerical error of {MODEL}: about {numerical.mean():.2f} nats for one row")


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def typical_values(table):
    """Return the median of each column of numbers, and the most frequent level of the others."""
    typical = {name: table[name].mode(dropna=False).iloc[0] for name in NOMINAL}
    typical |= {name: int(table[name].quantile(0.5, interpolation="lower")) for name in ORDINAL}
    return typical | {name: float(table[name].median()) for name in CONTINUOUS}


def explain(model, rows, typical):
    """Return the gains (columns, rows) by typical entries, and the errors of the integration."""
    versions = [rows]
    for name in rows.columns:
        version = rows.copy()
        version.loc[:, name] = typical[name]
        versions.append(version)
    log_p, std = model.score_samples(pd.concat(versions, ignore_index=True), return_std=True)
    log_p, std = (values.reshape(len(versions), len(rows)) for values in (log_p, std))
    axes = {"index": rows.columns, "columns": rows.index}
    gains = pd.DataFrame(log_p[1:] - log_p[0], **axes)
    return gains, pd.DataFrame(np.hypot(std[1:], std[0]), **axes)


def show(rows, log_p, gains, errors, typical):
    """Print the gains as a table, and the entries that they are largest for."""
    print(
        f"\nThe {len(rows)} least likely test rows: gain of log p, in nats, if one entry is "
        "replaced by the typical one\n"
    )
    print(f"  {'row':20}" + "".join(f"{row:>9}" for row in rows.index))
    print(f"  {'log p':20}" + "".join(f"{value:9.1f}" for value in log_p))
    for name, values in gains.iterrows():
        print(f"  {name:20}" + "".join(f"{value:+9.1f}" for value in values))
    print(
        "\nThe largest gains of each row, three at most (+- numerical error): "
        "entry -> typical entry"
    )
    for row in rows.index:
        print(f"\n  row {row}")
        for name, gain in gains[row][gains[row] > 0].nlargest(3).items():
            change = f"{as_text(rows.at[row, name])} -> {as_text(typical[name])}"
            print(f"    {gain:+6.1f} +- {errors.at[name, row]:4.1f}  {name:15} {change}")


def as_text(entry):
    if isinstance(entry, str):
        return entry
    return "missing" if pd.isna(entry) else f"{entry:.0f}"


def draw(rows, log_p, gains, errors, path):
    """Draw the gains of the first rows, with the entries that they are for."""
    fig, axes = plt.subplots(1, N_DRAWN, figsize=(5 * N_DRAWN, 4.5), layout="constrained")
    for ax, row, value in zip(axes, rows.index, log_p, strict=False):
        labels = [f"{name} = {as_text(rows.at[row, name])}" for name in gains.index]
        colours = np.where(gains[row] > 0, ORANGE, BLUE)
        ax.barh(np.arange(len(labels)), gains[row], xerr=errors[row], color=colours)
        ax.set_yticks(np.arange(len(labels)), labels, fontsize="small")
        ax.invert_yaxis()
        ax.axvline(0.0, color="black", lw=0.8)
        ax.set(xlabel="gain of log p by the typical value (nats)")
        ax.set_title(f"row {row}: log p = {value:.1f}", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=100)
    plt.close(fig)
    print(f"Picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="local copy: .csv, .parquet or .npz")
    parser.add_argument("--rows", type=int, help="rows to take at random; default: all")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="few rows, few steps")
    args = parser.parse_args()
    settings = {"max_epochs": 1, "steps_per_epoch": 5} if args.quick else {}
    n_rows = args.rows or (N_QUICK if args.quick else None)

    rng = np.random.default_rng(0)
    if args.data is not None:
        raw = read_file(args.data)
    elif args.quick:
        print("No --data given: a synthetic table stands in for the adult census.\n")
        raw = synthesise(n_rows, rng)
    else:
        raw = fetch()
    table = prepare(raw, rng)
    if n_rows is not None and n_rows < len(table):
        table = table.sample(n_rows, random_state=0)
    train, test = train_test_split(table, test_size=0.2, random_state=0)

    model, scores, numerical, seconds = compare(train, test, settings)
    report(scores, numerical, seconds)

    oddest = np.argsort(scores[MODEL])[:N_SHOWN]
    rows, log_p = test.iloc[oddest], scores[MODEL][oddest]
    typical = typical_values(train)
    gains, errors = explain(model, rows, typical)
    show(rows, log_p, gains, errors, typical)

    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "mixed_adult.csv"
    gains.to_csv(path, index_label="gain of log p in nats, by row")
    print(f"\nTable: {path}")
    draw(rows, log_p, gains, errors, args.output / "mixed_adult.png")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "images/mixed_adult.png"
