"""Which of the checkpoints that `micu-eval` is given is the one that it evaluates."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from micu.base.errors import ConfigError
from micu.evaluate.report import Row
from micu.evaluate.selection import CRITERIA, choose_checkpoint, merit


def select_on_option() -> Callable[..., Any]:
    """The option `--select-on`."""
    return click.option(
        "--select-on",
        type=click.Choice(tuple(CRITERIA)),
        help="Evaluate the best of several CHECKPOINTs: by accuracy on held-out source clips, or "
        "by HOS on the test set, as the paper's.",
    )


def select(
    checkpoints: Sequence[Path],
    protocol: str | None,
    evaluate: Callable[[Path], Iterable[Sequence[Row]]],
) -> tuple[Path, str]:
    """The checkpoint to evaluate.

    Args:
        checkpoints: What was typed.
        protocol: One of `CRITERIA`; None if there is nothing to choose.
        evaluate: Rows of a checkpoint's own codes, seed by seed.

    Returns:
        The checkpoint, and what to add to the note of its rows.

    Raises:
        ConfigError: There are several and no protocol, or a protocol and only one.
    """
    if (protocol is None) != (len(checkpoints) == 1):
        raise ConfigError(
            f"--select-on: expected with two checkpoints or more, and only then, got {protocol} "
            f"and {len(checkpoints)}; evaluate one, or choose between several by "
            f"{' or '.join(CRITERIA)}"
        )
    if protocol is None:
        return checkpoints[0], ""
    candidates: dict[Path, list[Row]] = {}
    for path in checkpoints:
        candidates[path] = [row for rows in evaluate(path) for row in rows]
        click.echo(
            f"{path}: {CRITERIA[protocol]} {merit(candidates[path], protocol):.4f}", err=True
        )
    chosen, told = choose_checkpoint(candidates, protocol)
    click.echo(told, err=True)
    return chosen, f"; {told}"
