"""How flat is the minimum of your own model? One call measures it, one writes the report.

python examples/probe_your_model.py --out my-probe
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape import ProbePlan, probe, save_findings
from landscape.report import write_report
from landscape.report.terminal import terminal_table


def trained_model(inputs: torch.Tensor, targets: torch.Tensor, steps: int) -> nn.Module:
    """Any model will do; this one is a small net, trained by plain SGD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="my-probe")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    digits = load_digits()
    inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    model = trained_model(inputs, targets, options.steps)

    batches = list(zip(inputs.split(600), targets.split(600), strict=True))
    findings = probe(
        model,
        nn.functional.cross_entropy,
        batches,
        plan=ProbePlan.quick_look(ends="both", second_opinion=True),
        label="digits net",
    )
    save_findings(findings, options.out, overwrite=True)
    print(terminal_table(findings))
    print(write_report(findings, f"{options.out}/report.html"))


if __name__ == "__main__":
    main()
