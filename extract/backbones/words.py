"""From the tokens of a sentence to its words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
