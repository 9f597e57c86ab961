"""Eigenpairs of a symmetric operator by Lanczos: each with a residual, none missed by bad luck."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor

from landscape.estimate import Cost

from .operator import CountedOperator, Progress, SymmetricOperator, gaussian, seeded

Ends = Literal["top", "bottom", "both"]
Array = NDArray[np.float64]

SPARE_VECTORS = 12  # held beside the wanted ones at the least; enough for outlier tops
BREAKDOWN = 16  # a remainder below this many eps ||A|| is rounding and has no direction
FLOOR = 64  # no residual is asked to be below this many eps ||A||
MISS = 0.001  # accepted probability that a search has not seen an eigenvalue that it was to see


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs, with how exact each is and whether one that belongs before it is missing.

    Attributes:
        values: Ritz values theta_i, descending (`power_iteration`: by falling magnitude).
        vectors: orthonormal columns v_i.
        residuals: bounds of ||A v_i - theta_i v_i||, rounding of the products included: an
            eigenvalue of A lies within it of theta_i.
        error_estimates: residual^2 / gap, an estimate of |theta_i - lambda_i| and no bound; the
            residual itself where the gap to the next Ritz value is not positive.
        converged: residual <= max(tolerance |theta_i|, 64 eps ||A||), rounding apart.
        confirmed: a search from an independent random start found nothing missing at this end;
            one eigenvalue goes unseen by it with a probability below 0.001.
        ends: "top" or "bottom"; "magnitude" for `power_iteration`.
        tolerance: relative, as asked for.
        cost: products, confirmation included, and seconds.
    """

    values: Tensor  # (n,) float64, on the CPU
    vectors: Tensor  # (P, n) the operator's dtype and device
    residuals: Tensor  # (n,) float64
    error_estimates: Tensor  # (n,) float64
    converged: Tensor  # (n,) bool
    confirmed: Tensor  # (n,) bool
    ends: tuple[str, ...]  # (n,)
    tolerance: float
    cost: Cost

    @property
    def complete(self) -> bool:
        """Whether every pair is converged and confirmed."""
        return bool((self.converged & self.confirmed).all())

    @property
    def num_matvecs(self) -> int:
        return round(self.cost.products)

    def __len__(self) -> int:
        return len(self.ends)

    def at(self, end: str) -> Eigenpairs:
        """The pairs of one end alone."""
        chosen = [index for index, name in enumerate(self.ends) if name == end]
        return replace(
            self,
            values=self.values[chosen],
            vectors=self.vectors[:, chosen],
            residuals=self.residuals[chosen],
            error_estimates=self.error_estimates[chosen],
            converged=self.converged[chosen],
            confirmed=self.confirmed[chosen],
            ends=(end,) * len(chosen),
        )


class Basis:
    """Orthonormal vectors of length P, kept as rows of blocks that are allocated by need.

    Sums over coordinates are accumulated in float64, a slice of the coordinates at a time,
    whatever the dtype of the rows: in float32 they would cost digits of orthogonality.
    """

    SLICE = 1 << 13

    def __init__(self, operator: SymmetricOperator, *, first_block: int, capacity: int) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        # Apple's GPUs have no float64.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.capacity = capacity
        self._first_block = first_block
        self._blocks: list[Tensor] = []
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def append(self, vector: Tensor, norm: float) -> None:
        """Adds vector / norm, which the caller has made orthogonal to the others."""
        held = sum(len(block) for block in self._blocks)
        if self._num_rows == held:
            rows = max(SPARE_VECTORS - 1, held // 4) if held else self._first_block
            rows = min(rows, self.capacity - held)
            self._blocks.append(torch.empty(rows, self.size, dtype=self.dtype, device=self.device))
        self._num_rows += 1
        torch.div(vector, norm, out=self._rows()[-1][-1])

    def last(self) -> Tensor:
        return self._rows()[-1][-1]

    def orthogonalise(self, vector: Tensor) -> tuple[Array, float]:
        """Subtracts V V' vector in place, twice; returns V' vector, (m,), and the norm left.

        The second pass removes what rounding left behind in the first; a third is never needed
        (Parlett 1998, section 6.9).
        """
        coefficients = torch.zeros(self._num_rows, dtype=self.wide, device=self.device)
        if self._num_rows:
            for part in self._slices():
                coefficients += self._slice(part) @ vector[part].to(self.wide)
            left_behind = self._subtract(coefficients, vector)
            self._subtract(left_behind, vector)
            coefficients += left_behind
        return coefficients.double().cpu().numpy(), self.norm(vector)

    def _subtract(self, coefficients: Tensor, vector: Tensor) -> Tensor:
        """vector -= V coefficients, in place; returns V' vector of the result."""
        inner = torch.zeros_like(coefficients)
        for part in self._slices():
            rows = self._slice(part)
            vector[part] = vector[part].to(self.wide) - coefficients @ rows
            inner += rows @ vector[part].to(self.wide)
        return inner

    def inner(self, first: Tensor, second: Tensor) -> float:
        parts = [first[part].to(self.wide) @ second[part].to(self.wide) for part in self._slices()]
        return float(torch.stack(parts).sum())

    def norm(self, vector: Tensor) -> float:
        return float(torch.linalg.vector_norm(vector, dtype=self.wide))

    def rotate(self, rotation: Array) -> None:
        """V <- V rotation in place, rotation of shape (m, n), n <= m."""
        turn = torch.tensor(rotation.T, dtype=self.wide, device=self.device)
        for part in self._slices():
            turned = turn @ self._slice(part)
            begin = 0
            for block in self._blocks:
                rows = turned[begin : begin + len(block)]
                block[: len(rows), part] = rows.to(self.dtype)
                begin += len(rows)
        self._num_rows = rotation.shape[1]

    def columns(self) -> Tensor:
        """V, shape (P, m); no copy where the first block holds all."""
        rows = self._rows()
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).T

    def _rows(self) -> list[Tensor]:
        rows, left = [], self._num_rows
        for block in self._blocks:
            if left > 0:
                rows.append(block[:left])
                left -= len(block)
        return rows

    def _slices(self) -> Iterator[slice]:
        for begin in range(0, self.size, self.SLICE):
            yield slice(begin, begin + self.SLICE)

    def _slice(self, part: slice) -> Tensor:
        return torch.cat([rows[:, part] for rows in self._rows()]).to(self.wide)


def _checked(operator: SymmetricOperator, start: Tensor) -> Tensor:
    norm = float(torch.linalg.vector_norm(start)) if start.shape == (operator.size,) else math.nan
    if not 0 < norm < math.inf:
        raise ValueError(
            f"start must be finite, not zero, of shape ({operator.size},); "
            f"got shape {tuple(start.shape)}, norm {norm:g}"
        )
    return start


@dataclass(frozen=True)
class Tridiagonal:
    """A Q - Q T = remainder e_m', Q orthonormal, T tridiagonal.

    Attributes:
        matrix: T.
        vectors: Q.
        remainder: norm of what is left of A q_m; 0 to rounding when Q spans an invariant subspace.
    """

    matrix: Array  # (m, m)
    vectors: Tensor  # (P, m)
    remainder: float


def tridiagonalise(operator: SymmetricOperator, start: Tensor, *, num_steps: int) -> Tridiagonal:
    """The operator's tridiagonal projection on the Krylov space of `start`, m <= num_steps.

        beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1},   q_1 = start / ||start||

    with every product made orthogonal to all earlier vectors, twice: without it, rounding lets
    converged eigenvectors return and their eigenvalues appear again and again (Paige 1971). Stops
    early, at m < num_steps, when the space is invariant.

    Args:
        operator: symmetric A, size P.
        start: shape (P,), not zero.
        num_steps: products, one a step; the basis holds as many vectors.

    Raises:
        ValueError: start of another shape, zero or not finite.

    Source: Golub and Van Loan 2013, algorithm 10.1.1, with full re-orthogonalisation.
    """
    num_steps = min(num_steps, operator.size)
    basis = Basis(operator, first_block=num_steps, capacity=num_steps)
    vector, norm, scale = _checked(operator, start), basis.norm(start), 0.0
    matrix = np.zeros((num_steps, num_steps))
    while True:
        basis.append(vector, norm)
        size = len(basis)
        vector = (operator @ basis.last()).clone()
        scale = max(scale, basis.norm(vector))
        coefficients, norm = basis.orthogonalise(vector)
        matrix[size - 1, size - 1] = coefficients[-1]
        if size == num_steps or norm <= BREAKDOWN * torch.finfo(operator.dtype).eps * scale:
            return Tridiagonal(matrix[:size, :size], basis.columns(), norm)
        matrix[size, size - 1] = matrix[size - 1, size] = norm


@dataclass(frozen=True)
class _Ritz:
    """Ritz pairs of T: values ascending, and what bounds each residual."""

    values: Array  # (m,)
    rotation: Array  # (m, m) columns s_i; V s_i is the Ritz vector
    coupling: Array  # (m,) b . s_i
    dropped: Array  # (m,) bound of ||E s_i||

    @property
    def residuals(self) -> Array:
        return np.abs(self.coupling) + self.dropped


class _Projection:
    """Rayleigh-Ritz on a growing orthonormal basis V of m vectors.

        A V = V T + q b' + E,     T = V' A V,  q the next direction,  E what restarts dropped

    T keeps every coefficient of every product, so any basis will do. A restart goes on from V S
    for some S, with S' T S, and with either q or a random vector as the next direction: thick
    restart, breakdown and fresh search are this one step. Dropping q moves q b' into E, of which a
    bound is kept: ||E s|| <= sum over rows of |row . s|, one row a drop.
    """

    def __init__(self, operator: CountedOperator, basis: Basis) -> None:
        self.operator, self.basis = operator, basis
        self.eps = torch.finfo(operator.dtype).eps
        self.scale = 0.0  # largest ||A v|| seen, at most ||A||
        self.projected = np.zeros((0, 0))  # T, (m, m)
        self.coupling = np.zeros(0)  # b, (m,)
        self.dropped = np.zeros((0, 0))  # (number of drops, m)
        self.remainder = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
        self.remainder_norm = 0.0
        self.num_restarts = 0
        self._goes_on = False  # the newest vector is q, not a random one

    @property
    def size(self) -> int:
        return len(self.projected)

    @property
    def spans_everything(self) -> bool:
        return self.size == self.operator.size

    @property
    def is_full(self) -> bool:
        return self.size == self.basis.capacity

    @property
    def broke_down(self) -> bool:
        return self.remainder_norm <= BREAKDOWN * self.eps * self.scale

    @property
    def floor(self) -> float:
        return FLOOR * self.eps * self.scale

    @property
    def noise(self) -> float:
        """What rounding adds to a residual: of the products, and of turning the basis."""
        return self.eps * self.scale * (BREAKDOWN + math.sqrt(self.size) + 2 * self.num_restarts)

    def restart(self, rotation: Array) -> None:
        """Goes on with V rotation, rotation of shape (m, n) with orthonormal columns."""
        self.num_restarts += 1
        self.basis.rotate(rotation)
        projected = rotation.T @ self.projected @ rotation
        self.projected = (projected + projected.T) / 2
        self.coupling = self.coupling @ rotation
        self.dropped = self.dropped @ rotation

    def go_on(self) -> None:
        """Takes q as the next vector."""
        self.basis.append(self.remainder, self.remainder_norm)
        self._goes_on = True

    def start(self, vector: Tensor) -> None:
        """Takes `vector`, made orthogonal to V, as the next vector; q is dropped."""
        if self.size:
            self.dropped = np.vstack([self.dropped, self.coupling])
        self.remainder.copy_(vector)
        _, norm = self.basis.orthogonalise(self.remainder)
        self.basis.append(self.remainder, norm)
        self._goes_on = False

    def multiply(self) -> None:
        """One product, with the newest vector: one more row and column of T."""
        # Copied, because an operator may return its argument or its own work space.
        self.remainder.copy_(self.operator @ self.basis.last())
        self.scale = max(self.scale, self.basis.norm(self.remainder))
        column, self.remainder_norm = self.basis.orthogonalise(self.remainder)
        if self._goes_on:  # then v_i' A q is known from before: it is q' A v_i = b_i + q' E e_i
            differences = np.abs(column[:-1] - self.coupling) - np.abs(self.dropped).sum(axis=0)
            self._check_symmetry(float(differences.max()))
        self.projected = np.pad(self.projected, (0, 1))
        self.projected[:, -1] = self.projected[-1, :] = column
        self.coupling = np.append(np.zeros(len(column) - 1), self.remainder_norm)
        self.dropped = np.pad(self.dropped, ((0, 0), (0, 1)))

    def ritz(self, first: int = 0) -> _Ritz:
        """Ritz pairs on the basis vectors from `first` on, orthogonal to those before."""
        values, rotation = np.linalg.eigh(self.projected[first:, first:])
        return _Ritz(
            values,
            rotation,
            self.coupling[first:] @ rotation,
            np.abs(self.dropped[:, first:] @ rotation).sum(axis=0),
        )

    def _check_symmetry(self, difference: float) -> None:
        if difference > 10 * math.sqrt(self.eps) * self.scale:
            raise ValueError(
                f"operator is not symmetric: u'Av and v'Au differ by {difference:.3g} "
                f"where ||Av|| is up to {self.scale:.3g} (product "
                f"{self.operator.num_products}); or its products are not repeatable"
            )


class _End:
    """One end of the spectrum: which pairs it wants, and whether one of them is missing.

    Comparisons are made on sign * value, so that the wanted end is the upper one.
    """

    def __init__(self, sign: int, num_wanted: int, tolerance: float) -> None:
        self.sign, self.num_wanted, self.tolerance = sign, num_wanted, tolerance
        self.level = math.inf  # a further eigenvalue beyond this one is missing
        self.margin = 0.0  # from the last wanted value to the level
        self.largest_residual = 0.0  # that the complement's extreme Ritz pair may have
        self.origin = np.ones(1)  # the search's random start, as an eigenvector at `level` sees it
        self.confirmed = self.exceeded = False

    def wanted(self, size: int) -> list[int]:
        """Positions of the wanted pairs among `size` ascending values."""
        positions = range(size)
        return list(
            positions[-self.num_wanted :] if self.sign > 0 else positions[: self.num_wanted]
        )

    def is_settled(self, ritz: _Ritz, floor: float) -> bool:
        """Whether the wanted pairs are exact enough to be locked.

        What locking drops stays in their residuals, so they are locked at a fifth of what is
        allowed, which leaves room for the drops of later rounds.
        """
        wanted = self.wanted(len(ritz.values))
        allowed = np.maximum(self.tolerance * np.abs(ritz.values), floor)
        to_drop = np.maximum(self.tolerance * np.abs(ritz.values) / 5, floor)
        exact = (np.abs(ritz.coupling) <= to_drop) & (ritz.residuals <= allowed)
        return bool(exact[wanted].all())

    def begin_search(self, values: Array, floor: float) -> None:
        """The wanted pairs among `values` are to be locked, and what is missing searched for."""
        last = float(np.min(self.sign * values[self.wanted(len(values))]))
        self.margin = max(self.tolerance * abs(last), floor)
        self.level = last + self.margin
        self.largest_residual = max(abs(last) / 10, floor)
        self.origin = np.ones(1)
        self.exceeded = False

    def loss(self, ritz: _Ritz, locked: list[int]) -> float:
        """How much lower a missing eigenvalue may appear because of the other locked vectors.

        Locking any k vectors leaves every further eigenvalue in their complement (Cauchy). A Ritz
        pair (theta, x) locked beside them takes at most c = residual / (level - theta) of its
        eigenvector, which lowers its Rayleigh quotient by c^2 (level - theta) / (1 - c^2).
        """
        others = [index for index in locked if index not in self.wanted(len(ritz.values))]
        others = [index for index in others if ritz.residuals[index] > 0]
        gaps = self.level - self.sign * ritz.values[others]
        residuals = ritz.residuals[others]
        if (residuals >= gaps).any():
            return math.inf
        return float((residuals**2 * gaps / (gaps**2 - residuals**2)).sum())

    def examine(self, active: _Ritz, num_dimensions: int) -> None:
        """Reads the search so far: `active` are the Ritz pairs of the complement."""
        edge = -1 if self.sign > 0 else 0
        value, residual = self.sign * active.values[edge], active.residuals[edge]
        self.exceeded = -math.inf < self.level < value
        if value + residual <= self.level and residual <= self.largest_residual:
            hidden = self.hidden_component(active)
            self.confirmed |= hidden <= MISS / math.sqrt(num_dimensions)

    def hidden_component(self, active: _Ritz) -> float:
        """The most that an unseen unit eigenvector at `level` can have of the random start.

        Let C v = level v on the complement, C U = U T + q b', y = U'v and t = q'v. Then
        (level - T) y = t b and |y|^2 + t^2 <= 1, so that y, and with it origin . y, is bounded;
        beyond the level the bound is smaller still. A random start has less than MISS / sqrt(P) of
        a given vector with probability below MISS, so when the bound is there, no such eigenvector
        exists, but for that chance. The residual alone does not see this: of a start with little of
        an eigenvector it is small too, and 50 was missed beside 50, 50, 20.
        """
        gaps = self.sign * self.level - active.values
        y = np.divide(active.coupling, gaps, out=np.zeros_like(gaps), where=gaps != 0)
        return abs(float(self.origin @ active.rotation @ y)) / math.sqrt(1 + float(y @ y))

    def follow_restart(self, active: _Ritz, kept: list[int]) -> None:
        """Carries `origin` over to the kept active Ritz vectors and q.

        An eigenvector v at `level` has x.v = b_x (q.v) / (level - theta_x) of a Ritz vector x, so
        that what the dropped ones contribute to origin . v is a multiple of q.v.
        """
        gaps = self.sign * self.level - active.values
        parts = self.origin @ active.rotation
        share = np.divide(parts * active.coupling, gaps, out=np.zeros_like(gaps), where=gaps != 0)
        self.origin = np.append(parts[kept], share.sum() - share[kept].sum())


def _lock(projection: _Projection, ritz: _Ritz, sought: list[_End]) -> int:
    """Reduces the basis to the wanted pairs, and next ones where that costs the search little.

    With the next values out of the way the complement ends lower, and it is sooner clear that
    nothing in it reaches the level: 3 to 4 products fewer on the Hessians of small nets.
    """
    for end in sought:
        end.begin_search(ritz.values, projection.floor)
    size = len(ritz.values)
    locked = list(dict.fromkeys(index for end in sought for index in end.wanted(size)))
    for end in sought:
        inward = range(size)[:: -end.sign]
        for index in inward[end.num_wanted :][: SPARE_VECTORS // 3 // len(sought)]:
            candidate = [*locked, index]
            if index in locked or any(e.loss(ritz, candidate) > e.margin / 2 for e in sought):
                break
            locked = candidate
    locked.sort()
    for end in sought:
        end.level -= end.loss(ritz, locked)
    projection.restart(ritz.rotation[:, locked])
    return len(locked)


def _to_keep(size: int, num_wanted: int, sought: list[_End]) -> list[int]:
    """Positions of the Ritz pairs a full basis restarts from: the wanted and half of the others."""
    count = min(num_wanted + (size - num_wanted) // 2, size - 1)
    num_top = count // len(sought) if sought[0].sign > 0 else 0
    return [*range(count - num_top), *range(size - num_top, size)]


def lanczos(
    operator: SymmetricOperator,
    *,
    num_eigenpairs: int = 5,
    ends: Ends = "top",
    tolerance: float = 1e-3,
    max_products: int | None = None,
    memory: float = 2.0**30,
    seed: int = 0,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The largest and/or smallest eigenvalues with their vectors, residuals and completeness.

    Rayleigh-Ritz on the Krylov space of one random vector, kept orthonormal by two Gram-Schmidt
    passes and restarted when it is full (thick restart, Wu and Simon 2000). When every wanted pair
    has ||A v - theta v|| <= tolerance |theta| / 5, they are locked and a second search starts from
    a fresh random vector in their complement: one start alone never sees a second copy of an
    eigenvalue and may skip an eigenvector of which it has little. Where the search finds one, it
    is merged and the search repeated. It ends, with `confirmed`, when the complement's extreme
    Ritz value + its residual is below theta_k + tolerance |theta_k| with a residual below
    |theta_k| / 10, and only an eigenvector with less than 0.001 / sqrt(P) of the random start could
    have stayed unseen, which has a probability below 0.001.

    Not converging is a result, not an error: see `converged`, `confirmed`, `residuals`.

    Args:
        operator: symmetric A, size P.
        num_eigenpairs: k at each end. k >= P gives all P; with "both" and 2k >= P every pair is
            listed once.
        ends: "top" (largest algebraic), "bottom" (smallest), or "both" from one run.
        tolerance: relative residual, never asked to be below 64 eps ||A||.
        max_products: budget in products; default max(1000, 50 x the number of wanted pairs).
        memory: bytes that the basis may take. The least is (wanted + 12) vectors; more is only
            taken when it is needed, and saves products at dense ends of the spectrum.
        seed: of the random vectors; the same on every device.
        start: first vector, shape (P,), instead of a random one.
        progress: called after each product with (done, max_products).

    Returns:
        Eigenpairs: values descending.

    Raises:
        ValueError: an argument out of range; the operator is not symmetric.
        FloatingPointError: a product is not finite.

    >>> from landscape.linalg import MatrixOperator
    >>> matrix = torch.diag(torch.tensor([5.0, 5.0, 1.0, -2.0]))
    >>> lanczos(MatrixOperator(matrix), num_eigenpairs=2).values.round(decimals=4)
    tensor([5., 5.], dtype=torch.float64)
    """
    if ends not in ("top", "bottom", "both"):
        raise ValueError(f"ends must be 'top', 'bottom' or 'both', got {ends!r}")
    if num_eigenpairs < 1:
        raise ValueError(f"num_eigenpairs must be >= 1, got {num_eigenpairs}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    if max_products is not None and max_products < 1:
        raise ValueError(f"max_products must be >= 1, got {max_products}")
    signs = {"top": [1], "bottom": [-1], "both": [1, -1]}[ends]
    num_wanted = min(len(signs) * num_eigenpairs, operator.size)
    budget = max_products or max(1000, 50 * num_wanted)

    counted = CountedOperator(operator, progress, budget)
    generator = seeded(seed)
    affordable = int(memory / (operator.size * operator.dtype.itemsize))
    capacity = max(num_wanted + SPARE_VECTORS, affordable) - 1  # the remainder is one more
    basis = Basis(operator, first_block=num_wanted, capacity=min(capacity, operator.size))
    projection = _Projection(counted, basis)
    sought = [_End(sign, num_eigenpairs, tolerance) for sign in signs]

    projection.start(gaussian(operator, generator) if start is None else _checked(operator, start))
    num_locked = 0
    while True:
        projection.multiply()
        size, floor = projection.size, projection.floor
        num_left = budget - counted.num_products
        if projection.spans_everything or num_left == 0:
            break

        # T is small, but not for long: solving it after every product costs size^4 in all.
        is_due = projection.is_full or projection.broke_down or size % (1 + size // 64) == 0
        if is_due:
            ritz, active = projection.ritz(), projection.ritz(num_locked)
            settled = [size >= num_wanted and end.is_settled(ritz, floor) for end in sought]
            if num_locked:
                for end in sought:
                    end.examine(active, operator.size - num_locked)
                if all(end.confirmed for end in sought):
                    break
            # An end that does not settle must not keep the other from being confirmed.
            is_ready = all(settled) or (any(settled) and num_left <= 2 * SPARE_VECTORS)
            if is_ready and (num_locked == 0 or any(end.exceeded for end in sought)):
                num_locked = _lock(projection, ritz, sought)
                projection.start(gaussian(operator, generator))
                continue
        if projection.is_full:
            kept = _to_keep(size - num_locked, max(num_wanted - num_locked, 0), sought)
            for end in sought:
                end.follow_restart(active, kept)
            projection.restart(block_diag(np.eye(num_locked), active.rotation[:, kept]))
        else:
            for end in sought:
                end.origin = np.append(end.origin, 0.0)
        if projection.broke_down:
            projection.start(gaussian(operator, generator))
        else:
            projection.go_on()

    return _eigenpairs(projection, sought, tolerance)


def _eigenpairs(projection: _Projection, sought: list[_End], tolerance: float) -> Eigenpairs:
    """The wanted Ritz pairs of all that was found; turns the basis into their vectors."""
    ritz = projection.ritz()
    size = len(ritz.values)
    noise = projection.noise
    exact = projection.spans_everything  # V is square: nothing is left for a residual to point to
    residuals = noise + (np.zeros(size) if exact else ritz.residuals)

    distances = np.abs(np.subtract.outer(ritz.values, ritz.values)) + np.diag(np.full(size, np.inf))
    gaps = (distances - np.add.outer(residuals, residuals)).min(axis=1)
    squared = np.divide(residuals**2, gaps, out=residuals.copy(), where=gaps > 0)
    errors = np.minimum(residuals, squared)

    confirmed: dict[int, bool] = {}
    names: dict[int, str] = {}
    for end in reversed(sought):  # so that a pair at both ends is listed as a top one
        for index in end.wanted(size):
            confirmed[index] = exact or end.confirmed or confirmed.get(index, False)
            names[index] = "top" if end.sign > 0 else "bottom"
    order = sorted(names, reverse=True)
    projection.basis.rotate(ritz.rotation[:, order])
    allowed = np.maximum(tolerance * np.abs(ritz.values), projection.floor)
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[order]),
        vectors=projection.basis.columns(),
        residuals=torch.from_numpy(residuals[order]),
        error_estimates=torch.from_numpy(errors[order]),
        converged=torch.from_numpy((residuals - noise <= allowed)[order]),
        confirmed=torch.tensor([confirmed[index] for index in order]),
        ends=tuple(names[index] for index in order),
        tolerance=tolerance,
        cost=projection.operator.cost,
    )
