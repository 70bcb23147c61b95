"""The plugin's own tests, run against the installed distribution."""

import torch
from regraft_outside.drop_multiply_by_one import DropMultiplyByOne
from regraft_outside.scaled_frontend import ScaledFrontend
from regraft_outside.sign_weights import OutsideSigns

from compiler.evidence.data import load_dataset
from compiler.frontends import LoadOptions
from compiler.frontends.torch_export import capture
from compiler.grafting import apply_graft
from compiler.passes.quantize_weights import QuantizeWeights
from compiler.pipeline import Pipeline
from compiler.registry import Registry
from compiler.rewriting import PassContext
from compiler.target import Target


def test_the_product_goes_and_the_numbers_stay():
    program = ScaledFrontend().load("scaled:4", LoadOptions())
    context = PassContext(Target("cpu"), load_dataset(None, program))
    once, _, records = Pipeline([DropMultiplyByOne()], context).run(program)
    twice, _, again = Pipeline([DropMultiplyByOne()], context).run(once)
    assert (len(records[0].result.changed), again[0].result.changed) == (1, ())
    assert "mul" in program.text()
    assert "mul" not in once.text()
    assert once.text() == twice.text()
    x = torch.randn(3, 4)
    torch.testing.assert_close(once.run(x), program.run(x), rtol=0, atol=0)


def test_other_factors_stay():
    program = ScaledFrontend().load("scaled:4", LoadOptions())
    product = next(node for node in program.graph.nodes if "mul" in node.name)
    product.args = (product.args[0], 2)
    assert DropMultiplyByOne().rewrite(program, None).changed == ()


def test_a_format_in_one_file_is_taken_by_quantize_weights():
    torch.manual_seed(0)
    program = capture(torch.nn.Sequential(torch.nn.Linear(64, 48)).eval(), {"input": torch.randn(3, 64)}, source="test")
    context = PassContext(Target("cpu"), load_dataset(None, program), formats={OutsideSigns.name: OutsideSigns})
    after, result = apply_graft(QuantizeWeights(format="outside-signs", rounding="nearest"), program, (), context)
    assert result.changed == ("0",)
    weight = program.weight("0.weight")
    expected = weight.sign() * weight.abs().mean(1, keepdim=True)
    x = torch.randn(5, 64)
    torch.testing.assert_close(after.run(x)[0], x @ expected.T + program.weight("0.bias"), rtol=1e-2, atol=1e-2)
    assert any(one.shape == (48, 1, 8) for one in after.weights().values())


def test_the_entry_point_is_found():
    registry = Registry()
    assert registry.warnings == []
    assert "drop-multiply-by-one" in registry.passes()
    assert {"outside-text"} <= set(registry.backends())
    assert {"scaled"} <= set(registry.frontends())
    assert "last-token" in registry.mixers()
    assert "outside-signs" in registry.formats()
