"""What is looked for in retrieval, and by what; the recall itself is tested with the metrics."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError, ManifestError
from micu.evaluate import retrieval
from micu.evaluate.probe import ClipFeatures
from micu.evaluate.retrieval import (
    RANKS,
    choose_items,
    evaluate_retrieval,
    mean_embedding,
)
from micu.evaluate.splits import CLEAN, PAPER
from micu.store.manifest import Clip


def photo(name: str, split: str = "test") -> list[Clip]:
    """A picture with two captions, the first in its own row."""
    first = Clip(clip_id=name, path=f"{name}.jpg", text="one", split=split)
    return [first, Clip(clip_id=f"{name}#2", text="two", split=split, group=name)]


CLIPS = (*photo("a"), *photo("b"), *photo("c"), *photo("d", "train"))


def evaluation(
    clips: tuple[Clip, ...] = CLIPS,
    *,
    video: str = "abcd",
    text: str = "a a#2 b b#2 c c#2 d d#2",
    **more: Any,
) -> Any:
    stores = {"video": set(video), "text": set(text.split())}
    told: list[str] = []
    return SimpleNamespace(
        source=SimpleNamespace(clips=clips, stores=stores, encoders={}),
        test_splits=more.pop("test_splits", None),
        pretraining=SimpleNamespace(
            unseen=lambda clips: tuple(clip for clip in clips if clip.group != "a")
        ),
        items=more.pop("items", None),
        setting=more.pop("setting", ""),
        told=told,
        **more,
    )


def chosen(given: Any, protocol: str = PAPER, pair: tuple[str, str] = ("video", "text")) -> str:
    found = choose_items(given, protocol, *pair)
    items, captions = (" ".join(clip.clip_id for clip in c) for c in (found.items, found.captions))
    return f"{items} | {captions} | {found.lacking}"


def test_items_are_found_by_every_caption_in_the_order_of_the_manifest() -> None:
    assert chosen(evaluation()) == "a b c | a a#2 b b#2 c c#2 | 0"
    assert chosen(evaluation(), CLEAN) == "b c | b b#2 c c#2 | 0"


@pytest.mark.parametrize(
    ("splits", "items"),
    [(None, "a b c"), ("train", "d"), ("train,test", "a b c d"), ("all", "a b c d")],
)
def test_clips_are_of_the_splits_asked_for(splits: str | None, items: str) -> None:
    assert chosen(evaluation(test_splits=splits)).split(" | ")[0] == items


@pytest.mark.parametrize("splits", [None, "all", "train"])
def test_without_any_split_all_clips_are_taken(splits: str | None) -> None:
    clips = (*photo("a", ""), *photo("b", ""))
    assert chosen(evaluation(clips, test_splits=splits)) == "a b | a a#2 b b#2 | 0"


@pytest.mark.parametrize(
    ("video", "text", "found"),
    [
        ("ab", "a a#2 b b#2 c c#2", "a b | a a#2 b b#2 | 1"),
        ("abc", "a a#2 b c c#2", "a b c | a a#2 b c c#2 | 1"),
        ("abc", "a a#2 c c#2", "a c | a a#2 c c#2 | 2"),
        ("c", "a a#2 b b#2 c#2", "c | c#2 | 3"),
    ],
)
def test_clips_that_lack_features_are_counted(video: str, text: str, found: str) -> None:
    assert chosen(evaluation(video=video, text=text)) == found


def test_a_caption_cannot_lack_features_of_pictures() -> None:
    given = evaluation()
    given.source.stores["audio"] = {"a", "b"}
    assert chosen(given, pair=("video", "audio")) == "a b | a b | 1"


@pytest.mark.parametrize("items", [1, 2, 3])
def test_the_first_items_stay_with_their_captions(items: int) -> None:
    names = "abc"[:items]
    captions = " ".join(f"{name} {name}#2" for name in names)
    assert chosen(evaluation(items=items)) == f"{' '.join(names)} | {captions} | 0"


def test_more_items_than_there_are_is_an_error() -> None:
    with pytest.raises(ManifestError, match="--items 4: under paper there are only 3 with video"):
        chosen(evaluation(items=4))
    with pytest.raises(ManifestError, match="no item with video and text features among 6 clips"):
        chosen(evaluation(text=""))


@pytest.mark.parametrize(
    ("protocol", "setting", "captions"),
    [
        (PAPER, "mscoco", "a b c"),
        (PAPER, "other", "a a#2 b b#2 c c#2"),
        (CLEAN, "mscoco", "b b#2 c c#2"),
    ],
)
def test_the_published_list_has_the_first_caption_of_each_picture(
    protocol: str, setting: str, captions: str
) -> None:
    assert chosen(evaluation(setting=setting), protocol).split(" | ")[1] == captions


class StepEncoder:
    """Three steps per clip, the last one not real: 1, 3 and 100 times the clip's number."""

    device = torch.device("cpu")
    codebook_size = 0

    def encode(self, modality: str, clip_ids: list[str]) -> ClipFeatures:
        numbers = torch.tensor([1.0 + "abcd".index(name[0]) for name in clip_ids])
        steps = torch.tensor([1.0, 3.0, 100.0])
        values = (numbers[:, None] * steps)[..., None].expand(-1, -1, 2).clone()
        mask = torch.tensor([True, True, False]).expand(len(clip_ids), 3)
        return ClipFeatures(modality, tuple(clip_ids), values, mask)

    def real_steps(self, modality: str, clip_ids: list[str]) -> torch.Tensor:
        return torch.ones(len(clip_ids), 3, dtype=torch.bool)


def test_an_embedding_is_the_mean_over_real_steps() -> None:
    encoder: Any = StepEncoder()
    found = mean_embedding(encoder, "video", [CLIPS[0], CLIPS[4]])
    assert found.tolist() == [[2.0, 2.0], [6.0, 6.0]]
    assert found.dtype == np.float64


def test_rows_are_of_both_directions_and_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(retrieval, "make_row", lambda evaluation, **row: rows.append(row))
    told: list[str] = []
    given = evaluation(
        video="ab",
        text="a a#2 b c c#2",
        pairs=[("text", "video"), ("video", "text")],
        encoders=["mine"],
        chance=True,
        tell=told.append,
        tell_once=told.append,
        each_protocol=lambda do: do(PAPER),
    )
    given.source.encoders["mine"] = StepEncoder()
    monkeypatch.setattr(retrieval, "check_same_space", lambda *_: None)
    monkeypatch.setattr(
        retrieval,
        "retrieval_recall",
        lambda items, captions, owners, ranks: {
            f"r{rank}_{way}": rank / 100 + (0.5 if way[0] == "c" else 0) + owners.sum() / 1000
            for rank in ranks
            for way in ("items_to_captions", "captions_to_items")
        },
    )
    evaluate_retrieval(given)
    assert RANKS == (1, 5, 10)
    by = {(r["method"], r["train"], r["test"], r["metric"]): r for r in rows}
    assert len(rows) == len(by) == 2 * 9
    for method in ("mine", "chance"):
        forth, back = by[method, "video", "text", "r5"], by[method, "text", "video", "r5"]
        assert (forth["value"], back["value"]) == pytest.approx((0.051, 0.551))
        assert by[method, "video", "text", "r5_mean"]["value"] == pytest.approx(0.301)
        assert (forth["n_clips"], back["n_clips"]) == (2, 3)
        assert {r["n_lacking"] for r in rows} == {2}
        assert forth["note"].startswith("2 items, 3 captions; a tie counts with its chance; R@5 am")
    assert told[0] == "mine video ↔ text, paper: 2 items, 3 captions; 2 more clips lack features"
    assert told[1] == "paper: " + "; ".join(
        f"R@{rank} among {size} is 1 whatever is compared" for size in (2, 3) for rank in (5, 10)
    )


def test_a_rank_of_as_many_as_there_are_is_trivial_and_one_less_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval, "make_row", lambda evaluation, **row: row)
    for count, trivial in ((5, ["R@5", "R@10"]), (6, ["R@10"]), (10, ["R@10"]), (11, [])):
        clips = tuple(
            Clip(clip_id=f"{n:02}", path="x", text="t", split="test") for n in range(count)
        )
        told: list[str] = []
        given = evaluation(
            clips,
            pairs=[("video", "text")],
            encoders=[],
            chance=True,
            tell_once=told.append,
            each_protocol=lambda do: do(PAPER),
        )
        names = {clip.clip_id for clip in clips}
        given.source.stores = {"video": names, "text": names}
        rows: list[Any] = evaluate_retrieval(given)
        assert [rank for rank in ("R@5", "R@10") if any(rank in text for text in told)] == trivial
        assert all(("whatever is compared" in row["note"]) == bool(trivial) for row in rows)
        value = {row["metric"]: row["value"] for row in rows}
        assert value["r1"] == pytest.approx(1 / count)
        assert value["r5_mean"] == pytest.approx(min(1, 5 / count))


def test_no_pair_is_an_error() -> None:
    with pytest.raises(ConfigError, match="retrieval needs --source and --target"):
        evaluate_retrieval(evaluation(pairs=[]))
