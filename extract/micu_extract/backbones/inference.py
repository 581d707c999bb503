"""Running a network over units: where, in which precision, and so that it can be repeated.

Every forward pass has the same shape: a batch that is not full is filled up with copies of its last
unit. Libraries choose other kernels, which round otherwise, for other shapes; so a unit's output
does not depend on how many units came with it, and a run that was interrupted ends in the bytes of
one that was not. The one exception is a device whose memory is too small for the batch: it is
halved, with a warning that names the size to type.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from micu.base.devices import resolve_device
from micu.base.errors import DeviceError, no_memory
from micu_extract.backbones.base import Run

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Runner:
    """A network on its device, ready to run batch after batch.

    Args:
        network: In float32; moved to the device, in evaluation mode, without gradients.
        run: Where and how.
        batch_size: Units per forward pass where `run` does not say.

    Attributes:
        batch_size: Units per forward pass; halved when they do not fit in memory.

    Raises:
        ConfigError: The device is unknown or not there.
    """

    def __init__(self, network: "torch.nn.Module", run: Run, batch_size: int) -> None:  # noqa: D107
        import torch

        self.device = torch.device(resolve_device(run.device))
        self.batch_size = run.batch_size or batch_size
        self.network = network.to(self.device).eval().requires_grad_(False)
        self._half = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
        self._forward: Callable[..., Any] = (
            torch.compile(self.network) if run.compile else self.network
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's output for tensors on the device, in the precision that was asked for."""
        import torch

        with torch.autocast(self.device.type, self._half, enabled=self._half is not None):
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
                    f"{_first_line(error)}; end what else is running there, or type another "
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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


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
