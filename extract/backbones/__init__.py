"""Every backbone that `micu-extract` knows: one import line each, none of which loads torch."""

from collections.abc import Mapping

from extract.backbones import htsat, slowonly, swin_v2, text  # noqa: F401
from extract.backbones.base import BACKBONES, Backbone, Option
from extract.backbones.swin_v2 import TIMM_PREFIX, TimmImage
from micu.errors import ConfigError
from micu.registry import suggest

__all__ = ["BACKBONES", "TIMM_PREFIX", "build_backbone", "find_backbone"]


def find_backbone(name: str) -> type[Backbone]:
    """The class behind a name, `timm:NAME` included, without loading it.

    Raises:
        RegistryError: Nothing is registered under `name`.
    """
    return TimmImage if name.startswith(TIMM_PREFIX) else BACKBONES[name]


def build_backbone(name: str, weights: str, device: str, **options: int | str | None) -> Backbone:
    """Load a backbone.

    Args:
        name: As in `micu-extract list`, or `timm:NAME` for any image model of timm.
        weights: `pretrained`, a path, `random` or `random:SEED`.
        device: As `micu.devices.resolve_device` takes it.
        **options: See the class's `OPTIONS`; None stands for the default.

    Raises:
        RegistryError: Unknown name.
        ConfigError: Unknown option, or a value of the wrong type or range.
        WeightsError: The weights cannot be had or do not fit.
    """
    backbone = find_backbone(name)
    chosen: dict[str, int | str] = {}
    if name.startswith(TIMM_PREFIX):
        chosen["model"] = name.removeprefix(TIMM_PREFIX)
    chosen |= _check_options(name, backbone.OPTIONS, options)
    return backbone(weights, device, **chosen)


def _check_options(
    name: str, known: Mapping[str, Option], options: Mapping[str, int | str | None]
) -> dict[str, int | str]:
    problems, chosen = [], {}
    for key, value in options.items():
        if value is None:
            continue
        if key not in known:
            problems.append(f"backbone {name!r}: unknown option {key!r}; {suggest(key, known)}")
        elif type(value) is not known[key].type:
            problems.append(
                f"backbone {name!r}: {key}: expected {known[key].type.__name__}, got {value!r}"
            )
        elif isinstance(value, int) and value < 1:
            problems.append(f"backbone {name!r}: {key}: expected at least 1, got {value}")
        else:
            chosen[key] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return chosen
