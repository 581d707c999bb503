"""When failures end a run, and what they have in common."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from micu.base.errors import ConfigError
from micu.store.ledger import MISSING, Failure
from micu.store.manifest import Clip

JUDGED_FIRST = 32
"""Clips that, if they fail one and all, say that the run is at fault and not they."""
JUDGED_FROM = 100
"""Clips from which a share of failures is judged: of the first ten, one may well be bad."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many failures a run bears."""

    count: int | None = None
    """At most so many."""
    share: float | None = None
    """At most this share of the clips, in [0, 1]."""

    @property
    def bears_all(self) -> bool:
        """Whether a run may go on though every clip fails: `100%`."""
        return self.share == 1.0

    def reached(self, failed: int, done: int, *, at_end: bool = False) -> bool:
        """Whether there are more failures than the limit allows.

        Args:
            failed: Clips that failed in this run.
            done: Clips of this run that are through, failed ones included.
            at_end: Whether no more clips come; a share is judged then, or after 100 clips.
        """
        if self.count is not None:
            return failed > self.count
        return (
            self.share is not None
            and (at_end or done >= JUDGED_FROM)
            and failed > self.share * done
        )


def parse_share(text: str) -> Limit:
    """The limit that `5%` or `20` names.

    Raises:
        ConfigError: It names none.
    """
    typed = text.strip()
    if typed.isascii() and typed.isdigit():
        return Limit(count=int(typed))
    try:
        share = float(typed.removesuffix("%")) / 100 if typed.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"--max-failures: expected a number of clips or a share from 0% to 100%, got {text!r}; "
            "type for example --max-failures 5%"
        )
    return Limit(share=share)


SHOWN_CHARACTERS = 200
"""Of a message or a path, in what is said of many."""
REMEDIES = {
    MISSING: "name the folder that the manifest's paths start from, with --media-root",
    "outside_root": "name a folder above both the links and the media, with --media-root",
    "permission": "let yourself read the files",
    "io_error": "see to the disk of the media",
    "timeout": "type a larger --clip-timeout",
    "worker_died": "type fewer --workers, or ask for more memory",
    "no_video": "look at one of these files; sound has a command of its own, micu-extract audio",
    "no_audio": "look at one of these files; they may have no sound at all",
    "unexpected": "look at the traceback above: it may be a package of a version that does not fit",
}
"""What may mend clips that all fail with a code."""


def describe_shared(failed: Sequence[tuple[Clip, Failure]]) -> str:
    """What failures have in common: code, message, folder and kind of file; "" for none.

    Args:
        failed: Clips, each with its ledger row.
    """
    if not failed:
        return ""
    codes = Counter(failure.code for _, failure in failed)
    told = [f"code {_most(codes)}"]
    messages = Counter(_pattern(clip, failure) for clip, failure in failed)
    told.append(f"message {_most(messages)}")
    paths = [PurePosixPath(clip.path) for clip, _ in failed if clip.path]
    folder = os.path.commonpath([f"/{path.parent}" for path in paths] or ["/"])
    if folder != "/":
        told.append(f"folder {folder[1 : SHOWN_CHARACTERS + 1]!r}")
    suffixes = {path.suffix for path in paths}
    if suffixes not in (set(), {""}) and len(suffixes) == 1:
        told.append(f"file names in {suffixes.pop()[:SHOWN_CHARACTERS]!r}")
    (code, _), *_ = codes.most_common(1)
    remedy = REMEDIES.get(code, "look at one of these clips")
    return f"{'; '.join(told)}. What may help: {remedy}"


def _most(counts: Counter[str]) -> str:
    """The most frequent of several, and how frequent it is."""
    (first, count), *_ = counts.most_common(1)
    total = counts.total()
    return f"{first} ({'all' if count == total else count} of {total})"


def _pattern(clip: Clip, failure: Failure) -> str:
    """A message without what is the clip's own: its names, and every number."""
    text = failure.message
    for own in (repr(clip.path), clip.path, repr(clip.clip_id), clip.clip_id):
        text = text.replace(own, "…") if len(own) > 2 else text
    return re.sub(r"[0-9]+(?:[.][0-9]+)?", "N", text)[:SHOWN_CHARACTERS]
