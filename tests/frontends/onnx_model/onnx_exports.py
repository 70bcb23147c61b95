"""The zoo's architectures exported to ONNX by PyTorch's two exporters and by our own backend, once a session.

The older exporter takes a fraction of the time of the newer one, so it writes whatever it can; the newer one writes
what the older cannot, and one model of every kind: with decomposed attention (opset 18) and with Attention (opset 24).
"""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
import zoo
from torch import Tensor, nn
from zoo_inputs import TEXT_DIMS, text_inputs
from zoo_wrappers import Encoder

OLDER_OPSET = 17


@dataclass(frozen=True)
class Exporter:
    """How an architecture is exported: by the dynamo exporter at an opset, or by the older one (`opset` is None)."""

    opset: int | None = None
    attention: str = ""
    experts: str = ""


OLDER = Exporter()
EXPORTERS = {
    "llama": Exporter(24),
    "mixtral": Exporter(18, experts="batched_mm"),
    "bart": Exporter(18),
    "whisper": Exporter(18),
    "vit": Exporter(24),
    "swin": Exporter(18, attention="eager"),
}
"""Of what is not left to the older exporter. swin adds a bias that the newer one cannot decompose with SDPA."""


@functools.cache
def exported(name: str) -> bytes:
    """The architecture `name` as the bytes of an ONNX model with dynamic dims."""
    exporter = EXPORTERS.get(name, OLDER)
    built = zoo.entry(name).build()
    config = built.module.model.config
    if exporter.attention:
        built.module.model.set_attn_implementation(exporter.attention)
    if exporter.experts:
        config._experts_implementation = exporter.experts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what exporters warn of is their own
        if exporter.opset is None:
            return _older(built.module, built.inputs, zoo.entry(name).dynamic)
        return _newer(name, built, exporter.opset)


def exported_encoder(folder: Path) -> bytes:
    """The encoder in a transformers folder, for input_ids and attention_mask, by the older exporter."""
    from transformers import AutoModel

    encoder = Encoder(AutoModel.from_pretrained(folder)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _older(encoder, text_inputs(2, 12), TEXT_DIMS)


def _newer(name: str, built: zoo.Model, opset: int) -> bytes:
    dims = {argument: dict(zoo.entry(name).dynamic.get(argument, {})) for argument in built.inputs}
    program = torch.onnx.export(
        built.module, (), kwargs=built.inputs, dynamo=True, opset_version=opset, dynamic_shapes=dims, verbose=False
    )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _older(module: nn.Module, inputs: dict[str, Tensor], dynamic: dict[str, dict[int, str]]) -> bytes:
    written = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        written,
        input_names=list(inputs),
        dynamic_axes=dynamic,
        opset_version=OLDER_OPSET,
        dynamo=False,
    )
    return written.getvalue()


@functools.cache
def written_by_us(name: str) -> bytes:
    """The captured architecture as our ONNX Runtime backend writes it, before any pass."""
    from compiler.backends.onnx_runtime.translate import onnx_model

    return bytes(ir.to_proto(onnx_model(zoo.program(name))).SerializeToString())


def read(model: bytes) -> ir.Model:
    """The model in its bytes, as a file of it would be read."""
    import onnx

    return ir.from_proto(onnx.load_from_string(model))
