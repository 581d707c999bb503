"""Looking at media before extracting: what is missing, short, or lacks a stream."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from micu.base.errors import DecodeError
from micu.base.files import write_atomically
from micu.base.process import StopFlag
from micu.base.table import write_csv
from micu.store.manifest import Clip, manifest_stem
from micu_extract.backbones.base import MIN_STEP_S, Media
from micu_extract.media.decoding import Outcome
from micu_extract.media.stills import open_source
from micu_extract.media.workers import decode_in_processes
from micu_extract.pipeline.decode_ahead import Work, decode_ahead

SHORT, GOOD = "short", "ok"
PROBE_S = 60.0
"""A process that takes longer over one file is killed, s."""
_NAME = "probe"


@dataclass(frozen=True, slots=True)
class MediaProbe:
    """What the file of one clip is like, from its header: nothing is decoded."""

    clip_id: str
    path: str
    state: str
    """`ok`; `short`: the file ends before the clip; else a code of the failure ledger."""
    duration_s: float | None
    """Of the file, s; None if it does not say."""
    video: bool
    audio: bool
    message: str


def probe_path(manifest: Path) -> Path:
    """Where the report of a manifest lies: `NAME.probe.csv` beside `NAME.csv`."""
    return manifest.with_name(f"{manifest_stem(manifest)}.probe.csv")


def probe_media(
    clips: Sequence[Clip], media_root: Path, workers: int, timeout_s: float = PROBE_S
) -> list[MediaProbe]:
    """Open the file of every clip, each file once, in processes that a file may take along.

    Args:
        clips: Rows of a manifest; those without a path have no media and are left out.
        media_root: Folder that their paths start from.
        workers: Processes.
        timeout_s: A process that takes longer over one file is killed, s.
    """
    with_media = [clip for clip in clips if clip.path]
    paths = dict.fromkeys(clip.path for clip in with_media)
    work = [Work(Clip(clip_id=path, path=path), (_NAME,)) for path in paths]
    with decode_in_processes(ReadProbe(media_root), workers, timeout_s) as decoders:
        settled = decode_ahead(work, decoders, 4 * workers, StopFlag())
        by_path = {
            item.clip.path: _open(item.clip, outcome, timeout_s) for item, outcome in settled
        }
    return [_judge(clip, by_path[clip.path]) for clip in with_media]


@dataclass(frozen=True, slots=True)
class ReadProbe:
    """Probes a file in place of decoding it; sent to worker processes."""

    media_root: Path

    def __call__(self, clip: Clip, names: Sequence[str]) -> Mapping[str, Media]:
        """The probe, as notes on no media; what is None is left out."""
        found = asdict(probe_file(clip.path, self.media_root))
        notes = {name: value for name, value in found.items() if value is not None}
        return dict.fromkeys(names, Media([], np.zeros(0), 0.0, 0, notes))


def _open(clip: Clip, outcome: Outcome, timeout_s: float) -> MediaProbe:
    """What a worker found out about a file, or what the file did to the worker."""
    found = outcome.media[_NAME]
    if isinstance(found, Media):
        noted: dict[str, Any] = {"duration_s": None, **found.notes}
        return MediaProbe(**noted)
    message = found.message
    if found.code == "timeout":
        message = f"{clip.path!r}: opening it took longer than {timeout_s:g} s"
    return MediaProbe("", clip.path, found.code, None, video=False, audio=False, message=message)


def probe_file(path: str, media_root: Path) -> MediaProbe:
    """What a media file holds; `clip_id` is left empty."""
    clip = Clip(clip_id=path, path=path)
    duration_s: float | None = None
    has = {"video": False, "audio": False}
    reason: DecodeError | None = None
    for kind in ("video", "audio"):
        try:
            with open_source(clip, media_root, kind) as source:
                has[kind] = True
                duration_s = source.duration_s if duration_s is None else duration_s
        except DecodeError as error:
            if not error.code.startswith("no_"):
                reason = error
    if reason is None and not any(has.values()):
        reason = DecodeError("unreadable", f"{path!r}: the file has neither pictures nor sound")
    code, message = (reason.code, str(reason)) if reason else (GOOD, "")
    return MediaProbe("", path, code, duration_s, has["video"], has["audio"], message)


def _judge(clip: Clip, probe: MediaProbe) -> MediaProbe:
    """The probe of a clip's file, with what it means for the clip."""
    probe = replace(probe, clip_id=clip.clip_id)
    end_s = clip.end_s if clip.end_s is not None else (clip.start_s or 0.0) + MIN_STEP_S
    if probe.state == GOOD and probe.duration_s is not None:
        lacking_s = end_s - probe.duration_s
        if lacking_s > MIN_STEP_S:
            message = f"the clip ends at {end_s:g} s, its file {lacking_s:.2f} s before that"
            return replace(probe, state=SHORT, message=message)
    return probe


def write_probes(path: Path, probes: Sequence[MediaProbe]) -> None:
    """Write the report: one row per clip with media, one column per field of `MediaProbe`."""
    rows: list[Sequence[object]] = [[field.name for field in fields(MediaProbe)]]
    for probe in probes:
        length = "" if probe.duration_s is None else f"{probe.duration_s:.3f}"
        values = astuple(replace(probe, message=" ".join(probe.message.split())))
        flags = ("yes" if probe.video else "no", "yes" if probe.audio else "no")
        rows.append([*values[:3], length, *flags, values[-1]])
    write_atomically(path, write_csv(rows))


def describe_probes(probes: Sequence[MediaProbe]) -> str:
    """Counts in one line."""
    states = Counter(probe.state for probe in probes)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    silent = sum(probe.video and not probe.audio for probe in probes)
    blind = sum(probe.audio and not probe.video for probe in probes)
    return f"{told}; {silent} without sound, {blind} without pictures"
