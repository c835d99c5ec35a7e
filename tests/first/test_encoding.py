"""Tables as numbers and back: categories, their order, containers, errors."""

import pickle
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.utils.validation import check_array

from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.kinds import discrete_kinds, mixed_kinds
from sk_itdiffusion._first._table.reading import naming_columns, read_table

N = 40
RNG = np.random.default_rng(0)
COLOURS = RNG.choice(["red", "green", "blue"], N, p=[0.6, 0.3, 0.1])
NUMBERS = RNG.integers(-3, 4, N)
DATES = pd.date_range("2020-01-01", periods=3)

COLUMNS = {
    "int64": NUMBERS,
    "uint8": (NUMBERS + 3).astype(np.uint8),
    "float64": NUMBERS / 4,
    "float32": (NUMBERS / 4).astype(np.float32),
    "bool": NUMBERS > 0,
    "Int64": pd.array(NUMBERS, dtype="Int64"),
    "Float64": pd.array(NUMBERS / 4, dtype="Float64"),
    "boolean": pd.array(NUMBERS > 0, dtype="boolean"),
    "object": pd.Series(COLOURS, dtype=object),
    "object with missing": pd.Series(np.where(NUMBERS > 2, None, COLOURS), dtype=object),
    "object with numbers": pd.Series(np.where(NUMBERS > 0, NUMBERS, COLOURS), dtype=object),
    "object of integers": pd.Series(NUMBERS, dtype=object),
    "decimals": pd.Series([Decimal(int(x)) / 4 for x in NUMBERS], dtype=object),
    "tuples": pd.Series([(x, "a") for x in COLOURS], dtype=object),
    "string": pd.array(COLOURS, dtype="string"),
    "string with missing": pd.array(np.where(NUMBERS > 2, None, COLOURS), dtype="string"),
    "inferred text": pd.Series(list(COLOURS)),
    "unordered": pd.Categorical(COLOURS, ["black", "red", "green", "blue"]),
    "ordered": pd.Categorical(COLOURS, ["green", "red", "blue", "black"], ordered=True),
    "missing category": pd.Categorical(np.where(NUMBERS > 2, None, COLOURS)),
    "categories of integers": pd.Categorical(NUMBERS),
    "intervals": pd.cut(NUMBERS, 3),
    "dates": DATES[NUMBERS % 3],
    "dates with missing": DATES[NUMBERS % 3].where(NUMBERS < 3),
    "sparse": pd.arrays.SparseArray(NUMBERS),
}


def one_column(name):
    return pd.DataFrame({"x": COLUMNS[name]})


def fit(X, kinds=None, **settings):
    return TableEncoder.fit(X, kinds=discrete_kinds(X) if kinds is None else kinds, **settings)


def fit_column(values, kind="nominal", **settings):
    return fit(pd.DataFrame({"x": values}), [kind], **settings)


def levels_of(encoder, j=0):
    return list(encoder.columns[j].categories)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_frames_come_back_with_their_dtypes(name):
    X = one_column(name)
    encoder = pickle.loads(pickle.dumps(fit(X)))
    values = encoder.encode(X)
    assert values.dtype == np.float64
    assert set(np.unique(values)) <= set(range(encoder.columns[0].n_categories))
    decoded = encoder.decode(values)
    pd.testing.assert_series_equal(decoded["x"].isna(), X["x"].isna())
    pd.testing.assert_frame_equal(decoded.fillna(1) if name == "sparse" else decoded, X)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_a_row_alone_has_the_codes_that_it_has_in_the_table(name):
    X = one_column(name)
    encoder = fit(X)
    alone = [encoder.encode(X.iloc[[i]]) for i in range(len(X))]
    np.testing.assert_array_equal(np.concatenate(alone), encoder.encode(X))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, ">i4", bool, object, str, "S"])
def test_arrays_come_back_with_their_dtypes(dtype):
    X = np.random.default_rng(1).integers(0, 2 if dtype is bool else 9, (N, 3)).astype(dtype)
    encoder = fit(X)
    decoded = encoder.decode(encoder.encode(X))
    assert decoded.dtype == X.dtype
    np.testing.assert_array_equal(decoded, X)


def test_lists_keep_numbers_and_texts_apart():
    X = [[1, "a", True], [2, "b", False], [2, "1", True]]
    encoder = fit(X)
    assert [column.kind for column in encoder.columns] == ["ordinal", "nominal", "nominal"]
    assert encoder.decode(encoder.encode(X)).tolist() == X


def test_continuous_columns_keep_their_numbers():
    X = pd.DataFrame(
        {
            "f": [0.25, -1.5, 3.0],
            "i": pd.array([1000, 2**40, -5], dtype="Int64"),
            "s": ["a", "b", "a"],
            "b": [True, False, True],
        }
    )
    encoder = fit(X, ["continuous", "continuous", "nominal", "continuous"])
    values = encoder.encode(X)
    np.testing.assert_array_equal(values[:, [0, 1, 3]], X[["f", "i", "b"]].to_numpy(np.float64))
    assert [column.n_categories for column in encoder.columns] == [0, 0, 2, 0]
    pd.testing.assert_frame_equal(encoder.decode(values), X)


def test_samples_of_continuous_integers_are_rounded_into_their_range():
    X = np.array([[0], [200]], dtype=np.uint8)
    decoded = fit(X, ["continuous"]).decode([[-3.0], [1.6], [300.0]])
    np.testing.assert_array_equal(decoded, [[0], [2], [255]])
    large = fit(np.array([[0], [2**62]]), ["continuous"]).decode([[1e30], [-1e30]])
    assert (large[0] > 2**62) & (large[1] == -(2**63))


def test_nominal_codes_do_not_depend_on_the_names_of_the_levels():
    renamed = pd.Series(COLOURS).map({"red": "a", "green": "z", "blue": "m"})
    for other in (renamed, renamed.astype("category"), renamed.map({"a": 7, "z": 9, "m": 8})):
        np.testing.assert_array_equal(
            fit_column(other).encode(pd.DataFrame({"x": other})),
            fit_column(COLOURS).encode(pd.DataFrame({"x": COLOURS})),
        )
    assert levels_of(fit_column(COLOURS)) == ["red", "green", "blue"]


def test_equally_frequent_levels_stay_in_their_natural_order():
    assert levels_of(fit_column(["c", "b", "a", "b"])) == ["b", "a", "c"]
    ties = pd.Categorical(["a", "b"], ["d", "b", "a", "c"])
    assert levels_of(fit_column(ties)) == ["b", "a", "d", "c"]
    assert levels_of(fit_column(["a", "b"], categories=[["z", "b", "a"]])) == ["b", "a", "z"]
    assert levels_of(fit_column([None, "b", "a", None], categories="auto")) == [None, "a", "b"]


def test_rows_in_another_order_learn_the_same():
    X = one_column("object with numbers")
    shuffled = X.sample(frac=1, random_state=0)
    weight = np.random.default_rng(1).uniform(size=N)
    first = fit(X, sample_weight=weight)
    second = fit(shuffled, sample_weight=weight[shuffled.index])
    assert levels_of(first) == levels_of(second)


@pytest.mark.parametrize("unit", [1.0, 0.1, 1 / 3])
def test_weights_are_repetitions(unit):
    count = np.random.default_rng(1).integers(0, 4, N)
    for name in ("object", "object with missing", "int64", "unordered", "bool"):
        X = one_column(name)
        weighted = fit(X, ["nominal"], sample_weight=unit * count)
        repeated = fit(X.loc[np.repeat(np.arange(N), count)], ["nominal"])
        assert levels_of(weighted) == levels_of(repeated)


def test_rows_without_weight_teach_no_levels():
    X, weight = pd.DataFrame({"x": ["a", "b", None]}), [1, 0, 0]
    assert levels_of(fit(X, sample_weight=weight)) == ["a"]
    with pytest.raises(ValueError, match="not among its categories: 'b', a missing value"):
        fit(X, sample_weight=weight, handle_unknown="error").encode(X)


@pytest.mark.parametrize("dtype", [np.int16, np.float64, object, "Int64"])
def test_integers_between_seen_ones_are_levels(dtype):
    def learned(values):
        return levels_of(fit_column(pd.Series(values, dtype=dtype), "ordinal"))

    assert learned([7, 3, 3]) == [3, 4, 5, 6, 7]
    assert learned([-1, 254]) == list(range(-1, 255))
    assert learned([-1, 255]) == [-1, 255]


def test_other_numbers_and_booleans_are_their_distinct_values():
    assert levels_of(fit_column([2.0, 0.5, 4.0], "ordinal")) == [0.5, 2.0, 4.0]
    assert levels_of(fit_column([True, False], "ordinal")) == [False, True]
    assert levels_of(fit_column([True, True], "ordinal")) == [False, True]
    assert levels_of(fit_column(pd.Series([True, True], dtype=object), "nominal")) == [True]
    assert levels_of(fit_column([3.0, 1.0, 3.0], "nominal")) == [3, 1, 2]


def test_shared_levels_are_those_of_all_columns():
    X = np.array([[3, 5], [3, 9]])
    encoder = fit(X, shared_categories=True)
    assert levels_of(encoder, 0) == levels_of(encoder, 1) == list(range(3, 10))
    np.testing.assert_array_equal(encoder.encode(X), X - 3)
    texts = pd.DataFrame({"a": ["x", "x", "z"], "b": ["y", "y", "y"]})
    encoder = fit(texts, shared_categories=True)
    assert levels_of(encoder, 0) == levels_of(encoder, 1) == ["y", "x", "z"]
    pd.testing.assert_frame_equal(encoder.decode([[0, 1]]), pd.DataFrame({"a": ["y"], "b": ["x"]}))


def test_shared_levels_of_categoricals_extend_their_dtypes():
    X = pd.DataFrame({"a": pd.Categorical(["x"]), "b": pd.Categorical(["y"])})
    encoder = fit(X, shared_categories=True)
    decoded = encoder.decode([[1, 0]])
    assert decoded.to_numpy().tolist() == [["y", "x"]]
    assert all(isinstance(dtype, pd.CategoricalDtype) for dtype in decoded.dtypes)


def test_continuous_columns_have_no_part_in_shared_levels():
    X = np.array([[0.5, 3.0], [0.25, 4.0]])
    encoder = fit(X, ["continuous", "ordinal"], shared_categories=True)
    assert encoder.columns[0].categories is None
    assert levels_of(encoder, 1) == [3, 4]
    assert (
        fit(X, ["continuous", "continuous"], shared_categories=True).columns[1].categories is None
    )


def test_levels_of_categoricals_are_their_categories_seen_or_not():
    assert levels_of(fit(one_column("ordered"))) == ["green", "red", "blue", "black"]
    assert levels_of(fit(one_column("unordered"))) == ["red", "green", "blue", "black"]


def test_mixed_types_are_levels_side_by_side():
    values = ["b", 2, 1.5, "a", (1, "c"), (1, 2)]
    assert levels_of(fit_column(pd.Series(values, dtype=object)))[:4] == [1.5, 2, "a", "b"]
    encoder = fit_column(pd.Series(values, dtype=object))
    encoded = encoder.encode(pd.DataFrame({"x": pd.Series(values, dtype=object)}))
    assert encoder.decode(encoded)["x"].tolist() == values


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_a_missing_value_is_one_level(missing):
    X = pd.DataFrame({"x": pd.Series(["a", "a", missing, "b", "b"], dtype=object)})
    encoder = fit(X)
    assert levels_of(encoder) == ["a", "b", None]
    for other in (None, np.nan, pd.NA, pd.NaT):
        assert encoder.encode(np.array([[other]], dtype=object)) == 2
    assert encoder.encode(pd.DataFrame({"x": pd.Categorical([None], ["a"])})) == 2


def test_a_missing_value_counts_once_beside_given_levels():
    values = pd.Series(["a", None], dtype=object)
    assert levels_of(fit_column(values, categories=[["b", "a", np.nan]])) == ["a", None, "b"]
    assert levels_of(fit_column(values, "ordinal", categories=[[None, "a"]])) == [None, "a"]
    assert levels_of(fit_column(values, "ordinal", categories=[["b", "a"]])) == ["b", "a", None]
    assert levels_of(fit_column(["a"], "ordinal", categories=[["a", None]])) == ["a", None]
    assert levels_of(fit_column(pd.Series([None, None], dtype=object))) == [None]


def test_a_value_that_was_never_missing_is_unknown_when_missing():
    X = pd.DataFrame({"x": ["a", "b"]})
    gap = pd.DataFrame({"x": ["a", None]})
    for settings in (
        {},
        {"handle_unknown": "error"},
        {"categories": [["a", "b"]]},
        {"handle_missing": "missing"},
    ):
        encoded = fit(X, **settings).encode(gap, allow_missing=True)
        np.testing.assert_array_equal(encoded, [[0], [np.nan]])
    # Where entries may not be missing it is one more value.
    with pytest.raises(ValueError, match=r"'x' has values .* a missing value"):
        fit(X, handle_unknown="error").encode(gap)
    # Both of two rows are new except for themselves: (2 + 1) / (2 + 2).
    np.testing.assert_allclose(fit(X).encode(gap), [[0], [np.log(3 / 4)]])


@pytest.mark.parametrize("dtype", ["category", object, "boolean"])
def test_truths_and_categories_may_be_missing_in_other_tables(dtype):
    values = pd.Series([True, False] * 5, dtype=object).astype(dtype)
    gap = pd.DataFrame({"x": pd.Series([True, None], dtype=object)})
    encoder = fit_column(values, "nominal")
    np.testing.assert_allclose(encoder.encode(gap)[1], np.log(1 / 12))
    assert np.isnan(encoder.encode(gap, allow_missing=True)[1])


@pytest.mark.parametrize("dtype", ["boolean", object])
def test_a_missing_truth_is_a_level(dtype):
    X = pd.DataFrame({"x": pd.Series([True, None, False, True, True, None], dtype=dtype)})
    assert discrete_kinds(X) == mixed_kinds(X) == ["nominal"]
    encoder = fit(X)
    assert levels_of(encoder) == [True, None, False]
    np.testing.assert_array_equal(encoder.encode(X)[:, 0], [0, 1, 2, 0, 0, 1])
    decoded = encoder.decode(encoder.encode(X))
    assert decoded["x"].dtype == X["x"].dtype
    assert decoded["x"].isna().tolist() == X["x"].isna().tolist()
    pd.testing.assert_frame_equal(decoded.dropna(), X.dropna())


@pytest.mark.parametrize("dtype", ["boolean", object])
def test_errors_of_missing_truths_among_numbers_name_the_column(dtype):
    X = pd.DataFrame({"x": pd.Series([True, None], dtype=dtype), "y": [0.5, 1.5]})
    with pytest.raises(ValueError, match=r"NaN in column\(s\) 'x'\."), naming_columns(X):
        check_array(X)


def test_numpy_truths_have_no_other_values():
    gap = pd.DataFrame({"x": pd.array([True, None], dtype="boolean")})
    encoder = fit_column([True, False, True])
    assert encoder.columns[0].log_seen == 0.0
    with pytest.raises(ValueError, match=r"NaN in column\(s\) 'x'"):
        encoder.encode(gap)


@pytest.mark.parametrize("kind", ["nominal", "ordinal"])
@pytest.mark.parametrize("dtype", ["Int64", float])
def test_errors_of_missing_codes_tell_how_to_make_them_a_level(kind, dtype):
    X = pd.DataFrame({"x": pd.Series([1, None, 2, 1], dtype=dtype)})
    with pytest.raises(ValueError, match=r"'x'.*before fit.*astype\('category'\)"):
        fit(X, [kind])
    with pytest.raises(ValueError, match=r"'x'.*before fit.*astype\('category'\)"):
        fit(X.dropna(), [kind]).encode(X)
    encoder = fit(X.astype("category"), [kind])
    assert levels_of(encoder) == [1, 2, None]
    np.testing.assert_array_equal(encoder.encode(X)[:, 0], [0, 2, 1, 0])


@pytest.mark.parametrize("kind", ["ordinal", "nominal"])
def test_numbers_as_texts_and_texts_as_numbers_are_errors(kind):
    numbers = pd.DataFrame({"n": [1, 2, 2, 5]})
    texts = numbers.astype(str).astype(object)
    fitted = fit(numbers, [kind])
    with pytest.raises(ValueError, match="'n' holds texts, but its categories are numbers: '1'"):
        fitted.encode(texts)
    with pytest.raises(ValueError, match="'n' holds numbers, but its categories are texts: 1"):
        fit(texts, ["nominal"]).encode(numbers)
    with pytest.raises(ValueError, match="'n' holds texts"):
        fitted.encode(pd.DataFrame({"n": [None, "7"]}, dtype=object), allow_missing=True)
    # Not of missing values, of new numbers, nor of columns that hold or held both.
    for other in ([np.nan, np.nan], [7, 9], [2, "2"]):
        code = fitted.encode(pd.DataFrame({"n": other}), allow_missing=True)[:, 0]
        assert np.isnan(code).all() == (other[0] is np.nan)
    mixed = fit(pd.DataFrame({"n": [1, "2", "2"]}, dtype=object), ["nominal"])
    assert (mixed.encode(pd.DataFrame({"n": [2, 3]})) < 0.0).all()


def test_unknown_levels_are_errors_that_name_them():
    encoder = fit(pd.DataFrame({"x": ["a", "b"]}), handle_unknown="error")
    X = pd.DataFrame({"x": list("acdefghc")})
    message = (
        r"'x' .*: 'c', 'd', 'e', 'f', 'g' and 1 more.*categories.*handle_unknown='good_turing'"
    )
    with pytest.raises(ValueError, match=message):
        encoder.encode(X)
    with pytest.raises(ValueError, match=r"'x' has values .*: 'c'"):
        fit(pd.DataFrame({"x": ["a", "c"]}), categories=[["a", "b"]])


def test_values_outside_a_closed_set_are_errors():
    X = pd.DataFrame({"x": ["a", "b"], "n": [1, 2], "t": [True, True]})
    encoder = fit(X, categories={"x": ["a", "b", "c"], "n": [1, 2]})
    assert [column.unseen for column in encoder.columns] == [None] * 3
    assert [column.log_seen for column in encoder.columns] == [0.0] * 3
    assert levels_of(encoder, 2) == [True, False]
    for changed in ({"x": "d"}, {"n": 3}):
        with pytest.raises(ValueError, match="not among its categories"):
            encoder.encode(X.assign(**changed))
    with pytest.raises(ValueError, match=r"'x' has values .*: 'b'"):
        fit(X, categories={"x": ["a"]})


def test_other_values_than_levels_become_log_probabilities():
    X = pd.DataFrame({"x": ["a", "b", "a"], "n": [1, 2, 1], "f": [0.5, 1.5, 2.5]})
    encoder = fit(X, ["nominal", "ordinal", "continuous"])
    assert [column.n_categories for column in encoder.columns] == [2, 2, 0]
    values = encoder.encode(X.assign(x=["a", "z", "y"], n=[1, 3, 0], f=-1.0))
    np.testing.assert_array_equal(encoder.unseen(values), [[0, 0, 0], [1, 1, 0], [1, 1, 0]])
    np.testing.assert_allclose(values[1:, 0], np.log(2 / 5))  # one of three rows is new
    with pytest.raises(ValueError, match="codes from 0 to 1 for column 'x'"):
        encoder.decode(values)
    assert (encoder.encode([["z", 7, 1.0]])[0, :2] < 0.0).all()


def test_unused_categories_of_other_data_are_no_unknown_levels():
    encoder = fit(pd.DataFrame({"x": ["a", "b"]}))
    X = pd.DataFrame({"x": pd.Categorical(["b", "a"], ["z", "b", "a"])})
    np.testing.assert_array_equal(encoder.encode(X), [[1], [0]])


@pytest.mark.parametrize("form", ["list", "dict", "index"])
def test_categories_as_list_and_dict(form):
    X = pd.DataFrame({"size": ["s", "l", "s"], "n": [1, 2, 2]})
    order = ["s", "m", "l"]
    categories = {
        "list": [order, None],
        "dict": {"size": order},
        "index": [pd.Index(order), "auto"],
    }
    encoder = fit(X, ["ordinal", "ordinal"], categories=categories[form])
    assert levels_of(encoder) == order
    np.testing.assert_array_equal(encoder.encode(X), [[0, 0], [2, 1], [0, 1]])


def test_columns_of_arrays_are_named_by_their_numbers():
    X = np.array([[5, 1], [6, 2]])
    assert levels_of(fit(X, categories={1: [2, 1]}), 1) == [2, 1]
    assert discrete_kinds(X, {1: "nominal"}) == ["ordinal", "nominal"]


def test_given_levels_that_do_not_fit_the_dtype_change_it():
    X = pd.DataFrame({"x": [0, 1], "c": pd.Categorical(["a", "b"], ordered=True)})
    encoder = fit(X, categories=[[0, 0.5, 1], ["a", "b", "c"]])
    decoded = encoder.decode([[1, 2]])
    assert decoded.to_numpy().tolist() == [[0.5, "c"]]
    texts = fit(np.array([["a"], ["b"]]), categories=[["a", "b", "long"]])
    assert texts.decode([[2]]).tolist() == [["long"]]
    array = fit(X[["x"]].to_numpy(), categories=[[0, 0.5, 1]]).decode([[1], [2]])
    assert array.tolist() == [[0.5], [1]]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([["a", "b", "a"]], "duplicates for column 'x': 'a'"),
        ([["a", None, np.nan]], "duplicates for column 'x': a missing value"),
        ([[]], "no categories for column 'x'"),
        (["ab"], "array-like, None or 'auto' .* 'ab'"),
        ([["a", "b"], None], "categories has 2 entries, but X has 1 columns"),
        ({"y": ["a"]}, "categories names the column 'y'"),
        ("all", "categories must be .* 'all'"),
    ],
)
def test_invalid_categories(categories, message):
    with pytest.raises(ValueError, match=message):
        fit(pd.DataFrame({"x": ["a", "b"]}), categories=categories)


def test_equal_values_of_other_dtypes_are_the_same_level():
    forms = [
        np.array([[0], [1]]),
        np.array([[0.0], [1.0]]),
        np.array([[False], [True]]),
        np.array([[0], [1]], dtype=np.uint8),
        np.array([[np.int64(0)], [1.0]], dtype=object),
        pd.DataFrame({"x": pd.array([0, 1], dtype="Int8")}),
        pd.DataFrame({"x": pd.Categorical([0, 1])}),
    ]
    for fitted in forms:
        encoder = fit(fitted, ["ordinal"])
        for scored in forms:
            np.testing.assert_array_equal(encoder.encode(scored), [[0], [1]])
    continuous = fit(np.array([[0.5], [1.5]]), ["continuous"])
    for scored in forms:
        np.testing.assert_array_equal(continuous.encode(scored), [[0], [1]])


def test_texts_are_the_same_level_whatever_holds_them():
    texts = ["b", "a", "b"]
    forms = [
        pd.DataFrame({"x": texts}),
        pd.DataFrame({"x": pd.Series(texts, dtype=object)}),
        pd.DataFrame({"x": pd.Series(texts, dtype="string")}),
        pd.DataFrame({"x": pd.Categorical(texts, ["a", "b"])}),
        np.array(texts)[:, None],
        [[text] for text in texts],
    ]
    for fitted in forms:
        encoder = fit(fitted)
        for scored in forms:
            np.testing.assert_array_equal(encoder.encode(scored), [[0], [1], [0]])


def test_large_integers_stay_apart():
    X = np.array([[2**53], [2**53 + 1], [-(2**62)]])
    encoder = fit(X)
    np.testing.assert_array_equal(encoder.decode(encoder.encode(X)), X)


def test_polars_frames():
    pl = pytest.importorskip("polars")
    data = {"n": [1, 3, 3], "t": ["a", None, "a"], "f": [0.5, 1.5, 2.5], "b": [True, False, True]}
    enumeration = pl.Series(["y", "x", "y"], dtype=pl.Enum(["x", "y", "z"]))
    category = pl.Series(["y", "x", "y"], dtype=pl.Categorical)
    X = pl.DataFrame({**data, "e": enumeration, "c": category})
    kinds = mixed_kinds(X)
    assert kinds == ["ordinal", "nominal", "continuous", "nominal", "nominal", "nominal"]
    encoder = fit(X, kinds)
    assert levels_of(encoder, 1) == ["a", None]
    assert levels_of(encoder, 4) == ["y", "x", "z"]
    values = encoder.encode(X)
    same = pd.DataFrame({**data, "e": ["y", "x", "y"], "c": ["y", "x", "y"]})
    np.testing.assert_array_equal(values, encoder.encode(same))
    decoded = encoder.decode(values)
    assert decoded.schema == X.schema
    assert decoded.equals(X)
    with pytest.raises(ValueError, match="Input X contains NaN in column\\(s\\) 'n'"):
        encoder.encode(X.with_columns(n=pl.Series([1, None, 3])))


@pytest.mark.parametrize("dtype", [np.float64, object, "Float64", "Int64"])
def test_missing_numbers_are_errors(dtype):
    X = pd.DataFrame({"a": ["x", "y"], "b": pd.Series([1, None], dtype=dtype)})
    clean = pd.DataFrame({"a": ["x", "y"], "b": pd.Series([1, 0], dtype=dtype)})
    for action in (
        lambda: discrete_kinds(X),
        lambda: fit(X, ["nominal", "ordinal"]),
        lambda: fit(clean).encode(X),
    ):
        with pytest.raises(ValueError, match=r"X contains NaN in column\(s\) 'b'\. A missing"):
            action()
    for action in (
        lambda: fit(X, ["nominal", "continuous"]),
        lambda: fit(clean, ["nominal", "continuous"]).encode(X),
    ):
        with pytest.raises(ValueError, match=r"NaN in column\(s\) 'b'.*IMMSEImputer"):
            action()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, object, "Float64"])
@pytest.mark.parametrize("kind", ["ordinal", "continuous"])
def test_infinite_numbers_are_errors(dtype, kind):
    X = pd.DataFrame({"b": pd.Series([1.0, -np.inf], dtype=dtype)})
    clean = pd.DataFrame({"b": pd.Series([1.0, 0.5], dtype=dtype)})
    for action in (
        lambda: discrete_kinds(X),
        lambda: fit(X, [kind]),
        lambda: fit(clean, [kind]).encode(X),
    ):
        with pytest.raises(ValueError, match=r"Input X contains infinity .* 'b'"):
            action()


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (sparse.eye_array(3).tocsr(), TypeError, "Sparse data was passed"),
        ([1.0, 2.0], ValueError, "(?s)Expected 2D array, got 1D array instead.*Reshape your data"),
        (pd.Series([1, 2]), ValueError, "Expected a 2-dimensional container|Expected 2D array"),
        (np.zeros((2, 2, 2)), ValueError, "dim 3"),
        (np.zeros((0, 3)), ValueError, r"Found array with 0 sample\(s\)"),
        (pd.DataFrame({"x": []}), ValueError, r"Found array with 0 sample\(s\)"),
        (np.zeros((4, 0)), ValueError, r"0 feature\(s\) \(shape=\(4, 0\)\) while a minimum of 1"),
        (pd.DataFrame(index=range(4)), ValueError, r"0 feature\(s\) \(shape=\(4, 0\)\) while a"),
        (np.array([[1j, 1.0]]), ValueError, "Complex data not supported"),
        (np.array([[1j], [1j]], dtype=object), ValueError, "Complex data not supported"),
        (pd.DataFrame({"x": [1j, 1.0]}), ValueError, "Complex data not supported"),
    ],
)
def test_tables_that_are_none(X, error, message):
    for action in (discrete_kinds, mixed_kinds, lambda X: fit(X, ["ordinal"])):
        with pytest.raises(error, match=message):
            action(X)


def test_entries_that_are_no_values():
    X = np.array([[{"foo": "bar"}, 1.0], [2.0, 3.0]], dtype=object)
    with pytest.raises(TypeError, match=r"argument must be .* string.* number"):
        fit(X)
    for kinds in (["ordinal", "ordinal"], ["continuous", "continuous"]):
        encoder = fit(np.array([[1.0, 2.0], [3.0, 1.0]]), kinds)
        with pytest.raises(TypeError, match=r"argument must be .* string.* number"):
            encoder.encode(X)


def test_texts_are_no_numbers():
    encoder = fit([[0.5], [1.5]], ["continuous"])
    with pytest.raises(
        ValueError, match="'0' is continuous, but X has values that are not numbers"
    ):
        encoder.encode([["0.5"]])
    with pytest.raises(ValueError, match=r"Column\(s\) 'x' are not numeric"):
        fit(pd.DataFrame({"x": ["0.5"]}), ["continuous"])


def test_too_many_levels():
    X = pd.DataFrame({"x": np.arange(4097) * 2})
    assert fit(X[:-1]).columns[0].n_categories == 4096
    for table in (X, X.astype(str), X.astype("category")):
        with pytest.raises(
            ValueError, match=r"'x' has 4097 categories; at most 4096 .* Group rare"
        ):
            fit(table)
    with pytest.raises(ValueError, match="4097 categories"):
        fit(X[:1], categories=[range(4097)])
    with pytest.raises(ValueError, match="4200 categories"):
        fit(np.arange(8194).reshape(2, 4097).T[:2100], shared_categories=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"handle_unknown": "ignore"}, "handle_unknown must be 'good_turing' or 'error', got"),
        ({"kinds": ["ordinal", "ordinal"]}, "for each of the 1 columns"),
        ({"kinds": ["auto"]}, r"kinds must hold .*got \['auto'\]"),
        ({"sample_weight": [1.0]}, "sample_weight"),
        ({"sample_weight": [1.0, -1.0]}, "Negative values"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"X": [[1], [2]], "kinds": ["ordinal"], **settings})


def test_ordinal_texts_need_an_order():
    for X in (pd.DataFrame({"x": ["a", "b"]}), one_column("object with numbers")):
        with pytest.raises(ValueError, match=r"'x' are ordinal, but .* in categories"):
            fit(X, ["ordinal"])
    assert levels_of(fit(one_column("dates"), ["ordinal"])) == list(DATES)


def test_categories_of_continuous_columns_are_refused():
    with pytest.raises(ValueError, match="categories for the continuous column '0'"):
        fit([[0.5]], ["continuous"], categories=[[0.5]])


def test_other_numbers_of_columns_are_errors():
    encoder = fit([[1, 2]])
    with pytest.raises(ValueError, match="X has 1 features, but TableEncoder is expecting 2"):
        encoder.encode([[1]])
    with pytest.raises(ValueError, match=r"shape \(n_rows, 2\), got \(1, 1\)"):
        encoder.decode([[0.0]])


def test_a_table_is_read_once():
    table = read_table([[1, "a"], [2, "b"]])
    assert read_table(table) is table
    encoder = fit(table)
    np.testing.assert_array_equal(encoder.encode(table), [[0, 0], [1, 1]])


def test_kinds_of_discrete_tables_follow_the_dtypes():
    expected = {name: "ordinal" for name in ("int64", "uint8", "float64", "float32", "ordered")}
    expected |= {name: "ordinal" for name in ("Int64", "Float64", "decimals", "intervals")}
    expected |= {name: "ordinal" for name in ("object of integers", "sparse")}
    X = pd.DataFrame(COLUMNS)
    kinds = dict(zip(X.columns, discrete_kinds(X), strict=True))
    assert kinds == {name: expected.get(name, "nominal") for name in COLUMNS}


def test_kinds_of_mixed_tables_follow_the_dtypes():
    X = pd.DataFrame(COLUMNS).drop(columns=["dates", "dates with missing"])
    expected = {name: "ordinal" for name in ("int64", "uint8", "Int64", "ordered", "intervals")}
    expected["object of integers"] = "ordinal"
    floats = ("float64", "float32", "Float64", "decimals")
    expected |= dict.fromkeys(floats, "continuous") | {"sparse": "ordinal"}
    kinds = dict(zip(X.columns, mixed_kinds(X), strict=True))
    assert kinds == {name: expected.get(name, "nominal") for name in X.columns}


def test_many_numbers_look_continuous():
    X = pd.DataFrame({"few": np.arange(256) / 2, "x": np.linspace(0, 1, 256)})
    assert discrete_kinds(X) == ["ordinal", "ordinal"]
    X = pd.DataFrame({"integers": np.arange(257.0), "x": np.linspace(0, 1, 257)})
    with pytest.raises(ValueError, match=r"'x' has 257 distinct .* IMMSEMixedDensity"):
        discrete_kinds(X)
    assert discrete_kinds(X, {"x": "ordinal"}) == ["ordinal", "ordinal"]
    integers = np.arange(257)[:, None] * [1, 10]
    for n_rows, kind in ((256, "ordinal"), (257, "continuous")):
        with pytest.warns(UserWarning, match=r"Column\(s\) 0, 1 look like identifiers"):
            assert mixed_kinds(integers[:n_rows]) == [kind, kind]


def test_kind_of_all_of_each_or_of_named_columns():
    X = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [0.5, 1.5]})
    assert discrete_kinds(X, "nominal") == ["nominal"] * 3
    assert discrete_kinds(X, ["nominal", "auto", "auto"]) == ["nominal", "nominal", "ordinal"]
    assert discrete_kinds(X, {"c": "nominal"}) == ["ordinal", "nominal", "nominal"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("continuous", "kind must be 'auto', 'nominal' or 'ordinal', got 'continuous'"),
        (["auto"], "kind has 1 entries, but X has 2 columns"),
        ({"z": "nominal"}, "kind names the column 'z', .* 'a', 'b'"),
        (3, "kind must be"),
        ([None, "auto"], "got None for column 'a'"),
    ],
)
def test_invalid_kinds(kind, message):
    with pytest.raises(ValueError, match=message):
        discrete_kinds(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), kind)


MIXED = pd.DataFrame({"f": [0.5, 1.5], "i": [1, 2], "t": ["x", "y"], "b": [True, False]})


@pytest.mark.parametrize(
    ("categorical", "ordinal", "expected"),
    [
        (["i", "t"], "from_dtype", "continuous nominal nominal continuous"),
        ([1, 2], "from_dtype", "continuous nominal nominal continuous"),
        ([False, True, True, False], "from_dtype", "continuous nominal nominal continuous"),
        (np.array([2]), None, "continuous continuous nominal continuous"),
        ("from_dtype", None, "continuous continuous nominal nominal"),
        ("from_dtype", [], "continuous continuous nominal nominal"),
        ("from_dtype", pd.Index(["f", "b"]), "ordinal continuous nominal ordinal"),
        (None, ["t"], "continuous continuous ordinal continuous"),
        (("t",), (0,), "ordinal continuous nominal continuous"),
    ],
)
def test_lists_of_features_win_over_dtypes(categorical, ordinal, expected):
    assert mixed_kinds(MIXED, categorical, ordinal) == expected.split()


@pytest.mark.parametrize(
    ("categorical", "ordinal", "message"),
    [
        (["i", "t"], ["i"], r"'i' are in both categorical_features and ordinal_features"),
        (["z"], None, "categorical_features names the column 'z'"),
        ("from_dtype", ["z"], "ordinal_features names the column 'z'"),
        ([4], None, "categorical_features must hold column numbers from 0 to 3, got 4"),
        ("from_dtype", [-1], "ordinal_features must hold column numbers from 0 to 3, got -1"),
        ([True], None, "categorical_features is a mask of 1 entries, but X has 4"),
        ("t", None, "categorical_features must be 'from_dtype', None or"),
        ([0.5], None, "categorical_features must be 'from_dtype', None or"),
        ([[1]], None, "categorical_features must be 'from_dtype', None or"),
        (None, "from_dtype", r"'t' are not numeric and cannot be continuous"),
    ],
)
def test_invalid_lists_of_features(categorical, ordinal, message):
    with pytest.raises(ValueError, match=message):
        mixed_kinds(MIXED, categorical, ordinal)


def test_columns_without_names_have_no_names_in_lists():
    assert mixed_kinds(np.eye(3), [0], [2]) == ["nominal", "continuous", "ordinal"]
    with pytest.raises(ValueError, match="ordinal_features must hold column numbers or a mask"):
        mixed_kinds(np.eye(3), None, ["0"])


def test_dates_are_no_numbers():
    with pytest.raises(ValueError, match="'x' are not numeric"):
        mixed_kinds(one_column("dates"))
    assert mixed_kinds(one_column("dates"), ["x"]) == ["nominal"]


def test_names_may_be_numbers_or_repeat():
    X = pd.DataFrame([[1, "a"], [2, "b"]], columns=[10, 20])
    encoder = fit(X, categories={20: ["b", "a"]})
    assert [column.label for column in encoder.columns] == ["10", "20"]
    pd.testing.assert_frame_equal(encoder.decode(encoder.encode(X)), X)
    X.columns = ["x", "x"]
    encoder = fit(X)
    pd.testing.assert_frame_equal(encoder.decode(encoder.encode(X)), X)


def single_texts(n_rows):
    return pd.DataFrame(
        {
            "key": [f"C{number}" for number in range(n_rows)],
            "price": [f"1,{number:03d}.50" for number in range(n_rows)],
            "city": ["here", "there"] * (n_rows // 2),
        }
    )


def test_texts_that_seldom_repeat_are_warned_of():
    with pytest.warns(UserWarning, match=r"^Column\(s\) 'key', 'price' hold strings") as caught:
        assert mixed_kinds(single_texts(30)) == ["nominal"] * 3
    assert len(caught) == 1


def test_texts_that_are_meant_as_categories_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed_kinds(single_texts(30), categorical_features=["key", "price", "city"])
        mixed_kinds(single_texts(30).astype("category"))
        mixed_kinds(single_texts(10))  # too few to tell
