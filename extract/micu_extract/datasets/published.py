"""Official lists from where their authors publish them: pinned by commit and hash, kept in a cache.

`published.csv` beside this file has a row per file. A hash of 64 digits is a SHA-256, one of 40 is
git's of the file; where neither is known the lines are counted.
"""

import csv
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO

from micu.base.errors import ManifestError, shorten
from micu.base.files import read_bounded, user_cache, write_atomically
from micu_extract.datasets.base import DATASETS

ADDRESS, MIRROR = "https://raw.githubusercontent.com", "MICU_ANNOTATIONS_URL"
"""Where repositories are, and the variable that names another place of the same layout."""
MAX_BYTES = 32 * 2**20
"""Largest list; VGGSound's has about 8 MB."""
ANSWER_S, WHOLE_S = 20.0, 300.0
"""How long a server may be silent, and how long a file may take, s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialList:
    """One official file of a data set."""

    data_sets: str
    """Those that take it, with blanks between."""
    role: str
    repository: str
    commit: str
    path: str
    digest: str
    lines: str
    """How many it has; empty where the digest says more."""
    licence: str

    @property
    def name(self) -> str:
        """Of the file."""
        return PurePosixPath(self.path).name

    @property
    def url(self) -> str:
        """Where it is."""
        place = os.environ.get(MIRROR) or ADDRESS
        return "/".join((place.rstrip("/"), self.repository, self.commit, self.path))

    @property
    def cached(self) -> Path:
        """Where it is kept: below `$XDG_CACHE_HOME`, else `~/.cache`."""
        return user_cache("annotations", self.repository, self.commit, self.name)

    def misfit(self, data: bytes) -> str:
        """What makes bytes another file than this; empty if nothing does."""
        if not self.digest:
            kind, expected, found = "lines", self.lines, str(len(data.splitlines()))
        elif len(self.digest) == 64:
            kind, expected, found = "SHA-256", self.digest, hashlib.sha256(data).hexdigest()
        else:
            blob = b"blob %d\0" % len(data) + data
            told = hashlib.sha1(blob, usedforsecurity=False)
            kind, expected, found = "git hash", self.digest, told.hexdigest()
        return "" if found == expected else f"expected {kind} {expected}, got {found}"


@cache
def published() -> Mapping[str, tuple[OfficialList, ...]]:
    """The files of every data set that is published."""
    files: dict[str, tuple[OfficialList, ...]] = {}
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            for name in row["data_sets"].split():
                files[name] = (*files.get(name, ()), OfficialList(**row))
    return files


def have_lists(name: str) -> list[tuple[OfficialList, Path]]:
    """The official files of a data set, from the cache, or else fetched into it.

    Raises:
        ManifestError: They are not published, cannot be had, or have other bytes.
    """
    files = published().get(name)
    if files is None:
        raise ManifestError(
            f"{name}: expected --annotations {DATASETS[name].describe()}; of this data set nothing "
            "is fetched"
        )
    try:
        return [(file, _have(file)) for file in files]
    except (OSError, ValueError) as error:
        urls = " ".join(file.url for file in files)
        raise ManifestError(
            f"{name}: the official files cannot be fetched: {shorten(str(error), 300)}. On a "
            f"machine with network type: curl --remote-name-all {urls}; put the files into a "
            "folder here and type --annotations FOLDER"
        ) from error


def _have(file: OfficialList) -> Path:
    path = file.cached
    if path.is_file() and not file.misfit(read_bounded(path, MAX_BYTES)):
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"{file.url} is not asked, since HF_HUB_OFFLINE is set")
    data = download(file.url, MAX_BYTES)
    if told := file.misfit(data):
        raise ValueError(f"{file.url}: {told}; nothing of it was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return path


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes an answer that points elsewhere for an error."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


def download(url: str, most: int) -> bytes:
    """What an address gives, at most `most` bytes within `WHOLE_S`.

    Raises:
        OSError: It does not answer, with what is expected, or in time.
        ValueError: It is no address, or there is more of it.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url}: expected an address that begins with https://")
    data, end = bytearray(), time.monotonic() + WHOLE_S
    try:
        with urllib.request.build_opener(_NoRedirects).open(url, timeout=ANSWER_S) as answer:
            while part := answer.read1(2**16):
                data += part
                if len(data) > most:
                    raise ValueError(f"it has more than {most} bytes")
                if time.monotonic() > end:
                    raise ValueError(f"it takes longer than {WHOLE_S:g} s")
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"{url}: it answers with HTTP status {error.code}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{url}: {error}") from error
    return bytes(data)
