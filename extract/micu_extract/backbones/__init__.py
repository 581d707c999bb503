"""Every backbone that `micu-extract` knows: one import line each, none of which loads torch."""

from collections.abc import Mapping
from dataclasses import replace

from micu.base.errors import ConfigError
from micu.base.registry import suggest
from micu_extract.backbones import htsat, slowonly, swin_v2, text, vgg19, vggish  # noqa: F401
from micu_extract.backbones.base import BACKBONES, Backbone, Option, Run
from micu_extract.backbones.timm_image import TIMM_PREFIX, TimmImage
from micu_extract.backbones.torchvision_video import TV_PREFIX, TorchvisionVideo
from micu_extract.backbones.transformers_models import HF_PREFIX, TRANSFORMERS, split_modality

__all__ = [
    "BACKBONES",
    "PREFIXED",
    "Run",
    "build_backbone",
    "find_backbone",
    "find_name",
    "name_for",
]

PREFIXED: Mapping[str, tuple[type[Backbone], str]] = {
    f"{TIMM_PREFIX}NAME": (TimmImage, "any image model of timm, with its own transform"),
    f"{TV_PREFIX}NAME": (TorchvisionVideo, "any network for clips of torchvision"),
    **{
        f"{HF_PREFIX}NAME{'' if modality == 'video' else f'@{modality}'}": (
            kind,
            f"any encoder of transformers for {told}, by its own processor",
        )
        for (modality, kind), told in zip(
            TRANSFORMERS.items(), ("pictures or clips", "sounds", "sentences"), strict=True
        )
    },
}
"""Families whose members are named by others: how they are typed, and what they are."""


def find_backbone(name: str) -> type[Backbone]:
    """The class behind a name, those of `PREFIXED` included, without loading it.

    Raises:
        RegistryError: Nothing is registered under `name`.
    """
    return _find_family(name)[0] or BACKBONES[name]


def _find_family(name: str) -> tuple[type[Backbone] | None, str]:
    """The class of a name with a prefix, and what it calls its member; None for other names."""
    if name.startswith(HF_PREFIX):
        model, modality = split_modality(name.removeprefix(HF_PREFIX))
        return TRANSFORMERS[modality], model
    for prefix, kind in ((TIMM_PREFIX, TimmImage), (TV_PREFIX, TorchvisionVideo)):
        if name.startswith(prefix):
            return kind, name.removeprefix(prefix)
    return None, ""


def name_for(name: str, modality: str) -> str:
    """What a backbone is called by a command of one modality: `hf:NAME` is told which it is for."""
    if not name.startswith(HF_PREFIX) or modality not in TRANSFORMERS or modality == "video":
        return name
    return name if name.endswith(tuple(f"@{m}" for m in TRANSFORMERS)) else f"{name}@{modality}"


def find_name(features: str) -> str:
    """The backbone of features of some name, which options may have added to; "" for none."""
    if _find_family(features)[0] is not None:
        return features.removesuffix("-grid")
    known = sorted(BACKBONES, key=len, reverse=True)
    return next((n for n in known if features == n or features.startswith(f"{n}-")), "")


def build_backbone(
    name: str, weights: str, run: Run, **options: int | str | bool | None
) -> Backbone:
    """Load a backbone.

    Args:
        name: As in `micu-extract list`.
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        **options: See the class's `OPTIONS`; None stands for the default.

    Raises:
        RegistryError: Unknown name.
        ConfigError: Unknown option, or a value of the wrong type or range.
        WeightsError: The weights cannot be had or do not fit.
    """
    backbone, model = find_backbone(name), _find_family(name)[1]
    chosen: dict[str, int | str | bool] = {"model": model} if model else {}
    given = {key: value for key, value in options.items() if value is not None}
    found = [_find_problem(key, value, backbone.OPTIONS) for key, value in given.items()]
    if problems := [f"backbone {name!r}: {problem}" for problem in found if problem]:
        raise ConfigError("\n".join(problems))
    chosen |= given
    built = backbone(weights, run, **chosen)
    if name in BACKBONES.makers:
        made = dict([BACKBONES.makers[name]])
        built.spec = replace(built.spec, versions={**built.spec.versions, **made})
    return built


def _find_problem(key: str, value: int | str | bool, known: Mapping[str, Option]) -> str | None:
    if key not in known:
        return f"unknown option {key!r}; {suggest(key, known)}"
    option = known[key]
    if type(value) is not option.type:
        return f"{key}: expected {option.type.__name__}, got {value!r}"
    if option.choices and value not in option.choices:
        return f"{key}: expected one of {', '.join(option.choices)}, got {value!r}"
    if option.type is int and value < 1:  # type: ignore[operator]
        return f"{key}: expected at least 1, got {value}"
    return None
