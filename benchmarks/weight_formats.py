"""Weight formats in ONNX Runtime: bytes, fidelity and speed of each, on all-MiniLM-L6-v2 and on single layers.

    python benchmarks/weight_formats.py [--rounds 9] [--sizes 576x1536 ...] [--formats int4 mxfp4 ...]
                                        [--no-model] [--no-layers] [--decode FLOAT32 ARTIFACT ...]

A model is compiled once a format, with compensated rounding; formats without a kernel are simulated. Its fidelity is
the mean and the least cosine to torch float32 on the sentences that ship and that no pass has seen; its latency is that
of one text of 128 tokens. Layers are lowered by the product's own backend. Everything is timed by one thread, all
formats in turn; a figure is the median over rounds of float32 seconds over its own of the same round, and beside it
stand the bytes of the file as a part of float32's. `runs` is the kernel that a session has after its own optimizations.

--decode takes artifacts of one language model, the first one in float32: each reads a prompt of 512 tokens and writes
32 after it, in turns with the first. Rows have the names of their folders.

The tables go to the terminal and to benchmarks/results/, beside those of other machines; what a run leaves out stays as
it was measured on a machine like this one; a run with --formats writes nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from decoding_gain import decoding_gain
from minilm_int8 import packaged_checkpoint, processor
from results import records_by_machine, write_by_machine
from rich.console import Console
from rich.table import Table
from texts import token_row
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.compile_model import compile_model
from compiler.evidence.data import Dataset
from compiler.evidence.trial_lowering import lowered_on_trial
from compiler.evidence.turns import alternating_seconds
from compiler.frontends.torch_export import capture
from compiler.grafting import apply_graft
from compiler.recipe import Recipe, build_passes, parse_passes
from compiler.registry import Registry
from compiler.rewriting import Graft, PassContext
from compiler.target import Target

RESULTS = Path(__file__).resolve().parent / "results"
FLOAT = "float32"
FORMATS = {
    "int8": "quantize-weights:format=int8",
    "int8, dynamic inputs": "smooth,quantize",
    "int8, static inputs": "smooth,quantize:activations=static",
    "mxint8": "quantize-weights:format=mxint8",
    "fp8-e4m3": "quantize-weights:format=fp8-e4m3",
    "fp8-e5m2": "quantize-weights:format=fp8-e5m2",
    "int4": "quantize-weights:format=int4",
    "int4, block 128": "quantize-weights:format=int4:block=128",
    "nf4": "quantize-weights:format=nf4",
    "mxfp4": "quantize-weights:format=mxfp4",
    "int3": "quantize-weights:format=int3",
    "int3, block 128": "quantize-weights:format=int3:block=128",
    "int2": "quantize-weights:format=int2",
    "ternary": "quantize-weights:format=ternary",
    "ternary-base3": "quantize-weights:format=ternary-base3",
}
"""Passes by the name of a row."""
TOKENS = (1, 128, 1024)
SIZES = ("576x1536", "2048x8192")
"""Inputs by outputs: a feed-forward layer of SmolLM2-135M, and a layer of a larger model."""
PROMPT, WRITTEN = 512, 32
ABOUT = (
    "Speed over float32 (milliseconds), all formats in turn; bytes of the file as a part of float32's; `runs` are the "
    "kernels of a session. Formats that run MatMul are simulated: smaller files, float32 products."
)
KERNELS = (
    "MatMulNBits",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "MatMul",
    "FusedMatMul",
    "Gemm",
)


def main() -> None:
    """Compile, measure, show, write."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    arguments = _arguments()
    formats = {name: text for name, text in FORMATS.items() if arguments.formats is None or name in arguments.formats}
    machine = {"processor": processor(), "threads": 1, "python": platform.python_version()}
    file = RESULTS / "weight_formats.json"
    records, record = records_by_machine(file, {"machine": machine, "onnxruntime": onnxruntime.__version__})
    layers = record.setdefault("layers", {})
    console = Console()
    for size in arguments.sizes if arguments.layers else ():
        layers[size] = _layer_figures(size, formats, arguments.rounds)
        console.print(_table(size, _layer_rows(layers[size]), LAYER_COLUMNS))
    if arguments.model:
        record["model"] = _model_figures(formats, arguments.rounds)
        console.print(_table("all-MiniLM-L6-v2", _model_rows(record["model"]), MODEL_COLUMNS))
    if arguments.decode:
        record["decode"] = _decode_figures(arguments.decode, arguments.rounds)
        console.print(_table("decoding", _decode_rows(record["decode"]), DECODE_COLUMNS))
    if arguments.formats is None:
        write_by_machine(file, records, "Weight formats", ABOUT, _sections)


class _Dense(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, in] to [tokens, out]."""
        return self.linear(x)


def _layer_figures(size: str, formats: dict[str, str], rounds: int) -> dict[str, Any]:
    """Bytes and speed of one layer by format."""
    in_features, out_features = map(int, size.split("x"))
    torch.manual_seed(0)
    inputs = {tokens: torch.randn(tokens, in_features) for tokens in TOKENS}
    module = _Dense(in_features, out_features).eval()
    dense = capture(module, {"x": inputs[128]}, source=size, dynamic={"x": {0: "tokens"}})
    registry, target, backend = Registry(entry_points=False), Target.parse("cpu"), OnnxRuntime()
    data = Dataset("drawn", scoring=(), calibration=((inputs[1024],),))
    context = PassContext(target, data, formats=registry.formats(), backend=backend, allow_simulated=True)
    with ExitStack() as trials:
        calls: dict[int, dict[str, Callable[[], Any]]] = {tokens: {} for tokens in TOKENS}
        figures: dict[str, Any] = {}
        for name, text in {FLOAT: "", **formats}.items():
            program = dense
            for one in build_passes(parse_passes(text), registry.passes(), registry.pipelines()):
                if isinstance(one, Graft):
                    quick = replace(one, rounding="nearest")  # what is timed does not depend on codes
                    program, _ = apply_graft(quick, program, (), context)
            lowered = trials.enter_context(lowered_on_trial(program, backend, target))
            figures[name] = {"bytes": lowered.bytes, "runs": _runs(lowered.kernels)}
            for tokens, x in inputs.items():
                calls[tokens][name] = lowered.call((x,))
        seconds = {tokens: alternating_seconds(calls[tokens], rounds) for tokens in TOKENS}
    for name, one in figures.items():
        one["milliseconds"] = {str(t): round(1e3 * statistics.median(seconds[t][name]), 4) for t in TOKENS}
        one["speedup"] = {str(t): round(_gain(seconds[t], name), 2) for t in TOKENS}
    return figures


def _model_figures(formats: dict[str, str], rounds: int) -> dict[str, Any]:
    """Bytes, fidelity and latency of all-MiniLM-L6-v2 by format."""
    checkpoint = packaged_checkpoint()
    row = token_row(checkpoint, 128)[None]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as scratch:
        calls = {}
        for name, text in {FLOAT: "", **formats}.items():
            passes = parse_passes(",".join(filter(None, ("canonicalize,fuse", text))))
            folder = Path(scratch) / name.replace(" ", "-").replace(",", "")
            result = compile_model(Recipe(str(checkpoint), passes, allow_simulated=True), folder)
            assert result.payload is not None
            fidelity = result.payload.fidelity
            figures[name] = {
                "bytes": result.payload_bytes,
                "mean_cosine": round(fidelity.mean_cosine, 5),
                "least_cosine": round(fidelity.worst_cosine, 5),
                "runs": _runs(result.lowered.kernels),
            }
            calls[name] = _session_call(folder / result.lowered.entry, row)
        seconds = alternating_seconds(calls, rounds)
    for name, one in figures.items():
        one["milliseconds"] = round(1e3 * statistics.median(seconds[name]), 3)
        one["speedup"] = round(_gain(seconds, name), 2)
    return figures


def _decode_figures(folders: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Bytes and tokens a second of artifacts, beside those of the first one."""
    found = {}
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.glob("model.*"))
        gains = decoding_gain(folder, folders[0], PROMPT, WRITTEN, 1, rounds) if folder != folders[0] else {}
        found[folder.name] = {"bytes": size, **gains}
    return found


def _session_call(path: Path, ids: Any) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": ids * 0 + 1}
    inputs = {one.name: given[one.name] for one in session.get_inputs()}
    return lambda: session.run(None, inputs)


def _runs(kernels: Mapping[str, int]) -> str:
    """The kernels of products, by how many there are."""
    return ", ".join(f"{kernels[name]} {name}" for name in KERNELS if kernels.get(name))


def _gain(seconds: dict[str, list[float]], name: str) -> float:
    return statistics.median(dense / own for dense, own in zip(seconds[FLOAT], seconds[name], strict=True))


LAYER_COLUMNS = ("format", "bytes", *(f"{tokens:,} tokens" for tokens in TOKENS), "runs")
DECODE_COLUMNS = ("artifact", "MB", "bytes", "prefill", "decode")
MODEL_COLUMNS = ("format", "MB", "bytes", "mean cosine", "least", "128 tokens", "runs")


def _layer_rows(figures: dict[str, Any]) -> list[list[str]]:
    whole = figures[FLOAT]["bytes"]
    return [
        [
            name,
            f"{one['bytes'] / whole:.3f}",
            *(f"{one['speedup'][str(t)]:.2f}x ({one['milliseconds'][str(t)]:.3f} ms)" for t in TOKENS),
            one["runs"],
        ]
        for name, one in figures.items()
    ]


def _model_rows(figures: dict[str, Any]) -> list[list[str]]:
    whole = figures[FLOAT]["bytes"]
    return [
        [
            name,
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['bytes'] / whole:.3f}",
            f"{one['mean_cosine']:.4f}",
            f"{one['least_cosine']:.4f}",
            f"{one['speedup']:.2f}x ({one['milliseconds']:.2f} ms)",
            one["runs"],
        ]
        for name, one in figures.items()
    ]


def _decode_rows(figures: dict[str, Any]) -> list[list[str]]:
    whole = next(iter(figures.values()))["bytes"]
    return [
        [name, f"{one['bytes'] / 1e6:.1f}", f"{one['bytes'] / whole:.3f}", _rate(one, "prefill"), _rate(one, "decode")]
        for name, one in figures.items()
    ]


def _rate(figures: dict[str, Any], step: str) -> str:
    gain = figures.get(f"{step}_gain")
    return "1.00x" if gain is None else f"{gain:.2f}x ({figures[f'{step}_tokens_per_second']:.1f} a second)"


def _table(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Table:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def _sections(record: dict[str, Any]) -> list[str]:
    lines = []
    if "model" in record:
        lines += ["", "### all-MiniLM-L6-v2", "", *_page_table(MODEL_COLUMNS, _model_rows(record["model"]))]
    if "decode" in record:
        about = f"A language model, {PROMPT} tokens read and {WRITTEN} written after them"
        lines += ["", f"### {about}", "", *_page_table(DECODE_COLUMNS, _decode_rows(record["decode"]))]
    for size, figures in record["layers"].items():
        lines += ["", f"### A layer of {size}", "", *_page_table(LAYER_COLUMNS, _layer_rows(figures))]
    return lines


def _page_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="INxOUT")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="rows of the tables; all if left out")
    parser.add_argument("--decode", nargs="+", type=Path, metavar="FOLDER", help="artifacts, float32 first")
    parser.add_argument("--no-model", dest="model", action="store_false", help="measure layers alone")
    parser.add_argument("--no-layers", dest="layers", action="store_false", help="measure the model alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
