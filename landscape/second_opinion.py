"""A second opinion: eigenvalues and trace by PyHessian, from the raw model, batches and loss.

None of our own operators takes part, so that a fault in them cannot confirm itself. PyHessian has
faults too; those of its release 0.1 that matter here are met and named:

- it leaves eval mode and gradients on the model it is given: it gets a copy;
- it crashes on parameters that the loss does not depend on: they are frozen in the copy, which
  changes neither its other eigenvalues nor its trace;
- it weights batches by their rows, which is the mean loss only where each row is one loss term (or
  the same number of them): it gets one batch where the data fit;
- it ranks eigenvalues by magnitude, and its power iteration can settle on a smaller one first, as
  2.750 before 2.953: it is asked for two more than are kept, they are sorted, and each is
  compared with its partner at the same end;
- it stops its trace when two running means agree, at once where they are negative: that rule is
  switched off and the number of probes is ours;
- its density calls `torch.eig`, which torch has no more: it is not asked for.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.estimate import Estimate

if TYPE_CHECKING:
    from landscape.linalg import Eigenpairs

_AGREEMENT = 0.05  # relative; power iteration at its default length is often 1 % short
_TRACE_ERRORS = 4.0  # combined standard errors that two traces may differ by
_TRACE_ROUNDING = 1e-4  # relative
_SPARE = 2  # eigenvalues asked for beyond those that are kept
_ONE_BATCH_BYTES = 1 << 26  # of inputs: PyHessian keeps the graph of a single batch in memory

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SecondOpinion:
    """What PyHessian says beside what we say.

    Attributes:
        source: the package and its release.
        eigenvalues: PyHessian's, by falling magnitude, loss / parameter^2.
        partners: of each of them, ours; None where we have none.
        trace: the mean of its probes; None where it gave none.
        trace_standard_error: of that mean.
        num_probes: of the trace.
        agrees: whether all that could be compared agrees; None: nothing could be.
        difference: the largest relative difference of an eigenvalue; of the trace where no
            eigenvalue had a partner; None where there was nothing.
        message: one or more sentences for the reader; a disagreement begins with "DISAGREES".
        seconds: wall time.
    """

    source: str
    eigenvalues: tuple[float, ...]
    partners: tuple[float | None, ...]
    trace: float | None
    trace_standard_error: float | None
    num_probes: int
    agrees: bool | None
    difference: float | None
    message: str
    seconds: float


def ask_pyhessian(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[Any],
    *,
    eigenpairs: Eigenpairs | None = None,
    trace: Estimate | None = None,
    parameters: str | Sequence[str] = "*",
    num_terms: float | None = None,
    num_eigenvalues: int = 3,
    num_probes: int = 100,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> SecondOpinion:
    """PyHessian's eigenvalues and trace of the mean loss's Hessian, and whether ours agree.

    An eigenvalue agrees when it is within 5 % of ours; the i-th positive one is compared with our
    i-th largest, the i-th negative one with our i-th smallest, where we sought that end. The trace
    agrees when the two are within four combined standard errors. The model, its gradients, its
    mode, the global random state and stdout are left as they were.

    Args:
        model, loss, batches: the same as `Objective` was given: pairs (inputs, targets) of tensors
            and `loss(output, target)`. PyHessian evaluates in eval mode: beside an objective with
            batch_norm="batch" it measures another loss.
        eigenpairs: ours, to compare with; only the values are looked at.
        trace: ours, to compare with.
        parameters: glob or globs, as for `Objective`; the others are frozen in PyHessian's copy.
        num_terms: N, which PyHessian's numbers are divided by where the loss sums over its terms.
        num_eigenvalues: to keep, of two more that are computed; each takes up to `max_iterations`
            products.
        num_probes: of its trace, one product each, at least 2.
        max_iterations, tolerance: of its power iteration: the relative change to stop at.
        seed: of its random vectors.

    Raises:
        ValueError: num_probes < 2 or num_eigenvalues < 1.
    """
    if num_probes < 2:
        raise ValueError(f"num_probes must be >= 2, got {num_probes}: one probe has no error")
    if num_eigenvalues < 1:
        raise ValueError(f"num_eigenvalues must be >= 1, got {num_eigenvalues}")
    begun = time.perf_counter()
    notes: list[str] = []
    found: tuple[list[float], list[float]] = ([], [])
    try:
        with _isolated(model, seed):
            found = _run(
                model,
                loss,
                batches,
                parameters=parameters,
                num_terms=num_terms,
                num_eigenvalues=num_eigenvalues,
                num_probes=num_probes,
                max_iterations=max_iterations,
                tolerance=tolerance,
                notes=notes,
            )
    except _NotForPyHessian as reason:
        notes.append(f"PyHessian gave no number: {reason}")
    except Exception as error:  # a second opinion that fails must not end the first
        first_line = str(error).splitlines()[0] if str(error) else ""
        notes.append(f"PyHessian failed: {type(error).__name__}: {first_line}")
    return _compared(*found, eigenpairs, trace, notes, time.perf_counter() - begun)


class _NotForPyHessian(Exception):
    """What PyHessian cannot take, in words."""


def _run(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[Any],
    *,
    parameters: str | Sequence[str],
    num_terms: float | None,
    num_eigenvalues: int,
    num_probes: int,
    max_iterations: int,
    tolerance: float,
    notes: list[str],
) -> tuple[list[float], list[float]]:
    """PyHessian's eigenvalues and the quadratic forms v'Hv of its trace probes."""
    from pyhessian import hessian  # imported here: its import pulls in nothing that we need before

    twin = _twin(model)
    if next(twin.parameters()).device.type not in ("cpu", "cuda"):
        twin = twin.cpu()
    like = next(twin.parameters())
    data = [_on(like, batch) for batch in batches]
    if not data:
        raise _NotForPyHessian("the data hold no batch")
    single = _as_one(data)
    _freeze(twin, parameters, loss, data if single is None else [single], notes)
    scale = 1.0
    if _sums(twin, loss, data[0]):
        if single is None or num_terms is None:
            raise _NotForPyHessian(
                "the loss sums over its terms, which needs one batch and the number of terms"
            )
        scale = 1 / num_terms
    if single is None and len(data) > 1:
        notes.append(
            f"PyHessian weights the {len(data)} batches by their rows: the mean loss only where "
            "every row has as many loss terms"
        )
    how = {"dataloader": data} if single is None else {"data": single}
    theirs = hessian(twin, loss, cuda=like.is_cuda, **how)
    try:
        values, _ = theirs.eigenvalues(
            maxIter=max_iterations,
            tol=tolerance,
            top_n=min(num_eigenvalues + _SPARE, _num_free(twin)),
        )
        # No change of the running mean is below minus infinity: the stopping rule never fires.
        forms = theirs.trace(maxIter=num_probes, tol=-math.inf)
    finally:
        for parameter in twin.parameters():  # .grad holds a graph that holds .grad: a leak
            parameter.grad = None
    values = sorted(map(float, values), key=abs, reverse=True)[:num_eigenvalues]
    return [scale * value for value in values], [scale * float(form) for form in forms]


def _compared(
    values: list[float],
    forms: list[float],
    eigenpairs: Eigenpairs | None,
    trace: Estimate | None,
    notes: list[str],
    seconds: float,
) -> SecondOpinion:
    mean, error = _mean_and_error(forms) if forms else (None, None)
    complaints: list[str] = []
    partners = _partners(values, eigenpairs)
    differences = []
    for theirs, ours in zip(values, partners, strict=True):
        if ours is None:
            continue
        differences.append(abs(ours - theirs) / max(abs(ours), abs(theirs), sys.float_info.min))
        if not differences[-1] <= _AGREEMENT:  # nan disagrees
            complaints.append(f"eigenvalue {ours:.6g} here, {theirs:.6g} there")
    if eigenpairs is not None and None in partners:
        notes.append(
            f"{partners.count(None)} of its {len(values)} eigenvalues (ranked by magnitude) has no "
            "partner among ours"
        )
    agreements = []
    if differences:
        agreements.append(f"eigenvalues within {100 * max(differences):.2g} %")
    if trace is not None and mean is not None and error is not None:
        distance, scale = abs(trace.value - mean), max(abs(trace.value), abs(mean))
        # Beside the sampling errors: the rounding of float32 products, all there is where H is
        # diagonal.
        combined = math.hypot(trace.standard_error or 0.0, error, _TRACE_ROUNDING * scale)
        if not distance <= _TRACE_ERRORS * combined:
            complaints.append(f"trace {trace.value:.6g} here, {mean:.6g} there (+- {combined:.2g})")
        agreements.append(f"trace within {distance / (combined or 1):.1f} standard errors")
        if all(ours is None for ours in partners):
            differences.append(distance / max(scale, sys.float_info.min))
    if any(not math.isfinite(number) for number in [*values, *forms]):
        complaints.append("PyHessian returned a number that is not finite")

    agrees = not complaints if agreements or complaints else None
    if complaints:
        verdict = "DISAGREES with PyHessian: " + "; ".join(complaints)
    elif agrees:
        verdict = f"agrees with PyHessian ({', '.join(agreements)})"
    else:
        verdict = "nothing compared"
    return SecondOpinion(
        source=f"PyHessian {metadata.version('pyhessian')}",
        eigenvalues=tuple(values),
        partners=tuple(partners),
        trace=mean,
        trace_standard_error=error,
        num_probes=len(forms),
        agrees=agrees,
        difference=max(differences) if differences else None,
        message=". ".join([verdict, *notes]),
        seconds=seconds,
    )


def _mean_and_error(forms: Sequence[float]) -> tuple[float, float]:
    mean = sum(forms) / len(forms)
    variance = sum((form - mean) ** 2 for form in forms) / (len(forms) - 1)
    return mean, math.sqrt(variance / len(forms))


def _partners(theirs: Sequence[float], pairs: Eigenpairs | None) -> list[float | None]:
    """Their i-th positive value with our i-th largest, their i-th negative with our i-th smallest.

    Ranked by magnitude, PyHessian's positive values still fall in our order, and so do its
    negative ones from the other end.
    """
    ours = [] if pairs is None else list(zip(pairs.values.tolist(), pairs.ends, strict=True))
    top = iter(sorted((value for value, end in ours if end != "bottom"), reverse=True))
    bottom = iter(sorted(value for value, end in ours if end != "top" and value < 0))
    return [next(bottom if value < 0 else top, None) for value in theirs]


@contextlib.contextmanager
def _isolated(model: nn.Module, seed: int) -> Iterator[None]:
    """PyHessian draws from the global state, warns of its own leak; users' models may print."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.manual_seed(seed)
        if devices:  # PyHessian says "cuda", which means the current device
            stack.enter_context(torch.cuda.device(devices[0]))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention curves in one order
        stack.enter_context(torch.enable_grad())
        yield


def _twin(model: nn.Module) -> nn.Module:
    """A copy in eval mode without gradients, because PyHessian adds to `.grad`."""
    try:
        twin = copy.deepcopy(getattr(model, "_orig_mod", model))
    except RuntimeError as error:
        raise _NotForPyHessian(f"the model cannot be copied ({error})") from error
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.eval()


def _on(like: Tensor, batch: Any) -> Batch:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(part, Tensor) for part in batch):
        raise _NotForPyHessian("it takes batches (inputs, targets) of two tensors only")
    # Batches that were cast for another precision than the model's are cast back.
    inputs, targets = (
        part.detach().to(like.device, like.dtype if part.is_floating_point() else None)
        for part in batch
    )
    return inputs, targets


def _as_one(data: list[Batch]) -> Batch | None:
    """All batches as one, where shapes allow it and the kept graph may be expected to fit."""
    if len(data) == 1:
        return data[0]
    if sum(inputs.nbytes for inputs, _ in data) > _ONE_BATCH_BYTES:
        return None
    shapes = {(inputs.shape[1:], targets.shape[1:]) for inputs, targets in data}
    if len(shapes) > 1 or any(targets.ndim == 0 for _, targets in data):
        return None
    return torch.cat([inputs for inputs, _ in data]), torch.cat([targets for _, targets in data])


def _freeze(
    twin: nn.Module,
    parameters: str | Sequence[str],
    loss: Callable[..., Tensor],
    data: list[Batch],
    notes: list[str],
) -> None:
    """Leaves PyHessian the parameters that were asked for and that the loss depends on."""
    globs = [parameters] if isinstance(parameters, str) else list(parameters)
    names: dict[int, list[str]] = {}
    for name, parameter in twin.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in twin.parameters():
        if not any(fnmatchcase(name, glob) for name in names[id(parameter)] for glob in globs):
            parameter.requires_grad_(False)

    used_always: set[int] | None = None
    used_ever: set[int] = set()
    free = [p for p in twin.parameters() if p.requires_grad]
    for inputs, targets in data:
        value = loss(twin(inputs), targets)
        slopes = torch.autograd.grad(value, free, allow_unused=True)
        used = {id(p) for p, slope in zip(free, slopes, strict=True) if slope is not None}
        used_ever |= used
        used_always = used if used_always is None else used_always & used
    if used_always != used_ever:
        sometimes = next(
            names[id(p)][0] for p in free if id(p) in used_ever - (used_always or set())
        )
        raise _NotForPyHessian(f"it crashes on {sometimes}, which only some batches use")
    unused = [p for p in free if id(p) not in used_ever]
    for parameter in unused:
        parameter.requires_grad_(False)
    if unused:
        listed = ", ".join(names[id(p)][0] for p in unused)
        notes.append(f"PyHessian crashes on unused parameters: it was not shown {listed}")
    if not _num_free(twin):
        raise _NotForPyHessian("the loss depends on no parameter")


def _num_free(twin: nn.Module) -> int:
    return sum(p.numel() for p in twin.parameters() if p.requires_grad)


def _sums(twin: nn.Module, loss: Callable[..., Tensor], batch: Batch) -> bool:
    """Whether the same rows twice give twice the loss."""
    with torch.no_grad():
        output, targets = twin(batch[0]), batch[1]
        once = float(loss(output, targets))
        twice = float(loss(torch.cat([output, output]), torch.cat([targets, targets])))
    return once != 0 and abs(twice - 2 * once) < abs(twice - once)
