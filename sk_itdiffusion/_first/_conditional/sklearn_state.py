"""Fitted models of scikit-learn as plain values, and back: for files, which hold no code.

Only the classes that automatic base models are made of are known.  What is read becomes attributes
of their objects, never code, and trees are checked to be such before compiled code follows them.
The attributes are those of one version of scikit-learn, so that no other one reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn._loss import link, loss
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.ensemble._hist_gradient_boosting.binning import _BinMapper
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    LabelEncoder,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from sklearn.tree import ExtraTreeClassifier, ExtraTreeRegressor
from sklearn.tree._tree import Tree
from sklearn.utils import check_array

__all__ = ["fitted_state", "model_of_state"]

Node = dict[str, Any]

#: What stands for an object, in a dict that says of which kind.
KIND = "kind"
#: Classes whose objects are their attributes.
PLAIN = {
    cls.__name__: cls
    for cls in (
        ColumnTransformer,
        ExtraTreeClassifier,
        ExtraTreeRegressor,
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        FunctionTransformer,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        LabelEncoder,
        LogisticRegression,
        MLPRegressor,
        MissingIndicator,
        Nystroem,
        OneHotEncoder,
        OrdinalEncoder,
        Pipeline,
        RidgeCV,
        SimpleImputer,
        StandardScaler,
        TreePredictor,
        _BinMapper,
        link.IdentityLink,
        link.Interval,
        link.LogitLink,
        link.MultinomialLogit,
        loss.HalfBinomialLoss,
        loss.HalfMultinomialLoss,
        loss.HalfSquaredError,
    )
}
#: Compiled classes without attributes.
COMPILED = {
    cls.__name__: cls
    for cls in (loss.CyHalfBinomialLoss, loss.CyHalfMultinomialLoss, loss.CyHalfSquaredError)
}
#: Bytes of the nodes of all trees.
MAX_BYTES_OF_A_RECORD = 256
#: Attributes that are for fits only.
LEFT_OUT = ("_feature_subsample_rng", "_scorer", "_sample_weight", "_optimizer", "_random_state")


def fitted_state(model: Any) -> Node:
    """Return a fitted model as plain values.

    Parameters
    ----------
    model : estimator
        The model.

    Returns
    -------
    dict
        Dicts, lists, texts, numbers and arrays.

    Raises
    ------
    TypeError
        If it is none of the automatic ones, or has a part of another class.
    """
    return {"version": sklearn.__version__, "model": as_values(model)}


def model_of_state(state: Node) -> Any:
    """Return the model of plain values.

    Raises
    ------
    ValueError
        If they are of another version of scikit-learn, or do not fit together.
    """
    if state["version"] != sklearn.__version__:
        raise ValueError(
            f"its base models are of scikit-learn {state['version']}, and this is "
            f"{sklearn.__version__}; fit and save the estimator again, or install that version"
        )
    model = from_values(state["model"])
    check_trees(model)
    return model


def as_values(value: Any) -> Any:
    """Return a value without objects of scikit-learn."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    cls = type(value)
    if cls is np.ndarray:
        return array_values(value)
    if isinstance(value, np.generic):
        return {KIND: "scalar", "dtype": value.dtype.str, "value": value.item()}
    if cls in (list, tuple):
        return {KIND: cls.__name__, "items": [as_values(item) for item in value]}
    if cls is dict:
        return {KIND: "dict", "keys": list(value), "items": [as_values(v) for v in value.values()]}
    if cls is slice:
        return {KIND: "slice", "items": [value.start, value.stop, value.step]}
    if isinstance(value, np.dtype):
        return {KIND: "dtype", "name": value.str}
    if value is np.float64:
        return {KIND: "float64"}
    if cls is partial and value.func is check_array and not value.args:
        return {KIND: "check_array", "keywords": as_values(value.keywords)}
    if cls is Tree:
        _, (n_features, n_classes, n_outputs), state = value.__reduce__()
        arguments = {"n_features": n_features, "n_classes": n_classes, "n_outputs": n_outputs}
        return {KIND: "Tree", "arguments": as_values(arguments), "state": as_values(state)}
    if COMPILED.get(cls.__name__) is cls:
        return {KIND: cls.__name__}
    if PLAIN.get(cls.__name__) is not cls:
        raise TypeError(
            f"The base model has a {cls.__name__}, which cannot be saved: only those that "
            "base='auto' has can. Pickle the estimator instead, for those you trust."
        )
    state = {k: None if k in LEFT_OUT else v for k, v in vars(value).items()}
    return {KIND: cls.__name__, "state": as_values(state)}


def array_values(array: NDArray[Any]) -> Any:
    """Return an array; one of records as its columns, one of lists as a list."""
    if array.dtype.names is not None:
        columns = {name: np.ascontiguousarray(array[name]) for name in array.dtype.names}
        fields: Mapping[str, Any] = array.dtype.fields or {}
        return {
            KIND: "records",
            "names": list(columns),
            "dtypes": [fields[name][0].str for name in columns],
            "offsets": [fields[name][1] for name in columns],
            "size": array.dtype.itemsize,
            "columns": list(columns.values()),
        }
    if array.dtype == object:
        return {KIND: "objects", "items": [as_values(item) for item in array.ravel()]}
    return array


def from_values(node: Any) -> Any:
    """Return the value that `as_values` took apart."""
    if not isinstance(node, dict):
        return node
    kind = node[KIND]
    if kind == "scalar":
        return np.dtype(node["dtype"]).type(node["value"])
    if kind == "dict":
        items = [from_values(item) for item in node["items"]]
        return dict(zip(node["keys"], items, strict=True))
    if kind in CONTAINERS:
        return CONTAINERS[kind]([from_values(item) for item in node["items"]])
    if kind == "dtype":
        return np.dtype(node["name"])
    if kind == "float64":
        return np.float64
    if kind == "check_array":
        return partial(check_array, **from_values(node["keywords"]))
    if kind == "records":
        return made_records(node)
    if kind == "Tree":
        arguments = from_values(node["arguments"])
        state = from_values(node["state"])
        check_nodes(state["nodes"], arguments["n_features"])
        tree = Tree(arguments["n_features"], arguments["n_classes"], arguments["n_outputs"])
        tree.__setstate__(state)
        return tree
    if kind in COMPILED:
        return COMPILED[kind]()
    made = object.__new__(PLAIN[kind])
    made.__dict__.update(from_values(node["state"]))
    return made


def made_slice(items: list[Any]) -> slice:
    """Return a slice of its three parts."""
    return slice(*items)


def made_objects(items: list[Any]) -> NDArray[np.object_]:
    """Return a one-dimensional array of objects."""
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "slice": made_slice,
    "objects": made_objects,
}


def made_records(node: Node) -> NDArray[Any]:
    """Return an array of records from its columns."""
    dtype = np.dtype(
        {
            "names": node["names"],
            "formats": node["dtypes"],
            "offsets": node["offsets"],
            "itemsize": node["size"],
        }
    )
    if dtype.hasobject or dtype.itemsize > MAX_BYTES_OF_A_RECORD:
        raise ValueError("the records of a base model are none")
    found = np.zeros(len(node["columns"][0]), dtype=dtype)
    for name, column in zip(node["names"], node["columns"], strict=True):
        found[name] = column
    return found


# -- trees -------------------------------------------------------------------------------------


def check_nodes(nodes: NDArray[Any], n_features: int) -> None:
    """Raise a ValueError unless nodes are a tree: compiled code follows them without looking."""
    number = np.arange(len(nodes))
    is_inner = nodes["left_child"] >= 0
    children = np.stack([nodes["left_child"], nodes["right_child"]])[:, is_inner]
    feature = nodes["feature"][is_inner]
    check_children(children, number[is_inner], len(nodes), feature, n_features)


def check_children(
    children: NDArray[Any],
    parent: NDArray[np.intp],
    n_nodes: int,
    feature: NDArray[Any],
    n_features: int,
) -> None:
    """Raise a ValueError unless children follow their parents, and features are there."""
    wrong = (children <= parent).any() or (children >= n_nodes).any() or n_nodes < 1
    if wrong or (feature < 0).any() or (feature >= n_features).any():
        raise ValueError("the nodes of a base model are no tree")


def check_trees(model: Any) -> None:
    """Raise a ValueError if trees of a model do not fit to its columns or outputs."""
    if isinstance(model, ExtraTreesClassifier | ExtraTreesRegressor):
        n_outputs = {each.tree_.n_outputs for each in model.estimators_}
        n_features = {each.tree_.n_features for each in model.estimators_}
        if n_features != {model.n_features_in_} or n_outputs != {1}:
            raise ValueError("the trees of a base model have other columns")
    if isinstance(model, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        mapper = model._bin_mapper
        is_category = np.asarray(mapper.is_categorical_, dtype=bool)
        sizes = {model._n_features, len(is_category), len(mapper.bin_thresholds_)}
        if sizes != {model.n_features_in_}:
            raise ValueError("the trees of a base model have other columns")
        for predictor in (each for several in model._predictors for each in several):
            check_predictor(predictor, is_category)


def check_predictor(predictor: TreePredictor, is_category: NDArray[np.bool_]) -> None:
    """Raise a ValueError unless the nodes of gradient boosting are a tree."""
    nodes = predictor.nodes
    is_inner = nodes["is_leaf"] == 0
    children = np.stack([nodes["left"], nodes["right"]])[:, is_inner].astype(np.int64)
    parent = np.flatnonzero(is_inner)
    check_children(children, parent, len(nodes), nodes["feature_idx"][is_inner], len(is_category))
    of_categories = nodes[is_inner & (nodes["is_categorical"] != 0)]
    is_there = of_categories["bitset_idx"] < len(predictor.raw_left_cat_bitsets)
    if not (is_there & is_category[of_categories["feature_idx"]]).all():
        raise ValueError("the nodes of a base model are no tree")
