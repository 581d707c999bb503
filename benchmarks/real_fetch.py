"""The material of av-digits from where it is published, pinned by what is in it.

A source is one archive. What is taken from it must be the files that were taken when this was
written: their names and bytes have one digest, so that it does not matter how a server packs
them. Archives are kept in the cache (`$XDG_CACHE_HOME`, else `~/.cache`), so that a second folder
needs no network; `HF_HUB_OFFLINE=1` forbids it.

Of av-objects nothing is fetched (`NOT_FETCHED` says why): it is put together by hand.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from micu.base.files import read_bounded, user_cache, write_atomically
from micu_extract.datasets.published import download

MIRROR = "MICU_BENCH_URL"
"""The variable that names another place of the same paths."""
LARGEST_ARCHIVE, LARGEST_FILE = 256 * 2**20, 8 * 2**20
"""Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An archive, and what is taken from it."""

    name: str
    url: str
    wanted: str
    """Matches the path of a file that is taken; its group is the path below `into`."""
    into: str
    files: int
    digest: str
    """As `digest_of`."""
    licence: str


SOURCES = (
    Source(
        name="written digits: MNIST's test pictures",
        url="https://raw.githubusercontent.com/kelas/mnist/283b387221ab46655e600cfcc25d843bb14292b9/t10k-images-idx3-ubyte.gz",
        wanted="(.*)",
        into="avdigits",
        files=1,
        digest="ec9056857d00ab2f00756f1a643698f24c22b963f15ac487615ab61aa1355d71",
        licence="CC BY-SA 3.0, Y. LeCun and C. Cortes",
    ),
    Source(
        name="written digits: MNIST's test labels",
        url="https://raw.githubusercontent.com/kelas/mnist/283b387221ab46655e600cfcc25d843bb14292b9/t10k-labels-idx1-ubyte.gz",
        wanted="(.*)",
        into="avdigits",
        files=1,
        digest="0b4338e3e3f3004ca0f9187f15d3d299f960efc441a941eb7bdf186ebe7dc4fb",
        licence="CC BY-SA 3.0, Y. LeCun and C. Cortes",
    ),
    Source(
        name="hand signs: Sign Language Digits Dataset",
        url="https://codeload.github.com/ardamavi/Sign-Language-Digits-Dataset/tar.gz/306fffc703199e5986ab003935914b72483733ec",
        wanted=r"[^/]+/Dataset/(\d/[A-Za-z0-9_]+\.JPG)",
        into="avdigits/signdigits",
        files=2062,
        digest="ffca1ee1016e6fa7b5f9fcb8fc969d6895fe1f19ebd083f12da14e274f783749",
        licence="Apache-2.0, Turkey Ankara Ayrancı Anadolu High School (arXiv:2011.08927)",
    ),
    Source(
        name="spoken digits: Free Spoken Digit Dataset",
        url="https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/1306d2c6da002dfb2fd1f113d8596d801648a085",
        wanted=r"[^/]+/recordings/(\d_[a-z]+_\d+\.wav)",
        into="avdigits/fsdd",
        files=3000,
        digest="dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f",
        licence="CC BY-SA 4.0, Z. Jackson and others",
    ),
)

NOT_FETCHED = (
    "av-objects is not fetched: pictures of nine of its sixteen classes are of Tiny-ImageNet and "
    "PACS, and most animal sounds of a collection on GitHub, none of which states a licence to "
    "pass them on. Six classes would be left, too few to split into known and unknown ones. "
    "--sets av-digits needs none of it; docs/real-data.md says what av-objects is made of, for "
    "those who have these collections."
)


def fetch(folder: Path, sources: tuple[Source, ...] = SOURCES) -> None:
    """Put the material of av-digits into a folder, unless it is there; tells the licences.

    Raises:
        ClickException: A source cannot be had, or is not what it was.
    """
    for source in sources:
        click.echo(f"{source.name}: {source.licence}; {source.url}")
        place = folder / source.into
        if misfit(source, read_folder(place, source)):
            for name, data in _have(source).items():
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
    click.echo(NOT_FETCHED)


def digest_of(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the names and hashes of some files, in the order of the names."""
    lines = [f"{name} {hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def misfit(source: Source, files: Mapping[str, bytes]) -> str:
    """What makes files other ones than those of a source; empty if nothing does."""
    if len(files) != source.files:
        return f"expected {source.files} files, got {len(files)}"
    found = digest_of(files)
    return "" if found == source.digest else f"expected digest {source.digest}, got {found}"


def read_folder(place: Path, source: Source) -> dict[str, bytes]:
    """What lies in a folder under the names of a source."""
    if source.files == 1:
        paths = [place / Path(urlsplit(source.url).path).name]
    else:
        paths = sorted(path for path in place.glob("**/*") if path.suffix in (".JPG", ".wav"))
    there = [path for path in paths if path.is_file()]
    return {p.relative_to(place).as_posix(): read_bounded(p, LARGEST_FILE) for p in there}


def _have(source: Source) -> dict[str, bytes]:
    """The files of a source, from the cached archive or else fetched.

    Raises:
        ClickException: They cannot be had, or are other ones; nothing of them is kept.
    """
    cached = user_cache("benchmark", hashlib.sha256(source.url.encode()).hexdigest()[:16])
    mirror, parts = os.environ.get(MIRROR, "").rstrip("/"), urlsplit(source.url)
    url = f"{mirror}{parts.path}" if mirror else source.url
    try:
        if cached.is_file():
            files = unpack(source, read_bounded(cached, LARGEST_ARCHIVE))
            if not misfit(source, files):
                return files
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise ValueError("not in the cache, and not asked for, since HF_HUB_OFFLINE is set")
        data = download(url, LARGEST_ARCHIVE)
        files = unpack(source, data)
        if told := misfit(source, files):
            raise ValueError(f"{told}; nothing of it was kept")
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise click.ClickException(f"{source.name}: {url}: {error}") from error
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, data)
    return files


def unpack(source: Source, data: bytes) -> dict[str, bytes]:
    """The files that are wanted of an archive, by their paths below `into`; links are passed over.

    Raises:
        ValueError: There are too many, or one is too large.
        TarError: It is no archive.
    """
    if source.files == 1:
        return {Path(urlsplit(source.url).path).name: data}
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|gz") as archive:
        for member in archive:
            match = re.fullmatch(source.wanted, member.name)
            if match is None or not member.isreg():
                continue
            if member.size > LARGEST_FILE or len(files) == source.files:
                raise ValueError(
                    f"expected {source.files} files of at most {LARGEST_FILE} bytes, got more"
                )
            content = archive.extractfile(member)
            files[match[1]] = content.read() if content else b""
    return files
