"""Density of tables with continuous and discrete columns."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from sk_itdiffusion._first._estimators.categorical import CategoricalEstimator
from sk_itdiffusion._first._estimators.parameters import resolve_experts
from sk_itdiffusion._first._estimators.table import stored_table
from sk_itdiffusion._first._table.kinds import Kind, mixed_kinds
from sk_itdiffusion._first._table.marginals import MARGINAL_KINDS
from sk_itdiffusion._first._table.reading import Table
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first.denoisers import NetworkFamily, NetworkTask
from sk_itdiffusion._first.references import ReferenceFamily
from sk_itdiffusion._first.schedules import Schedule

__all__ = ["IMMSEMixedDensity"]


@stored_table
class IMMSEMixedDensity(CategoricalEstimator):
    r"""Joint density of continuous and discrete columns, by the I-MMSE relation.

    Continuous columns are standardised and mapped as in `IMMSEDensity`, categories of discrete ones
    become points as in `IMMSEDiscreteDensity`, and one network denoises all of them [1]_.  For
    continuous columns only, or discrete ones only, and equal parameters, the results are those of
    these estimators.

    The defaults suit most tables.  The parameters to know first are ``categorical_features``,
    ``ordinal_features``, ``handle_missing``, ``max_epochs`` (0 for a fast fit without networks),
    ``time_limit``, ``verbose`` and ``random_state``.  Of all parameters, ``categorical_features``
    to ``handle_missing`` describe the columns, ``reference`` to ``loss`` define the model,
    ``schedule`` to ``time_limit`` networks and their training, and the rest scoring and
    computation.

    Parameters
    ----------
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Nominal columns: a mask, numbers or names.  ``"from_dtype"``: unordered categoricals,
        booleans, strings and objects.
    ordinal_features : "from_dtype", array-like or None, default="from_dtype"
        Ordinal columns, likewise.  ``"from_dtype"``: ordered categoricals and integers with at
        most 256 categories.  All other columns are continuous.
    categories : "auto", list or dict, default="auto"
        Categories of each column (None for a continuous one), or of the columns that a dict names;
        see `IMMSEDiscreteDensity`.
    handle_unknown : {"good_turing", "error"}, default="good_turing"
        How `score_samples` treats unseen values of discrete columns: they get the Good-Turing
        probability of their column, or raise an error; see `IMMSEDiscreteDensity`.
    handle_missing : {"category", "missing"}, default="category"
        How missing values (None, NaN, pandas' NA or null) in non-numerical discrete columns are
        treated: as a category of its own if the column has some in `fit`, or always as unknown.  If
        ``categories`` lists None they are a category in any case.  Where `fit` had none they are
        unknown in later rows, and missing numbers always are.
    reference : str, default="auto"
        Reference q, the control variate of the integral: ``"independent"`` (a normal distribution
        times independent discrete columns), ``"gaussian_mixture"`` (a mixture of normal
        distributions times independent discrete columns), ``"latent_class"`` (a mixture over all
        columns), ``"crossed_mixture"`` (latent classes of the discrete columns, each with its own
        weights of the components of the continuous ones), or for tables of continuous columns
        ``"gaussian"``.  ``"auto"`` selects the most likely on validation rows.
    experts : "auto" or list of str and ReferenceFamily, default="auto"
        Denoisers that are combined at each log-SNR: ``"network"``, any of the
        references, and custom families of references; see `IMMSEDensity`.
    preconditioner : {"auto", "independent", "latent_class"}, default="auto"
        Reference that the network corrects; ``"auto"`` is the independent one.
    marginals : {"auto", "standard", "quantile", "yeo_johnson"}, default="auto"
        Increasing map of each continuous column; see `IMMSEDensity`.
    bounds : "auto", None, dict or sequence, default="auto"
        Bounds of continuous columns: a dict from names (or numbers) of columns to pairs (low,
        high), or a pair or None for each column; see `IMMSEDensity`.  Rows beyond bounds that
        ``"auto"`` detects together have a probability of at most 1 / (n + 2).
    network : {"auto", "mlp"} or NetworkFamily, default="auto"
        Networks to train: fully connected (``"auto"`` is the same), or a custom family, see
        `sk_itdiffusion.denoisers.NetworkFamily`.
    patterns : {"auto", "joint", "any"}, default="auto"
        Which questions networks answer.  ``"joint"``: they are trained on complete rows, and parts
        of rows (marginal and conditional densities, rows with missing entries) are scored by the
        references alone.  ``"any"``: they are trained on random parts of rows given other parts, in
        about twice the time, and answer all questions; the density of complete rows may be slightly
        worse.  ``"auto"`` is ``"any"`` if rows of `fit` have missing entries, and ``"joint"``
        otherwise.  More than 64 continuous columns (30 if entries are missing) require ``"auto"``
        or ``"joint"``, which are the same for them.
    loss : {"mse", "cross_entropy"}, default="cross_entropy"
        Training loss for discrete columns; see `IMMSEDiscreteDensity`.  For continuous ones it is
        the squared error.
    schedule : str or Schedule, default="adaptive"
        Importance density of the log-SNR in training: ``"adaptive"``, ``"logistic"``,
        ``"truncated_normal"``, ``"uniform"``, ``"ddpm_linear"``, ``"cosine"`` or an object; see
        `IMMSEDensity`.
    hidden_size : int or "auto", default="auto"
        Width of the hidden layers, at least 1; ``"auto"`` is 256, and without discrete columns 128,
        or 64 if there are at most 1500 rows.
    n_blocks : int, default=2
        Residual blocks, at least 1.
    n_frequencies : int, default=4
        Number of frequencies of the sine and cosine features of continuous (and long ordinal)
        columns, at least 0.
    dropout : float or "auto", default="auto"
        Dropout rate in [0, 1); ``"auto"`` is larger for fewer rows.
    weight_decay : float or "auto", default="auto"
        Weight decay of the hidden layers, at least 0; ``"auto"`` is larger for fewer rows.
    max_epochs : int, default=200
        Maximum number of epochs, at least 0; training usually ends earlier, see ``tol``.  0 is the
        fast setting: no network is trained (one that ``experts`` names stays as initialised, equal
        to its reference), and fits take seconds.
    steps_per_epoch : int or "auto", default="auto"
        Optimisation steps per epoch, at least 1; ``"auto"`` is 100, fewer for less than 5000 rows.
    batch_size : int, default=512
        Noisy rows per step, at least 1.
    learning_rate : float, default=0.02
        Learning rate of the hidden layers (Muon), positive; that of all other parameters (AdamW) is
        0.15 times as large.
    early_stopping : bool, default=True
        Whether to stop when the validation bound no longer improves, or not enough (``tol``).
    validation_fraction : float, default=0.1
        Fraction in (0, 1) of the rows, at least 10 and at most 10,000, that is held out to choose
        epochs, maps, references and weights.
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
    categories_ : list of ndarray or None
        Categories of each column, nominal ones from the most to the least frequent; None for a
        continuous one.
    kinds_ : list of str
        Kind of each column: ``"continuous"``, ``"ordinal"`` or ``"nominal"``.
    net_ : skorch.NeuralNet or None
        The trained net; None if there was no network to train.
    nets_ : dict of str to skorch.NeuralNet
        All trained nets by name.
    reference_ : Reference
        The control variate, on the mapped columns.
    references_ : dict of str to Reference
        All references, by name.
    marginals_ : str
        Type of map in use.
    column_marginals_ : list of str or None
        Type of map of each column, which differs from ``marginals_`` for columns with heavy tails;
        None for columns that do not vary, and for discrete ones.
    bounds_ : ndarray of shape (`n_features_in_`, 2)
        Bounds of the columns in use, infinite where there are none.
    schedule_ : Schedule
        The schedule object in use.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the experts at the nodes; piecewise linear between them.
    history_ : list of dict
        ``epoch``, ``train_bound`` and ``valid_bound`` (nats per row) of each epoch; with
        ``loss="cross_entropy"`` the former is partly a cross-entropy, on another scale.  These are
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
    IMMSEDiscreteDensity : For discrete columns.

    Notes
    -----
    `score_samples` returns the logarithm of the density with respect to Lebesgue measure for the
    continuous columns, in their units, times counting measure for the discrete ones: for a row (c,
    x), log p(c | x) + log P(x) in nats.  Its exponential, integrated over c and summed over x, is
    at most 1.

    In columns of strings, objects, booleans and categoricals in which `fit` had missing values,
    they are a category, unless ``handle_missing="missing"``.  In all other columns they are
    unknown: the log-density of a row is that of its other entries.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sk_itdiffusion import IMMSEMixedDensity
    >>> rng = np.random.default_rng(0)
    >>> colour = rng.choice(["red", "blue"], size=500)
    >>> X = pd.DataFrame({"colour": colour, "size": rng.normal(3.0 * (colour == "red"))})
    >>> density = IMMSEMixedDensity(max_epochs=3, random_state=0).fit(X)
    >>> new = pd.DataFrame({"colour": ["red", "blue"], "size": [3.0, 3.0]})
    >>> red, blue = density.score_samples(new)
    >>> bool(red > blue + 2.0)
    True
    """

    _experts: ClassVar[tuple[str, ...]] = (
        "network",
        "independent",
        "gaussian",
        "gaussian_mixture",
        "latent_class",
        "crossed_mixture",
    )
    _fixed_at_warm_start: ClassVar[tuple[str, ...]] = (
        "reference",
        "experts",
        "patterns",
        "preconditioner",
        "marginals",
        "bounds",
        "categorical_features",
        "ordinal_features",
        "categories",
        "handle_unknown",
        "handle_missing",
        "network",
    )
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CategoricalEstimator._parameter_constraints,
        "categorical_features": [StrOptions({"from_dtype"}), "array-like", None],
        "ordinal_features": [StrOptions({"from_dtype"}), "array-like", None],
        "reference": [
            StrOptions(
                {
                    "auto",
                    "independent",
                    "gaussian",
                    "gaussian_mixture",
                    "latent_class",
                    "crossed_mixture",
                }
            )
        ],
        "marginals": [StrOptions({"auto", *MARGINAL_KINDS})],
        "bounds": [StrOptions({"auto"}), dict, "array-like", None],
        "network": [StrOptions({"auto", "mlp"}), NetworkFamily],
        "n_frequencies": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        *,
        categorical_features: str | ArrayLike | None = "from_dtype",
        ordinal_features: str | ArrayLike | None = "from_dtype",
        categories: str | Sequence[ArrayLike] | dict[Any, ArrayLike] = "auto",
        handle_unknown: str = "good_turing",
        handle_missing: str = "category",
        reference: str = "auto",
        experts: str | Sequence[str | ReferenceFamily] = "auto",
        preconditioner: str = "auto",
        marginals: str = "auto",
        bounds: str | dict[Any, Any] | Sequence[Any] | None = "auto",
        network: str | NetworkFamily = "auto",
        patterns: str = "auto",
        loss: str = "cross_entropy",
        schedule: str | Schedule = "adaptive",
        hidden_size: int | str = "auto",
        n_blocks: int = 2,
        n_frequencies: int = 4,
        dropout: float | str = "auto",
        weight_decay: float | str = "auto",
        max_epochs: int = 200,
        steps_per_epoch: int | str = "auto",
        batch_size: int = 512,
        learning_rate: float = 0.02,
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
        self.categorical_features = categorical_features
        self.ordinal_features = ordinal_features
        self.categories = categories
        self.handle_unknown = handle_unknown
        self.handle_missing = handle_missing
        self.reference = reference
        self.experts = experts
        self.preconditioner = preconditioner
        self.marginals = marginals
        self.bounds = bounds
        self.network = network
        self.patterns = patterns
        self.loss = loss
        self.schedule = schedule
        self.hidden_size = hidden_size
        self.n_blocks = n_blocks
        self.n_frequencies = n_frequencies
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
        self.device = device
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def _column_kinds(self, table: Table, allow_missing: bool = False) -> list[Kind]:
        return mixed_kinds(table, self.categorical_features, self.ordinal_features)

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of continuous and discrete columns."""
        has_categories = self._network_task().has_categories
        # Without discrete columns the independent reference is the normal distribution.
        plain = {} if has_categories else {"independent": "gaussian"}
        experts = self.experts
        if not isinstance(experts, str):
            experts = [plain.get(e, e) if isinstance(e, str) else e for e in experts]
        return super()._specific_settings() | {
            "reference": plain.get(str(self.reference), self.reference),
            **resolve_experts(experts, self._experts, self.reference),
            "marginals": self.marginals,
            **self._checked_bounds(),
            "n_frequencies": self.n_frequencies,
        }

    def _network_task(self) -> NetworkTask:
        return NetworkTask(
            has_categories=any(kind != "continuous" for kind in self.kinds_),
            has_continuous="continuous" in self.kinds_,
        )

    def _checked_bounds(self) -> dict[str, Any]:
        """Return the settings of the bounds, which only continuous columns have."""
        settings = self._bounds_settings(self.bounds)
        given = settings.get("bounds")
        if given is not None:
            discrete = np.array([kind != "continuous" for kind in self.kinds_])
            wrong = discrete & np.isfinite(given).any(axis=1)
            if wrong.any():
                names = getattr(self, "feature_names_in_", None)
                raise ValueError(
                    f"bounds names column(s) {column_labels(wrong, names)}, which are not "
                    "continuous; only continuous columns have bounds."
                )
        return settings

    def _publish(self) -> None:
        """Set the public fitted attributes from the model."""
        super()._publish()
        self.marginals_ = self._model.space.marginal_map.kind
        self.column_marginals_ = self._model.space.maps_of_columns()
        self.bounds_ = self._model.space.bounds_of_columns()
