"""Twenty-six tiny transformers architectures with random weights, and what their configurations say of their sites.

Each is built on demand with a fixed seed and captured once a session. Sizes are small and not degenerate: two layers
or more, fewer key heads than query heads where the family has that, an intermediate width that is no multiple of the
hidden one, and inputs longer than the sliding window where there is one.

    entry = zoo.entry("llama")          model = entry.build()          program = zoo.program("llama")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compiler.frontends.torch_export import capture
from compiler.program import Program

HIDDEN, INTERMEDIATE, VOCABULARY, WINDOW = 32, 48, 99, 8
TEXT_DIMS = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
IMAGE_DIMS = {"pixel_values": {0: "batch"}}


@dataclass(frozen=True)
class Model:
    """One architecture in eval mode, inputs for it by argument name, and the site counts its configuration implies."""

    module: nn.Module
    inputs: dict[str, Tensor]
    counts: dict[str, int]


@dataclass(frozen=True)
class Entry:
    """How to build one architecture. `inputs_at(batch, sequence)` draws inputs of any size from a fixed seed."""

    name: str
    role: str
    dynamic: dict[str, dict[int, str]]
    build_module: Callable[[], tuple[nn.Module, dict[str, int]]]
    inputs_at: Callable[[int, int], dict[str, Tensor]]

    def build(self) -> Model:
        """The model with random weights and inputs of batch 2 and sequence 12. The same bytes on every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module, counts = self.build_module()
            _unsettle(module)
        return Model(module.eval(), self.inputs_at(2, 12), counts)


def names() -> list[str]:
    """All architectures, in the order of the issue that asked for them."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry called `name`. Raises KeyError when there is none."""
    return _ENTRIES[name]


@functools.cache
def model(name: str) -> Model:
    """`entry(name).build()`, once a session: not to be changed by a test."""
    return entry(name).build()


@functools.cache
def captured(name: str) -> Program:
    """The captured Program, once a session: not to be changed by a test."""
    chosen, built = entry(name), model(name)
    return capture(built.module, built.inputs, source=f"zoo:{name}", role=chosen.role, dynamic=chosen.dynamic)


def program(name: str) -> Program:
    """A copy of the captured Program that a test may rewrite."""
    return captured(name).copy()


def _unsettle(module: nn.Module) -> None:
    """Give norms and biases values other than their ones and zeros, so that dropping one is seen."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class _CausalLanguageModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits


class _TextToText(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits
        return logits


class _SpeechToText(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits
        return logits


class _ImageEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=pixel_values)
        return output.last_hidden_state, output.pooler_output


class _TextAndImage(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return output.text_embeds, output.image_embeds


def _tokens(generator: torch.Generator, batch: int, sequence: int) -> Tensor:
    return torch.randint(4, VOCABULARY, (batch, sequence), generator=generator)


def _text_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence)
    mask = torch.ones(batch, sequence, dtype=torch.int64)
    mask[-1, sequence - sequence // 4 :] = 0
    return {"input_ids": _tokens(generator, batch, sequence), "attention_mask": mask}


def _text_to_text_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence + 1)
    return {**_text_inputs(batch, sequence), "decoder_input_ids": _tokens(generator, batch, sequence - 3)}


def _image_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}


def _speech_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence)
    features = torch.randn(batch, 16, 24, generator=generator)
    return {"input_features": features, "decoder_input_ids": _tokens(generator, batch, sequence - 3)}


def _text_and_image_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    return {**_text_inputs(batch, sequence), **_image_inputs(batch, sequence)}


_LAYERS = 2
_EVERY_LAYER = {"attention": _LAYERS, "feed-forward": _LAYERS}
_ENCODER_DECODER = {"attention": 3 * _LAYERS, "feed-forward": 2 * _LAYERS}
_DECODER_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IMAGE_SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_channels": 3}


def _causal(class_prefix: str, **options: Any) -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = getattr(transformers, f"{class_prefix}Config")(**options)
    return _CausalLanguageModel(getattr(transformers, f"{class_prefix}ForCausalLM")(config)), _EVERY_LAYER


def _encoder(class_prefix: str, **options: Any) -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = getattr(transformers, f"{class_prefix}Config")(**options)
    return _Encoder(getattr(transformers, f"{class_prefix}Model")(config)), _EVERY_LAYER


def _image(class_prefix: str, counts: dict[str, int], **options: Any) -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = getattr(transformers, f"{class_prefix}Config")(**options)
    return _ImageEncoder(getattr(transformers, f"{class_prefix}Model")(config)), counts


def _gemma2() -> tuple[nn.Module, dict[str, int]]:
    return _causal(
        "Gemma2",
        **_DECODER_SIZES,
        head_dim=16,
        sliding_window=WINDOW,
        attn_logit_softcapping=5.0,
        query_pre_attn_scalar=20,
    )


def _gpt2() -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=_LAYERS,
        n_head=4,
        n_positions=64,
        n_inner=INTERMEDIATE,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _CausalLanguageModel(transformers.GPT2LMHeadModel(config)), _EVERY_LAYER


def _t5() -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=8,
        d_ff=INTERMEDIATE,
        num_layers=_LAYERS,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
    )
    return _TextToText(transformers.T5ForConditionalGeneration(config)), _ENCODER_DECODER


def _bart() -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=_LAYERS,
        decoder_layers=_LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=INTERMEDIATE,
        decoder_ffn_dim=INTERMEDIATE,
        max_position_embeddings=64,
    )
    return _TextToText(transformers.BartForConditionalGeneration(config)), _ENCODER_DECODER


def _whisper() -> tuple[nn.Module, dict[str, int]]:
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=16,
        d_model=HIDDEN,
        encoder_layers=_LAYERS,
        decoder_layers=_LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=INTERMEDIATE,
        decoder_ffn_dim=INTERMEDIATE,
        max_source_positions=12,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return _SpeechToText(transformers.WhisperForConditionalGeneration(config)), _ENCODER_DECODER


def _clip() -> tuple[nn.Module, dict[str, int]]:
    import transformers

    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 4,
    }
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
        ),
        vision_config=dict(image_size=32, patch_size=8, **sizes),
        projection_dim=24,
    )
    return _TextAndImage(transformers.CLIPModel(config)), {"attention": 2 * _LAYERS, "feed-forward": 2 * _LAYERS}


_BUILDERS: dict[str, tuple[str, Callable[[], tuple[nn.Module, dict[str, int]]]]] = {
    "llama": ("causal-lm", lambda: _causal("Llama", **_DECODER_SIZES)),
    "mistral": ("causal-lm", lambda: _causal("Mistral", **_DECODER_SIZES, sliding_window=WINDOW)),
    "qwen2": (
        "causal-lm",
        lambda: _causal("Qwen2", **_DECODER_SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    ),
    "qwen3": ("causal-lm", lambda: _causal("Qwen3", **_DECODER_SIZES, head_dim=16)),
    "gemma": ("causal-lm", lambda: _causal("Gemma", **_DECODER_SIZES, head_dim=16)),
    "gemma2": ("causal-lm", _gemma2),
    "phi3": ("causal-lm", lambda: _causal("Phi3", **_DECODER_SIZES, sliding_window=WINDOW)),
    "gpt2": (
        "causal-lm",
        _gpt2,
    ),
    "gpt_neox": ("causal-lm", lambda: _causal("GPTNeoX", **_BERT_SIZES)),
    "opt": (
        "causal-lm",
        lambda: _causal(
            "OPT",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            ffn_dim=INTERMEDIATE,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=HIDDEN,
        ),
    ),
    "bloom": (
        "causal-lm",
        lambda: _causal("Bloom", vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=_LAYERS, n_head=4),
    ),
    "falcon": (
        "causal-lm",
        lambda: _causal(
            "Falcon",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            ffn_hidden_size=INTERMEDIATE,
        ),
    ),
    "mixtral": ("causal-lm", lambda: _causal("Mixtral", **_DECODER_SIZES, num_local_experts=4, num_experts_per_tok=2)),
    "bert": ("encoder", lambda: _encoder("Bert", **_BERT_SIZES)),
    "roberta": ("encoder", lambda: _encoder("Roberta", **_BERT_SIZES)),
    "distilbert": (
        "encoder",
        lambda: _encoder(
            "DistilBert",
            vocab_size=VOCABULARY,
            dim=HIDDEN,
            hidden_dim=INTERMEDIATE,
            n_layers=_LAYERS,
            n_heads=4,
            max_position_embeddings=64,
        ),
    ),
    "modernbert": (
        "encoder",
        lambda: _encoder(
            "ModernBert",
            **_BERT_SIZES,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=WINDOW,
            global_attn_every_n_layers=2,
        ),
    ),
    "t5": ("seq2seq", _t5),
    "bart": ("seq2seq", _bart),
    "whisper": ("seq2seq", _whisper),
    "vit": (
        "encoder",
        lambda: _image(
            "ViT",
            _EVERY_LAYER,
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            **_IMAGE_SIZES,
        ),
    ),
    "dinov2": (
        "encoder",
        lambda: _image(
            "Dinov2",
            _EVERY_LAYER,
            hidden_size=HIDDEN,
            mlp_ratio=2,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            **_IMAGE_SIZES,
        ),
    ),
    "clip": ("encoder", _clip),
    "swin": (
        "encoder",
        lambda: _image(
            "Swin",
            {"attention": 4, "feed-forward": 4},
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
    ),
    "convnext": (
        "encoder",
        lambda: _image(
            "ConvNext", {"attention": 0, "feed-forward": 4}, depths=[2, 2], hidden_sizes=[16, 24], num_stages=2
        ),
    ),
    "resnet": (
        "encoder",
        lambda: _image(
            "ResNet",
            {"attention": 0, "feed-forward": 0},
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[2, 2],
            layer_type="bottleneck",
        ),
    ),
}


def _shape_of_inputs(name: str, role: str) -> tuple[dict[str, dict[int, str]], Callable[[int, int], dict[str, Tensor]]]:
    """The dynamic dims and the maker of inputs that go with an architecture."""
    decoder_dims = {"decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}
    if name == "whisper":
        return {"input_features": {0: "batch"}, **decoder_dims}, _speech_inputs
    if name == "clip":
        return {**TEXT_DIMS, "pixel_values": {0: "images"}}, _text_and_image_inputs
    if name in ("vit", "dinov2", "swin", "convnext", "resnet"):
        return IMAGE_DIMS, _image_inputs
    if role == "seq2seq":
        return {**TEXT_DIMS, **decoder_dims}, _text_to_text_inputs
    return TEXT_DIMS, _text_inputs


_ENTRIES = {
    name: Entry(name, role, *_shape_of_inputs(name, role)[:1], build, _shape_of_inputs(name, role)[1])
    for name, (role, build) in _BUILDERS.items()
}
