"""Precision of a step: autocast of the networks, scaling of fp16's gradients, and TF32.

Weights, gradients, optimiser, codebook and losses are float32 throughout. What autocast turns into
half the bits is the products within the networks and of the jigsaw's classifier.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from micu.base.errors import ConfigError
from micu.config.sections import TrainConfig

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 1.0
"""Below this a gradient that is not finite is no overflow of fp16."""


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """What the products of a training step are computed under: `optimizer.precision`."""
    half = HALVES.get(config.optimizer.precision)
    return nullcontext() if half is None else torch.autocast(device.type, half)


def build_scaler(config: TrainConfig, device: torch.device | str) -> torch.amp.GradScaler:
    """Scaling of the loss, so that fp16 does not round small gradients to zero; else it is off."""
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=config.optimizer.precision == "fp16")
    # It makes its scale at first use, and a process may have no clip, and no loss, in that step.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def set_tf32_(config: TrainConfig, device: torch.device | str) -> None:
    """Let GPUs round the factors of float32 products to 10 bits, or not: `optimizer.tf32`.

    Sets torch's switches for the whole process; torch's own default is yes in convolutions and no
    in other products.

    Raises:
        ConfigError: It is asked for on a device that is no GPU of NVIDIA.
    """
    is_cuda = torch.device(device).type == "cuda"
    if config.optimizer.tf32 and not is_cuda:
        raise ConfigError(
            f"optimizer.tf32: expected a CUDA device, got {device}: TF32 is a format of NVIDIA's "
            "GPUs; leave it out"
        )
    if is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = config.optimizer.tf32
        torch.backends.cudnn.allow_tf32 = config.optimizer.tf32
