"""Density estimation for continuous rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from sk_itdiffusion.estimator import TableEstimator, checked_weight
from sk_itdiffusion.marginals import MARGINAL_KINDS
from sk_itdiffusion.references import Reference
from sk_itdiffusion.schedules import Schedule
from sk_itdiffusion.space import ColumnKind

__all__ = ["IMMSEDensity"]


class IMMSEDensity(TableEstimator):
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
        Strata of the log-SNR in scoring, at least 2.  This and the next two parameters may be
        changed after `fit`: the standard errors fall with the root of the evaluations.
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
    nets_ : dict of str to skorch.NeuralNet
        All trained nets by name.
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

    _experts: ClassVar[tuple[str, ...]] = ("network", "gaussian", "gaussian_mixture", "reference")
    _fixed_at_warm_start: ClassVar[tuple[str, ...]] = ("reference", "experts", "marginals")
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TableEstimator._parameter_constraints,
        "reference": [StrOptions({"auto", "gaussian", "gaussian_mixture"}), Reference],
        "marginals": [StrOptions({"auto", *MARGINAL_KINDS})],
        "n_frequencies": [Interval(Integral, 0, None, closed="left")],
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

    def _read_first(
        self, X: ArrayLike, weight: ArrayLike | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[ColumnKind]]:
        """Return rows, weights and the kinds of the columns: all continuous."""
        rows = self._validated(X, reset=True, ensure_min_samples=2)
        return rows, checked_weight(weight, rows), [ColumnKind()] * rows.shape[1]

    def _read(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return validated rows with the columns of the fit."""
        return self._validated(X, reset=False, ensure_min_samples=1)

    def _validated(self, X: ArrayLike, reset: bool, ensure_min_samples: int) -> NDArray[np.float64]:
        rows = validate_data(
            self, X, dtype=np.float64, reset=reset, ensure_min_samples=ensure_min_samples
        )
        return np.asarray(rows, dtype=np.float64)

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of continuous columns."""
        check_reference_object(self.reference, self.marginals, self.n_features_in_)
        return {"marginals": self.marginals, "n_frequencies": self.n_frequencies}

    def _publish(self) -> None:
        """Set the public fitted attributes from the model."""
        super()._publish()
        self.marginals_ = self._model.space.marginal_map.kind


def check_reference_object(reference: str | Reference, marginals: str, n_features: int) -> None:
    """Raise an error if a reference object does not fit to the maps or the columns."""
    if not isinstance(reference, Reference):
        return
    if marginals not in ("auto", "standard"):
        raise ValueError(
            "A reference object is in the units of X and needs marginals='auto' or "
            f"'standard', got marginals={marginals!r}."
        )
    if reference.n_features != n_features:
        raise ValueError(f"reference has {reference.n_features} features, X has {n_features}.")
