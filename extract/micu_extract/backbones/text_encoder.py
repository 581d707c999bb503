"""What text encoders of transformers have in common: loading, tokens, words and their pooling."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, DecodeError
from micu.store.sets import Steps
from micu_extract.backbones.base import Gives, InputSpec, Media, Option, Run, TextInput
from micu_extract.backbones.hubs import (
    by_hand_folder,
    download,
    from_transformers,
    load_transformer,
)
from micu_extract.backbones.inference import Runner
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.weights import (
    Request,
    Weights,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)
from micu_extract.backbones.words import (
    SPECIAL,
    average_pieces,
    group_by_word,
    read_words,
    spell,
    spelling_tokenizer,
    words_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor

MAX_WORDS = 10
ALL_WORDS = "all"
POOLED = {
    "words": "mean of a word's pieces in the last layer, special tokens dropped",
    "mean": "mean of the tokens that are read in the last layer, special tokens dropped",
    "projected": "the network's own sentence vector, projected, divided by its length",
}
"""What `--pool` may be, and what a row is then."""


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


class TextEncoder:
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

    NAME: ClassVar[str]
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
    OPTIONS: ClassVar[Mapping[str, Option]]
    wants: InputSpec = TextInput()
    gives: Gives

    def __init__(  # noqa: D107
        self,
        weights: str,
        run: Run,
        *,
        model: str | None = None,
        pool: str = "words",
        max_words: int = MAX_WORDS,
        keep_words: str = ALL_WORDS,
    ) -> None:
        import transformers

        model = model or self.HUB
        for typed, option in ((max_words != MAX_WORDS, "max"), (keep_words != ALL_WORDS, "keep")):
            if typed and pool != "words":
                raise ConfigError(f"{self.NAME}: --{option}-words: only --pool words keeps words")
        self._pool, self._max_words = pool, max_words
        self._kept = None if keep_words == ALL_WORDS else read_words(Path(keep_words))
        request = self._parse(weights)
        is_folder = request.kind == "local" and request.path.is_dir()
        home: str | Path = request.path if is_folder else model
        self._remedy = self._say_what_to_type(request, model)
        self._spells = request.kind == "random" and model == self.HUB
        self._tokenizer = (
            spelling_tokenizer()
            if self._spells
            else from_transformers(transformers.AutoTokenizer, home, self._remedy, use_fast=True)
        )
        network, source = self._load(request, home)
        self._check(network.config, source)
        # The mask is left out where no sentence of the batch is padded. Here it is added, and zeros
        # change no bit; others take another kernel then, which may round otherwise.
        network.set_attn_implementation("eager")
        self._run = Runner(network, run, batch_size=16)
        self._max_tokens = self.SPELLED_TOKENS if self._spells else self.MAX_TOKENS
        projected = pool == "projected"
        width = network.config.projection_dim if projected else network.config.hidden_size
        self.gives = replace(self.gives, shape=(int(width),))
        self.spec = build_spec(
            name_features(self.NAME, pool, model, self.HUB),
            self,
            Weights(source, tensors_sha256(network)),
            run,
            {
                "tokenizer": "word pieces of one ASCII character" if self._spells else _name(home),
                "vocabulary_sha256": _vocabulary_sha256(self._tokenizer),
                "max_tokens": self._max_tokens,
                **({"max_words": max_words} if pool == "words" else {}),
                **({"keep_words_sha256": words_sha256(self._kept)} if self._kept else {}),
                "pool": pool,
                "step": POOLED[pool],
            },
            "torch",
            "transformers",
            "tokenizers",
        )

    def _parse(self, weights: str) -> Request:
        return parse_request(weights, self.NAME)

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

    def _load(self, request: Request, home: str | Path) -> tuple[Any, str]:
        """The network and its source; `home` is where its configuration is."""
        import transformers

        network_class = getattr(transformers, self.NETWORK)
        if self._spells:
            config = getattr(transformers, self.CONFIG)(**{**SPECIAL, **self.SETTINGS})
            return self._draw(config, request.seed), request.source
        if request.kind == "pretrained" or home == request.path:
            network = load_transformer(network_class, home, self.UNUSED, remedy=self._remedy)
            return _without_pooler(network), _name(home)
        is_any = self.NETWORK == "AutoModel"
        config_class = transformers.AutoConfig if is_any else getattr(transformers, self.CONFIG)
        config = from_transformers(config_class, home, self._remedy)
        network = self._draw(config, request.seed)
        if request.kind == "local":
            self._fill(network, request.path)
        return network, request.source

    def _draw(self, config: Any, seed: int) -> Any:
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

    @property
    def batch_size(self) -> int:
        """Sentences per forward pass."""
        return self._run.batch_size

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
            return self._forward(inputs)

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

    def _forward(self, inputs: Mapping[str, "Tensor"]) -> "Tensor":
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
