"""A trained model in Python: codes and vectors of clips, and search among them.

Padding, masks, dtype, device and the size of batches are those of the evaluation, by whose encoder
everything here is encoded.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.devices import resolve_device
from micu.base.errors import CheckpointError, ConfigError, StoreError, brief
from micu.base.registry import suggest
from micu.evaluate.encoders import CodeEncoder, encode_real
from micu.evaluate.models import check_features, load_model
from micu.library.clips import (
    ClipList,
    FeatureSet,
    extract_features,
    read_manifest,
    write_npz,
    write_parquet,
)
from micu.library.hub import HUB_PREFIX, fetch_pretrained, push_pretrained, write_pretrained
from micu.store.manifest import Clip, is_table
from micu.store.sets import FeatureStore
from micu.train.checkpoint import LAST, PRETRAINED_WEIGHTS, LoadedModel

PICTURE = "video"
"""The modality that a picture is a clip of."""


@dataclass(frozen=True)
class Embedding:
    """N clips as a model sees them, modality after modality."""

    vectors: NDArray[Any]
    """(N, D), mean over the clip's real steps of their quantised vectors"""
    codes: NDArray[np.int64]
    """(N, T), the code of each step"""
    mask: NDArray[np.bool_]
    """(N, T), True = real step: one that was extracted"""
    clip_ids: tuple[str, ...]
    modalities: tuple[str, ...]

    def __len__(self) -> int:  # noqa: D105
        return len(self.clip_ids)

    @cached_property  # of a million clips it takes seconds
    def unit_vectors(self) -> NDArray[Any]:
        """`vectors` of length 1, (N, D); a zero stays zero. Their products are cosines."""
        length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        unit: NDArray[Any] = self.vectors / np.where(length == 0, 1, length)
        return unit

    def to_numpy(self, path: str | os.PathLike[str]) -> None:
        """Write it as an `.npz` with arrays of these names."""
        write_npz(Path(path), {name: np.asarray(x) for name, x in self._columns().items()})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write it as a table with columns of these names, one row per clip.

        Raises:
            ExtraError: pyarrow is not installed.
        """
        write_parquet(Path(path), {name: list(x) for name, x in self._columns().items()})

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Hit:
    """A clip that was found."""

    clip_id: str
    modality: str
    score: float
    """Cosine of its vector and the query's."""
    place: int
    """Its row in what was searched."""


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model; `loaded.model` is the network, `loaded.config` its settings."""

    loaded: LoadedModel
    path: Path
    """The checkpoint."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it can embed."""
        return self.loaded.config.modalities

    def __repr__(self) -> str:  # noqa: D105
        config = self.loaded.config
        return (
            f"Model({str(self.path)!r}): {', '.join(self.modalities)}; "
            f"{config.quantizer.codebook_size} codes of {config.encoder.embed_dim} numbers"
        )

    def embed(
        self,
        inputs: Mapping[str, Any],
        *,
        clip_ids: Sequence[str] | None = None,
        **extraction: Any,
    ) -> Embedding:
        """Vectors and codes of clips.

        Args:
            inputs: By modality: a feature set, or its folder; or clips as `read_manifest` takes
                them, and for text a sentence or several. Those are extracted first, by the backbone
                that the model was trained on.
            clip_ids: Which clips of feature sets, in this order; None takes all.
            **extraction: As `micu.extract_features` takes it, where something is extracted, such as
                `weights`, `backbone` or `device`.

        Raises:
            StoreError: Features are not of the kind that the model was trained on, or no clip has
                any.
            ConfigError: A checkpoint that does not say by what its features were made.
        """
        if not inputs:
            raise ConfigError(
                f"embed: expected a modality of {', '.join(self.modalities)} and its clips, got "
                'none; write embed({"video": features})'
            )
        for modality in inputs:
            if modality not in self.modalities:
                raise ConfigError(
                    f"the model has no modality {modality!r}; {suggest(modality, self.modalities)}"
                )
        parts = []
        for modality, source in inputs.items():
            with self._open(modality, source, extraction) as store:
                parts.append(self._embed(modality, store, clip_ids))
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("vectors", "codes", "mask")
        }
        ids = tuple(name for part in parts for name in part.clip_ids)
        kinds = tuple(name for part in parts for name in part.modalities)
        return Embedding(**joined, clip_ids=ids, modalities=kinds)

    def _embed(
        self, modality: str, store: FeatureStore, clip_ids: Sequence[str] | None
    ) -> Embedding:
        check_features({modality: store}, self.loaded)
        ids = store.clip_ids if clip_ids is None else tuple(map(str, clip_ids))
        for clip_id in ids:
            if clip_id not in store:
                raise StoreError(f"{store.folder}: no features of clip {brief(repr(clip_id))}")
        clips = [Clip(clip_id=clip_id) for clip_id in dict.fromkeys(ids)]
        stores = {modality: store}
        encoder = CodeEncoder("checkpoint", self.loaded.model, stores, clips)
        found = encode_real(encoder, modality, ids)
        assert found.codes is not None
        return Embedding(
            found.mean().cpu().numpy(),
            found.codes.cpu().numpy(),
            found.mask.cpu().numpy(),
            ids,
            (modality,) * len(ids),
        )

    @contextmanager
    def _open(
        self, modality: str, source: Any, extraction: Mapping[str, Any]
    ) -> Iterator[FeatureStore]:
        """The features that `source` is, or that are extracted from it for the time being."""
        is_path = isinstance(source, str | os.PathLike)
        if isinstance(source, FeatureStore):
            yield source
        elif is_path and (Path(source) / "set.json").is_file():
            yield FeatureSet(source)
        else:
            clips = _sentences(source) if modality == "text" else read_manifest(source)
            with tempfile.TemporaryDirectory(prefix="micu-") as folder:
                given = {**self._made_with(modality), **extraction}
                if "backbone" not in given:
                    raise ConfigError(
                        f"{self.path}: does not say by which backbone its {modality} features were "
                        "made; name it: backbone=NAME, with weights=PATH if it is not published"
                    )
                found = extract_features(clips, out=folder, **given)
                yield found
                found.close()

    def _made_with(self, modality: str) -> dict[str, Any]:
        """How the features were made that the model was trained on, for `extract_features`.

        What it does not tell differs in the header of what is extracted, and is refused by name.
        """
        if modality not in self.loaded.specs:
            return {}
        from micu_extract.backbones import find_backbone, find_name

        spec = self.loaded.specs[modality]
        name, made = find_name(spec["backbone"]), spec["preprocessing"]
        if not name:
            return {}
        facts = {**made, **made.get("input", {}), "grid": spec["backbone"].endswith("-grid")}
        facts["frames_per_second"] = facts.get("fps")
        options = {
            option: facts[option]
            for option, told in find_backbone(name).OPTIONS.items()
            if isinstance(facts.get(option), told.type)
        }
        is_drawn = re.fullmatch(r"random:\d+", spec["weights"])
        return {
            "backbone": name,
            "weights": spec["weights"] if is_drawn else "pretrained",
            "precision": made.get("precision", "float32"),
            **options,
        }

    def search(
        self,
        index: Embedding | Mapping[str, Any],
        *,
        text: str | None = None,
        audio: Any = None,
        video: Any = None,
        picture: Any = None,
        k: int = 10,
        **extraction: Any,
    ) -> list[Hit]:
        """The clips that are most like a query: every one is compared, by the cosine.

        Args:
            index: What is searched: from `embed`, or what `embed` takes.
            text: A sentence to search by.
            audio: A file to search by, by its sound.
            video: A file to search by, by its pictures.
            picture: A picture to search by.
            k: Hits at most.
            **extraction: As of `embed`, for the query.

        Returns:
            The best first; of equals, the first in the index.

        Raises:
            ConfigError: Not exactly one query, or one of several clips.
            StoreError: As from `embed`.
        """
        asked = {"text": text, "audio": audio, "video": video, "picture": picture}
        given = {name: query for name, query in asked.items() if query is not None}
        if len(given) != 1 or k < 1:
            raise ConfigError(
                f"search: expected one of {', '.join(asked)} and k of at least 1, got "
                f"{', '.join(given) or 'no query'} and k={k}"
            )
        ((name, query),) = given.items()
        found = self.embed({PICTURE if name == "picture" else name: query}, **extraction)
        if len(found) != 1:
            raise ConfigError(f"search: expected one {name} to search by, got {len(found)}")
        searched = index if isinstance(index, Embedding) else self.embed(index)
        scores = searched.unit_vectors @ found.unit_vectors[0]
        return [
            Hit(searched.clip_ids[i], searched.modalities[i], float(scores[i]), int(i))
            for i in np.argsort(-scores, kind="stable")[:k]
        ]

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        results: str | os.PathLike[str] | None = None,
        licence: str = "other",
    ) -> None:
        """Write the model as a Hub has it: `model.safetensors`, `config.json` and a card.

        Args:
            folder: Where to; `micu.load` reads it.
            results: Results file of `micu-eval`, whose rows of this model stand in the card.
            licence: As the Hub spells it, such as `mit`.
        """
        write_pretrained(self.loaded, Path(folder), results=_path(results), licence=licence)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        results: str | os.PathLike[str] | None = None,
        licence: str = "other",
    ) -> str:
        """Write the model into a repository of the Hub, OWNER/NAME; it is made if need be.

        Args:
            repo: Its name.
            private: Whether a new one is.
            results: As of `save_pretrained`.
            licence: Likewise.

        Returns:
            Address of the change.
        """
        return push_pretrained(
            self.loaded, repo, private=private, results=_path(results), licence=licence
        )


def _path(given: str | os.PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)


def _sentences(source: Any) -> ClipList:
    """Sentences as clips, numbered from 0; or clips as `read_manifest` takes them."""
    if isinstance(source, str) and not (is_table(source) and Path(source).is_file()):
        source = [source]
    if not isinstance(source, Sequence) or isinstance(source, str):
        return read_manifest(source)
    clips = tuple(Clip(clip_id=str(i), text=text) for i, text in enumerate(source))
    return ClipList(clips, Path(), "sentences")


def load(source: str | os.PathLike[str], *, device: str = "auto") -> Model:
    """A trained model.

    Args:
        source: A checkpoint of `micu-train`, or the folder of its run; the authors' `MICU.pt`; what
            `save_pretrained` wrote, as a folder or as `hf:OWNER/NAME` on the Hub.
        device: `auto`, `cpu`, `cuda:N` or `mps`.

    Raises:
        CheckpointError: It is missing, cut off, hostile or none of these.
    """
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        path = fetch_pretrained(source.removeprefix(HUB_PREFIX))
    else:
        path = Path(source)
    if path.is_dir():
        path = path / (PRETRAINED_WEIGHTS if (path / PRETRAINED_WEIGHTS).exists() else LAST)
    if not path.is_file():
        raise CheckpointError(
            f"{source}: expected a checkpoint, or the folder of a run, got none; type the last.pt "
            "of a run, such as runs/micu-vaf-0/last.pt"
        )
    return Model(load_model(path, resolve_device(device)), path)
