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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import CheckpointError, WeightsError
from micu.base.tensor_files import check_tensor_file
from micu.store.shard import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    WaveformInput,
)
from micu_extract.backbones.hubs import by_hand, url_file, url_state
from micu_extract.backbones.sound import (
    LogMel,
    fill_window,
    mel_filters,
    one_window_per_second,
    spectra,
)
from micu_extract.backbones.torch_backbone import TorchBackbone
from micu_extract.backbones.weights import (
    KNOWN,
    Request,
    find_weights_file,
    first_line,
    read_state,
)

if TYPE_CHECKING:
    from torch import Tensor

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
PCA_FILE = "vggish_pca_params-970ea276.pth"
PCA_START = "vggish_pca_params"
PCA_SHAPES = {"pca_eigen_vectors": (128, 128), "pca_means": (128,)}
MAX_PCA_BYTES = 2**20
"""The published file has 0.18 MB."""
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
"""The name in a pickle of an array, before and since NumPy 2."""


@BACKBONES.register("vggish")
class VGGish(TorchBackbone):
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

    NAME = "vggish"
    BATCH_SIZE = 10
    PACKAGES = ("torch", "av")
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

    def _prepare(self) -> None:
        self._relu, self._pca = not self._options["no_relu"], self._options["pca"]

    def _draw(self) -> Any:
        import torch

        from micu_extract.backbones.vggish_network import VGGishNetwork

        network = VGGishNetwork(self.HIDDEN, relu=self._relu, pca=self._pca)
        # Channels last is 1.15 times as fast on a CPU.
        return network.to(memory_format=torch.channels_last)

    def _read(self, request: Request) -> "tuple[dict[str, Tensor], str]":
        if request.kind == "pretrained":
            names, state = [FILE], url_state(f"{RELEASE}/{FILE}")
            both = by_hand(f"curl -LO {RELEASE}/{FILE} -O {RELEASE}/{PCA_FILE}", "DIR")
            pca_path = url_file(f"{RELEASE}/{PCA_FILE}", remedy=both) if self._pca else None
        else:
            path, pca_path = find_files(request.path, pca=f"{RELEASE}/{PCA_FILE}", need=self._pca)
            names, state = [path.name], read_state(path)
        if pca_path is not None:
            names.append(pca_path.name)
            state |= read_pca(pca_path)
        return state, " + ".join(names)

    def _describe(self) -> dict[str, Any]:
        import torch

        self._filters = torch.from_numpy(mel_filters(LOG_MEL)).to(self._run.device)
        return {
            "log_mel": {**asdict(LOG_MEL), "log_offset": LOG_OFFSET},
            "patch": f"first {FRAMES} frames of the second",
            "short_window": f"zeros up to {SAMPLES} samples",
            "relu": self._relu,
            "pca": "whitened, 8-bit levels of [-2, 2], rounded" if self._pca else None,
            "step": "the second's patch",
        }

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        """From seconds, of at most 16000 samples in [-1, 1], to (B, 128)."""
        batch = self._stack([fill_window(window, SAMPLES) for window in windows])
        embeddings: Tensor = self._run(log_mel(batch, self._filters)[:, None])
        if self._pca:
            # In float32, whatever the network ran in: a level is 1/64 wide.
            network: Any = self._run.network
            embeddings = network.pca.levels(embeddings.float())
        return embeddings

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The patch of each second, (T, 128); a second without sound is not real."""
        return one_window_per_second(outputs, media)


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


# --- the whitening's file ---------------------------------------------------------------------


def find_files(path: Path, *, pca: str, need: bool) -> tuple[Path, Path | None]:
    """The network's file at `path`, and the PCA file beside it where it is needed.

    Args:
        path: A file, or a directory with one file of a network.
        pca: Where the PCA file can be had, for the message.
        need: Whether the PCA file is.

    Raises:
        WeightsError: There is none, or more than one could be meant.
    """
    folder = path.absolute().parent
    if path.is_dir():
        folder = path
        files = [p for p in sorted(folder.iterdir()) if p.suffix in KNOWN and p.is_file()]
        networks = [p for p in files if not p.name.startswith(PCA_START)]
        path = networks[0] if len(networks) == 1 else find_weights_file(folder)
    if not need:
        return path, None
    found = sorted(folder.glob(f"{PCA_START}*"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise WeightsError(
            f"{folder}: expected {PCA_FILE} beside the network's weights, got {names}; --pca needs "
            f"it. On a machine with network type: curl -LO {pca}"
        )
    return path, found[0]


def read_pca(path: Path) -> "dict[str, Tensor]":
    """The whitening's tensors, named as in the network.

    The published file, made in 2019, is a pickle of two NumPy arrays, which the loader of tensors
    refuses. Here NumPy's own constructors are let through, and nothing else.

    Raises:
        WeightsError: The file does not hold the two matrices as arrays or tensors of numbers, or
            holds anything else.
    """
    import torch

    if path.stat().st_size > MAX_PCA_BYTES:
        raise WeightsError(
            f"{path}: expected at most {MAX_PCA_BYTES} bytes, got more; not {PCA_FILE}"
        )
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_array_constructors()):
            check_tensor_file(file, str(path), arrays=True)
            file.seek(0)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.keys() != PCA_SHAPES.keys():
            raise ValueError(f"expected {' and '.join(PCA_SHAPES)} by name")
        arrays = {name: _numbers(content[name]) for name in PCA_SHAPES}
    except CheckpointError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"{path}: cannot be read as VGGish's PCA: {why}") from error
    except Exception as error:  # a pickle that is not what it says can raise anything
        why = first_line(error) if isinstance(error, ValueError) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as VGGish's PCA: {why}") from error
    for name, shape in PCA_SHAPES.items():
        if arrays[name].size != np.prod(shape) or arrays[name].shape[0] != shape[0]:
            raise WeightsError(f"{path}: {name}: expected {shape}, got {arrays[name].shape}")
    return {
        f"pca.{name}": torch.from_numpy(arrays[name].reshape(shape).astype(np.float32))
        for name, shape in PCA_SHAPES.items()
    }


def _array_constructors() -> list[Any]:
    reconstruct = np.array(0.0).__reduce__()[0]
    types = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [*((reconstruct, name) for name in RECONSTRUCT), np.ndarray, np.dtype, *types]


def _numbers(value: Any) -> "np.ndarray[Any, np.dtype[Any]]":
    import torch

    array = value.numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise ValueError("expected arrays of numbers")
    return array
