"""The last feature maps of an image model of timm, before its head pools them."""

from torch import Tensor, nn

from micu.base.errors import ConfigError


class FeatureMaps(nn.Module):
    """An image model without its head.

    Args:
        network: Any image model of timm.
    """

    def __init__(self, network: nn.Module) -> None:  # noqa: D107
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """From (B, 3, H, W) to what the model's head takes, in the model's own layout."""
        maps: Tensor = self.network.forward_features(x)  # type: ignore[operator]
        return maps

    def find_channels(self, name: str, maps: Tensor) -> int:
        """Axis of the channels in the output: 1 or 3.

        Args:
            name: Of the backbone, for the error.
            maps: Any output.

        Raises:
            ConfigError: The output has no rows and columns.
        """
        width = self.network.num_features
        if maps.ndim != 4 or width not in (maps.shape[1], maps.shape[3]):
            raise ConfigError(
                f"{name}: --grid: expected maps of {width} channels with rows and columns, got "
                f"{tuple(maps.shape[1:])}; leave --grid out or take another model"
            )
        return 1 if maps.shape[1] == width else 3
