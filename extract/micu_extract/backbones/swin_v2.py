"""Swin Transformer V2 on RGB frames, and a tiny one for the demo: one vector per second.

Source: Liu et al., Swin Transformer V2, CVPR 2022; weights and transforms are timm's, and so is the
pooling over the picture. How the published MICU features were pooled is not known: the mean over a
second's frames is ours.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from micu_extract.backbones.base import (
    BACKBONES,
    FrameInput,
    Gives,
    InputSpec,
    Option,
    frames_option,
)
from micu_extract.backbones.timm_image import GRID, TimmImage


@BACKBONES.register("swinv2")
class SwinV2(TimmImage):
    """Swin-V2-L, 256 px, pretrained on ImageNet-22k and finetuned on ImageNet-1k, (T, 1536).

    With `grid`, (T, 8, 8, 1536).
    """

    NAME = "swinv2"
    MODEL = "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k"
    wants: InputSpec = FrameInput(fps=16, resize=284, crop=256)
    gives = Gives(
        modality="video",
        shape=(1536,),
        weights="hf:timm/swinv2_large_window12to16_192to256.ms_in22k_ft_in1k",
        licence="MIT",
    )


@BACKBONES.register("swinv2-demo")
class SwinV2Demo(TimmImage):
    """A tiny Swin V2 at 64 px with random weights, for the demo and the tests, (T, 64)."""

    NAME = "swinv2-demo"
    DEMO_OF = SwinV2.NAME
    OPTIONS: ClassVar[Mapping[str, Option]] = {**frames_option(2), "grid": GRID}
    wants: InputSpec = FrameInput(fps=2, resize=64, crop=64)
    gives = Gives(
        modality="video", shape=(64,), weights="none; --weights random only", licence="none"
    )

    def _draw(self) -> Any:
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        network = SwinTransformerV2(
            img_size=64,
            patch_size=4,
            embed_dim=64,
            depths=(1,),
            num_heads=(4,),
            window_size=8,
            mlp_ratio=4.0,
            num_classes=0,
        ).eval()
        _draw_demo_weights(network)
        return network

    def _find_transform(self) -> Mapping[str, Any]:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        return {
            "input_size": (3, 64, 64),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
        }


def _draw_demo_weights(network: Any) -> None:
    """Draw weights that let an untrained Swin V2 tell shapes apart.

    As timm draws them, blocks are the identity, layers are nearly linear, and each norm blows up
    the noise of flat patches until it drowns the rest. Here patch filters are band-pass, as trained
    ones are, and too small for noise to outweigh the norm's epsilon; the norm after them gives flat
    patches a common direction; and the last norm puts the uniform picture at the origin.
    """
    import torch
    from torch.nn import init

    with torch.no_grad():
        filters = network.patch_embed.proj
        gray = torch.randn(filters.out_channels, 1, *filters.kernel_size)
        gray -= gray.mean(dim=(2, 3), keepdim=True)
        filters.weight.copy_(
            gray.expand_as(filters.weight) * 0.01 / filters.weight[0].numel() ** 0.5
        )
        filters.bias.zero_()
        init.normal_(network.patch_embed.norm.bias)
        for module in network.layers.modules():
            if isinstance(module, torch.nn.Linear):
                init.normal_(module.weight, std=2.0 / module.in_features**0.5)
        for block in (block for stage in network.layers for block in stage.blocks):
            init.ones_(block.norm1.weight)
            init.constant_(block.norm2.weight, 2.0)
            init.normal_(block.mlp.fc1.bias)
        gain = 16.0
        origin = network(torch.zeros(1, 3, *network.patch_embed.img_size))[0]
        network.norm.weight.fill_(gain)
        network.norm.bias.copy_(-gain * origin)
