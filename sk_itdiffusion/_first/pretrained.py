r"""Networks that others have trained, as denoisers in the log-SNR.

A diffusion model of images knows a time, not a log-SNR, and may predict the noise, the image or a
mixture of both.  With :math:`z = \sqrt{\sigma(a)}\, x + \sqrt{\sigma(-a)}\, \epsilon` the noise
follows from any of them,

.. math:: \hat\epsilon = \frac{z - \sqrt{\sigma(a)}\, \hat x}{\sqrt{\sigma(-a)}}
    = \sqrt{\sigma(-a)}\, z + \sqrt{\sigma(a)}\, \hat v, \qquad
    v = \sqrt{\sigma(a)}\, \epsilon - \sqrt{\sigma(-a)}\, x ,

and the time follows from :math:`a = \log \bar\alpha_t - \log (1 - \bar\alpha_t)` (Kong et al.
2023; Salimans and Ho 2022 for v; Karras et al. 2022 for networks in the noise level).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first.channel import noise_from_data, noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.registry import declaration_of

__all__ = [
    "DiscreteTimeNoise",
    "EDMNoise",
    "LogSNRNoise",
    "NoiseSchedule",
    "PretrainedDenoiser",
    "SigmaNoise",
]

Array = NDArray[np.float64]

#: Subfolders of a pipeline, and the file that each has.
PARTS = {"unet": "config.json", "scheduler": "scheduler_config.json"}
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
#: Keeps the log-SNR of tables that end at no signal at all finite.
_MIN_SIGNAL = 1e-9
_MAX_BETA = 0.999


class NoiseSchedule(ABC):
    """How a network's time and input follow from the log-SNR.

    A schedule of one's own defines `network_input`.

    Examples
    --------
    >>> from sk_itdiffusion.pretrained import NoiseSchedule
    >>> class ReversedLogSNR(NoiseSchedule):
    ...     def network_input(self, z, logsnr):
    ...         return z, -logsnr
    """

    @abstractmethod
    def network_input(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network is called with.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy points ``sqrt(sigmoid(logsnr)) x + sqrt(sigmoid(-logsnr)) eps``.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        points : Tensor of shape (B, d)
            The points, in the scale of the network.
        time : Tensor of shape (B,)
            The network's time.
        """

    def noise(self, output: Tensor, z: Tensor, logsnr: Tensor, prediction_type: str) -> Tensor:
        """Return the noise that a network predicts.

        Parameters
        ----------
        output : Tensor of shape (B, d)
            What the network returned.
        z : Tensor of shape (B, d)
            Noisy points.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.
        prediction_type : {"epsilon", "sample", "v_prediction"}
            What the network predicts.

        Returns
        -------
        Tensor of shape (B, d)
            The predicted noise.
        """
        if prediction_type == "epsilon":
            return output
        if prediction_type == "sample":
            return noise_from_data(z, output, logsnr)
        return noise_scale(logsnr)[:, None] * z + signal_scale(logsnr)[:, None] * output


@stored()
class LogSNRNoise(NoiseSchedule):
    """The network is called with the noisy points and the log-SNR itself.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.pretrained import LogSNRNoise
    >>> points, time = LogSNRNoise().network_input(torch.zeros(1, 2), torch.tensor([3.0]))
    >>> time.item()
    3.0
    """

    def network_input(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments; see `NoiseSchedule.network_input`."""
        return z, logsnr


@stored()
class DiscreteTimeNoise(NoiseSchedule):
    """Time steps of a discrete-time diffusion process that keeps the variance.

    Between the time steps of the table the time is interpolated linearly in the log-SNR; beyond its
    ends it is that of the end.

    Parameters
    ----------
    alphas_cumprod : array-like of shape (n_steps,)
        Share of the signal's variance after each step, decreasing, in [0, 1].
    continuous_time : bool, default=True
        Whether the network takes times between steps; otherwise they are rounded.

    Raises
    ------
    ValueError
        If the table is not decreasing or not in [0, 1].

    Examples
    --------
    >>> from sk_itdiffusion.pretrained import DiscreteTimeNoise
    >>> noise = DiscreteTimeNoise.ddpm_linear()
    >>> [round(float(noise.logsnr(t)), 2) for t in (0, 999)]
    [9.21, -10.12]
    """

    def __init__(self, alphas_cumprod: ArrayLike, continuous_time: bool = True) -> None:
        table = np.asarray(alphas_cumprod, dtype=np.float64)
        usable = table.ndim == 1 and len(table) >= 2 and np.isfinite(table).all()
        if not usable or table.min() < 0 or table.max() > 1 or (np.diff(table) >= 0).any():
            raise ValueError(
                "alphas_cumprod must be at least two decreasing numbers in [0, 1], got "
                f"{alphas_cumprod!r}."
            )
        self.alphas_cumprod = table
        self.continuous_time = continuous_time
        signal = np.clip(table, _MIN_SIGNAL, 1.0 - _MIN_SIGNAL)
        self._logsnr = np.log(signal) - np.log1p(-signal)

    @classmethod
    def from_betas(cls, betas: ArrayLike, continuous_time: bool = True) -> DiscreteTimeNoise:
        """Return the schedule of given noise variances of the steps.

        Parameters
        ----------
        betas : array-like of shape (n_steps,)
            Variances, in (0, 1).
        continuous_time : bool, default=True
            Whether the network takes times between steps.

        Returns
        -------
        DiscreteTimeNoise
            The schedule.
        """
        steps = 1.0 - np.asarray(betas, dtype=np.float64)
        return cls(np.cumprod(steps), continuous_time)

    @classmethod
    def ddpm_linear(
        cls, n_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteTimeNoise:
        """Return the schedule of Ho et al. (2020), linear in the variance of the steps.

        Parameters
        ----------
        n_steps : int, default=1000
            Number of steps, at least 2.
        beta_start : float, default=1e-4
            Variance of the first step, in (0, 1).
        beta_end : float, default=0.02
            Variance of the last step, in (0, 1).

        Returns
        -------
        DiscreteTimeNoise
            The schedule.
        """
        return cls.from_betas(np.linspace(beta_start, beta_end, n_steps))

    @classmethod
    def cosine(cls, n_steps: int = 1000, offset: float = 0.008) -> DiscreteTimeNoise:
        """Return the schedule of Nichol and Dhariwal (2021, equation 17).

        Parameters
        ----------
        n_steps : int, default=1000
            Number of steps, at least 2.
        offset : float, default=0.008
            Keeps the variances of the first steps from being too small; at least 0.

        Returns
        -------
        DiscreteTimeNoise
            The schedule.
        """
        time = np.arange(n_steps + 1) / n_steps
        signal = np.cos((time + offset) / (1.0 + offset) * math.pi / 2.0) ** 2
        return cls.from_betas(np.minimum(1.0 - signal[1:] / signal[:-1], _MAX_BETA))

    @property
    def n_steps(self) -> int:
        """Number of time steps."""
        return len(self.alphas_cumprod)

    def logsnr(self, time: ArrayLike) -> Array:
        """Return the log-SNR of time steps, which may lie between those of the table.

        Parameters
        ----------
        time : array-like
            Times in [0, n_steps - 1].

        Returns
        -------
        ndarray
            Log signal-to-noise ratios, in the shape of the times.
        """
        steps = np.arange(self.n_steps, dtype=np.float64)
        return np.asarray(np.interp(np.asarray(time, dtype=np.float64), steps, self._logsnr))

    def time(self, logsnr: Tensor) -> Tensor:
        """Return the times of log-SNRs.

        Parameters
        ----------
        logsnr : Tensor of shape (B,)
            Log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B,)
            Times in [0, n_steps - 1]; integers unless time is continuous.
        """
        # In float64 and on the CPU, where interpolation is exact enough to hit whole steps.
        level = logsnr.detach().cpu().double().numpy()
        steps = np.arange(self.n_steps - 1, -1, -1, dtype=np.float64)
        time = np.interp(level, self._logsnr[::-1], steps)
        whole = np.rint(time)
        close = np.abs(time - whole) < 1e-3
        time = np.where(close | (not self.continuous_time), whole, time)
        if not self.continuous_time:
            return torch.from_numpy(time).to(logsnr.device, torch.long)
        return torch.from_numpy(time).to(logsnr.device, logsnr.dtype)

    def network_input(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments; see `NoiseSchedule.network_input`."""
        return z, self.time(logsnr)


@stored()
class SigmaNoise(NoiseSchedule):
    """The network is called with ``x + sigma * eps`` and the noise level sigma.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.pretrained import SigmaNoise
    >>> points, sigma = SigmaNoise().network_input(torch.ones(1, 2), torch.zeros(1))
    >>> sigma.item(), round(points[0, 0].item(), 4)
    (1.0, 1.4142)
    """

    def network_input(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments; see `NoiseSchedule.network_input`."""
        return z / signal_scale(logsnr)[:, None], torch.exp(-0.5 * logsnr)


@stored()
class EDMNoise(NoiseSchedule):
    r"""A raw network of Karras et al. (2022, table 1), with their preconditioning.

    The network F is called with the scaled input and a quarter of log sigma, and
    :math:`\hat x = c_{skip}\, y + c_{out}\, F(c_{in}\, y, \tfrac14 \log\sigma)` for
    :math:`y = x + \sigma\epsilon`.  A network that already includes the preconditioning is one of
    `SigmaNoise` with ``prediction_type="sample"``.

    Parameters
    ----------
    sigma_data : float, default=0.5
        Standard deviation of the data, positive.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.pretrained import EDMNoise
    >>> points, time = EDMNoise(sigma_data=1.0).network_input(torch.ones(1, 2), torch.zeros(1))
    >>> points.tolist(), time.item()
    ([[1.0, 1.0]], -0.0)
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data!r}.")
        self.sigma_data = float(sigma_data)

    def network_input(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments; see `NoiseSchedule.network_input`."""
        sigma = torch.exp(-0.5 * logsnr)
        scale = (sigma.square() + self.sigma_data**2).rsqrt() / signal_scale(logsnr)
        return scale[:, None] * z, -0.125 * logsnr

    def noise(self, output: Tensor, z: Tensor, logsnr: Tensor, prediction_type: str) -> Tensor:
        """Return the predicted noise; see `NoiseSchedule.noise`."""
        if prediction_type == "sample":
            return super().noise(output, z, logsnr, prediction_type)
        sigma = torch.exp(-0.5 * logsnr)[:, None]
        total = sigma.square() + self.sigma_data**2
        sign = 1.0 if prediction_type == "epsilon" else -1.0
        skip = self.sigma_data**2 / total
        data = skip * z / signal_scale(logsnr)[:, None]
        data = data + sign * sigma * self.sigma_data * total.rsqrt() * output
        return noise_from_data(z, data, logsnr)


NOISE_SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "ddpm_linear": DiscreteTimeNoise.ddpm_linear,
    "cosine": DiscreteTimeNoise.cosine,
    "sigma": SigmaNoise,
    "edm": EDMNoise,
    "logsnr": LogSNRNoise,
}


class PretrainedDenoiser(nn.Module):
    """A network of any diffusion model, as a denoiser in the log-SNR.

    Parameters
    ----------
    module : nn.Module
        Called as ``module(points, time)``; returns a tensor, an object with an attribute
        ``sample`` or a tuple whose first element is the prediction.
    noise_schedule : str or NoiseSchedule, default="ddpm_linear"
        What the network calls time: ``"ddpm_linear"`` and ``"cosine"`` (time steps 0 to 999),
        ``"sigma"`` (the noise level, with input ``x + sigma * eps``), ``"edm"`` (a raw network of
        Karras et al. 2022), ``"logsnr"``, or an object such as `DiscreteTimeNoise`.
    prediction_type : {"epsilon", "sample", "v_prediction"}, default="epsilon"
        What the network predicts.
    image_shape : tuple of int or None, default=None
        Channels, height and width that points are reshaped to; None passes rows (B, d).
    data_range : tuple of float or None, default=(-1.0, 1.0)
        Values in the rows given to an estimator that are -1 and 1 for the network: ``(0, 255)``
        for 8-bit pixels.  None means the standardised rows of the estimator.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    See Also
    --------
    sk_itdiffusion.IMMSEDensity : Takes it as ``denoiser``.

    Notes
    -----
    Of networks that also predict a variance, with twice the channels, only the first half of the
    output is used.  Nothing is clipped: diffusers' ``clip_sample`` and thresholds belong to its
    samplers, and a clipped prediction is another denoiser.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion import PretrainedDenoiser
    >>> class Shrink(torch.nn.Module):
    ...     def forward(self, z, logsnr):
    ...         return torch.sigmoid(-logsnr).sqrt()[:, None] * z
    >>> denoiser = PretrainedDenoiser(Shrink(), noise_schedule="logsnr")
    >>> denoiser(torch.ones(1, 2), torch.zeros(1))
    tensor([[0.7071, 0.7071]])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        noise_schedule: str | NoiseSchedule = "ddpm_linear",
        prediction_type: str = "epsilon",
        image_shape: tuple[int, ...] | None = None,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {list(PREDICTION_TYPES)}, got {prediction_type!r}."
            )
        if image_shape is not None and (
            len(image_shape) != 3 or not all(int(size) == size >= 1 for size in image_shape)
        ):
            raise ValueError(f"image_shape must be (channels, height, width), got {image_shape!r}.")
        if data_range is not None and not data_range[0] < data_range[1]:
            raise ValueError(f"data_range must be (low, high), got {data_range!r}.")
        self.module = module
        self.noise_schedule = resolve_noise_schedule(noise_schedule)
        self.prediction_type = prediction_type
        self.image_shape = None if image_shape is None else tuple(int(s) for s in image_shape)
        self.data_range = data_range

    @classmethod
    def from_diffusers(
        cls,
        path_or_id: str | Path,
        *,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
        continuous_time: bool = True,
        **options: Any,
    ) -> PretrainedDenoiser:
        """Return the network and schedule that the diffusers package has saved.

        Needs the extra ``sk_itdiffusion[images]``.

        Parameters
        ----------
        path_or_id : str or Path
            Folder with the subfolders ``unet`` and ``scheduler``, as `save_pretrained` of a
            pipeline makes (or with both parts' files in itself), or the identifier of a model on
            the Hugging Face hub, which is then downloaded.
        data_range : tuple of float or None, default=(-1.0, 1.0)
            See `PretrainedDenoiser`.
        continuous_time : bool, default=True
            Whether the network takes times between its steps; otherwise they are rounded.
        **options : dict
            Passed to ``from_pretrained`` of the network.

        Returns
        -------
        PretrainedDenoiser
            The denoiser, in evaluation mode.

        Raises
        ------
        ValueError
            If the folder has not both parts, names a class that is no network or no scheduler of
            diffusers, or the scheduler is of an unknown kind.
        """
        diffusers = import_diffusers()
        check_folder(path_or_id)
        where = str(path_or_id)
        unet, scheduler = subfolders(where)
        try:
            config = diffusers.UNet2DModel.load_config(where, subfolder=unet)
        except OSError:
            unet = scheduler = None  # the early models of the hub
            config = diffusers.UNet2DModel.load_config(where)
        # Otherwise diffusers recommends another package, and does the same.
        options.setdefault("low_cpu_mem_usage", False)
        kind = named_class(config["_class_name"], diffusers.ModelMixin, where)
        network = kind.from_pretrained(where, subfolder=unet, **options)
        schedule, prediction_type = read_scheduler(where, scheduler, continuous_time)
        size = config.get("sample_size")
        if size is None:
            raise ValueError(f"The network in {where!r} does not say its sample_size.")
        sizes = (size, size) if isinstance(size, int) else tuple(size)
        return cls(
            network.eval(),
            noise_schedule=schedule,
            prediction_type=prediction_type,
            image_shape=(config["in_channels"], *sizes),
            data_range=data_range,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What the denoiser is besides its network, for comparisons."""
        schedule = {
            key: np.asarray(value).tolist() for key, value in vars(self.noise_schedule).items()
        }
        return {
            "noise_schedule": (type(self.noise_schedule).__name__, schedule),
            "prediction_type": self.prediction_type,
            "image_shape": self.image_shape,
            "data_range": self.data_range,
        }

    @property
    def n_features(self) -> int | None:
        """Number of columns of the rows, if it is known."""
        return None if self.image_shape is None else math.prod(self.image_shape)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy points ``sqrt(sigmoid(logsnr)) x + sqrt(sigmoid(-logsnr)) eps``, with x in the
            network's units.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            The noise.
        """
        points, time = self.noise_schedule.network_input(z, logsnr)
        if self.image_shape is not None:
            points = points.reshape(-1, *self.image_shape)
        with half_precision(z.device, self.image_shape is not None):
            output = first_output(self.module(points, time))
        channels = points.shape[1]
        if output.shape[1] == 2 * channels:
            output = output[:, :channels]
        if output.shape != points.shape:
            raise ValueError(
                f"The network returns shape {tuple(output.shape)} for points of shape "
                f"{tuple(points.shape)}; image_shape may be wrong."
            )
        output = output.flatten(1).to(z.dtype)
        return self.noise_schedule.noise(output, z, logsnr, self.prediction_type)


def half_precision(device: torch.device, allowed: bool) -> torch.autocast:
    """Return a context with bfloat16 products in training, where an accelerator has them.

    Scores are taken in single precision: at a high log-SNR bfloat16 rounds the noise away.
    """
    enabled = allowed and device.type == "cuda" and torch.is_grad_enabled()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def first_output(output: Any) -> Tensor:
    """Return the prediction in what a network returns."""
    if isinstance(output, Tensor):
        return output
    prediction = output.sample if hasattr(output, "sample") else output[0]
    if not isinstance(prediction, Tensor):
        raise ValueError(f"The network returns {type(output).__name__}, which contains no tensor.")
    return prediction


def resolve_noise_schedule(schedule: str | NoiseSchedule) -> NoiseSchedule:
    """Return the schedule that a parameter value names."""
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if not isinstance(schedule, str) or schedule not in NOISE_SCHEDULES:
        raise ValueError(
            f"noise_schedule must be one of {list(NOISE_SCHEDULES)} or a NoiseSchedule, got "
            f"{schedule!r}."
        )
    return NOISE_SCHEDULES[schedule]()


def import_diffusers() -> Any:
    """Return the diffusers package, or raise an error that says how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "Networks for images need the diffusers package: pip install 'sk_itdiffusion[images]'."
        ) from error
    return diffusers


def named_class(name: str, base: type, where: str) -> Any:
    """Return the class of diffusers that a configuration names, which must be of some kind.

    Others, such as pipelines, may execute what they read.
    """
    found = getattr(import_diffusers(), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{where!r} names {name!r}, which is no {base.__name__} of diffusers.")
    return found


def check_folder(path_or_id: str | Path) -> None:
    """Raise an error if a local folder lacks a part; anything else is taken for an identifier."""
    folder = Path(path_or_id)
    if not folder.exists() and (isinstance(path_or_id, Path) or folder.is_absolute()):
        raise ValueError(f"There is no folder {str(path_or_id)!r}.")
    if folder.is_dir():
        missing = [
            part
            for part, file in PARTS.items()
            if not (folder / part).is_dir() and not (folder / file).is_file()
        ]
        if missing:
            raise ValueError(
                f"The folder {str(path_or_id)!r} has no subfolder(s) {missing}; save the network "
                "with save_pretrained in 'unet' and the scheduler in 'scheduler'."
            )


def subfolders(where: str) -> list[str | None]:
    """Return the subfolders of network and scheduler; None for files in the folder itself.

    Of identifiers on the hub only the usual layout can be told without asking it.
    """
    folder = Path(where)
    return [part if (folder / part).is_dir() or not folder.is_dir() else None for part in PARTS]


def read_scheduler(
    where: str, subfolder: str | None, continuous_time: bool
) -> tuple[NoiseSchedule, str]:
    """Return the noise schedule and the prediction type of a saved scheduler."""
    diffusers = import_diffusers()
    config = diffusers.DDPMScheduler.load_config(where, subfolder=subfolder)
    # Early files name the class of DDPM otherwise.
    name = config["_class_name"] if hasattr(diffusers, config["_class_name"]) else "DDPMScheduler"
    scheduler = named_class(name, diffusers.SchedulerMixin, where).from_config(config)
    prediction_type = str(scheduler.config.get("prediction_type", "epsilon"))
    if hasattr(scheduler, "alphas_cumprod"):
        table = scheduler.alphas_cumprod.double().numpy()
        return DiscreteTimeNoise(table, continuous_time), prediction_type
    if "sigma_data" in scheduler.config:
        return EDMNoise(scheduler.config.sigma_data), prediction_type
    raise ValueError(
        f"The scheduler {config['_class_name']} in {where!r} has neither alphas_cumprod nor "
        "sigma_data; give noise_schedule to PretrainedDenoiser yourself."
    )


def as_pretrained(denoiser: nn.Module | None) -> PretrainedDenoiser | None:
    """Return the denoiser with its noise schedule; a plain module is called with the log-SNR."""
    if denoiser is None or isinstance(denoiser, PretrainedDenoiser):
        return denoiser
    return PretrainedDenoiser(denoiser, noise_schedule=LogSNRNoise(), data_range=None)


# -- files -------------------------------------------------------------------------------------


def stored_settings(network: PretrainedDenoiser) -> dict[str, Any]:
    """Return how a network is called; of schedules defined by the user there is None."""
    noise = network.noise_schedule
    return {
        "module": network.module,
        "noise_schedule": None if declaration_of(type(noise)) is None else noise,
        "prediction_type": network.prediction_type,
        "image_shape": network.image_shape,
        "data_range": network.data_range,
    }


def same_as_given(
    module: nn.Module, noise_schedule: NoiseSchedule | None, **settings: Any
) -> PretrainedDenoiser:
    """Return a copy of a network that is called as the one saved was."""
    given = as_pretrained(module)
    assert given is not None
    found = stored_settings(given)
    same = {
        name: found[name] == value
        or (None not in (value, found[name]) and tuple(value) == tuple(found[name]))
        for name, value in settings.items()
    }
    same["noise_schedule"] = is_same_noise(found["noise_schedule"], noise_schedule)
    for name in found:
        if not same.get(name, True):
            raise ValueError(
                f"the denoiser that is given has another {name} than the one that was saved"
            )
    return copy.deepcopy(given).requires_grad_(True).float().eval()


def is_same_noise(first: NoiseSchedule | None, second: NoiseSchedule | None) -> bool:
    """Return whether two schedules are the same; None stands for one defined by the user."""
    if first is None or second is None:
        return first is second
    return type(first) is type(second) and all(
        np.array_equal(value, vars(second)[name]) for name, value in vars(first).items()
    )


stored(given=("module",), has_derived=True, config=stored_settings, make=same_as_given)(
    PretrainedDenoiser
)
