"""Which runs a sweep has: every combination of the swept settings, once per seed."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from micu.base.errors import ConfigError, MicuError
from micu.config.overrides import idle_settings
from micu.config.sections import TrainConfig

PRESET = "preset"
"""Key of an axis whose values are presets; every other key is a setting's."""

Build = Callable[[str, Sequence[str]], TrainConfig]
"""(preset, assignments `KEY=VALUE` of the sweep) → the configuration of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    setting: str
    """Name of its place in the grid; runs of one setting differ in the seed alone."""
    values: Mapping[str, str]
    """Value by axis, as typed."""
    preset: str
    assignments: tuple[str, ...]
    """`KEY=VALUE` of the axes, without presets."""
    config: TrainConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.setting}-{self.config.seed}"


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Axes from `KEY=VALUE,VALUE,…`; with a semicolon among the values that separates them.

    Raises:
        ConfigError: No key, no value, or a key or a value twice; all of them in one message.
    """
    axes: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for text in texts:
        key, _, listed = (part.strip() for part in text.partition("="))
        values = [part.strip() for part in listed.split(";" if ";" in listed else ",")]
        if not key or not all(values):
            problems.append(f"{text}: expected KEY=VALUE,VALUE with no value left empty")
        elif key == "seed":
            problems.append(f"{text}: --seeds N says how many seeds, --seed which is the first")
        elif key in axes:
            problems.append(f"{text}: {key} is swept already; list all its values in one --sweep")
        elif len(set(values)) < len(values):
            problems.append(f"{text}: a value stands there twice")
        axes[key] = tuple(values)
    if problems:
        raise ConfigError("\n".join(f"--sweep {problem}" for problem in problems))
    return axes


def plan_runs(
    preset: str, axes: Mapping[str, Sequence[str]], seeds: int, build: Build
) -> list[SweepRun]:
    """The runs of a sweep, those of one setting beside each other.

    Args:
        preset: Where an axis of presets does not say another.
        axes: Values by key.
        seeds: How many per setting, from the configuration's own on.
        build: Makes configurations.

    Raises:
        ConfigError: A configuration cannot be, or does not depend on what is swept, or two settings
            would share a folder; all of them in one message.
    """
    runs: list[SweepRun] = []
    problems: list[str] = []
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        base = values.get(PRESET, preset)
        assignments = tuple(f"{key}={v}" for key, v in values.items() if key != PRESET)
        setting = _name(base, assignments, PRESET in values)
        try:
            first = build(base, assignments).seed
            configs = [
                build(base, (*assignments, f"seed={seed}")) for seed in range(first, first + seeds)
            ]
        except MicuError as error:
            told = str(error).replace("\n", "\n  ")
            problems.append(f"{', '.join(f'{k}={v}' for k, v in values.items())}:\n  {told}")
            continue
        varied = [key for key, among in axes.items() if len(among) > 1]
        problems += [f"{setting}: {told}" for told in idle_settings(configs[0], varied)]
        if any(run.setting == setting for run in runs):
            problems.append(f"two settings would both be named {setting}; sweep them one by one")
        runs += [
            SweepRun(
                setting=setting, values=values, preset=base, assignments=assignments, config=config
            )
            for config in configs
        ]
    if problems:
        raise ConfigError("\n".join(problems))
    return runs


def _name(preset: str, assignments: Sequence[str], tells_preset: bool) -> str:
    """A folder's name: the preset if it is swept or alone, then the assignments."""
    parts = [preset] if tells_preset or not assignments else []
    return re.sub(r"[^\w.=+-]+", "_", "_".join([*parts, *assignments]))


def choose_part(runs: Sequence[SweepRun], part: str | None) -> list[SweepRun]:
    """Every N-th of the runs from the I-th on, for `I/N`; all of them for None.

    Raises:
        ConfigError: It is not a part, or has no run.
    """
    if part is None:
        return list(runs)
    found = re.fullmatch(r"(\d+)/(\d+)", part.strip())
    number, count = (int(text) for text in found.groups()) if found else (0, 0)
    if not 1 <= number <= count <= len(runs):
        raise ConfigError(
            f"--part: expected I/N with 1 <= I <= N <= {len(runs)}, the number of runs, "
            f"got {part!r}"
        )
    return list(runs[number - 1 :: count])
