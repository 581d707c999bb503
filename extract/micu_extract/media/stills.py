"""Stills that Pillow reads: WebP, BMP, TIFF, AVIF, HEIC, and the animated ones among them.

JPEG, GIF, and PNG without EXIF are FFmpeg's. No other of Pillow's formats is tried: some run
programs.
"""

from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.media.damage import Damage
from micu_extract.media.formats import PILLOW, find_still
from micu_extract.media.media_file import MediaFile
from micu_extract.media.source import MAX_PIXELS, Kind, Source, Window, out_of_memory

MAX_STILL_BYTES = 2**29
"""Largest file that is given to Pillow, which reads some formats whole."""

_PLUGINS = {
    "WEBP": "PIL.WebPImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "HEIF": "pi_heif",
    "PNG": "PIL.PngImagePlugin",
}
_STILL_S = Fraction(1, 25)
"""How long a single picture lasts, s; as FFmpeg has it for JPEG and PNG."""
_MIN_DELAY_MS, _USUAL_DELAY_MS = 10, 100
"""Pictures that last no longer than the first last the second, as browsers have it."""
_SUBFILE, _DNG, _SMALL_COPY, _MASK = 254, 50706, 1, 4
"""Tags of TIFF, and bits of the first."""
_MAX_PAGES = 32
"""Further parts of a TIFF file that are looked at."""


def open_source(clip: Clip, media_root: Path, kind: Kind) -> Source:
    """Open a clip's media with what reads them, by their content.

    Args:
        clip: Whose media to open.
        media_root: Folder that `clip.path` is relative to.
        kind: Which stream.

    Raises:
        DecodeError: The file cannot be opened, or has no such stream.
    """
    file = MediaFile(clip.path, media_root)
    still = find_still(file.read_at)
    opened = Still if still in PILLOW and _is_installed(still) else Source
    return opened(clip, media_root, kind, file, still)


def _is_installed(plugin: str) -> bool:
    """Whether Pillow reads a format here; if not, FFmpeg has a try at it."""
    try:
        module = import_module(_PLUGINS[plugin])
    except ImportError:
        return False
    if plugin == "HEIF":
        module.register_heif_opener()
    checked = {"WEBP": "webp", "AVIF": "avif"}.get(plugin)
    return checked is None or bool(features.check(checked))


class Still(Source):
    """A picture, or several with their times, that Pillow reads; opened by `open_source`."""

    def _open(self) -> None:
        if self.kind == "audio":
            raise DecodeError("no_audio", f"{self.name}: the file has no sound")
        if self._file.size > MAX_STILL_BYTES:
            raise DecodeError(
                "too_large",
                f"{self.name}: a still of {self._file.size} bytes; expected at most "
                f"{MAX_STILL_BYTES}",
            )
        plugin = self._still
        self._stream = self.path.open("rb")
        try:
            self._image: Any = Image.open(self._stream, formats=[plugin])
            count = 1 if plugin == "HEIF" else getattr(self._image, "n_frames", 1)
            self._count: int = self._check_pages() if plugin == "TIFF" else count
            width, height = self._image.size
            if width * height > MAX_PIXELS:
                raise DecodeError(
                    "too_large",
                    f"{self.name}: pictures of {width} x {height} px; expected at most "
                    f"{MAX_PIXELS} px",
                )
        except DecodeError:
            self._stream.close()
            raise
        except Exception as error:
            self._stream.close()
            raise self._failed("unreadable", error) from error

    def _check_pages(self) -> int:
        """One, if a TIFF file has a single page: pages have no times.

        Raises:
            DecodeError: `unreadable`.
        """
        tags = self._image.tag_v2
        if _DNG in tags or int(tags.get(_SUBFILE, 0)) & _SMALL_COPY:
            raise DecodeError(
                "unreadable",
                f"{self.name}: a camera's raw file, of which only the small preview could be read; "
                "expected a picture; develop it to JPEG or TIFF",
            )
        for page in range(1, _MAX_PAGES):
            try:
                self._image.seek(page)
            except EOFError:
                break
            if not int(self._image.tag_v2.get(_SUBFILE, 0)) & (_SMALL_COPY | _MASK):
                raise DecodeError(
                    "unreadable",
                    f"{self.name}: a TIFF file of several pages, which have no times; expected "
                    "one picture; save each page as a file of its own",
                )
        self._image.seek(0)
        return 1

    def frames(
        self, window: Window, damage: Damage
    ) -> Iterator[tuple[Fraction, Fraction, NDArray[np.uint8]]]:
        """Pictures that are on screen within a window.

        Yields:
            Start and end, s from the start of the file, and the picture, (H, W, 3) RGB, upright.

        Raises:
            DecodeError: The first one cannot be decoded.
        """
        start = Fraction(0)
        for index in range(self._count):
            try:
                picture = self._decode(index)
            except DecodeError:
                raise
            except Exception as error:
                if index == 0 or isinstance(error, MemoryError):
                    raise self._failed("corrupt", error) from error
                damage.bad += 1
                damage.cut_off = True
                return
            damage.packets += 1
            end = start + self._lasting()
            if end > window.start:
                damage.good += 1
                yield start, end, picture
            start = end
            if window.end is not None and start >= window.end:
                return

    def _decode(self, index: int) -> NDArray[np.uint8]:
        if self._count > 1:
            self._image.seek(index)
        self._image.load()
        image = ImageOps.exif_transpose(self._image)
        if image.mode.startswith("I;16"):  # Pillow would cut off what is above 255
            gray = np.asarray(image) >> 8
            return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode in ("I", "F", "LAB"):
            raise DecodeError(
                "unreadable",
                f"{self.name}: pixels of the kind {image.mode!r}; expected gray, palette, RGB or "
                "CMYK of at most 16 bits",
            )
        return np.asarray(image.convert("RGB"), np.uint8)

    def _lasting(self) -> Fraction:
        """How long the picture that was decoded last lasts, s."""
        if self._count == 1:
            return _STILL_S
        told = float(self._image.info.get("duration") or 0)
        return Fraction(round(told) if told > _MIN_DELAY_MS else _USUAL_DELAY_MS, 1000)

    @property
    def rate(self) -> Fraction:
        """Pictures per second, by the one that was decoded last."""
        return 1 / self._lasting()

    @property
    def duration_s(self) -> float | None:
        """None: such files do not say."""
        return None

    @property
    def declared_end(self) -> Fraction | None:
        """None: such files do not say."""
        return None

    def _failed(self, code: str, error: Exception) -> DecodeError:
        """What became of a file, of whatever a hostile one made Pillow raise."""
        self.raise_if_passing(error)
        if isinstance(error, MemoryError):
            return out_of_memory(self.name)
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            return DecodeError("too_large", f"{self.name}: more than {MAX_PIXELS} px")
        told = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return DecodeError(code, f"{self.name}: Pillow cannot read it: {told}")

    def close(self) -> None:
        """Close the file."""
        self._image.close()
        self._stream.close()
        self._file.close()
