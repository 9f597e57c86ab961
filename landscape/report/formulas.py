"""The formula, the words and the sources of each sharpness measure, for the methods section."""

from __future__ import annotations

FORMULAS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "gradient-norm": ("‖g‖, g = ∇L(θ)", "Not small means that θ is not a minimum.", ()),
    "sam": (
        "L(θ + ρ g/‖g‖) − L(θ)",
        "The rise of the loss after one SAM step.",
        ("foret2021",),
    ),
    "worst-case": (
        "max<sub>‖ε‖ ≤ ρ</sub> L(θ + ε) − L(θ)",
        "Projected ascent from the gradient, from ± the top eigenvector and from random points; "
        "the best found is a lower bound of the maximum.",
        ("keskar2017", "foret2021", "croce2020"),
    ),
    "min-sharpness": (
        "L(θ) − min<sub>‖ε‖ ≤ ρ</sub> L(θ + ε)",
        "The same search downhill: a lower bound.",
        (),
    ),
    "average-case": (
        "E<sub>z</sub> L(θ + ρ z/√P) − L(θ), z ~ N(0, I)",
        "The factor 1/√P makes ρ the root mean square length of the noise.",
        (),
    ),
    "lambda-max": (
        "λ<sub>max</sub> = max<sub>‖v‖ = 1</sub> vᵀHv",
        "The curvature of the sharpest direction.",
        (),
    ),
    "trace": ("tr H = E vᵀHv, v ∈ {±1}ᴾ", "The sum of all curvatures.", ("hutchinson1990",)),
    "lambda-min": (
        "λ<sub>min</sub> = min<sub>‖v‖ = 1</sub> vᵀHv",
        "Below zero the loss falls to second order in some direction.",
        (),
    ),
    "spectral-norm": (
        "‖H‖ = max(|λ<sub>max</sub>|, |λ<sub>min</sub>|)",
        "The largest eigenvalue in magnitude.",
        (),
    ),
    "negative-mass": (
        "(1/P) #{i : λ<sub>i</sub> < −10⁻⁴ λ<sub>max</sub>}",
        "From the weights of the density’s quadrature, never by counting Ritz values.",
        ("ghorbani2019",),
    ),
    "bilateral": (
        "max<sub>‖ε‖ ≤ ρ</sub> L(θ + ε) − min<sub>‖ε‖ ≤ ρ</sub> L(θ + ε)",
        "Worst case and min-sharpness together: a lower bound.",
        (),
    ),
    "adaptive-worst-case": (
        "max<sub>‖T⁻¹ε‖ ≤ ρ</sub> L(θ + ε) − L(θ), T = diag(|θ| + η)",
        "The searches of the worst case in units of each parameter’s size: a lower bound. With "
        "η = 0, parameters at zero stay there, and rescaling the two sides of a ReLU changes "
        "nothing; any other η voids that.",
        ("kwon2021", "andriushchenko2023"),
    ),
    "adaptive-average-case": (
        "E<sub>z</sub> L(θ + ρ Tz/√P) − L(θ), z ~ N(0, I), T = diag(|θ| + η)",
        "P counts the parameters that can move. The factor 1/√P makes ρ the root mean square "
        "length of T⁻¹ε.",
        ("kwon2021", "andriushchenko2023"),
    ),
    "m-sharpness": (
        "Σ<sub>S</sub> N<sub>S</sub> max<sub>‖ε‖ ≤ ρ</sub> [L<sub>S</sub>(θ + ε) − "
        "L<sub>S</sub>(θ)] / Σ<sub>S</sub> N<sub>S</sub>",
        "S runs over groups of m samples in an order drawn from the seed, N<sub>S</sub> is a "
        "group’s number of loss terms; each group’s worst case is a lower bound. An error is given "
        "where only some groups were measured.",
        ("foret2021",),
    ),
    "epsilon-sharpness": (
        "100 · (max<sub>|ε<sub>i</sub>| ≤ e(|θ<sub>i</sub>| + 1)</sub> L(θ + ε) − L(θ)) / "
        "(1 + L(θ))",
        "In per cent, by L-BFGS-B from the corners of the box along the gradient, along ± the top "
        "eigenvector and from random ones: a lower bound. The paper’s protocol is 10 iterations.",
        ("keskar2017",),
    ),
    "fisher-rao": (
        "θᵀFθ = (1/N) Σ<sub>i</sub> (θᵀ∇ℓ<sub>i</sub>)²",
        "The slope of each sample’s own loss along θ (under fisher = model, θᵀGθ with the "
        "Gauss–Newton matrix G).",
        ("liang2019",),
    ),
    "pac-bayes": (
        "1/σ², the largest σ with E<sub>z</sub> err(θ + σz) − err(θ) ≤ rise",
        "err is the share of wrong predictions; the same draws z serve every σ.",
        ("jiang2020",),
    ),
    "pac-bayes-loss": (
        "1/σ², the largest σ with E<sub>z</sub> L(θ + σz) − L(θ) ≤ rise",
        "The same draws z serve every σ.",
        ("jiang2020",),
    ),
    "relative-flatness": (
        "Σ<sub>s,s′</sub> ⟨w<sub>s</sub>, w<sub>s′</sub>⟩ tr H<sub>s,s′</sub>",
        "The rows w<sub>s</sub> of the last linear layer, and the blocks of its Hessian.",
        ("petzka2021",),
    ),
    "sam-worst-predicted": (
        "ρ‖g‖ + ρ² λ<sub>max</sub>/2",
        "An upper bound of the quadratic model’s worst case; the loss itself may rise more.",
        ("wen2023",),
    ),
    "sam-ascent-predicted": (
        "ρ‖g‖ + ρ² uᵀHu/2, u = g/‖g‖",
        "The quadratic model after one SAM step.",
        ("wen2023",),
    ),
    "sam-average-predicted": (
        "ρ² tr H/(2P)",
        "The quadratic model’s average case.",
        ("wen2023",),
    ),
}
