"""ONNX Runtime's own int8: exported by torch, its transformer optimizer, then dynamic quantization per channel.

The steps and options are those of its documentation for BERT; the exporter is the one whose graphs the optimizer knows.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from sentence_embedding import SentenceEmbedding


def export(folder: Path, path: Path) -> None:
    """Write the float32 graph with dynamic batch and sequence."""
    model = SentenceEmbedding.from_folder(folder, attention="eager")
    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    dims = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        model,
        example,
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_axes={"input_ids": dims, "attention_mask": dims, "sentence_embedding": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def optimize_and_quantize(path: Path, heads: int, hidden: int, result: Path) -> dict[str, int]:
    """Fuse, then quantize; what the optimizer fused, by name."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(str(path), model_type="bert", num_heads=heads, hidden_size=hidden)
    middle = path.with_name("optimized.onnx")
    fused.save_model_to_file(str(middle))
    types = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # its fused operators have no shape inference
    quantize_dynamic(middle, result, per_channel=True, weight_type=QuantType.QInt8, extra_options=types)
    return {name: count for name, count in fused.get_fused_operator_statistics().items() if count}


def main() -> None:
    """Write RESULT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("float_onnx", type=Path)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    export(arguments.checkpoint, arguments.float_onnx)
    print(optimize_and_quantize(arguments.float_onnx, 12, 384, arguments.result))


if __name__ == "__main__":
    main()
