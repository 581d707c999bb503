"""Official lists from a server on loopback: pinned, bounded, kept, and had without network."""

import csv
import gzip
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import micu_extract.datasets.published as lists
from micu.base.errors import ManifestError
from micu.store.manifest import read_manifest
from micu_extract import manifest_cli
from micu_extract.cli import cli
from micu_extract.datasets import DATASETS
from micu_extract.datasets.published import OfficialList, have_lists, published

VGG = b'---g-f_I2yQ,1,dog barking,train\n4YdbENYcIyE,30,"cat, meowing",test\n'
AVEL = b"category,video_id,split\ncat,4YdbENYcIyE,train\n"


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def made(name: str, role: str, file: str, digest: str, lines: str = "") -> OfficialList:
    place = {"repository": "own/er", "commit": "c" * 40, "path": f"data/{file}"}
    return OfficialList(
        data_sets=name, role=role, digest=digest, lines=lines, licence="CC0", **place
    )


FILES = {
    "vggsound": (made("vggsound", "list", "vggsound.csv", blob(VGG)),),
    "vggsound-avel40k": (
        made("vggsound-avel40k", "list", "vggsound-avel40k.csv", hashlib.sha256(AVEL).hexdigest()),
        made("vggsound-avel40k", "starts", "vggsound.csv", blob(VGG)),
    ),
    "vggsound-avel90k": (made("vggsound-avel90k", "list", "vggsound-avel90k-new.csv", "", "2"),),
}
HELD = {"vggsound.csv": VGG, "vggsound-avel40k.csv": AVEL, "vggsound-avel90k-new.csv": AVEL}


class Server:
    """Answers with `held`, by the name of the file; counts what it is asked."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = dict(HELD)
        self.asked: list[str] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler, bytes], None] = self.give
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                name = self.path.rsplit("/", 1)[-1]
                if name in server.held:
                    server.answer(self, server.held[name])
                else:
                    self.send_error(404)

            def log_message(self, *words: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def give(self, handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()
    monkeypatch.setenv("MICU_ANNOTATIONS_URL", f"{served.url}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for module in (lists, manifest_cli):
        monkeypatch.setattr(module, "published", lambda: FILES)
    monkeypatch.chdir(tmp_path)
    yield served
    served.http.shutdown()
    served.http.server_close()


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def refused(name: str = "vggsound") -> str:
    with pytest.raises(ManifestError) as caught:
        have_lists(name)
    assert not FILES[name][0].cached.exists()
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def test_a_manifest_is_made_of_the_published_list(server: Server, tmp_path: Path) -> None:
    done = invoke("manifest", "vggsound", "-o", "manifests/vggsound.csv.gz")
    assert done.exit_code == 0, done.output
    clips = read_manifest(Path("manifests/vggsound.csv.gz")).clips
    assert [clip.clip_id for clip in clips] == ["---g-f_I2yQ_000001", "4YdbENYcIyE_000030"]
    assert server.asked == [f"/own/er/{'c' * 40}/data/vggsound.csv"]
    path = tmp_path / "cache/micu/annotations/own/er" / ("c" * 40) / "vggsound.csv"
    assert path.read_bytes() == VGG
    told = f"list: {path} from github.com/own/er, commit cccccccccccc, data/vggsound.csv; CC0\n"
    assert told in done.stderr


def test_a_list_in_the_cache_needs_no_network(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_lists("vggsound")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ((_, path),) = have_lists("vggsound")
    assert (path.read_bytes(), len(server.asked)) == (VGG, 1)
    assert "is not asked, since HF_HUB_OFFLINE is set" in refused("vggsound-avel40k")
    assert len(server.asked) == 1


def test_a_list_in_the_cache_that_was_changed_is_fetched_again(server: Server) -> None:
    ((_, path),) = have_lists("vggsound")
    path.write_bytes(VGG[:-1])
    ((_, path),) = have_lists("vggsound")
    assert (path.read_bytes(), len(server.asked)) == (VGG, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vggsound", f"expected git hash {blob(VGG)}, got {blob(VGG[:-1])}"),
        ("vggsound-avel40k", f"expected SHA-256 {hashlib.sha256(AVEL).hexdigest()}, got "),
        ("vggsound-avel90k", "expected lines 2, got 1"),
    ],
)
def test_wrong_bytes_are_refused(server: Server, name: str, message: str) -> None:
    server.held = {key: data[:-1] for key, data in HELD.items()}
    server.held["vggsound-avel90k-new.csv"] = AVEL.splitlines()[0]
    told = refused(name)
    assert message in told
    assert "nothing of it was kept" in told
    assert "type --annotations FOLDER" in told


def test_what_is_not_there_and_a_server_that_is_not_there_are_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.held = {}
    told = refused()
    assert "HTTP status 404" in told
    url = f"{server.url}/own/er/{'c' * 40}/data/vggsound.csv"
    assert f"curl --remote-name-all {url}; put" in told
    monkeypatch.setenv("MICU_ANNOTATIONS_URL", "file:///etc")
    assert "expected an address that begins with https://" in refused()
    monkeypatch.setenv("MICU_ANNOTATIONS_URL", "http://127.0.0.1:9")
    assert "refused" in refused()


def test_an_answer_that_points_elsewhere_is_not_followed(server: Server) -> None:
    def point(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{server.url}/x/vggsound.csv")
        handler.end_headers()

    server.answer = point
    assert "HTTP status 302" in refused()
    assert len(server.asked) == 1


def test_an_answer_without_end_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_BYTES", len(VGG))
    assert have_lists("vggsound")
    FILES["vggsound"][0].cached.unlink()
    monkeypatch.setattr(lists, "MAX_BYTES", len(VGG) - 1)
    assert f"it has more than {len(VGG) - 1} bytes" in refused()


def test_a_server_that_dawdles_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def dawdle(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        for number in range(30):
            handler.wfile.write(data[number : number + 1])
            time.sleep(0.05)

    server.answer = dawdle
    monkeypatch.setattr(lists, "WHOLE_S", 0.3)
    begin = time.monotonic()
    assert "it takes longer than 0.3 s" in refused()
    assert time.monotonic() - begin < 1.4


def test_escapes_of_a_server_do_not_reach_the_terminal(server: Server) -> None:
    def spell(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        handler.send_response(500, "\x1b[2Jgone" + "x" * 900)
        handler.end_headers()

    server.answer = spell
    assert "\x1b" not in refused()


def test_a_data_set_that_is_not_published_says_what_to_type(server: Server) -> None:
    done = invoke("manifest", "valor32k", "-o", "m.csv")
    assert "valor32k: expected --annotations [train=" in str(done.exception)
    assert "m.csv is not written" in str(done.exception)
    assert server.asked == []


# --- extraction ------------------------------------------------------------------------------

VIDEO = ("video", "--backbone", "swinv2", "--weights", "random", "--dry-run")


def test_extraction_says_the_one_command_that_makes_a_published_manifest(server: Server) -> None:
    done = invoke(*VIDEO, "manifests/vggsound.csv")
    assert isinstance(done.exception, ManifestError)
    command = "micu-extract manifest vggsound -o manifests/vggsound.csv"
    assert f"type: {command};" in str(done.exception)
    assert server.asked == []
    assert invoke(*command.split()[1:]).exit_code == 0
    assert Path("manifests/vggsound.csv").is_file()


@pytest.mark.parametrize("all_of", [False, True])
@pytest.mark.parametrize("name", ["vggsound.csv", "vggsound-avel40k.csv.gz"])
def test_extraction_makes_it_when_it_is_asked_to(server: Server, name: str, all_of: bool) -> None:
    words = ("all", "--backbones", "swinv2", *VIDEO[3:]) if all_of else VIDEO
    done = invoke(*words, "--fetch", f"manifests/{name}")
    assert done.exit_code == 0, done.output
    assert len(read_manifest(Path("manifests", name)).clips) == (2 if name == "vggsound.csv" else 1)


def test_a_manifest_that_is_there_is_not_made(server: Server) -> None:
    Path("vggsound.csv").write_text("clip_id,path\na,a.mp4\n")
    assert invoke(*VIDEO, "--fetch", "vggsound.csv").exit_code == 0
    assert server.asked == []
    assert "no such manifest; expected" in str(invoke(*VIDEO, "--fetch", "my.csv").exception)
    Path("ave.csv.gz").write_bytes(gzip.compress(b"clip_id,path\na,a.mp4\n"))
    told = "ave.csv: no such manifest, but there is ave.csv.gz; type that"
    assert str(invoke(*VIDEO, "--fetch", "ave.csv").exception) == told


# --- the table -------------------------------------------------------------------------------


def test_a_folder_of_the_files_of_the_table_is_what_its_data_set_takes(tmp_path: Path) -> None:
    """As `curl` leaves them on another machine."""
    for name, files in published().items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            assert len(file.commit) == 40
            assert len(file.digest) in ((0,) if file.lines else (40, 64))
            assert file.licence
            (folder / file.name).touch()
        assert DATASETS[name].assign([str(folder)]) == {f.role: folder / f.name for f in files}


@pytest.mark.shared
def test_the_table_says_what_the_official_files_are(shared: Path) -> None:
    with (shared / "annotations" / "sources.csv").open(newline="") as file:
        known = {(row["repository"], row["path"]): row for row in csv.DictReader(file)}
    unknown = []
    for of_one in published().values():
        for file in of_one:
            row = known.get((file.repository, file.path))
            if row is None:
                unknown.append(file.name)
                continue
            assert row["commit"] == file.commit
            assert file.digest in (row["sha256"] or row["git_blob_sha1"], row["git_blob_sha1"])
            if row["file"]:
                assert not file.misfit((shared / "annotations" / row["file"]).read_bytes())
    assert {name for name in unknown if "HAC" not in name} == {"vggsound-avel90k-new.csv"}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "rows"), [("ave", 4143), ("avvp", 1855), ("ave-avvp", 2978), ("ucf101", 6831)]
)
def test_the_official_files_are_had_as_they_are_published(
    server: Server, shared: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    for module in (lists, manifest_cli):
        monkeypatch.setattr(module, "published", published)
    with (shared / "annotations" / "sources.csv").open(newline="") as file:
        known = {row["path"].rsplit("/", 1)[-1]: row["file"] for row in csv.DictReader(file)}
    server.held = {
        name: (shared / "annotations" / file).read_bytes() for name, file in known.items() if file
    }
    done = invoke("manifest", name, "-o", "m.csv")
    assert done.exit_code == 0, done.output
    assert len(read_manifest(Path("m.csv")).clips) == rows
