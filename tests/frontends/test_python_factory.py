from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.python_factory import PythonFactory

MODELS = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from neighbour import WIDTH

def module():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 3)

@dataclass
class Settings:
    width: int = WIDTH

def from_settings():
    return nn.Linear(Settings().width, 3), torch.ones(2, WIDTH)

def with_tuple():
    return module(), (torch.ones(2, WIDTH),)

def with_dict():
    return module(), {"input": torch.ones(2, WIDTH)}

def with_tensor():
    return module(), torch.ones(2, WIDTH)

def wrong_rank():
    return nn.Conv2d(3, 4, 3), torch.ones(2, 3)

def raises():
    raise ValueError("no such weights")

def returns_text():
    return "a model"

def returns_three():
    return module(), torch.ones(2, WIDTH), None

def gives_numbers():
    return module(), [1, 2]

def wants_arguments(width):
    return nn.Linear(width, 3)

not_callable = 3
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "neighbour.py").write_text("WIDTH = 4\n")
    (folder / "broken_models.py").write_text("import a_package_that_is_not_there\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "models.py").write_text(MODELS)
    return folder / "models.py"


def load(model: str, *inputs: str):
    return load_model(model, LoadOptions(inputs=inputs), [PythonFactory])


@pytest.mark.parametrize("factory", ["with_tuple", "with_dict", "with_tensor"])
def test_a_factory_that_gives_example_inputs(models: Path, factory: str):
    program = load(f"{models}:{factory}")
    assert [str(spec) for spec in program.inputs] == ["input: float32[batch, 4]"]
    torch.manual_seed(0)
    expected = torch.nn.Linear(4, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.run(x)[0], expected(x))


def test_a_file_may_define_dataclasses(models: Path):
    assert str(load(f"{models}:from_settings").outputs[0]) == "output: float32[batch, 3]"


def test_inputs_that_the_user_states(models: Path):
    program = load(f"{models}:module", "input=float32[rows,tokens,4]")
    assert [str(spec) for spec in program.inputs] == ["input: float32[rows, tokens, 4]"]
    assert [str(spec) for spec in program.outputs] == ["output: float32[rows, tokens, 3]"]


def test_stated_inputs_go_before_the_factorys_own(models: Path):
    program = load(f"{models}:with_tuple", "input=float32[8,4]")
    assert [str(spec) for spec in program.inputs] == ["input: float32[8, 4]"]


def test_a_module_by_its_dotted_name(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(models.parent)
    assert load("models:with_tuple").source == "models:with_tuple"


@pytest.mark.parametrize(
    ("factory", "problem", "hint"),
    [
        ("module", "module gives no example inputs", "--input input=float32"),
        ("with_tupel", "it has no 'with_tupel'", "Did you mean 'with_tuple'?"),
        ("raises", "raises raised ValueError: no such weights", "models.py, line "),
        ("returns_text", "returns_text returned str", "A factory returns an nn.Module"),
        ("returns_three", "returns_three returned a tuple of Linear, Tensor, NoneType", "A factory returns"),
        ("gives_numbers", "gives_numbers returned input 'input' of type int", "A factory returns"),
        ("wants_arguments", "'wants_arguments' needs arguments (width)", "give them defaults"),
        ("not_callable", "'not_callable' is int, not a function", "Name a function."),
        ("wrong_rank", "the model fails on its example inputs (input float32[2, 3])", "--input"),
    ],
)
def test_what_goes_wrong_in_a_factory(models: Path, factory: str, problem: str, hint: str):
    with pytest.raises(CompilerError) as caught:
        load(f"{models}:{factory}")
    assert caught.value.problem.startswith(problem)
    assert hint in caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("{folder}/model.py:f", "there is no file "),
        ("{folder}/broken_models.py:f", "raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("{folder}/syntax.py:f", "raised SyntaxError"),
        ("no_such_module_here:f", "there is no Python module 'no_such_module_here'"),
    ],
)
def test_a_file_that_cannot_be_imported(models: Path, model: str, problem: str):
    with pytest.raises(CompilerError, match=problem):
        load(model.format(folder=models.parent))
