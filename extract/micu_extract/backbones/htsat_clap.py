"""HTS-AT as the audio tower of LAION-CLAP, and a small one for the demo.

Source: Wu et al., ICASSP 2023, `laion/clap-htsat-unfused`. The network and the policy are those of
`micu_extract.backbones.htsat`; the sample rate and the weights are not.

Differs from LAION-CLAP: samples are not rounded to 16 bits on the way, and nothing is cropped at
random.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from micu.base.errors import WeightsError
from micu_extract.backbones import htsat
from micu_extract.backbones.base import BACKBONES, Gives, InputSpec, WaveformInput
from micu_extract.backbones.htsat import HTSAT
from micu_extract.backbones.htsat_checkpoint import LAION_PREFIXES, PREFIX
from micu_extract.backbones.hubs import download, load_transformer
from micu_extract.backbones.log_mel import LogMel
from micu_extract.backbones.weights import (
    Request,
    load_strictly,
    parse_demo_request,
    read_state,
    seeded,
    without,
)

HUB = "laion/clap-htsat-unfused"
TOWER = "audio_model."
OTHER_TOWER = ("text_model.", "text_projection.", "audio_projection.", "logit_scale")
"""Parts of a CLAP checkpoint that are not the audio network."""
LOG_MEL = replace(htsat.LOG_MEL, sample_rate=48000, hop=480)
DEMO_LOG_MEL = LogMel(
    sample_rate=16000,
    window=512,
    n_fft=512,
    hop=160,
    mels=32,
    low_hz=50.0,
    high_hz=8000.0,
    scale="slaney",
)


@BACKBONES.register("htsat-clap")
class HTSATClap(HTSAT):
    """HTS-AT of LAION-CLAP (unfused, 48 kHz, 10 s windows), (T, 768).

    Args:
        weights: `pretrained`, a path (a directory of transformers, or a file with the tensors of a
            `ClapModel` or `ClapAudioModel`), `random` or `random:SEED`.
        run: Where and how the network runs.
        context: As of `HTSAT`.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "htsat-clap"
    LOG_MEL = LOG_MEL
    wants: InputSpec = WaveformInput(sample_rate=48000, window_s=10.0)
    gives: Gives = Gives(modality="audio", shape=(768,), weights=f"hf:{HUB}", licence="Apache-2.0")

    def _load(self, request: Request) -> tuple[Any, str]:
        network, source = self._load_tower(request)
        config = network.config
        if config.enable_fusion or config.num_mel_bins != self.LOG_MEL.mels:
            raise WeightsError(
                f"{self.NAME} {source}: expected an unfused network for {self.LOG_MEL.mels} mel "
                f"bands, got enable_fusion={config.enable_fusion}, {config.num_mel_bins} bands"
            )
        return network, source

    def _load_tower(self, request: Request) -> tuple[Any, str]:
        from transformers import ClapAudioModel

        network: Any
        if request.kind == "pretrained":
            return load_transformer(ClapAudioModel, HUB, OTHER_TOWER, TOWER), f"hf:{HUB}"
        if request.kind == "local" and request.path.is_dir():
            network = load_transformer(ClapAudioModel, request.path, OTHER_TOWER, TOWER)
            return network, request.source
        network = seeded(self._draw, request.seed)
        if request.kind == "local":
            state = without(read_state(request.path), OTHER_TOWER)
            self._refuse_other_layouts(state, request.path)
            body = {name.removeprefix(TOWER): tensor for name, tensor in state.items()}
            load_strictly(network, body, f"{self.NAME} {request.path}")
        return network, request.source

    def _refuse_other_layouts(self, state: Mapping[str, Any], path: Path) -> None:
        if any(name.startswith(LAION_PREFIXES) for name in state):
            raise WeightsError(
                f"{path}: expected CLAP in the layout of transformers, got LAION's own; type "
                f"{download(HUB)}, and --weights DIR"
            )
        if any(name.startswith(PREFIX) for name in state):
            raise WeightsError(
                f"{path}: expected a checkpoint of CLAP, got one of HTS-AT on AudioSet; take "
                f"--backbone {HTSAT.NAME}"
            )


@BACKBONES.register("htsat-demo")
class HTSATDemo(HTSAT):
    """A small HTS-AT on four second windows at 16 kHz with random weights, (T, 128)."""

    NAME = "htsat-demo"
    LOG_MEL = DEMO_LOG_MEL
    CONFIG: ClassVar[Mapping[str, Any]] = {
        "spec_size": 128,
        "num_mel_bins": 32,
        "patch_embeds_hidden_size": 32,
        "hidden_size": 128,
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 2, 4],
        "mlp_ratio": 2.0,
    }
    wants: InputSpec = WaveformInput(sample_rate=16000, window_s=4.0)
    gives = Gives(
        modality="audio", shape=(128,), weights="none; --weights random only", licence="none"
    )

    def _parse(self, weights: str) -> Request:
        return parse_demo_request(weights, self.NAME, HTSAT.NAME)

    def _draw(self) -> Any:
        network = super()._draw()
        # What the first norm learns from sound: without it the level's offset drowns the rest.
        network.audio_encoder.batch_norm.running_mean.fill_(-20.0)  # dB
        network.audio_encoder.batch_norm.running_var.fill_(20.0**2)
        return network
