"""A plain training loop with AE-SAM around your own optimizer, scheduler and clipping included.

python examples/train_your_model.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from sam_variants import AESAM
from sam_variants.training import evaluating


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    digits = load_digits()
    inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 10))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = AESAM(base, rho=0.05, total_steps=options.steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)

    for _ in range(options.steps):
        rows = torch.randint(len(targets), (128,))
        x, y = inputs[rows], targets[rows]
        for request in optimizer.passes(num_rows=len(x)):
            with evaluating(model, request):  # running statistics move in the first pass alone
                loss = nn.functional.cross_entropy(model(x[request.rows]), y[request.rows])
                if request.gradient:
                    loss.backward()
            request.loss = loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # once, on the gradient that descends
        optimizer.step()
        schedule.step()

    model.eval()
    with torch.no_grad():
        accuracy = (model(inputs).argmax(1) == targets).double().mean()
    counts = optimizer.counts
    share = counts.perturbed / counts.steps
    print(f"training accuracy {accuracy:.1%}, {share:.0%} of {counts.steps} steps perturbed")


if __name__ == "__main__":
    main()
