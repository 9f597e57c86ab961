"""pyramidnet-110: a residual network that widens in every block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .resnet import start_convolutions
from .shapes import image_shape
from .task import Task


class PyramidBlock(nn.Module):
    """bn(conv(relu(bn(conv(bn(x)))))) + x, with x averaged down and padded with zero channels."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_outputs)
        self.stride = stride
        self.num_new = num_outputs - num_inputs

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.bn1(x))  # no relu before the first convolution (figure 6d)
        residual = self.bn3(self.conv2(functional.relu(self.bn2(residual))))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        shortcut = functional.pad(x, (0, 0, 0, 0, 0, self.num_new))
        return residual + shortcut  # type: ignore[no-any-return]


class PyramidNet(nn.Module):
    """Stem 3 x 3 of 16 channels with batch norm, 3 n blocks, bn, relu, mean, linear.

    Block k of 3 n is round(16 + k alpha / (3 n)) wide (additive pyramid, equation 3).
    (n, c, H, W) -> logits (n, C). Convolutions start as N(0, 2 / fan_out).
    """

    def __init__(self, num_colours: int, num_classes: int, *, depth: int, alpha: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(num_colours, 16, 3, padding=1, bias=False)
        self.bn_stem = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        num_inputs = 16
        for k in range(1, 3 * blocks + 1):
            width = round(16 + k * alpha / (3 * blocks))
            stride = 2 if k in (blocks + 1, 2 * blocks + 1) else 1
            stages.append(PyramidBlock(num_inputs, width, stride))
            num_inputs = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(num_inputs)
        self.head = nn.Linear(num_inputs, num_classes)
        start_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn_stem(self.stem(x)))
        return self.head(functional.relu(self.bn(x)).mean((2, 3)))  # type: ignore[no-any-return]


def pyramidnet(task: Task, *, depth: int, alpha: int = 270) -> nn.Module:
    """PyramidNet-110 of basic blocks, alpha 270, for CIFAR: 16 to 286 channels in 54 blocks.

    28.5 million parameters on CIFAR-10 (28.3 in the paper's table 4): the PyramidNet-110 of the
    AE-SAM tables. (PyramidNet-110 with alpha 48 or 84 is another net of that paper.)

    Source: D. Han, J. Kim and J. Kim, "Deep Pyramidal Residual Networks" (2016).
    """
    num_colours, _, _ = image_shape(task, f"pyramidnet-{depth}")
    return PyramidNet(num_colours, task.num_classes, depth=depth, alpha=alpha)
