"""ONNX's own backend test cases, run through the importer alone, and through importer, export and onnx_runtime backend.

    python tests/frontends/onnx_model/backend_cases.py [--kind node] [--match REGEX] [--stage import|lowered]

prints what fails, with reasons, and the share that passes. Inputs that decide shapes are fixed at the case's values.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.element_types import tensor_from_numpy
from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.frontends.onnx_model.values import names_of
from compiler.program import Program

STAGES = ("import", "lowered")
STRING = onnx.TensorProto.STRING


@cache
def cases(kind: str) -> dict[str, Any]:
    """The cases of a kind by name, in order. Of the node cases: core ones, not expanded, without strings."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow and divide by zero on purpose
        found = {case.name: case for case in load_model_tests(kind=kind)}
    return found if kind != "node" else {name: case for name, case in found.items() if _is_core(case)}


def _is_core(case: Any) -> bool:
    graph = case.model.graph
    if "_expanded" in case.name or any(node.domain for node in graph.node):
        return False
    return "STRING" not in str([*graph.input, *graph.output]) and not any(
        value.type.tensor_type.elem_type == STRING for value in [*graph.input, *graph.output]
    )


def model_of(case: Any) -> onnx.ModelProto:
    """The model of a case, from memory or from its folder."""
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs of every data set of a case, as numpy arrays (or lists of them)."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [_array(one) for one in inputs], [_array(one) for one in outputs]
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        yield _stored(folder, "input"), _stored(folder, "output")


def _array(given: Any) -> Any:
    """A value of a data set as numpy has it: types that numpy lacks are given as protobuf."""
    return onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given


def _stored(folder: Path, role: str) -> list[Any]:
    files = sorted(folder.glob(f"{role}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def outcomes(case: Any) -> dict[str, str]:
    """By stage, why the case does not pass there. A case that the importer fails fails lowered too."""
    try:
        model = prepared(f"reading {case.name}", ir.serde.deserialize_model(model_of(case)))
        failures: dict[str, str] = {}
        for inputs, expected in data_of(case):
            program, given = _imported(case, model, inputs)
            for stage in STAGES:
                problem = _problem(case, program, given, list(flat(expected)), stage)
                if problem:
                    failures.setdefault(stage, problem)
    except Exception as error:
        return dict.fromkeys(STAGES, _said(error))
    return failures


def _imported(case: Any, model: ir.Model, inputs: Sequence[Any]) -> tuple[Program, list[Tensor]]:
    """The case's program, and the tensors for those inputs that it still has."""
    values = dict(zip([one.name for one in model.graph.inputs], inputs, strict=False))
    types = {one.name: one.dtype for one in model.graph.inputs}
    tensors = {name: as_tensor(array, types[name]) for name, array in values.items()}
    program = program_from_onnx(model, doing=f"reading {case.name}", source=case.name, values=tensors)
    named = {key: one for name, held in tensors.items() for key, one in names_of(name, held).items()}
    return program, [named[spec.name] for spec in program.inputs]


def _problem(case: Any, program: Program, given: list[Tensor], expected: list[Any], stage: str) -> str | None:
    try:
        found = program.run(*given) if stage == "import" else run_lowered(program, given)
        return difference(found, expected, case.rtol, case.atol)
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    if isinstance(error, CompilerError):
        return str(error).partition(": ")[2]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"


def as_tensor(array: Any, data_type: ir.DataType) -> Any:
    """An input of a case as the tensor that carries it; lists and None stay such."""
    if array is None or isinstance(array, list):
        return array and [as_tensor(item, data_type) for item in array]
    return tensor_from_numpy(np.asarray(array), data_type)


def flat(outputs: Sequence[Any]) -> Iterator[Any]:
    """Expected outputs one by one; a sequence gives its items, an absent optional nothing."""
    for output in outputs:
        if isinstance(output, (list, tuple)):
            yield from flat(output)
        elif output is not None:
            yield output


def run_lowered(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of the program in ONNX Runtime, as our backend writes it."""
    import onnxruntime

    from compiler.backends.onnx_runtime import OnnxRuntime
    from compiler.target import Target

    backend = OnnxRuntime()
    refused = backend.refuses(program, Target("cpu"))
    if refused:
        raise CompilerError("lowering", refused, "")
    with tempfile.TemporaryDirectory() as folder:
        lowered = backend.lower(program, Target("cpu"), Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(Path(folder) / lowered.entry, options)
        feeds = {one.name: tensor.numpy() for one, tensor in zip(program.inputs, inputs, strict=True)}
        found = [np.array(one) for one in session.run(None, feeds)]
        return [torch.from_numpy(one.view(one.dtype.str)) for one in found]  # uint64 comes under its other name


def difference(found: Sequence[Tensor], expected: Sequence[Any], rtol: float, atol: float) -> str | None:
    """What is wrong with the outputs, by the rules of ONNX's own runner, or None."""
    if len(found) != len(expected):
        return f"{len(found)} outputs instead of {len(expected)}"
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        theirs = np.asarray(theirs)
        if tuple(ours.shape) != theirs.shape:
            return f"output {index} has shape {list(ours.shape)} instead of {list(theirs.shape)}"
        wanted = tensor_from_numpy(theirs, ir.DataType.from_numpy(theirs.dtype))
        if ours.dtype != wanted.dtype:
            return f"output {index} is {ours.dtype} instead of {wanted.dtype}"
        if ours.dtype.is_floating_point:
            ours, wanted = ours.double(), wanted.double()
        try:
            np.testing.assert_allclose(ours.detach().numpy(), wanted.numpy(), rtol=rtol, atol=atol)
        except AssertionError as error:
            lines = [
                line.strip() for line in str(error).splitlines() if "difference" in line or "mismatch" in line.lower()
            ]
            return f"output {index} has other values ({'; '.join(lines[:2])})"
    return None


def main() -> int:
    """Print what fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="node")
    parser.add_argument("--match", default="")
    parser.add_argument("--stage", default="import", choices=STAGES)
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = {name: case for name, case in cases(asked.kind).items() if re.search(asked.match, name)}
    failed = 0
    for name, case in chosen.items():
        reason = outcomes(case).get(asked.stage)
        if reason is not None:
            failed += 1
            print(f"FAIL {name}: {reason}", flush=True)
        elif asked.verbose:
            print(f"pass {name}", flush=True)
    passed = len(chosen) - failed
    print(f"{passed} of {len(chosen)} pass ({passed / max(1, len(chosen)):.1%})")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
