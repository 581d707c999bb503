"""Whether backbones would run on another device, on a machine that has the CPU alone.

The meta device stands for it: a tensor that was left on the CPU is an error there too.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from micu_extract.backbones import build_backbone, htsat, torch_backbone, vgg19, vggish
from micu_extract.backbones.base import FlowInput, FrameInput, Run, WaveformInput
from micu_extract.backbones.htsat import HTSATDemo
from micu_extract.backbones.text import ClapText, ClipText

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


class Elsewhere:
    """Stands for a backbone's `Runner`, whose autocast does not know the meta device.

    The network that it is given stays where it is, so that its weights can be hashed.
    """

    def __init__(self, network: torch.nn.Module, *how: Any, **more: Any) -> None:
        self.device = torch.device("meta")
        self.network = deepcopy(network).to(self.device).eval()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.network(*inputs, **named)


def run_elsewhere(backbone: Any) -> torch.Tensor:
    if not isinstance(backbone._run, Elsewhere):
        backbone._run = Elsewhere(backbone._run.network)
    wants, run = backbone.wants, backbone._forward
    if isinstance(wants, FrameInput):
        units: Any = np.zeros((2, wants.crop, wants.crop, 3), np.uint8)
    elif isinstance(wants, FlowInput):
        units = np.zeros((2, wants.clip_len, wants.crop, wants.crop, 2), np.uint8)
    elif isinstance(wants, WaveformInput):
        samples = round(wants.window_s * wants.sample_rate)
        units = [np.zeros(samples, np.float32), np.zeros(samples // 2, np.float32)]
    else:
        units = backbone._tokenize(["a cat", "a dog"])[0]
        run = backbone._embed
    with torch.inference_mode():
        output: torch.Tensor = run(units)
    return output


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swinv2-demo", {}),
        ("swinv2-demo", {"grid": True}),
        ("timm:test_resnet", {"grid": True}),
        ("vgg19", {}),
        ("vgg19-tv", {}),
        ("slowonly-demo", {}),
        ("htsat", {}),
        ("htsat", {"context": "second"}),
        ("htsat-clap", {}),
        ("vggish", {}),
        ("vggish", {"pca": True}),
        ("bert-demo", {}),
        ("bert-demo", {"pool": "mean"}),
        ("clap-text", {"pool": "projected"}),
        ("clip-text", {"pool": "projected"}),
    ],
)
def test_a_forward_pass_stays_on_the_device_of_the_network(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers looks into the mask, which has no values here, to see whether it can be left out.
    skip = "transformers.masking_utils._ignore_bidirectional_mask_sdpa"
    monkeypatch.setattr(skip, lambda *mask: False, raising=False)
    monkeypatch.setattr(ClapText, "SETTINGS", SMALL)
    monkeypatch.setattr(ClipText, "SETTINGS", SMALL)
    monkeypatch.setattr(vgg19, "BLOCKS", ((4, 1), (4, 1), (4, 1), (4, 1), (512, 1)))
    monkeypatch.setattr(vggish.VGGish, "HIDDEN", 8)
    small = {**HTSATDemo.CONFIG, "num_mel_bins": 64, "spec_size": 256, "depths": [1, 1, 1, 1]}
    small |= {"num_attention_heads": [1, 2, 4, 8], "hidden_size": 256}
    monkeypatch.setattr(htsat.HTSAT, "CONFIG", small)
    # From the start: sound backbones put the bands of their front end there.
    monkeypatch.setattr(torch_backbone, "Runner", Elsewhere)
    backbone = build_backbone(name, "random", Run(device="cpu"), **options)

    output = run_elsewhere(backbone)

    assert output.device.type == "meta"
    # A matrix product with one that was left behind is no error there.
    own = [value for value in vars(backbone).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in own} <= {"meta"}
    assert bool(own) == isinstance(backbone.wants, WaveformInput)
    assert output.shape[0] == 2
    assert output.shape[-1] == backbone.spec.shape[-1]
