"""File systems that fail while media are read are not taken for damaged media."""

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

import micu_extract.media.source
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import WaveformInput
from tests.media_files import read_media, tone, write_wav

WAVES = WaveformInput(sample_rate=8000, window_s=10)
CLIP = Clip(clip_id="a", path="a.wav")


class _Gone:
    """A container whose file system goes away after a packet."""

    def __init__(self, container: Any, number: int) -> None:
        self._container, self._number = container, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        yield next(self._container.demux(stream))
        raise av.error.OSError(self._number, os.strerror(self._number))


def _break_reading(folder: Path, number: int, patch: pytest.MonkeyPatch) -> None:
    write_wav(folder / "a.wav", tone(2, 8000), 8000)
    real_open = av.open

    def open_media(*words: Any, **named: Any) -> Any:
        return _Gone(real_open(*words, **named), number)

    patch.setattr(micu_extract.media.source.av, "open", open_media)


def _refuse_reads(patch: pytest.MonkeyPatch) -> None:
    class Refusing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(Path, "open", lambda path, *words, **named: Refusing())


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_goes_away_in_mid_file_does_not_make_a_short_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _break_reading(tmp_path, number, monkeypatch)
    with pytest.raises(DecodeError) as caught:
        read_media(CLIP, WAVES, tmp_path)
    assert caught.value.code == "io_error"


def test_an_error_of_the_disk_is_one_only_if_the_system_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_reading(tmp_path, errno.EIO, monkeypatch)
    assert read_media(CLIP, WAVES, tmp_path).duration_s < 2  # cut off: the file can be read
    _refuse_reads(monkeypatch)
    with pytest.raises(DecodeError) as caught:
        read_media(CLIP, WAVES, tmp_path)
    assert caught.value.code == "io_error"


def test_a_disk_that_fails_at_opening_is_not_an_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "a.wav", tone(2, 8000), 8000)

    def refuse(*words: Any, **named: Any) -> Any:
        raise av.error.OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(micu_extract.media.source.av, "open", refuse)
    _refuse_reads(monkeypatch)
    with pytest.raises(DecodeError) as caught:
        read_media(CLIP, WAVES, tmp_path)
    assert caught.value.code == "io_error"
