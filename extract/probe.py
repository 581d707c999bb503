"""Looking at media before extracting: what is missing, short, or lacks a stream."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from joblib import Parallel, delayed

from extract.backbones.base import MIN_STEP_S
from extract.media import Source
from micu.errors import DecodeError
from micu.files import write_atomically
from micu.manifest import Clip

SHORT, GOOD = "short", "ok"


@dataclass(frozen=True, slots=True)
class Probe:
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
    return manifest.with_suffix(".probe.csv")


def probe_media(clips: Sequence[Clip], media_root: Path, workers: int) -> list[Probe]:
    """Open the file of every clip, each file once.

    Args:
        clips: Rows of a manifest; those without a path have no media and are left out.
        media_root: Folder that their paths start from.
        workers: Processes.
    """
    with_media = [clip for clip in clips if clip.path]
    paths = list(dict.fromkeys(clip.path for clip in with_media))
    jobs = (delayed(probe_file)(path, media_root) for path in paths)
    probes: list[Probe] = Parallel(n_jobs=workers, batch_size="auto")(jobs)
    by_path = dict(zip(paths, probes, strict=True))
    return [_judge(clip, by_path[clip.path]) for clip in with_media]


def probe_file(path: str, media_root: Path) -> Probe:
    """What a media file holds; `clip_id` is left empty."""
    clip = Clip(clip_id=path, path=path)
    duration_s: float | None = None
    has = {"video": False, "audio": False}
    reason: DecodeError | None = None
    for kind in ("video", "audio"):
        try:
            with Source(clip, media_root, kind) as source:
                has[kind] = True
                if source.container.duration is not None:
                    duration_s = source.container.duration / 1e6
        except DecodeError as error:
            if not error.code.startswith("no_"):
                reason = error
    if reason is None and not any(has.values()):
        reason = DecodeError("unreadable", f"{path!r}: the file has neither pictures nor sound")
    code, message = (reason.code, str(reason)) if reason else (GOOD, "")
    return Probe("", path, code, duration_s, has["video"], has["audio"], message)


def _judge(clip: Clip, probe: Probe) -> Probe:
    """The probe of a clip's file, with what it means for the clip."""
    probe = replace(probe, clip_id=clip.clip_id)
    end_s = clip.end_s if clip.end_s is not None else (clip.start_s or 0.0) + MIN_STEP_S
    if probe.state == GOOD and probe.duration_s is not None:
        lacking_s = end_s - probe.duration_s
        if lacking_s > MIN_STEP_S:
            message = f"the clip ends at {end_s:g} s, its file {lacking_s:.2f} s before that"
            return replace(probe, state=SHORT, message=message)
    return probe


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Write the report: one row per clip with media, one column per field of `Probe`."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(field.name for field in fields(Probe))
    for probe in probes:
        length = "" if probe.duration_s is None else f"{probe.duration_s:.3f}"
        values = astuple(replace(probe, message=" ".join(probe.message.split())))
        flags = ("yes" if probe.video else "no", "yes" if probe.audio else "no")
        writer.writerow([*values[:3], length, *flags, values[-1]])
    write_atomically(path, table.getvalue().encode("utf-8", "surrogateescape"))


def describe_probes(probes: Sequence[Probe]) -> str:
    """Counts in one line."""
    states = Counter(probe.state for probe in probes)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    silent = sum(probe.video and not probe.audio for probe in probes)
    blind = sum(probe.audio and not probe.video for probe in probes)
    return f"{told}; {silent} without sound, {blind} without pictures"
