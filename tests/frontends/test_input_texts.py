from __future__ import annotations

import pytest
import torch

from compiler.errors import CompilerError
from compiler.frontends.input_texts import fixed_inputs, stated_examples, stated_inputs


def test_numbers_are_fixed_and_names_are_symbolic():
    stated = stated_inputs(["x=float32[batch,3,height:64,64]", "mask = bool [batch]", "scale=float16"])
    assert [one.dynamic for one in stated.values()] == [{0: "batch", 2: "height"}, {0: "batch"}, {}]
    examples = stated_examples(stated)
    assert [tuple(tensor.shape) for tensor in examples.values()] == [(2, 3, 64, 64), (2,), ()]
    assert [tensor.dtype for tensor in examples.values()] == [torch.float32, torch.bool, torch.float16]


def test_examples_are_the_same_in_every_run_and_index_small_tables():
    stated = stated_inputs(["ids=int64[batch,tokens]"])
    first, second = stated_examples(stated)["ids"], stated_examples(stated)["ids"]
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("float32[2]", "it is not name=dtype[shape]", "x=float32[batch,3,224,224]"),
        ("x=float32[2", "it is not name=dtype[shape]", "x=float32[batch,3,224,224]"),
        ("x=flaot32[2]", "there is no dtype 'flaot32'", "Did you mean 'float32'?"),
        ("x=float32[2,-1]", "'-1' is no dim", "A dim is a number, a name, or name:size."),
    ],
)
def test_what_cannot_be_read(text: str, problem: str, hint: str):
    with pytest.raises(CompilerError) as caught:
        stated_inputs([text])
    assert caught.value.doing == f"reading --input {text!r}"
    assert caught.value.problem == problem
    assert hint in caught.value.hint


def test_numbers_fix_an_input_and_other_texts_are_left():
    texts = ["rate=16000", "serving:0=[[1,2],[3,4]]", "scale=-0.5", "on=true", "x=float32[2]"]
    fixed, others = fixed_inputs(texts)
    assert fixed == {"rate": 16000, "serving:0": [[1, 2], [3, 4]], "scale": -0.5, "on": True}
    assert others == ["x=float32[2]"]


@pytest.mark.parametrize("text", ["x=[1,2", "x=[[1],[2,3]]", "x=1.2.3", 'x=["a"]'])
def test_what_is_no_tensor_of_numbers(text: str):
    with pytest.raises(CompilerError, match="is no tensor of numbers"):
        fixed_inputs([text])


def test_an_input_is_stated_once():
    with pytest.raises(CompilerError, match="'x' is stated twice"):
        stated_inputs(["x=float32[1]", "x=float32[2]"])
