"""Densities of the log-SNR: where training and scoring look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Placement"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """Density of the log-SNR that is constant between edges.

    Attributes
    ----------
    edges : ndarray of shape (n_cells + 1,)
        Increasing edges.
    mass : ndarray of shape (n_cells,)
        Positive probabilities of the cells, which sum to 1.
    """

    edges: Array
    mass: Array

    @classmethod
    def from_profile(cls, edges: Array, height: Array, floor: float) -> Placement:
        """Return a density proportional to heights of cells, with a share that is uniform."""
        widths = np.diff(edges)
        even, area = widths / widths.sum(), height * widths
        shape = area / area.sum() if area.sum() > 0 else even
        return cls(edges, (1.0 - floor) * shape + floor * even)

    @classmethod
    def at_nodes(cls, nodes: Array, height: Array, floor: float = 0.1) -> Placement:
        """Return a density proportional to heights at nodes, the edges of the cells."""
        return cls.from_profile(nodes, 0.5 * (height[1:] + height[:-1]), floor)

    def mixed_with(self, other: Placement) -> Placement:
        """Return the even mixture with another density, on the edges of this one."""
        cumulative = np.interp(self.edges, other.edges, np.append(0.0, np.cumsum(other.mass)))
        mass = np.diff(cumulative / cumulative[-1])
        return Placement(self.edges, 0.5 * self.mass + 0.5 * mass)

    def quantile(self, probability: Array) -> Array:
        """Return the log-SNRs below which probabilities lie."""
        cumulative = np.append(0.0, np.cumsum(self.mass))
        return np.interp(probability, cumulative / cumulative[-1], self.edges)

    def density(self, logsnr: Array) -> Array:
        """Return the density at log-SNRs within the edges."""
        cell = np.searchsorted(self.edges, logsnr, side="right") - 1
        return np.asarray((self.mass / np.diff(self.edges))[cell.clip(0, len(self.mass) - 1)])
