"""The zoo's rows: a transformers configuration, the wrapper that calls the model, and how its sites are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from zoo_inputs import (
    DECODER_DIMS,
    IMAGE_DIMS,
    TEXT_DIMS,
    VOCABULARY,
    image_inputs,
    speech_inputs,
    text_and_image_inputs,
    text_inputs,
    text_to_text_inputs,
)
from zoo_wrappers import CausalLanguageModel, Encoder, ImageEncoder, SpeechToText, TextAndImage, TextToText

HIDDEN, INTERMEDIATE, WINDOW, LAYERS, HEADS = 32, 48, 8, 2, 4

Counts = dict[str, int]


@dataclass(frozen=True)
class Architecture:
    """One row. `config` and `model` are names in transformers; `count` says how many sites a configuration implies."""

    name: str
    role: str
    config: str
    model: str
    wrapper: Callable[[nn.Module], nn.Module]
    options: dict[str, Any]
    count: Callable[[Any], Counts]
    inputs_at: Callable[[int, int], dict[str, Tensor]]
    dynamic: dict[str, dict[int, str]]


def every_layer(config: Any) -> Counts:
    """Attention and a feed-forward block in every layer."""
    return {"attention": config.num_hidden_layers, "feed-forward": config.num_hidden_layers}


def encoder_and_decoder(config: Any) -> Counts:
    """Decoder layers attend twice: to themselves and to the encoder."""
    return _seq2seq_counts(config.encoder_layers, config.decoder_layers)


def t5_layers(config: Any) -> Counts:
    """As `encoder_and_decoder`, in t5's words."""
    return _seq2seq_counts(config.num_layers, config.num_decoder_layers)


def _seq2seq_counts(encoder: int, decoder: int) -> Counts:
    return {"attention": encoder + 2 * decoder, "feed-forward": encoder + decoder}


def text_and_vision(config: Any) -> Counts:
    """Two towers."""
    towers = (every_layer(config.text_config), every_layer(config.vision_config))
    return {kind: sum(tower[kind] for tower in towers) for kind in towers[0]}


def attending_stages(config: Any) -> Counts:
    """Both kinds in every block of every stage."""
    return {"attention": sum(config.depths), "feed-forward": sum(config.depths)}


def convolving_stages(config: Any) -> Counts:
    """A feed-forward block in every block of every stage, and no attention."""
    return {"attention": 0, "feed-forward": sum(config.depths)}


def neither(config: Any) -> Counts:
    """Convolutions alone."""
    return {"attention": 0, "feed-forward": 0}


TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
GROUPED_SIZES = {**TEXT_SIZES, **TOKEN_IDS, "num_key_value_heads": 2}
TOWER_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
IMAGE_SIZES = {"image_size": 32, "patch_size": 8, "num_channels": 3}
SEQ2SEQ_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INTERMEDIATE,
    "decoder_ffn_dim": INTERMEDIATE,
}


def language_model(name: str, family: str, options: dict[str, Any], model: str = "") -> Architecture:
    """A decoder that gives logits for input_ids and attention_mask."""
    known = (f"{family}Config", model or f"{family}ForCausalLM", CausalLanguageModel)
    return Architecture(name, "causal-lm", *known, options, every_layer, text_inputs, TEXT_DIMS)


def text_encoder(name: str, family: str, options: dict[str, Any]) -> Architecture:
    """An encoder that gives hidden states for input_ids and attention_mask."""
    known = (f"{family}Config", f"{family}Model", Encoder)
    return Architecture(name, "encoder", *known, options, every_layer, text_inputs, TEXT_DIMS)


def image_encoder(
    name: str, family: str, options: dict[str, Any], count: Callable[[Any], Counts] = every_layer
) -> Architecture:
    """An encoder that gives hidden states and a pooled one for pixel_values; only the batch is dynamic."""
    known = (f"{family}Config", f"{family}Model", ImageEncoder)
    return Architecture(name, "encoder", *known, options, count, image_inputs, IMAGE_DIMS)


def text_to_text(name: str, family: str, options: dict[str, Any], count: Callable[[Any], Counts]) -> Architecture:
    """An encoder and a decoder that gives logits."""
    known = (f"{family}Config", f"{family}ForConditionalGeneration", TextToText)
    return Architecture(name, "seq2seq", *known, options, count, text_to_text_inputs, {**TEXT_DIMS, **DECODER_DIMS})


WHISPER = Architecture(
    name="whisper",
    role="seq2seq",
    config="WhisperConfig",
    model="WhisperForConditionalGeneration",
    wrapper=SpeechToText,
    options={
        **SEQ2SEQ_SIZES,
        **TOKEN_IDS,
        "num_mel_bins": 16,
        "max_source_positions": 12,
        "max_target_positions": 64,
        "decoder_start_token_id": 3,
    },
    count=encoder_and_decoder,
    inputs_at=speech_inputs,
    dynamic={"input_features": {0: "batch"}, **DECODER_DIMS},
)
CLIP = Architecture(
    name="clip",
    role="encoder",
    config="CLIPConfig",
    model="CLIPModel",
    wrapper=TextAndImage,
    options={
        "text_config": {**TEXT_SIZES, **TOKEN_IDS},
        "vision_config": {**TOWER_SIZES, "image_size": 32, "patch_size": 8},
        "projection_dim": 24,
    },
    count=text_and_vision,
    inputs_at=text_and_image_inputs,
    dynamic={**TEXT_DIMS, "pixel_values": {0: "images"}},
)
GEMMA2 = {
    **GROUPED_SIZES,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 20,
}
QWEN2 = {**GROUPED_SIZES, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 64,
    "n_inner": INTERMEDIATE,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "ffn_dim": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": HIDDEN,
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INTERMEDIATE,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "hidden_dim": INTERMEDIATE,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "max_position_embeddings": 64,
}
MODERNBERT = {
    **TEXT_SIZES,
    **TOKEN_IDS,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": WINDOW,
    "global_attn_every_n_layers": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": INTERMEDIATE,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "feed_forward_proj": "gated-gelu",
}
DINOV2 = {"hidden_size": HIDDEN, "mlp_ratio": 2, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"depths": [2, 2], "hidden_sizes": [16, 24], "num_stages": 2}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "bottleneck"}

ARCHITECTURES = (
    language_model("llama", "Llama", GROUPED_SIZES),
    language_model("mistral", "Mistral", {**GROUPED_SIZES, "sliding_window": WINDOW}),
    language_model("qwen2", "Qwen2", QWEN2),
    language_model("qwen3", "Qwen3", {**GROUPED_SIZES, "head_dim": 16}),
    language_model("gemma", "Gemma", {**GROUPED_SIZES, "head_dim": 16}),
    language_model("gemma2", "Gemma2", GEMMA2),
    language_model("phi3", "Phi3", {**GROUPED_SIZES, "sliding_window": WINDOW}),
    language_model("gpt2", "GPT2", GPT2, model="GPT2LMHeadModel"),
    language_model("gpt_neox", "GPTNeoX", TEXT_SIZES),
    language_model("opt", "OPT", OPT),
    language_model("bloom", "Bloom", BLOOM),
    language_model("falcon", "Falcon", FALCON),
    language_model("mixtral", "Mixtral", {**GROUPED_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    text_encoder("bert", "Bert", TEXT_SIZES),
    text_encoder("roberta", "Roberta", TEXT_SIZES),
    text_encoder("distilbert", "DistilBert", DISTILBERT),
    text_encoder("modernbert", "ModernBert", MODERNBERT),
    text_to_text("t5", "T5", T5, t5_layers),
    text_to_text("bart", "Bart", {**SEQ2SEQ_SIZES, "max_position_embeddings": 64}, encoder_and_decoder),
    WHISPER,
    image_encoder("vit", "ViT", {**TOWER_SIZES, **IMAGE_SIZES}),
    image_encoder("dinov2", "Dinov2", {**DINOV2, **IMAGE_SIZES}),
    CLIP,
    image_encoder("swin", "Swin", SWIN, attending_stages),
    image_encoder("convnext", "ConvNext", CONVNEXT, convolving_stages),
    image_encoder("resnet", "ResNet", RESNET, neither),
)
