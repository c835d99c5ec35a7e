"""The classes whose objects are in saved estimators, and how each becomes fields, and back.

A new estimator, reference, schedule or network is added to `registry` with a line.  Objects of
classes of the user's own are stored too, by what they tell of themselves (`own_codec`), and made
again if their classes are passed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch

from sk_itdiffusion._estimators.density import IMMSEDensity
from sk_itdiffusion._estimators.discrete import IMMSEDiscreteDensity
from sk_itdiffusion._estimators.ensemble import IMMSEEnsemble
from sk_itdiffusion._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._estimators.outlier import IMMSEOutlierDetector
from sk_itdiffusion._estimators.outlier_score import FlooredModel
from sk_itdiffusion._estimators.table import TableEstimator
from sk_itdiffusion._fit.ensemble_model import EnsembleModel, Transport
from sk_itdiffusion._fit.experts import BeyondBounds
from sk_itdiffusion._fit.model import TableModel
from sk_itdiffusion._fit.seeds import Seeds
from sk_itdiffusion._fit.training import _Net
from sk_itdiffusion._immse.cubature import NoiseRule, PiecewiseDensity
from sk_itdiffusion._immse.likelihood import IntegrationRule, MSECurve
from sk_itdiffusion._table.dequantize import Dequantizer
from sk_itdiffusion._table.encoding import Column, TableEncoder
from sk_itdiffusion._table.marginals import (
    AffineMap,
    BoundMap,
    ChainedMap,
    MarginalMap,
    QuantileMap,
    Standardizer,
    Tail,
    YeoJohnsonMap,
)
from sk_itdiffusion._table.space import ColumnKind, TableSpace
from sk_itdiffusion._table.unseen import GeometricTail, UnseenValues
from sk_itdiffusion.denoisers import (
    ConvolutionalNetwork,
    LevelDenoiser,
    LogSNREmbedding,
    PreconditionedDenoiser,
    ReferencedDenoiser,
    ResidualMLP,
    UNetBackbone,
)
from sk_itdiffusion.denoisers.built_in import NETWORK_FAMILIES
from sk_itdiffusion.layout import Layout, Variable
from sk_itdiffusion.persistence.checks import check_fields
from sk_itdiffusion.persistence.encoded import Codec, Decoder, Encoder, Node, Registry
from sk_itdiffusion.persistence.kinds import KINDS
from sk_itdiffusion.persistence.modules import (
    ConfigCodec,
    NetCodec,
    PretrainedCodec,
    ReferencedCodec,
)
from sk_itdiffusion.pretrained import (
    DiscreteTimeNoise,
    EDMNoise,
    LogSNRNoise,
    PretrainedDenoiser,
    SigmaNoise,
)
from sk_itdiffusion.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
)
from sk_itdiffusion.schedules import SCHEDULES

__all__ = ["registry"]


class DataclassCodec(Codec):
    """Objects that are their fields."""

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the fields of an object."""
        names = [each.name for each in dataclasses.fields(value)]
        return encoder.fields({name: getattr(value, name) for name in names})

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with the fields, if they are of the declared types."""
        value = self.cls(**decoder.fields(fields))
        check_fields(value)
        return value


class ModelCodec(DataclassCodec):
    """Fitted models, which may come to another device."""

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the fields of a model."""
        encoder.device = str(value.device)
        return super().encode(value, encoder)

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the model, on the device asked for."""
        model = self.cls(**decoder.fields(fields) | {"device": decoder.device})
        check_fields(model)
        return model


class ArgumentsCodec(Codec):
    """Objects that are the arguments they are made with, which are attributes of the same names."""

    def __init__(self, cls: type, *names: str) -> None:
        super().__init__(cls)
        self.names = names

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the arguments."""
        return encoder.fields({name: getattr(value, name) for name in self.names})

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with the arguments."""
        return self.cls(**decoder.fields(fields))


# -- classes of the user's own -----------------------------------------------------------------


class InitFieldsCodec(Codec):
    """Dataclass objects of the user's own, which are the arguments they are made with."""

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the arguments."""
        names = [each.name for each in dataclasses.fields(value) if each.init]
        return encoder.fields({name: getattr(value, name) for name in names})

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with the arguments."""
        return self.cls(**decoder.fields(fields))


class ParametersCodec(Codec):
    """Objects of the user's own that are their parameters, as those of scikit-learn are."""

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the parameters, or raise an error if that is not all."""
        params = value.get_params(deep=False)
        others = sorted(vars(value).keys() - params.keys())
        if others:
            raise encoder.refusal(
                f"is a {self.name} that has {', '.join(others)} beside its parameters"
            )
        return encoder.fields(params)

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with the parameters."""
        return self.cls(**decoder.fields(fields))


def own_codec(cls: type) -> Codec | None:
    """Return the codec of a class of the user's own; None if its objects cannot be stored."""
    if all(callable(getattr(cls, name, None)) for name in ("config", "from_config")):
        return ConfigCodec(cls)
    if issubclass(cls, torch.nn.Module):
        return None
    if dataclasses.is_dataclass(cls):
        return InitFieldsCodec(cls)
    return ParametersCodec(cls) if callable(getattr(cls, "get_params", None)) else None


# -- estimators --------------------------------------------------------------------------------


class EstimatorCodec(Codec):
    """Estimators: parameters, and the attributes of a fit.

    Parameters
    ----------
    cls : type
        The class.
    attributes : sequence of str
        Attributes to store, those of them that there are.
    finish : callable or None, default=None
        Sets, in a fitted estimator, the attributes that follow from these.
    """

    def __init__(
        self,
        cls: type[BaseEstimator],
        attributes: Sequence[str],
        finish: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(cls)
        self.attributes = attributes
        self.finish = finish

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return parameters and attributes."""
        params = encode_parameters(value.get_params(deep=False), encoder)
        held = {name: vars(value)[name] for name in self.attributes if name in vars(value)}
        node = {"params": params, "attributes": encoder.fields(held)}
        if "_kept" in vars(value):  # a frozen estimator has the attributes of another
            with encoder.at("_kept"):
                node["kept"] = encode_parameters(value._kept, encoder)
        return node

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the estimator."""
        estimator = self.cls(**decoder.fields(fields["params"]))
        attributes = decoder.fields(fields["attributes"])
        unknown = attributes.keys() - set(self.attributes)
        if unknown:
            raise ValueError(f"a {self.name} has no attributes {sorted(unknown)}")
        for name, value in attributes.items():
            setattr(estimator, name, value)
        if "kept" in fields:
            estimator._kept = decoder.fields(fields["kept"])
        if attributes and self.finish is not None:
            self.finish(estimator)
        return estimator


def encode_parameters(params: Mapping[str, Any], encoder: Encoder) -> Node:
    """Return parameters by name."""
    nodes = {}
    for name, value in params.items():
        with encoder.at(name):
            nodes[name] = encode_parameter(name, value, encoder)
    return nodes


def encode_parameter(name: str, value: Any, encoder: Encoder) -> Any:
    """Return the value of a parameter; what cannot be stored, or not without its code, is not."""
    if name == "callbacks" or isinstance(value, np.random.RandomState):
        return None
    if name == "denoiser" and value is not None:
        return encoder.given(value)
    if name != "estimators":
        return encoder.encode(value)
    members = []
    for member in value:
        with encoder.member(member[0]), encoder.at(member[0]):
            members.append(encoder.encode(member))
    return members


def finish_table(estimator: TableEstimator) -> None:
    """Set the attributes that follow from the model and the encoder."""
    encoder = getattr(estimator, "_encoder", None)
    if encoder is not None:
        estimator.categories_ = [column.levels for column in encoder.columns]
        estimator.kinds_ = [column.kind for column in encoder.columns]
    estimator._publish()


def finish_ensemble(ensemble: IMMSEEnsemble) -> None:
    """Set the attributes that follow from the model and the members."""
    model = ensemble._model
    assert isinstance(model, EnsembleModel)
    members = zip(model.members, ensemble.estimators_, strict=True)
    ensemble.named_estimators_ = Bunch(**dict(members))
    ensemble._publish()


COLUMNS = ("n_features_in_", "feature_names_in_")
#: The encoder comes before all that names levels, so that arrays have its names.
TABLE = (*COLUMNS, "_encoder", "_frame_format", "_model", "_kinds", "schedule_")
ENSEMBLE = (
    *COLUMNS,
    "_encoder",
    "_frame_format",
    "_image_shape",
    "estimators_",
    "_model",
    "member_entropies_",
)
DETECTOR = (
    *COLUMNS,
    "estimator_",
    "offset_",
    "calibration_scores_",
    "calibration_weights_",
    "noise_floor_",
    "members_",
    "_floored",
)


@functools.cache
def registry() -> Registry:
    """Return all that may be stored."""
    return Registry(
        KINDS,
        [
            # Estimators.
            EstimatorCodec(IMMSEDensity, TABLE, finish_table),
            EstimatorCodec(IMMSEDiscreteDensity, TABLE, finish_table),
            EstimatorCodec(IMMSEMixedDensity, TABLE, finish_table),
            EstimatorCodec(IMMSEEnsemble, ENSEMBLE, finish_ensemble),
            EstimatorCodec(IMMSEOutlierDetector, DETECTOR),
            EstimatorCodec(FrozenEstimator, ()),
            # Schedules.
            *(ArgumentsCodec(cls, *cls().get_params()) for cls in SCHEDULES.values()),
            # Models and their parts.
            ModelCodec(TableModel),
            ModelCodec(EnsembleModel),
            *map(
                DataclassCodec,
                [
                    AffineMap,
                    BeyondBounds,
                    BoundMap,
                    ChainedMap,
                    Column,
                    ColumnKind,
                    Dequantizer,
                    FlooredModel,
                    GeometricTail,
                    IntegrationRule,
                    MarginalMap,
                    MSECurve,
                    NoiseRule,
                    PiecewiseDensity,
                    QuantileMap,
                    Seeds,
                    Standardizer,
                    TableEncoder,
                    TableSpace,
                    Tail,
                    Transport,
                    UnseenValues,
                    Variable,
                    YeoJohnsonMap,
                ],
            ),
            NetCodec(_Net, "Net"),
            # References.
            *map(
                ConfigCodec,
                [
                    GaussianMixtureReference,
                    GaussianReference,
                    IndependentReference,
                    KernelDensityReference,
                    LatentClassReference,
                    LowRankGaussianReference,
                ],
            ),
            # Networks.
            *map(
                ConfigCodec,
                [
                    ConvolutionalNetwork,
                    Layout,
                    LevelDenoiser,
                    LogSNREmbedding,
                    PreconditionedDenoiser,
                    ResidualMLP,
                    UNetBackbone,
                ],
            ),
            *map(ArgumentsCodec, NETWORK_FAMILIES.values()),
            # Networks of the user's own.
            ReferencedCodec(ReferencedDenoiser),
            PretrainedCodec(PretrainedDenoiser),
            ArgumentsCodec(LogSNRNoise),
            ArgumentsCodec(SigmaNoise),
            ArgumentsCodec(EDMNoise, "sigma_data"),
            ArgumentsCodec(DiscreteTimeNoise, "alphas_cumprod", "continuous_time"),
        ],
        own_codec,
    )
