"""resnet8, resnet20 and resnet18: residual networks in their CIFAR forms."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from .shapes import image_shape
from .task import Task


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), convolutions 3 x 3."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(residual + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels on both sides: option A, no parameters."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = num_outputs - num_inputs
        self.padding = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, *self.padding))


def projected_shortcut(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    """A strided 1 x 1 convolution with batch norm: option B."""
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), nn.BatchNorm2d(num_outputs)
    )


class ResNet(nn.Module):
    """Stem 3 x 3, stages of basic blocks (each after the first halves the image), mean, linear.

    (n, c, H, W) -> logits (n, C). Convolutions start as N(0, 2 / fan_out), batch norm as 1 and 0
    (He et al. 2015).
    """

    def __init__(
        self,
        num_colours: int,
        num_classes: int,
        *,
        widths: tuple[int, ...],
        blocks: int,
        shortcut: Callable[[int, int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(num_colours, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        num_inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                same = stride == 1 and num_inputs == width
                path = nn.Identity() if same else shortcut(num_inputs, width, stride)
                stages.append(BasicBlock(num_inputs, width, stride, path))
                num_inputs = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(num_inputs, num_classes)
        start_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def start_convolutions(model: nn.Module) -> None:
    """Draws every convolution of the model from N(0, 2 / fan_out) (He et al. 2015, eq. 14)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def cifar_resnet(task: Task, *, depth: int, width: int = 16) -> nn.Module:
    """ResNet-`depth` of the CIFAR form, depth = 6 n + 2: widths 16, 32, 64, n blocks each.

    Shortcuts of option A. Parameters on CIFAR-10: ResNet-8 75,290, ResNet-20 269,722 (0.27
    million in the paper's table 6).

    Source: K. He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.
    """
    num_colours, _, _ = image_shape(task, f"resnet{depth}")
    return ResNet(
        num_colours,
        task.num_classes,
        widths=(width, 2 * width, 4 * width),
        blocks=(depth - 2) // 6,
        shortcut=PaddedShortcut,
    )


def resnet18(task: Task) -> nn.Module:
    """ResNet-18 whose stem is one 3 x 3 convolution: widths 64 to 512, two blocks each.

    Shortcuts of option B. 11,173,962 parameters on CIFAR-10. The stem without stride and pooling
    is what papers on CIFAR mean by ResNet-18.

    Source: K. He et al., "Deep Residual Learning for Image Recognition" (2015), table 1.
    """
    num_colours, _, _ = image_shape(task, "resnet18")
    return ResNet(
        num_colours,
        task.num_classes,
        widths=(64, 128, 256, 512),
        blocks=2,
        shortcut=projected_shortcut,
    )
