"""A backbone that is one network of torch: what such have in common, and how they are run.

Every forward pass has the same shape: a batch that is not full is filled up with copies of its last
unit. Libraries choose other kernels, which round otherwise, for other shapes; so a unit's output
does not depend on how many units came with it, and a run that was interrupted ends in the bytes of
one that was not. The one exception is a device whose memory is too small for the batch: it is
halved, with a warning that names the size to type.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.devices import resolve_device
from micu.base.errors import DeviceError, no_memory
from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import (
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    mean_by_step,
    versions_of,
)
from micu_extract.backbones.hubs import url_state
from micu_extract.backbones.weights import (
    Request,
    first_line,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)


class TorchBackbone:
    """A backbone that is one network: its weights, batches, precision and spec.

    A family is a subclass: the attributes below, `_draw`, its network with random weights;
    `_forward`, from units to outputs; and `_describe`, what it does beside what `wants` says.
    Where its weights are not simply tensors under the network's own names, `_rename`, `_read` or
    `_load` says what they are. Options are in `self._options`, each at least as its default.

    Args:
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        **options: By the names of `OPTIONS`, checked; `model` of families with a prefix.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: str
    """Of the backbone, in messages too."""
    DEMO_OF: ClassVar[str] = ""
    """Of a small variant, which has no published weights: the backbone that has."""
    URL: str = ""
    """Of a checkpoint whose name ends in the start of its SHA-256, where there is one."""
    BATCH_SIZE: ClassVar[int]
    """Units per forward pass where `run` does not say."""
    PACKAGES: ClassVar[tuple[str, ...]]
    """Those whose versions can change a number."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    gives: Gives
    wants: InputSpec

    def __init__(self, weights: str, run: Run, **options: Any) -> None:  # noqa: D107
        self._options = {name: known.default for name, known in self.OPTIONS.items()} | options
        self._prepare()
        network, source = self._load(parse_request(weights, self.NAME, self.DEMO_OF))
        self._run = Runner(network, run, self.BATCH_SIZE)
        described = self._describe()
        self.spec = FeatureSpec(
            backbone=self._name_features(),
            modality=self.gives.modality,
            shape=self.gives.shape,
            hop_s=self.gives.hop_s,
            weights=source,
            weights_sha256=tensors_sha256(network),
            preprocessing={
                "input": asdict(self.wants),
                **described,
                "precision": run.precision,
                "compiled": run.compile,
            },
            versions=versions_of(*self.PACKAGES),
        )

    # --- what families say -------------------------------------------------------------------

    def _prepare(self) -> None:
        """Set what depends on options alone, such as `wants`, before weights are looked at."""

    def _draw(self) -> Any:
        """The network with random weights, from torch's random state."""
        raise NotImplementedError

    def _read(self, request: Request) -> "tuple[dict[str, Tensor], str]":
        """The tensors of weights that are not random, as they are published; and their source."""
        if request.kind == "pretrained":
            return url_state(self.URL), self.URL.rsplit("/", 1)[-1]
        return read_state(request.path), request.source

    def _rename(self, network: Any, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """The network's tensors by its own names, of all those of a file."""
        return state

    def _load(self, request: Request) -> tuple[Any, str]:
        """The network with the weights that were asked for, in float32; and their source."""
        if request.kind == "random":
            return seeded(self._draw, request.seed), request.source
        state, source = self._read(request)  # first: to draw a large network takes seconds
        network = seeded(self._draw, request.seed)
        load_strictly(network, self._rename(network, state), f"{self.NAME} {source}")
        return network, source

    def _describe(self) -> dict[str, Any]:
        """What is done beside what the input spec says, as JSON.

        Called once the network is on its device: what depends on it, `gives` too, is set here.
        """
        raise NotImplementedError

    def _name_features(self) -> str:
        return self.NAME

    def _forward(self, units: Sequence[Any]) -> "Tensor":
        """Outputs of a full batch of units, (B, ...), on any device."""
        raise NotImplementedError

    # --- what they have in common ------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Units per forward pass."""
        return self._run.batch_size

    def encode(self, units: Any) -> list[NDArray[np.float32]]:
        """Run the network over units, of one clip or of many.

        Args:
            units: Of the kind that `wants` says, any number of them; see `Media`.

        Returns:
            One output per unit, as `_forward` says.
        """
        return self._run.encode(units, self._forward)

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of the units that lie in each second, (T, ...)."""
        return mean_by_step(outputs, media)

    def _stack(self, units: Sequence[NDArray[Any]]) -> "Tensor":
        """Arrays of one shape as one tensor, (B, ...), on the network's device."""
        import torch

        return torch.from_numpy(np.stack(units)).to(self._run.device)

    def _pictures(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """Frames, B of (H, W, 3), as (B, 3, H, W) in [0, 255], channels last in memory."""
        return self._stack(frames).permute(0, 3, 1, 2).float()


def normalize(x: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """(x / 255 - mean) / std by channel, of pictures (B, 3, H, W) in [0, 255]."""
    means, deviations = (x.new_tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    return (x / 255 - means) / deviations


class Runner:
    """A network on its device, ready to run batch after batch.

    Args:
        network: In float32; moved to the device, in evaluation mode, without gradients.
        run: Where and how.
        batch_size: Units per forward pass where `run` does not say.

    Attributes:
        batch_size: Units per forward pass; halved when they do not fit in memory.
        is_compiled: Whether the network is compiled as a whole.
        half: Half precision of matrix products and convolutions; None for none.

    Raises:
        ConfigError: The device is unknown or not there.
    """

    def __init__(self, network: "torch.nn.Module", run: Run, batch_size: int) -> None:  # noqa: D107
        import torch

        self.device = torch.device(resolve_device(run.device))
        self.batch_size = run.batch_size or batch_size
        self.is_compiled = run.compile
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.half = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
        self._forward: Callable[..., Any] = (
            torch.compile(self.network) if run.compile else self.network
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's output for tensors on the device, in the precision that was asked for."""
        import torch

        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            return self._forward(*inputs, **named)

    def encode(
        self, units: Any, forward: "Callable[[Sequence[Any]], torch.Tensor]"
    ) -> list[NDArray[np.float32]]:
        """Run `forward` over batches of `batch_size` units.

        A batch that does not fit in memory is halved, for good, and its units go again.

        Args:
            units: Units of any clips, in any number: a sequence or an array.
            forward: From `batch_size` units to their outputs, (B, ...), on any device; calls the
                runner.

        Returns:
            One output per unit, (...), float32.

        Raises:
            DeviceError: Not even one unit fits in memory.
        """
        outputs: list[NDArray[np.float32]] = []
        with repeatable():
            while len(outputs) < len(units):
                batch = list(units[len(outputs) : len(outputs) + self.batch_size])
                full = batch + batch[-1:] * (self.batch_size - len(batch))
                made = self._try(forward, full)
                if made is None:
                    self._halve()
                else:
                    outputs.extend(made[: len(batch)])
        return outputs

    def _try(
        self, forward: "Callable[[Sequence[Any]], torch.Tensor]", units: list[Any]
    ) -> NDArray[np.float32] | None:
        """The outputs of one pass, or nothing if it took more memory than there is.

        Nothing, not an error: one would hold on to the memory that is to be freed.
        """
        try:
            outputs: NDArray[np.float32] = forward(units).float().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if no_memory(error) is None:
                raise
            if len(units) == 1:
                raise DeviceError(
                    f"{self.device}: expected memory for a batch of one unit at least, got: "
                    f"{first_line(error)}; end what else is running there, or type another "
                    "--device, for example --device cpu (--batch-size cannot be less than 1)"
                ) from error
            return None
        return outputs

    def _halve(self) -> None:
        before, self.batch_size = self.batch_size, self.batch_size // 2
        logger.warning(
            "%s: a batch of %d units does not fit in memory; going on with %d. The last digits of "
            "features may depend on it: type --batch-size %d for all runs of this set",
            self.device,
            before,
            self.batch_size,
            self.batch_size,
        )
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


@contextmanager
def repeatable() -> Iterator[None]:
    """No gradients, no TF32, and the same kernels every time."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield
