"""Models made by Python code: `file.py:factory` and `module:factory`.

The factory takes no arguments and returns an nn.Module, or a module and its example inputs: a dict by argument name, a
tuple in argument order, or one tensor. `--input name=dtype[shape]` states the inputs where the factory gives none, and
goes before its own where both do.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from compiler.errors import CompilerError, nearest_hint
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.dynamic_dims import default_dynamic_dims
from compiler.frontends.input_texts import stated_examples, stated_inputs
from compiler.frontends.torch_export import capture
from compiler.hookspecs import hookimpl
from compiler.program import Program

NAMED = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<factory>[A-Za-z_]\w*)")

FILE_PREFIX = "regraft_model_"
"""Before the name under which a file is imported: dataclasses look it up, and it may not hide another module."""


class PythonFactory(Frontend):
    """Runs a factory function and captures the module it returns."""

    name = "python-factory"
    form = "file.py:factory or module:factory"

    def accepts(self, model: str) -> bool:
        return NAMED.fullmatch(model) is not None and not Path(model).exists()

    def load(self, model: str, options: LoadOptions) -> Program:
        doing = f"reading model {model!r}"
        match = NAMED.fullmatch(model)
        assert match is not None
        with _import_path(match["place"]):
            namespace = _imported(doing, match["place"])
            module, inputs = _called(doing, _factory(doing, namespace, match["factory"]), match["factory"])
        stated = stated_inputs(options.inputs)
        examples = {**inputs, **stated_examples(stated)}
        if not examples:
            hint = f"Return (module, inputs) from it, or add --input {_example_text(module)}."
            raise CompilerError(doing, f"{match['factory']} gives no example inputs", hint)
        dims = default_dynamic_dims({name: tensor for name, tensor in inputs.items() if name not in stated})
        dynamic = {**dims, **{name: one.dynamic for name, one in stated.items()}}
        return capture(module, examples, source=model, dynamic=dynamic)


@contextmanager
def _import_path(place: str) -> Iterator[None]:
    """Let the file import its neighbours, or the module be found in the current folder, inside."""
    folder = str(Path(place).expanduser().resolve().parent) if place.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _imported(doing: str, place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                hint = "Is it installed, or should this be file.py:factory?"
                raise CompilerError(doing, f"there is no Python module {place!r}", hint) from error
            raise _raised(doing, f"importing {place}", error) from error
        except Exception as error:
            raise _raised(doing, f"importing {place}", error) from error
    path = Path(place).expanduser()
    if not path.is_file():
        near = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise CompilerError(doing, f"there is no file {place!r}", nearest_hint(path.name, near, "Check the path."))
    spec = importlib.util.spec_from_file_location(f"{FILE_PREFIX}{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[namespace.__name__] = namespace
    try:
        spec.loader.exec_module(namespace)
    except Exception as error:
        raise _raised(doing, f"importing {place}", error) from error
    return namespace


def _factory(doing: str, namespace: ModuleType, name: str) -> Callable[[], Any]:
    found = getattr(namespace, name, None)
    if found is None:
        functions = [key for key, value in vars(namespace).items() if callable(value) and not key.startswith("_")]
        hint = nearest_hint(name, functions, f"It defines: {', '.join(functions) or 'no function'}.")
        raise CompilerError(doing, f"it has no {name!r}", hint)
    if not callable(found):
        raise CompilerError(doing, f"{name!r} is {type(found).__name__}, not a function", "Name a function.")
    needed = [
        parameter.name
        for parameter in inspect.signature(found).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        hint = "A factory takes no arguments; give them defaults."
        raise CompilerError(doing, f"{name!r} needs arguments ({', '.join(needed)})", hint)
    return found  # type: ignore[no-any-return]


def _called(doing: str, factory: Callable[[], Any], name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    try:
        returned = factory()
    except Exception as error:
        raise _raised(doing, name, error) from error
    hint = "A factory returns an nn.Module, or (module, inputs) with inputs a tensor, a tuple or a dict of tensors."
    if isinstance(returned, nn.Module):
        return returned, {}
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], nn.Module)):
        raise CompilerError(doing, f"{name} returned {_described(returned)}", hint)
    module, inputs = returned
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    else:
        values = (inputs,) if isinstance(inputs, Tensor) else inputs
        if not isinstance(values, (tuple, list)):
            raise CompilerError(doing, f"{name} returned inputs of type {type(values).__name__}", hint)
        named = dict(zip(_argument_names(module, len(values)), values, strict=True))
    for key, value in named.items():
        if not isinstance(value, Tensor):
            raise CompilerError(doing, f"{name} returned input {key!r} of type {type(value).__name__}", hint)
    return module, named


def _argument_names(module: nn.Module, count: int) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return named + [f"input_{index}" for index in range(len(named), count)]


def _example_text(module: nn.Module) -> str:
    return f"{_argument_names(module, 1)[0]}=float32[batch,3,224,224]"


def _raised(doing: str, where: str, error: Exception) -> CompilerError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    problem = f"{where} raised {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return CompilerError(doing, problem, f"It was raised in {Path(last.filename).name}, line {last.lineno}.")


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in value)}"
    return type(value).__name__


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [PythonFactory]
