"""The SlowOnly ResNet-50, with the tensor names of mmaction2 0.x.

Source: Feichtenhofer et al., SlowFast networks, ICCV 2019 (its slow pathway alone), in the layout
of `mmaction/models/backbones/resnet3d.py` at branch 0.x. Time is never strided: a clip of L fields
stays L long. The first two stages are two-dimensional, the last two open each block with a
convolution over three steps. There is no pooling after the first stage.
"""

from collections.abc import Sequence

from torch import Tensor, nn

EXPANSION = 4


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm."""

    def __init__(  # noqa: D107
        self, channels: int, width: int, kernel: tuple[int, int, int], stride: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(channels, width, kernel, (1, stride, stride), padding, bias=False)
        self.bn = nn.BatchNorm3d(width)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, H, W) → (B, width, L, H / stride, W / stride)."""
        normed: Tensor = self.bn(self.conv(x))
        return normed


class Bottleneck(nn.Module):
    """Narrow, convolve, widen, and add the input; `temporal` kernel steps in the first of them."""

    def __init__(  # noqa: D107
        self, channels: int, width: int, temporal: int, stride: int, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, width, (temporal, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride)
        self.conv3 = ConvNorm(width, width * EXPANSION, (1, 1, 1))
        self.downsample = (
            ConvNorm(channels, width * EXPANSION, (1, 1, 1), stride) if project else None
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, H, W) → (B, 4 * width, L, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = self.conv3(x)
        summed: Tensor = self.relu(x + shortcut)
        return summed


class SlowOnlyNetwork(nn.Module):
    """ResNet over clips of optical flow; with the defaults, SlowOnly-R50.

    Args:
        width: Channels of the first stage's bottleneck; the output has 32 times as many.
        depths: Blocks of each stage.
        in_channels: 2 for flow, x then y.
    """

    def __init__(  # noqa: D107
        self, width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), in_channels: int = 2
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, (1, 7, 7), 2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.stages = len(depths)
        channels = width
        for stage, depth in enumerate(depths):
            narrow, temporal = width * 2**stage, 3 if stage >= 2 else 1
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(Bottleneck(channels, narrow, temporal, stride, project=i == 0))
                channels = narrow * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Mean over time and space of the last stage.

        Args:
            x: Flow, (B, 2, L, H, W), scaled to [-1, 1).

        Returns:
            (B, D).
        """
        x = self.maxpool(self.relu(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3, 4))
