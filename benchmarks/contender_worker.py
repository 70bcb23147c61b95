"""One side of a benchmark in a process of its own: reads JSON commands, a line each, and answers in kind.

Run by the interpreter that has the side's engine, so it imports only that engine and numpy.

    {"do": "time", "inputs": "x.npz", "calls": 5}    ->  {"seconds": [...]}
    {"do": "embed", "inputs": ["a.npz", ...], "to": "out.npy"}    ->  {"rows": 64}
    {"do": "memory"}    ->  {"peak_bytes": ..., "version": "..."}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, Any]], Any]


def open_artifact(path: Path, threads: int) -> tuple[Run, str]:
    """An artifact of Regraft through its own runtime, input checks included."""
    import onnxruntime

    from compiler.runtime.session import Session

    session = Session.open(path, threads)
    return (lambda inputs: next(iter(session.run(inputs).values()))), f"onnxruntime {onnxruntime.__version__}"


def open_onnx(path: Path, threads: int) -> tuple[Run, str]:
    """An .onnx file in ONNX Runtime as it comes, but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return (lambda inputs: session.run(None, inputs)[0]), f"onnxruntime {onnxruntime.__version__}"


def open_openvino(path: Path, threads: int) -> tuple[Run, str]:
    """An OpenVINO model with its latency hint."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return (lambda inputs: request.infer(inputs)[0]), f"openvino {openvino.__version__.partition('-')[0]}"


def open_torch(path: Path, threads: int) -> tuple[Run, str]:
    """The checkpoint folder in torch, eager."""
    import torch
    from sentence_embedding import SentenceEmbedding

    torch.set_num_threads(threads)
    model = SentenceEmbedding.from_folder(path)

    def run(inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return model(*(torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))).numpy()

    return run, f"torch {torch.__version__}"


ENGINES = {"artifact": open_artifact, "onnx": open_onnx, "openvino": open_openvino, "torch": open_torch}


def main() -> None:
    """Answer commands until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    run, version = ENGINES[arguments.engine](arguments.path, arguments.threads)
    print(json.dumps({"ready": version}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), run, version)), flush=True)


def _answer(command: dict[str, Any], run: Run, version: str) -> dict[str, Any]:
    if command["do"] == "time":
        inputs = dict(np.load(command["inputs"]))
        run(inputs)
        seconds = []
        for _ in range(command["calls"]):
            started = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}
    if command["do"] == "embed":
        rows = np.concatenate([np.array(run(dict(np.load(one)))) for one in command["inputs"]])
        np.save(command["to"], rows)
        return {"rows": len(rows)}
    return {"peak_bytes": _peak_bytes(), "version": version}


def _peak_bytes() -> int:
    """The most memory since this program started; getrusage would count what its parent had, too."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
