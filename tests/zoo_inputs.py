"""Inputs of any size for the zoo's models, by argument name; the same numbers for the same size."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY = 99
TEXT_DIMS = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
DECODER_DIMS = {"decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}
IMAGE_DIMS = {"pixel_values": {0: "batch"}}


def _tokens(generator: torch.Generator, batch: int, sequence: int) -> Tensor:
    return torch.randint(4, VOCABULARY, (batch, sequence), generator=generator)


def text_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence)
    mask = torch.ones(batch, sequence, dtype=torch.int64)
    mask[-1, sequence - sequence // 4 :] = 0
    return {"input_ids": _tokens(generator, batch, sequence), "attention_mask": mask}


def text_to_text_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence + 1)
    return {**text_inputs(batch, sequence), "decoder_input_ids": _tokens(generator, batch, sequence - 3)}


def image_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}


def speech_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + sequence)
    features = torch.randn(batch, 16, 24, generator=generator)
    return {"input_features": features, "decoder_input_ids": _tokens(generator, batch, sequence - 3)}


def text_and_image_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    return {**text_inputs(batch, sequence), **image_inputs(batch, sequence)}
