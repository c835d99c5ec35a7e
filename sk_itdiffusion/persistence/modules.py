"""How networks and references become what they are made with and tensors, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import skorch
import torch
from torch import Tensor, nn

from sk_itdiffusion._estimators.density import as_pretrained
from sk_itdiffusion._fit.training import DenoisingObjective, MeanCriterion, Network, _Net
from sk_itdiffusion._runtime.configured import ConfiguredModule
from sk_itdiffusion._runtime.generators import seeded
from sk_itdiffusion.denoisers import ReferencedDenoiser
from sk_itdiffusion.layout import Layout, Variable
from sk_itdiffusion.persistence.encoded import Codec, Decoder, Encoder, Node
from sk_itdiffusion.pretrained import NoiseSchedule, PretrainedDenoiser

__all__ = [
    "ConfigCodec",
    "LoadedNet",
    "NetCodec",
    "PretrainedCodec",
    "ReferencedCodec",
]

#: Relative difference of what a module of the user's own predicts from what it did when saved.
PROBE_TOLERANCE = 0.05
PROBE_LOGSNRS = (-1.0, 2.0)


#: What modules of the library are made with, or sequences of it.
PARTS_OF_MODULES = (nn.Module, Real, str, Variable)


class ConfigCodec(Codec):
    """Objects with the methods `config` and `from_config`; of modules the tensors too.

    Classes of the user's own are stored like those of the library.
    """

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return what an empty object is made from, and its tensors."""
        config = value.config()
        try:
            check_arguments(config, self.name)
        except ValueError as error:
            raise TypeError(f"{error}, and cannot be saved.") from error
        held = own_tensors(value, encoder) if isinstance(value, nn.Module) else {}
        tensors = {name: owner[key] for name, (owner, key) in held.items()}
        return {"config": encoder.fields(config), "tensors": encoder.fields(tensors)}

    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with its tensors."""
        tensors = decoder.fields(fields["tensors"])
        config = decoder.fields(fields["config"])
        check_arguments(config, self.name)
        cls: Any = self.cls
        # Before anything is built that is larger than the file.
        if issubclass(cls, ConfiguredModule) and cls.least_numbers(**config) > decoder.n_numbers:
            raise ValueError(f"a {self.name} has more numbers than the file")
        with seeded(0):  # modules of torch begin with random numbers
            made = cls.from_config(**config)
        if type(made) is not cls:
            raise ValueError(f"from_config of {self.name} makes a {type(made).__name__}")
        if not isinstance(made, nn.Module):
            return made
        put_tensors(made, tensors, decoder, self.name)
        return made.eval()


def put_tensors(module: nn.Module, tensors: Mapping[str, Any], decoder: Decoder, name: str) -> None:
    """Put tensors in their places in a module."""
    owners = own_tensors(module, decoder)
    if owners.keys() != tensors.keys():
        raise ValueError(f"a {name} has other tensors than the file")
    for key, (owner, place) in owners.items():
        put_tensor(owner, place, tensors[key], f"{name}.{key}")


def own_tensors(
    module: nn.Module, coder: Encoder | Decoder
) -> dict[str, tuple[dict[str, Any], str]]:
    """Return where the tensors of a module are, but for submodules that are stored by themselves.

    Parameters
    ----------
    module : Module
        A module.
    coder : Encoder or Decoder
        Knows which classes are registered.

    Returns
    -------
    dict of str to (dict, str)
        For each tensor, or None in the place of one, the dict that holds it and its name there.
    """
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for held in (module._parameters, module._buffers):
        found.update({name: (held, name) for name in held})
    for name, child in module._modules.items():
        if child is not None and not coder.registry.stores(child):
            inner = own_tensors(child, coder)
            found.update({f"{name}.{key}": place for key, place in inner.items()})
    return found


def check_arguments(arguments: Mapping[str, Any], name: str) -> None:
    """Raise an error if a module is made with other things than modules, numbers and texts."""
    for key, value in arguments.items():
        items = value if isinstance(value, tuple | list) else [value]
        if not all(item is None or isinstance(item, PARTS_OF_MODULES) for item in items):
            raise ValueError(f"{key} of a {name} is no module, number or text")


def put_tensor(owner: dict[str, Any], name: str, tensor: Any, where: str) -> None:
    """Put a tensor in the place of another of the same shape, or of None."""
    before = owner[name]
    if tensor is not None and not isinstance(tensor, Tensor):
        raise ValueError(f"{where} is no tensor")
    if before is not None and (tensor is None or tensor.shape != before.shape):
        raise ValueError(f"{where} has another shape")
    if tensor is not None and tensor.isnan().any():
        raise ValueError(f"{where} has numbers that are none")
    if tensor is not None and isinstance(before, nn.Parameter):
        tensor = nn.Parameter(tensor)
    owner[name] = tensor


# -- modules of the user's own -----------------------------------------------------------------


class PretrainedCodec(Codec):
    """Networks of the user's own: their weights are stored, what they compute is not."""

    def accepts(self, value: object) -> bool:
        """Return whether a value is such a network; derived classes are too."""
        return isinstance(value, PretrainedDenoiser)

    def encode(self, value: PretrainedDenoiser, encoder: Encoder) -> Node:
        """Return the weights, and what else the network is called with."""
        settings = pretrained_settings(value)
        known = encoder.registry.find(value.noise_schedule) is not None
        settings["noise_schedule"] = value.noise_schedule if known else None
        return {
            "member": encoder.given(value.module)["member"],
            "settings": encoder.fields(settings),
            "tensors": encoder.fields(value.state_dict()),
        }

    def decode(self, fields: Node, decoder: Decoder) -> PretrainedDenoiser:
        """Return a copy of the module that is given, with the weights."""
        settings = decoder.fields(fields["settings"])
        given = as_pretrained(decoder.given[fields["member"]])
        assert given is not None
        check_settings(given, settings, decoder)
        network = copy.deepcopy(given).requires_grad_(True).float().eval()
        try:
            network.load_state_dict(decoder.fields(fields["tensors"]))
        except RuntimeError as error:
            raise ValueError(
                f"the weights do not fit to the denoiser that is given: {error}"
            ) from error
        return network


def pretrained_settings(network: PretrainedDenoiser) -> dict[str, Any]:
    """Return how a network is called."""
    names = ("noise_schedule", "prediction_type", "image_shape", "data_range")
    return {name: getattr(network, name) for name in names}


def check_settings(
    network: PretrainedDenoiser, settings: Mapping[str, Any], decoder: Decoder
) -> None:
    """Raise an error that names it if a network is called otherwise than the one saved."""
    for name, value in pretrained_settings(network).items():
        saved = settings[name]
        if name == "noise_schedule":
            same = is_same_noise(value, saved, decoder)
        else:
            same = value == saved or (None not in (value, saved) and tuple(value) == tuple(saved))
        if not same:
            raise ValueError(
                f"the denoiser that is given has another {name} than the one that was saved"
            )


def is_same_noise(given: NoiseSchedule, saved: NoiseSchedule | None, decoder: Decoder) -> bool:
    """Return whether a noise schedule is the one saved: None for one of the user's own."""
    if saved is None:
        return decoder.registry.find(given) is None
    ours, theirs = vars(given), vars(saved)
    return type(given) is type(saved) and all(
        np.array_equal(value, theirs[name]) for name, value in ours.items()
    )


class ReferencedCodec(Codec):
    """Networks of the user's own beside a reference, with a sample of what they predict."""

    def encode(self, value: ReferencedDenoiser, encoder: Encoder) -> Node:
        """Return the parts, and predictions if they are reproducible."""
        first, second = predictions(value), predictions(value)
        probe = first if torch.equal(first, second) else None
        return encoder.fields(value.config() | {"probe": probe})

    def decode(self, fields: Node, decoder: Decoder) -> ReferencedDenoiser:
        """Return the network, once it predicts what it did."""
        parts = decoder.fields(fields)
        probe = parts.pop("probe")
        network = ReferencedDenoiser.from_config(**parts).eval()
        if probe is None:
            return network
        difference = float((predictions(network) - probe).norm())
        if not difference <= PROBE_TOLERANCE * float(probe.norm()):
            raise ValueError(
                "the denoiser that is given takes the weights, but then predicts something else "
                "than the one that was saved"
            )
        return network


@torch.no_grad()
def predictions(network: ReferencedDenoiser) -> Tensor:
    """Return the noise that a network predicts at two points."""
    place = next(iter(network.state_dict().values())).device
    n_features = network.reference.n_features
    options = {"device": place, "dtype": torch.float32}
    points = torch.linspace(-1.5, 1.5, 2 * n_features, **options).reshape(2, n_features)
    with torch.random.fork_rng(devices=[]):
        noise: Tensor = network.denoiser(points, torch.tensor(PROBE_LOGSNRS, **options))
    return noise.float().cpu()


# -- nets --------------------------------------------------------------------------------------


class LoadedNet(_Net):
    """A trained net without what only training needs."""

    def initialize_optimizer(self, *_: Any, **__: Any) -> LoadedNet:
        """Leave the optimiser away."""
        return self


class NetCodec(Codec):
    """Trained nets: the averaged network, and the history."""

    def accepts(self, value: object) -> bool:
        """Return whether a value is a net."""
        return isinstance(value, _Net)

    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the fields of a net; both of its networks have the same weights."""
        objective = value.module_
        history = [
            {name: entry for name, entry in row.items() if isinstance(entry, Real | np.bool_)}
            for row in value.history
        ]
        kept = {
            "network": objective.averaged,
            "layout": objective.layout,
            "decay": objective.decay,
            "offset": objective.offset,
            "loss": objective.loss,
            "n_updates": objective.n_updates,
            "history": history,
        }
        return encoder.fields(kept)

    def decode(self, fields: Node, decoder: Decoder) -> skorch.NeuralNet:
        """Return the net, on the device asked for."""
        kept = decoder.fields(fields)
        check_net(kept)
        objective = DenoisingObjective(
            kept["network"], kept["layout"], kept["decay"], kept["offset"], kept["loss"]
        )
        objective.n_updates = kept["n_updates"]
        net = LoadedNet(
            objective.eval(),
            criterion=MeanCriterion,
            callbacks="disable",
            train_split=None,
            verbose=0,
            device=decoder.device,
        ).initialize()
        for row in kept["history"]:
            net.history.new_epoch()
            for name, entry in row.items():
                net.history.record(name, entry)
        return net


def check_net(kept: Mapping[str, Any]) -> None:
    """Raise an error if the parts of a net are not what a training makes."""
    if not isinstance(kept["network"], Network) or not isinstance(kept["layout"], Layout):
        raise ValueError("a net has no network, or no layout of columns")
    for name, kinds in {"decay": Real, "offset": Real, "n_updates": Integral, "loss": str}.items():
        if not isinstance(kept[name], kinds):
            raise ValueError(f"{name} of a net is of another type")
