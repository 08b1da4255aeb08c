"""`seg-s`: a plain dense network for small images of scenes, with an auxiliary output."""

from typing import ClassVar

from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import initialise


def _block(channels_in: int, channels_out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class SegS(nn.Module):
    """Three convolutions of stride 2, four dilated ones at stride 8, a linear classifier a cell.

    Args:
        num_classes: C.
    """

    outputs: ClassVar[tuple[str, ...]] = ("main", "aux")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_block(3, 16, stride=2), _block(16, 24, stride=2), _block(24, 32, stride=2))
        # Dilations whose sum sees 31 cells, 248 pixels: roads and skies are told apart by what lies far around.
        self.context = nn.Sequential(
            _block(32, 32), _block(32, 32, dilation=2), _block(32, 32, dilation=4), _block(32, 32, dilation=8)
        )
        self.main = nn.Conv2d(32, num_classes, 1)
        self.aux = nn.Conv2d(32, num_classes, 1)
        initialise(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [batch, class, height / 8, width / 8], rounded up, of float images [batch, 3, height, width]."""
        features = self.trunk(images)
        return {"main": self.main(self.context(features)), "aux": self.aux(features)}


seg_s = SegS
