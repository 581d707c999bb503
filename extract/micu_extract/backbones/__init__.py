"""Every backbone that `micu-extract` knows: one import line each, none of which loads torch."""

from collections.abc import Mapping

from micu.base.errors import ConfigError
from micu.base.registry import suggest
from micu_extract.backbones import htsat, slowonly, swin_v2, text, vgg19, vggish  # noqa: F401
from micu_extract.backbones.base import BACKBONES, Backbone, Option, Run
from micu_extract.backbones.timm_image import TIMM_PREFIX, TimmImage

__all__ = ["BACKBONES", "TIMM_PREFIX", "Run", "build_backbone", "find_backbone", "find_name"]


def find_backbone(name: str) -> type[Backbone]:
    """The class behind a name, `timm:NAME` included, without loading it.

    Raises:
        RegistryError: Nothing is registered under `name`.
    """
    return TimmImage if name.startswith(TIMM_PREFIX) else BACKBONES[name]


def find_name(features: str) -> str:
    """The backbone of features of some name, which options may have added to; "" for none."""
    if features.startswith(TIMM_PREFIX):
        return features.removesuffix("-grid")
    known = sorted(BACKBONES, key=len, reverse=True)
    return next((n for n in known if features == n or features.startswith(f"{n}-")), "")


def build_backbone(
    name: str, weights: str, run: Run, **options: int | str | bool | None
) -> Backbone:
    """Load a backbone.

    Args:
        name: As in `micu-extract list`, or `timm:NAME` for any image model of timm.
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        **options: See the class's `OPTIONS`; None stands for the default.

    Raises:
        RegistryError: Unknown name.
        ConfigError: Unknown option, or a value of the wrong type or range.
        WeightsError: The weights cannot be had or do not fit.
    """
    backbone = find_backbone(name)
    chosen: dict[str, int | str | bool] = {}
    if name.startswith(TIMM_PREFIX):
        chosen["model"] = name.removeprefix(TIMM_PREFIX)
    chosen |= _check_options(name, backbone.OPTIONS, options)
    return backbone(weights, run, **chosen)


def _check_options(
    name: str, known: Mapping[str, Option], options: Mapping[str, int | str | bool | None]
) -> dict[str, int | str | bool]:
    problems, chosen = [], {}
    for key, value in options.items():
        if value is None:
            continue
        problem = _find_problem(key, value, known)
        if problem:
            problems.append(f"backbone {name!r}: {problem}")
        chosen[key] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return chosen


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
