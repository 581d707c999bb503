"""Text backbones beside transformers' own networks and tokenizers, with small random weights.

The other side reads one sentence at a time, without padding, and its tokens are grouped by hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    ClapConfig,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

from micu.base.errors import ConfigError, WeightsError
from micu_extract.backbones import build_backbone
from micu_extract.backbones.base import Run
from micu_extract.backbones.text import spelling_tokenizer

CPU = Run(device="cpu")
SENTENCE = "a dog, it barks"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
BYTES = [chr(code if 33 <= code < 127 else 256 + code) for code in range(127)]
"""ASCII as byte-level tokenizers spell it: a blank is Ġ."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A directory of transformers, and what is in it."""

    name: str
    """Of the backbone."""
    folder: Path
    model: Any
    tokenizer: Any
    words: list[list[int]]
    """Tokens of the words of `SENTENCE`."""

    def hidden(self, sentence: str = SENTENCE) -> torch.Tensor:
        """The last layer, (tokens, D)."""
        tower = getattr(self.model, "text_model", self.model)
        with torch.inference_mode():
            output = tower(**self.tokenizer(sentence, return_tensors="pt"))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def randomize(model: torch.nn.Module) -> None:
    """Draw large weights, so that a forgotten or swapped part shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        drawn = torch.randn(tensor.shape, generator=generator) * 0.3
        tensor.data.copy_(drawn + 1 if "norm.weight" in name.lower() else drawn)


def count(*tokens: str) -> dict[str, int]:
    return {token: code for code, token in enumerate(tokens)}


def make_bert(**settings: Any) -> tuple[Any, Any, list[list[int]]]:
    config = BertConfig(vocab_size=200, max_position_embeddings=40, **SIZES)
    # [CLS] a d ##o ##g , i ##t b ##a ##r ##k ##s [SEP]
    words = [[1], [2, 3, 4], [5], [6, 7], [8, 9, 10, 11, 12]]
    return BertModel(config), spelling_tokenizer(), words


def make_clap(**settings: Any) -> tuple[Any, Any, list[list[int]]]:
    tokens = count("<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES, "do", "dog")
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 1, 1],
        "window_size": 2,
        "spec_size": 64,
        "num_mel_bins": 16,
        "projection_dim": 12,
    }
    text = {**SIZES, "vocab_size": 200, "projection_dim": 12, **settings}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    # <s> a Ġ dog , Ġ i t Ġ b a r k s </s>
    words = [[1], [2, 3], [4], [5, 6, 7], [8, 9, 10, 11, 12, 13]]
    return ClapModel(config), RobertaTokenizer(tokens, [("d", "o"), ("do", "g")]), words


def make_clip(**settings: Any) -> tuple[Any, Any, list[list[int]]]:
    ends = [f"{byte}</w>" for byte in BYTES]
    merged, special = ("do", "dog</w>", "it</w>"), ("<|startoftext|>", "<|endoftext|>")
    tokens = count(*BYTES, *ends, *merged, *special)
    start, end = (tokens[token] for token in special)
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    text = {**SIZES, **ids, "vocab_size": len(tokens), "projection_dim": 12, **settings}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    tokenizer = CLIPTokenizer(tokens, [("d", "o"), ("do", "g</w>"), ("i", "t</w>")])
    # <|startoftext|> a</w> dog</w> ,</w> it</w> b a r k s</w> <|endoftext|>
    return CLIPModel(config), tokenizer, [[1], [2], [3], [4], [5, 6, 7, 8, 9]]


MAKERS: Mapping[str, Callable[..., tuple[Any, Any, list[list[int]]]]] = {
    "bert": make_bert,
    "clap-text": make_clap,
    "clip-text": make_clip,
}


def save_encoder(name: str, folder: Path, **settings: Any) -> Encoder:
    model, tokenizer, words = MAKERS[name](**settings)
    randomize(model.eval())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Encoder(name, folder, model, tokenizer, words)


@pytest.fixture(params=MAKERS)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    return save_encoder(request.param, tmp_path / "encoder")


def build(encoder: Encoder, **options: Any) -> Any:
    return build_backbone(encoder.name, str(encoder.folder), CPU, **options)


# --- what a row is ---------------------------------------------------------------------------


@pytest.mark.parametrize("given_as", ["weights", "model"])
def test_a_word_is_the_mean_of_its_pieces_in_the_last_layer(
    encoder: Encoder, given_as: str
) -> None:
    """Largest difference: 7.2e-7 of at most 3.7."""
    options = {} if given_as == "weights" else {"model": str(encoder.folder)}
    weights = str(encoder.folder) if given_as == "weights" else "pretrained"
    backbone = build_backbone(encoder.name, weights, CPU, **options)

    got = backbone.encode([SENTENCE])[0]

    hidden = encoder.hidden()
    assert len(hidden) == encoder.words[-1][-1] + 2
    expected = torch.stack([hidden[word].mean(dim=0) for word in encoder.words])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert backbone.spec.shape == (16,)
    assert backbone.spec.weights == "encoder"


def test_the_mean_is_over_every_token_that_is_not_special(encoder: Encoder) -> None:
    """Largest difference: 2.4e-7 of at most 3.4."""
    backbone = build(encoder, pool="mean")

    got = backbone.encode([SENTENCE])[0]

    np.testing.assert_allclose(got, encoder.hidden()[1:-1].mean(dim=0)[None], atol=1e-5)
    assert backbone.spec.backbone == f"{encoder.name}-mean"


def test_a_projected_clap_sentence_is_its_first_token_pooled_and_projected(tmp_path: Path) -> None:
    """Largest difference: 3.0e-8 of at most 0.56."""
    encoder = save_encoder("clap-text", tmp_path)

    got = build(encoder, pool="projected").encode([SENTENCE])[0]

    # LAION-CLAP: RoBERTa's pooler, two layers with a ReLU between them, then length one.
    state = encoder.model.state_dict()

    def apply(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = torch.tanh(apply("text_model.pooler.dense", encoder.hidden()[0]))
    x = apply("text_projection.linear2", torch.relu(apply("text_projection.linear1", x)))
    np.testing.assert_allclose(got, (x / x.norm())[None], atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": 2}], ids=["id", "old configuration"])
def test_a_projected_clip_sentence_is_its_last_token_projected(
    settings: dict[str, int], tmp_path: Path
) -> None:
    """Largest difference: 9.0e-8 of at most 0.47."""
    encoder = save_encoder("clip-text", tmp_path, **settings)

    got = build(encoder, pool="projected").encode([SENTENCE])[0]

    x = encoder.model.state_dict()["text_projection.weight"] @ encoder.hidden()[-1]
    np.testing.assert_allclose(got, (x / x.norm())[None], atol=1e-5)


@pytest.mark.parametrize("name", ["clap-text", "clip-text"])
def test_a_projected_sentence_meets_the_other_tower_where_transformers_puts_it(
    name: str, tmp_path: Path
) -> None:
    """Largest difference: 9.0e-8 of at most 0.56."""
    encoder = save_encoder(name, tmp_path)
    inputs = encoder.tokenizer([SENTENCE, "it"], padding=True, return_tensors="pt")

    got = build(encoder, pool="projected").encode([SENTENCE, "it"])

    # What `get_text_features` returns is another thing in every version of transformers.
    other = (
        {"pixel_values": torch.zeros(1, 3, 32, 32)}
        if name == "clip-text"
        else {"input_features": torch.zeros(1, 1, 64, 16)}
    )
    with torch.inference_mode():
        expected = encoder.model(**inputs, **other).text_embeds
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-5)


def test_at_most_as_many_tokens_are_read_as_the_encoder_was_trained_on(encoder: Encoder) -> None:
    letters = ",".join("abcdefghijklmnopqrstuvwxyz" * 4)

    words = build(encoder, max_words=1000).encode([letters])[0]

    # Each letter and each comma is a word of one token, and two tokens are special.
    assert len(words) + 2 == {"bert": 25, "clap-text": 77, "clip-text": 77}[encoder.name]


# --- files and directories -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_weights_takes_the_rest_from_the_model_option(
    encoder: Encoder, suffix: str
) -> None:
    path = encoder.folder.parent / f"weights{suffix}"
    prefix = "bert." if encoder.name == "bert" else ""
    state = {prefix + name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)

    by_file = build_backbone(encoder.name, str(path), CPU, model=str(encoder.folder))

    by_folder = build(encoder)
    assert by_file.spec.weights_sha256 == by_folder.spec.weights_sha256
    assert by_file.spec.weights == path.name
    assert by_file.encode([SENTENCE])[0].tobytes() == by_folder.encode([SENTENCE])[0].tobytes()


def test_the_names_of_the_first_bert_files_are_understood(tmp_path: Path) -> None:
    """`gamma` and `beta` for the norms, and the positions beside them, as Google's file has."""
    config = BertConfig(vocab_size=200, max_position_embeddings=40, **SIZES)
    whole = BertForPreTraining(config)
    randomize(whole)
    whole.bert.save_pretrained(tmp_path / "new")
    spelling_tokenizer().save_pretrained(tmp_path / "new")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor.clone()
        for name, tensor in whole.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, tmp_path / "old.safetensors")
    new = build_backbone("bert", str(tmp_path / "new"), CPU)

    by_file = build_backbone(
        "bert", str(tmp_path / "old.safetensors"), CPU, model=str(tmp_path / "new")
    )

    assert by_file.spec.weights_sha256 == new.spec.weights_sha256
    save_file(old, tmp_path / "new" / "model.safetensors", metadata={"format": "pt"})
    by_folder = build_backbone("bert", str(tmp_path / "new"), CPU)
    assert by_folder.spec.weights_sha256 == new.spec.weights_sha256


def test_a_checkpoint_may_leave_out_what_is_constant(tmp_path: Path) -> None:
    encoder = save_encoder("clap-text", tmp_path / "encoder")
    whole = build(encoder)
    state = {
        name: tensor.clone()
        for name, tensor in encoder.model.state_dict().items()
        if not name.endswith(("position_ids", "token_type_ids"))
    }
    assert len(state) == len(encoder.model.state_dict()) - 2
    save_file(state, encoder.folder / "model.safetensors", metadata={"format": "pt"})

    assert build(encoder).spec.weights_sha256 == whole.spec.weights_sha256


def test_a_checkpoint_in_half_precision_is_run_in_float32(encoder: Encoder) -> None:
    encoder.model.half().save_pretrained(encoder.folder)
    path = encoder.folder.parent / "half.safetensors"
    save_file(encoder.model.state_dict(), path)

    backbones = [
        build(encoder),
        build_backbone(encoder.name, str(path), CPU, model=str(encoder.folder)),
        build_backbone(encoder.name, "random", CPU, model=str(encoder.folder)),
    ]

    for backbone in backbones:
        network: Any = backbone._run.network  # type: ignore[attr-defined]
        assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    encoder.model.float()
    expected = encoder.hidden()[encoder.words[1]].mean(dim=0)
    for backbone in backbones[:2]:
        np.testing.assert_allclose(backbone.encode([SENTENCE])[0][1], expected, atol=1e-5)


def test_any_missing_or_unknown_tensor_is_an_error(encoder: Encoder) -> None:
    """Of a file, each name in turn; of a directory, one."""
    path = encoder.folder.parent / "weights.safetensors"
    network: Any = build(encoder)._run.network
    names = [n for n in network.state_dict() if not n.endswith(("position_ids", "type_ids"))]
    whole = {name: network.state_dict()[name] for name in names}
    model = str(encoder.folder)
    save_file(whole, path)
    build_backbone(encoder.name, str(path), CPU, model=model)

    for name in names:
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(WeightsError, match=f"{name} missing"):
            build_backbone(encoder.name, str(path), CPU, model=model)
    save_file({**whole, "more": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="more not expected"):
        build_backbone(encoder.name, str(path), CPU, model=model)
    save_file({**whole, names[0]: torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="of another shape"):
        build_backbone(encoder.name, str(path), CPU, model=model)
    save_file(
        {n: t for n, t in whole.items() if n != names[3]},
        encoder.folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(WeightsError, match=f"{names[3]} missing"):
        build(encoder)


def test_a_norm_that_is_there_under_both_its_names_is_refused(tmp_path: Path) -> None:
    encoder = save_encoder("bert", tmp_path / "encoder")
    state = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    state["embeddings.LayerNorm.gamma"] = torch.zeros(16)
    save_file(state, tmp_path / "both.safetensors")

    with pytest.raises(WeightsError, match=r"LayerNorm\.gamma not expected"):
        build_backbone("bert", str(tmp_path / "both.safetensors"), CPU, model=str(encoder.folder))


def test_a_directory_with_a_hostile_pickle_is_refused(encoder: Encoder) -> None:
    (encoder.folder / "model.safetensors").unlink()
    torch.save({"x": Path("/")}, encoder.folder / "pytorch_model.bin")

    with pytest.raises(WeightsError, match="encoder"):
        build(encoder)


# --- any encoder -----------------------------------------------------------------------------


def test_any_text_encoder_of_transformers_will_do(tmp_path: Path) -> None:
    """RoBERTa, saved with its head. Largest difference: 3.6e-7 of at most 2.7."""
    _, tokenizer, words = make_clap()
    config = RobertaConfig(vocab_size=200, max_position_embeddings=40, **SIZES)
    model = RobertaForMaskedLM(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")

    backbone = build_backbone("bert", "pretrained", CPU, model=str(tmp_path / "roberta"))
    got = backbone.encode([SENTENCE])[0]

    with torch.inference_mode():
        hidden = model.roberta(**tokenizer(SENTENCE, return_tensors="pt")).last_hidden_state[0]
    expected = torch.stack([hidden[word].mean(dim=0) for word in words])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert backbone.spec.backbone == "bert:roberta"


@pytest.mark.parametrize("name", ["clap-text", "clip-text"])
def test_two_towers_are_no_text_encoder(name: str, tmp_path: Path) -> None:
    encoder = save_encoder(name, tmp_path)

    with pytest.raises(ConfigError, match="for CLIP or CLAP type --backbone clip-text"):
        build_backbone("bert", str(encoder.folder), CPU)
