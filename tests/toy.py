"""A backbone in ten lines, and feature sets made with it: no media and no torch needed."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import DecodeError
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import BACKBONES, Backbone, Gives, Media, Run, TextInput
from micu_extract.pipeline.decode_ahead import Target, extract_several
from micu_extract.pipeline.plan import Job, Plan, plan_extraction
from micu_extract.pipeline.writer import Summary


@BACKBONES.register("toy")
class Toy:
    """Three numbers per word of the text, from its hash."""

    gives = Gives(modality="text", shape=(3,), hop_s=1.0, weights="none", licence="none")
    wants = TextInput()
    OPTIONS: ClassVar[dict[str, object]] = {}
    batch_size = 1

    def __init__(
        self, weights: str = "random", run: Run | None = None, delay_s: float = 0.0
    ) -> None:
        self.delay_s = delay_s
        self.spec = FeatureSpec(
            backbone="toy",
            modality="text",
            shape=(3,),
            hop_s=1.0,
            weights="random:0",
            weights_sha256="0" * 64,
            preprocessing={"toy": 1},
        )

    def encode(self, units: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        time.sleep(self.delay_s)
        digests = [[hashlib.sha256(w.encode()).digest()[:3] for w in u.split()] for u in units]
        return [np.array([list(d) for d in u], np.float32) / 255 for u in digests]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        values = outputs[0].copy()
        if media.units[0].startswith("nan"):
            values[0, 0] = np.nan
        return Steps(values, np.ones(len(values), bool), np.arange(len(values)) + 0.5)


def toy_read(clip: Clip) -> Media:
    """Read the text; clips whose text starts with `bad` or `boom` fail."""
    if clip.text.startswith("bad"):
        raise DecodeError("unreadable", "the text is\nbad")
    if clip.text.startswith("boom"):
        raise ZeroDivisionError("boom")
    return Media([clip.text], np.zeros(0), 0.0, 1)


def toy_clips(count: int) -> list[Clip]:
    """Clips with one to five words; every tenth is bad."""
    return [
        Clip(
            clip_id=f"../c/{i}",
            text="bad" if i % 10 == 9 else " ".join(f"w{i}{j}" for j in range(1 + i % 5)),
        )
        for i in range(count)
    ]


def toy_plan(folder: Path, count: int = 25, shard_rows: int | None = 8, **job: object) -> Plan:
    """Plan an extraction of `toy_clips` to `folder/features`."""
    folder.mkdir(exist_ok=True)
    path = folder / "toys.csv"
    if not path.exists():
        write_manifest(path, toy_clips(count))
    return plan_extraction(toy_job(folder, shard_rows, **job), Toy().spec)


def toy_job(folder: Path, shard_rows: int | None = 8, **job: object) -> Job:
    """To extract what `folder/toys.csv` lists to `folder/features`."""
    return Job(
        manifest=read_manifest(folder / "toys.csv"),
        media_root=folder,
        out=folder / "features",
        shard_rows=shard_rows,
        **job,  # type: ignore[arg-type]
    )


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Bytes of every shard of a set and of its ledger."""
    files = [*folder.glob("shard-*.h5"), folder / "failures.csv"]
    return {path.name: path.read_bytes() for path in sorted(files)}


@dataclass(frozen=True, slots=True)
class ReadOne:
    """A reader for several backbones, from one for a single backbone; can be pickled."""

    read: Callable[[Clip], Media]

    def __call__(self, clip: Clip, names: Sequence[str]) -> dict[str, Media]:
        (name,) = names
        return {name: self.read(clip)}


def extract_manifest(
    plan: Plan, backbone: Backbone, read: Callable[[Clip], Media], *rest: Any, **more: Any
) -> Summary:
    """Extract every clip of a plan with one backbone."""
    targets = {plan.folder.name: Target(plan, backbone)}
    return extract_several(targets, ReadOne(read), *rest, **more)[0]
