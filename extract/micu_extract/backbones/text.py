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

from collections.abc import Mapping
from typing import Any, ClassVar

from micu_extract.backbones.base import BACKBONES, Gives, Option
from micu_extract.backbones.text_encoder import POOLED, TextEncoder, text_options
from micu_extract.backbones.weights import Request, parse_demo_request

BERT = "google-bert/bert-base-uncased"
CLAP = "laion/clap-htsat-unfused"
CLIP = "openai/clip-vit-base-patch32"


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
        modality="text", shape=(768,), hop_s=None, weights=f"hf:{BERT}", licence="Apache-2.0"
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
        modality="text", shape=(768,), hop_s=None, weights=f"hf:{CLAP}", licence="Apache-2.0"
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
    gives = Gives(modality="text", shape=(512,), hop_s=None, weights=f"hf:{CLIP}", licence="MIT")


@BACKBONES.register("bert-demo")
class BertDemo(Bert):
    """A small BERT that spells words by their characters, with random weights, (L, 64)."""

    NAME = "bert-demo"
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
    )

    def _parse(self, weights: str) -> Request:
        return parse_demo_request(weights, self.NAME, Bert.NAME)
