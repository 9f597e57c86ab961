"""Trainer: one run from its recipe to its last checkpoint, resumable after any step, bit for bit.

Every random draw is a pure function of (seed, epoch, batch): the order of the samples, the
augmentation, dropout. What cannot be is in the checkpoint: weights, the optimizer with the rule's
own state and generator, and the sums of the epoch so far. So a run that was stopped after any step
continues with the bits of one that was not, on a CPU with the same torch and threads.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import landscape
from sam_variants.base import Evaluate, SharpnessAware
from sam_variants.sam import SAM
from sam_variants.schedules import Schedule, schedule
from sam_variants.tasks import Task, build_model, build_task
from sam_variants.training.budget import Budget
from sam_variants.training.checkpoint import load_checkpoint, save_checkpoint
from sam_variants.training.closure import BatchClosure, Loss, wrong_class_divergence
from sam_variants.training.evaluation import EpochSums, evaluate, fixed_rows, num_right
from sam_variants.training.failures import BadInputError, DeviceError, DivergedError
from sam_variants.training.folder import append_line, write_text
from sam_variants.training.recipe import Recipe, Run

if TYPE_CHECKING:
    from sam_variants.training.geometry import CurvatureGauge, Measurement

CHECKPOINT, BEST, METRICS, TRAJECTORY = "checkpoint.pt", "best.pt", "metrics.jsonl", "trajectory"
TESTED_EACH_EPOCH = 2000  # samples; all of them at the end
EVALUATION_BATCH = 1000
PROBE_SAMPLES = 1000  # of the training data, for curvature while training
SIGNAL_SAMPLES = 512
FINITE_EVERY = 100  # steps between two looks at the losses, which wait for the device
SAVE_SECONDS = 600.0  # a long epoch is saved in between
REPORT_SECONDS = 0.2
SMALL = 1_000_000  # parameters below which more threads make a step slower

Report = Callable[[float, "dict[str, Any] | None"], None]
Stop = Callable[[], "int | None"]


def train(
    recipe: Recipe,
    run: Run,
    folder: Path,
    *,
    allow_code: bool = False,
    cores: int = 1,
    stop: Stop = lambda: None,
    report: Report = lambda share, line: None,
) -> int | None:
    """Trains one run in its folder, from where the folder's checkpoint is, if there is one.

    Args:
        folder: the run's own; made if need be.
        allow_code: whether the task or model may be a file of the user's.
        cores: that `threads auto` may use for a large model.
        stop: asked after each step; the number of a signal ends the run after saving it.
        report: called now and then with the share of the budget spent, and each epoch's line.

    Returns:
        None when the run is complete, else the number that `stop` gave.

    Raises:
        BadInputError, DeviceError, DivergedError, SaveError: see failures.py.
    """
    trainer = Trainer(recipe, run, folder, allow_code=allow_code, cores=cores)
    return trainer.train(stop=stop, report=report)


class Trainer:
    """The state of one run: model, optimizer, data, and where it stands."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        folder: Path,
        *,
        allow_code: bool = False,
        cores: int = 1,
    ) -> None:
        self.recipe, self.run, self.folder = recipe, run, folder
        self.device, self.dtype = usable_device(recipe.device), _dtype(recipe.precision)
        torch.set_num_threads(1)
        self.task = recipe_task(recipe, run, allow_code=allow_code)
        try:
            self.model = build_model(recipe.model, self.task, seed=run.seed, allow_code=allow_code)
        except (ValueError, OSError) as error:
            raise BadInputError(str(error)) from error
        self.model.to(self.device, self.dtype).train()
        self.num_parameters = sum(p.numel() for p in self.model.parameters())
        self.threads = self._num_threads(cores)
        self.loss = partial(self.task.loss, label_smoothing=recipe.label_smoothing)
        self._place_data()
        self.budget = Budget(*recipe.budget, steps_per_epoch=self.steps_per_epoch)
        self.lr_schedule = _lr_schedule(recipe)
        self.plan = recipe.base(run.spec)
        self.base = self.plan.build(self.model.named_parameters())
        self.optimizer = self._rule()
        self.gauge = self._signal_gauge()
        self.probe = self._probe_gauge() if isinstance(recipe.probe_every, int) else None
        self.epoch = self.batch = self.step = 0
        self.seconds = 0.0
        self.complete = False
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.sums = EpochSums()

    # -- what is built once --------------------------------------------------------------------

    def _num_threads(self, cores: int) -> int:
        if self.recipe.threads != "auto":
            return int(self.recipe.threads)
        return 1 if self.num_parameters < SMALL else max(1, cores)

    def _place_data(self) -> None:
        train = self.task.train
        self.inputs = self._cast(train.inputs)
        self.targets = train.targets.to(self.device)
        size = len(self.targets)
        # a last batch of one row is left out: batch norm has no variance there
        whole, rest = divmod(size, self.recipe.batch_size)
        self.steps_per_epoch = max(1, whole + (rest > 1 or (rest == 1 and whole == 0)))
        self.order = self._epoch_order(0)
        test, validation = self.task.test, self.task.validation
        rows = fixed_rows(TESTED_EACH_EPOCH, len(test), seed=self.recipe.data_seed)
        self.tested = self._placed(test.inputs[rows], test.targets[rows])
        self._validation_batches = (
            self._placed(validation.inputs, validation.targets) if validation is not None else []
        )

    @property
    def _test_batches(self) -> list[tuple[Tensor, Tensor]]:
        return self._placed(self.task.test.inputs, self.task.test.targets)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _placed(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(
            zip(
                torch.split(self._cast(inputs), EVALUATION_BATCH),
                torch.split(targets.to(self.device), EVALUATION_BATCH),
                strict=True,
            )
        )

    def _probe_batches(self, num_samples: int) -> list[tuple[Tensor, Tensor]]:
        rows = fixed_rows(num_samples, len(self.targets), seed=self.recipe.data_seed)
        return self._placed(self.task.train.inputs[rows], self.task.train.targets[rows])

    def _rule(self) -> SharpnessAware:
        # inf: the trainer assigns the progress before each step, whatever the budget counts
        total = self.budget.total_steps or math.inf
        try:
            optimizer = self.run.optimizer(self.base, total_steps=total)
        except ValueError as error:
            raise BadInputError(f"{self.run.name}: {error}") from error
        # a run whose loss is not finite ends and says so, rather than skip for ever
        optimizer.skip_nonfinite = False
        return optimizer

    # geometry.py brings scipy, which a training that measures nothing does not wait for

    def _signal_gauge(self) -> CurvatureGauge | None:
        signal = getattr(self.optimizer.policy, "signal", None)
        if signal is None or signal == "gradient-norm":
            return None
        from sam_variants.training.geometry import CurvatureGauge

        return CurvatureGauge(
            signal,
            self.model,
            self.loss,
            self._probe_batches(SIGNAL_SAMPLES),
            rho=self._rho() or 0.05,
            seed=self.run.seed,
        )

    def _probe_gauge(self) -> CurvatureGauge:
        from sam_variants.training.geometry import PROBE_TOLERANCE, CurvatureGauge

        return CurvatureGauge(
            "lambda-max",
            self.model,
            self.loss,
            self._probe_batches(PROBE_SAMPLES),
            tolerance=PROBE_TOLERANCE,
        )

    def _rho(self) -> float | None:
        rho = self.optimizer.param_groups[0].get("rho", getattr(self.optimizer, "rho", None))
        return None if rho is None else float(rho)

    # -- the loop ------------------------------------------------------------------------------

    def train(self, *, stop: Stop, report: Report) -> int | None:
        """Runs to the end of the budget, or until `stop` answers with a signal."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.restore()
        torch.set_num_threads(self.threads)
        saved = reported = time.monotonic()
        while not self.complete:
            self.take_step()
            now = time.monotonic()
            if now - reported > REPORT_SECONDS:
                report(self.progress, None)
                reported = now
            if self.batch == self.steps_per_epoch or self.progress >= 1:
                self.finish_epoch()
                report(self.progress, self.history[-1])
                saved = reported = time.monotonic()
            elif now - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
            if (signal := stop()) is not None and not self.complete:
                self.save()
                return signal
        return None

    @property
    def progress(self) -> float:
        """The share of the budget spent, in [0, 1]."""
        return self.budget.progress(
            steps=self.step, gradients=self.optimizer.counts.total, seconds=self.seconds
        )

    def take_step(self) -> None:
        """One step of the optimizer on the next batch."""
        began = time.monotonic()
        size = self.recipe.batch_size
        rows = self.order[self.batch * size : (self.batch + 1) * size]
        inputs, targets = self.inputs[rows], self.targets[rows]
        if self.task.augment is not None:
            generator = _generator("augment", self.run.seed, self.epoch, self.batch)
            inputs = self.task.augment(inputs, generator)
        seed = _mix("step", self.run.seed, self.epoch, self.batch)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        progress = self.progress
        lr = self.plan.lr * self.lr_schedule(progress)
        for group in self.base.param_groups:
            group["lr"] = lr
        self.optimizer.progress = progress
        self._feed_signal()
        batch = _Batch(
            self.model, self.loss, inputs, targets, accumulate=self.recipe.accumulate,
            size=size, autocast=self.recipe.precision == "bf16",
        )  # fmt: skip
        for request in self.optimizer.passes(num_rows=batch.num_rows):
            request.loss = batch(request)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.sums.add(*batch.seen)
        facts = self.optimizer.last
        if facts is not None and facts.gradient_norm is not None:
            self.sums.norms.append(facts.gradient_norm)
        self.batch += 1
        self.step += 1
        if self.step % FINITE_EVERY == 0:
            self._check_finite()
        self.seconds += time.monotonic() - began

    def _feed_signal(self) -> None:
        policy = self.optimizer.policy
        if self.gauge is None or not policy.wants_measurement(self.step):
            return
        measured = self._measured(self.gauge)
        policy.observe(measured.value)
        # the optimizer counts in batches of the training, the gauge in passes over its own samples
        ratio = self.gauge.objective.num_samples / self.recipe.batch_size
        self.optimizer.charge(
            gradients=ratio * measured.gradients, forwards=ratio * measured.forwards
        )

    def _epoch_order(self, epoch: int) -> Tensor:
        return torch.randperm(
            len(self.targets), generator=_generator("order", self.run.seed, epoch)
        ).to(self.device)

    # -- the end of an epoch -------------------------------------------------------------------

    def finish_epoch(self) -> None:
        """Evaluates, writes the epoch's line and saves; the last time on all the data."""
        self._check_finite()
        self.complete = self.progress >= 1
        if self.batch == self.steps_per_epoch:
            self.epoch += 1
        line = self._line()
        self.batch, self.sums = 0, EpochSums()
        self.history.append(line)
        if self.task.validation is not None:
            self._keep_best(line)
        if self.complete:
            line.update(self._final_scores())
            line.update(self.final_curvature(line["lr"]))
        else:
            self.order = self._epoch_order(self.epoch)
        every = self.recipe.save_every
        if every and (self.epoch % every == 0 or self.complete):
            folder = self.folder / TRAJECTORY
            folder.mkdir(exist_ok=True)
            save_checkpoint(folder / f"{len(self.history):04d}.pt", self._weights())
        self.save()
        append_line(self.folder / METRICS, _json_line(line))

    def _line(self) -> dict[str, Any]:
        """One line of metrics.jsonl; train_* are means over the epoch's own steps."""
        counts, facts = self.optimizer.counts, self.optimizer.last
        assert facts is not None
        epochs = self.step / self.steps_per_epoch
        tested = self._test_batches if self.complete else self.tested
        test = evaluate(self.model, self.task.loss, tested)
        line: dict[str, Any] = {
            "epoch": int(epochs) if epochs == int(epochs) else round(epochs, 6),
            "step": self.step,
            "train_loss": self.sums.loss(),
            "train_accuracy": self.sums.accuracy(),
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "num_test": test.num_samples,
            "gradients": float(counts.total),
            "refresh_gradients": counts.refresh_gradients + counts.refresh_forwards / 3.0,
            "forwards": float(counts.forwards + counts.refresh_forwards),
            "perturbed_share": counts.perturbed / max(1, counts.steps),
            "skipped": counts.skipped,
            "gradient_norm": self.sums.gradient_norm(),
            "rho": facts.rho,
            "lr": float(self.base.param_groups[0]["lr"]),
            "seconds": round(self.seconds, 4),
            "signal": facts.signal,
            "signal_mean": facts.mean,
            "signal_deviation": facts.deviation,
            "threshold": facts.threshold,
        }
        if self._validation_batches:
            score = evaluate(self.model, self.task.loss, self._validation_batches)
            line |= {"validation_loss": score.loss, "validation_accuracy": score.accuracy}
        every = self.recipe.probe_every
        if self.probe is not None and not self.complete and self.epoch % int(every) == 0:
            line |= self.curvature(self.probe, line["lr"])
        return line

    def _measured(self, gauge: CurvatureGauge) -> Measurement:
        try:
            return gauge.measure()
        except FloatingPointError as error:
            raise DivergedError(
                f"{self.run.name}: no curvature at step {self.step}: {error}; lower the learning "
                "rate or the radius"
            ) from error

    def curvature(self, probe: CurvatureGauge, lr: float) -> dict[str, Any]:
        """lambda_max on the fixed training samples, with the edges that SGD and SAM have there."""
        from sam_variants.training.geometry import gradient_edge, sam_edge

        measured = self._measured(probe)
        found: dict[str, Any] = {
            "lambda_max": measured.value,
            "lambda_max_residual": probe.residual,
            "lambda_max_samples": probe.objective.num_samples,
        }
        if self.plan.kind != "sgd" or self.run.spec.entry.base is not None or lr == 0:
            return found  # Adam's edge bounds the preconditioned Hessian; a Polyak step has none
        edge = gradient_edge(lr, momentum=self.plan.momentum, weight_decay=self.plan.weight_decay)
        found["edge"] = edge
        rho = self._rho()
        if rho and isinstance(self.optimizer, SAM):
            scale, norm = self.optimizer.scale, None
            if scale == "unit":
                norm = float(probe.objective.gradient(probe.theta).double().norm())
            found["sam_edge"] = sam_edge(edge, rho=rho, gradient_norm=norm)
            found["sam_edge_heuristic"] = scale == "unit"
        return found

    def final_curvature(self, lr: float) -> dict[str, Any]:
        """lambda_max, the loss and the sharpness of the last weights, all on the same samples.

        A model on which they cannot be measured (one without second derivatives, say) is trained
        all the same, unless curvature was asked for while training.
        """
        if self.recipe.probe_every == "never":
            return {}
        try:
            probe = self.probe or self._probe_gauge()
            return self.curvature(probe, lr) | probe.flatness()
        except (DivergedError, RuntimeError, ValueError) as error:
            if self.probe is not None:
                raise
            reason = str(error).splitlines()[0]
            _warn(f"{self.run.name}: no lambda_max and no sharpness at the end: {reason}")
            return {}

    def _keep_best(self, line: dict[str, Any]) -> None:
        """best.pt: the weights of the epoch with the best validation accuracy, then loss."""
        rank = (line["validation_accuracy"], -line["validation_loss"])
        if self.best is not None and rank <= (self.best["accuracy"], -self.best["loss"]):
            return
        self.best = {"epoch": line["epoch"], "accuracy": rank[0], "loss": -rank[1]}
        save_checkpoint(self.folder / BEST, self._weights())

    def _final_scores(self) -> dict[str, Any]:
        """The last weights on all training data, and best.pt's on the test data."""
        train = self._placed(self.task.train.inputs, self.task.train.targets)
        score = evaluate(self.model, self.task.loss, train)
        final: dict[str, Any] = {
            "final_train_loss": score.loss,
            "final_train_accuracy": score.accuracy,
            "num_train": score.num_samples,
            "num_parameters": self.num_parameters,
        }
        if self.best is not None:
            model = copy.deepcopy(self.model)
            model.load_state_dict(load_checkpoint(self.folder / BEST)["model"])
            score = evaluate(model, self.task.loss, self._test_batches)
            final |= {
                "best_epoch": self.best["epoch"],
                "best_test_loss": score.loss,
                "best_test_accuracy": score.accuracy,
            }
        return final

    def _check_finite(self) -> None:
        bad = self.sums.first_bad_step()
        if bad is not None:
            index, value = bad
            step = self.step - self.batch + index + 1
            saved = (self.folder / CHECKPOINT).is_file()
            kept = "the last good checkpoint is kept" if saved else "nothing had been saved yet"
            raise DivergedError(
                f"{self.run.name}: the loss is {value} at step {step} "
                f"(epoch {self.epoch + 1}); {kept}: lower lr or rho, "
                "or give --clip"
            )

    # -- saving and restoring ------------------------------------------------------------------

    def _weights(self) -> dict[str, Any]:
        """A checkpoint to measure on, not to resume from."""
        return {
            "recipe": self.recipe.to_dict(),
            "run": self.run.to_dict() | {"threads": self.threads, "base": self.plan.words},
            "model": self.model.state_dict(),
            "progress": {
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "progress": self.progress,
                "seconds": self.seconds,
                "complete": self.complete,
            },
            "history": self.history,
            "data_sha256": self.task.sha256,
            "num_parameters": self.num_parameters,
            "versions": _versions(),
        }

    def save(self) -> None:
        """Writes checkpoint.pt: all that the next step depends on.

        Raises:
            DivergedError: a loss of this epoch is no number; the file on the disk is kept.
            SaveError: the disk is full or refuses; the file on the disk is kept.
        """
        self._check_finite()
        document = self._weights() | {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_schedule.to_dict(),
            # every draw is a function of these and of epoch and batch; the rule's own generator
            # is in the optimizer's state
            "rng": {"seed": self.run.seed, "data_seed": self.recipe.data_seed},
            "sums": self.sums.state_dict(),
            "best": self.best,
            "gauges": {
                name: gauge.state_dict()
                for name, gauge in (("signal", self.gauge), ("probe", self.probe))
                if gauge is not None
            },
        }
        save_checkpoint(self.folder / CHECKPOINT, document)

    def restore(self) -> None:
        """Continues from checkpoint.pt where there is one; else begins metrics.jsonl.

        Raises:
            BadInputError: the file is not complete, or of another recipe, run or data.
        """
        path = self.folder / CHECKPOINT
        if path.exists():
            self._take_over(load_checkpoint(path), path)
        lines = "".join(_json_line(line) + "\n" for line in self.history)
        write_text(self.folder / METRICS, lines)

    def _take_over(self, document: dict[str, Any], path: Path) -> None:
        changed = self.recipe.differences(document["recipe"])
        if document["run"]["name"] != self.run.name:
            changed.append(f"run: {document['run']['name']} -> {self.run.name}")
        if document["data_sha256"] != self.task.sha256:
            changed.append(
                f"data: sha256 {document['data_sha256'][:12]} -> {self.task.sha256[:12]}"
            )
        if changed:
            raise BadInputError(
                f"{path} is of another training ({'; '.join(changed)}): resume with its own "
                "settings, or give another --out"
            )
        here, there = _versions(), document["versions"]
        if here != there:
            differing = ", ".join(
                f"{name} {there.get(name)} -> {here[name]}"
                for name in here
                if here[name] != there.get(name)
            )
            _warn(f"{path}: saved under another version ({differing}): not bit-exact")
        self.model.load_state_dict(document["model"])
        self.optimizer.load_state_dict(document["optimizer"])
        progress = document["progress"]
        self.epoch, self.batch, self.step = (progress[k] for k in ("epoch", "batch", "step"))
        self.seconds, self.complete = progress["seconds"], progress["complete"]
        self.threads = document["run"]["threads"]
        self.history, self.best = document["history"], document["best"]
        self.sums = EpochSums.from_state(document["sums"], self.device)
        for name, gauge in (("signal", self.gauge), ("probe", self.probe)):
            if gauge is not None:
                gauge.load_state_dict(document["gauges"][name])
        self.order = self._epoch_order(self.epoch)


class _Batch(BatchClosure):
    """A batch of the training: in the run's precision, and with what it shows of the epoch.

    Loss and accuracy come from each row's first evaluation of the training loss, which a rule that
    goes shard by shard spreads over several requests; AACE's first request is of another loss.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        targets: Tensor,
        *,
        accumulate: int,
        size: int,
        autocast: bool,
    ) -> None:
        super().__init__(
            model,
            loss,
            inputs,
            targets,
            micro_batch_size=-(-size // accumulate),
            ascent_loss=wrong_class_divergence,
        )
        self._autocast = autocast
        self._unseen = torch.ones(self.num_rows, dtype=torch.bool)
        self._looking = False
        self._losses: list[tuple[Tensor, int]] = []  # a mean and its rows
        self._right: list[Tensor] = []

    @property
    def seen(self) -> tuple[Tensor, int, Tensor]:
        """The mean loss, over how many targets it is, and how many predictions were right."""
        num_rows = sum(rows for _, rows in self._losses)
        # one request for all, as nearly every rule has, keeps its bits
        shares = [
            loss if rows == num_rows else loss * rows / num_rows for loss, rows in self._losses
        ]
        per_row = self.targets[0].numel()
        return torch.stack(shares).sum(), num_rows * per_row, torch.stack(self._right).sum()

    def __call__(self, request: Evaluate) -> Tensor:
        self._looking = bool(self._unseen.any()) and not request.ascent
        rows = request.rows
        if self._looking:
            rows = rows.cpu() if isinstance(rows, Tensor) else rows
            self._looking = bool(self._unseen[rows].all())
        loss = super().__call__(request)
        if self._looking:
            self._losses.append((loss.mean(), int(self._unseen[rows].sum())))
            self._unseen[rows] = False
        return loss

    def outputs(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._autocast):
            outputs = super().outputs(inputs)
        return outputs.float() if self._autocast else outputs

    def watch(self, request: Evaluate, outputs: Tensor, targets: Tensor) -> None:
        if self._looking:
            self._right.append(num_right(outputs, targets))


@lru_cache(maxsize=1)
def _cached_task(
    name: str,
    data_seed: int,
    test_size: int | None,
    label_noise: float,
    noise_seed: int,
    validation: float,
    data_dir: str | None,
    allow_code: bool,
) -> Task:
    return build_task(
        name,
        data_seed=data_seed,
        test_size=test_size,
        label_noise=label_noise,
        noise_seed=noise_seed,
        validation=validation,
        data_dir=data_dir,
        allow_code=allow_code,
    )


def recipe_task(recipe: Recipe, run: Run, *, allow_code: bool = False) -> Task:
    """The run's data: the recipe's, with label noise drawn by the run's seed.

    Kept, so that runs of one seed in one process build them once.

    Raises:
        BadInputError: a file is missing, or the data cannot serve.
    """
    try:
        return _cached_task(
            recipe.task,
            recipe.data_seed,
            recipe.test_size,
            recipe.label_noise,
            run.seed if recipe.label_noise else 0,
            recipe.validation,
            recipe.data_dir,
            allow_code,
        )
    except (ValueError, OSError) as error:
        raise BadInputError(str(error)) from error


def _lr_schedule(recipe: Recipe) -> Schedule:
    return schedule(recipe.schedule, warmup=recipe.warmup)


def usable_device(name: str) -> torch.device:
    """The device of that name; DeviceError where this machine cannot use it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def _dtype(precision: str) -> torch.dtype:
    """Of weights and inputs; bf16 is autocast: weights in it would not follow a perturbation."""
    return torch.float64 if precision == "float64" else torch.float32


def _mix(*parts: object) -> int:
    """A seed in [0, 2^63) that is a function of the parts and of nothing else."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(*parts))


def _versions() -> dict[str, str]:
    return {
        "toolkit": landscape.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _json_line(line: dict[str, Any]) -> str:
    """Strict JSON: a number that is none is null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(finite, allow_nan=False)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
