"""Task `codebook`: how the modalities use the codebook (figure 6 of the paper)."""

from dataclasses import replace

from micu.errors import ConfigError, ManifestError
from micu.evaluate.codebook import agreement, count_codes, write_codebook
from micu.evaluate.encoders import CodeEncoder, encode_real
from micu.evaluate.evaluation import TASKS, Evaluation, make_row
from micu.evaluate.report import Row
from micu.evaluate.splits import CLEAN


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
        raise ConfigError(f"--task codebook: {name!r} has no codebook")
    clips = [c for c in side.clips if all(c.clip_id in store for store in side.stores.values())]
    if protocol == CLEAN:
        clips = list(evaluation.pretraining.unseen(clips))
    if not clips:
        raise ManifestError(f"codebook: under {protocol} no clip has all modalities")
    encoded = {
        modality: encode_real(encoder, modality, [clip.clip_id for clip in clips])
        for modality in side.stores
    }
    use = replace(count_codes(encoded, encoder.codebook_size), protocol=protocol)
    is_first = (name, protocol) == (evaluation.encoders[0], evaluation.protocols[-1])
    if evaluation.codebook_path is not None and is_first:
        write_codebook(use, evaluation.codebook_path)
        evaluation.tell(f"wrote {evaluation.codebook_path} ({name}, {protocol})")
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
            features=tuple(side.stores),
            leaks=";".join(pretrained),
        )
        for (first, second, metric), value in values.items()
    ]
