import json
import os
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest

from micu.base.errors import ManifestError, MicuError, StoreError
from micu.store.manifest import Clip, Event
from micu_extract.datasets import DATASETS
from micu_extract.datasets.folder import Doubt, locate_media
from micu_extract.media.formats import MEDIA_SUFFIXES


def write(folder: Path, **files: str) -> list[str]:
    """Files of those names (`__` is a dot), and their paths as they are typed."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return [str(folder / name.replace("__", ".")) for name in files]


def write_order(path: Path, rows: list[int]) -> str:
    with h5py.File(path, "w") as file:
        file["order"] = np.array(rows)
    return str(path)


def rows(name: str, typed: list[str]) -> list[Clip]:
    return DATASETS[name].rows(typed)


def ids(clips: list[Clip]) -> list[str]:
    return [clip.clip_id for clip in clips]


# --- how files are named ---------------------------------------------------------------------


def test_a_file_of_another_name_is_typed_with_its_role(tmp_path: Path) -> None:
    (path,) = write(tmp_path, mine__txt="Bark&abcdefghijk&good&0&3\n")
    with pytest.raises(ManifestError, match=r"mine.txt: means nothing to ave.*ROLE=PATH"):
        rows("ave", [path])
    assert ids(rows("ave", [f"annotations={path}"])) == ["abcdefghijk"]


def test_a_folder_of_official_files_stands_for_those_it_holds(tmp_path: Path) -> None:
    write(tmp_path, Annotations__txt="Bark&a&good&0&3\n", readme__txt="hello")
    write_order(tmp_path / "val_order.h5", [0])
    assert [clip.split for clip in rows("ave", [str(tmp_path)])] == ["val"]


def test_a_missing_file_and_two_files_for_one_role_are_named(tmp_path: Path) -> None:
    order = write_order(tmp_path / "train_order.h5", [0])
    with pytest.raises(ManifestError, match=r"got no annotations"):
        rows("ave", [order])
    with pytest.raises(ManifestError, match="two files for train"):
        rows("ave", [order, write_order(tmp_path / "ave_train_order.h5", [0])])
    with pytest.raises(ManifestError, match="no such file"):
        rows("ave", [str(tmp_path / "none.txt")])
    with pytest.raises(ManifestError, match=r"videos=.*: no such file. Expected .* \[train=\*"):
        rows("ave", [f"videos={order}"])


@pytest.mark.parametrize("name", ["avvp", "clotho", "mscoco", "ucf101", "valor32k"])
def test_a_data_set_without_any_of_its_lists_says_which_it_takes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="expected --annotations"):
        rows(name, [str(tmp_path)])


GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "one": b"1\n",
    "deep": b"[" * 99_999,
    "quote": b'a,b\n"' + b"x" * 200_000,
    "latin": "caf\u00e9,caf\u00e9\n1,2\n".encode("latin1"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_file_that_is_none_of_a_data_set_is_named(
    tmp_path: Path, name: str, garbage: str
) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(GARBAGE[garbage])
    for file in DATASETS[name].files:
        with pytest.raises(MicuError, match=r"garbage|expected"):
            rows(name, [f"{role.role}={path}" for role in DATASETS[name].files if role is file])
    with pytest.raises(MicuError, match="garbage"):
        rows(name, [f"{file.role}={path}" for file in DATASETS[name].files])


# --- the formats, on small files -------------------------------------------------------------


def test_vggsound_rows_name_the_files_that_downloaders_leave(tmp_path: Path) -> None:
    text = '---g-f_I2yQ,1,"people marching, loud",test\n--0PQM4-hqg,30,waterfall,train\n'
    clips = rows("vggsound", write(tmp_path, vggsound__csv=text))
    assert clips[0] == Clip(
        clip_id="---g-f_I2yQ_000001",
        path="---g-f_I2yQ_000001.mp4",
        start_s=0.0,
        end_s=10.0,
        label="people marching, loud",
        split="test",
        text="people marching, loud",
    )
    assert (clips[1].clip_id, clips[1].split) == ("--0PQM4-hqg_000030", "train")


def test_lines_of_another_format_are_all_named(tmp_path: Path) -> None:
    text = "youtube_id,start_s,label,split\nabc,1,dog,train\nabc,x\n"
    with pytest.raises(ManifestError, match=r"(?s)2 bad lines.*line 1.*line 3"):
        rows("vggsound", write(tmp_path, vggsound__csv=text))


def test_the_pretraining_list_takes_sentences_and_starts_from_their_files(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        vggsound_avel40k__csv="category,video_id,split\nrain,---g-f_I2yQ,val\n",
        vggsoundCategories2Prompts__csv="label,prompt\nrain,The rain falls\n",
        vggsound__csv="---g-f_I2yQ,7,rain,train\n",
    )
    typed = [f"list={files[0]}", files[1], files[2]]
    (plain,) = rows("vggsound-avel40k", typed[:1])
    assert (plain.clip_id, plain.text, plain.split) == ("---g-f_I2yQ", "rain", "val")
    (full,) = rows("vggsound-avel40k", typed)
    assert (full.clip_id, full.text) == ("---g-f_I2yQ_000007", "The rain falls")


def test_vggsounder_says_where_a_label_can_be_perceived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "video_id,label,modality,background_music\na_000001,dog,AV,True\n"
    text += 'b_000002,cat,A,False\na_000001,"rain, wind",V,True\n'
    typed = write(tmp_path, vggsounder__csv=text, vggsound__csv="a,1,dog barking,test\n")
    first, second = rows("vggsounder", typed)
    assert (first.clip_id, first.path, first.label, first.split) == (
        *("a_000001", "a_000001.mp4", "dog barking", "test"),
    )
    assert first.events == (
        Event("dog", 0.0, 10.0),
        Event("rain, wind", 0.0, 10.0, "video"),
    )
    assert (second.label, second.events) == ("", (Event("cat", 0.0, 10.0, "audio"),))
    assert caplog.messages == [f"{typed[1]}: 1 clips are not in it: 'b_000002'"]
    with pytest.raises(ManifestError, match="line 2: expected modality A, V or AV, got 'VA'"):
        rows("vggsounder", [*write(tmp_path, vggsounder__csv=text.replace("AV", "VA")), typed[1]])


@pytest.mark.parametrize("target", ["human", "animal", "cartoon"])
def test_hac_trains_on_two_domains_and_tests_on_the_third(tmp_path: Path, target: str) -> None:
    for domain in ("human", "animal", "cartoon"):
        (tmp_path / f"HAC_train_only_{domain}.csv").write_text("a.mp4,0\nb.mp4,6\n")
        (tmp_path / f"HAC_test_only_{domain}.csv").write_text("b.mp4,6\nc_1_2.mp4,3\n")
    clips = rows(f"hac-{target}", [str(tmp_path)])
    assert len({clip.clip_id for clip in clips}) == len(clips) == 12
    of_one = [clip for clip in clips if clip.clip_id.startswith("animal/")]
    expected = ["train", "train", "val", "val"] if target != "animal" else ["test"] * 4
    assert [clip.split for clip in of_one] == expected
    assert [(c.clip_id, c.group, c.path, c.label) for c in of_one] == [
        ("animal/a", "animal/a", "animal/videos/a.mp4", "sleeping"),
        ("animal/b", "animal/b", "animal/videos/b.mp4", "opening door"),
        ("animal/b#2", "animal/b", "animal/videos/b.mp4", "opening door"),
        ("animal/c_1_2", "animal/c_1_2", "animal/videos/c_1_2.mp4", "drinking"),
    ]
    (tmp_path / "HAC_test_only_human.csv").write_text("b.mp4,7\nb.avi,0\nb.mp4\n")
    with pytest.raises(ManifestError, match=r"3 bad lines\n  line 1: expected name\.mp4"):
        rows(f"hac-{target}", [str(tmp_path)])


def test_ave_rows_keep_the_order_of_the_lines_and_their_events(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["Category&VideoID&Quality&StartTime&EndTime", "Bark&aaa&good&2&9"]
    lines += ["Cat&bbb&good&0&0", "Cat&aaa&good&0&1"]
    files = write(tmp_path, Annotations__txt="\n".join(lines) + "\n")
    files.append(write_order(tmp_path / "train_order.h5", [2, 0]))
    files.append(write_order(tmp_path / "test_order.h5", [1]))
    clips = rows("ave", files)
    assert ids(clips) == ["aaa", "bbb", "aaa#2"]
    assert [clip.split for clip in clips] == ["train", "test", "train"]
    assert clips[0].events == (Event("Bark", 2.0, 9.0),)
    assert (clips[2].group, clips[2].path) == ("aaa", "aaa.mp4")
    assert "line 3: 'Cat' from 0 s to 0 s: read as of no length" in caplog.text


def test_order_files_that_do_not_number_the_lines_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path, Annotations__txt="Bark&aaa&good&2&9\n")
    with pytest.raises(ManifestError, match="from 0 to 0, got 1"):
        rows("ave", [*files, write_order(tmp_path / "train_order.h5", [1])])
    with pytest.raises(ManifestError, match="numbers 2 lines of 1"):
        rows("ave", [*files, write_order(tmp_path / "train_order.h5", [0, 0])])
    both = [write_order(tmp_path / f"{split}_order.h5", [0]) for split in ("train", "val")]
    with pytest.raises(ManifestError, match="line 0 is in train already"):
        rows("ave", [*files, *both])


def test_an_order_file_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, Annotations__txt="Bark&aaa&good&2&9\n")
    write_order(tmp_path / "secret.h5", [0])
    with h5py.File(tmp_path / "train_order.h5", "w") as file:
        file["order"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "order")
    with pytest.raises(StoreError, match="ExternalLink"):
        rows("ave", [*files, str(tmp_path / "train_order.h5")])


HEAD = "filename\tonset\toffset\tevent_labels\n"


def test_avvp_events_say_in_which_modality_they_are(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        AVVP_eval_visual__csv=HEAD + "aaaaaaaaaaa_1_11\t0,4\t2,8\tDog,Cat\n",
        AVVP_eval_audio__csv=HEAD + "bbbbbbbbbbb_1_11\t0\t1\tDog\naaaaaaaaaaa_1_11\t3\t4\tCat\n",
    )
    first, second = rows("avvp", files)
    assert (first.clip_id, first.path) == ("aaaaaaaaaaa_1_11", "aaaaaaaaaaa.mp4")
    assert first.events_in("video") == (
        Event("Dog", 0.0, 2.0, "video"),
        Event("Cat", 4.0, 8.0, "video"),
    )
    assert first.events_in("audio") == (Event("Cat", 3.0, 4.0, "audio"),)
    assert second.events_in("video") == ()
    assert len(rows("avvp", files[:1])) == 1


def test_lists_of_one_event_a_line_read_as_lists_of_one_clip_a_line(tmp_path: Path) -> None:
    flat = HEAD + "a\t0\t2\tDog\na\t4\t8\tCat\nb\t0\t1\tDog\na\t9\t10\tCow\n"
    joined = HEAD + "a\t0,4\t2,8\tDog,Cat\nb\t0\t1\tDog\na\t9\t10\tCow\n"
    one, other = write(tmp_path, flat__csv=flat, joined__csv=joined)
    clips = rows("avvp", [f"audio={one}"])
    assert clips == rows("avvp", [f"audio={other}"])
    assert ids(clips) == ["a", "b", "a#2"]  # a list may have a clip twice


def test_avvp_lists_of_unequal_length_are_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, AVVP_eval_audio__csv=HEAD + "a\t0,1\t2\tDog\n")
    with pytest.raises(ManifestError, match="line 2: a: "):
        rows("avvp", [path])


def test_ave_avvp_trains_on_the_classes_of_ave_that_avvp_has(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        Annotations__txt="Bark&aaa&good&2&9\nChurch bell&bbb&good&0&1\n",
        AVE_AVVP_eval_visual__csv=HEAD + "ccccccccccc_1_11\t0\t2\tDog\n",
    )
    train, test = rows("ave-avvp", files)
    assert (train.label, train.split, train.path) == ("Dog", "train", "ave/aaa.mp4")
    assert train.events == (Event("Dog", 2.0, 9.0),)
    assert (test.label, test.split, test.path) == ("", "test", "avvp/ccccccccccc.mp4")


def test_ucf101_lists_and_official_splits_go_together(tmp_path: Path) -> None:
    listed, train, test = write(
        tmp_path,
        ucf51checked__csv="category,video_id\nHandStandPushups,v_HandStandPushups_g02_c04\n",
        trainlist01__txt="Archery/v_Archery_g08_c01.avi 3\n",
        testlist01__txt="HandstandPushups/v_HandStandPushups_g02_c04.avi\n",
    )
    path = "HandstandPushups/v_HandStandPushups_g02_c04.avi"
    (clip,) = rows("ucf101", [listed])
    assert (clip.path, clip.split, clip.label) == (path, "", "HandStandPushups")
    (clip,) = rows("ucf101", [listed, train, test])
    assert (clip.path, clip.split) == (path, "test")
    assert [clip.label for clip in rows("ucf101", [train, test])] == ["Archery", "HandStandPushups"]
    with pytest.raises(ManifestError, match="in no official list"):
        rows("ucf101", [listed, train])


def ucf_vgg(folder: Path) -> list[str]:
    return write(
        folder,
        ucf2vggsound__csv="category,video_id\nBowling,v_Bowling_g01_c01\n",
        vggsound2ucf__csv="category,video_id,split\nbowling impact,aaaaaaaaaaa,test\n",
        UCF101sameVGGSound__txt="Skiing\nBowling\tbowling\n",
        VGGSoundsameUCF101__txt="skiing\nbowling impact\n",
    )


def test_a_line_with_a_tab_is_read_as_meant_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ucf, vgg = rows("ucf-vgg", ucf_vgg(tmp_path))
    assert (ucf.label, vgg.label) == ("bowling impact", "bowling impact")
    assert (ucf.split, vgg.split) == ("train", "test")
    assert "line 2: 'Bowling\\tbowling' has a tab: read as 'Bowling'" in caplog.text
    assert [clip.split for clip in rows("vgg-ucf", ucf_vgg(tmp_path))] == ["test", "train"]


def test_classes_that_the_names_do_not_have_are_refused(tmp_path: Path) -> None:
    files = ucf_vgg(tmp_path)
    Path(files[3]).write_text("skiing\nbowling\n")
    with pytest.raises(ManifestError, match="names do not have: bowling impact"):
        rows("ucf-vgg", files)
    Path(files[3]).write_text("skiing\n")
    with pytest.raises(ManifestError, match="line i of both is one class"):
        rows("ucf-vgg", files)


def test_valor_sentences_are_one_line_each(tmp_path: Path) -> None:
    text = json.dumps([{"video_id": "aaaaaaaaaaa_1.000_11.000", "desc": "A dog\nbarks. "}])
    (clip,) = rows("valor32k", write(tmp_path, desc_val__json=text))
    assert (clip.text, clip.split) == ("A dog barks.", "val")
    with pytest.raises(ManifestError, match="expected a list of video_id and desc"):
        rows("valor32k", write(tmp_path, desc_val__json='[{"video_id": 3}]'))
    with pytest.raises(ManifestError, match="expected JSON"):
        rows("valor32k", write(tmp_path, desc_val__json="["))


def test_clotho_has_a_row_per_sentence_and_media_once(tmp_path: Path) -> None:
    head = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6))
    text = f'{head}\nbird song.wav,one,two,"three, and",four,five\n'
    clips = rows("clotho", write(tmp_path, clotho_captions_evaluation__csv=text))
    assert ids(clips) == ["bird song.wav", *(f"bird song.wav#{i}" for i in range(2, 6))]
    assert {clip.group for clip in clips} == {"bird song.wav"}
    assert [clip.path for clip in clips] == ["evaluation/bird song.wav", "", "", "", ""]
    assert (clips[2].text, clips[2].split) == ("three, and", "test")


def test_mscoco_reads_the_split_and_its_captions_in_either_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = [{"image_id": 9, "caption": "a cat"}, {"image_id": 9, "caption": "one cat"}]
    image = {"filepath": "val2014", "filename": "x_9.jpg", "split": "restval"}
    karpathy = {"images": [{**image, "sentences": [{"raw": "a cat"}, {"raw": "one cat"}]}]}
    listed, spoken, whole = write(
        tmp_path,
        karpathy_test_images__txt="val2014/x_9.jpg 9\n",
        captions_val2014__json=json.dumps({"annotations": said}),
        dataset_coco__json=json.dumps(karpathy),
    )
    clips = rows("mscoco", [listed, spoken])
    assert [(c.clip_id, c.text) for c in clips] == [("x_9", "a cat"), ("x_9#2", "one cat")]
    assert [(c.path, c.split) for c in clips] == [("val2014/x_9.jpg", "test"), ("", "test")]
    assert [(c.clip_id, c.split) for c in rows("mscoco", [whole])] == [
        ("x_9", "train"),
        ("x_9#2", "train"),
    ]
    (silent,) = rows("mscoco", [listed])
    assert silent.text == ""
    assert "1 pictures have no sentence" in caplog.text


# --- own data --------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_per_class_is_a_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path, "dog/a.mp4", "cat/deep/b.WAV", "cat/notes.txt", "dog/.x.mp4")
    clips = rows("folder", [str(root)])
    assert [(c.path, c.label, c.split) for c in clips] == [
        ("cat/deep/b.WAV", "cat", ""),
        ("dog/a.mp4", "dog", ""),
    ]
    told = "2 files are no media and are left out: 'cat/notes.txt', 'dog/.x.mp4'"
    assert caplog.messages == [f"{root}: {told}"]


def test_links_that_are_not_followed_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = touch(tmp_path / "disk", "bird/c.mp4")
    root = touch(tmp_path / "root", "dog/a.mp4")
    (root / "dog" / "b.mp4").symlink_to(root / "dog" / "a.mp4")
    (root / "bird").symlink_to(elsewhere / "bird")
    (root / "dog" / "gone.mp4").symlink_to("nowhere.mp4")
    told = "links that lead to no file are left out, and folders behind them are not looked into"

    assert [clip.path for clip in rows("folder", [str(root)])] == ["dog/a.mp4", "dog/b.mp4"]
    assert caplog.messages == [f"{root}: 2 {told}: 'bird', 'dog/gone.mp4'"]


def test_pipes_sockets_and_devices_are_named_and_not_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = touch(tmp_path / "root", "dog/a.mp4", "deep/er/b.mp4")
    os.mkfifo(root / "dog" / "pipe.mp4")
    os.mkfifo(root / "notes")
    (root / "dog" / "zero.mp4").symlink_to("/dev/zero")
    (root / "dog" / "to-pipe.mp4").symlink_to("pipe.mp4")
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(root)  # a socket's name may have a hundred bytes
        try:
            bound.bind("s.mp4")
        finally:
            os.chdir(here)
        listed = rows("folder", [str(root)])
    assert [clip.path for clip in listed] == ["deep/er/b.mp4", "dog/a.mp4"]
    told = "5 pipes, sockets and devices are left out, and not opened"
    names = "'dog/pipe.mp4', 'dog/to-pipe.mp4', 'dog/zero.mp4', 'notes', 's.mp4'"
    assert caplog.messages == [f"{root}: {told}: {names}"]


def test_a_folder_of_pipes_alone_has_no_media(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ManifestError, match="got 0 other files"):
        rows("folder", [str(tmp_path)])
    assert "1 pipes, sockets and devices are left out" in caplog.messages[0]


@pytest.mark.parametrize("ending", sorted(MEDIA_SUFFIXES))
def test_every_ending_of_a_format_that_is_read_is_media(tmp_path: Path, ending: str) -> None:
    root = touch(tmp_path, f"dog/a{ending}", f"dog/B{ending.upper()}")
    listed = rows("folder", [str(root)])
    assert [clip.path for clip in listed] == [f"dog/B{ending.upper()}", f"dog/a{ending}"]
    located = locate_media([Clip(clip_id="a", path="a.xyz")], root)
    assert [clip.path for clip in located.clips] == [f"dog/a{ending}"]


@pytest.mark.parametrize(("count", "more"), [(20, ""), (21, " and 1 more"), (300, " and 280 more")])
def test_of_many_files_that_are_left_out_the_first_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, more: str
) -> None:
    names = [f"dog/{number:03d}.txt" for number in range(count)]
    root = touch(tmp_path, *names, "dog/z.wmv")
    assert len(rows("folder", [str(root)])) == 1
    told = ", ".join(repr(name) for name in names[:20]) + more
    assert caplog.messages == [f"{root}: {count} files are no media and are left out: {told}"]
    (root / "dog/z.wmv").unlink()
    with pytest.raises(ManifestError) as caught:
        rows("folder", [str(root)])
    assert str(caught.value).endswith(f"got {count} other files: {told}")


def test_folders_named_as_splits_are_splits(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/dog/a.mp4", "test/dog/a.mp4", "other/c.mp4")
    clips = rows("folder", [str(root)])
    assert [(c.label, c.split) for c in clips] == [("other", ""), ("dog", "test"), ("dog", "train")]
    assert len(set(ids(clips))) == 3


def test_a_folder_without_media_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="got 1 other files"):
        rows("folder", [str(touch(tmp_path, "dog/a.doc"))])


def test_a_csv_file_with_paths_and_labels_is_a_manifest(tmp_path: Path) -> None:
    text = "path,label,start_s,end_s\na.mp4,dog,0,3\na.mp4,cat,3,5.5\n"
    clips = rows("folder", write(tmp_path, mine__csv=text))
    assert [(c.clip_id, c.label, c.end_s) for c in clips] == [
        ("a.mp4", "dog", 3.0),
        ("a.mp4#2", "cat", 5.5),
    ]
    with pytest.raises(ManifestError, match="path is missing"):
        rows("folder", write(tmp_path, mine__csv="file,label\na,b\n"))
    with pytest.raises(ManifestError, match="line 2: expected seconds"):
        rows("folder", write(tmp_path, mine__csv="path,start_s\na,x\n"))
    (clip,) = rows("folder", write(tmp_path, mine__csv="clip_id,path\nz,a.mp4\n"))
    assert clip.clip_id == "z"


def test_media_are_found_under_the_names_that_downloaders_gave_them(tmp_path: Path) -> None:
    names = ("a/---g-f_I2yQ_000001.mkv", "b/--0PQM4-hqg_30_40.mp4", "c/here.mp4", "c/two.mp4")
    touch(tmp_path, *names, "d/two.mp4", "x.txt")
    wanted = (
        *("---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_000030.mp4", "c/here.mp4"),
        *("two.mp4", "gone.mp4", ""),
    )
    located = locate_media([Clip(clip_id=n or "text", path=n) for n in wanted], tmp_path)
    assert [c.path for c in located.clips] == [*names[:3], "two.mp4", "gone.mp4", ""]
    assert located.moved == 2
    assert located.doubts == (
        Doubt("two.mp4", "ambiguous", ("c/two.mp4", "d/two.mp4")),
        Doubt("gone.mp4", "missing", ()),
    )
