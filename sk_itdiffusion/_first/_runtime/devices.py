"""Devices that parameters and files name."""

from __future__ import annotations

import torch

__all__ = ["available_device", "resolve_device"]


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a parameter value names, or raise an error that names it."""
    if device != "auto":
        try:
            found = torch.empty(0, device=device).device
            if found.type == "meta":
                raise AssertionError("it holds no numbers")
            return found
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                "device must be 'auto' or a device available to torch, such as 'cpu' or 'cuda', "
                f"got {device!r}."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def available_device(name: str) -> torch.device:
    """Return the device of a name if there is one here, else the CPU."""
    try:
        return resolve_device(name)
    except ValueError:
        return torch.device("cpu")
