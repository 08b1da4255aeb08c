"""The CIFAR ResNets of the distillation literature: resnet8 to resnet110, resnet8x4, resnet32x4.

Deep Residual Learning (CVPR 2016), section 4.2, with projection shortcuts and, for the x4 networks, a stem of 32 and
stages of 64, 128, 256 channels, as CRD (ICLR 2020) and its successors use them.
"""

from functools import partial

from torch import Tensor, nn

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for images of about 32x32: three stages of (depth - 2) / 6 basic blocks.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three stages.
        num_classes: size of the output.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *stages = widths
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(True),
        ]
        channels = stem
        for stage, width in enumerate(stages):
            for block in range(blocks):
                layers.append(_BasicBlock(channels, width, stride=2 if stage and not block else 1))
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


resnet8 = partial(CifarResNet, 8, _NARROW)
resnet14 = partial(CifarResNet, 14, _NARROW)
resnet20 = partial(CifarResNet, 20, _NARROW)
resnet32 = partial(CifarResNet, 32, _NARROW)
resnet44 = partial(CifarResNet, 44, _NARROW)
resnet56 = partial(CifarResNet, 56, _NARROW)
resnet110 = partial(CifarResNet, 110, _NARROW)
resnet8x4 = partial(CifarResNet, 8, _WIDE)
resnet32x4 = partial(CifarResNet, 32, _WIDE)
