"""Text encoders of transformers on sentences: one vector per word.

Source: Devlin et al., BERT, NAACL 2019. As in the published features, at most 25 tokens are read,
the last layer is taken, the special tokens are dropped, word pieces are averaged to words and the
first ten words are kept. Differs: the words come from transformers' tokenizer, not from the retired
`bert-embedding` package.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    TextInput,
)
from extract.backbones.inference import encode_batches
from extract.backbones.spec import build_spec
from extract.backbones.weights import (
    Request,
    Weights,
    from_transformers,
    load_strictly,
    load_transformer,
    parse_demo_request,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)
from micu.devices import resolve_device
from micu.errors import ConfigError, DecodeError
from micu.store import Steps

if TYPE_CHECKING:
    from torch import Tensor

HUB = "google-bert/bert-base-uncased"
MAX_TOKENS = 25
"""Special tokens included, as published."""
MAX_CHARACTERS = 128
"""The same limit where every character is a token of its own."""
SENTENCES = 32
"""In one forward pass at most; no option, since a clip has one."""
UNUSED = ("pooler.", "cls.", "lm_head.")
"""Heads that no word passes through."""


@BACKBONES.register("bert")
class Bert:
    """BERT-base uncased, or any text encoder of transformers, (L, 768) for L words.

    Args:
        weights: `pretrained`, a path (a directory of transformers, or a file with the tensors of
            `model`), `random` or `random:SEED`. Random weights of the default model come with a
            tokenizer whose pieces are single characters, since its vocabulary is on the hub.
        device: As `micu.devices.resolve_device` takes it.
        model: Hub name or directory of the encoder, which any but the default adds to the name of
            the features; a directory given as `weights` goes first.
        max_words: Words kept.

    Raises:
        WeightsError: Weights or tokenizer cannot be had or do not fit.
        ConfigError: The tokenizer cannot tell which pieces make a word.
    """

    NAME: ClassVar[str] = "bert"
    CONFIG: ClassVar[Mapping[str, Any]] = {}
    """What differs from `BertConfig`, whose defaults are BERT-base, for random weights."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "model": Option(type=str, default=HUB, help="text encoder: a hub name or a directory"),
        "max_words": Option(type=int, default=10, help="words kept of each sentence"),
    }
    wants: InputSpec = TextInput()
    gives: Gives = Gives(modality="text", shape=(768,), hop_s=None, weights=f"hf:{HUB}, Apache-2.0")

    def __init__(  # noqa: D107
        self,
        weights: str,
        device: str,
        *,
        model: str = HUB,
        max_words: int = 10,
    ) -> None:
        network, self._tokenizer, source = self._load(self._parse(weights), model)
        if not self._tokenizer.is_fast:
            raise ConfigError(f"{self.NAME}: the tokenizer of {source} does not number its words")
        if getattr(network, "pooler", None) is not None:
            network.pooler = None
        self._device = resolve_device(device)
        self._network = network.to(self._device).eval()
        self._max_words = max_words
        self._max_tokens = MAX_CHARACTERS if self._spells else MAX_TOKENS
        self.gives = replace(self.gives, shape=(int(network.config.hidden_size),))
        loaded = Weights(source, tensors_sha256(network))
        self.spec = build_spec(
            name_features(self.NAME, model),
            self,
            loaded,
            {
                "tokenizer": "word pieces of one ASCII character" if self._spells else source,
                "max_tokens": self._max_tokens,
                "max_words": max_words,
                "step": "mean of a word's pieces in the last layer, special tokens dropped",
            },
            "torch",
            "transformers",
            "tokenizers",
        )

    def _parse(self, weights: str) -> Request:
        return parse_request(weights, self.NAME)

    def _load(self, request: Request, model: str) -> tuple[Any, Any, str]:
        """The network, its tokenizer and their source."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel

        self._spells = request.kind == "random" and model == HUB
        if self._spells:
            tokenizer = spelling_tokenizer()
            config = BertConfig(**self.CONFIG)
            network: Any = seeded(lambda: BertModel(config), request.seed)
            return network, tokenizer, request.source
        is_folder = request.kind == "local" and request.path.is_dir()
        home: str | Path = request.path if is_folder else model
        tokenizer = from_transformers(AutoTokenizer, home, use_fast=True)
        if is_folder:
            return load_transformer(AutoModel, home, UNUSED), tokenizer, request.source
        if request.kind == "pretrained":
            name = Path(home).resolve().name if Path(home).is_dir() else f"hf:{home}"
            return load_transformer(AutoModel, home, UNUSED), tokenizer, name
        config = from_transformers(AutoConfig, home)
        network = seeded(lambda: AutoModel.from_config(config), request.seed)
        if request.kind == "local":
            network.pooler = None
            prefix = f"{network.base_model_prefix}."
            state = read_state(request.path)
            body = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            load_strictly(network, without(body, UNUSED), f"{self.NAME} {request.path}")
        return network, tokenizer, request.source

    def encode(self, units: Sequence[str]) -> list[NDArray[np.float32]]:
        """Word vectors of each sentence.

        Args:
            units: U sentences.

        Returns:
            U of (L, D), L words at most `max_words`.
        """
        spans: list[list[list[int]]] = []

        def forward(sentences: Sequence[str]) -> "Tensor":
            inputs, words = self._tokenize(sentences)
            spans.extend(words)
            hidden: Tensor = self._network(**inputs).last_hidden_state
            return _pad_tokens(hidden, self._max_tokens)

        hidden = encode_batches(units, SENTENCES, forward)
        return [average_pieces(h, s) for h, s in zip(hidden, spans, strict=True)]

    def _tokenize(
        self, sentences: Sequence[str]
    ) -> tuple[dict[str, "Tensor"], list[list[list[int]]]]:
        """Network inputs, and for each sentence the tokens of each word it keeps."""
        encoded = self._tokenizer(
            list(sentences),
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        words = [
            group_by_word(encoded.word_ids(row))[: self._max_words] for row in range(len(sentences))
        ]
        return {name: tensor.to(self._device) for name, tensor in encoded.items()}, words

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The words of the clip's sentence, (L, D); their times are not known.

        Raises:
            DecodeError: The sentence has no word; code `no_text`.
        """
        values = outputs[0]
        if not len(values):
            raise DecodeError("no_text", f"the tokenizer finds no word in {media.units[0]!r}")
        count = len(values)
        return Steps(values, np.ones(count, np.bool_), np.full(count, np.nan))


@BACKBONES.register("bert-demo")
class BertDemo(Bert):
    """A small BERT that spells words by their characters, with random weights, (L, 64)."""

    NAME = "bert-demo"
    CONFIG: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": MAX_CHARACTERS,
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        key: option for key, option in Bert.OPTIONS.items() if key != "model"
    }
    gives = Gives(modality="text", shape=(64,), hop_s=None, weights="none; --weights random only")

    def _parse(self, weights: str) -> Request:
        return parse_demo_request(weights, self.NAME, Bert.NAME)


def name_features(backbone: str, model: str) -> str:
    """Name of the features of an encoder: `bert`, or `bert:MODEL` where it is not the default.

    A directory goes by its own name, without where it lies.
    """
    if model == HUB:
        return backbone
    return f"{backbone}:{Path(model).resolve().name if Path(model).is_dir() else model}"


def spelling_tokenizer() -> Any:
    """An uncased BERT tokenizer whose word pieces are the printable ASCII characters.

    A pure function: each character that may open a word, then the same with `##`, after the five
    special tokens of BERT. Other characters make their word unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*special, *characters, *(f"##{character}" for character in characters)]
    vocabulary = {piece: code for code, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def group_by_word(word_ids: Sequence[int | None]) -> list[list[int]]:
    """Tokens of each word, in order; special tokens, whose word is None, belong to none."""
    words: dict[int, list[int]] = {}
    for token, word in enumerate(word_ids):
        if word is not None:
            words.setdefault(word, []).append(token)
    return [words[word] for word in sorted(words)]


def average_pieces(
    hidden: NDArray[np.float32], words: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Mean of each word's pieces.

    Args:
        hidden: One vector per token, (tokens, D).
        words: Tokens of each word.

    Returns:
        (L, D)
    """
    if not words:
        return np.zeros((0, hidden.shape[1]), np.float32)
    return np.stack([hidden[list(tokens)].mean(axis=0) for tokens in words])


def _pad_tokens(hidden: "Tensor", tokens: int) -> "Tensor":
    import torch

    return torch.nn.functional.pad(hidden, (0, 0, 0, tokens - hidden.shape[1]))
