"""A loop that owns its precision, micro-batches, loss scale and clipping: it runs the passes.

python examples/amp_accumulation.py asam:rho=0.5:when=every-2
"""

import argparse

import torch
from torch import nn

from sam_variants import build, parse
from sam_variants.tasks import build_model, build_task
from sam_variants.training import Recipe, evaluating, wrong_class_divergence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", nargs="?", default="ae-sam:rho=0.1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--float32", action="store_true", help="no autocast, no loss scale")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    mixed = not options.float32
    task = build_task("mnist1d")
    inputs, targets = task.train.inputs.to(device), task.train.targets.to(device)
    model = build_model("cnn1d", task, seed=0).to(device)  # its weights stay float32
    base = Recipe(lr=0.1, weight_decay=0.0).base(parse(options.variant))  # SGD, or the rule's own
    base = base.build(model.named_parameters())
    optimizer = build(options.variant, base, total_steps=options.steps)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, options.steps // 3), gamma=0.3)
    # bfloat16 has float32's range and needs no scale, but one does no harm: a power of two.
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)

    torch.manual_seed(0)
    while optimizer.counts.steps < options.steps:
        batch = torch.randint(len(targets), (128,), device=device)
        scale = scaler.get_scale() if mixed else None
        for request in optimizer.passes(num_rows=len(batch), scale=scale):
            rows = batch[request.rows]  # a rule may ask for some of the batch's rows
            criterion = wrong_class_divergence if request.ascent else nn.functional.cross_entropy
            losses = []
            with evaluating(model, request):
                for part in rows.split(options.micro_batch):
                    with torch.autocast(device.type, dtype, enabled=mixed):
                        outputs = model(inputs[part])
                        loss = criterion(outputs, targets[part], reduction="none")
                    if request.gradient:
                        # Sums over all rows, so that unequal parts weigh what they should.
                        scaler.scale(loss.sum() / len(rows)).backward()
                    losses.append(loss.detach())
            request.loss = torch.cat(losses) if request.per_sample else torch.cat(losses).mean()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # once, on the gradient that descends
        steps = optimizer.counts.steps
        scaler.step(optimizer)
        scaler.update()
        if optimizer.counts.steps > steps:  # a step that the scaler skipped is none
            schedule.step()

    model.eval()
    with torch.no_grad():
        outputs = model(task.test.inputs.to(device))
    accuracy = (outputs.argmax(1).cpu() == task.test.targets).double().mean()
    norm = sum(float(p.detach().double().square().sum()) for p in model.parameters()) ** 0.5
    counts = optimizer.counts
    print(f"test accuracy {accuracy:.1%}, |w| {norm:.9f}, lr {schedule.get_last_lr()[0]:.4f}")
    print(f"{counts.perturbed} of {counts.steps} steps perturbed, {counts.skipped} skipped")


if __name__ == "__main__":
    main()
