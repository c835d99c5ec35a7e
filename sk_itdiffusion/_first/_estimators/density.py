"""Density estimation for continuous rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from sk_itdiffusion._first._estimators.parameters import (
    checked_image_shape,
    checked_weight,
    flattened_images,
    numbers_in,
)
from sk_itdiffusion._first._estimators.table import TableEstimator, stored_table
from sk_itdiffusion._first._fit.networks import GivenFamily
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.kinds import warn_of_identifiers, warn_of_merged_integers
from sk_itdiffusion._first._table.marginals import MARGINAL_KINDS
from sk_itdiffusion._first._table.partitions import (
    has_missing_entries,
    is_dask,
    partitions_of,
    sample,
)
from sk_itdiffusion._first._table.reading import (
    naming_columns,
    with_one_nan,
    without_missing_objects,
    without_tensors,
)
from sk_itdiffusion._first._table.space import ColumnKind
from sk_itdiffusion._first._table.streams import RowStream, Stream, is_dataset, read_rows
from sk_itdiffusion._first.denoisers import NetworkFamily, NetworkTask
from sk_itdiffusion._first.pretrained import as_pretrained
from sk_itdiffusion._first.references import ContinuousReference, ReferenceFamily
from sk_itdiffusion._first.schedules import Schedule

__all__ = ["IMMSEDensity"]


@stored_table
class IMMSEDensity(TableEstimator):
    r"""Density estimation for continuous columns with denoising networks, by the I-MMSE relation.

    Networks learn to predict the noise in noisy rows, at all signal-to-noise ratios; the
    log-density of a row is an integral of the squared error over the log-SNR [1]_,

    .. math:: \log p(x) = \log q(x) + \frac12 \int da\; E_\epsilon\left[
        \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right],

    with an analytic reference q.  At each log-SNR, networks and references are combined with
    weights that minimise the error on validation rows.

    The defaults suit most tables.  The parameters to know first are ``max_epochs`` (0 for a fast
    fit without networks), ``time_limit``, ``bounds``, ``dequantize``, ``score_tol``, ``verbose``
    and ``random_state``.  Of all parameters, ``reference`` to ``n_networks`` define the model,
    ``hidden_size`` to ``time_limit`` networks and their training, and the rest scoring and
    computation.

    Parameters
    ----------
    reference : str or ContinuousReference, default="auto"
        Reference q, the control variate of the integral: ``"gaussian"``, ``"gaussian_mixture"``,
        ``"kernel_density"``, ``"auto"`` or an object.  ``"auto"`` selects the most likely, on
        validation rows, of a normal distribution, a mixture of normal distributions whose number of
        components is chosen by validation, and the kernel density; only those in ``experts`` are
        considered, and the normal one if there are none.  An object is in the units of X; columns
        are then only standardised.
    experts : "auto" or list of str and ReferenceFamily, default="auto"
        Denoisers that are combined at each log-SNR: any of ``"network"``, ``"gaussian"``,
        ``"gaussian_mixture"``, ``"kernel_density"`` and ``"reference"`` (the object given as
        ``reference``), where ``"network"`` stands for all networks, and custom families of
        references, see `sk_itdiffusion.references.ReferenceFamily`.  ``"auto"``, also as an entry
        of a list, stands for all that are available; ``["network"]`` excludes the references.

        The kernel density has a kernel around each of at most 10,000 training rows, which the
        estimator then stores, and resolves structure as fine as repeated values.  It requires at
        most 50 columns and a device with double precision, which is unavailable on MPS.  By default
        it is used only together with networks, with ``reference="auto"``, and if it improves the
        validation bound by more than 0.02 nats and one standard error; training rows are more
        likely under it than new rows.
    marginals : {"auto", "standard", "quantile", "yeo_johnson"}, default="auto"
        Increasing map of each column: standardisation only, a quantile transformation to a normal
        distribution, or a power transformation.  ``"auto"`` chooses by validation, and uses
        quantiles for columns with heavy tails, unless they are worse by more than two standard
        errors.
    bounds : "auto", None, dict or sequence, default="auto"
        Bounds of columns: a dict from names (or numbers) of columns to pairs (low, high), or a pair
        or None for each column; None or an infinite number means no bound.  Rows of `fit` must lie
        between the bounds, which are themselves excluded (included for columns on a lattice with
        ``dequantize``); elsewhere the density is 0.  With ``marginals="auto"``, ``"auto"`` chooses
        by validation between maps with and without the bounds that the data suggest: 0 for a column
        of one sign, 0 and 1 for a column between these, if values come close.  Rows beyond such
        bounds are never sampled, and together have a probability of 1 / (n + 2), which falls
        exponentially with the distance from the bound; the other entries of such rows are scored as
        if those beyond were missing.
    schedule : str or Schedule, default="adaptive"
        Importance density of the log-SNR in training: ``"adaptive"``, ``"logistic"``,
        ``"truncated_normal"``, ``"uniform"``, ``"ddpm_linear"``, ``"cosine"``, or an object of
        `sk_itdiffusion.schedules`, whose parameters can be searched (``schedule__loc``).
    image_shape : tuple of int or None, default=None
        Channels, height and width (or height and width) if columns are pixels, in this order; X may
        also be an array of images.  All pixels are standardised alike, and the covariance of the
        normal reference is shrunk towards its diagonal, or of low rank.
    network : {"auto", "mlp", "convolutional", "unet"} or NetworkFamily, default="auto"
        Networks to train: fully connected ones, small convolutional ones or `diffusers.UNet2DModel`
        (both for images only; the extra ``sk_itdiffusion[images]`` installs the latter), or a
        custom family, see `sk_itdiffusion.denoisers.NetworkFamily`.  ``"auto"`` is the U-Net for
        images, and fully connected otherwise.
    denoiser : nn.Module or None, default=None
        A denoiser to use instead of the built-in networks, with ``network="auto"``: a
        `PretrainedDenoiser`, or a module called as ``denoiser(z, logsnr)`` with standardised noisy
        rows (B, d) and log-SNRs (B,) that returns the noise.  A copy is trained; with
        ``max_epochs=0`` it is used as is.
    dequantize : bool, float or array-like of shape (n_features,), default=False
        Whether columns are integers or other multiples of a step, so that scores are
        log-probabilities. Uniform noise of the width of the step, centred at zero, is added to the
        columns, and `score_samples` returns the mean log-density over the noise plus the logarithm
        of the product of the steps: a lower bound on the log-probability.  True detects the steps,
        and adds no noise to columns that are not on a lattice; a number is the positive step of all
        columns; an array has one step per column, 0 for no noise.  Each row has its own noise (up
        to 16 draws for fewer than 10,000 rows); duplicates are different observations, in training
        and in validation, unless a column has no noise, or columns are pixels.  For a constant
        column all other values together have the probability 1 / (n_samples + 2), which decreases
        geometrically with the distance.
    patterns : {"auto", "joint", "any"}, default="auto"
        Which questions networks answer.  ``"joint"``: they are trained on complete rows, and parts
        of rows (marginal and conditional densities, rows with missing entries) are scored by the
        references alone.  ``"any"``: they are trained on random parts of rows given other parts, in
        about twice the time, and answer all questions; the density of complete rows may be slightly
        worse.  ``"auto"`` is ``"any"`` if rows of `fit` have missing entries, and ``"joint"``
        otherwise.  Images, a ``denoiser``, ``dequantize`` and more than 64 columns (30 if entries
        are missing) require ``"auto"`` or ``"joint"``, which are the same for them.
    n_networks : int or "auto", default="auto"
        Number of networks to train and combine, at least 1; every second one has half the dropout
        and weight decay of ``"auto"``.  ``"auto"`` is 2, and 1 for images, a given denoiser, data
        larger than memory, several processes, `partial_fit`, and with ``callbacks``.  Two networks
        are trained in parallel if there are two cores, unless there are ``callbacks``.
    hidden_size : int or "auto", default="auto"
        Width of the hidden layers, at least 1; ``"auto"`` is 128, or 64 if there are at most 1500
        rows, for U-Nets 32 channels (a multiple of 8) at full resolution, and 64 for convolutional
        networks.
    n_blocks : int or "auto", default="auto"
        Residual blocks (of U-Nets: at each resolution), at least 1; ``"auto"`` is 2, 1 for U-Nets
        and 3 for convolutional networks.
    n_frequencies : int, default=4
        Number of frequencies of the sine and cosine features of each column, at least 0.
    dropout : float or "auto", default="auto"
        Dropout rate in [0, 1); ``"auto"`` is larger for fewer rows.
    weight_decay : float or "auto", default="auto"
        Weight decay of the hidden layers, at least 0; ``"auto"`` is larger for fewer rows.
    max_epochs : int, default=200
        Maximum number of epochs, at least 0; training usually ends earlier, see ``tol``.  0 is the
        fast setting: no network is trained (one that ``experts`` names stays as initialised, equal
        to the normal reference), and fits take seconds.
    steps_per_epoch : int or "auto", default="auto"
        Optimisation steps per epoch, at least 1; a pass through the rows may span epochs.
        ``"auto"`` is a 120th of the number of rows, between 37 (for fewer than 1500 rows a fortieth
        of them, at least 10) and 160; for images and given denoisers it is 100, fewer for less than
        5000 rows.
    batch_size : int or "auto", default="auto"
        Noisy rows per step, at least 1; ``"auto"`` is 512, 64 for U-Nets and for given denoisers
        of images, and 128 for convolutional networks.
    num_workers : int, default=0
        Processes that read the items of a torch dataset, at least 0; 0 reads them in this one.
    micro_batch_size : int or None, default=None
        Number of rows whose gradients are computed at a time and accumulated, at least 1; limits
        the memory of training.
    learning_rate : float or "auto", default="auto"
        Learning rate of the hidden layers (Muon), positive; that of all other parameters (AdamW) is
        0.15 times as large.  It decreases with the square root of the number of steps from the
        500th on, and to zero in the last half of them.  ``"auto"`` is 0.03, for U-Nets 0.007, for
        convolutional networks 0.02, and for a given denoiser 0.001.
    early_stopping : bool, default=True
        Whether to stop when the validation bound no longer improves, or not enough (``tol``).
    validation_fraction : float, default=0.1
        Fraction in (0, 1) of the distinct rows, at least 10 and at most 10,000 rows, that is held
        out to choose epochs, maps, references and weights.  With fewer than 40 distinct rows
        nothing is held out, and the model is the normal reference.
    tol : float or "auto", default="auto"
        Minimum gain in nats, at least 0, for which doubling the steps is worthwhile.  Training ends
        when doubling them will probably gain less, judging by the last doublings and the validation
        bound of the network combined with the references.  ``"auto"`` is 0.02, or 0.002 per column
        if that is more.
    n_iter_no_change : int, default=6
        Number of epochs without improvement after which training ends, at least 1; a third of all
        epochs if that is more.
    time_limit : float or None, default=None
        Seconds after which `fit` should end, positive.  The training of networks ends after 85% of
        the time, with a learning rate of zero.  References, which are fitted before, and weights,
        which are fitted after, are not limited.  How far the training gets depends on the machine,
        so the same ``random_state`` may then give different fits.
    score_tol : float or "auto", default="auto"
        Target standard error of the numerical integration for each row, in nats, positive; may be
        changed after `fit`.  The time is inversely proportional to its square.  ``"auto"`` is 0.1
        nats, or 0.01 per column if that is more, for the median row of similar log-density, as far
        as 256 log-SNRs (32 for images) reach it; a number is a root mean square over such rows.
        With ``dequantize`` the noise within the cells adds an error, which decreases with
        ``score_tol`` too.
    device : str, default="auto"
        Where to train and score: ``"auto"`` is CUDA if available, else MPS, else the CPU.
    warm_start : bool, default=False
        Whether `fit` continues from the network, the maps and the references of the earlier fit.
    callbacks : list or None, default=None
        Additional skorch callbacks for the training.  Callbacks of scikit-learn (1.9 or newer) are
        set by `set_callbacks`.
    verbose : int, default=0
        Verbosity, at least 0 (silent).  With 1 or more, `fit` shows a progress bar with the bound
        of each epoch, in nats per row; scoring and sampling show one if they take more than a few
        seconds.
    random_state : int, RandomState or None, default=None
        Seed of the split, the initial weights, the noise in training, and the noise in scoring.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X had string names.
    net_ : skorch.NeuralNet or None
        The first trained net; None if there was no network to train.
    nets_ : dict of str to skorch.NeuralNet
        All trained nets by name: ``"network"``, ``"network_2"`` and so on.
    reference_ : Reference
        The control variate, on the standardised and mapped columns.
    references_ : dict of str to Reference
        All references, by name.
    marginals_ : str
        Type of map in use.
    column_marginals_ : list of str or None
        Type of map of each column, which differs from ``marginals_`` for columns with heavy tails;
        None for columns that do not vary.
    bounds_ : ndarray of shape (`n_features_in_`, 2)
        Bounds of the columns in use, infinite where there are none.
    schedule_ : Schedule
        The schedule object in use.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the experts at the nodes; piecewise linear between them.
    history_ : list of dict
        ``epoch``, ``train_bound`` and ``valid_bound`` (nats per row) of each epoch of ``net_``.
        These are bounds for this network alone; ``entropy_`` is that of the whole model, in which
        networks and references are combined at each log-SNR.  If networks are trained on parts of
        rows (``patterns``), they are the bound of the normal reference for whole rows less the mean
        gain of the network over random parts.
    entropy_ : float
        The validation bound of the whole model, in nats: an estimate of its mean negative
        log-density on new rows.  Weights, maps and mixtures are cross-fitted for it: each
        validation row is evaluated with choices made on the others.  NaN if no rows are held out:
        with fewer than 40 rows, or if no column varies.  For rows with missing entries it is the
        mean negative log-density of the observed entries.
    entropy_std_ : float
        Its standard error, in nats; NaN likewise.
    n_iter_ : int
        Epochs trained; 0 if there was nothing to train.
    pattern_gains_ : list of dict
        Whether networks that answer for parts of rows (``patterns``) are better than the
        references, for four classes of questions; empty without such networks.  ``given`` and
        ``most_columns`` say whether columns are given, and whether more than half of the columns
        are asked for; ``gain`` is the gain of networks in the mean log-density, in nats, on
        ``n_rows`` validation rows with random patterns, ``gain_std`` its standard error (both NaN
        for classes that are not judged), and ``networks`` whether networks answer.  If not, the
        references do, whose scores have standard errors of 0.
    missingness_columns_ : list of str or int
        Names, or numbers, of the columns on which it depends what is missing, where networks answer
        for parts of rows: they do so given these columns.

    See Also
    --------
    sklearn.neighbors.KernelDensity : Kernel density estimate.
    sklearn.mixture.GaussianMixture : Mixture of normal distributions.

    Notes
    -----
    The estimate is a bound: up to the error of the integration, the mean of ``-score_samples`` over
    new rows is at least the entropy of their distribution, and the density integrates to at most 1.
    The standard errors of ``return_std`` are those of the integration, not of the fit.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> density = IMMSEDensity(max_epochs=2, random_state=0).fit(X)
    >>> log_density, std = density.score_samples(X[:3], return_std=True)
    >>> log_density.shape, std.shape
    ((3,), (3,))
    >>> bool(-3.2 < density.score(X) < -2.6)
    True
    """

    _experts: ClassVar[tuple[str, ...]] = (
        "network",
        "gaussian",
        "gaussian_mixture",
        "kernel_density",
        "reference",
    )
    _fixed_at_warm_start: ClassVar[tuple[str, ...]] = (
        "reference",
        "experts",
        "patterns",
        "marginals",
        "bounds",
        "dequantize",
        "network",
        "denoiser",
        "image_shape",
    )
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TableEstimator._parameter_constraints,
        "reference": [
            StrOptions({"auto", "gaussian", "gaussian_mixture", "kernel_density"}),
            ContinuousReference,
        ],
        "marginals": [StrOptions({"auto", *MARGINAL_KINDS})],
        "bounds": [StrOptions({"auto"}), dict, "array-like", None],
        "image_shape": [tuple, list, None],
        "network": [StrOptions({"auto", "mlp", "convolutional", "unet"}), NetworkFamily],
        "denoiser": [torch.nn.Module, None],
        "dequantize": ["boolean", Interval(Real, 0, None, closed="neither"), "array-like"],
        "n_networks": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "hidden_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "n_blocks": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "num_workers": [Interval(Integral, 0, None, closed="left")],
        "micro_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "n_frequencies": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        *,
        reference: str | ContinuousReference = "auto",
        experts: str | Sequence[str | ReferenceFamily] = "auto",
        marginals: str = "auto",
        bounds: str | dict[Any, Any] | Sequence[Any] | None = "auto",
        schedule: str | Schedule = "adaptive",
        image_shape: tuple[int, ...] | None = None,
        network: str | NetworkFamily = "auto",
        denoiser: torch.nn.Module | None = None,
        dequantize: bool | float | ArrayLike = False,
        patterns: str = "auto",
        n_networks: int | str = "auto",
        hidden_size: int | str = "auto",
        n_blocks: int | str = "auto",
        n_frequencies: int = 4,
        dropout: float | str = "auto",
        weight_decay: float | str = "auto",
        max_epochs: int = 200,
        steps_per_epoch: int | str = "auto",
        batch_size: int | str = "auto",
        num_workers: int = 0,
        micro_batch_size: int | None = None,
        learning_rate: float | str = "auto",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        tol: float | str = "auto",
        n_iter_no_change: int = 6,
        time_limit: float | None = None,
        score_tol: float | str = "auto",
        device: str = "auto",
        warm_start: bool = False,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.reference = reference
        self.experts = experts
        self.marginals = marginals
        self.bounds = bounds
        self.schedule = schedule
        self.image_shape = image_shape
        self.network = network
        self.denoiser = denoiser
        self.dequantize = dequantize
        self.patterns = patterns
        self.n_networks = n_networks
        self.hidden_size = hidden_size
        self.n_blocks = n_blocks
        self.n_frequencies = n_frequencies
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.micro_batch_size = micro_batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.time_limit = time_limit
        self.score_tol = score_tol
        self.device = device
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def _held_in_memory(
        self, X: Any, weight: ArrayLike | None, random_state: np.random.RandomState
    ) -> tuple[Any, ArrayLike | None, Stream | None]:
        """Return the rows to hold in memory, their weights, and the other rows if there are any."""
        images = self._images()
        if not is_dataset(X):
            X = without_tensors(X if images is None else flattened_images(X, images))
            partitions = partitions_of(X, weight)
            if partitions is None:
                return X, weight, None
            weights = None if weight is None else checked_weight(weight, X)
            # Without networks the sample is all that is needed.
            has_holes = not is_dask(X) and has_missing_entries(partitions)
            rows, kept, others = sample(
                partitions,
                as_numbers,
                random_state,
                weight=weights,
                numbers_only=True,
                allow_missing=has_holes,
            )
            return rows, kept, None if has_holes else others
        if weight is not None:
            raise ValueError("sample_weight must be None if X is a dataset.")
        rows, stream = RowStream.beyond_memory(X, self.num_workers, random_state, images)
        return rows, None, stream

    def _read_first(
        self,
        X: ArrayLike,
        weight: ArrayLike | None,
        squared_weight: NDArray[np.float64] | None = None,
        allow_missing: bool = False,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[ColumnKind]]:
        """Return rows, weights and the kinds of the columns: all continuous."""
        rows = self._validated(X, True, 2, allow_missing)
        warn_of_identifiers(X)
        warn_of_merged_integers(X, have_probabilities=self._dequantization() is not False)
        if hasattr(X, "columns"):
            self._frame_format = TableEncoder.of_numbers(X)
        return rows, checked_weight(weight, rows), [ColumnKind()] * rows.shape[1]

    def _read(self, X: ArrayLike, allow_missing: bool = False) -> NDArray[np.float64]:
        """Return validated rows with the columns of the fit, NaN for missing entries."""
        rows = self._validated(X, False, 1, allow_missing)
        if self._model.dequantizer is not None:
            self._model.dequantizer.check(rows, getattr(self, "feature_names_in_", None))
        return rows

    def _write(self, values: NDArray[np.float64]) -> Any:
        """Return rows as a table of the kind that was fitted."""
        frame_format: TableEncoder | None = getattr(self, "_frame_format", None)
        if frame_format is None:
            return values
        return frame_format.decode(values, self._model.space.bounds_of_columns())

    def _validated(
        self, X: ArrayLike, reset: bool, ensure_min_samples: int, allow_missing: bool
    ) -> NDArray[np.float64]:
        shape = self._images()
        if is_dataset(X):
            X = read_rows(X, shape=shape)
        elif shape is not None:
            X = flattened_images(X, shape)
        X = without_tensors(X)
        if allow_missing:
            X = without_missing_objects(X)
        with naming_columns(X, allow_missing):
            rows = validate_data(
                self,
                X,
                dtype=np.float64,
                reset=reset,
                ensure_min_samples=ensure_min_samples,
                ensure_all_finite="allow-nan" if allow_missing else True,
            )
        if reset and shape is not None:
            checked_image_shape(shape, rows.shape[1])
        return with_one_nan(np.asarray(rows, dtype=np.float64))

    def _images(self) -> tuple[int, ...] | None:
        """Return the checked shape of the images, (channels, height, width), if there are any."""
        given = getattr(self.denoiser, "image_shape", None)
        if self.image_shape is None:
            return given
        shape = (1, *checked_image_shape(self.image_shape))[-3:]
        if given is not None and shape != tuple(given):
            raise ValueError(
                f"image_shape={tuple(self.image_shape)!r} is not that of the denoiser, {given!r}."
            )
        return shape

    def _network_task(self) -> NetworkTask:
        return NetworkTask(image_shape=self._images())

    def _network_family(self, task: NetworkTask) -> NetworkFamily:
        given = as_pretrained(self.denoiser)
        if given is None:
            return super()._network_family(task)
        if self.network != "auto":
            raise ValueError(
                f"network must be 'auto' if a denoiser is passed, got {self.network!r}."
            )
        return GivenFamily(given)

    def _obstacle_to_roles(self) -> str | None:
        """Return why networks cannot be trained on parts of rows; None if they can."""
        if self._images() is not None:
            return "images"
        if self.denoiser is not None:
            return "a denoiser of your own"
        return None if self._dequantization() is False else "columns with dequantize"

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of continuous columns."""
        check_reference_object(self.reference, self.marginals, self.n_features_in_)
        images = self._images()
        if (images is not None or self.denoiser is not None) and self.marginals not in (
            "auto",
            "standard",
        ):
            raise ValueError(
                "Images and custom denoisers require marginals='auto' or 'standard', got "
                f"{self.marginals!r}."
            )
        return {
            "marginals": self.marginals if self.denoiser is None else "standard",
            **self._checked_bounds(images),
            "n_frequencies": self.n_frequencies,
            "image_shape": images,
            "n_networks": None if self.n_networks == "auto" else int(self.n_networks),
            "denoiser": as_pretrained(self.denoiser),
            "dequantize": self._dequantization(),
            "micro_batch_size": self.micro_batch_size,
        }

    def _checked_bounds(self, images: tuple[int, ...] | None) -> dict[str, Any]:
        """Return the settings of the bounds, which need maps of the library's own."""
        settings = self._bounds_settings(self.bounds)
        fixed = images is not None or self.denoiser is not None
        if "bounds" in settings and (fixed or isinstance(self.reference, ContinuousReference)):
            raise ValueError(
                "Images, custom denoisers and reference objects require bounds='auto' or "
                f"None, got {self.bounds!r}."
            )
        return settings

    def _dequantization(self) -> bool | NDArray[np.float64]:
        """Return whether to dequantise, or the steps."""
        if isinstance(self.dequantize, bool | np.bool_):
            return bool(self.dequantize)
        step = numbers_in(self.dequantize)
        fits = step.ndim == 0 or step.shape == (self.n_features_in_,)
        if not fits or not np.isfinite(step).all() or (step < 0).any() or not (step > 0).any():
            raise ValueError(
                "dequantize must be a bool, a positive step, or a step for each of the "
                f"{self.n_features_in_} columns (0 for none), got {self.dequantize!r}."
            )
        return step

    def _publish(self) -> None:
        """Set the public fitted attributes from the model."""
        super()._publish()
        self.marginals_ = self._model.space.marginal_map.kind
        self.column_marginals_ = self._model.space.maps_of_columns()
        self.bounds_ = self._model.space.bounds_of_columns()


def as_numbers(X: Any) -> NDArray[np.float64]:
    """Return the numbers of rows that have been checked."""
    return np.asarray(X, dtype=np.float64)


def check_reference_object(
    reference: str | ContinuousReference, marginals: str, n_features: int
) -> None:
    """Raise an error if a reference object does not fit to the maps or the columns."""
    if not isinstance(reference, ContinuousReference):
        return
    if marginals not in ("auto", "standard"):
        raise ValueError(
            "A reference object is in the units of X and requires marginals='auto' or "
            f"'standard', got marginals={marginals!r}."
        )
    if reference.n_features != n_features:
        raise ValueError(f"reference has {reference.n_features} features, X has {n_features}.")
