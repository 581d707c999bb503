"""A model as a Hub has it: safetensors, a configuration in JSON, and a card for people."""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save

from micu import __version__
from micu.base.errors import CheckpointError, ConfigError, WeightsError, brief
from micu.base.files import write_atomically
from micu.evaluate.markdown import TextTable, paragraph, render_markdown
from micu.evaluate.models import describe_preset
from micu.evaluate.report import read_rows
from micu.train.checkpoint import FORMAT, PRETRAINED_CONFIG, PRETRAINED_WEIGHTS, LoadedModel

CARD = "README.md"
HUB_PREFIX = "hf:"
MANIFEST = "manifest"
"""What a run's record calls the path of its manifest."""


def write_pretrained(
    loaded: LoadedModel, folder: Path, *, results: Path | None = None, licence: str = "other"
) -> None:
    """Write a model, its configuration and its card.

    Args:
        loaded: The model.
        folder: Where to; it is made if need be.
        results: Results file of `micu-eval`, whose rows of this model stand in the card.
        licence: As the Hub spells it, such as `mit`.

    Raises:
        ConfigError: A licence that is no word, or a results file that cannot be read.
        OSError: The disk refused.
    """
    if not re.fullmatch(r"[a-z0-9.-]+", licence):
        raise ConfigError(f"licence: expected a word such as mit or cc-by-4.0, got {licence!r}")
    card = _card(loaded, results, licence)
    record = dict(loaded.record)
    if MANIFEST in record:  # its name alone: the folders of who trained it are nobody's business
        record[MANIFEST] = Path(str(record[MANIFEST])).name
    content = {
        "model_type": "micu",
        "format": FORMAT,
        "micu_version": __version__,
        "step": loaded.step,
        "shapes": {name: list(shape) for name, shape in loaded.model.shapes.items()},
        "specs": loaded.specs,
        "record": record,
        "config": asdict(loaded.config),
    }
    state = {name: x.cpu().contiguous().clone() for name, x in loaded.model.state_dict().items()}
    # The card last: whoever finds it finds the rest.
    write_atomically(folder / PRETRAINED_WEIGHTS, save(state, {"format": "pt"}))
    write_atomically(folder / PRETRAINED_CONFIG, json.dumps(content, indent=1).encode())
    write_atomically(folder / CARD, card.encode())


def _card(loaded: LoadedModel, results: Path | None, licence: str) -> str:
    config, record = loaded.config, loaded.record
    codes = f"{config.quantizer.codebook_size} codes of {config.encoder.embed_dim} numbers"
    known = {
        "Preset": describe_preset(loaded),
        "Modalities": ", ".join(config.modalities),
        "Codebook": codes,
        "Steps": str(loaded.step),
        "Clips": str(record.get("clips", "not known")),
        "Manifest": Path(str(record.get(MANIFEST, "not known"))).name,
        "Manifest, sha256": str(record.get("manifest_sha256", "not known")),
        "Checkpoint, sha256": loaded.sha256,
    }
    parts = [
        f"---\nlicense: {licence}\nlibrary_name: micu\ntags: [multimodal]\n---",
        f"# MICU of {', '.join(config.modalities)}",
        "Codes that the modalities share (*Open-set Cross Modal Generalization via Multimodal "
        "Unified Representation*, ICCV 2025). `micu.load` reads it from a folder, or from the Hub "
        f"as `{HUB_PREFIX}OWNER/NAME`; no file of it holds code.",
        "## Trained on",
        render_markdown(TextTable((("", ""), *known.items()))),
        "## Backbones of its features",
        render_markdown(TextTable(tuple(_backbones(loaded))))
        if loaded.specs
        else "The checkpoint does not say.",
        "## Figures",
    ]
    figures = tuple(_figures(loaded, results)) if results is not None else ()
    parts.append(
        "Each as it was evaluated; `leaks` names what a figure rests on that it should not.\n\n"
        + render_markdown(TextTable(figures).without_empty_columns())
        if len(figures) > 1
        else "None were given."
    )
    parts += ["## Licence", f"{paragraph(licence)}, of this model; backbones have their own."]
    return "\n\n".join(parts) + "\n"


def _backbones(loaded: LoadedModel) -> Iterator[tuple[str, ...]]:
    yield ("modality", "backbone", "step", "weights", "weights, sha256", "licence of the weights")
    for modality, spec in loaded.specs.items():
        shape = " × ".join(map(str, spec["shape"]))
        named = (modality, spec["backbone"], shape, spec["weights"], spec["weights_sha256"])
        yield (*named, _licence_of(spec["backbone"]))


def _licence_of(features: str) -> str:
    from micu_extract.backbones import find_backbone, find_name

    name = find_name(features)
    return find_backbone(name).gives.licence if name else "not known"


def _figures(loaded: LoadedModel, results: Path) -> Iterator[tuple[str, ...]]:
    yield ("task", "protocol", "from", "to", "setting", "metric", "value", "clips", "leaks")
    for row in read_rows(results):
        if row.checkpoint_sha256 == loaded.sha256:
            pair = (row.train_modality, row.test_modality)
            clips = "" if row.n_clips is None else str(row.n_clips)
            figure = (row.setting, row.metric, f"{row.value:.4f}", clips, row.leaks)
            yield (row.task, row.protocol, *pair, *figure)


def fetch_pretrained(repo: str) -> Path:
    """The weights of a model on the Hub, beside its configuration; the cache is asked first.

    Args:
        repo: Its name, OWNER/NAME.

    Raises:
        CheckpointError: It cannot be had.
    """
    from micu_extract.backbones.hubs import download, hub_file

    remedy = f"On a machine with network type: {download(repo)}; copy it here, and load DIR"
    try:
        files = [
            hub_file(repo, (name,), remedy) for name in (PRETRAINED_CONFIG, PRETRAINED_WEIGHTS)
        ]
    except WeightsError as error:
        raise CheckpointError(f"{HUB_PREFIX}{repo}: {error}") from error
    if files[0].parent != files[1].parent:
        raise CheckpointError(
            f"{HUB_PREFIX}{repo}: its files are of two revisions; type: {download(repo)}, and load "
            "DIR"
        )
    return files[1]


def push_pretrained(
    loaded: LoadedModel, repo: str, *, private: bool, results: Path | None, licence: str
) -> str:
    """Write a model into a repository of the Hub, which is made if need be.

    Returns:
        Address of the change.

    Raises:
        ConfigError: As from `write_pretrained`; or the Hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory(prefix="micu-") as folder:
        write_pretrained(loaded, Path(folder), results=results, licence=licence)
        api = HfApi()
        try:
            made = api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=made.repo_id, folder_path=folder, commit_message=f"micu {__version__}"
            )
        except (HfHubHTTPError, HFValidationError) as error:
            raise ConfigError(
                f"push_to_hub {repo!r}: expected a repository that may be written to, got: "
                f"{brief(error)}; type: hf auth login"
            ) from error
    return str(commit)
