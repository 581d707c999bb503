from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel, T5Config, T5Model

from micu.base.errors import ConfigError, DecodeError, WeightsError
from micu_extract.backbones import build_backbone, find_backbone
from micu_extract.backbones.base import Media, Run
from micu_extract.backbones.text import (
    BERT,
    average_pieces,
    group_by_word,
    name_features,
    read_words,
    spell,
    spelling_tokenizer,
    words_sha256,
)

CPU = Run(device="cpu")
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 256,
}


def media_of(sentence: str) -> Media:
    return Media([sentence], np.zeros(0), 0.0, 1)


def small(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """A backbone of its own class with a small network, random weights and spelled words."""
    monkeypatch.setattr(find_backbone(name), "SETTINGS", SMALL)
    return build_backbone(name, "random", CPU, **options)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A text encoder of transformers, as a directory."""
    folder = tmp_path / "my-encoder"
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    spelling_tokenizer().save_pretrained(folder)
    return folder


# --- words -----------------------------------------------------------------------------------


def test_words_are_the_means_of_their_pieces_without_the_special_tokens() -> None:
    words = group_by_word([None, 0, 1, 1, 2, None, None])
    hidden = np.arange(7, dtype=np.float32)[:, None]

    assert words == [[1], [2, 3], [4]]
    np.testing.assert_array_equal(average_pieces(hidden, words)[:, 0], [1, 2.5, 4])


def test_no_word_is_no_row() -> None:
    assert average_pieces(np.ones((4, 3), np.float32), []).shape == (0, 3)


def test_the_spelling_tokenizer_has_a_piece_for_every_character() -> None:
    tokenizer = spelling_tokenizer()

    assert tokenizer.tokenize("Dog, 2!") == ["d", "##o", "##g", ",", "2", "!"]
    assert tokenizer.tokenize("犬") == ["[UNK]"]
    assert tokenizer("a").input_ids[0] == tokenizer.cls_token_id


def test_only_the_first_words_are_kept() -> None:
    backbone = build_backbone("bert-demo", "random", CPU, max_words=3)

    few, many = backbone.encode(["One two", "one two three four five"])

    assert (len(few), len(many)) == (2, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [("words.txt", "\ufeffCat\n\n  mat \n"), ("words.json", '["MAT", "cat", "cat"]')],
)
def test_only_words_of_the_list_are_kept_and_they_are_read_in_their_sentence(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    every = build_backbone("bert-demo", "random", CPU)
    some = build_backbone("bert-demo", "random", CPU, keep_words=str(tmp_path / name))
    sentence = "The CAT sat on a mat"

    kept = some.encode([sentence])[0]

    np.testing.assert_array_equal(kept, every.encode([sentence])[0][[1, 5]])
    hashed = some.spec.preprocessing["keep_words_sha256"]
    assert hashed == words_sha256({"cat", "mat"})
    assert "keep_words_sha256" not in every.spec.preprocessing
    with pytest.raises(DecodeError, match="no word is kept of 'a dog'") as caught:
        some.to_steps(some.encode(["a dog"]), media_of("a dog"))
    assert caught.value.code == "no_text"


def test_words_are_counted_after_those_that_are_not_kept_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("c\nd\ne\n")
    options = {"keep_words": str(tmp_path / "w.txt"), "max_words": 2}
    some = build_backbone("bert-demo", "random", CPU, **options)
    every = build_backbone("bert-demo", "random", CPU)

    kept = some.encode(["a b c d e"])[0]

    np.testing.assert_array_equal(kept, every.encode(["a b c d e"])[0][2:4])


def test_a_kept_word_of_a_byte_level_tokenizer_is_found_behind_its_blank() -> None:
    class Encoded:
        def token_to_chars(self, row: int, token: int) -> Any:
            return SimpleNamespace(start=(0, 1, 4)[token], end=(1, 4, 6)[token])

    assert spell(Encoded(), 0, [1, 2], "a Cats") == "cats"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.txt", b"\n \n", "got none"),
        ("w.txt", b"\x80\x04\x95pickle", "expected words, one a line"),
        ("w.json", b"{]", "expected words, one a line"),
        ("w.json", b'{"cat": 1}', "got something else"),
        ("w.json", b"[1, 2]", "got something else"),
        ("w.json", b"[" * 100_000, "or a JSON list of them in a .json, got "),
        ("", b"", "no such file"),
    ],
)
def test_a_list_of_words_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_words(tmp_path / (name or "nowhere.txt"))


# --- sentences -------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["words", "mean"])
def test_a_sentence_does_not_depend_on_longer_ones_in_its_batch(pool: str) -> None:
    backbone = build_backbone("bert-demo", "random", CPU, pool=pool)

    alone = backbone.encode(["a cat"])[0]
    beside = backbone.encode(["a very much longer sentence about many cats", "a cat"])[1]

    assert alone.tobytes() == beside.tobytes()


@pytest.mark.parametrize("name", ["bert", "clap-text", "clip-text"])
def test_a_sentence_that_fills_all_tokens_does_not_depend_on_padded_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it needs no mask, and transformers leaves it out then."""
    backbone = small(name, monkeypatch)
    sentence = "abcdefghij " * 20

    alone = backbone.encode([sentence])[0]
    beside = backbone.encode(["a cat", sentence])[1]

    assert alone.tobytes() == beside.tobytes()
    assert backbone._run.network.config._attn_implementation == "eager"


def test_the_mean_reads_words_that_the_other_pool_leaves_out() -> None:
    mean = build_backbone("bert-demo", "random", CPU, pool="mean")
    words = build_backbone("bert-demo", "random", CPU, max_words=40)
    sentence = "a b c d e f g h i j k l m"

    got = mean.encode([sentence])[0]

    np.testing.assert_allclose(got[0], words.encode([sentence])[0].mean(axis=0), atol=1e-6)
    assert mean.gives == type(mean).gives
    assert "max_words" not in mean.spec.preprocessing
    assert mean.spec.backbone == "bert-demo-mean"
    assert mean.spec.weights_sha256 == words.spec.weights_sha256


@pytest.mark.parametrize("pool", ["words", "mean", "projected"])
@pytest.mark.parametrize("sentence", ["\u200b", "", "  "])
def test_a_sentence_without_words_is_a_failure_of_its_own_clip(
    pool: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = small("clip-text", monkeypatch, pool=pool)
    outputs = backbone.encode([sentence, "a cat"])

    with pytest.raises(DecodeError, match="no word") as caught:
        backbone.to_steps(outputs[:1], media_of(sentence))

    assert caught.value.code == "no_text"
    assert len(backbone.to_steps(outputs[1:], media_of("a cat")).values) == len(outputs[1]) > 0


def test_words_cannot_be_counted_where_none_are_given() -> None:
    with pytest.raises(ConfigError, match="only --pool words keeps words"):
        build_backbone("bert-demo", "random", CPU, pool="mean", max_words=3)
    with pytest.raises(ConfigError, match="--keep-words: only --pool words keeps words"):
        build_backbone("bert-demo", "random", CPU, pool="mean", keep_words="w.txt")


@pytest.mark.parametrize("name", ["bert", "clap-text", "clip-text"])
def test_every_encoder_can_be_tried_with_random_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = small(name, monkeypatch)

    words = backbone.encode(["a dog barks at the passing car", "hi"])

    assert [len(rows) for rows in words] == [7, 1]
    assert backbone.spec.weights == "random:0"
    assert backbone.spec.preprocessing["tokenizer"] == "word pieces of one ASCII character"


@pytest.mark.parametrize("name", ["clap-text", "clip-text"])
def test_projected_sentences_have_length_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small(name, monkeypatch, pool="projected")

    first, second = backbone.encode(["a dog barks", "a longer sentence about cats"])

    np.testing.assert_allclose([np.linalg.norm(first), np.linalg.norm(second)], 1, atol=1e-6)
    assert first.shape == second.shape == (1, 512)
    assert backbone.gives.shape == backbone.spec.shape == (512,)
    assert np.abs(first - second).max() > 1e-3
    assert backbone.spec.backbone == f"{name}-projected"


def test_bert_has_no_projection() -> None:
    with pytest.raises(ConfigError, match="pool: expected one of words, mean, got 'projected'"):
        build_backbone("bert-demo", "random", CPU, pool="projected")


# --- names and tokenizers --------------------------------------------------------------------


def test_features_of_another_text_encoder_have_a_name_of_their_own(encoder_folder: Path) -> None:
    backbone = build_backbone("bert", "pretrained", CPU, model=f"{encoder_folder}/", pool="mean")

    assert backbone.spec.backbone == "bert-mean:my-encoder"
    assert backbone.encode(["a cat"])[0].shape == (1, 8)
    assert name_features("bert", "words", "x/roberta-base", BERT) == "bert:x/roberta-base"
    assert name_features("bert", "words", BERT, BERT) == "bert"


def test_an_encoder_without_a_vocabulary_is_refused(encoder_folder: Path) -> None:
    for path in encoder_folder.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(WeightsError, match="no vocabulary"):
        build_backbone("bert", "pretrained", CPU, model=str(encoder_folder))


def test_a_tokenizer_that_cannot_pad_is_refused(encoder_folder: Path) -> None:
    path = encoder_folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"pad_token": "[PAD]"', '"pad_token": null'))

    with pytest.raises(ConfigError, match="no token to pad with"):
        build_backbone("bert", str(encoder_folder), CPU)


def test_another_vocabulary_is_another_preprocessing(encoder_folder: Path) -> None:
    first = build_backbone("bert", str(encoder_folder), CPU).spec
    file = encoder_folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"##a"', '"##ā"'))

    second = build_backbone("bert", str(encoder_folder), CPU).spec

    assert first.weights_sha256 == second.weights_sha256
    assert first.preprocessing["vocabulary_sha256"] != second.preprocessing["vocabulary_sha256"]


def test_an_encoder_with_a_decoder_is_no_text_encoder(tmp_path: Path) -> None:
    config = T5Config(vocab_size=200, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    spelling_tokenizer().save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=r"a text encoder alone, got .* \(t5\)"):
        build_backbone("bert", str(tmp_path), CPU)
