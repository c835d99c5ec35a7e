"""The networks of a fit."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from sk_itdiffusion._immse.placement import Placement
from sk_itdiffusion._immse.schedules import Schedule
from sk_itdiffusion._model.table import Split
from sk_itdiffusion.networks.base import CorrectedReference, LogSNRFeatures, Network
from sk_itdiffusion.networks.training import Training, TrainingData, scarcity, train
from sk_itdiffusion.references.base import Reference
from sk_itdiffusion.references.mixture import MixtureReference

__all__ = ["NetworkSettings", "train_networks"]

Array = NDArray[np.float64]
MAX_ROWS_OF_NARROW, NARROW, WIDE = 1_500, 64, 128
MAX_DROPOUT, LEAST_DROPOUT, MAX_DECAY = 0.4, 0.01, 0.3


@dataclass(frozen=True)
class NetworkSettings:
    """How networks are built and trained.

    Attributes
    ----------
    network : Network
        The backbone.
    training : Training
        Optimiser and epochs.
    schedule : Schedule
        Importance density of the log-SNR.
    max_epochs : int
        Epochs at most.
    ends_at : float or None
        When the training has to end, on the monotonic clock.
    has_parts : bool
        Whether parts of rows are answered too.
    callbacks : sequence
        Callbacks of skorch.
    report : callable or None
        Is told the number of each epoch, and the gain over the references in nats.
    seed : int
        Seed of weights and noise.
    """

    network: Network
    training: Training
    schedule: Schedule
    max_epochs: int
    ends_at: float | None
    has_parts: bool
    callbacks: Sequence[Any]
    report: Callable[[int, float], None] | None
    seed: int


def train_networks(
    points: Array,
    weight: Array,
    split: Split,
    references: dict[str, Reference],
    best: str,
    nodes: Array,
    settings: NetworkSettings,
) -> tuple[CorrectedReference, skorch.NeuralNet]:
    """Return the trained network, which corrects the normal reference, and its net.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Points; NaN is missing.
    weight : ndarray of shape (n,)
        Weights of the rows.
    split : Split
        Which rows validate.
    references : dict of str to Reference
        References that have not seen these.
    best : str
        The one that the network has to improve on.
    nodes : ndarray
        Log-SNRs of the range.
    settings : NetworkSettings
        Parameters.

    Returns
    -------
    network : CorrectedReference
        The network.
    net : skorch.NeuralNet
        The net that trained it.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    valid = split.held[:, 0]
    train_rows, valid_rows = np.flatnonzero(~valid), np.flatnonzero(valid)
    plain = references["gaussian"]
    assert isinstance(plain, MixtureReference)
    spectrum = torch.linalg.eigvalsh(plain.covariances[0]).numpy()
    placement: Placement = settings.schedule.density(nodes[0], nodes[-1], spectrum)
    n_rows = len(train_rows)
    strength = scarcity(n_rows)
    backbone = settings.network
    chosen = clone(backbone)
    parameters = backbone.get_params()
    dropout = parameters.get("dropout", 0.0)
    if dropout == "auto":
        dropout = MAX_DROPOUT * strength if MAX_DROPOUT * strength >= LEAST_DROPOUT else 0.0
    if parameters.get("hidden_size") == "auto":
        chosen.set_params(hidden_size=NARROW if n_rows <= MAX_ROWS_OF_NARROW else WIDE)
    decay = settings.training.weight_decay
    features = LogSNRFeatures(float(nodes[0]), float(nodes[-1]))
    network = CorrectedReference(
        copy.deepcopy(plain), chosen.build(points.shape[1], features, dropout, generator), features
    )
    data = TrainingData(
        torch.from_numpy(points[train_rows]),
        torch.from_numpy(points[valid_rows]),
        torch.from_numpy(weight[train_rows]),
        placement,
        references[best],
        settings.has_parts,
        settings.schedule.adaptive,
    )
    net = train(
        network,
        data,
        settings.training,
        settings.max_epochs,
        None if settings.ends_at is None else max(settings.ends_at - time.monotonic(), 0.1),
        generator,
        settings.callbacks,
        settings.report,
        MAX_DECAY * strength if isinstance(decay, str) else decay,
    )
    return network, net
