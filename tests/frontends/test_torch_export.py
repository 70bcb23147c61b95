from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.frontends.torch_export import capture
from compiler.program import Dimension

BATCH = Dimension("batch")


class Small(nn.Module):
    """Dropout, batch norm, a buffer: things that a mode or a write would change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(4)
        self.unused = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x)) + self.calls


class Embedding(nn.Module):
    """Tied weights, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.table(input_ids) * attention_mask[:, :, None]
        return self.head(torch.cumsum(hidden, dim=1))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_names_shapes_and_numbers():
    module = Small().eval()
    program = capture(module, {"x": torch.randn(2, 4)}, source="small")
    assert str(program.inputs[0]) == "x: float32[batch, 4]"
    assert str(program.outputs[0]) == "output: float32[batch, 4]"
    assert program.inputs[0].shape == (BATCH, 4)
    assert set(program.weights()) == {
        *("inner.0.weight", "inner.0.bias", "calls"),
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
    }
    for rows in (1, 2, 7):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(program.run(x)[0], module(x), rtol=0, atol=0)


def test_nodes_carry_the_module_path_and_the_value():
    program = capture(Small(), {"x": torch.randn(2, 4)}, source="small")
    linear = next(node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default)
    assert list(linear.meta["nn_module_stack"].values())[-1][0] == "inner.0"
    assert all("val" in node.meta for node in program.graph.nodes if node.op != "output")


def test_the_users_model_is_left_as_it_was():
    module = Small().train()
    module.inner.eval()
    module.inner[0].weight.requires_grad_(False)
    before, modes = state(module), {name: part.training for name, part in module.named_modules()}
    program = capture(module, {"x": torch.randn(3, 4)}, source="small")
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert not module.inner[0].weight.requires_grad
    assert module.norm.weight.requires_grad
    assert not program.weight("inner.0.weight").requires_grad
    assert program.weight("norm.weight").requires_grad
    with torch.no_grad():
        for tensor in program.weights().values():
            tensor.fill_(7.0)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_buffer_that_the_model_writes_to_is_put_back():
    class Counts(Small):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.calls.add_(1.0)
            return self.inner(x)

    module = Counts()
    capture(module, {"x": torch.randn(3, 4)}, source="counts")
    assert module.calls.item() == 0


def test_tied_weights_are_one_tensor_under_one_name():
    ids, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    program = capture(Embedding(), {"input_ids": ids, "attention_mask": mask}, source="tied")
    assert set(program.weights()) == {"table.weight"}
    assert [node.target for node in program.graph.nodes if node.op == "get_attr"] == ["table.weight"]


def test_batch_and_sequence_are_shared_dims():
    ids, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    module = Embedding().eval()
    program = capture(module, {"input_ids": ids, "attention_mask": mask}, source="tied")
    assert [str(spec) for spec in program.inputs] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
    ]
    assert str(program.outputs[0]) == "output: float32[batch, sequence, 11]"
    first, second = (node.meta["val"].shape for node in program.placeholders())
    assert first == second
    for rows, tokens in ((1, 1), (3, 9)):
        inputs = torch.randint(0, 11, (rows, tokens)), torch.ones(rows, tokens, dtype=torch.int64)
        torch.testing.assert_close(program.run(*inputs)[0], module(*inputs), rtol=0, atol=0)
    exported = program.export()
    inputs = torch.randint(0, 11, (4, 3)), torch.ones(4, 3, dtype=torch.int64)
    torch.testing.assert_close(exported.module()(*inputs)[0], module(*inputs), rtol=0, atol=1e-6)


class Outputs(nn.Module):
    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": x + 1, "states": (x, x * 2), "nothing": None, "count": 3}


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x + 1, [x * 2, x * 3]


@pytest.mark.parametrize(
    ("module", "names"),
    [(Outputs(), ["logits", "states_0", "states_1"]), (Tuple(), ["output", "output_1", "output_2"])],
)
def test_outputs_are_flattened_and_named(module: nn.Module, names: list[str]):
    program = capture(module, {"x": torch.randn(2, 3)}, source="outputs")
    assert [spec.name for spec in program.outputs] == names
    assert len(program.run(torch.randn(4, 3))) == len(names)


def test_a_readout_makes_other_outputs_and_drops_what_they_do_not_need():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.left_out = nn.Linear(3, 2), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"kept": self.kept(x), "left_out": self.left_out(x)}

    program = capture(
        Two(), {"x": torch.randn(2, 3)}, source="two", readout=lambda outputs, inputs: {"sum": outputs["kept"].sum(1)}
    )
    assert [spec.name for spec in program.outputs] == ["sum"]
    assert set(program.weights()) == {"kept.weight", "kept.bias"}


class FixedRows(nn.Module):
    """Asks for one batch size; the width stays free."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, -1) + 1


class OtherAboveTwo(nn.Module):
    """Another function at batch sizes above 2, by a check that tracing does not see."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        return x * (2.0 if type(rows) is int and rows > 2 else 1.0)


def test_a_dim_that_only_the_second_size_disproves_is_static_too():
    program = capture(OtherAboveTwo(), {"x": torch.randn(2, 3)}, source="hidden")
    assert program.inputs[0].shape == (2, 3)
    assert program.notes == ["dim 'batch' is fixed at 2: at 3, output 0 has other values"]


def test_a_dim_that_the_code_fixes_is_static_and_said_to_be():
    program = capture(FixedRows(), {"x": torch.randn(4, 6)}, source="fixed", dynamic={"x": {0: "batch", 1: "width"}})
    assert program.inputs[0].shape[0] == 4
    assert program.inputs[0].shape[1] == Dimension("width")
    assert len(program.notes) == 1
    assert program.notes[0].startswith("dim 'batch' is fixed at 4: ")
    assert program.run(torch.ones(4, 9))[0].shape == (4, 9)


def test_a_limit_in_the_code_becomes_the_dims_maximum():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(16, 3))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table[: input_ids.shape[1]] + input_ids[:, :, None]

    program = capture(Positions(), {"input_ids": torch.ones(2, 5, dtype=torch.int64)}, source="positions")
    assert program.dimensions == {"batch": Dimension("batch"), "sequence": Dimension("sequence", 1, 16)}


class Pyramid(nn.Module):
    """Halves an image twice, doubles it once and adds: neighbours of a multiple of 4 do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.first(x)
        return nn.functional.interpolate(self.second(half), scale_factor=2.0) + half


def test_sizes_that_come_in_multiples_stay_symbolic():
    module = Pyramid().eval()
    dims = {"x": {0: "batch", 2: "height", 3: "width"}}
    program = capture(module, {"x": torch.randn(2, 3, 16, 16)}, source="pyramid", dynamic=dims)
    assert program.inputs[0].shape == (BATCH, 3, Dimension("height", 4, None, 4), Dimension("width", 4, None, 4))
    x = torch.randn(1, 3, 4, 36)
    torch.testing.assert_close(program.run(x)[0], module(x))
    program.export()


def test_an_example_of_size_one_is_made_larger():
    program = capture(Small(), {"x": torch.randn(1, 4)}, source="small")
    assert program.inputs[0].shape == (BATCH, 4)
    assert program.example_inputs[0].shape == (2, 4)


def test_a_model_that_takes_positional_tensors():
    class Sum(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0] + tensors[1]

    program = capture(Sum(), {"a": torch.ones(2), "b": torch.ones(2)}, source="sum")
    assert [spec.name for spec in program.inputs] == ["a", "b"]


def test_a_tensor_made_in_the_code_is_a_constant():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([1.0, 2.0, 3.0])

    program = capture(Constant(), {"x": torch.zeros(2, 3)}, source="constant")
    assert program.run(torch.zeros(5, 3))[0][4].tolist() == [1.0, 2.0, 3.0]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Counting(nn.Module):
    """Keeps a count that no tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.count = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        return x + next(self.count)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_random_numbers_are_drawn_when_the_program_runs():
    program = capture(Random(), {"x": torch.ones(2, 4)}, source="random")
    first, second = program.run(torch.zeros(2, 4)), program.run(torch.zeros(2, 4))
    assert not torch.equal(first[0], second[0])


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "text"


@pytest.mark.parametrize(
    ("module", "inputs", "problem"),
    [
        (Small(), {"x": [1.0]}, "example input 'x' is list, not a tensor"),
        (Small(), {"x y": torch.ones(2, 4)}, "input name 'x y' is not an identifier"),
        (Small(), {"x": torch.ones(2, 3, 5)}, r"the model fails on its example inputs \(x float32\[2, 3, 5\]\): "),
        (Small(), {"x": torch.ones(2, 4), "y": torch.ones(2)}, "the model fails on its example inputs"),
        (Nothing(), {"x": torch.ones(2, 4)}, "the model returns no tensor"),
        (Branches(), {"x": torch.ones(2, 4)}, "Could not guard on data-dependent expression"),
        (Counting(), {"x": torch.ones(2, 4)}, "the captured graph differs from the model: output 0 has other values"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_captured(module: nn.Module, inputs: dict[str, Tensor], problem: str):
    with pytest.raises(CompilerError, match=problem) as caught:
        capture(module, inputs, source="it")
    assert caught.value.doing == "capturing it"
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dynamic", "problem"),
    [
        ({"y": {0: "batch"}}, "dynamic dims for 'y', which is no input"),
        ({"x": {2: "batch"}}, "input 'x' has no dim 2"),
        ({"x": {0: "n", 1: "n"}}, "example inputs give dim 'n' the sizes 2, 4"),
    ],
)
def test_dims_that_do_not_fit_the_inputs(dynamic: dict[str, dict[int, str]], problem: str):
    with pytest.raises(CompilerError, match=problem):
        capture(Small(), {"x": torch.ones(2, 4)}, source="it", dynamic=dynamic)
