"""`micu-eval embed` and `micu-eval search`: clips as vectors and codes, and the most alike."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from micu.base.command_line import ToolCommand, device_option, in_order, panel
from micu.base.errors import ConfigError, StoreError
from micu.base.files import write_atomically
from micu.base.process import exit_codes, show_log
from micu.cli.features import (
    BACKBONE_OPTIONS,
    ROOT_OPTION,
    FeatureSets,
    find_feature_sets,
    parse_modalities,
)
from micu.cli.outputs import try_file
from micu.evaluate.markdown import render_markdown
from micu.store.manifest import MODALITIES

if TYPE_CHECKING:
    from micu.library.model import Model

KINDS = (".npz", ".parquet")
HINT = "nothing was written; type it again"
_PATH = click.Path(path_type=Path)


_searched = in_order(
    click.argument("checkpoint", type=_PATH),
    click.argument("manifest", required=False, type=_PATH),
    panel(
        "Data",
        ROOT_OPTION,
        click.option(
            "--modalities", help="Such as v,a [default: those of CHECKPOINT that have features]."
        ),
        *BACKBONE_OPTIONS,
        device_option,
    ),
)
"""Gives a command the arguments and options that say of which model and clips."""


@click.command(cls=ToolCommand, example="micu-eval embed runs/micu-vaf-0/last.pt my.csv -o e.npz")
@_searched
@click.option(
    "-o", "--out", type=_PATH, required=True, help="Where to: .npz or .parquet says what."
)
def embed(
    *, checkpoint: Path, manifest: Path | None, out: Path, device: str, **arguments: Any
) -> None:
    """Write vectors and codes of every clip that has features.

    CHECKPOINT is a last.pt, or the folder of a run. MANIFEST is that of the features [default: the
    last extraction's].
    """
    with exit_codes(HINT):
        show_log()
        if out.suffix not in KINDS:
            raise ConfigError(f"-o {out}: expected a name that ends in {' or '.join(KINDS)}")
        try_file("-o", out)
        from micu.library.model import load

        model = load(checkpoint, device=device)
        found = model.embed(_open_sets(model, manifest, **arguments).stores)
        (found.to_numpy if out.suffix == ".npz" else found.to_parquet)(out)
        told = ", ".join(
            f"{found.modalities.count(m)} {m}" for m in dict.fromkeys(found.modalities)
        )
        click.echo(f"{out}: {told}", err=True)


@click.command(
    cls=ToolCommand,
    example='micu-eval search runs/micu-vat-0/last.pt --text "a dog barks" -o hits.html',
)
@_searched
@panel(
    "Query",
    click.option("--text", help="A sentence to search by."),
    click.option("--audio", type=_PATH, help="A file to search by, by its sound."),
    click.option("--video", type=_PATH, help="A file to search by, by its pictures."),
    click.option("--picture", type=_PATH, help="A picture to search by."),
    click.option(
        "--weights",
        help="Of the query's backbone, where they were a local file [default: those that "
        "CHECKPOINT was trained on].",
    ),
)
@panel(
    "Output",
    click.option(
        "-k", "count", type=click.IntRange(min=1), default=10, show_default=True, help="Clips."
    ),
    click.option("-o", "--out", type=_PATH, help="Page with a still or the waveform of each."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
def search(
    *,
    checkpoint: Path,
    manifest: Path | None,
    device: str,
    text: str | None,
    audio: Path | None,
    video: Path | None,
    picture: Path | None,
    weights: str | None,
    count: int,
    out: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Find the clips that are most like a sentence, a sound, a video or a picture.

    Every clip that has features is compared. CHECKPOINT and MANIFEST are as of micu-eval embed.
    """
    with exit_codes(HINT):
        show_log()
        if out is not None:
            try_file("-o", out)
        from micu.cli.hits import render_hits, tabulate
        from micu.library.clips import show_media
        from micu.library.model import load

        model = load(checkpoint, device=device)
        sets = _open_sets(model, manifest, **arguments)
        index = model.embed(sets.stores)
        given = {} if weights is None else {"weights": weights}
        hits = model.search(
            index, text=text, audio=audio, video=video, picture=picture, k=count, **given
        )
        clips = {clip.clip_id: clip for clip in sets.manifest.clips}
        if as_json:
            click.echo(json.dumps([asdict(hit) for hit in hits], indent=1))
        else:
            click.echo(render_markdown(tabulate(hits, clips)))
        if out is not None:
            roots = {name: Path(store.run.media_root) for name, store in sets.stores.items()}
            title = f"micu-eval search: {text or audio or video or picture}"
            page = render_hits(title, hits, index, clips, show_media(roots))
            write_atomically(out, page.encode())
            click.echo(f"page in {out}", err=True)


def _open_sets(
    model: "Model", manifest: Path | None, *, features: Path, modalities: str | None, **named: Any
) -> FeatureSets:
    """The features of a model's modalities, as far as there are some, or those that were typed."""
    chosen = {name: named[f"{name}_features"] or "" for name in MODALITIES}
    asked: Sequence[str] = parse_modalities(modalities or "")
    asked = asked or [name for name, backbone in chosen.items() if backbone]
    if asked:
        picked = {name: chosen[name] for name in asked}
        return find_feature_sets(features, asked, manifest, picked)
    found, problems = None, []
    for name in model.modalities:
        try:
            one = find_feature_sets(features, (name,), manifest, {})
        except StoreError as error:
            problems.append(str(error))
            continue
        found = FeatureSets(one.manifest, {**(found.stores if found else {}), **one.stores})
    if found is None:
        raise StoreError("\n".join(dict.fromkeys(problems)))
    return found
