"""What several processes that train one model say to each other: plain torch.distributed.

Gradients are added up by `World.sum_` after the backward pass, in buckets, and not by
DistributedDataParallel: that divides by the number of processes, where the terms of our losses are
already shares of means over the whole batch; it reduces inside every backward pass, of which a step
may have several (micro-batches, two passes); it needs one in every process, and a process may have
no clip of a small last batch; and its buffer broadcasting would hide a codebook that had drifted
apart by overwriting it. What is lost is the overlap of reducing with computing.

With one process no function here touches torch.distributed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from micu.base.errors import MicuError, ProcessError
from micu.train.processes.place import Place

BUCKET_BYTES = 2**25
"""Gradients are added up by so much at a time: few calls, and little memory beside them."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    """Where tensors are that processes exchange."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which rows of a batch this process takes: contiguous, in order of rank, and even.

        Args:
            count: Rows of the whole batch; with fewer of them than processes some take none.
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, to the same bits in each of them.

        Args:
            tensors: On the device; the same shapes and types in every process.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _peers():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order of rank, without gradient.

        Args:
            rows: (N, ...) on the device; N differs between processes and may be 0.

        Returns:
            (sum of N, ...).
        """
        if self.size == 1:
            return rows.detach()
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        with _peers():
            dist.all_gather(counts, torch.tensor([len(rows)], device=self.device))
        lengths = torch.cat(counts).tolist()
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with _peers():
            dist.all_gather(found, padded)
        return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])

    def gather_texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of all processes, in order of rank."""
        if self.size == 1:
            return list(texts)
        lines = "".join(f"{json.dumps(text)}\n" for text in texts).encode()
        found = self.gather(torch.tensor(list(lines), dtype=torch.uint8, device=self.device))
        return [json.loads(line) for line in bytes(found.tolist()).decode().splitlines()]

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        with _peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def decide(self, choose: Callable[[], str]) -> str:
        """What the first process chooses, told to all; its error becomes everyone's.

        Raises:
            MicuError: The first process raised one.
        """
        if self.size == 1:
            return choose()
        if not self.is_first:
            text, failed = self.gather_texts([])
            if failed:
                raise MicuError(text)
            return text
        try:
            text = choose()
        except MicuError as error:
            self.gather_texts([str(error), "failed"])
            raise
        self.gather_texts([text, ""])
        return text

    def check_same(self, what: str, value: str) -> None:
        """Refuse to go on with processes that differ.

        Args:
            what: What is compared, for the message.
            value: This process's.

        Raises:
            ProcessError: The value is not the same in every process.
        """
        found = self.gather_texts([hashlib.sha256(value.encode()).hexdigest()])
        others = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if others:
            raise ProcessError(
                f"{what}: expected the same in all {self.size} processes, got other ones in "
                f"{', '.join(map(str, others))} than in 0; give every process the same command, "
                "files and versions"
            )


ALONE = World()
"""A process without others."""


@contextmanager
def join(place: Place, device: torch.device | str) -> Iterator[World]:
    """Meet the other processes of the run, and part from them where the block ends well.

    Args:
        place: This process; with a size of 1 there is nobody to meet.
        device: Where it trains; NCCL on CUDA, Gloo elsewhere.

    Raises:
        ProcessError: The others do not come.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # Threads of torch's, such as the one that page-locks batches, would take the first GPU.
        torch.cuda.set_device(device)
    if place.size == 1:
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _peers():
        store, rank, size = next(rendezvous(place.meet_at, place.rank, place.size))
        # torchrun's store outlives the processes: it holds the addresses of those before a restart.
        fresh = dist.PrefixStore(  # type: ignore[attr-defined]
            f"start {place.restarts}", store
        )
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)
    yield World(place.rank, place.size, device)
    # Not after an error: NCCL would wait for processes that may have gone.
    dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of an exchange into an error that says where to look."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            "another process of the run has ended or does not answer; what it says itself tells "
            f"why ({str(error).splitlines()[0]})"
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, together as long as they are of one type and not too large."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and (tensor.dtype != bucket[0].dtype or held + size > BUCKET_BYTES):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += size
    if bucket:
        yield bucket
