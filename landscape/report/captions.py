"""The sentences of the report: what stands beside each figure, with its budget and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from landscape.findings import Findings
from landscape.report import (
    available,
    costs,
    curves,
    digits,
    measures,
    planes,
    sampling,
    theme,
    topology,
    trajectory,
)
from landscape.report.cells import symbol
from landscape.report.tables import mean_and_interval
from landscape.report.text import clean, escaped, shown


def lead(findings: Findings) -> str:
    """One sentence: how many of what were measured, on which data."""
    document = findings.document
    parts = []
    checkpoints = findings.checkpoints
    if checkpoints:
        methods = list(dict.fromkeys(theme.method_of(c) for c in checkpoints))
        noun = "checkpoint" if len(checkpoints) == 1 else "checkpoints"
        sentence = f"<b>{len(checkpoints)} {noun}</b>"
        if 1 < len(methods) <= 8:
            sentence += f" of {_listed([shown(m, 28) for m in methods])}"
        sizes = {c.get("num_parameters") for c in checkpoints} - {None}
        if len(sizes) == 1:
            sentence += f", {digits.count(sizes.pop())} parameters each"
        parts.append(sentence)
        data = document.get("data") or {}
        if data.get("num_samples") is not None:
            samples = digits.count(data["num_samples"])
            total = data.get("num_samples_total")
            of = f" of {digits.count(total)}" if total and total != data["num_samples"] else ""
            kind = {"train": "training ", "test": "test "}.get(str(data.get("split")), "")
            parts[-1] += ","
            parts.append(f"measured on {samples}{of} {kind}samples")
        if data.get("description"):
            parts.append(f"({shown(data['description'], 240)})")
    elif findings.runs:
        training_entry = document.get("training") or {}
        sentence = f"<b>{len(findings.runs)} training runs</b>"
        if training_entry.get("model"):
            sentence += f" of {shown(training_entry['model'], 40)}"
        if training_entry.get("num_parameters"):
            sentence += f" ({digits.count(training_entry['num_parameters'])} parameters)"
        if training_entry.get("task"):
            sentence += f" on {shown(training_entry['task'], 40)}"
        parts.append(sentence)
    return f"{' '.join(parts)}." if parts else "Nothing has been measured yet."


def load_notes(checkpoint: Mapping[str, Any]) -> list[str]:
    """What a checkpoint's loading left out or changed, as warnings."""
    report = checkpoint.get("load_report") or {}
    notes = []
    for key, words in (
        ("missing", "keys were missing from the file"),
        ("unexpected", "keys of the file were not used"),
        ("shapes", "keys did not fit their shape"),
        ("casts", "tensors were cast"),
        ("skipped", "entries were skipped"),
    ):
        names = report.get(key) or []
        if names:
            listed = ", ".join(clean(name) for name in names[:5])
            more = ", …" if len(names) > 5 else ""
            notes.append(f"{len(names)} {words}: {listed}{more}")
    return [*notes, *map(clean, report.get("warnings") or [])]


def verdict(findings: Findings, comparison: Mapping[str, Any]) -> str:
    """Who does best at what, in words, and whether its interval is clear of the next."""
    sentences = []
    names = ["test_accuracy", "gap", *(m.name for m in measures.flatness_measures(findings))]
    for name in names[:5]:
        entries = [
            (entry["values"][name], str(entry["method"]))
            for entry in comparison["methods"]
            if ((entry.get("values") or {}).get(name) or {}).get("mean") is not None
        ]
        measure = measures.named(findings, name)
        if len(entries) < 2 or measure.better is None:
            continue
        entries.sort(key=lambda e: e[0]["mean"], reverse=measure.better == "higher")
        (best, method), (second, runner) = entries[:2]
        word = "Highest" if measure.better == "higher" else "Lowest"
        sentences.append(
            f"<li>{word} mean {symbol(measure.title)}: <b>{shown(method, 28)}</b>, "
            f"{mean_and_interval(best, measure)}; next {shown(runner, 28)}, "
            f"{mean_and_interval(second, measure)}{_overlap(best, second)}.</li>"
        )
    return f'<ul class="verdict">{"".join(sentences)}</ul>' if sentences else ""


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    a, b = first.get("interval"), second.get("interval")
    if not a or not b:
        return ""
    return "; intervals overlap" if a[0] <= b[1] and b[0] <= a[1] else "; intervals are apart"


def matrix(findings: Findings) -> str:
    """The curvature matrix whose spectrum was measured, in words."""
    names = {
        "ggn": "Gauss–Newton matrix",
        "remainder": "remainder H − G",
        "fisher": "empirical Fisher matrix",
        "mc-fisher": "Monte-Carlo Fisher matrix",
    }
    return names.get(str((findings.document.get("settings") or {}).get("matrix")), "Hessian")


def spectrum(findings: Findings) -> str:
    """What the spectrum shows, and with which budget."""
    entries = [c["density"] for c in findings.checkpoints if c.get("density")]
    words = [
        "Markers: eigenvalues by Lanczos with their residual, first seed large; an open marker is "
        "one whose completeness is not confirmed, a bound."
    ]
    if entries:
        runs, steps = entries[0].get("num_runs"), entries[0].get("num_steps")
        words.insert(
            0,
            f"Density on a logarithmic axis: the mean over {runs} runs of {steps} Lanczos steps, "
            f"{_band(findings)}. Thin ticks: the Ritz values of those runs.",
        )
        if len(entries) < len(findings.checkpoints):
            words.append(
                f"Density was measured for {len(entries)} of {len(findings.checkpoints)} "
                "checkpoints."
            )
    words.append(sampling.caption(findings))
    return " ".join(filter(None, words))


def _band(findings: Findings) -> str:
    """How sure the drawn densities are; few runs have no honest band."""
    drawn = available.with_densities(findings)
    has_band = any(f"density_{c['id']}_lower" in findings.arrays for c in drawn)
    return "with its 95 % band" if has_band else "which are too few for a band"


def density_table(findings: Findings) -> str:
    """The bulk at zero and the moments as numbers, one row a density."""
    rows = []
    for checkpoint in findings.checkpoints:
        density = checkpoint.get("density")
        if not density:
            continue
        near = digits.share(density.get("near_zero_mass"))
        cut_at = digits.number(density.get("near_zero_cut"), 2)
        mean = digits.with_error(density.get("mean"), density.get("mean_standard_error"))
        trace, size = checkpoint.get("trace") or {}, checkpoint.get("num_parameters")
        per = digits.MISSING
        if trace.get("value") is not None and size:
            error = trace.get("standard_error")
            per = digits.with_error(trace["value"] / size, error / size if error else None)
        rows.append(
            f'<tr><th scope="row">{shown(checkpoint.get("label") or checkpoint["id"], 32)}</th>'
            f"<td>{near}<span class=note>|λ| &lt; {cut_at}</span></td><td>{mean}</td>"
            f"<td>{per}</td><td>{digits.number(density.get('mass'), 4)}</td>"
            f"<td>{digits.number(density.get('kernel_width'), 2)}</td></tr>"
        )
    if not rows:
        return ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Densities, wide table">'
        '<table class="data" id="table-densities"><thead><tr><th scope="col">density of</th>'
        '<th scope="col">mass near zero</th><th scope="col">mean λ</th>'
        f'<th scope="col">tr {measures.matrix_letter(findings)} / P</th>'
        '<th scope="col">total mass</th>'
        '<th scope="col">kernel width</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def slices(findings: Findings) -> str:
    """Where the slices' losses lie, with how many points were taken."""
    lined = available.with_lines(findings)
    points = len(findings.arrays[f"line_{lined[0]['id']}_t"])
    ranges = []
    for checkpoint in lined[:6]:
        loss = findings.arrays[f"line_{checkpoint['id']}_loss"]
        finite = loss[loss == loss]
        if finite.size:
            label = shown(checkpoint.get("label") or checkpoint["id"], 24)
            low, high = digits.number(float(finite.min()), 3), digits.number(float(finite.max()), 3)
            ranges.append(f"{label} {low} to {high}")
    more = "; …" if len(lined) > 6 else ""
    return (
        f"Each curve is {points} evaluations of the loss, through θ at 0. Range of L: "
        f"{'; '.join(ranges)}{more}."
    )


def surfaces(findings: Findings) -> str:
    """The sentence above the contours: what the planes share."""
    identifiers = available.with_surfaces(findings)
    total = len(findings.checkpoints)
    words = "Loss on a plane through θ, marked by the cross. "
    if len(identifiers) > 1:
        axes = (
            "All panels share their axes"
            if planes.shares_axes(findings)
            else "Each panel has the window of its own points"
        )
        words += f"{axes}; the colour scale is shared until you choose its own. "
    if trajectory.with_trajectory(findings):
        words += "The white line is the path of the training, which ends at the cross. "
    if any(len(topology.marks(c)) for c in findings.checkpoints):
        words += "Numbered discs are the minima, the deepest first. "
    if any(planes.landmarks_of(c) for c in findings.checkpoints):
        words += "Diamonds are the checkpoints that the plane goes through. "
    if len(identifiers) < total:
        words += f"Measured for {len(identifiers)} of {total} checkpoints. "
    words += "Points where the loss is not finite are left empty, never filled."
    return f"<p>{words}</p>"


def surface(checkpoint: Mapping[str, Any]) -> str:
    """A surface's numbers: centre, range, error, directions."""
    entry = checkpoint.get("surface") or {}
    low, high = digits.number(entry.get("min"), 3), digits.number(entry.get("max"), 3)
    parts = [f"L = {digits.number(entry.get('center_loss'), 3)} at θ, {low} to {high} here."]
    error = entry.get("interpolation_error")
    evaluated, points = entry.get("num_evaluated"), entry.get("num_points")
    if entry.get("exact") or not error:
        if points:
            parts.append(f"All {digits.count(points)} points evaluated.")
    else:
        parts.append(
            f"{digits.count(evaluated)} of {digits.count(points)} points evaluated, the rest "
            f"interpolated: error at most {digits.number(error.get('maximum'), 2)} on "
            f"{digits.count(error.get('num_held_out'))} held-out points."
        )
    if entry.get("num_nonfinite"):
        plural = "" if entry["num_nonfinite"] == 1 else "s"
        parts.append(
            f"<b>{digits.count(entry['num_nonfinite'])} point{plural} not finite, left empty.</b>"
        )
    if entry.get("recalibrated"):
        parts.append("Running statistics estimated anew at each point.")
    parts.append(topology.sentence(checkpoint))
    named = entry.get("directions")
    if named:
        names = [named] if isinstance(named, str) else list(named)
        parts.append(f"Directions: {', '.join(shown(name, 28) for name in names)}")
        facts = []
        if entry.get("angle_degrees") is not None:
            facts.append(f"{digits.number(entry['angle_degrees'], 3)}° apart")
        if entry.get("norms"):
            facts.append("norms " + ", ".join(digits.number(n, 3) for n in entry["norms"]))
        if entry.get("parameter_norm") is not None:
            facts.append(f"‖θ‖ = {digits.number(entry['parameter_norm'], 3)}")
        if entry.get("seed") is not None:
            facts.append(f"seed {escaped(entry['seed'])}")
        parts[-1] += f" ({'; '.join(facts)})." if facts else "."
    return " ".join(filter(None, parts))


def cross(axis: str) -> str:
    """What the row or the column through the crosshair is."""
    moved, fixed = ("1", "2") if axis == "x" else ("2", "1")
    return f"L along direction {moved}, direction {fixed} held at the crosshair."


TRAINING_TITLES = {
    "loss": "Training loss, running mean of each epoch",
    "test-loss": "Test loss",
    "accuracy": "Test accuracy",
    "curvature": "Largest eigenvalue during training",
    "share": "Share of perturbed steps",
    "gradients": "Gradients spent",
    "by-gradients": "Test accuracy against gradients spent",
    "by-seconds": "Test accuracy against wall time",
}


def runs(findings: Findings) -> str:
    """How many runs of which variants, and how the figures draw them."""
    variants: dict[str, int] = {}
    for run in findings.runs:
        name = theme.method_of(run)
        variants[name] = variants.get(name, 0) + 1
    several = any(n > 1 for n in variants.values())
    how = " Thin lines are single seeds, strong lines their mean." if several else ""
    if curves.is_crowded(findings):
        fewest, most = min(variants.values()), max(variants.values())
        seeds = f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"
        return f"{len(findings.runs)} runs of {len(variants)} variants, {seeds} each.{how}"
    listed = _listed([f"{shown(v, 28)} ({n})" for v, n in variants.items()])
    return f"{len(findings.runs)} runs: {listed}.{how}"


def probe(comparison: Mapping[str, Any]) -> str:
    """On how many samples a training's curvature was measured; "" where it was not."""
    if not comparison.get("num_probe"):
        return ""
    return (
        " λ<sub>max</sub>, the worst case and the probe loss are those of the last weights on the "
        f"same {digits.count(comparison['num_probe'])} training samples; a network that has "
        "learned little is flat."
    )


def training(findings: Findings, name: str) -> str:
    """The last value of a training curve, variant by variant."""
    plan = curves.TRAINING[name]
    factor, unit = (100.0, " %") if plan.get("percent") else (1.0, "")
    means: list[tuple[float, str]] = []
    for variant in dict.fromkeys(theme.method_of(run) for run in findings.runs):
        group = [run for run in findings.runs if theme.method_of(run) == variant]
        ends = [_last(run, plan["key"]) for run in group]
        known = [factor * end for end in ends if end is not None]
        if known:
            means.append((sum(known) / len(known), variant))
    if curves.is_crowded(findings):
        means = [min(means), max(means)]
    words = [f"{shown(name, 20)} {digits.number(mean, 3)}{unit}" for mean, name in means]
    between = " to " if curves.is_crowded(findings) else ", "
    text = f"At the end: {between.join(words)}." if words else ""
    if name == "loss":
        text += (
            " A mean over the epoch’s batches, each at the weights of its step: the table’s "
            "training loss is that of the last weights on all training data."
        )
    if name == "curvature":
        text += " Grey: 2/lr, where plain descent turns unstable; dotted: the SAM edge."
    return text


def _last(run: Mapping[str, Any], key: str) -> float | None:
    known = [line[key] for line in run["history"] if line.get(key) is not None]
    return known[-1] if known else None


def signal(findings: Findings, variant: str) -> str:
    """How often an adaptive policy fired."""
    group = [run for run in findings.runs if theme.method_of(run) == variant]
    shares = [share for run in group if (share := _last(run, "perturbed_share")) is not None]
    text = "Above: the signal that decides, its running mean and the threshold (first seed). "
    if shares:
        mean = digits.share(sum(shares) / len(shares))
        text += f"Below: {mean} of all steps had a signal past the threshold and were perturbed."
    return text


def one_signal(findings: Findings) -> str:
    """Which switching signals are no curves, for the runs knew them once; "" where all are."""
    variants = available.with_one_signal(findings)
    if not variants:
        return ""
    listed = _listed([shown(v, 28) for v in variants])
    return (
        f"The switching signal of {listed} is known once a run, after its only record: that is no "
        "curve, and the share of perturbed steps is in the table."
    )


def generalisation(findings: Findings) -> str:
    """What the scatter plots hold against each other, and what they cannot show."""
    gap = measures.gap_measure(findings)
    return (
        f"One point a checkpoint: the {symbol(gap.title)}, {gap_words(findings)}, against each "
        "flatness measure. If flatness predicts generalisation, points rise to the right (τ near "
        "1). Checkpoints of one method are not independent, and a correlation is no cause."
    )


def gap_words(findings: Findings) -> str:
    """What the generalisation gap is a difference of."""
    if measures.gap_measure(findings).percent:
        return "accuracy on the probed data minus test accuracy"
    return "test loss minus loss on the probed data"


def opinions(findings: Findings) -> str:
    """Whether the second opinion agrees, checkpoint by checkpoint."""
    items = []
    for checkpoint in findings.checkpoints:
        opinion = checkpoint.get("second_opinion")
        if opinion:
            word = {True: "agrees", False: "<b>does not agree</b>"}.get(
                opinion.get("agrees"), "had nothing to compare"
            )
            label = shown(checkpoint.get("label") or checkpoint["id"], 32)
            message = f": {shown(opinion['message'], 240)}" if opinion.get("message") else ""
            items.append(f"<li>{label} {word}{message}</li>")
    return f'<ul class="verdict">{"".join(items)}</ul>'


def provenance_tables(findings: Findings) -> str:
    """Settings, data and each checkpoint's origin, as definition lists that open."""
    document = findings.document
    parts = []
    settings = document.get("settings") or {}
    if settings:
        parts.append(_folded("Settings", _definitions(settings)))
    data = document.get("data") or {}
    if data:
        parts.append(_folded("Data", _definitions(data)))
    spent = costs.table(findings)
    if spent:
        parts.append(_folded("Cost by stage", spent))
    for checkpoint in findings.checkpoints:
        facts = {"path": checkpoint.get("path"), **(checkpoint.get("provenance") or {})}
        report = checkpoint.get("load_report") or {}
        if report.get("format"):
            facts["format"] = report["format"]
            facts["matched keys"] = report.get("matched")
        if facts.get("seconds") is not None:
            facts["seconds"] = digits.seconds(facts["seconds"])
        label = shown(checkpoint.get("label") or checkpoint["id"], 40)
        parts.append(_folded(label, _definitions(facts)))
    return "".join(parts)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _definitions(values: Mapping[str, Any]) -> str:
    rows = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        name = str(key).replace("_", " ")
        rows.append(f"<dt>{shown(name, 40)}</dt><dd>{shown(value, 160)}</dd>")
    return f"<dl class=facts>{''.join(rows)}</dl>"


def _listed(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
