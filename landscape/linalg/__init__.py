"""Numerics for symmetric operators that have never heard of a network."""

from .density import SpectralDensity, slq_density
from .lanczos import Eigenpairs, Tridiagonal, lanczos, tridiagonalise
from .operator import DeflatedOperator, MatrixOperator, ShiftedOperator, SymmetricOperator
from .power_iteration import power_iteration
from .trace import hutchinson_trace

__all__ = [
    "DeflatedOperator",
    "Eigenpairs",
    "MatrixOperator",
    "ShiftedOperator",
    "SpectralDensity",
    "SymmetricOperator",
    "Tridiagonal",
    "hutchinson_trace",
    "lanczos",
    "power_iteration",
    "slq_density",
    "tridiagonalise",
]
