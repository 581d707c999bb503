"""The benchmark's material from a server on loopback: pinned, kept, told with licences."""

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import benchmarks.real_fetch as module
from benchmarks.real import main
from benchmarks.real_fetch import MIRROR, SOURCES, Source, digest_of, fetch, unpack

SIGNS = {"0/IMG_1.JPG": b"zero", "1/IMG_2.JPG": b"one"}
TABLE = b"\x1f\x8bwritten"


def packed(files: dict[str, bytes], *, link: str = "") -> bytes:
    """A repository's archive: what is wanted, and other things."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in {"README.md": b"read", **files}.items():
            member = tarfile.TarInfo(f"repo-1/Dataset/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        if link:
            member = tarfile.TarInfo(f"repo-1/Dataset/{link}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    return made.getvalue()


SIGN_SOURCE = Source(
    name="signs",
    url="https://example.invalid/owner/signs/tar.gz/abc",
    wanted=r"[^/]+/Dataset/(\d/\w+\.JPG)",
    into="avdigits/signdigits",
    files=2,
    digest=digest_of(SIGNS),
    licence="CC0",
)
TABLE_SOURCE = replace(
    SIGN_SOURCE,
    name="table",
    url="https://example.invalid/owner/t10k.gz",
    into="avdigits",
    files=1,
    digest=digest_of({"t10k.gz": TABLE}),
)


class Handler(http.server.BaseHTTPRequestHandler):
    held: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        found = self.held.get(self.path)
        self.send_response(200 if found is not None else 404)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    held = {"/owner/signs/tar.gz/abc": packed(SIGNS), "/owner/t10k.gz": TABLE}
    handler: Any = type("Held", (Handler,), {"held": held, "asked": []})
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{served.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield handler
    served.shutdown()
    served.server_close()


def test_material_is_fetched_once_and_then_had_without_network(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = (SIGN_SOURCE, TABLE_SOURCE)
    fetch(tmp_path / "one", both)
    told = capsys.readouterr().out
    assert "signs: CC0; https://example.invalid/owner/signs/tar.gz/abc\n" in told
    assert "av-objects is not fetched" in told
    found = {
        path.relative_to(tmp_path / "one").as_posix(): path.read_bytes()
        for path in (tmp_path / "one").rglob("*")
        if path.is_file()
    }
    assert found == {
        "avdigits/signdigits/0/IMG_1.JPG": b"zero",
        "avdigits/signdigits/1/IMG_2.JPG": b"one",
        "avdigits/t10k.gz": TABLE,
    }
    assert len(server.asked) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "one/avdigits/signdigits/0/IMG_1.JPG").write_bytes(b"changed")
    for folder in ("one", "two"):
        fetch(tmp_path / folder, both)
        assert (tmp_path / folder / "avdigits/signdigits/0/IMG_1.JPG").read_bytes() == b"zero"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**SIGNS, "1/IMG_2.JPG": b"other"}, "expected digest"),
        ({"0/IMG_1.JPG": b"zero"}, "expected 2 files, got 1"),
        ({**SIGNS, "2/IMG_3.JPG": b"two"}, "got more"),
    ],
)
def test_other_material_is_refused_and_not_kept(
    server: Any, tmp_path: Path, files: dict[str, bytes], told: str
) -> None:
    server.held["/owner/signs/tar.gz/abc"] = packed(files)
    with pytest.raises(click.ClickException, match=told):
        fetch(tmp_path / "one", (SIGN_SOURCE,))
    assert not (tmp_path / "one").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_source_that_does_not_answer_or_is_no_archive_is_named(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (b"no archive", None):
        server.held = {} if data is None else {"/owner/signs/tar.gz/abc": data}
        with pytest.raises(click.ClickException, match=r"signs: http://127\.0\.0\.1.*abc: "):
            fetch(tmp_path / "one", (SIGN_SOURCE,))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(click.ClickException, match="HF_HUB_OFFLINE is set"):
        fetch(tmp_path / "one", (SIGN_SOURCE,))


def test_links_and_large_files_of_an_archive_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unpack(SIGN_SOURCE, packed(SIGNS, link="3/IMG_9.JPG")) == SIGNS
    monkeypatch.setattr(module, "LARGEST_FILE", 4)
    assert unpack(SIGN_SOURCE, packed(SIGNS)) == SIGNS
    monkeypatch.setattr(module, "LARGEST_FILE", 3)
    with pytest.raises(ValueError, match="at most 3 bytes"):
        unpack(SIGN_SOURCE, packed(SIGNS))


def test_the_pinned_digests_are_those_of_the_material(shared: Path) -> None:
    for source in SOURCES:
        assert not module.misfit(source, module.read_folder(shared / "bench" / source.into, source))


def test_fetching_needs_a_folder() -> None:
    result = CliRunner().invoke(main, ["--stage", "fetch"])
    assert result.exit_code == 2
    assert "--stage fetch: expected --bench DIR" in result.output
