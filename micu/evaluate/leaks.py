"""What a figure leaks, as names for the results' column `leaks`, `;` between two.

| name | meaning |
|---|---|
| `threshold:test` | the threshold was chosen on the test set |
| `epoch:test` | so was the probe's epoch |
| `checkpoint:test` | so was the checkpoint, among several |
| `test-clips-in-training:N` | N test clips are of media items that the probe was trained on |
| `test-split:NAME` | the test clips are those of another split of the manifest than `test` |
| `unusable-classes:N` | N known classes have no training clip or no test clip |
| `pretraining-overlap:N` | N test clips are of media items that the model was pretrained on |
| `pretraining-overlap:unknown` | the clips of the pretraining are not known |
| `pretraining-text:labels` | the pretraining's sentences say the class: one for each label |
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from micu.base.errors import ConfigError, ManifestError, MicuError
from micu.data.dataset import TEXT, select_clips
from micu.store.manifest import Clip, Manifest, read_manifest
from micu.store.overlap import items_sha256, media_item
from micu.train.checkpoint import LoadedModel

THRESHOLD_ON_TEST, EPOCH_ON_TEST = "threshold:test", "epoch:test"
CHECKPOINT_ON_TEST = "checkpoint:test"


@dataclass(frozen=True, slots=True)
class Pretraining:
    """What is known about the clips that a model was pretrained on."""

    seen: frozenset[str] | None = None
    """Their media items; None where they are not known."""
    text_is_label: bool = False
    """Whether text was pretrained on, and every class had one sentence alone."""
    manifest_sha256: str = ""
    """Of the manifest that says so; empty where there is none."""

    def leaks(self, test: Iterable[Clip]) -> tuple[str, ...]:
        """What a test on some clips leaks."""
        found: list[str] = []
        if self.seen is None:
            found.append("pretraining-overlap:unknown")
        else:
            overlap = sum(_is_in(clip, self.seen) for clip in test)
            found += [f"pretraining-overlap:{overlap}"] if overlap else []
        return (*found, *(["pretraining-text:labels"] if self.text_is_label else []))

    def unseen(self, clips: Sequence[Clip]) -> tuple[Clip, ...]:
        """The clips that are not known to have been pretrained on."""
        seen = self.seen or frozenset()
        return tuple(clip for clip in clips if not _is_in(clip, seen))


def _is_in(clip: Clip, seen: frozenset[str]) -> bool:
    """Whether a clip's media item, or its id in a manifest that gave no groups, is there."""
    return media_item(clip) in seen or clip.clip_id in seen


def find_pretraining(
    loaded: LoadedModel, at_hand: Sequence[Manifest], typed: Manifest | None
) -> Pretraining:
    """What a model was pretrained on, from the manifest that its checkpoint names by hash.

    The authors' checkpoint names none: it is what was typed that is believed. One of `micu-train`
    also notes where its manifest lay: if the file is there, unchanged, it need not be typed.

    Args:
        loaded: The model.
        at_hand: Manifests that were read for the evaluation.
        typed: The manifest that the user says it was; None looks among those at hand, and where the
            checkpoint says that it lay.

    Raises:
        ConfigError: The typed manifest is not the one that the checkpoint names.
    """
    recorded = loaded.record.get("manifest_sha256")
    if typed is not None and recorded is not None and not _is_that_of(loaded, typed):
        raise ConfigError(
            f"--pretraining-manifest {typed.path}: its sha256 is {typed.sha256[:12]}…, the "
            f"checkpoint was trained from {str(recorded)[:12]}… ({loaded.record.get('manifest')})"
        )
    manifest = typed or next((m for m in at_hand if _is_that_of(loaded, m)), None)
    manifest = manifest or _recorded_manifest(loaded)
    data = loaded.config.data
    lists = [*filter(None, [data.exclude_ids]), *data.exclude_manifests]
    missing = [path for path in lists if not Path(path).is_file()]
    if typed is not None and missing:
        raise ConfigError(
            f"--pretraining-manifest: the checkpoint left out the clips of {', '.join(missing)}, "
            "which is not there; put it there, or leave the option out"
        )
    if manifest is None or missing:
        return Pretraining()
    clips = select_clips(manifest.clips, loaded.config.data)
    return Pretraining(
        frozenset(map(media_item, clips)),
        TEXT in loaded.config.modalities and _says_the_class(clips),
        manifest.sha256,
    )


def _is_that_of(loaded: LoadedModel, manifest: Manifest) -> bool:
    """Whether a model was trained on what a manifest lists: its bytes, or the same clips of it."""
    if manifest.sha256 == loaded.record.get("manifest_sha256"):
        return True
    try:
        clips = select_clips(manifest.clips, loaded.config.data)
    except MicuError:  # it has other splits, or what was left out is not known
        return False
    return items_sha256(clips) == loaded.record.get("items_sha256")


def _recorded_manifest(loaded: LoadedModel) -> Manifest | None:
    """The manifest at the path that a checkpoint notes, if it lists what was trained on."""
    try:
        manifest = read_manifest(Path(str(loaded.record.get("manifest", ""))))
    except ManifestError:
        return None
    return manifest if _is_that_of(loaded, manifest) else None


def _says_the_class(clips: Sequence[Clip]) -> bool:
    """Whether every label has one text, and some label several clips."""
    labelled = [clip for clip in clips if clip.label and clip.text]
    labels = {clip.label for clip in labelled}
    return len({(clip.label, clip.text) for clip in labelled}) == len(labels) < len(labelled)
