"""How networks and references become what they are made with and tensors, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import skorch
import torch
from torch import Tensor, nn

from sk_itdiffusion.denoisers import (
    ConvolutionalNetwork,
    LevelDenoiser,
    ReferencedDenoiser,
    ResidualMLP,
    UNetBackbone,
)
from sk_itdiffusion.denoisers.convolutional import patch_size
from sk_itdiffusion.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion.density import as_pretrained
from sk_itdiffusion.layout import Layout, Variable
from sk_itdiffusion.persistence.encoded import Codec, Decoder, Encoder, Node
from sk_itdiffusion.pretrained import NoiseSchedule, PretrainedDenoiser
from sk_itdiffusion.training import DenoisingObjective, MeanCriterion, Network, _Net

__all__ = [
    "ConfigCodec",
    "LoadedNet",
    "ModuleCodec",
    "NetCodec",
    "PretrainedCodec",
    "ReferencedCodec",
    "attributes_of",
    "bare_codec",
    "convolutional_arguments",
    "level_arguments",
    "mlp_arguments",
    "numbers_of_convolutions",
    "numbers_of_layout",
    "numbers_of_mlp",
    "numbers_of_unet",
    "unet_arguments",
]

#: Relative difference of what a module of the user's own predicts from what it did when saved.
PROBE_TOLERANCE = 0.05
PROBE_LOGSNRS = (-1.0, 2.0)


#: What modules of the library are made with, or sequences of it.
PARTS_OF_MODULES = (nn.Module, Real, str, Variable)


class ModuleCodec(Codec):
    """Modules of the library: what they are made with, and the numbers in them.

    Parameters
    ----------
    cls : type
        The class.
    arguments : callable
        Returns what a module is made with, by name; submodules of registered classes among it.
    build : callable
        Makes a module of that, with any numbers (None for tensors of unknown shape).
    least_numbers : callable or None, default=None
        Returns, from the arguments, how many numbers a module has at least.
    """

    def __init__(
        self,
        cls: type[nn.Module],
        arguments: Callable[[Any], dict[str, Any]],
        build: Callable[..., nn.Module],
        least_numbers: Callable[..., int] | None = None,
    ) -> None:
        super().__init__(cls)
        self.arguments = arguments
        self.build = build
        self.least_numbers = least_numbers

    def encode(self, value: nn.Module, encoder: Encoder) -> Node:
        """Return arguments and tensors."""
        tensors = {name: owner[key] for name, (owner, key) in own_tensors(value, encoder).items()}
        return encoder.fields(self.arguments(value)) | {"tensors": encoder.fields(tensors)}

    def decode(self, fields: Node, decoder: Decoder) -> nn.Module:
        """Return the module with its tensors."""
        tensors = decoder.fields(fields["tensors"])
        nodes = {name: node for name, node in fields.items() if name != "tensors"}
        arguments = decoder.fields(nodes)
        check_arguments(arguments, self.name)
        # Before anything is built that is larger than the file.
        if self.least_numbers and self.least_numbers(**arguments) > decoder.n_numbers:
            raise ValueError(f"a {self.name} has more numbers than the file")
        module = self.build(**arguments)
        put_tensors(module, tensors, decoder, self.name)
        return module.eval()


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
        made = self.cls.from_config(**config)  # type: ignore[attr-defined]
        if type(made) is not self.cls:
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


def bare(cls: type[nn.Module], buffers: Sequence[str], **attributes: Any) -> nn.Module:
    """Return a module with attributes and places for buffers, made without its constructor."""
    module: nn.Module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    for name in buffers:
        module.register_buffer(name, None)
    return module


def bare_codec(cls: type[nn.Module], attributes: Sequence[str], buffers: Sequence[str]) -> Codec:
    """Return the codec of a module that is made without its constructor."""

    def arguments(module: nn.Module) -> dict[str, Any]:
        return {name: getattr(module, name) for name in attributes}

    def build(**values: Any) -> nn.Module:
        return bare(cls, buffers, **{name: values[name] for name in attributes})

    return ModuleCodec(cls, arguments, build)


def numbers_of_layout(n_continuous: int, variables: Sequence[Variable]) -> int:
    """Return how many numbers the references of a layout have at least."""
    sizes = [check_size(variable.n_levels, least=2) for variable in variables]
    for variable in variables:
        if variable.values is not None and variable.values.shape != (variable.n_levels,):
            raise ValueError("a variable has other levels than values")
    return check_size(n_continuous) + sum(sizes)


def numbers_of_mlp(
    n_features: int,
    embedding: LogSNREmbedding,
    *,
    width: int,
    n_frequencies: int,
    n_periodic: int,
    n_outputs: int,
    n_blocks: int,
    dropout: float,
) -> int:
    """Return how many weights a fully connected network has at least."""
    sizes = (n_features, n_frequencies, n_periodic, n_outputs, n_blocks)
    n_features, n_frequencies, n_periodic, n_outputs, n_blocks = map(check_size, sizes)
    n_inputs = n_features + 2 * n_frequencies * n_periodic
    n_condition = 2 * check_size(embedding.n_features)
    return check_size(width) * (n_inputs + n_blocks * (2 * width + n_condition) + n_outputs)


def numbers_of_convolutions(
    image_shape: tuple[int, ...],
    n_outputs: int,
    embedding: LogSNREmbedding,
    *,
    width: int,
    n_blocks: int,
    dropout: float,
) -> int:
    """Return how many weights a convolutional network has at least."""
    channels, height, columns = (check_size(size, least=1) for size in image_shape)
    area = channels * patch_size(height, columns) ** 2
    n_condition = 2 * check_size(embedding.n_features)
    in_blocks = check_size(n_blocks) * (4 * width + n_condition)
    return check_size(width) * (area * (1 + check_size(n_outputs)) + in_blocks)


def numbers_of_unet(
    image_shape: tuple[int, ...],
    low: float,
    high: float,
    *,
    width: int,
    n_blocks: int,
    dropout: float,
) -> int:
    """Return how many weights a U-Net has at least: those of its widest blocks."""
    channels = check_size(image_shape[0], least=1)
    return check_size(width) * (9 * channels + check_size(n_blocks) * 9 * width)


def check_size(size: int, least: int = 0) -> int:
    """Return a size that a file tells, or raise an error if it is none."""
    if not isinstance(size, Integral) or isinstance(size, bool) or size < least:
        raise ValueError(f"{size!r} is no size")
    return int(size)


def mlp_arguments(network: ResidualMLP) -> dict[str, Any]:
    """Return what a network is made with."""
    n_plain = network.inlet.in_features - network.features.n_outputs
    return {
        "n_features": network.n_periodic + n_plain,
        "embedding": network.embedding,
        "width": network.inlet.out_features,
        "n_frequencies": network.features.frequencies.shape[1],
        "n_periodic": network.n_periodic,
        "n_outputs": network.outlet.out_features,
        **block_arguments(network.blocks),
    }


def convolutional_arguments(network: ConvolutionalNetwork) -> dict[str, Any]:
    """Return what a network is made with."""
    return {
        "image_shape": (network.channels, network.height, network.columns),
        "n_outputs": network.n_outputs,
        "embedding": network.embedding,
        "width": network.inlet.out_features,
        **block_arguments(network.blocks),
    }


def block_arguments(blocks: nn.ModuleList) -> dict[str, Any]:
    """Return the number of residual blocks and their dropout."""
    dropout: Any = blocks[0].dropout
    return {"n_blocks": len(blocks), "dropout": float(dropout.rate)}


def unet_arguments(backbone: UNetBackbone) -> dict[str, Any]:
    """Return what a network is made with."""
    config: Any = backbone.network.config
    return {
        "image_shape": tuple(backbone.image_shape),
        "low": backbone.low,
        "high": backbone.high,
        "width": config["block_out_channels"][0],
        "n_blocks": config["layers_per_block"],
        "dropout": float(config["dropout"]),
    }


def level_arguments(denoiser: LevelDenoiser) -> dict[str, Any]:
    """Return what a denoiser is made with."""
    own = denoiser.independent
    return {
        "backbone": denoiser.backbone,
        "reference": denoiser.reference,
        "independent": denoiser.reference if own is None else own,
        "embedding": denoiser.embedding,
    }


def attributes_of(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that returns attributes by name."""
    return lambda value: {name: getattr(value, name) for name in names}


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
        parts = {
            "denoiser": value.denoiser,
            "reference": value.reference,
            "probe": first if torch.equal(first, second) else None,
        }
        return encoder.fields(parts)

    def decode(self, fields: Node, decoder: Decoder) -> ReferencedDenoiser:
        """Return the network, once it predicts what it did."""
        parts = decoder.fields(fields)
        network = ReferencedDenoiser(parts["denoiser"], parts["reference"]).eval()
        probe = parts["probe"]
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
