"""Saved estimators: one file each, in the safetensors format.

The tensors of the file hold all weights and all other arrays of numbers; its metadata holds

- ``format`` and ``format_version``, and ``library_version`` of the library that wrote the file,
- ``config``: parameters, names, levels and how the arrays belong together, as JSON
  (see `sk_itdiffusion.persistence.encoded`),
- ``sha256``: the checksum over all of it, which tells damage from content.  It is no signature.

Nothing in a file is executed, and no name in it is looked up but in this library's own list of
classes (`sk_itdiffusion.persistence.registry`) and among those passed to `load`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._estimators.parameters import resolve_device
from sk_itdiffusion._version import __version__
from sk_itdiffusion.persistence.encoded import Decoder, Encoder, Node, Registry

if TYPE_CHECKING:
    from sk_itdiffusion.persistence.registry import EstimatorCodec

__all__ = ["SaveMixin", "load"]

FORMAT = "sk_itdiffusion"
#: Raised when older versions of the library cannot read what newer ones write.
FORMAT_VERSION = 1
#: Longest header that the safetensors format allows.
MOST_HEADER_BYTES = 100_000_000

Path = str | os.PathLike[str]
Arrays = dict[str, NDArray[Any]]


class SaveMixin:
    """Lets an estimator be saved."""

    def save(self, path: Path) -> None:
        """Save the fitted estimator to a file.

        `sk_itdiffusion.load` reads it again, also where there is no GPU, and then scores are the
        same to the last bit on the same kind of machine.  Unlike a pickle the file holds no code,
        so that loading one from others is safe.  It is written beside the old file and then takes
        its place, so that an error leaves the old file whole.

        ``callbacks``, a ``random_state`` that is a generator, and metadata requests are not saved:
        the loaded estimator has None for them.  Of a ``denoiser`` of your own the trained weights
        are saved, not the code; give it again to `sk_itdiffusion.load`.  Objects of other classes
        of your own, such as a ``reference`` or a ``schedule``, are saved by the names of their
        classes, which `sk_itdiffusion.load` is to be passed.

        Parameters
        ----------
        path : str or path-like
            File; an existing one is replaced.  The format is that of ``.safetensors`` files.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it holds something that cannot be saved, such as an object of a class of your own
            that has neither ``config`` and ``from_config`` nor ``get_params``, and is no dataclass.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import sk_itdiffusion
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> density = sk_itdiffusion.IMMSEDensity(max_epochs=0, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "density.safetensors")
        ...     density.save(path)
        ...     loaded = sk_itdiffusion.load(path)
        >>> bool((loaded.score_samples(X) == density.score_samples(X)).all())
        True
        """
        check_is_fitted(self)
        write_atomically(path, encoded_file(self))

    def __dask_tokenize__(self) -> str:
        """Return what tells the content from any other, by which Dask names its results."""
        return str(encoded_parts(self)[1]["sha256"])


def load(
    path: Path,
    *,
    device: str | torch.device | None = None,
    denoiser: torch.nn.Module | Mapping[str, torch.nn.Module] | None = None,
    classes: Sequence[type] = (),
) -> Any:
    """Return the estimator that was saved to a file.

    Files of others are safe to load: nothing in them is executed.  A loaded estimator scores,
    samples and continues a warm start as the saved one did; its ``net_`` has no optimiser.

    Parameters
    ----------
    path : str or path-like
        File that the method ``save`` of an estimator wrote.
    device : str, device or None, default=None
        Where to score.  None is the device of the fit if there is such a one here, else the CPU.
    denoiser : Module, dict of str to Module or None, default=None
        The module of your own that the estimator was fitted with, if it was.  A copy of it gets the
        weights from the file.  For an ensemble of several such members, a dict from their names.
    classes : sequence of type, default=()
        Classes of your own whose objects the estimator holds, such as that of its ``reference``.
        They have ``config`` and ``from_config``, as references do, are dataclasses, or have
        ``get_params``.  Others than these are never looked for, whatever the file says.

    Returns
    -------
    estimator
        The fitted estimator.

    Raises
    ------
    ValueError
        If the file is none that ``save`` wrote, is truncated or altered, was written by a newer
        version of the library, does not fit to the device or the denoiser, or if its parts do not
        fit together, which the score of one row tells; if it holds objects of classes of your own
        that are not passed; if two of these have the same name.
    TypeError
        If something else than classes that can be saved is passed as such.
    ImportError
        If the estimator needs a package that is not installed, such as diffusers.
    OSError
        If the file cannot be read.

    See Also
    --------
    IMMSEDensity.save : Saves an estimator.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sk_itdiffusion
    >>> X = np.random.default_rng(0).integers(0, 3, size=(100, 2))
    >>> density = sk_itdiffusion.IMMSEDiscreteDensity(max_epochs=0, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "density.safetensors")
    ...     density.save(path)
    ...     loaded = sk_itdiffusion.load(path, device="cpu")
    >>> loaded
    IMMSEDiscreteDensity(max_epochs=0, random_state=0)
    """
    from sk_itdiffusion.persistence.registry import registry  # it imports this module

    known = registry().with_classes(classes)
    config, arrays = read_checked(path)
    try:
        with np.errstate(all="ignore"):  # what is no number is refused, or as it was saved
            return decoded_estimator(config, arrays, device, denoiser, known)
    except ImportError:
        raise
    except Exception as error:  # whatever nonsense may cause
        raise ValueError(f"Cannot load {name_of(path)}: {reason_of(error)}.") from error


# -- estimators and content --------------------------------------------------------------------


def encoded_file(estimator: Any) -> bytes:
    """Return the content of the file of a fitted estimator."""
    arrays, metadata = encoded_parts(estimator)
    content: bytes = safetensors.numpy.save(arrays, metadata)
    if int.from_bytes(content[:8], "little") > MOST_HEADER_BYTES:
        raise TypeError(f"{type(estimator).__name__} has too many levels or names to be saved.")
    return content


def encoded_parts(estimator: Any) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and the metadata of the file of a fitted estimator."""
    from sk_itdiffusion.persistence.registry import (  # they import this module
        EstimatorCodec,
        registry,
    )

    encoder = Encoder(registry())
    codec = registry().find(estimator)
    if not isinstance(codec, EstimatorCodec):
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved: it is none of the library's own classes."
        )
    with encoder.at(codec.name):
        node = encoder.encode(estimator)
    config = {
        "estimator": node,
        "objects": encoder.objects,
        "modules": encoder.modules,
        "device": encoder.device,
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": __version__,
        "config": json.dumps(config, allow_nan=False, separators=(",", ":")),
    }
    metadata["sha256"] = checksum(encoder.arrays, metadata)
    return encoder.arrays, metadata


def decoded_estimator(
    config: Node,
    arrays: Arrays,
    device: str | torch.device | None,
    denoiser: torch.nn.Module | Mapping[str, torch.nn.Module] | None,
    registry: Registry,
) -> Any:
    """Return the estimator of a file's content."""
    from sk_itdiffusion.persistence.checks import rehearse  # they import this module
    from sk_itdiffusion.persistence.registry import EstimatorCodec

    number = config["estimator"]["number"]
    codec: EstimatorCodec | Any = registry.codecs.get(config["objects"][number]["class"])
    if not isinstance(codec, EstimatorCodec):
        raise ValueError("it holds no estimator")
    given = given_modules(config["modules"], denoiser)
    target = chosen_device(config["device"], device)
    decoder = Decoder(registry, arrays, config["objects"], given, target)
    estimator = decoder.decode(config["estimator"])
    rehearse(estimator)
    return estimator


def given_modules(
    modules: Mapping[str, str], denoiser: torch.nn.Module | Mapping[str, torch.nn.Module] | None
) -> dict[str, torch.nn.Module]:
    """Return the user's own modules by the names of members, or raise an error that lists them."""
    if denoiser is None:
        given: dict[str, torch.nn.Module] = {}
    elif isinstance(denoiser, Mapping):
        given = dict(denoiser)
    elif len(modules) == 1:
        given = dict.fromkeys(modules, denoiser)
    elif not modules:
        raise ValueError("denoiser is given, but the estimator was fitted without one")
    else:
        raise ValueError(f"denoiser must be a dict with modules for the members {list(modules)}")
    if given.keys() != modules.keys():
        wanted = ", ".join(
            f"a {cls}" + (f" for the member {name!r}" if name else "")
            for name, cls in modules.items()
        )
        raise ValueError(f"denoiser must be the module that was fitted: {wanted or 'none'}")
    wrong = [type(m).__name__ for m in given.values() if not isinstance(m, torch.nn.Module)]
    if wrong:
        raise ValueError(f"denoiser must be a torch.nn.Module, got {wrong[0]}")
    return given


def chosen_device(fitted: str, device: str | torch.device | None) -> torch.device:
    """Return the device asked for, else that of the fit if there is one here, else the CPU."""
    if device is not None:
        return resolve_device(device)
    try:
        return resolve_device(fitted)
    except ValueError:
        return torch.device("cpu")


def checksum(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of arrays, and all other metadata."""
    digest = hashlib.sha256()

    def feed(part: bytes | memoryview) -> None:
        # With the length, so that no two contents are the same bytes.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for key in sorted(metadata.keys() - {"sha256"}):
        feed(key.encode("utf-8", "surrogatepass"))
        feed(metadata[key].encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        feed(f"{name}:{array.dtype.name}:{list(arrays[name].shape)}".encode())
        feed(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# -- files -------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either there as a whole, or as it was before."""
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "Cannot save: it is no file", target)
    temporary = os.path.join(folder, f".sk_itdiffusion-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Let the name of a new file outlast a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_checked(path: Path) -> tuple[Node, Arrays]:
    """Return the configuration and the arrays of a file whose checksum is right.

    Parameters
    ----------
    path : str or path-like
        File.

    Returns
    -------
    config : dict
        The configuration.
    arrays : dict of str to ndarray
        The arrays.

    Raises
    ------
    ValueError
        If the file is none that ``save`` wrote, or no more.
    OSError
        If the file cannot be read.
    """
    name = name_of(path)
    # Asked before opening, since opening a pipe would wait for its other end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"Cannot load {name}: it is no file.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start, metadata = read_header(file, size, name)
        check_version(metadata, name)
        content = start + file.read()
    damaged = f"Cannot load {name}: it is truncated or was altered after it had been saved"
    try:
        arrays: Arrays = safetensors.numpy.load(content)
    except Exception as error:
        raise ValueError(f"{damaged} ({error}).") from error
    found = checksum(arrays, metadata)
    if found != metadata.get("sha256"):
        raise ValueError(f"{damaged} (its SHA-256 checksum does not match).")
    try:
        return json.loads(metadata["config"]), arrays
    except (LookupError, RecursionError, ValueError) as error:
        raise ValueError(f"{damaged} (it has no configuration).") from error


def read_header(file: BinaryIO, size: int, name: str) -> tuple[bytes, dict[str, str]]:
    """Return the first bytes of a file and its metadata, or raise an error that names the file."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, MOST_HEADER_BYTES):
        raise ValueError(
            f"Cannot load {name}: it is truncated, or no file in the safetensors format."
        )
    header = file.read(length)
    try:
        parsed = json.loads(header.decode("utf-8"))
        metadata = dict(parsed.get("__metadata__", {}))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"Cannot load {name}: it was altered, or is no file in the safetensors format."
        ) from error
    is_text = all(isinstance(value, str) for value in metadata.values())
    if metadata.get("format") != FORMAT or not is_text:
        raise ValueError(
            f"Cannot load {name}: it was not saved by the method save of an estimator of "
            "sk_itdiffusion."
        )
    return first + header, metadata


def check_version(metadata: Mapping[str, str], name: str) -> None:
    """Raise an error if a file is of a version that this library does not read."""
    text = metadata.get("format_version", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ValueError(f"Cannot load {name}: it was altered (it has no format version).")
    if int(text) > FORMAT_VERSION:
        raise ValueError(
            f"Cannot load {name}: its format version is {text}, of sk_itdiffusion "
            f"{metadata.get('library_version', 'of a later version')}, and this is sk_itdiffusion "
            f"{__version__}, which reads versions up to {FORMAT_VERSION}. Upgrade: "
            "pip install --upgrade sk_itdiffusion."
        )


def name_of(path: Path) -> str:
    """Return a path for messages."""
    return repr(os.fspath(path))


def reason_of(error: Exception) -> str:
    """Return what an error says, as a part of a sentence."""
    if isinstance(error, ValueError):
        return str(error).rstrip(".")
    return f"its content does not fit together ({type(error).__name__}: {error})"
