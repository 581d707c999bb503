"""Found clips as a page: a still or the waveform, the sentence, the score and the codes of each."""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from micu.evaluate.markdown import TextTable
from micu.library.model import Embedding, Hit
from micu.report.drawings import COLOURS, Drawing
from micu.report.page import Drawings, Section, render_html
from micu.store.manifest import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOUDNESSES = 240
"""Parts of a waveform whose extremes are drawn."""
GOLDEN = 0.6180339887
"""Of a turn of the colour circle from one code to the next: neighbours look different."""

Show = Callable[[Clip, str], "NDArray[np.generic] | None"]
"""From a clip and a modality to a picture (H, W, 3) or a waveform (S,); None for neither."""


def tabulate(hits: Sequence[Hit], clips: Mapping[str, Clip]) -> TextTable:
    """Rank, score, clip, label and sentence of each hit; columns without a text are left out."""
    rows = [("", "score", "clip", "modality", "label", "sentence")]
    for rank, hit in enumerate(hits, 1):
        clip = clips.get(hit.clip_id, Clip(clip_id=hit.clip_id))
        named = (hit.clip_id, hit.modality, clip.label, clip.text)
        rows.append((str(rank), f"{hit.score:.4f}", *named))
    caption = "What was found, the best first; clips that are nearer have a higher score."
    return TextTable(tuple(rows), caption).without_empty_columns()


def render_hits(
    title: str, hits: Sequence[Hit], index: Embedding, clips: Mapping[str, Clip], show: Show
) -> str:
    """The page.

    Args:
        title: Of the page.
        hits: The best first.
        index: What was searched.
        clips: What is known of them, by id.
        show: Finds something to look at.
    """
    drawn = []
    for rank, hit in enumerate(hits, 1):
        clip = clips.get(hit.clip_id, Clip(clip_id=hit.clip_id))
        codes = index.codes[hit.place][index.mask[hit.place]]
        sentence = f": {clip.text}" if clip.text else ""
        drawn.append(
            Drawing(
                f"{rank}. {hit.clip_id}, {hit.modality}, {hit.score:.3f}{sentence}",
                f"codes {' '.join(map(str, codes))}",
                _painter(hit, index, show(clip, hit.modality)),
            )
        )
    told = "Below each clip the codes of its steps: the same number and colour is the same code."
    return render_html(
        title,
        [
            Section("Clips", [tabulate(hits, clips)]),
            Section("To look at", [Drawings(drawn, told)]),
        ],
    )


def _painter(
    hit: Hit, index: Embedding, media: NDArray[np.generic] | None
) -> "Callable[[Figure], None]":
    codes, mask = index.codes[hit.place], index.mask[hit.place]

    def paint(figure: "Figure") -> None:
        above, below = figure.subplots(2, 1, height_ratios=(5, 1))
        above.set_axis_off()
        if media is None:
            above.text(0.5, 0.5, f"no {hit.modality} to show", ha="center", va="center")
        elif media.ndim == 3:
            above.imshow(media)
        else:
            _paint_waveform(above, media)
        _paint_codes(below, codes, mask)

    return paint


def _paint_waveform(axes: "Axes", sound: NDArray[np.generic]) -> None:
    parts = np.array_split(sound, min(LOUDNESSES, len(sound)))
    lows, highs = ([float(edge(part)) for part in parts] for edge in (np.min, np.max))
    axes.fill_between(np.arange(len(parts)), lows, highs, color=COLOURS[0], linewidth=0.3)


def _paint_codes(axes: "Axes", codes: NDArray[np.int64], mask: NDArray[np.bool_]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, len(codes))
    for step in map(int, np.flatnonzero(mask)):
        colour = colorsys.hls_to_rgb(float(codes[step]) * GOLDEN % 1, 0.75, 0.6)
        axes.axvspan(step, step + 1, color=colour)
        axes.text(
            *(step + 0.5, 0.5, str(codes[step])), ha="center", va="center", size=6, color="#111"
        )
