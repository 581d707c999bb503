"""Pictures of a clip in order of time, upright, and the resizing and cropping that networks expect.

Two decoders give the same pictures: PyAV, here, and decord, in
`micu_extract.media.decord_pictures`. Non-square pixels are not stretched: the networks' own
training pipelines did not either.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray
from PIL import Image

from micu.base.errors import ConfigError, DecodeError, ExtraError
from micu.base.registry import Registry
from micu.store.manifest import Clip
from micu_extract.backbones.base import Interpolation
from micu_extract.media.damage import Damage, check_gap, decode_from
from micu_extract.media.source import MAX_PIXELS, Reading, Source, Window
from micu_extract.media.stills import Still, open_source


def _name_side_data(kind: type[Any], value: object) -> Any:
    """A member for side data that FFmpeg knows and PyAV does not, such as EXIF."""
    member = object.__new__(kind)
    member._name_, member._value_ = f"TYPE_{value}", value
    return member


if "_missing_" not in vars(SideDataType):
    # PyAV 17 and 18 refuse all side data of a picture for one of a new kind; 19 names it, as here.
    SideDataType._missing_ = classmethod(_name_side_data)  # type: ignore[method-assign,assignment]


HANDING_OVER = 15
"""Of PyAV: before, packets that are packed anew lack what decord needs to open them."""
HANDS_OVER = int(av.__version__.partition(".")[0]) >= HANDING_OVER


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a clip and when it is on screen."""

    start: Fraction
    """From the start of the clip, s; negative if it was already on screen then."""
    end: Fraction
    """When the next one replaces it, s."""
    load: Callable[[], NDArray[np.uint8]]
    """Gives the picture, (H, W, 3) RGB, upright."""


PictureReader = Callable[[Source, Window, Damage], Iterator[Picture]]
PICTURE_READERS: Registry[PictureReader] = Registry("decoder")


@PICTURE_READERS.register("pyav")
def read_pictures(source: Source, window: Window, damage: Damage) -> Iterator[Picture]:
    """Pictures that are on screen within a window, decoded by PyAV and not past its end."""
    frames = decode_from(source, window.start, damage)
    for start, end, frame in on_screen(source, window, damage, frames):
        load = partial(to_rgb, frame, source.name)
        yield Picture(start - window.start, end - window.start, load)


def on_screen(
    source: Source, window: Window, damage: Damage, frames: Iterable[tuple[Fraction, Any]]
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Frames that are on screen within a window, and when, s from the start of the file.

    The last picture of a file lasts as long as the file says, else 1 / average rate. A time stamp
    that runs backwards counts as damage and is taken for the latest one before it.

    Args:
        source: What is decoded.
        window: The clip.
        damage: Counts what is damaged or missing.
        frames: Frames, or what stands for them, in the order of showing, and their times.

    Yields:
        From when on a frame is shown, until when, and the frame.
    """
    shown: tuple[Fraction, Any] | None = None
    for stamped, frame in frames:
        time = stamped
        if shown is None:
            expected = time if damage.first_packet is None else damage.first_packet
            damage.missing_s = max(Fraction(0), time - max(expected, window.start))
        elif time < shown[0]:
            damage.bad += 1
            time = shown[0]
        elif time > max(shown[0], window.start):
            damage.bad += bool(shown[1].is_corrupt)
            damage.good += not shown[1].is_corrupt
            check_gap(source, window, shown[0] - window.start, time - window.start)
            yield shown[0], time, shown[1]
        shown = time, frame
        if window.end is not None and time >= window.end:
            return
    if shown is not None:
        end = max(shown[0] + _duration(source, shown[1]), source.last_shown_until)
        if end > window.start:
            damage.bad += bool(shown[1].is_corrupt)
            damage.good += not shown[1].is_corrupt
            check_gap(source, window, shown[0] - window.start, end - window.start)
            yield shown[0], end, shown[1]


def check_decoder(decoder: str) -> None:
    """Refuse a decoder that is not installed, before anything is begun.

    Raises:
        ExtraError: It is not.
        ConfigError: PyAV is too old to hand it packets.
    """
    if decoder == "decord" and find_spec("decord") is None:
        raise ExtraError("decord", "decord")
    if decoder == "decord" and not HANDS_OVER:
        raise ConfigError(
            f"--decoder decord: expected PyAV {HANDING_OVER} or newer, got {av.__version__}; type "
            "pip install -U av, or leave --decoder out"
        )


def resize(
    picture: NDArray[np.uint8],
    size: int | tuple[int, int],
    interpolation: Interpolation,
    name: str,
) -> NDArray[np.uint8]:
    """Resize as torchvision's `Resize` does to a PIL picture, antialiased, or as OpenCV does.

    Args:
        picture: (H, W, 3) RGB.
        size: Short side, px, with the aspect kept and the long side truncated; or (height, width).
        interpolation: Kernel.
        name: The file, for the error.

    Returns:
        (H', W', 3).

    Raises:
        DecodeError: `too_large`: a sliver of a picture would become wider than the cap.
    """
    height, width = fit_short_side(picture.shape, size) if isinstance(size, int) else size
    if height * width > MAX_PIXELS:
        raise DecodeError(
            "too_large", f"{name}: pictures would be resized to {width} x {height} px"
        )
    if (height, width) == picture.shape[:2]:
        return picture
    if interpolation == "opencv-linear":
        import cv2

        linear: NDArray[np.uint8] = cv2.resize(picture, (width, height))
        return linear
    kernel = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    resized = Image.fromarray(picture).resize((width, height), kernel[interpolation])
    return np.asarray(resized, np.uint8)


def fit_short_side(shape: tuple[int, ...], short: int) -> tuple[int, int]:
    """Height and width, px, of a picture (H, W, ...) whose short side becomes `short`."""
    height, width = shape[:2]
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def center_crop(picture: NDArray[np.uint8], side: int, fill: int = 0) -> NDArray[np.uint8]:
    """Cut out the middle as torchvision's `CenterCrop` does, padding what is smaller.

    Args:
        picture: (H, W, ...).
        side: Side of the square, px.
        fill: Level of the padding.

    Returns:
        (side, side, ...).
    """
    height, width = picture.shape[:2]
    pads = [max(side - height, 0), max(side - width, 0)]
    if any(pads):
        margins = [(pad // 2, (pad + 1) // 2) for pad in pads]
        rest = [(0, 0)] * (picture.ndim - 2)
        picture = np.pad(picture, [*margins, *rest], constant_values=fill)
        height, width = picture.shape[:2]
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return picture[top : top + side, left : left + side]


def _duration(source: Source, frame: Any) -> Fraction:
    ticks = 0 if source.is_bare else getattr(frame, "duration", 0) or 0
    return ticks * Fraction(source.stream.time_base) if ticks > 0 else 1 / source.rate


def to_rgb(frame: Any, name: str) -> NDArray[np.uint8]:
    """A frame of PyAV's as a picture, (H, W, 3), upright.

    Raises:
        DecodeError: `corrupt`: FFmpeg cannot convert it.
    """
    try:
        picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    except ValueError as error:  # FFmpeg's errors are ValueErrors too
        raise DecodeError("corrupt", f"{name}: a picture cannot be converted: {error}") from error
    matrix = find_matrix(frame)
    return picture if matrix is None else turn_upright(picture, matrix)


def find_matrix(frame: Any) -> NDArray[np.int32] | None:
    """The display matrix of a frame, (9,) fixed point; None where it has none."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)


def turn_upright(picture: NDArray[np.uint8], matrix: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Turn and mirror a picture as its display matrix says, in quarter turns.

    Args:
        picture: (H, W, 3).
        matrix: (9,) fixed point; a pixel (x, y) is shown at (m0 x + m3 y, m1 x + m4 y).

    Returns:
        (H', W', 3).

    Reference: the track header's matrix of ISO/IEC 14496-12.
    """
    across, down = matrix[0], matrix[4]
    if abs(int(matrix[1])) > abs(int(matrix[0])):
        picture = picture.transpose(1, 0, 2)
        across, down = matrix[3], matrix[1]
    if across < 0:
        picture = picture[:, ::-1]
    if down < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def open_pictures(clip: Clip, reading: Reading, damage: Damage) -> tuple[Source, Iterator[Picture]]:
    """Open a clip's pictures; the caller closes the source.

    Raises:
        DecodeError: The file cannot be opened, or has no moving pictures.
        RegistryError: No such decoder.
    """
    reader, window = PICTURE_READERS[reading.decoder], Window.of(clip)
    source = open_source(clip, reading.media_root, "video")
    if isinstance(source, Still):
        return source, _read_still(source, window, damage)
    # decord is for films; some stills it does not open at all.
    pictures = (read_pictures if source.is_still else reader)(source, window, damage)
    return source, islice(pictures, 1) if source.is_photograph else pictures


def _read_still(source: Still, window: Window, damage: Damage) -> Iterator[Picture]:
    """Pictures that Pillow decodes, whatever decodes the others."""
    for start, end, picture in source.frames(window, damage):
        check_gap(source, window, start - window.start, end - window.start)
        yield Picture(start - window.start, end - window.start, partial(np.asarray, picture))
