"""A LightningModule trained by any rule: manual optimization around the rule's passes.

python examples/lightning_module.py f-sam:when=ae         # needs the extra: lightning
python examples/lightning_module.py f-sam:when=ae --resume lightning/epoch=1.ckpt
"""

import argparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sam_variants import build, parse
from sam_variants.tasks import build_model, build_task
from sam_variants.training import Recipe, evaluating, wrong_class_divergence


class Classifier(pl.LightningModule):
    def __init__(self, model: nn.Module, variant: str) -> None:
        super().__init__()
        self.automatic_optimization = False  # the rule says how often the loss is evaluated
        self.model, self.variant = model, variant

    def configure_optimizers(self):
        base = Recipe(lr=0.1, weight_decay=0.0).base(parse(self.variant))  # SGD, or the rule's own
        end = self.trainer.estimated_stepping_batches
        optimizer = build(self.variant, base.build(self.model.named_parameters()), total_steps=end)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, end)]

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        wrapper = self.optimizers()  # Lightning's: it counts the step, for max_steps and callbacks
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of precision="16-mixed"
        scale = None if scaler is None else scaler.get_scale()
        for request in wrapper.optimizer.passes(num_rows=len(inputs), scale=scale):
            x, y = inputs[request.rows], targets[request.rows]
            criterion = wrong_class_divergence if request.ascent else nn.functional.cross_entropy
            with evaluating(self.model, request):
                losses = criterion(self.model(x), y, reduction="none")
                if request.gradient:
                    self.manual_backward(losses.mean())
            request.loss = losses.detach() if request.per_sample else losses.detach().mean()
        wrapper.step()
        self.lr_schedulers().step()

    def on_before_optimizer_step(self, optimizer):
        self.clip_gradients(optimizer, 5.0, "norm")  # once, on the gradient that descends

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("accuracy", (self.model(inputs).argmax(1) == targets).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", nargs="?", default="ae-sam:rho=0.1")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", help="a checkpoint of the same training")
    options = parser.parse_args()

    task = build_task("mnist1d")
    data = TensorDataset(task.train.inputs, task.train.targets)
    order = DistributedSampler(data, num_replicas=1, rank=0)  # a function of the epoch: resumes
    module = Classifier(build_model("cnn1d", task, seed=0), options.variant)
    trainer = pl.Trainer(
        callbacks=[ModelCheckpoint("lightning", "{epoch}", save_top_k=-1)], logger=False,
        max_epochs=options.epochs, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    train = DataLoader(data, batch_size=100, sampler=order)
    test = DataLoader(task.test.batches(1000), batch_size=None)
    trainer.fit(module, train, test, ckpt_path=options.resume, weights_only=True)
    accuracy, counts = trainer.callback_metrics["accuracy"], module.optimizers().counts
    print(f"test accuracy {accuracy:.1%}, {counts.total:.0f} gradients")
    print(f"{counts.perturbed} of {trainer.global_step} steps perturbed")


if __name__ == "__main__":
    main()
