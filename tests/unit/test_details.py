"""Files of one job's details: they come back whole, and hostile ones are refused."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from micu.base.errors import ConfigError
from micu.evaluate.details import (
    MAPPED,
    ClipMap,
    Details,
    pool_steps,
    read_details,
    thin_out,
    write_details,
)

KEYS = {"task": "oscmg", "method": "checkpoint", "seed": 43, "score": "msp", "setting": "../x"}


def make_details(clips: int = 12, seed: int = 0) -> Details:
    """Clips of two known classes and one unknown one, apart from each other, in two modalities."""
    random = np.random.default_rng(seed)
    labels = np.arange(clips) % 3 - 1  # unknown, first, second
    logits = random.normal(size=(clips, 2)) + 3 * (labels[:, None] == np.arange(2))
    names = ["engine", "drum", "violin <b>"]
    classes = tuple(names[label + 1] for label in labels)
    ids = tuple(f"clip/{i}" for i in range(clips))
    return Details(
        logits=logits.astype(np.float32),
        labels=labels,
        known_score=logits.max(1),
        threshold=1.5,
        classes=("drum", "violin <b>"),
        clip_ids=ids,
        clip_classes=classes,
        mapped=ClipMap(
            random.normal(size=(2 * clips, 3)).astype(np.float32),
            ids * 2,
            classes * 2,
            ("video",) * clips + ("audio",) * clips,
        ),
    )


def test_a_job_comes_back_as_it_was_written_with_its_keys_as_text(tmp_path: Path) -> None:
    details = make_details()
    found = read_details(write_details(tmp_path / "new", details, KEYS))
    assert found.keys == {name: str(value) for name, value in KEYS.items()}
    for name in ("logits", "labels", "known_score"):
        assert np.array_equal(getattr(found, name), getattr(details, name)), name
    assert np.array_equal(found.mapped.embedding, details.mapped.embedding)
    for name in ("classes", "clip_ids", "clip_classes", "threshold"):
        assert getattr(found, name) == getattr(details, name)
    for name in ("ids", "classes", "modalities"):
        assert getattr(found.mapped, name) == getattr(details.mapped, name)


def test_the_same_job_writes_the_same_file_and_another_seed_one_of_its_own(tmp_path: Path) -> None:
    paths = [write_details(tmp_path, make_details(), KEYS) for _ in range(2)]
    paths.append(write_details(tmp_path, make_details(), {**KEYS, "seed": 44}))
    assert paths[0] == paths[1] != paths[2]
    assert {path.parent for path in paths} == {tmp_path}
    assert len(list(tmp_path.iterdir())) == 2


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace one member of a zip file."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[f"{name}.npy"] = content
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def as_npy(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], pickled: bool = False
) -> bytes:
    """An array as numpy writes it."""
    text = io.BytesIO()
    np.save(text, array, allow_pickle=pickled)
    return text.getvalue()


def claiming(shape: str) -> bytes:
    """The header of an array of float32 that claims a shape, and sixteen bytes behind it."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)


def with_text(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Change the names in a file."""

    def mutate(path: Path) -> None:
        with np.load(path) as arrays:
            text = json.loads(arrays["text"].tobytes())
        change(text)
        rewrite(path, "text", as_npy(np.frombuffer(json.dumps(text).encode(), np.uint8)))

    return mutate


class Trap:
    """Says so if it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda p: rewrite(p, "logits", as_npy(np.array([Trap()], object), pickled=True)),
    "a bare pickle": lambda p: p.write_bytes(pickle.dumps([1])),
    "more than its bytes": lambda p: rewrite(p, "logits", claiming("(1000000000, 1000000)")),
    "negative sizes": lambda p: rewrite(p, "logits", claiming("(-2, -2)")),
    "a number that is no shape": lambda p: rewrite(p, "logits", claiming("'x'")),
    "another number of clips": lambda p: rewrite(p, "labels", as_npy(np.zeros(5, np.int64))),
    "a class that is not there": lambda p: rewrite(p, "labels", as_npy(np.full(12, 2))),
    "text for numbers": lambda p: rewrite(p, "known_score", as_npy(np.full(12, "x"))),
    "a score that is not a number": lambda p: rewrite(
        p, "known_score", as_npy(np.full(12, np.nan))
    ),
    "a threshold of infinity": lambda p: rewrite(p, "threshold", as_npy(np.array(np.inf))),
    "no JSON": lambda p: rewrite(p, "text", as_npy(np.full(9, 255, np.uint8))),
    "deep JSON": lambda p: rewrite(p, "text", as_npy(np.full(100000, ord("["), np.uint8))),
    "too few names": with_text(lambda text: text.update(classes=["a"])),
    "numbers for names": with_text(lambda text: text.update(classes=[1, 2])),
    "no keys": with_text(lambda text: text.pop("keys")),
    "a file cut off": lambda p: p.write_bytes(p.read_bytes()[:-200]),
    "an empty file": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_or_damaged_file_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    path = write_details(tmp_path, make_details(), KEYS)
    HOSTILE[kind](path)
    with pytest.raises(ConfigError, match=path.name):
        read_details(path)


def test_a_file_that_would_fill_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_details(tmp_path, make_details(), KEYS)
    monkeypatch.setattr("micu.evaluate.details.LARGEST", 100)
    with pytest.raises(ConfigError, match="unpacks to"):
        read_details(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--details DIR"):
        read_details(tmp_path / "nothing.npz")


def test_steps_that_are_not_real_do_not_count() -> None:
    values = np.array([[[1.0], [3.0], [9.0]], [[5.0], [7.0], [7.0]]])
    mask = np.array([[True, True, False], [False, False, False]])
    assert pool_steps(values, mask).tolist() == [[2.0], [0.0]]


def test_thinning_keeps_all_of_a_few_and_spreads_over_many() -> None:
    assert thin_out(3).tolist() == [0, 1, 2]
    kept = thin_out(10 * MAPPED)
    assert len(set(kept.tolist())) == MAPPED
    assert (kept[0], kept[-1]) == (0, 10 * MAPPED - 10)


def test_names_that_the_file_system_would_not_take_stay_inside(tmp_path: Path) -> None:
    details = replace(make_details(), classes=("a", "b"))
    path = write_details(tmp_path, details, {**KEYS, "method": "x/" * 200})
    assert path.parent == tmp_path
    assert path.is_file()
