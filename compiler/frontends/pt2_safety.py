"""Whether reading a `.pt2` archive could run code, decided before `torch.export.load` reads it.

`torch.export.load` unpickles tensors, example inputs and custom objects, looks operators up by dotted name in `torch`,
and has sympy evaluate symbolic shapes. Each of these is checked here against what `torch.export.save` writes for a
plain model. The archive is opened with the reader that torch itself uses, so that both see the same files.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from compiler.errors import CompilerError
from compiler.frontends.traced_module import first_line

MODELS, WEIGHTS, CONSTANTS, EXAMPLES = "models/", "data/weights/", "data/constants/", "data/sample_inputs/"
COMPILED = "data/aotinductor/"
OBJECTS = ("custom_obj_", "opaque_obj_")
PLAIN = r"(?!__)\w+|__i?(?:and|or|xor|lshift|rshift)__"
TARGET = re.compile(
    rf"torch\.ops\.(?:aten|prims|regraft|higher_order)\.(?:{PLAIN})(?:\.(?!__)\w+)?"
    r"|torch\.sym_\w+|math\.(?!__)\w+"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|FloatTrueDiv|Max|Min"
    r"|CeilToInt|FloorToInt|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality"
    r"|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|And|Or|Not|Where|ModularIndexing|PowByNatural|FloatPow"
)
ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Load,
    ast.operator, ast.unaryop, ast.cmpop, ast.keyword,
)  # fmt: skip


def check_archive(doing: str, path: Path) -> None:
    """Raise CompilerError when the archive is damaged, or when reading it could run code."""
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        with PT2ArchiveReader(str(path)) as archive:
            files = {name: archive.read_bytes(name) for name in archive.get_file_names() if _is_checked(name)}
            names = archive.get_file_names()
    except Exception as error:  # the reader asserts and indexes; damage shows as any error
        problem = f"it is truncated, damaged or no .pt2 archive ({first_line(error)})"
        raise CompilerError(doing, problem, "Save it again with torch.export.save.") from error
    if any(name.startswith(COMPILED) for name in names):
        raise CompilerError(doing, "it holds compiled code", "Save the program with torch.export.save, uncompiled.")
    found = next(_dangers(files), None)
    if found is not None:
        hint = "Save it again with torch.export.save on plain tensors; if you trust its maker, add --allow-pickle."
        raise CompilerError(doing, f"reading it could run code: {found}", hint)


def _is_checked(name: str) -> bool:
    return name.startswith((MODELS, EXAMPLES)) or (name.startswith((WEIGHTS, CONSTANTS)) and not _is_raw(name))


def _is_raw(name: str) -> bool:
    return re.fullmatch(r"(?:weight|tensor)_\d+", name.rsplit("/", 1)[-1]) is not None


def _dangers(files: dict[str, bytes]) -> Iterator[str]:
    for name, content in files.items():
        if name.startswith(MODELS):
            yield from _dangers_in_model(json.loads(content))
        elif name.endswith("_config.json"):
            yield from _dangers_in_tensors(json.loads(content))
        elif content and not _loads_as_tensors(content):
            yield f"{name} is a pickle of more than tensors"


def _dangers_in_model(value: Any) -> Iterator[str]:
    """Operators and shape expressions, wherever they stand in the model's JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "target" and isinstance(item, str) and not TARGET.fullmatch(item):
                yield f"it calls {item!r}"
            elif key == "expr_str" and not _is_arithmetic(str(item)):
                yield f"it has the shape {str(item)[:60]!r}"
            else:
                yield from _dangers_in_model(item)
    elif isinstance(value, list):
        for item in value:
            yield from _dangers_in_model(item)


def _dangers_in_tensors(settings: dict[str, Any]) -> Iterator[str]:
    for name, entry in settings["config"].items():
        if entry["use_pickle"]:
            yield f"{name} is pickled"
        if str(entry["path_name"]).startswith(OBJECTS):
            yield f"{name} is a custom object"


def _loads_as_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # whatever goes wrong, the file is not plain tensors
        return False
    return True


def _is_arithmetic(text: str) -> bool:
    """Whether a shape is built of numbers, symbols, operators and the shape functions, and nothing else."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_arithmetic_node(node) for node in ast.walk(tree)) and not _has_loose_text(tree)


def _is_arithmetic_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and FUNCTIONS.fullmatch(node.func.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) or (isinstance(node.value, str) and node.value.isidentifier())
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    return isinstance(node, ARITHMETIC)


def _has_loose_text(tree: ast.AST) -> bool:
    """Text is allowed as the name of a Symbol only: elsewhere sympy would evaluate it."""
    symbols = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol"
    ]  # fmt: skip
    named = {id(argument) for node in symbols for argument in node.args}
    return any(
        isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in named
        for node in ast.walk(tree)
    )
