"""Log-probabilities of discrete rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from sk_itdiffusion._first._estimators.categorical import CategoricalEstimator
from sk_itdiffusion._first._estimators.parameters import checked_image_shape, flattened_images
from sk_itdiffusion._first._estimators.table import Array, stored_table
from sk_itdiffusion._first._fit.experts import NETWORKS
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._table.kinds import Kind, discrete_kinds
from sk_itdiffusion._first._table.reading import Table
from sk_itdiffusion._first._table.rows import observed
from sk_itdiffusion._first.denoisers import NetworkFamily, NetworkTask
from sk_itdiffusion._first.references import ReferenceFamily
from sk_itdiffusion._first.schedules import Schedule

__all__ = ["IMMSEDiscreteDensity"]

MAX_PIXEL_CATEGORIES = 256


@stored_table
class IMMSEDiscreteDensity(CategoricalEstimator):
    r"""Probabilities of discrete rows with a denoising network, by the I-MMSE relation.

    Each category of a column is a point (two categories: -1 and 1, ordered categories: a lattice,
    unordered ones: unit vectors).  A network learns to predict the points from noisy versions of
    them, by the same regression as in `IMMSEDensity`, and with an analytic reference q [1]_

    .. math:: \log P(x) = \log q(x) + \frac12 \int da\; E_\epsilon\left[
        \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right].

    At each log-SNR, the network and the references are combined with weights that minimise the
    error on validation rows.

    The defaults suit most tables.  The parameters to know first are ``kind``, ``categories``,
    ``handle_missing``, ``max_epochs`` (0 for a fast fit without networks), ``time_limit``,
    ``verbose`` and ``random_state``.  Of all parameters, ``kind`` to ``handle_missing`` describe
    the columns, ``image_shape`` to ``likelihood`` define the model, ``schedule`` to ``time_limit``
    networks and their training, and the rest scoring and computation.

    Parameters
    ----------
    kind : {"auto", "nominal", "ordinal"}, list or dict, default="auto"
        Whether categories have an order: for all columns, one entry for each column, or a dict from
        names (or numbers) of columns to kinds.  ``"auto"``: numbers and ordered categoricals are
        ordinal; booleans, strings, objects and other categoricals are nominal.  Columns of
        non-integer numbers may have up to 256 distinct values.
    categories : "auto", list or dict, default="auto"
        Categories of each column, or of the columns that a dict names.  ``"auto"`` uses those of a
        categorical or boolean dtype, all integers from the smallest to the largest if these are at
        most 256, and otherwise the values that occur.
    handle_unknown : {"good_turing", "error"}, default="good_turing"
        How `score_samples` treats unseen values: together they get the Good-Turing probability of
        their column, and the other columns are scored by the references (see Notes), or they raise
        an error.  In columns listed in ``categories``, and in those of numpy's boolean dtype, they
        always raise an error.
    handle_missing : {"category", "missing"}, default="category"
        How missing values (None, NaN, pandas' NA or null) in non-numerical discrete columns are
        treated: as a category of its own if the column has some in `fit`, or always as unknown.  If
        ``categories`` lists None they are a category in any case.  Where `fit` had none they are
        unknown in later rows, and missing numbers always are.
    image_shape : tuple of int or None, default=None
        Height and width (or channels, height and width) if columns are pixels; all pixels then
        have the same, ordered categories.
    network : {"auto", "mlp", "convolutional"} or NetworkFamily, default="auto"
        Networks to train: fully connected, convolutional (for images, together with
        ``"dense_network"``), or a custom family, see `sk_itdiffusion.denoisers.NetworkFamily`.
        ``"auto"`` is convolutional for images, and fully connected otherwise.
    patterns : {"auto", "joint", "any"}, default="auto"
        Which questions networks answer.  ``"joint"``: they are trained on complete rows, and parts
        of rows (marginal and conditional densities, rows with missing entries) are scored by the
        references alone.  ``"any"``: they are trained on random parts of rows given other parts, in
        about twice the time, and answer all questions; the density of complete rows may be slightly
        worse.  ``"auto"`` is ``"any"`` if rows of `fit` have missing entries, and ``"joint"``
        otherwise.  Images require ``"auto"`` or ``"joint"``, which are the same for them.
    reference : {"auto", "independent", "latent_class"}, default="auto"
        Reference q, the control variate of the integral: independent columns, or a latent class
        model whose number of classes is chosen by validation; ``"auto"`` selects the more likely.
    experts : "auto" or list of str and ReferenceFamily, default="auto"
        Denoisers that are combined at each log-SNR: any of ``"network"``, ``"dense_network"`` (the
        fully connected one alongside a convolutional one), ``"independent"`` and
        ``"latent_class"``, and custom families of references; see `IMMSEDensity`.  ``"auto"``, also
        as an entry of a list, stands for all that are available.
    preconditioner : {"auto", "independent", "latent_class"}, default="auto"
        Reference whose posterior the network corrects.  ``"auto"`` is the independent one, which in
        experiments trained twice as fast and gave better results even where the other is more
        likely.
    loss : {"mse", "cross_entropy"}, default="cross_entropy"
        What training minimises: the squared error, which is the bound itself, or the cross-entropy
        of the categories' posterior, which has the same optimum.  Early stopping uses the bound in
        either case.
    likelihood : {"immse", "path"}, default="immse"
        How rows are scored: by the integral, or by simulated noise paths, as the logarithm of the
        mean over ``n_paths`` paths.  The mean is an unbiased estimate of a probability that sums to
        1 over all rows; its logarithm is too low on average, and with ``n_paths=1`` a variational
        bound.
    schedule : str or Schedule, default="adaptive"
        Importance density of the log-SNR in training: ``"adaptive"``, ``"logistic"``,
        ``"truncated_normal"``, ``"uniform"``, ``"ddpm_linear"``, ``"cosine"`` or an object; see
        `IMMSEDensity`.
    hidden_size : int or "auto", default="auto"
        Width (units or channels) of the hidden layers, at least 1; ``"auto"`` is 256, and 64 for
        convolutional networks.
    n_blocks : int or "auto", default="auto"
        Residual blocks, at least 1; ``"auto"`` is 2, and 3 for convolutional networks.
    dropout : float or "auto", default="auto"
        Dropout rate in [0, 1); ``"auto"`` is larger for fewer rows.
    weight_decay : float or "auto", default="auto"
        Weight decay of the hidden layers, at least 0; ``"auto"`` is larger for fewer rows.
    max_epochs : int, default=200
        Maximum number of epochs, at least 0; training usually ends earlier, see ``tol``.  0 is the
        fast setting: no network is trained (one that ``experts`` names stays as initialised, equal
        to its reference), and fits take seconds.  ``experts=["independent"], max_epochs=0`` fits
        only the independent reference.
    steps_per_epoch : int or "auto", default="auto"
        Optimisation steps per epoch, at least 1; ``"auto"`` is 100, fewer for less than 5000 rows.
    batch_size : int or "auto", default="auto"
        Noisy rows per step, at least 1; ``"auto"`` is 512, and 128 for convolutional networks.
    learning_rate : float, default=0.02
        Learning rate of the hidden layers (Muon), positive; that of all other parameters (AdamW) is
        0.15 times as large.
    early_stopping : bool, default=True
        Whether to stop when the validation bound no longer improves, or not enough (``tol``).
    validation_fraction : float, default=0.1
        Fraction in (0, 1) of the rows, at least 10 and at most 10,000, that is held out to choose
        epochs, references and weights.  Duplicates are different observations, and may be on both
        sides.  With fewer than 40 rows the model is the independent reference.
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
        Ignored with ``likelihood="path"``.
    n_paths : int, default=2
        Noise paths for each row with ``likelihood="path"``, at least 1; may be changed after `fit`.
    device : str, default="auto"
        Where to train and score: ``"auto"`` is CUDA if available, else MPS, else the CPU.
    warm_start : bool, default=False
        Whether `fit` continues from the network, the categories and the references of the earlier
        fit.
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
    categories_ : list of ndarray
        Categories of each column; nominal ones from the most to the least frequent.
    kinds_ : list of str
        Kind of each column, ``"nominal"`` or ``"ordinal"``.
    net_ : skorch.NeuralNet or None
        The trained net; None if there was no network to train.
    nets_ : dict of str to skorch.NeuralNet
        All trained nets by name.
    reference_ : Reference
        The control variate.
    references_ : dict of str to Reference
        All references, by name.
    schedule_ : Schedule
        The schedule object in use.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the experts at the nodes; piecewise linear between them.
    history_ : list of dict
        ``epoch``, ``train_bound`` and ``valid_bound`` (nats per row) of each epoch; with
        ``loss="cross_entropy"`` the former is the cross-entropy, on another scale.  These are
        bounds for ``net_`` alone; ``entropy_`` is that of the whole model, in which networks and
        references are combined at each log-SNR.
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
    IMMSEDensity : For continuous columns.
    IMMSEMixedDensity : For tables with both.

    Notes
    -----
    The exact integral is at most 0, and its exponentials sum to at most 1 over all rows: 1 only if
    the denoiser is optimal.  The error of the integration, whose standard deviation s is that of
    ``return_std``, can push single values above 0, and increases the mean of the exponentials by a
    factor of about ``exp(s**2 / 2)``.

    Unseen values together have the Good-Turing probability of their column [2]_: if N of n rows
    have a value that occurs only once, it is ``(N + 1) / (n + 2)``.  Unseen nominal values are one
    event, so each has the whole probability; ordered integers have a geometric tail beyond the
    smallest (unless that is 0) and the largest, and a part between categories.  The other columns
    of such a row are scored by the control variate as if this one were missing, with standard error
    0.  Columns with ``categories`` or numpy's boolean dtype have no unseen values, and all pixels
    of images share one such probability.  Samples never contain unseen values.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792
    .. [2] I. J. Good. "The population frequencies of species and the estimation of population
       parameters". Biometrika 40, 1953.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDiscreteDensity
    >>> rng = np.random.default_rng(0)
    >>> first = rng.integers(0, 3, size=500)
    >>> X = np.column_stack([first, first == 2])
    >>> density = IMMSEDiscreteDensity(max_epochs=3, random_state=0).fit(X)
    >>> bool(density.score_samples([[2, 1]])[0] > density.score_samples([[2, 0]])[0] + 2.0)
    True
    """

    _experts: ClassVar[tuple[str, ...]] = (*NETWORKS, "independent", "latent_class")
    _fixed_at_warm_start: ClassVar[tuple[str, ...]] = (
        "reference",
        "experts",
        "patterns",
        "preconditioner",
        "kind",
        "categories",
        "handle_unknown",
        "handle_missing",
        "image_shape",
        "network",
    )
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CategoricalEstimator._parameter_constraints,
        "kind": [StrOptions({"auto", "nominal", "ordinal"}), list, tuple, dict, np.ndarray],
        "image_shape": [tuple, list, None],
        "network": [StrOptions({"auto", "mlp", "convolutional"}), NetworkFamily],
        "reference": [StrOptions({"auto", "independent", "latent_class"})],
        "likelihood": [StrOptions({"immse", "path"})],
        "n_blocks": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "n_paths": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        kind: str | Sequence[str] | dict[Any, str] = "auto",
        categories: str | Sequence[ArrayLike] | dict[Any, ArrayLike] = "auto",
        handle_unknown: str = "good_turing",
        handle_missing: str = "category",
        image_shape: tuple[int, ...] | None = None,
        network: str | NetworkFamily = "auto",
        patterns: str = "auto",
        reference: str = "auto",
        experts: str | Sequence[str | ReferenceFamily] = "auto",
        preconditioner: str = "auto",
        loss: str = "cross_entropy",
        likelihood: str = "immse",
        schedule: str | Schedule = "adaptive",
        hidden_size: int | str = "auto",
        n_blocks: int | str = "auto",
        dropout: float | str = "auto",
        weight_decay: float | str = "auto",
        max_epochs: int = 200,
        steps_per_epoch: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float = 0.02,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        tol: float | str = "auto",
        n_iter_no_change: int = 6,
        time_limit: float | None = None,
        score_tol: float | str = "auto",
        n_paths: int = 2,
        device: str = "auto",
        warm_start: bool = False,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.kind = kind
        self.categories = categories
        self.handle_unknown = handle_unknown
        self.handle_missing = handle_missing
        self.image_shape = image_shape
        self.network = network
        self.patterns = patterns
        self.reference = reference
        self.experts = experts
        self.preconditioner = preconditioner
        self.loss = loss
        self.likelihood = likelihood
        self.schedule = schedule
        self.hidden_size = hidden_size
        self.n_blocks = n_blocks
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.time_limit = time_limit
        self.score_tol = score_tol
        self.n_paths = n_paths
        self.device = device
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def _column_kinds(self, table: Table, allow_missing: bool = False) -> list[Kind]:
        if self.image_shape is None:
            return discrete_kinds(table, self.kind, allow_missing)
        checked_image_shape(self.image_shape, table.n_columns)
        if not isinstance(self.kind, str) or self.kind == "nominal":
            raise ValueError(
                "Pixels are ordinal: with image_shape, kind must be 'auto' or 'ordinal', got "
                f"{self.kind!r}."
            )
        check_pixels(table)
        return discrete_kinds(table, "ordinal", allow_missing)

    def _shares_categories(self) -> bool:
        return self.image_shape is not None

    def _table(self, X: Any, reset: bool) -> Table:
        """Return the table; images of the right shape become rows."""
        if self.image_shape is not None:
            X = flattened_images(X, checked_image_shape(self.image_shape))
        return super()._table(X, reset)

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of discrete columns."""
        self._check_again(likelihood=self.likelihood)
        task = self._network_task()
        beside = self._network_family(task).beside(task)
        is_named = self.experts != "auto" and NETWORKS[1] in self.experts
        if is_named and NETWORKS[1] not in beside:
            raise ValueError(
                f"experts names {NETWORKS[1]!r}, which needs image_shape, and network='auto' or "
                "'convolutional'."
            )
        return super()._specific_settings() | {
            "is_discrete": True,
            "image_shape": task.image_shape,
        }

    def _network_task(self) -> NetworkTask:
        shape = None if self.image_shape is None else checked_image_shape(self.image_shape)
        return NetworkTask(has_categories=True, has_continuous=False, image_shape=shape)

    def _log_density(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return log-probabilities and their variances, by the integral or by paths."""
        self._check_again(likelihood=self.likelihood, n_paths=self.n_paths)
        if self.likelihood == "path":
            return self._model.path_log_probability(values, self.n_paths, tolerance)
        return super()._log_density(values, tolerance)


def check_pixels(table: Table) -> None:
    """Raise an error if pixels are numbers of more levels than images have."""
    if not table.holds_numbers.all():
        return
    pixels = table.frame.to_numpy(dtype=np.float64, na_value=np.nan).ravel()
    categories = pd.unique(observed(pixels)[0])
    if len(categories) > MAX_PIXEL_CATEGORIES:
        raise ValueError(
            f"X has {len(categories)} distinct values in all pixels together; images may have at "
            "most "
            f"{MAX_PIXEL_CATEGORIES}. Round the values, or use IMMSEDensity or IMMSEMixedDensity "
            "for continuous ones."
        )
