"""Which clips either protocol takes, and what it says about them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.errors import ConfigError, ManifestError
from micu.evaluate.leaks import Pretraining, find_pretraining
from micu.evaluate.splits import (
    OpenSetSplit,
    SplitRules,
    hold_out,
    read_class_map,
    split_clips,
)
from micu.store.manifest import Clip, Event, Manifest, read_manifest, write_manifest
from micu.store.overlap import items_sha256, media_item
from tests.models import loaded_model

PAPER, CLEAN = (SplitRules(protocol=name) for name in ("paper", "clean"))


def make_clips(per_class: int, split: str, classes: str = "abc") -> list[Clip]:
    return [
        Clip(clip_id=f"{split}/{label}/{number}", label=label, split=split)
        for label in classes
        for number in range(per_class)
    ]


def cut(clips: list[Clip], known: Sequence[str] = "ab", **given: object) -> OpenSetSplit:
    ids = {clip.clip_id for clip in [*clips, *(given.get("targets") or ())]}  # type: ignore[misc]
    options = {"source_ids": ids, "target_ids": ids, "seed": 0, "rules": CLEAN, **given}
    return split_clips(clips, tuple(known), **options)  # type: ignore[arg-type]


def items(clips: tuple[Clip, ...]) -> set[str]:
    return {media_item(clip) for clip in clips}


def test_paper_takes_all_training_clips_and_clean_holds_some_out() -> None:
    clips = make_clips(20, "train") + make_clips(3, "test")
    paper, clean = cut(clips, rules=PAPER), cut(clips)
    assert (len(paper.train), len(paper.validation), paper.held_out) == (40, 0, False)
    assert (len(clean.train), len(clean.validation), clean.held_out) == (34, 6, True)
    assert not paper.trains_as(clean)


def test_with_a_validation_split_one_probe_serves_both_protocols() -> None:
    clips = make_clips(4, "train") + make_clips(2, "val") + make_clips(3, "test")
    assert cut(clips, rules=PAPER).trains_as(cut(clips))


def test_paper_says_that_test_clips_were_trained_on_and_clean_deals_them() -> None:
    clips = make_clips(40, "")
    paper, clean = cut(clips, rules=PAPER), cut(clips)
    assert (len(paper.train), len(paper.test)) == (80, 120)
    assert paper.leaks == ("test-clips-in-training:80",)
    assert clean.leaks == ()
    trained, tested = items((*clean.train, *clean.validation)), items(clean.test)
    assert not trained & tested
    assert trained | tested == items(tuple(clips))
    assert 20 < len(trained) < 60
    assert "80 media items were in training and test" in clean.note
    paired = cut(clips, paired_ids={clip.clip_id for clip in clips})
    assert set(paired.pairs) == items(paired.validation)


def test_what_is_dealt_to_the_test_does_not_depend_on_the_seed() -> None:
    clips = make_clips(20, "")
    assert cut(clips, seed=1).test == cut(clips, seed=2).test


def test_splits_that_are_asked_for_are_used_and_named() -> None:
    clips = make_clips(6, "train") + make_clips(4, "val") + make_clips(5, "test")
    on_train = cut(clips, rules=SplitRules(protocol="paper", test_splits=("train",)))
    assert on_train.leaks == ("test-clips-in-training:12", "test-split:train")
    everything = SplitRules(protocol="paper", train_splits=None, test_splits=None)
    assert len(cut(clips, rules=everything).test) == 45
    assert "test-split:train,val" in cut(clips, rules=everything).leaks


def test_classes_that_cannot_be_learned_stay_under_paper_and_go_under_clean() -> None:
    clips = make_clips(6, "train", "ab") + make_clips(3, "test", "acd")
    paper, clean = cut(clips, "abc", rules=PAPER), cut(clips, "abc")
    assert (paper.known, paper.leaks) == (("a", "b", "c"), ("unusable-classes:2",))
    assert clean.known == ("a",)
    assert {clip.label for clip in (*clean.train, *clean.validation)} == {"a"}
    assert {clip.label for clip in clean.test} == {"a", "d"}
    assert "b, c" in clean.note


def test_clips_that_were_pretrained_on_leave_the_clean_test_only() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test")
    seen = frozenset({"test/a/0", "test/c/1"})
    rules = [SplitRules(protocol=name, seen=seen) for name in ("paper", "clean")]
    paper, clean = (cut(clips, rules=each) for each in rules)
    assert (len(paper.test), len(clean.test)) == (9, 7)
    assert not items(clean.test) & seen
    assert "2 test clips left out" in clean.note
    every = SplitRules(seen=frozenset(clip.clip_id for clip in clips))
    with pytest.raises(ManifestError, match=r"pretrained on all 9 test clips.*exclude_ids"):
        cut(clips, rules=every)


def test_a_target_manifest_gives_the_test_and_the_source_manifest_the_rest() -> None:
    sources, targets = make_clips(8, "train"), make_clips(3, "test", "abd")
    split = cut(sources, targets=targets)
    assert items((*split.train, *split.validation)) <= items(tuple(sources))
    assert items(split.test) == items(tuple(targets))
    whole = cut(sources, targets=make_clips(3, "", "abd"))
    assert len(whole.test) == 9


def test_a_closed_set_tests_known_classes_alone() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test")
    assert {c.label for c in cut(clips, rules=SplitRules(closed=True)).test} == {"a", "b"}


def test_pairs_are_neither_trained_nor_tested_on_and_need_no_label() -> None:
    clips = [
        *make_clips(6, "train"),
        *make_clips(3, "val"),
        *make_clips(3, "test"),
        Clip(clip_id="free", split="train"),
    ]
    split = cut(clips, paired_ids={c.clip_id for c in clips} - {"val/a/0", "train/a/1"})
    known = {c.clip_id for c in split.train}
    assert not known & set(split.pairs)
    assert not {c.clip_id for c in split.test} & set(split.pairs)
    assert "free" in split.pairs
    assert "train/c/0" in split.pairs
    assert "val/a/0" not in split.pairs
    assert set(split.paired) == known - {"train/a/1"}
    assert split.pairs_of_known == 5  # of val, less one; train/c and val/c are not known
    assert len(split.pairs) == 5 + 6 + 3 + 1


def test_media_items_are_read_from_ids_of_youtube_and_ucf() -> None:
    for clip_id, item in (
        ("RUhOCu3LNXM_000030", "RUhOCu3LNXM"),
        ("RUhOCu3LNXM_30_40", "RUhOCu3LNXM"),
        ("RUhOCu3LNXM#2", "RUhOCu3LNXM"),
        ("v_PlayingCello_g01_c02", "v_PlayingCello_g01"),
        ("000000391895", "000000391895"),
        ("clip/1", "clip/1"),
    ):
        assert media_item(Clip(clip_id=clip_id)) == item
    assert media_item(Clip(clip_id="RUhOCu3LNXM#2", group="picture")) == "picture"


def test_clips_named_after_their_class_are_media_items_of_their_own() -> None:
    clips = [
        Clip(clip_id=f"{name}_{i}", label=name)
        for name in ("dog_barking", "cat_purring")
        for i in range(20)
    ]
    known = ("dog_barking", "cat_purring")
    assert len({media_item(clip) for clip in clips}) == 40
    assert len(cut(clips, known).test) > 10


def test_an_error_names_the_clips_that_were_taken_for_one_video() -> None:
    clips = [Clip(clip_id=f"rUhOCu3LNXM_{i:06}", label="a") for i in range(6)]
    with pytest.raises(ManifestError, match="6 ids are taken for parts of 1 YouTube videos"):
        cut(clips, "a")
    grouped = [Clip(clip_id=c.clip_id, label="a", group=f"mine {c.clip_id}") for c in clips]
    assert cut(grouped, "a").test


def test_what_is_held_out_is_no_media_item_of_training() -> None:
    clips = [
        Clip(clip_id=f"v_Cello_g{group:02}_c{number:02}", label="Cello")
        for group in range(10)
        for number in range(4)
    ]
    stays, held = hold_out(clips, seed=0)
    assert (len(stays), len(held)) == (32, 8)
    assert not items(stays) & items(held)


# --- pretraining ---------------------------------------------------------------------------------


def pretraining_manifest(text: str) -> Manifest:
    clips = tuple(
        Clip(
            clip_id=f"{i:010}A_000030", label="ab"[i % 2], split="train", text=text.format(i, i % 2)
        )
        for i in range(6)
    )
    return Manifest(Path("pre.csv"), clips, "f" * 64)


def test_an_overlap_is_counted_if_the_pretraining_is_known_and_said_to_be_unknown_if_not() -> None:
    manifest = pretraining_manifest("sentence {0}")
    tested = [Clip(clip_id=f"{i:010}A_30_40", label="a") for i in range(4, 9)]
    loaded = loaded_model(manifest_sha256=manifest.sha256)
    known = find_pretraining(loaded, [manifest], None)
    assert known.leaks(tested) == ("pretraining-overlap:2",)
    assert known.leaks(tested[2:]) == ()
    assert len(known.unseen(tested)) == 3
    unknown = find_pretraining(loaded, [], None)
    assert unknown.leaks(tested) == ("pretraining-overlap:unknown",)
    assert find_pretraining(loaded, [], manifest) == known
    other = Manifest(Path("other.csv"), manifest.clips, "0" * 64)
    with pytest.raises(ConfigError, match="the checkpoint was trained from ffffffffffff"):
        find_pretraining(loaded, [], other)
    assert find_pretraining(loaded_model(), [], other).seen == known.seen


def test_the_pretraining_s_manifest_is_found_where_it_lay_if_it_is_unchanged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pre.csv"
    write_manifest(path, pretraining_manifest("sentence {0}").clips)
    digest = read_manifest(path).sha256
    loaded = loaded_model(manifest_sha256=digest, manifest=str(path))
    tested = pretraining_manifest("").clips[:3]
    assert find_pretraining(loaded, [], None).leaks(tested) == ("pretraining-overlap:3",)
    write_manifest(path, pretraining_manifest("another {0}").clips)
    assert find_pretraining(loaded, [], None).leaks(tested) == ("pretraining-overlap:unknown",)
    path.unlink()
    assert find_pretraining(loaded, [], None).leaks(tested) == ("pretraining-overlap:unknown",)


def test_a_pretraining_s_manifest_is_known_by_its_clips_though_labels_were_mended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pre.csv"
    clips = pretraining_manifest("sentence {0}").clips
    loaded = loaded_model(
        manifest_sha256="0" * 64, manifest=str(path), items_sha256=items_sha256(clips)
    )
    write_manifest(path, [replace(clip, label="mended") for clip in clips[::-1]])
    assert find_pretraining(loaded, [], None).leaks(clips[:3]) == ("pretraining-overlap:3",)
    assert find_pretraining(loaded, [], read_manifest(path)).seen is not None
    write_manifest(path, clips[1:])
    assert find_pretraining(loaded, [], None).leaks(clips[:3]) == ("pretraining-overlap:unknown",)


def test_sentences_that_are_the_label_are_a_leak() -> None:
    manifest = pretraining_manifest("class {1}")
    loaded = loaded_model(manifest_sha256=manifest.sha256)
    assert find_pretraining(loaded, [manifest], None).leaks([]) == ("pretraining-text:labels",)
    assert Pretraining(frozenset()).leaks([]) == ()


def test_a_class_map_joins_names_and_refuses_a_name_that_is_twice_there(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("label,label_target\nBowling,bowling impact\nskiing,skiing\n")
    assert read_class_map(path) == {"bowling impact": "Bowling"}
    path.write_text("label,label_target\nBowling,bowling\nbowling,skiing\n")
    with pytest.raises(ManifestError, match="line 3 repeats 'bowling' of line 2"):
        read_class_map(path)
    path.write_text("label\nBowling\n")
    with pytest.raises(ManifestError, match="expected the column label, one of other names"):
        read_class_map(path)
    path.write_text("")
    with pytest.raises(ManifestError, match="got nothing"):
        read_class_map(path)


def test_events_decide_which_clips_a_modality_has() -> None:
    clips = [
        Clip(clip_id=f"{split}/{modality}/{i}", split=split, events=(Event("a", 0, 1, modality),))
        for split in ("train", "test")
        for modality in ("audio", "video")
        for i in range(4)
    ]

    def classes_in(modality: str) -> object:
        return lambda clip: tuple(event.label for event in clip.events_in(modality))

    rules = SplitRules(
        source_classes=classes_in("video"),  # type: ignore[arg-type]
        target_classes=classes_in("audio"),  # type: ignore[arg-type]
    )
    split = cut(clips, "a", rules=rules)
    assert {c.clip_id.split("/")[1] for c in (*split.train, *split.validation)} == {"video"}
    assert {c.clip_id.split("/")[1] for c in split.test} == {"audio"}


def test_clips_whose_class_can_be_perceived_are_those_with_an_event_of_it_there() -> None:
    def clip(number: int, *events: Event) -> Clip:
        return Clip(clip_id=str(number), label="bell", events=events)

    heard, seen = Event("bell", 0, 1, "audio"), Event("bell", 0, 1, "video")
    other, both = Event("bark", 0, 1, "video"), Event("bell", 0, 1)
    test = (clip(0, heard, other), clip(1, other, seen), clip(2, both), clip(3))
    split = OpenSetSplit(train=(), validation=(), test=test, known=("bell",), held_out=False)
    found = {name: split.perceivable(name) for name in ("audio", "video", "flow", "text")}
    assert [list(x) for x in found.values() if x is not None] == [
        [True, False, True, False],
        [False, True, True, False],
        [False, True, True, False],
        [False, False, True, False],
    ]
    only_seen = replace(split, test=(clip(1, other, seen),))
    assert only_seen.perceivable("audio") is None
    assert replace(split, test=(clip(2, both), clip(3))).perceivable("audio") is None
