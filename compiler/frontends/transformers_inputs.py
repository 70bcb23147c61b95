"""Example inputs for a transformers model: small, valid, with padding in them, and the same in every run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.dynamic_dims import default_dynamic_dims

BATCH, TOKENS, DECODER_TOKENS = 2, 9, 6
SAMPLES, PIXELS = 16000, 224


def example_inputs(doing: str, model: Any, role: str) -> dict[str, Tensor]:
    """What `model.forward` needs, by argument name, after its config. Raises when its main input is not known."""
    generator = torch.Generator().manual_seed(0)
    accepted = inspect.signature(model.forward).parameters
    text = getattr(model.config, "text_config", model.config)
    vision = getattr(model.config, "vision_config", model.config)
    inputs: dict[str, Tensor] = {}
    main = model.main_input_name
    if main == "input_ids":
        inputs |= _token_inputs(text, generator)
        if role == "classifier" and "token_type_ids" in accepted and getattr(text, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if main == "pixel_values" or (main == "input_ids" and "pixel_values" in accepted and vision is not model.config):
        inputs["pixel_values"] = _pixels(vision, generator)
    if main == "input_features":
        frames = 2 * getattr(model.config, "max_source_positions", SAMPLES // 320)
        inputs["input_features"] = torch.randn(BATCH, model.config.num_mel_bins, frames, generator=generator)
    if main == "input_values":
        inputs["input_values"] = torch.randn(BATCH, SAMPLES, generator=generator)
    if not inputs:
        hint = "State its inputs, as in --input x=float32[batch,3,224,224]."
        raise CompilerError(doing, f"the model's main input {main!r} is of a kind that is not known", hint)
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        size = (BATCH, DECODER_TOKENS)
        inputs["decoder_input_ids"] = _token_ids(text, size, generator)
    return {name: tensor for name, tensor in inputs.items() if name in accepted}


def dynamic_dims(inputs: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """The usual dims, and a count of its own for the images of a model that compares images with texts."""
    dims = default_dynamic_dims(inputs)
    if "input_ids" in inputs and "pixel_values" in inputs:
        dims["pixel_values"] = {0: "images"}
    return dims


def _token_inputs(config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask[0, -2:] = 0
    ids = _token_ids(config, (BATCH, TOKENS), generator)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None:
        ids = ids.masked_fill(mask == 0, padding)
    end = getattr(config, "eos_token_id", None)
    if hasattr(config, "projection_dim") and isinstance(end, int):  # CLIP pools the text at its end-of-text token
        ids[:, -3] = min(end, config.vocab_size - 1)
    return {"input_ids": ids, "attention_mask": mask}


def _token_ids(config: Any, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
    allowed = torch.tensor([index for index in range(min(config.vocab_size, 1000)) if index not in special])
    return allowed[torch.randint(0, len(allowed), size, generator=generator)]


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    size = getattr(config, "image_size", None) or PIXELS
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(BATCH, getattr(config, "num_channels", 3), height, width, generator=generator)
