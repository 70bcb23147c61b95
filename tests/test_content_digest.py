"""Digests change with what they name, and with nothing else."""

from __future__ import annotations

import torch
import zoo

from compiler.content_digest import batches_digest, program_digest, tensor_digest, text_digest


def test_programs_are_known_by_graph_and_weights() -> None:
    program = zoo.program("llama")
    first = program_digest(program)
    assert program_digest(program.copy()) == first
    name, weight = next(iter(program.weights().items()))
    program.set_weight(name, weight + 1)
    assert program_digest(program) != first


def test_tensors_are_known_by_dtype_shape_and_bytes() -> None:
    x = torch.arange(6, dtype=torch.float32)
    others = [x.view(2, 3), x.double(), x.flip(0), x[:0]]
    assert len({tensor_digest(one) for one in (x, *others)}) == 5
    assert tensor_digest(x.view(2, 3).T) == tensor_digest(x.view(2, 3).T.contiguous())
    assert tensor_digest(x.bfloat16()) == tensor_digest(x.bfloat16().clone())


def test_borders_between_texts_and_batches_count() -> None:
    assert text_digest("ab", "c") != text_digest("a", "bc")
    x = torch.ones(2)
    assert batches_digest([(x,), (x,)]) == batches_digest([(x, x)])
    assert batches_digest([(x,)]) != batches_digest([(x,), (x,)])
