"""VGGish on windows of one second: one vector per second.

Source: Hershey et al., ICASSP 2017; constants of tensorflow/models `research/audioset/vggish`,
weights as converted by harritaylor/torchvggish. Each second is cut out and its first 0.96 s patch
taken, as the scripts behind the features of AVE do; plain VGGish steps on by 0.96 s instead, and
drifts by 0.04 s per row. A second with less than 0.1 s of sound is none; one too short for a patch,
0.975 s, is filled up with zeros.

Differs: sound is resampled by FFmpeg, where the scripts take resampy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.store.sets import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    WaveformInput,
)
from micu_extract.backbones.hubs import by_hand, url_file, url_state
from micu_extract.backbones.inference import Runner
from micu_extract.backbones.log_mel import LogMel, mel_filters, spectra
from micu_extract.backbones.sound_windows import one_window_per_second
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.vggish_pca import PCA_FILE, find_files, read_pca
from micu_extract.backbones.weights import (
    Request,
    Weights,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor

    from micu_extract.backbones.vggish_network import VGGish as Network

RELEASE = "https://github.com/harritaylor/torchvggish/releases/download/v0.1"
FILE = "vggish-10086976.pth"
LOG_MEL = LogMel(
    sample_rate=16000,
    window=400,
    n_fft=512,
    hop=160,
    mels=64,
    low_hz=125.0,
    high_hz=7500.0,
    scale="htk",
)
FRAMES = 96
"""Of a patch."""
SAMPLES = LOG_MEL.window + (FRAMES - 1) * LOG_MEL.hop
"""That a patch is made of: 15600, 0.975 s."""
LOG_OFFSET = 0.01
"""Added to a band's magnitude before its logarithm."""


@BACKBONES.register("vggish")
class VGGish:
    """VGGish (YouTube-8M audio), one 0.96 s patch per second, (T, 128).

    Args:
        weights: `pretrained`, a path to the file of torchvggish or to a directory with it,
            `random` or `random:SEED`.
        run: Where and how the network runs.
        no_relu: Without the last ReLU, as TensorFlow's script has been since 2020. Like `pca`, it
            is in the header and not in the features' name.
        pca: Whiten and cut into 8-bit levels, 0 to 255, as the features that AudioSet released:
            with `no_relu` as TensorFlow's script, without as torchvggish. A local PCA file lies
            beside that of the network.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: ClassVar[str] = "vggish"
    HIDDEN: ClassVar[int] = 4096
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "no_relu": Option(
            type=bool,
            default=False,
            help="Give the embedding before the last ReLU, as TensorFlow's current script does.",
        ),
        "pca": Option(
            type=bool,
            default=False,
            help="Whiten the embedding and cut it into levels from 0 to 255, as AudioSet's "
            "released features; TensorFlow does so with --no-relu, torchvggish without.",
        ),
    }
    wants: InputSpec = WaveformInput(sample_rate=16000, window_s=1.0)
    gives: Gives = Gives(
        modality="audio",
        shape=(128,),
        weights=f"github.com/harritaylor/torchvggish, release v0.1: {FILE}",
        licence="Apache-2.0",
    )

    def __init__(  # noqa: D107
        self, weights: str, run: Run, *, no_relu: bool = False, pca: bool = False
    ) -> None:
        import torch

        self._relu, self._pca = not no_relu, pca
        network, source = self._load(parse_request(weights, self.NAME))
        # Channels last is 1.15 times as fast on a CPU.
        network = network.to(memory_format=torch.channels_last)
        self._run = Runner(network, run, batch_size=10)
        self._filters = torch.from_numpy(mel_filters(LOG_MEL)).to(self._run.device)
        self.spec = build_spec(
            self.NAME,
            self,
            Weights(source, tensors_sha256(network)),
            run,
            {
                "log_mel": {**asdict(LOG_MEL), "log_offset": LOG_OFFSET},
                "patch": f"first {FRAMES} frames of the second",
                "short_window": f"zeros up to {SAMPLES} samples",
                "relu": self._relu,
                "pca": "whitened, 8-bit levels of [-2, 2], rounded" if pca else None,
                "step": "the second's patch",
            },
            "torch",
            "av",
        )

    def _load(self, request: Request) -> "tuple[Network, str]":
        network = seeded(self._draw, request.seed)
        if request.kind == "random":
            return network, request.source
        whitening: dict[str, Tensor] = {}
        if request.kind == "pretrained":
            names, state = [FILE], url_state(f"{RELEASE}/{FILE}")
            both = by_hand(f"curl -LO {RELEASE}/{FILE} -O {RELEASE}/{PCA_FILE}", "DIR")
            pca_path = url_file(f"{RELEASE}/{PCA_FILE}", remedy=both) if self._pca else None
        else:
            path, pca_path = find_files(request.path, pca=f"{RELEASE}/{PCA_FILE}", need=self._pca)
            names, state = [path.name], read_state(path)
        if pca_path is not None:
            names.append(pca_path.name)
            whitening = read_pca(pca_path)
        where = f"{self.NAME} {names[0]}"
        load_strictly(network, state | whitening, where)
        return network, " + ".join(names)

    def _draw(self) -> "Network":
        from micu_extract.backbones.vggish_network import VGGish as Network

        return Network(self.HIDDEN, relu=self._relu, pca=self._pca)

    @property
    def batch_size(self) -> int:
        """Seconds per forward pass."""
        return self._run.batch_size

    def encode(self, units: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Embedding of each second.

        Args:
            units: Windows, U of (S,), at most 16000 samples in [-1, 1].

        Returns:
            U of (128,).
        """
        return self._run.encode(units, self._forward)

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        import torch

        batch = np.stack([fill_with_zeros(window, SAMPLES) for window in windows])
        patches = log_mel(torch.from_numpy(batch).to(self._run.device), self._filters)
        embeddings: Tensor = self._run(patches[:, None])
        if self._pca:
            # In float32, whatever the network ran in: a level is 1/64 wide.
            network: Any = self._run.network
            embeddings = network.pca.levels(embeddings.float())
        return embeddings

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The patch of each second, (T, 128); a second without sound is not real."""
        return one_window_per_second(outputs, media)


def fill_with_zeros(window: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """A window cut off or filled up with zeros, (S,) to (length,)."""
    return np.pad(window[:length], (0, max(0, length - len(window))))


def log_mel(samples: "Tensor", filters: "Tensor") -> "Tensor":
    """The front end: logarithm of magnitude in mel bands.

    Args:
        samples: (B, S), in [-1, 1].
        filters: Of `mel_filters`, (257, 64), on the same device.

    Returns:
        (B, 1 + (S - 400) // 160, 64); frame k starts at sample 160 k.
    """
    import torch

    return torch.log(spectra(samples, LOG_MEL).abs() @ filters + LOG_OFFSET)
