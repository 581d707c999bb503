"""Text encoders of transformers on sentences: one vector per word, or one per sentence.

Source: Devlin et al., BERT, NAACL 2019; Radford et al., CLIP, ICML 2021; Wu et al., LAION-CLAP,
ICASSP 2023. As in the published features of BERT, at most 25 tokens are read, the last layer is
taken, the special tokens are dropped, word pieces are averaged to words and the first ten words are
kept. Differs: the words come from transformers' tokenizer, not from the retired `bert-embedding`
package.

A word is what the encoder's own tokenizer splits off before it looks for pieces: BERT makes three
of "don't", the others make two. In CLIP a word knows only those before it, as its attention is
causal.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, DecodeError, brief
from micu.base.files import parse_json, read_bounded
from micu.store.shard import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    TextInput,
)
from micu_extract.backbones.hubs import (
    by_hand_folder,
    download,
    from_transformers,
    load_transformer,
)
from micu_extract.backbones.torch_backbone import TorchBackbone
from micu_extract.backbones.weights import Request, load_strictly, read_state, seeded, without

if TYPE_CHECKING:
    from torch import Tensor

BERT = "google-bert/bert-base-uncased"
CLAP = "laion/clap-htsat-unfused"
CLIP = "openai/clip-vit-base-patch32"
MAX_WORDS = 10
ALL_WORDS = "all"
POOLED = {
    "words": "mean of a word's pieces in the last layer, special tokens dropped",
    "mean": "mean of the tokens that are read in the last layer, special tokens dropped",
    "projected": "the network's own sentence vector, projected, divided by its length",
}
"""What `--pool` may be, and what a row is then."""
MAX_WORDS_BYTES = 16 * 2**20
"""Largest list of words that is read: more than a million of them."""
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
"""Of the spelling tokenizer: [PAD], [CLS] and [SEP], by the names of transformers."""


def text_options(model: str, pools: Sequence[str]) -> dict[str, Option]:
    """Options of an encoder whose default model is `model`, with one of `POOLED` first of all."""
    return {
        "model": Option(type=str, default=model, help="text encoder: a hub name or a directory"),
        "pool": Option(
            type=str,
            default=pools[0],
            help="a vector per word, or one per sentence: the mean of its tokens, or projected "
            "to where the encoder meets sounds or pictures",
            choices=tuple(pools),
        ),
        "max_words": Option(
            type=int, default=MAX_WORDS, help="words kept of each sentence by --pool words"
        ),
        "keep_words": Option(
            type=str,
            default=ALL_WORDS,
            help="the words that --pool words keeps at all, before it counts them: a file, one a "
            "line or a JSON list",
        ),
    }


class TextEncoder(TorchBackbone):
    """What text encoders have in common; each is a class that says what they have not.

    Args:
        weights: `pretrained`, a path (a directory of transformers, or a file with the tensors of
            `model`), `random` or `random:SEED`. Random weights of the default model come with a
            tokenizer whose pieces are single characters, since its vocabulary is on the hub.
        run: Where and how the network runs.
        model: Hub name or directory of the encoder, which any but the default adds to the name of
            the features; None is `HUB`. A directory given as `weights` goes first.
        pool: One of `POOLED`, which any but `words` adds to the name of the features.
        max_words: Words kept, where words are given; in the header, not in the features' name.
        keep_words: File of the only words that may be given, as the published features have one;
            `all` keeps every word. They are read in their sentence either way. The hash of the
            words is in the header.

    Raises:
        WeightsError: Weights or tokenizer cannot be had or do not fit.
        ConfigError: The model is no text encoder, its tokenizer cannot tell which pieces make a
            word, or words are counted that are not given.
    """

    BATCH_SIZE = 16
    PACKAGES = ("torch", "transformers", "tokenizers")
    HUB: ClassVar[str]
    """The default model."""
    NETWORK: ClassVar[str]
    """Class of transformers; `AutoModel` for any."""
    CONFIG: ClassVar[str]
    """Class of transformers, whose defaults are the default model's."""
    SETTINGS: ClassVar[Mapping[str, Any]] = {}
    """What differs from the defaults of `CONFIG`, for random weights."""
    MAX_TOKENS: ClassVar[int]
    """Special tokens included."""
    SPELLED_TOKENS: ClassVar[int]
    """The same limit where every character is a token of its own."""
    UNUSED: ClassVar[tuple[str, ...]]
    """Starts of the names of tensors that no row depends on: other towers, heads, constants."""
    wants: InputSpec = TextInput()

    def _prepare(self) -> None:
        self._model = self._options.get("model") or self.HUB
        self._pool, self._max_words = self._options["pool"], self._options["max_words"]
        for name, usual in (("max_words", MAX_WORDS), ("keep_words", ALL_WORDS)):
            if self._options[name] != usual and self._pool != "words":
                typed = name.replace("_", "-")
                raise ConfigError(f"{self.NAME}: --{typed}: only --pool words keeps words")
        kept = self._options["keep_words"]
        self._kept = None if kept == ALL_WORDS else read_words(Path(kept))

    def _load(self, request: Request) -> tuple[Any, str]:
        import transformers

        is_folder = request.kind == "local" and request.path.is_dir()
        home: str | Path = request.path if is_folder else self._model
        self._remedy = self._say_what_to_type(request, self._model)
        self._spells = request.kind == "random" and self._model == self.HUB
        self._tokenizer = (
            spelling_tokenizer()
            if self._spells
            else from_transformers(transformers.AutoTokenizer, home, self._remedy, use_fast=True)
        )
        self._tokens_from = "word pieces of one ASCII character" if self._spells else _name(home)
        self._max_tokens = self.SPELLED_TOKENS if self._spells else self.MAX_TOKENS
        network, source = self._load_network(request, home)
        self._check(network.config, source)
        # The mask is left out where no sentence of the batch is padded. Here it is added, and zeros
        # change no bit; others take another kernel then, which may round otherwise.
        network.set_attn_implementation("eager")
        return network, source

    def _say_what_to_type(self, request: Request, model: str) -> str:
        """What the error says where the hub does not give `model`."""
        fetch = f"On a machine with network type: {download(model)}; copy it here and type"
        if request.kind == "local":
            return (
                f"A file of weights comes without tokenizer and configuration. {fetch} "
                "--weights DIR, or --model DIR beside this file"
            )
        if model == self.HUB:
            return by_hand_folder(model)
        random = f" --weights {request.source}" if request.kind == "random" else ""
        return (
            f"{fetch} --model DIR{random}. To try things out without it leave --model out and type "
            "--weights random"
        )

    def _load_network(self, request: Request, home: str | Path) -> tuple[Any, str]:
        """The network and its source; `home` is where its configuration is."""
        import transformers

        network_class = getattr(transformers, self.NETWORK)
        if self._spells:
            config = getattr(transformers, self.CONFIG)(**{**SPECIAL, **self.SETTINGS})
            return self._build(config, request.seed), request.source
        if request.kind == "pretrained" or home == request.path:
            network = load_transformer(network_class, home, self.UNUSED, remedy=self._remedy)
            return _without_pooler(network), _name(home)
        is_any = self.NETWORK == "AutoModel"
        config_class = transformers.AutoConfig if is_any else getattr(transformers, self.CONFIG)
        config = from_transformers(config_class, home, self._remedy)
        network = self._build(config, request.seed)
        if request.kind == "local":
            self._fill(network, request.path)
        return network, request.source

    def _build(self, config: Any, seed: int) -> Any:
        """A network with random weights, in float32 whatever its published weights are in."""
        import torch
        import transformers

        network_class = getattr(transformers, self.NETWORK)
        config.dtype = torch.float32
        build = getattr(network_class, "from_config", network_class)
        return _without_pooler(seeded(lambda: build(config), seed))

    def _fill(self, network: Any, path: Path) -> None:
        """Load a file with the tensors of the network, or of a larger one that holds it."""
        own, state = network.state_dict(), read_state(path)
        if not own.keys() & state.keys():
            prefix = f"{network.base_model_prefix}."
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        body = {_present_name(n, state): t for n, t in without(state, self.UNUSED).items()}
        constants = {name: tensor for name, tensor in own.items() if name.startswith(self.UNUSED)}
        load_strictly(network, {**body, **constants}, f"{self.NAME} {path}")

    def _check(self, config: Any, source: str) -> None:
        is_more = hasattr(config, "text_config") or getattr(config, "is_encoder_decoder", False)
        if is_more or not hasattr(config, "hidden_size"):
            raise ConfigError(
                f"{self.NAME}: expected a text encoder alone, got {source} "
                f"({config.model_type}); for CLIP or CLAP type --backbone clip-text or clap-text"
            )
        if not self._tokenizer.is_fast:
            raise ConfigError(f"{self.NAME}: the tokenizer of {source} does not number its words")
        if self._tokenizer.pad_token_id is None:
            raise ConfigError(f"{self.NAME}: the tokenizer of {source} has no token to pad with")

    def _describe(self) -> dict[str, Any]:
        network: Any = self._run.network
        projected = self._pool == "projected"
        width = network.config.projection_dim if projected else network.config.hidden_size
        self.gives = replace(self.gives, shape=(int(width),))
        return {
            "tokenizer": self._tokens_from,
            "vocabulary_sha256": _vocabulary_sha256(self._tokenizer),
            "max_tokens": self._max_tokens,
            **({"max_words": self._max_words} if self._pool == "words" else {}),
            **({"keep_words_sha256": words_sha256(self._kept)} if self._kept else {}),
            "pool": self._pool,
            "step": POOLED[self._pool],
        }

    def _name_features(self) -> str:
        return name_features(self.NAME, self._pool, self._model, self.HUB)

    def encode(self, units: Sequence[str]) -> list[NDArray[np.float32]]:
        """Vectors of each sentence.

        Args:
            units: U sentences.

        Returns:
            U of (L, D), where L is the number of words, at most `max_words`; or of (1, D) for a
            vector per sentence. A sentence without words has no row either way.
        """
        words: list[list[list[int]]] = []

        def forward(sentences: Sequence[str]) -> "Tensor":
            inputs, found = self._tokenize(sentences)
            words.extend(found)
            return self._embed(inputs)

        outputs = self._run.encode(units, forward)
        # The last batch was filled up, so that there are words beyond the units.
        return [self._pool_one(o, w) for o, w in zip(outputs, words, strict=False)]

    def _tokenize(
        self, sentences: Sequence[str]
    ) -> tuple[dict[str, "Tensor"], list[list[list[int]]]]:
        """Network inputs, and for each sentence the tokens of each of its words."""
        encoded = self._tokenizer(
            list(sentences),
            padding="max_length",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        words = [group_by_word(encoded.word_ids(row)) for row in range(len(sentences))]
        if self._kept is not None:
            words = [
                [tokens for tokens in found if spell(encoded, row, tokens, sentence) in self._kept]
                for row, (sentence, found) in enumerate(zip(sentences, words, strict=True))
            ]
        return {name: tensor.to(self._run.device) for name, tensor in encoded.items()}, words

    def _embed(self, inputs: Mapping[str, "Tensor"]) -> "Tensor":
        """The last layer, (B, tokens, D), or the sentences' own vectors, (B, D)."""
        from torch.nn import functional

        output = self._run(**inputs)
        if self._pool == "projected":
            return functional.normalize(output.text_embeds.float(), dim=-1)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _pool_one(self, output: NDArray[np.float32], words: list[list[int]]) -> NDArray[np.float32]:
        if self._pool == "words":
            return average_pieces(output, words[: self._max_words])
        if self._pool == "mean":
            return average_pieces(output, [list(chain(*words))] if words else [])
        return output[None] if words else output[None][:0]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The rows of the clip's sentence, (L, D); their times are not known.

        Raises:
            DecodeError: The sentence has no word; code `no_text`.
        """
        values = outputs[0]
        if not len(values):
            who = "the tokenizer finds no word in" if self._kept is None else "no word is kept of"
            raise DecodeError("no_text", f"{who} {media.units[0]!r}")
        count = len(values)
        return Steps(values, np.ones(count, np.bool_), np.full(count, np.nan))


TOLERANCE = 1e-4
"""Of sentences: nothing is decoded, so that only the order of the network's sums may differ."""


@BACKBONES.register("bert")
class Bert(TextEncoder):
    """BERT-base uncased, or any text encoder of transformers, (L, 768) for L words."""

    NAME = "bert"
    HUB = BERT
    NETWORK = "AutoModel"
    CONFIG = "BertConfig"
    MAX_TOKENS = 25
    SPELLED_TOKENS = 128
    UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")
    OPTIONS: ClassVar[Mapping[str, Option]] = text_options(BERT, ("words", "mean"))
    gives = Gives(
        modality="text",
        shape=(768,),
        hop_s=None,
        weights=f"hf:{BERT}",
        licence="Apache-2.0",
        tolerance=TOLERANCE,
    )


@BACKBONES.register("clap-text")
class ClapText(TextEncoder):
    """The text tower of LAION-CLAP, (L, 768) for L words; 512 projected, beside its sounds."""

    NAME = "clap-text"
    HUB = CLAP
    NETWORK = "ClapTextModelWithProjection"
    CONFIG = "ClapTextConfig"
    MAX_TOKENS = 77
    SPELLED_TOKENS = 128
    UNUSED = (
        "audio_model.",
        "audio_projection.",
        "logit_scale",
        "text_model.embeddings.position_ids",
        "text_model.embeddings.token_type_ids",
    )
    OPTIONS: ClassVar[Mapping[str, Option]] = text_options(CLAP, tuple(POOLED))
    gives = Gives(
        modality="text",
        shape=(768,),
        hop_s=None,
        weights=f"hf:{CLAP}",
        licence="Apache-2.0",
        tolerance=TOLERANCE,
    )


@BACKBONES.register("clip-text")
class ClipText(TextEncoder):
    """The text tower of CLIP ViT-B/32, (L, 512) for L words; 512 projected, beside its pictures."""

    NAME = "clip-text"
    HUB = CLIP
    NETWORK = "CLIPTextModelWithProjection"
    CONFIG = "CLIPTextConfig"
    MAX_TOKENS = 77
    SPELLED_TOKENS = 77
    UNUSED = (
        "vision_model.",
        "visual_projection.",
        "logit_scale",
        "text_model.embeddings.position_ids",
    )
    OPTIONS: ClassVar[Mapping[str, Option]] = text_options(CLIP, tuple(POOLED))
    gives = Gives(
        modality="text",
        shape=(512,),
        hop_s=None,
        weights=f"hf:{CLIP}",
        licence="MIT",
        tolerance=TOLERANCE,
    )


@BACKBONES.register("bert-demo")
class BertDemo(Bert):
    """A small BERT that spells words by their characters, with random weights, (L, 64)."""

    NAME = "bert-demo"
    DEMO_OF = Bert.NAME
    SETTINGS: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": Bert.SPELLED_TOKENS,
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        key: option for key, option in Bert.OPTIONS.items() if key != "model"
    }
    gives = Gives(
        modality="text",
        shape=(64,),
        hop_s=None,
        weights="none; --weights random only",
        licence="none",
        tolerance=TOLERANCE,
    )


def name_features(backbone: str, pool: str, model: str, hub: str) -> str:
    """Name of the features of an encoder: `bert`, `bert-mean`, `bert:MODEL` or `bert-mean:MODEL`.

    A directory goes by its own name, without where it lies.
    """
    name = backbone if pool == "words" else f"{backbone}-{pool}"
    return name if model == hub else f"{name}:{_name(model).removeprefix('hf:')}"


def _name(home: str | Path) -> str:
    return Path(home).resolve().name if Path(home).is_dir() else f"hf:{home}"


def _without_pooler(network: Any) -> Any:
    """The network without the head that no word passes through, if it ends in one."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network


def _present_name(name: str, state: Mapping[str, Any]) -> str:
    """What a tensor is called today: the first BERT files have TensorFlow's names of two."""
    present = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
    present = re.sub(r"(?<=LayerNorm\.)beta$", "bias", present)
    return name if present in state else present


def _vocabulary_sha256(tokenizer: Any) -> str:
    """SHA-256 over the tokens and their numbers, in the order of the numbers."""
    tokens = sorted((code, token) for token, code in tokenizer.get_vocab().items())
    return hashlib.sha256("".join(f"{c} {t}\n" for c, t in tokens).encode()).hexdigest()


# --- from tokens to words ----------------------------------------------------------------------


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
        model_input_names=["input_ids", "attention_mask"],
    )


def group_by_word(word_ids: Sequence[int | None]) -> list[list[int]]:
    """Tokens of each word, in order; special tokens, whose word is None, belong to none."""
    words: dict[int, list[int]] = {}
    for token, word in enumerate(word_ids):
        if word is not None:
            words.setdefault(word, []).append(token)
    return [words[word] for word in sorted(words)]


def spell(encoded: Any, row: int, tokens: Sequence[int], sentence: str) -> str:
    """How a word stands in its sentence, without regard to case.

    Args:
        encoded: What the tokenizer returned for a batch.
        row: Of the sentence in it.
        tokens: Of the word, in order.
        sentence: The text itself.
    """
    start = encoded.token_to_chars(row, tokens[0]).start
    end = encoded.token_to_chars(row, tokens[-1]).end
    return sentence[start:end].strip().casefold()


def read_words(path: Path) -> frozenset[str]:
    """The words of a file, without regard to case: one a line, or a JSON list in a `.json` file.

    Raises:
        ConfigError: There is no such file, it is neither, or it has no word.
    """
    if not path.exists():
        raise ConfigError(f"--keep-words {path}: no such file")
    problem = f"--keep-words {path}: expected words, one a line, or a JSON list of them in a .json"
    try:
        text = read_bounded(path, MAX_WORDS_BYTES).decode("utf-8-sig")
        words = parse_json(text.encode()) if path.suffix == ".json" else text.splitlines()
    except ValueError as error:  # no file, too large, neither UTF-8, nor JSON
        raise ConfigError(f"{problem}, got {brief(error)}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{problem}, got something else")
    found = frozenset(word.strip().casefold() for word in words) - {""}
    if not found:
        raise ConfigError(f"{problem}, got none")
    return found


def words_sha256(words: Collection[str]) -> str:
    """SHA-256 of a set of words, whatever the order and form of its file."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()


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
