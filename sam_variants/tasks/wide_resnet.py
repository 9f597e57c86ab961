"""wrn-16-4 and wrn-28-10: wide residual networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .resnet import start_convolutions
from .shapes import image_shape
from .task import Task


class PreactivatedBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); where the shape changes, a 1 x 1 convolution of
    relu(bn(x)) takes the place of x."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.projection = (
            None
            if num_inputs == num_outputs and stride == 1
            else nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        residual = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return shortcut + residual  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Stem 3 x 3 of 16 channels, three stages 16k, 32k, 64k wide, bn, relu, mean, linear.

    (n, c, H, W) -> logits (n, C). Convolutions start as N(0, 2 / fan_out).
    """

    def __init__(self, num_colours: int, num_classes: int, *, depth: int, widen: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(num_colours, 16, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        num_inputs = 16
        for stage in range(3):
            width = 16 * widen * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(PreactivatedBlock(num_inputs, width, stride))
                num_inputs = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(num_inputs)
        self.head = nn.Linear(num_inputs, num_classes)
        start_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def wide_resnet(task: Task, *, depth: int, widen: int) -> nn.Module:
    """WRN-`depth`-`widen`, depth = 6 n + 4, without dropout.

    Parameters on CIFAR-10: WRN-16-4 2,748,890, WRN-28-10 36,479,194.

    Source: S. Zagoruyko and N. Komodakis, "Wide Residual Networks" (2016), table 1.
    """
    num_colours, _, _ = image_shape(task, f"wrn-{depth}-{widen}")
    return WideResNet(num_colours, task.num_classes, depth=depth, widen=widen)
