"""What every reader of pictures shares: which instants are sampled, and how much is covered."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import count

from extract.media import Source, Window
from extract.pictures import Picture
from extract.streams import Damage, check_damage, nothing_decoded


def iter_instants(window: Window, per_second: int) -> Iterator[Fraction]:
    """Middles of the parts of each second of a window, s from its start."""
    for i in count():
        instant = Fraction(2 * i + 1, 2 * per_second)
        if window.length is not None and instant >= window.length:
            return
        yield instant


def find_covered_s(
    source: Source, window: Window, last: Picture | None, damage: Damage
) -> Fraction:
    """How much of the window the pictures cover, s, after judging their damage.

    Args:
        source: What was decoded.
        window: The clip.
        last: The last picture that was decoded; None if there was none.
        damage: What decoding met.

    Raises:
        DecodeError: Nothing was decoded, or too much is damaged.
    """
    if last is None:
        raise nothing_decoded(source, window, damage, anything=damage.packets > damage.bad)
    covered_s = last.end if window.length is None else min(last.end, window.length)
    check_damage(source, window, window.start + covered_s, damage)
    return covered_s


def note_decoding(source: Source, decoder: str, damage: Damage) -> dict[str, float | int | str]:
    """What decoding met, for `Media.notes`."""
    return {
        "decoder": decoder,
        "source_fps": round(float(source.rate), 6),
        "corrupt_frames": damage.bad,
    }
