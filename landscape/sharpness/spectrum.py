"""Spectrum: what is known of the Hessian at one theta, measured once and shared by all metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from landscape.curvature import Hessian
from landscape.estimate import Cost, Estimate
from landscape.linalg import Eigenpairs, SpectralDensity, lanczos
from landscape.objective import Objective


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs, trace and density of one curvature matrix at one theta; None: not measured."""

    eigenpairs: Eigenpairs | None = None
    trace: Estimate | None = None
    density: SpectralDensity | None = None
    matrix: str = "hessian"


@dataclass(frozen=True)
class ExtremePair:
    """The eigenpair at one end of the Hessian's spectrum, and what this caller paid for it.

    Attributes:
        value: largest or smallest eigenvalue (a Ritz value), loss / parameter^2.
        vector: of unit length.
        residual: ||H v - value v||.
        converged, confirmed: as in Eigenpairs.
        shared: taken from a Spectrum; `cost` is then zero, it stands in the spectrum's own.
        cost: of the search.
    """

    value: float
    vector: Tensor  # (P,)
    residual: float
    converged: bool
    confirmed: bool
    shared: bool
    cost: Cost

    @property
    def facts(self) -> dict[str, Any]:
        """What a result says about the pair it used."""
        return {
            "value": self.value,
            "residual": self.residual,
            "converged": self.converged,
            "confirmed": self.confirmed,
            "shared": self.shared,
            "products": self.cost.products,
        }


def extreme_pair(
    objective: Objective,
    theta: Tensor,
    spectrum: Spectrum | None,
    *,
    end: Literal["top", "bottom"],
    tolerance: float,
    max_products: int | None,
    seed: int,
) -> ExtremePair:
    """The eigenpair at one end: the spectrum's, where it has that end; else by Lanczos.

    Args:
        end: "top", the largest eigenvalue; "bottom", the smallest (algebraically).
        tolerance, max_products: of a search of our own; a shared pair has its own.
    """
    shared = spectrum.eigenpairs if spectrum is not None else None
    if shared is not None and end in shared.ends:
        return _first_of(shared, end, shared=True)
    found = lanczos(
        Hessian(objective, theta),
        num_eigenpairs=1,
        ends=end,
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
    )
    return _first_of(found, end, shared=False)


def _first_of(pairs: Eigenpairs, end: str, *, shared: bool) -> ExtremePair:
    at_end = [index for index, name in enumerate(pairs.ends) if name == end]
    index = at_end[0] if end == "top" else at_end[-1]  # values descend
    return ExtremePair(
        value=float(pairs.values[index]),
        vector=pairs.vectors[:, index],
        residual=float(pairs.residuals[index]),
        converged=bool(pairs.converged[index]),
        confirmed=bool(pairs.confirmed[index]),
        shared=shared,
        cost=Cost() if shared else pairs.cost,
    )
