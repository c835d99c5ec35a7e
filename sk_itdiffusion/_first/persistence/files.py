"""Saved estimators: one file each, in the safetensors format.

The tensors of the file hold all weights and all other arrays of numbers; its metadata holds

- ``format`` and ``format_version``, and ``library_version`` of the library that wrote the file,
- ``config``: parameters, names, categories and how the arrays belong together, as JSON
  (see `sk_itdiffusion.persistence.encoded`),
- ``sha256``: the checksum over all of it, which tells damage from content.  It is no signature.

Nothing in a file is executed, and no name in it is looked up but in this library's own list of
declared classes (`sk_itdiffusion.persistence.registry`) and among those passed to `load`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._first._runtime.devices import available_device, resolve_device
from sk_itdiffusion._first._runtime.files import write_atomically
from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder
from sk_itdiffusion._first.persistence.objects import Node
from sk_itdiffusion._first.persistence.registry import declaration_of, user_classes
from sk_itdiffusion._version import __version__

__all__ = ["SaveMixin", "load"]

FORMAT = "sk_itdiffusion"
#: Raised when a version of the library cannot read what another one writes.
FORMAT_VERSION = 2
#: Longest header that the safetensors format allows.
MAX_HEADER_BYTES = 100_000_000

Path = str | os.PathLike[str]
Arrays = dict[str, NDArray[Any]]


class SaveMixin:
    """Lets an estimator be saved."""

    def save(self, path: Path) -> None:
        """Save the fitted estimator to a file.

        `sk_itdiffusion.load` reads it again, also where there is no GPU, and then scores are the
        same to the last bit on the same kind of machine.  Unlike a pickle the file holds no code,
        so that loading one from others is safe.  It is written next to the old file and then takes
        its place, so that an error leaves the old file whole.

        ``callbacks``, a ``random_state`` that is a generator, and metadata requests are not saved:
        the loaded estimator has None for them.  Of a custom ``denoiser`` the trained weights
        are saved, but not the code; pass it to `sk_itdiffusion.load`.  Objects of other
        custom classes, such as a ``reference`` or a ``schedule``, are saved by the names of
        their classes, which have to be passed to `sk_itdiffusion.load`.

        Parameters
        ----------
        path : str or path-like
            File; an existing one is replaced.  The format is that of ``.safetensors`` files.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it holds something that cannot be saved, such as an object of a custom class
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
        The custom module that the estimator was fitted with, if it was.  A copy of it gets
        the weights from the file.  For an ensemble of several such members, a dict from their
        names.
    classes : sequence of type, default=()
        Custom classes whose objects the estimator holds, such as that of its ``reference``.
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
        version of the library or in a format that is no more read, does not fit to the device or
        the denoiser, or if types, shapes, ranges or orders of its parts do not fit together; if it
        holds objects of custom classes that are not passed; if two of these have the same
        name.
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
    user_classes(classes)  # what is passed is wrong or right whatever the file holds
    content = read_file(path)
    try:
        with np.errstate(all="ignore"):  # what is not a number is refused, or as it was saved
            return decoded_estimator(*checked_content(content), device, denoiser, classes)
    except ImportError:
        raise
    except Exception as error:  # whatever nonsense may cause
        reason = str(error).rstrip(".")
        if not isinstance(error, ValueError):
            reason = f"its content is inconsistent ({type(error).__name__}: {error})"
        raise ValueError(f"Cannot load {os.fspath(path)!r}: {reason}.") from error


# -- estimators and content --------------------------------------------------------------------


def encoded_file(estimator: Any) -> bytes:
    """Return the content of the file of a fitted estimator."""
    arrays, metadata = encoded_parts(estimator)
    content: bytes = safetensors.numpy.save(arrays, metadata)
    if int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:
        raise TypeError(f"{type(estimator).__name__} has too many categories or names to be saved.")
    return content


def encoded_parts(estimator: Any) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and the metadata of the file of a fitted estimator."""
    encoder = Encoder()
    declaration = declaration_of(type(estimator))
    if declaration is None:
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved: it is not a class of the library."
        )
    node = encoder.at(declaration.name, estimator)
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
    classes: Sequence[type],
) -> Any:
    """Return the estimator of a file's content."""
    given = given_modules(config["modules"], denoiser)
    target = available_device(config["device"]) if device is None else resolve_device(device)
    decoder = Decoder(arrays, config["objects"], given, target, classes)
    entry = config["objects"][config["estimator"]["number"]]
    if not issubclass(decoder.declaration(entry).cls, SaveMixin):
        raise ValueError("it holds no estimator")
    estimator = decoder.decode(config["estimator"])
    check_is_fitted(estimator)
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


def read_file(path: Path) -> bytes:
    """Return the content of a file, which is no pipe: opening one would wait for its other end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"Cannot load {os.fspath(path)!r}: it is no file.")
    with open(path, "rb") as file:
        return file.read()


def checked_content(content: bytes) -> tuple[Node, Arrays]:
    """Return configuration and arrays, or raise an error unless `save` wrote all as it is."""
    metadata = read_metadata(content)
    check_version(metadata)
    damaged = "it is truncated or was altered after it had been saved"
    try:
        arrays: Arrays = safetensors.numpy.load(content)
    except Exception as error:
        raise ValueError(f"{damaged} ({error})") from error
    if checksum(arrays, metadata) != metadata.get("sha256"):
        raise ValueError(f"{damaged} (its SHA-256 checksum does not match)")
    try:
        return json.loads(metadata["config"]), arrays
    except (LookupError, RecursionError, ValueError) as error:
        raise ValueError(f"{damaged} (it has no configuration)") from error


def read_metadata(content: bytes) -> dict[str, str]:
    """Return what the header of a file tells, if `save` wrote it."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError("it is truncated, or not a safetensors file")
    try:
        header = json.loads(content[8 : 8 + length].decode("utf-8"))
        metadata = dict(header.get("__metadata__", {}))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError("it was altered, or is not a safetensors file") from error
    is_text = all(isinstance(value, str) for value in metadata.values())
    if metadata.get("format") != FORMAT or not is_text:
        raise ValueError("it was not saved by the method save of an estimator of sk_itdiffusion")
    return metadata


def check_version(metadata: Mapping[str, str]) -> None:
    """Raise an error if a file is of a version that this library does not read."""
    text = metadata.get("format_version", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ValueError("it was altered (it has no format version)")
    if int(text) == FORMAT_VERSION:
        return
    advice = "Fit and save the estimator again"
    if int(text) > FORMAT_VERSION:
        advice = "Upgrade: pip install --upgrade sk_itdiffusion"
    raise ValueError(
        f"its format version is {text}, of sk_itdiffusion "
        f"{metadata.get('library_version', 'of another version')}, and this is sk_itdiffusion "
        f"{__version__}, which reads version {FORMAT_VERSION}. {advice}"
    )
