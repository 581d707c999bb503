"""What every reader of pictures shares: which instants are sampled, and how much is covered."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from math import ceil

from micu_extract.backbones.base import MIN_STEP_S
from micu_extract.media.damage import Damage, check_damage, nothing_decoded
from micu_extract.media.pictures import Picture
from micu_extract.media.source import Source, Window

_LEAST_S = Fraction(str(MIN_STEP_S))


def iter_instants(window: Window, per_second: int, first_s: int = 0) -> Iterator[Fraction]:
    """Middles of the parts of each second of a window from `first_s` on, s from its start."""
    for i in count(first_s * per_second):
        instant = Fraction(2 * i + 1, 2 * per_second)
        if window.length is not None and instant >= window.length:
            return
        yield instant


def skip_seconds(begin_s: Fraction) -> int:
    """How many seconds come before the first picture: all that hold less than 0.1 s after it.

    In the next one it stands for what of that second comes before it, too.

    Args:
        begin_s: When the first picture comes, s from the start of the clip.
    """
    return max(0, ceil(begin_s + _LEAST_S) - 1)


def find_first_second(begin_s: Fraction, covered_s: Fraction, steps: int) -> int | None:
    """The first second that is real.

    It is the first of which the pictures fill at least 0.1 s; where none is filled as much, the
    first of those filled most; None if the pictures come later.

    Args:
        begin_s: When the first picture comes, s from the start of the clip.
        covered_s: Where the last one ends, s.
        steps: T.
    """
    begin_s, first = max(begin_s, Fraction(0)), skip_seconds(begin_s)

    def filled_s(second: int) -> Fraction:
        return min(covered_s, Fraction(second + 1)) - max(begin_s, Fraction(second))

    if first < steps and filled_s(first) >= _LEAST_S:
        return first
    near = range(int(begin_s), min(steps, int(begin_s) + 2))
    return max(near, key=filled_s, default=None)


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
