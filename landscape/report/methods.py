"""The methods section: each quantity's formula, budget, seed and source, from what was run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import (
    available,
    captions,
    connection,
    correlation,
    curves,
    diagonal,
    digits,
    dynamics,
    eigenvalue_map,
    layers,
    measures,
    planes,
    sampling,
    self_check,
    topology,
    trajectory,
)
from landscape.report.cells import symbol
from landscape.report.formulas import FORMULAS
from landscape.report.references import REFERENCES, Method, spread
from landscape.report.text import clean, escaped, shown


def methods_of(findings: Findings) -> list[Method]:
    """The quantities of these findings, each with what was run for it, in the report's order."""
    checkpoints = findings.checkpoints
    found: list[Method] = []
    if checkpoints:
        found.append(_objective(findings))
    if _settings(findings).get("matrix") in _MATRICES and available.has_spectrum(findings):
        found.append(_MATRICES[_settings(findings)["matrix"]])
    if self_check.checks(findings):
        found.append(_operator(findings))
    if any(c.get("eigenvalues") for c in checkpoints):
        found.append(_eigenvalues(findings))
    if any(c.get("trace") for c in checkpoints):
        found.append(_trace(findings))
    if any(c.get("sampling") for c in checkpoints):
        found.append(sampling.method(findings))
    if any(c.get("density") for c in checkpoints):
        found.append(_density(findings))
    if diagonal.with_diagonal(findings):
        found.append(diagonal.method(findings))
    found += dynamics.methods(findings)
    found += [_sharpness(findings, name) for name in measures.sharpness_names(findings)]
    if available.with_layers(findings):
        found.append(layers.method(findings))
    if available.with_lines(findings) or available.with_surfaces(findings):
        found.append(_surface(findings))
    if topology.with_topology(findings):
        found.append(topology.method(findings))
    if trajectory.with_trajectory(findings):
        found.append(trajectory.method(findings))
    if eigenvalue_map.with_maps(findings):
        found.append(eigenvalue_map.method(findings))
    if connection.drawn_pairs(findings):
        found.append(connection.method(findings))
    if any(c.get("second_opinion") for c in checkpoints):
        found.append(_opinion(findings))
    if findings.runs:
        found += _training(findings)
    if _draws_edge(findings):
        found.append(_EDGE)
    if available.with_signal(findings):
        found.append(_SIGNAL)
    comparison = findings.document.get("comparison") or {}
    if comparison or (findings.document.get("training") or {}).get("comparison"):
        found.append(_comparison(findings))
    return found


def methods_html(findings: Findings) -> str:
    """The methods as a list of definitions, with numbered references below."""
    methods = methods_of(findings)
    sources = list(dict.fromkeys(source for method in methods for source in method.sources))
    parts = []
    for method in methods:
        marks = "".join(
            f'<a href="#reference-{sources.index(s) + 1}">[{sources.index(s) + 1}]</a>'
            for s in method.sources
        )
        formula = f'<p class="formula">{method.formula}</p>' if method.formula else ""
        parts.append(f"<dt>{method.title}</dt><dd>{formula}<p>{method.text} {marks}</p></dd>")
    listed = "".join(
        f'<li id="reference-{i}">{shown(REFERENCES.get(source, source), 400)}</li>'
        for i, source in enumerate(sources, start=1)
    )
    references = f"<h3>References</h3><ol class=references>{listed}</ol>" if sources else ""
    return f"<dl class=methods-list>{''.join(parts)}</dl>{references}"


def _settings(findings: Findings) -> Mapping[str, Any]:
    return findings.document.get("settings") or {}


def _objective(findings: Findings) -> Method:
    data = findings.document.get("data") or {}
    parameters = spread(digits.count, (c.get("num_parameters") for c in findings.checkpoints))
    dtypes = sorted({str((c.get("provenance") or {}).get("dtype")) for c in findings.checkpoints})
    terms = data.get("num_terms") or data.get("num_samples")
    text = f"θ holds {parameters} parameters, evaluated in {escaped(', '.join(dtypes))}."
    if terms:
        text = f"N = {digits.count(terms)} loss terms, each weighing the same. " + text
    if _settings(findings).get("batch_norm"):
        text += f" Batch norm: {shown(_settings(findings)['batch_norm'])}."
    text += " Weight decay is not part of L."
    return Method("Loss", "L(θ) = (1/N) Σ<sub>i</sub> ℓ<sub>i</sub>(θ)", text)


_MATRICES = {
    "ggn": Method(
        "Gauss–Newton matrix",
        "G = (1/N) Σ<sub>i</sub> J<sub>i</sub>ᵀ (∂²ℓ<sub>i</sub>/∂f²) J<sub>i</sub>",
        "The Hessian of the loss with the model replaced by its linearisation; its spectrum stands "
        "in place of the Hessian’s.",
        ("schraudolph2002", "martens2020"),
    ),
    "remainder": Method(
        "Remainder",
        "R = H − G = (1/N) Σ<sub>i</sub> Σ<sub>c</sub> (∂ℓ<sub>i</sub>/∂f<sub>c</sub>) "
        "∇²f<sub>ic</sub>",
        "The model’s own curvature weighted by the slopes of the loss, formed on its own; its "
        "spectrum stands in place of the Hessian’s.",
        ("schraudolph2002",),
    ),
    "fisher": Method(
        "Empirical Fisher matrix",
        "F = (1/N) Σ<sub>i</sub> g<sub>i</sub>g<sub>i</sub>ᵀ, g<sub>i</sub> = ∇ℓ<sub>i</sub>",
        "From each sample’s own gradient, at the labels of the data; the squared gradient of a "
        "batch is another matrix, and so is the Fisher matrix of the model. In loss squared per "
        "squared parameter.",
        ("kunstner2019",),
    ),
    "mc-fisher": Method(
        "Monte-Carlo Fisher matrix",
        "F = (1/N) Σ<sub>i</sub> g<sub>i</sub>g<sub>i</sub>ᵀ, g<sub>i</sub> = −∇ log "
        "p(y<sub>i</sub> | x<sub>i</sub>), y<sub>i</sub> ~ p(· | x<sub>i</sub>)",
        "Labels are drawn from the model, once, by the seed: products are those of one fixed "
        "matrix, whose expectation over the draws is the Gauss–Newton matrix.",
        ("martens2020", "kunstner2019"),
    ),
}


def _operator(findings: Findings) -> Method:
    text = (
        f"{self_check.sentence(findings)} u and v are random; tolerances go by the precision of "
        "the numbers."
    )
    return Method(
        "Self-check",
        "|uᵀ(Av) − vᵀ(Au)| / max(‖Au‖, ‖Av‖); ‖Av − Av‖ / ‖Av‖; ‖Hv − D‖ / ‖Hv‖, D a difference "
        "of gradients",
        text,
    )


def _eigenvalues(findings: Findings) -> Method:
    pairs = [pair for c in findings.checkpoints for pair in c.get("eigenvalues") or []]
    confirmed = sum(bool(pair.get("confirmed")) for pair in pairs)
    settings = _settings(findings)
    tolerance, seed = settings.get("tolerance"), settings.get("seed")
    text = (
        f"Lanczos on the {captions.matrix(findings)}, known by its products with vectors alone, "
        "with full reorthogonalisation. The residual certifies that an eigenvalue lies within it "
        "of λ; “confirmed” means that a search in the complement found none that was skipped "
        f"({confirmed} of {len(pairs)} here)."
    )
    if tolerance is not None:
        text += f" Relative tolerance {digits.number(tolerance, 2)}."
    if seed is not None:
        text += f" Seed {escaped(seed)}."
    text += " Kinks of ReLU and max-pooling are not seen by a second derivative."
    letter = measures.matrix_letter(findings)
    return Method("Eigenvalues", f"residual = ‖{letter}v − λv‖", text, ("parlett1998",))


def _trace(findings: Findings) -> Method:
    entries = [c["trace"] for c in findings.checkpoints if c.get("trace")]
    products = spread(digits.count, (entry.get("num_matvecs") for entry in entries))
    seed, letter = _settings(findings).get("seed"), measures.matrix_letter(findings)
    chosen = {str(entry.get("method") or "hutchinson") for entry in entries}
    how = [_TRACES[name] for name in _TRACES if name in chosen] or [_TRACES["hutchinson"]]
    formula = "; ".join(formula for formula, _, _ in how).replace("A", letter)
    text = (
        f"{' '.join(words for _, words, _ in how)} {products} products a checkpoint. ± is one "
        "standard error over the probes."
    )
    if seed is not None:
        text += f" Seed {escaped(seed)}."
    return Method("Trace", formula, text, tuple(source for _, _, source in how))


# Formula, words and source of each way to a trace; A stands for the matrix.
_TRACES = {
    "hutchinson": (
        "tr A ≈ (1/m) Σ<sub>i</sub> v<sub>i</sub>ᵀ A v<sub>i</sub>, v<sub>i</sub> ∈ {±1}ᴾ",
        "Hutchinson’s estimate with Rademacher probes, the known top eigenpairs as a control "
        "variate.",
        "hutchinson1990",
    ),
    "hutchpp": (
        "tr A ≈ tr(QᵀAQ) + (1/m) Σ<sub>i</sub> v<sub>i</sub>ᵀ(I − QQᵀ) A (I − QQᵀ)v<sub>i</sub>, "
        "Q = orth(AS)",
        "Hutch++: exact on the range of a random sketch, for which two thirds of the products go, "
        "and random probes on the rest.",
        "meyer2021",
    ),
    "xtrace": (
        "tr A ≈ (1/k) Σ<sub>i</sub> [tr(Q<sub>i</sub>ᵀAQ<sub>i</sub>) + c<sub>i</sub> "
        "v<sub>i</sub>ᵀAv<sub>i</sub>], Q<sub>i</sub> = orth(AW without w<sub>i</sub>)",
        "XTrace: each of k random vectors is both sketch and probe; the error takes in that the "
        "summands share their sketches.",
        "epperly2024",
    ),
}


def _density(findings: Findings) -> Method:
    entries = [c["density"] for c in findings.checkpoints if c.get("density")]
    runs = spread(digits.count, (entry.get("num_runs") for entry in entries))
    steps = spread(digits.count, (entry.get("num_steps") for entry in entries))
    width = spread(lambda v: digits.number(v, 2), (e.get("kernel_width") for e in entries))
    mass = spread(lambda v: digits.number(v, 4), (e.get("mass") for e in entries))
    has_band = any(name.endswith("_lower") for name in findings.arrays)
    band = (
        "The band is the 95 % t interval of the mean over runs."
        if has_band
        else ("Without a band, for which the runs are too few.")
    )
    text = (
        f"Stochastic Lanczos quadrature: {runs} runs of {steps} steps, Gaussian kernel of width "
        f"{width}. {band} The drawn density integrates to {mass}."
    )
    return Method(
        "Spectral density",
        "φ(λ) = (1/P) Σ<sub>j</sub> δ(λ − λ<sub>j</sub>), smoothed by a kernel of width σ",
        text,
        ("ubaru2017", "ghorbani2019"),
    )


def _sharpness(findings: Findings, name: str) -> Method:
    entries = [
        entry for c in findings.checkpoints if (entry := (c.get("sharpness") or {}).get(name))
    ]
    formula, text, sources = FORMULAS.get(name.split(":")[0], ("", "", ()))
    kinds = sorted({str(entry.get("kind")) for entry in entries if entry.get("kind")})
    words = [text, f"Kind: {escaped(', '.join(kinds))}." if kinds else ""]
    words.append(_details(entries[0]))
    words.append(_cost([entry.get("cost") or {} for entry in entries]))
    return Method(
        symbol(measures.named(findings, name).title),
        formula,
        " ".join(filter(None, words)),
        sources,
    )


# Details that say how a number was found; the rest stays in the data.
_DETAILS = {
    "norm": "norm",
    "num_steps": "steps of each search",
    "num_iterations": "iterations of each search",
    "num_restarts": "random starts",
    "num_runs": "runs",
    "num_lanczos_steps": "Lanczos steps",
    "eta": "η",
    "epsilon": "e",
    "m": "m",
    "num_groups": "groups measured",
    "num_draws": "draws",
    "rise": "rise",
    "noise": "noise",
    "num_samples": "samples",
}


def _details(entry: Mapping[str, Any]) -> str:
    words = [
        f"{label}: {shown(entry[key], 48)}"
        for key, label in _DETAILS.items()
        if entry.get(key) is not None
    ]
    sentence = "; ".join(words)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def _cost(costs: list[Mapping[str, Any]]) -> str:
    parts = []
    for key, word in (
        ("products", "product"),
        ("gradients", "gradient"),
        ("forwards", "forward pass"),
    ):
        known = [cost.get(key) or 0 for cost in costs]
        if any(known):
            plural = "" if max(known) == 1 else "es" if word.endswith("s") else "s"
            parts.append(f"{spread(digits.count, known)} {word}{plural}")
    return f"Cost a checkpoint: {', '.join(parts)} over the probe data." if parts else ""


def _surface(findings: Findings) -> Method:
    entries = [c["surface"] for c in findings.checkpoints if c.get("surface")]
    text = "The same seeds give every checkpoint its directions; all share axes. "
    kind = _settings(findings).get("directions")
    if kind in ("pca", "checkpoints") or not planes.shares_axes(findings):
        text = "A plane is laid through points of its own, and its window shows them. "
    if kind:
        text += f"Directions: {shown(kind)}. "
    if entries:
        angle = spread(lambda v: digits.number(v, 4), (e.get("angle_degrees") for e in entries))
        text += f"The two are {angle}° apart. "
        if all(entry.get("exact") for entry in entries):
            text += "Every point is evaluated."
        else:
            held = spread(
                digits.count,
                ((e.get("interpolation_error") or {}).get("num_held_out") for e in entries),
            )
            text += (
                "Points between evaluated ones are a bicubic spline’s; its error is the largest "
                f"over {held} held-out points, and three times that is the working maximum."
            )
    return Method("Slices and surfaces", "L(θ + a d₁ + b d₂), z[b, a]", text, ("li2018",))


def _opinion(findings: Findings) -> Method:
    opinion = next(c["second_opinion"] for c in findings.checkpoints if c.get("second_opinion"))
    text = (
        f"{shown(opinion.get('source') or 'another package')} was given the model, the loss and "
        "the data, not our operator, and computed eigenvalues by power iteration and the trace by "
        "its own probes."
    )
    return Method("Second opinion", "", text, ("yao2020",))


def _training(findings: Findings) -> list[Method]:
    found = [
        Method(
            "Training",
            "",
            f"{len(findings.runs)} runs. Gradients and forward passes are counted in passes over "
            "one batch; the perturbed share is the part of the steps so far that took the "
            "perturbed gradient. The curve of the training loss is the mean over an epoch’s "
            "batches, each at the weights of its step; the table’s is that of the last weights on "
            "all training data. Test data choose nothing.",
        )
    ]
    papers = _papers(findings)
    if papers:
        listed = "; ".join(
            f"{', '.join(shown(v, 28) for v in variants)} after {shown(paper, 160)}"
            for paper, variants in papers.items()
        )
        sources = tuple(dict.fromkeys(_source_of(paper) for paper in papers))
        found.append(Method("Rules trained", "", f"{listed}.", sources))
    return found


def _papers(findings: Findings) -> dict[str, list[str]]:
    """The variants that were trained, by the paper that each one's rule is from."""
    known = (findings.document.get("training") or {}).get("papers") or {}
    papers: dict[str, list[str]] = {}
    for variant, paper in known.items():
        if paper:
            papers.setdefault(clean(paper), []).append(str(variant))
    return papers


def _source_of(paper: str) -> str:
    """The key of a paper that the references know already; else the paper as it was given.

    Known by author and year, and by its arXiv number where it has one.
    """
    match = re.match(r"(\w+)\b.*?\b(\d{4})\b", paper)
    key = f"{match[1].lower()}{match[2]}" if match else ""
    numbers = re.findall(r"\d{4}\.\d{5}", paper)
    is_known = key in REFERENCES and all(number in REFERENCES[key] for number in numbers)
    return key if is_known else paper


def _draws_edge(findings: Findings) -> bool:
    """Whether a line of the edge of stability stands in some figure."""
    in_training = "curvature" in curves.drawable(findings) and available.has_history(
        findings, "edge"
    )
    return in_training or dynamics.has_edge(findings)


_EDGE = Method(
    "Edge of stability",
    "λ = 2/lr; with SAM: λ = (‖g‖/2ρ)(√(1 + 8ρ/(lr ‖g‖)) − 1)",
    "Where gradient descent on a quadratic stops converging, corrected for momentum and weight "
    "decay. The SAM line holds for plain full-batch descent alone and is called heuristic "
    "elsewhere.",
    ("cohen2021", "long2024"),
)
_SIGNAL = Method(
    "Switching signal",
    "perturb while signal ≥ μ + c σ",
    "μ and σ² are running averages of the signal, c moves over training.",
    ("jiang2023",),
)


def _comparison(findings: Findings) -> Method:
    comparison = findings.document.get("comparison") or {}
    text = (
        "Intervals are 95 % Student-t intervals of the mean over seeds; paired differences are "
        "taken over equal seeds, so what a seed adds to both drops out. No correction for the "
        "number of measures compared."
    )
    sources: tuple[str, ...] = ()
    if comparison.get("correlation"):
        text += (
            f" The generalisation gap is {captions.gap_words(findings)}."
            " Kendall’s τ counts concordant minus discordant pairs of checkpoints; checkpoints "
            "of one method are no independent draws"
        )
        resampled = any(entry.get("interval") for entry in correlation.entries(findings))
        text += (
            ", so its 95 % interval is from resampling whole cells of a method with its options, "
            "and τ within methods counts pairs of one cell alone."
            if resampled
            else "."
        )
        sources = ("jiang2020",)
    return Method("Comparison", "", text, sources)
