"""From the tokens of a sentence to its words."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, brief
from micu.base.files import parse_json, read_bounded

MAX_WORDS_BYTES = 16 * 2**20
"""Largest list of words that is read: more than a million of them."""
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
"""Of the spelling tokenizer: [PAD], [CLS] and [SEP], by the names of transformers."""


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
