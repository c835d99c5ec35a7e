"""Density estimation for continuous rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from sk_itdiffusion.fitting import FitSettings, fit_table_model
from sk_itdiffusion.likelihood import MSECurve
from sk_itdiffusion.marginals import MARGINAL_KINDS
from sk_itdiffusion.model import TableModel
from sk_itdiffusion.references import Reference
from sk_itdiffusion.schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = ["IMMSEDensity"]

_EXPERTS = ("network", "gaussian", "gaussian_mixture", "reference")


class IMMSEDensity(DensityMixin, BaseEstimator):
    r"""Density estimation with a denoising network, by the I-MMSE relation.

    A network learns to predict the noise in noisy rows, at all signal-to-noise ratios; the
    log-density of a row is an integral of its squared error over the log-SNR [1]_,

    .. math:: \log p(x) = \log q(x) + \frac12 \int da\; E_\epsilon\left[
        \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right],

    with q an analytic reference.  At each log-SNR the network is combined with the references by
    weights that minimise the error on validation rows.

    Parameters
    ----------
    reference : {"auto", "gaussian", "gaussian_mixture"} or Reference, default="auto"
        Reference q, the control variate of the integral.  ``"auto"`` takes the likelier, on
        validation rows, of a normal distribution and a mixture of normal distributions whose
        number of components is found by validation; the normal one if neither is an
        expert.  A `Reference` object is in the units of X;
        columns are then only standardised.
    experts : "auto" or list of str, default="auto"
        Denoisers among which weights are distributed at each log-SNR: any of ``"network"``,
        ``"gaussian"``, ``"gaussian_mixture"`` and ``"reference"`` (the object given as
        ``reference``).  ``"auto"`` takes all there are; ``["network"]`` switches stacking off.
    marginals : {"auto", "standard", "quantile", "yeo_johnson"}, default="auto"
        Increasing map of each column: standardisation only, quantiles onto normal quantiles, or
        a power transformation.  ``"auto"`` chooses by validation.
    schedule : str or Schedule, default="adaptive"
        Importance density of the log-SNR in training: ``"adaptive"``, ``"logistic"``,
        ``"truncated_normal"``, ``"uniform"``, ``"ddpm_linear"``, ``"cosine"``, or an object of
        `sk_itdiffusion.schedules` whose parameters can be searched (``schedule__loc``).
    hidden_size : int, default=128
        Units in the network's hidden layers, at least 1.
    n_blocks : int, default=2
        Residual blocks, at least 1.
    n_frequencies : int, default=4
        Frequencies of the sines and cosines of each column, at least 0.
    dropout : float or "auto", default="auto"
        Dropout rate in [0, 1); ``"auto"`` is larger for fewer rows.
    weight_decay : float or "auto", default="auto"
        Weight decay of the hidden layers, at least 0; ``"auto"`` is larger for fewer rows.
    max_epochs : int, default=40
        Epochs at most, at least 0; with 0 there is no network, or, where ``experts`` names it, one
        at its start, which is the normal reference.
    steps_per_epoch : int or "auto", default="auto"
        Optimisation steps that make an epoch, at least 1.  Passes through the rows go on across
        epochs, so the time of an epoch does not depend on the number of rows.  ``"auto"`` is 100,
        and less for fewer than 5000 rows.
    batch_size : int, default=512
        Noisy rows in a step, at least 1.
    learning_rate : float, default=0.02
        Learning rate of the hidden layers (Muon), positive; that of all else (AdamW) is 0.15
        times it.  It follows a cosine to zero.
    early_stopping : bool, default=True
        Whether to end when the validation bound no longer improves.
    validation_fraction : float, default=0.1
        Share in (0, 1) of the distinct rows, at least 10 and at most 10,000 rows, that judges
        epochs, maps, references and experts.  With fewer than 40 distinct rows nothing is judged:
        the model is the normal reference.
    n_iter_no_change : int, default=6
        Epochs without improvement after which the learning rate is taken to zero and training
        ends, at least 1.
    n_strata : int, default=16
        Strata of the log-SNR in scoring, at least 2.
    n_draws : int, default=2
        Draws in each stratum, at least 2, one in each of as many equal parts; the standard errors
        come from their differences.
    n_directions : int or None, default=None
        Orthogonal noise directions in a draw, at least 1 and no more than columns are used.  None
        takes up to 8 for at most 20 columns, else 4.
    device : str, default="auto"
        Where to train and score: ``"auto"`` takes CUDA, else MPS, else the CPU.
    warm_start : bool, default=False
        Whether `fit` continues from the network, the maps and the references of the earlier fit.
    callbacks : list or None, default=None
        Further skorch callbacks for the training.
    verbose : int, default=0
        0 is silent, 1 prints the bounds of each epoch.
    random_state : int, RandomState or None, default=None
        Seed of the split, the initial weights, the noise in training, and the noise in scoring.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if X had string names.
    net_ : skorch.NeuralNet or None
        The trained net; None if there was no network to train.
    reference_ : Reference
        The control variate, on the standardised and mapped columns.
    references_ : dict of str to Reference
        All references there.
    marginals_ : str
        The kind of map in use.
    schedule_ : Schedule
        The schedule object in use.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the experts at the nodes; piecewise linear between them.
    history_ : list of dict
        ``epoch``, ``train_bound`` and ``valid_bound`` (nats per row) of each epoch.
    entropy_ : float
        The validation bound of the whole model: an estimate from above of the entropy of the
        data, in nats, slightly optimistic since the validation rows chose the weights.
    n_iter_ : int
        Epochs trained; 0 if there was nothing to train.

    See Also
    --------
    sklearn.neighbors.KernelDensity : Kernel density estimate.
    sklearn.mixture.GaussianMixture : Mixture of normal distributions.

    Notes
    -----
    The estimate is a bound: the mean of ``-score_samples`` on new rows is, up to the error of
    the integration, no less than the entropy of their distribution, and the density integrates to
    at most 1.  The standard error of ``return_std`` is that of the integration, not of the fit.

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

    _model: TableModel
    _kept: dict[str, Any]
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "reference": [StrOptions({"auto", "gaussian", "gaussian_mixture"}), Reference],
        "experts": [StrOptions({"auto"}), list, tuple],
        "marginals": [StrOptions({"auto", *MARGINAL_KINDS})],
        "schedule": [StrOptions(set(SCHEDULES)), Schedule],
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "n_blocks": [Interval(Integral, 1, None, closed="left")],
        "n_frequencies": [Interval(Integral, 0, None, closed="left")],
        "dropout": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "weight_decay": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "steps_per_epoch": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "n_strata": [Interval(Integral, 2, None, closed="left")],
        "n_draws": [Interval(Integral, 2, None, closed="left")],
        "n_directions": [None, Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "warm_start": ["boolean"],
        "callbacks": [None, list, tuple],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        reference: str | Reference = "auto",
        experts: str | Sequence[str] = "auto",
        marginals: str = "auto",
        schedule: str | Schedule = "adaptive",
        hidden_size: int = 128,
        n_blocks: int = 2,
        n_frequencies: int = 4,
        dropout: float | str = "auto",
        weight_decay: float | str = "auto",
        max_epochs: int = 40,
        steps_per_epoch: int | str = "auto",
        batch_size: int = 512,
        learning_rate: float = 0.02,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 6,
        n_strata: int = 16,
        n_draws: int = 2,
        n_directions: int | None = None,
        device: str = "auto",
        warm_start: bool = False,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.reference = reference
        self.experts = experts
        self.marginals = marginals
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
        self.n_iter_no_change = n_iter_no_change
        self.n_strata = n_strata
        self.n_draws = n_draws
        self.n_directions = n_directions
        self.device = device
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    def set_params(self, **params: Any) -> IMMSEDensity:
        """Set parameters, nested ones of the schedule as ``schedule__<name>``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        IMMSEDensity
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is unknown, or one of the schedule is given while the schedule is a
            string.
        """
        schedule = params.get("schedule", self.schedule)
        nested = [name for name in params if name.startswith("schedule__")]
        if nested and isinstance(schedule, str):
            raise ValueError(
                f"{nested[0]} needs schedule to be an object, such as "
                f"sk_itdiffusion.schedules.LogisticSchedule(), not the string {schedule!r}."
            )
        super().set_params(**params)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> IMMSEDensity:
        """Fit the density to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows of finite numbers; at least 2.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a weight of 2 is the same as having the row twice.

        Returns
        -------
        IMMSEDensity
            The fitted estimator.

        Raises
        ------
        ValueError
            If X has fewer than 2 rows, is not finite or not numeric, if a weight is negative, or a
            parameter is out of its range.
        FloatingPointError
            If training diverges before any epoch was good.
        """
        previous = self._model if self.warm_start and hasattr(self, "_model") else None
        if previous is None:
            self._forget_fit()
        rows = self._rows(X, reset=previous is None, ensure_min_samples=2)
        weight = _check_sample_weight(
            sample_weight,
            rows,
            dtype=np.float64,
            ensure_non_negative=True,
            ensure_same_device=False,
        )
        if not weight.sum() > 0:
            raise ValueError("sample_weight must have at least one positive weight.")
        random_state = check_random_state(self.random_state)
        settings = self._settings()
        self._check_warm_start(previous)
        self._model = fit_table_model(rows, weight, settings, random_state, previous)
        self.schedule_ = settings.schedule
        self._publish()
        return self

    def _rows(
        self, X: ArrayLike, reset: bool = False, ensure_min_samples: int = 1
    ) -> NDArray[np.float64]:
        """Return validated rows."""
        rows = validate_data(
            self, X, dtype=np.float64, reset=reset, ensure_min_samples=ensure_min_samples
        )
        return np.asarray(rows, dtype=np.float64)

    def _forget_fit(self) -> None:
        """Remove the fitted state, so that an interrupted fit leaves none."""
        for name in [name for name in vars(self) if name.endswith("_") or name == "_model"]:
            delattr(self, name)

    def _check_warm_start(self, previous: TableModel | None) -> None:
        """Raise an error if a warm start would ignore a changed parameter."""
        kept = {name: getattr(self, name) for name in ("reference", "experts", "marginals")}
        if previous is not None:
            changed = [name for name, value in kept.items() if self._kept[name] is not value]
            changed = [name for name in changed if self._kept[name] != kept[name]]
            if changed:
                raise ValueError(
                    f"warm_start keeps the maps and references of the earlier fit, but "
                    f"{', '.join(changed)} changed. Set warm_start=False to fit anew."
                )
        self._kept = kept

    def _settings(self) -> FitSettings:
        """Return the parameters in the form that the model takes."""
        experts = self.experts
        if experts != "auto":
            unknown = [name for name in experts if name not in _EXPERTS]
            if unknown or not experts:
                raise ValueError(
                    f"experts must be 'auto' or a list of names from {list(_EXPERTS)}, got "
                    f"{experts!r}."
                )
        if isinstance(self.reference, Reference):
            if self.marginals not in ("auto", "standard"):
                raise ValueError(
                    "A reference object is in the units of X and needs marginals='auto' or "
                    f"'standard', got marginals={self.marginals!r}."
                )
            if self.reference.n_features != self.n_features_in_:
                raise ValueError(
                    f"reference has {self.reference.n_features} features, X has "
                    f"{self.n_features_in_}."
                )
        return FitSettings(
            reference=self.reference,
            experts=experts,
            marginals=self.marginals,
            schedule=resolve_schedule(self.schedule),
            hidden_size=self.hidden_size,
            n_blocks=self.n_blocks,
            n_frequencies=self.n_frequencies,
            dropout=None if self.dropout == "auto" else float(self.dropout),
            weight_decay=None if self.weight_decay == "auto" else float(self.weight_decay),
            max_epochs=self.max_epochs,
            steps_per_epoch=None if self.steps_per_epoch == "auto" else int(self.steps_per_epoch),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.n_iter_no_change if self.early_stopping else None,
            validation_fraction=self.validation_fraction,
            n_strata=self.n_strata,
            n_draws=self.n_draws,
            n_directions=self.n_directions,
            device=resolve_device(self.device),
            callbacks=tuple(self.callbacks or ()),
            verbose=int(self.verbose),
            feature_names=getattr(self, "feature_names_in_", None),
        )

    def _publish(self) -> None:
        """Set the public fitted attributes from the model."""
        model = self._model
        self.net_ = model.net
        self.references_ = model.references
        self.reference_ = model.references.get(model.control)
        self.marginals_ = model.marginal_map.kind
        self.logsnr_ = model.logsnr
        self.expert_weights_ = {
            name: model.weights[:, number] for number, name in enumerate(model.expert_names)
        }
        self.history_ = model.history
        self.entropy_ = model.entropy
        self.n_iter_ = len(model.history)

    def score_samples(
        self, X: ArrayLike, return_std: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows of finite numbers.
        return_std : bool, default=False
            Whether to return standard errors too.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, with respect to the units of X.  A row's value does not depend
            on the other rows.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats.  Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is not finite or its columns are not those of `fit`.
        """
        check_is_fitted(self)
        log_density, variance = self._model.log_density(self._rows(X))
        return (log_density, np.sqrt(variance)) if return_std else log_density

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows of finite numbers.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> NDArray[np.float64]:
        """Draw random rows from the model.

        Noise is drawn at the least log-SNR and carried to the greatest by the deterministic
        probability flow of the stacked denoiser.

        Parameters
        ----------
        n_samples : int, default=1
            Rows to draw, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None takes the estimator's ``random_state``.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Random rows, in the units of X.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        seed = self.random_state if random_state is None else random_state
        return self._model.sample(int(n_samples), check_random_state(seed), n_steps=100)

    def mse_curve(self, X: ArrayLike | None = None) -> MSECurve:
        """Return mean squared errors of the model and its references against the log-SNR.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or None, default=None
            Rows of finite numbers.  None gives the curve on the validation rows of `fit`.

        Returns
        -------
        MSECurve
            Errors with standard errors at each node of the log-SNR.
        """
        check_is_fitted(self)
        if self._model.curve is None:
            raise ValueError("There is no error curve: all rows of the fit were equal.")
        if X is None:
            return self._model.curve
        return self._model.mse_curve(self._rows(X))


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a parameter value names, or raise an error that names it."""
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                "device must be 'auto' or a device that torch has here, such as 'cpu' or 'cuda', "
                f"got {device!r}."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
