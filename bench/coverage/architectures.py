"""Which models are covered: the language models that transformers' auto mappings name, and some that none names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto


@dataclass(frozen=True, order=True)
class Architecture:
    """One entry of an auto mapping.

    Attributes:
        model_type: transformers' name of the config, such as ``qwen3``.
        class_name: the model's class.
        kind: ``causal``, ``seq2seq`` or ``masked``: what the mapping is of; or a key of `ENCODERS`.
    """

    model_type: str
    class_name: str
    kind: str

    @property
    def family(self) -> str:
        """The directory of transformers that has the model."""
        return CONFIG_MAPPING[self.model_type].__module__.split(".")[-2]

    @property
    def name(self) -> str:
        return self.model_type if self.kind == "causal" else f"{self.model_type}:{self.kind}"


UNMAPPED = {"csm_depth_decoder_model": "CsmDepthDecoderForCausalLM", "mistral4": "Mistral4ForCausalLM"}
"""Causal language models that are built as parts of others, and that the mapping leaves out."""

ENCODERS = {
    "image": {"beit": "BeitModel", "clip_vision_model": "CLIPVisionModel", "deit": "DeiTModel",
              "dinov2": "Dinov2Model", "ijepa": "IJepaModel", "siglip_vision_model": "SiglipVisionModel",
              "vit": "ViTModel"},
    "speech": {"whisper": "WhisperForConditionalGeneration"},
    "text": {"clip_text_model": "CLIPTextModel", "siglip_text_model": "SiglipTextModel"},
}  # fmt: skip
"""Of what is not made of text, or makes none: those that are spelled as language models are."""


SPREAD = (
    "afmoe", "apertus", "arcee", "bart", "bert", "bitnet", "cohere2", "deepseek_v3", "exaone4", "falcon", "gemma2",
    "gemma3_text", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "helium", "llama", "llama4_text", "nanochat",
    "nemotron", "olmo2", "phi3", "qwen3", "qwen3_moe", "t5:seq2seq",
)  # fmt: skip
"""The names that CI runs."""


def causal() -> list[Architecture]:
    """Every class of the causal-LM mapping; a class that several entries share is there once for each."""
    return _of(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "causal") + _of(UNMAPPED, "causal")


def others() -> list[Architecture]:
    """Encoder-decoders of text, encoders of text with a head for masked words, and the other encoders."""
    found = []
    classes: set[str] = set()
    for mapping, kind in (
        (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "seq2seq"),
        (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "masked"),
    ):
        mine = [a for a in _of(mapping, kind) if a.class_name not in classes and _is_of_text(a)]
        classes |= {a.class_name for a in mine}
        found += mine
    return found + [a for kind, rows in ENCODERS.items() for a in _of(rows, kind)]


def everything() -> list[Architecture]:
    return causal() + others()


def by_name(name: str) -> Architecture:
    """The architecture of this name (``qwen3``, ``t5:seq2seq``).

    Raises:
        ValueError: there is none.
    """
    for architecture in everything():
        if architecture.name == name:
            return architecture
    raise ValueError(f"no architecture {name!r} among the {len(everything())} that transformers' mappings name.")


def _is_of_text(architecture: Architecture) -> bool:
    config = CONFIG_MAPPING[architecture.model_type]
    fields = {*(getattr(config, "sub_configs", None) or {}), *getattr(config, "__dataclass_fields__", {})}
    return not any(word in name for name in fields for word in ("vision", "audio", "encoder_config", "speech", "mel"))


def _of(mapping: Any, kind: str) -> list[Architecture]:
    rows = ((name, c if isinstance(c, str) else c[0]) for name, c in mapping.items() if name in CONFIG_MAPPING)
    return [Architecture(name, class_name, kind) for name, class_name in rows]
