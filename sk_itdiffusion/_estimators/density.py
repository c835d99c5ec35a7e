"""Densities of tables of numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from sk_itdiffusion._estimators.base import DensityEstimator
from sk_itdiffusion._estimators.reading import read_bounds, read_table, warn_of_ties
from sk_itdiffusion._immse.schedules import SCHEDULES, Schedule, resolve_schedule
from sk_itdiffusion._model.fit import EXPERTS, FitSettings, fit_model
from sk_itdiffusion._model.maps import KINDS
from sk_itdiffusion._model.networks import NetworkSettings
from sk_itdiffusion.networks.base import Network
from sk_itdiffusion.networks.mlp import MLP
from sk_itdiffusion.networks.training import Training

__all__ = ["IMMSEDensity"]

SHARE_OF_TIME = 0.85


class IMMSEDensity(DensityEstimator):
    r"""Density of a table of numbers by denoising, through the I-MMSE relation.

    A network learns to predict the noise in noisy rows, at all signal-to-noise ratios; the
    log-density of a row is an integral of the squared error over the log-SNR [1]_,

    .. math:: \log p(x) = \log q(x) + \frac12 \int da\; E_\epsilon\left[
        \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right],

    with a reference q whose log-density and denoiser are known.  At each log-SNR the network and
    the references are weighted by their errors on rows that none of them has seen.

    Columns are standardised, and transformed where that helps, inside the estimator; the Jacobian
    is part of the density.  Rows may have missing entries (NaN).

    Parameters
    ----------
    schedule : str or Schedule, default="adaptive"
        Importance density of the log-SNR in training: ``"adaptive"``, ``"logistic"``,
        ``"truncated_normal"``, ``"uniform"``, ``"ddpm_linear"``, ``"cosine"``, or an object, whose
        parameters can be searched (``schedule__loc``).
    experts : "auto" or list of str, default="auto"
        Denoisers to combine: any of ``"network"``, ``"gaussian"``, ``"gaussian_mixture"`` and
        ``"kernel_density"``; ``"auto"`` tries all.
    marginals : {"auto", "standard", "yeo_johnson", "quantile"}, default="auto"
        Increasing map of the columns: standardisation, a power transformation, or a quantile
        transformation to a normal distribution. ``"auto"`` chooses by the likelihood of held-out
        rows, and uses quantiles with Pareto tails for columns with heavy tails.
    bounds : "auto", None, dict or sequence, default="auto"
        Bounds of columns: a dict from names or numbers of columns to pairs (low, high), or a pair
        or None for each column; None or an infinite number is no bound. The density is zero beyond
        them. ``"auto"`` takes 0 for columns of one sign that come close to it, where values beyond
        it keep a small probability; None is without bounds.
    network : Network or None, default=None
        The backbone; None is `MLP()`.
    training : Training or None, default=None
        How it is trained; None is `Training()`.
    patterns : {"auto", "joint", "any"}, default="auto"
        Whether the network is trained on whole rows only, or on random parts of rows given others,
        for marginal and conditional densities. ``"auto"`` is ``"any"`` if rows of `fit` have
        missing entries, else ``"joint"``.
    max_epochs : int, default=200
        Epochs at most, at least 0; training usually ends earlier. With 0 there is no network, and
        fits take seconds.
    time_limit : float or None, default=None
        Seconds after which `fit` should end, positive.
    validation_fraction : float, default=0.1
        Share of the rows, in (0, 1), that the network does not see.
    score_tol : float or "auto", default="auto"
        Standard error of the numerical integration of each row, in nats, positive; may be changed
        after `fit`. ``"auto"`` is 0.1, or 0.01 for each column if that is more.
    callbacks : list or None, default=None
        Additional skorch callbacks for the training.
    verbose : int, default=0
        With 1 or more, `fit` prints the gain of each epoch over the references, in nats per row.
    random_state : int, RandomState or None, default=None
        Seed of the split, the initial weights, and the noise in training and scoring.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if ``X`` has names that are all strings.
    marginals_ : list of str
        Kind of map of each column that varies.
    history_ : list of dict
        Epoch, and gain over the references on held-out rows in nats; empty without a network.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". International
       Conference on Learning Representations, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion._estimators.density import IMMSEDensity
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> X[:, 1] += X[:, 0] ** 2
    >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    >>> bool(density.score_samples([[0.0, 0.0]]) > density.score_samples([[0.0, 5.0]]))
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "schedule": [StrOptions(set(SCHEDULES)), Schedule],
        "experts": [StrOptions({"auto"}), list, tuple],
        "marginals": [StrOptions({"auto", *KINDS})],
        "bounds": [StrOptions({"auto"}), None, dict, list, tuple, np.ndarray],
        "network": [Network, None],
        "training": [Training, None],
        "patterns": [StrOptions({"auto", "joint", "any"})],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "score_tol": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "callbacks": [list, tuple, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        schedule: str | Schedule = "adaptive",
        experts: str | Sequence[str] = "auto",
        marginals: str = "auto",
        bounds: Any = "auto",
        network: Network | None = None,
        training: Training | None = None,
        patterns: str = "auto",
        max_epochs: int = 200,
        time_limit: float | None = None,
        validation_fraction: float = 0.1,
        score_tol: float | str = "auto",
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.schedule = schedule
        self.experts = experts
        self.marginals = marginals
        self.bounds = bounds
        self.network = network
        self.training = training
        self.patterns = patterns
        self.max_epochs = max_epochs
        self.time_limit = time_limit
        self.validation_fraction = validation_fraction
        self.score_tol = score_tol
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the density to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; NaN is missing.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, at least 0. Integers are repetitions, others are relative.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group are held out together. Equal rows always are.

        Returns
        -------
        self : IMMSEDensity
            The fitted estimator.

        Raises
        ------
        ValueError
            If parameters, rows, weights or groups are not valid.
        """
        started = time.monotonic()
        self._validate_params()
        if hasattr(self, "_model"):
            del self._model
        rows = np.asarray(validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan"))
        names = self._names
        table = read_table(rows, names, sample_weight, groups)
        warn_of_ties(rows, names, table.resolution)
        bounds, is_given = read_bounds(self.bounds, names, table.X)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        has_missing = bool(np.isnan(table.X).any())
        settings = FitSettings(
            names=self._checked_experts(),
            kinds=KINDS if self.marginals == "auto" else (self.marginals,),
            bounds=bounds,
            is_given=is_given,
            fraction=self.validation_fraction,
            networks=self._network_settings(has_missing, started, int(seeds[0])),
            seed=int(seeds[1]),
        )
        model, net = fit_model(table, settings)
        history = [] if net is None else net.history
        self.history_ = [
            {"epoch": row["epoch"], "gain": row["valid_gain"]}
            for row in history
            if "valid_gain" in row
        ]
        self.marginals_ = model.columns.kinds()
        self._model = model
        return self

    def _checked_experts(self) -> tuple[str, ...]:
        """Return the names of the experts."""
        if isinstance(self.experts, str):
            return EXPERTS
        unknown = [name for name in self.experts if name not in (*EXPERTS, "auto")]
        if unknown or not len(self.experts):
            raise ValueError(
                f"experts must be 'auto' or a list of names from {list(EXPERTS)}, got "
                f"{self.experts!r}."
            )
        return EXPERTS if "auto" in self.experts else tuple(self.experts)

    def _network_settings(
        self, has_missing: bool, started: float, seed: int
    ) -> NetworkSettings | None:
        """Return how networks are trained, None if there are none."""
        if self.max_epochs == 0 or "network" not in self._checked_experts():
            return None

        def report(epoch: int, gain: float) -> None:
            if self.verbose:
                print(f"epoch {epoch}: gain over the references {gain:.3f} nats per row")

        return NetworkSettings(
            network=MLP() if self.network is None else self.network,
            training=Training() if self.training is None else self.training,
            schedule=resolve_schedule(self.schedule),
            max_epochs=self.max_epochs,
            ends_at=None if self.time_limit is None else started + SHARE_OF_TIME * self.time_limit,
            has_parts=self.patterns == "any" or (self.patterns == "auto" and has_missing),
            callbacks=tuple(self.callbacks or ()),
            report=report,
            seed=seed,
        )
