"""Running a network over units: where, in which precision, and so that it can be repeated.

Every forward pass has the same shape: a batch that is not full is filled up with copies of its last
unit. Libraries choose other kernels, which round otherwise, for other shapes; so a unit's output
does not depend on how many units came with it, and a run that was interrupted ends in the bytes of
one that was not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import Run
from micu.devices import resolve_device

if TYPE_CHECKING:
    import torch


class Runner:
    """A network on its device, ready to run batch after batch.

    Args:
        network: In float32; moved to the device, in evaluation mode, without gradients.
        run: Where and how.
        batch_size: Units per forward pass where `run` does not say.

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

        Args:
            units: Units of any clips, in any number: a sequence or an array.
            forward: From `batch_size` units to their outputs, (B, ...), on any device; calls the
                runner.

        Returns:
            One output per unit, (...), float32.
        """
        outputs: list[NDArray[np.float32]] = []
        with repeatable():
            for start in range(0, len(units), self.batch_size):
                batch = list(units[start : start + self.batch_size])
                full = batch + batch[-1:] * (self.batch_size - len(batch))
                outputs.extend(forward(full)[: len(batch)].float().cpu().numpy())
        return outputs


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
