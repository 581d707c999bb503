"""Task `codebook`: how the modalities use the codebook (figure 6 of the paper)."""

import math
from dataclasses import replace

from micu.base.errors import ConfigError, ManifestError
from micu.evaluate.codebook import agreement, count_codes, write_codebook
from micu.evaluate.encoders import CodeEncoder, encode_real
from micu.evaluate.evaluation import TASKS, Evaluation, make_row
from micu.evaluate.report import Row
from micu.evaluate.splits import CLEAN, clips_sha256


@TASKS.register("codebook")
def evaluate_codebook(evaluation: Evaluation) -> list[Row]:
    """Use of the codes over every clip that all modalities have; `clean`: not pretrained on.

    Raises:
        ConfigError: An encoder has no codebook.
        ManifestError: No clip is left.
    """
    rows: list[Row] = []
    for name in evaluation.encoders:
        rows += evaluation.each_protocol(lambda protocol, n=name: _rows(evaluation, protocol, n))  # type: ignore[misc]
    return rows


def _rows(evaluation: Evaluation, protocol: str, name: str) -> list[Row]:
    side = evaluation.source
    encoder = side.encoders[name]
    if not isinstance(encoder, CodeEncoder):
        raise ConfigError(f"codebook: {name!r} has no codebook; leave out --encoder {name}")
    listed = side.clips
    if protocol == CLEAN:
        listed = evaluation.pretraining.unseen(listed)
    clips = [c for c in listed if all(c.clip_id in store for store in side.stores.values())]
    used = {clip.clip_id for clip in clips}
    lacking = sum(clip.clip_id not in used and not clip.is_caption for clip in listed)
    if not clips:
        left = " that the model was not pretrained on" if protocol == CLEAN else ""
        raise ManifestError(
            f"codebook: under {protocol} no clip has all modalities: expected features of "
            f"{', '.join(side.stores)} for one or more of {len(listed)} clips{left}; extract what "
            "is missing, or use --protocol paper"
        )
    evaluation.tell_once(
        f"{name}, {protocol}: {len(clips)} clips"
        + (f"; {lacking} more lack features of a modality" if lacking else "")
    )
    encoded = {
        modality: encode_real(encoder, modality, [clip.clip_id for clip in clips])
        for modality in side.stores
    }
    use = replace(count_codes(encoded, encoder.codebook_size), protocol=protocol)
    is_first = (name, protocol) == (evaluation.encoders[0], evaluation.protocols[0])
    if evaluation.codebook_out is not None and is_first:
        write_codebook(use, evaluation.codebook_out)
        evaluation.tell(f"wrote {evaluation.codebook_out} ({name}, {protocol})")
    values: dict[tuple[str, str, str], float] = {
        ("", "", "used_by_all"): use.used_by_all(),
        **{("", "", f"shared_by_{n}"): share for n, share in use.shares().items()},
        **{("", name, "perplexity"): use.perplexity(name) for name in encoded},
        **{("", name, "active_codes"): float(use.active(name)) for name in encoded},
        **{(*pair, "agreement"): share for pair, share in agreement(encoded).items()},
    }
    pretrained = evaluation.pretraining.leaks(clips) if name == "checkpoint" else ()
    return [
        make_row(
            evaluation,
            task="codebook",
            protocol=protocol,
            method=name,
            train=first,
            test=second,
            threshold_source="none",
            metric=metric,
            value=value,
            n_clips=len(clips),
            n_lacking=lacking,
            test_sha256=clips_sha256(clips),
            features=tuple(side.stores),
            leaks=";".join(pretrained),
            note="no step is real in both" if math.isnan(value) else "",
        )
        for (first, second, metric), value in values.items()
    ]
