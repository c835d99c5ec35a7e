"""The families of networks that the library has, by name."""

from __future__ import annotations

from sklearn.base import clone

from sk_itdiffusion._first.denoisers.convolutional import ConvolutionalFamily
from sk_itdiffusion._first.denoisers.family import NetworkFamily, NetworkTask
from sk_itdiffusion._first.denoisers.mlp import MLPFamily
from sk_itdiffusion._first.denoisers.unet import UNetFamily

__all__ = ["NETWORK_FAMILIES", "resolve_family"]

#: In the order in which "auto" asks whether they apply.
NETWORK_FAMILIES: dict[str, type[NetworkFamily]] = {
    family.name: family for family in (UNetFamily, ConvolutionalFamily, MLPFamily)
}


def resolve_family(network: str | NetworkFamily, task: NetworkTask) -> NetworkFamily:
    """Return the family that a parameter value names, or raise an error if it does not apply.

    Parameters
    ----------
    network : str or NetworkFamily
        ``"auto"``, the name of a family, or a family.
    task : NetworkTask
        The kind of table.

    Returns
    -------
    NetworkFamily
        The family, a clone of the one given.

    Raises
    ------
    ValueError
        If there are no such networks for such tables.
    """
    if network == "auto":
        families = (family() for family in NETWORK_FAMILIES.values())
        return next(family for family in families if family.applies(task))
    # What a family stores while it builds is not to change the parameter.
    family: NetworkFamily = (
        NETWORK_FAMILIES[network]() if isinstance(network, str) else clone(network)
    )
    if not family.applies(task):
        raise ValueError(f"network={network!r} needs {family.needs}.")
    return family
