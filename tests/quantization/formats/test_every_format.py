"""What holds for every format that ships: bytes, round trips, the definition, kernels, errors that are made up for."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compiler.calibration import Gathering
from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.block_rounding import compensated_blocks, nearest_blocks, padded_blocks
from compiler.quantization.formats import WeightFormat
from compiler.quantization.formatted_layers import FormattedLinear, FormattedTable
from compiler.quantization.modules import PackedBlocks
from compiler.registry import Registry

FORMATS = Registry(entry_points=False).formats()
BITS = {
    "int8": 8.0, "int4": 4.0, "int3": 3.0, "int2": 2.0, "ternary": 2.0, "ternary-base3": 26 * 8 / 128,
    "fp8-e4m3": 8.0, "fp8-e5m2": 8.0, "mxint8": 8.0, "mxfp4": 4.0, "nf4": 4.0,
}  # fmt: skip
"""Of a code, scales aside."""
ROWS, WIDTH = 6, 256


def weight(rows: int = ROWS, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3)) * 0.05


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> WeightFormat:
    return FORMATS[request.param].for_width(WIDTH)


def test_the_formats_that_issue_six_asks_for_are_there() -> None:
    assert set(BITS) <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_name_file_and_class_are_one(name: str) -> None:
    cls = FORMATS[name]
    assert cls.__name__ == "".join(part.capitalize() for part in name.split("-"))
    assert Path(inspect.getfile(cls)).stem == name.replace("-", "_")
    assert cls.gentler is None or cls.gentler in FORMATS
    assert "Source:" in (inspect.getmodule(cls).__doc__ or "")
    assert "Kernel:" in (inspect.getmodule(cls).__doc__ or "")


def test_codes_take_as_many_bits_as_they_should(form: WeightFormat) -> None:
    packed = nearest_blocks(weight(), form)
    assert packed.weight.numel() * packed.weight.element_size() * 8 == BITS[form.name] * ROWS * WIDTH
    assert packed.scales.shape == (ROWS, WIDTH // form.block_size)


def test_codes_come_out_of_their_bytes_as_they_went_in(form: WeightFormat) -> None:
    """Every code of the grid, and random ones."""
    blocks = padded_blocks(weight(), form)
    grid = form.grid(blocks)
    codes = torch.randint(grid.low, grid.high + 1, blocks.shape, generator=torch.Generator().manual_seed(0)).float()
    every = torch.arange(grid.low, grid.high + 1).float()[: codes.numel()]
    codes.view(-1)[: len(every)] = every
    found = form.weight(form.packed(codes, grid), WIDTH)
    assert torch.equal(found, grid.values(codes).flatten(1))


def test_a_row_that_fills_no_whole_block(form: WeightFormat) -> None:
    ragged = weight(5, 72)
    narrow = type(form).for_width(72)
    found = narrow.weight(nearest_blocks(ragged, narrow), 72)
    assert found.shape == ragged.shape
    assert (found - ragged).norm() < 0.6 * ragged.norm()


def test_rows_of_zeros_stay_zeros(form: WeightFormat) -> None:
    assert not form.weight(nearest_blocks(torch.zeros(2, WIDTH), form), WIDTH).any()


def test_what_stands_on_the_grid_stays(form: WeightFormat) -> None:
    """The nearest codes of values that codes stand for are those codes' values."""
    exact = type(form).for_width(WIDTH, clip="none")
    once = exact.weight(nearest_blocks(weight(), exact), WIDTH)
    if form.name.startswith("ternary"):
        return  # the mean magnitude of three values is another one
    again = exact.weight(nearest_blocks(once, exact), WIDTH)
    torch.testing.assert_close(again, once, rtol=1e-3, atol=1e-6)


def test_a_product_is_that_of_the_definition(form: WeightFormat) -> None:
    packed, bias = nearest_blocks(weight(), form), torch.randn(ROWS)
    x = torch.randn(3, WIDTH)
    expected = x @ form.weight(packed, WIDTH).T + bias
    torch.testing.assert_close(form.product(x, packed, bias), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_a_table(form: WeightFormat) -> None:
    packed = nearest_blocks(weight(50), form)
    indices = torch.tensor([[3, 49], [0, 3]])
    rows = FormattedTable(form, packed, WIDTH, torch.float32)(indices)
    assert torch.equal(rows, form.weight(packed, WIDTH)[indices])


def test_rounding_that_makes_up_for_its_errors_is_nearer_on_the_outputs(form: WeightFormat) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 24, generator=generator) @ torch.randn(24, WIDTH, generator=generator)
    x += 0.1 * torch.randn(600, WIDTH, generator=generator)
    gathering = Gathering()
    gathering.add(x, None)
    dense = weight(40)
    errors = []
    for packed in (compensated_blocks(dense, form, gathering.finished()), nearest_blocks(dense, form)):
        errors.append(float(((form.weight(packed, WIDTH) - dense) @ x.T).square().mean()))
    assert errors[0] < 0.75 * errors[1]


def test_scales_learn_and_settle(form: WeightFormat) -> None:
    """While they learn, a layer gives what it gave; gradients reach the gains; then they are part of the layer."""
    layer = FormattedLinear(form, nearest_blocks(weight(), form), torch.randn(ROWS))
    x = torch.randn(9, WIDTH)
    before = layer(x)
    layer.learn_scales()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)
    assert layer.gains is not None
    (layer(x) * 1.1 - before).square().sum().backward()
    assert layer.gains.grad is not None
    assert layer.gains.grad.abs().sum() > 0
    with torch.no_grad():
        layer.gains.add_(0.125 * torch.rand(layer.gains.shape))
    learned = layer(x).detach()
    layer.settle()
    assert not list(layer.parameters())
    torch.testing.assert_close(layer(x), learned, rtol=2e-3, atol=2e-3)
    layer.learn_scales()
    torch.testing.assert_close(layer(x), learned, rtol=2e-3, atol=2e-3)


def test_settings_that_a_format_has_not_are_refused(form: WeightFormat) -> None:
    with pytest.raises(ValueError, match="block"):
        type(form).check(36, None)
    if not form.takes_zero_points:
        with pytest.raises(ValueError, match="no zero points"):
            type(form).check(None, False)


def kernel_weight(form: WeightFormat, packed: PackedBlocks) -> Tensor:
    """The weight that the format hands to the kernel, read off a product with the identity."""
    return form.product(torch.eye(WIDTH), packed, None).T


def test_the_kernel_gets_the_very_numbers(form: WeightFormat) -> None:
    if form.operator is None:
        return
    packed = nearest_blocks(weight(), form)
    assert torch.equal(kernel_weight(form, packed), form.weight(packed, WIDTH))
    if packed.weight.dtype == torch.uint8 and form.name in ("int8", "int4", "int2", "ternary"):
        held = dequantized_weight(packed.weight, packed.scales, packed.zero_points, packed.bits, WIDTH)
        assert torch.equal(held, form.weight(packed, WIDTH))
