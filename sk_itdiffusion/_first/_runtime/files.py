"""Files that are never half written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
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
    # The name too outlasts a loss of power, where the system can see to it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
