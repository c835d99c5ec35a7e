"""Families of networks: all that depends on which kind of backbone is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sklearn.base import BaseEstimator
from torch import Generator, nn

from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion._first.layout import Layout

__all__ = ["BackbonePlan", "NetworkFamily", "NetworkTask", "PlannedNetwork", "UsualParameters"]

#: Hidden units up to which one thread trains as fast as several.
MAX_FOR_ONE_THREAD = 256
MAX_PIXELS_FOR_ONE_THREAD = 256
#: Rows up to which networks of continuous columns are half as wide.
MAX_ROWS_FOR_NARROW_NETWORKS = 1_500
#: Networks, of different regularisation, that a table of continuous columns gets.
NETWORKS_OF_A_TABLE = 2


@dataclass(frozen=True)
class NetworkTask:
    """The kind of table that networks are for.

    Attributes
    ----------
    has_categories : bool
        Whether there are discrete columns.
    has_continuous : bool
        Whether there are continuous columns.
    image_shape : tuple of int or None
        Height and width, or channels, height and width, if columns are pixels.
    n_rows : int or None
        Number of rows of the first fit; None if it is not known, as of a stream.
    """

    has_categories: bool = False
    has_continuous: bool = True
    image_shape: tuple[int, ...] | None = None
    n_rows: int | None = None

    @property
    def has_continuous_images(self) -> bool:
        """Whether columns are pixels that are continuous."""
        return self.image_shape is not None and self.has_continuous

    @property
    def has_large_images(self) -> bool:
        """Whether images have so many pixels that one thread is slow."""
        shape = self.image_shape
        return shape is not None and math.prod(shape) > MAX_PIXELS_FOR_ONE_THREAD


@dataclass(frozen=True)
class UsualParameters:
    """What "auto" stands for in parameters of an estimator.

    Attributes
    ----------
    hidden_size, n_blocks, batch_size : int
        Positive numbers; see `IMMSEDensity`.
    learning_rate : float
        Positive number; see `IMMSEDensity`.
    """

    hidden_size: int
    n_blocks: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class BackbonePlan:
    """What a backbone is built from.

    Attributes
    ----------
    n_inputs : int
        Inputs: noisy continuous columns, then for discrete ones the means of their points given
        the noisy row, under independent columns.  Networks that are trained on parts of rows
        (``patterns="any"``) have two more for each column, whether it is noisy and whether it is
        given; values of given columns are without noise, those of missing ones 0.
    n_outputs : int
        Outputs: corrections of the noise of the continuous columns, then numbers from which those
        of the discrete columns' log-odds follow.
    n_periodic : int
        How many inputs, from the first on, are continuous or lattices as fine.  The others are
        between few values.
    embedding : LogSNREmbedding
        Smooth features of the log-SNR: ``embedding(logsnr)`` has shape (B, embedding.n_features).
    logsnr_range : tuple of (float, float)
        Smallest and largest log-SNR in training.
    hidden_size, n_blocks, n_frequencies : int
        Parameters of the estimator, with the usual values instead of "auto".
    dropout : float
        Dropout rate.  What `torch.nn.Dropout` drops is drawn from the generator too.
    generator : Generator
        Source of the initial weights.
    task : NetworkTask
        The kind of table.
    layout : Layout or None
        Where columns are in the points; None if it is not known.
    """

    n_inputs: int
    n_outputs: int
    n_periodic: int
    embedding: LogSNREmbedding
    logsnr_range: tuple[float, float]
    hidden_size: int
    n_blocks: int
    n_frequencies: int
    dropout: float
    generator: Generator
    task: NetworkTask
    layout: Layout | None = None


class NetworkFamily(DocumentationLinkMixin, BaseEstimator, ABC):
    """Base class of the families of networks: one kind of backbone, for tables of any size.

    A custom family defines `build`, and takes its parameters like an estimator of
    scikit-learn: ``__init__`` stores them as attributes of the same names, so that it can be
    cloned and searched (``network__width``).

    Attributes
    ----------
    name : str
        Name for messages.

    See Also
    --------
    MLPFamily : Fully connected networks, for any table.
    ConvolutionalFamily : Small convolutional networks, for images.
    UNetFamily : U-Nets of the diffusers package, for images of continuous pixels.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.denoisers import NetworkFamily
    >>> class Shallow(torch.nn.Module):
    ...     def __init__(self, n_inputs, n_outputs, width):
    ...         super().__init__()
    ...         self.inlet = torch.nn.Linear(n_inputs + 1, width)
    ...         self.outlet = torch.nn.Linear(width, n_outputs)
    ...         torch.nn.init.zeros_(self.outlet.weight)
    ...         torch.nn.init.zeros_(self.outlet.bias)
    ...
    ...     def forward(self, inputs, logsnr):
    ...         inputs = torch.cat([inputs, 0.1 * logsnr[:, None]], dim=1)
    ...         return self.outlet(torch.tanh(self.inlet(inputs)))
    >>> class ShallowFamily(NetworkFamily):
    ...     def build(self, plan):
    ...         return Shallow(plan.n_inputs, plan.n_outputs, plan.hidden_size)
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> density = IMMSEDensity(network=ShallowFamily(), max_epochs=1, random_state=0).fit(X)
    >>> type(density.net_.module_.denoiser.backbone).__name__
    'Shallow'
    """

    name: ClassVar[str] = "own"
    #: What the network needs, for messages.
    needs: ClassVar[str] = "another kind of table"
    #: Whether what `build` returns predicts the noise by itself, instead of correcting a reference.
    is_complete: ClassVar[bool] = False

    @abstractmethod
    def build(self, plan: BackbonePlan) -> nn.Module:
        """Return an untrained backbone.

        It is called as ``backbone(inputs, logsnr)`` with shapes (B, n_inputs) and (B,), and
        returns (B, n_outputs), in single precision; a row's outputs must not depend on other rows.
        The outputs are factors of what is added to a reference's prediction, so they should be
        zero at the start: let the last layer begin at zero.

        While it is built torch's own random numbers come from the seed of the network, and are
        then as they were; ``plan.generator`` is another source.  Weights of layers that are called
        ``expand`` and ``contract`` are trained by Muon, all others by AdamW.  To be saved, a
        backbone needs the methods ``config`` and ``from_config``.

        Parameters
        ----------
        plan : BackbonePlan
            What the backbone is built from.

        Returns
        -------
        nn.Module
            The backbone.
        """

    def applies(self, task: NetworkTask) -> bool:
        """Return whether there are such networks for a kind of table; by default for all.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.

        Returns
        -------
        bool
            Whether `build` can be called.
        """
        return True

    def check(self, task: NetworkTask, hidden_size: int) -> None:
        """Raise an error if there is no network of a width; by default there are all.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.
        hidden_size : int
            Hidden units or channels, at least 1.

        Raises
        ------
        ValueError
            If there is no such network.
        """

    def usual(self, task: NetworkTask) -> UsualParameters:
        """Return what "auto" stands for; by default what it is for fully connected networks.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.

        Returns
        -------
        UsualParameters
            The usual parameters.
        """
        is_small = task.n_rows is not None and task.n_rows <= MAX_ROWS_FOR_NARROW_NETWORKS
        width = 256 if task.has_categories else 64 if is_small else 128
        return UsualParameters(width, n_blocks=2, batch_size=512, learning_rate=0.03)

    def is_costly(self, task: NetworkTask) -> bool:
        """Return whether steps take so long that there are few networks and long epochs.

        By default this is so for images of continuous pixels.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.

        Returns
        -------
        bool
            Whether steps are expensive.
        """
        return task.has_continuous_images

    def n_networks(self, task: NetworkTask) -> int:
        """Return how many networks are trained if each has a core and sees rows in memory.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.

        Returns
        -------
        int
            By default 2 for continuous columns, unless steps are expensive, and otherwise 1.
        """
        return 1 if task.has_categories or self.is_costly(task) else NETWORKS_OF_A_TABLE

    def trains_in_one_thread(self, task: NetworkTask, hidden_size: int) -> bool:
        """Return whether a CPU would not train a network faster with more threads.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.
        hidden_size : int
            Hidden units or channels.

        Returns
        -------
        bool
            By default whether both the network and images, if there are any, are small.
        """
        return hidden_size <= MAX_FOR_ONE_THREAD and not task.has_large_images

    def beside(self, task: NetworkTask) -> Mapping[str, PlannedNetwork]:
        """Return networks of other families that are trained too, by name; by default none.

        Parameters
        ----------
        task : NetworkTask
            The kind of table.

        Returns
        -------
        dict of str to PlannedNetwork
            The other networks.  The only name that there is for one is ``"dense_network"``.
        """
        return {}


@dataclass(frozen=True)
class PlannedNetwork:
    """A network that a fit trains.

    Attributes
    ----------
    family : NetworkFamily
        Its family.
    hidden_size, n_blocks : int
        Its sizes.
    """

    family: NetworkFamily
    hidden_size: int
    n_blocks: int
