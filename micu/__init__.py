"""MICU: unified discrete representations of video, audio, flow and text (ICCV 2025).

`micu` owns the contract (manifests and feature shards), trains the model and evaluates it. Its
public names are those of `__all__`, each loaded when it is first used: importing `micu` loads
nothing heavy, and `micu_extract` is loaded where something is extracted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micu.base.errors import MicuError
    from micu.cli.calls import evaluate_model, train_model
    from micu.library.clips import ClipList, FeatureSet, extract_features, read_manifest
    from micu.library.model import Embedding, Hit, Model, load

__version__ = "0.1.0"
__all__ = [
    "ClipList",
    "Embedding",
    "FeatureSet",
    "Hit",
    "MicuError",
    "Model",
    "evaluate_model",
    "extract_features",
    "load",
    "read_manifest",
    "train_model",
]

_HOMES = {
    **dict.fromkeys(
        ("ClipList", "FeatureSet", "extract_features", "read_manifest"), "library.clips"
    ),
    **dict.fromkeys(("Embedding", "Hit", "Model", "load"), "library.model"),
    **dict.fromkeys(("evaluate_model", "train_model"), "cli.calls"),
    "MicuError": "base.errors",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'micu' has no attribute {name!r}")
    return getattr(import_module(f"micu.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
