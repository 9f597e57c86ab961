"""Method and its sources: one quantity of the methods section, and what it can cite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from landscape.report import digits


@dataclass(frozen=True)
class Method:
    """One quantity: its name and formula in HTML, what was run, and its sources.

    A source is a key of `REFERENCES`, or what to print in the list, where there is no such key.
    """

    title: str
    formula: str
    text: str
    sources: tuple[str, ...] = field(default=())


def spread(show: Callable[[float], str], values: Iterable[float | None]) -> str:
    """One number, or "low to high" where checkpoints differ."""
    known = [value for value in values if value is not None]
    if not known:
        return digits.MISSING
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low} to {high}"


REFERENCES = {
    "ainsworth2023": "Ainsworth, Hayase, Srinivasa. Git Re-Basin: merging models modulo "
    "permutation symmetries. ICLR 2023, arXiv:2209.04836.",
    "andriushchenko2023": "Andriushchenko, Croce, Müller, Hein, Flammarion. A modern look at the "
    "relationship between sharpness and generalization. ICML 2023.",
    "antognini2018": "Antognini, Sohl-Dickstein. PCA of high dimensional random walks with "
    "comparison to neural network training. NeurIPS 2018.",
    "bekas2007": "Bekas, Kokiopoulou, Saad. An estimator for the diagonal of a matrix. Applied "
    "Numerical Mathematics 57, 2007.",
    "cochran1977": "Cochran. Sampling techniques. Third edition, Wiley, 1977.",
    "cohen2021": "Cohen, Kaur, Li, Kolter, Talwalkar. Gradient descent on neural networks "
    "typically occurs at the edge of stability. ICLR 2021.",
    "cohensteiner2007": "Cohen-Steiner, Edelsbrunner, Harer. Stability of persistence diagrams. "
    "Discrete & Computational Geometry 37, 2007.",
    "croce2020": "Croce, Hein. Reliable evaluation of adversarial robustness with an ensemble of "
    "diverse parameter-free attacks (APGD). ICML 2020.",
    "edelsbrunner2010": "Edelsbrunner, Harer. Computational topology: an introduction. American "
    "Mathematical Society, 2010.",
    "entezari2022": "Entezari, Sedghi, Saukh, Neyshabur. The role of permutation invariance in "
    "linear mode connectivity of neural networks. ICLR 2022.",
    "epperly2024": "Epperly, Tropp, Webber. XTrace: making the most of every sample in stochastic "
    "trace estimation. SIAM J. Matrix Anal. Appl. 45, 2024.",
    "foret2021": "Foret, Kleiner, Mobahi, Neyshabur. Sharpness-aware minimization for efficiently "
    "improving generalization. ICLR 2021, arXiv:2010.01412.",
    "frankle2020": "Frankle, Dziugaite, Roy, Carbin. Linear mode connectivity and the lottery "
    "ticket hypothesis. ICML 2020.",
    "garipov2018": "Garipov, Izmailov, Podoprikhin, Vetrov, Wilson. Loss surfaces, mode "
    "connectivity, and fast ensembling of DNNs. NeurIPS 2018.",
    "ghorbani2019": "Ghorbani, Krishnan, Xiao. An investigation into neural net optimization via "
    "Hessian eigenvalue density. ICML 2019.",
    "hutchinson1990": "Hutchinson. A stochastic estimator of the trace of the influence matrix. "
    "Communications in Statistics 19, 1990.",
    "jiang2020": "Jiang, Neyshabur, Mobahi, Krishnan, Bengio. Fantastic generalization measures "
    "and where to find them. ICLR 2020.",
    "jiang2023": "Jiang, Yang, Zhang, Kwok. An adaptive policy to employ sharpness-aware "
    "minimization. ICLR 2023, arXiv:2304.14647.",
    "keskar2017": "Keskar, Mudigere, Nocedal, Smelyanskiy, Tang. On large-batch training for deep "
    "learning: generalization gap and sharp minima. ICLR 2017.",
    "kunstner2019": "Kunstner, Hennig, Balles. Limitations of the empirical Fisher approximation "
    "for natural gradient descent. NeurIPS 2019.",
    "kwon2021": "Kwon, Kim, Park, Choi. ASAM: adaptive sharpness-aware minimization for "
    "scale-invariant learning of deep neural networks. ICML 2021, arXiv:2102.11600.",
    "li2018": "Li, Xu, Taylor, Studer, Goldstein. Visualizing the loss landscape of neural nets. "
    "NeurIPS 2018.",
    "liang2019": "Liang, Poggio, Rakhlin, Stokes. Fisher-Rao metric, geometry, and complexity of "
    "neural networks. AISTATS 2019.",
    "long2024": "Long, Bartlett. Sharpness-aware minimization and the edge of stability. "
    "arXiv:2309.12488.",
    "martens2020": "Martens. New insights and perspectives on the natural gradient method. "
    "Journal of Machine Learning Research 21, 2020.",
    "mccandlish2018": "McCandlish, Kaplan, Amodei, OpenAI Dota Team. An empirical model of "
    "large-batch training. arXiv:1812.06162.",
    "meyer2021": "Meyer, Musco, Musco, Woodruff. Hutch++: optimal stochastic trace estimation. "
    "SIAM Symposium on Simplicity in Algorithms, 2021.",
    "parlett1998": "Parlett. The symmetric eigenvalue problem. SIAM, 1998.",
    "petzka2021": "Petzka, Kamp, Adilova, Sminchisescu, Boley. Relative flatness and "
    "generalization. NeurIPS 2021.",
    "schraudolph2002": "Schraudolph. Fast curvature matrix-vector products for second-order "
    "gradient descent. Neural Computation 14, 2002.",
    "ubaru2017": "Ubaru, Chen, Saad. Fast estimation of tr(f(A)) via stochastic Lanczos "
    "quadrature. SIAM J. Matrix Anal. Appl. 38, 2017.",
    "wen2023": "Wen, Ma, Li. How does sharpness-aware minimization minimize sharpness? ICLR 2023.",
    "yao2020": "Yao, Gholami, Keutzer, Mahoney. PyHessian: neural networks through the lens of "
    "the Hessian. IEEE Big Data 2020.",
}
