"""Control flow: If, Loop, Scan and SequenceMap.

What is known while reading is decided then: the branch of an If, the steps of a Loop. The rest becomes torch's `cond`
and `while_loop`, whose graphs take everything that they read from around them as operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.while_loop import while_loop_op

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.closure import Closure, unaliased
from compiler.frontends.onnx_model.known import Known, is_symbolic
from compiler.frontends.onnx_model.node_context import NodeContext, ValueNeededError
from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.frontends.onnx_model.values import structure, tensors_in, with_tensors
from compiler.frontends.traced_module import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_WRITTEN_OUT = 10_000
"""Operators in all the steps of loops that are run, or written out, one after the other."""


class NotUnrolledError(Exception):
    """The steps of a loop cannot be written out; the message says why."""


@operator("If")
def if_(condition: Value, *, then_branch: ir.Graph, else_branch: ir.Graph, node: NodeContext) -> Any:
    taken = _truth(condition, node)
    if taken is None:
        return _chosen_at_run_time(condition, then_branch, else_branch, node)
    branch, other = (then_branch, else_branch) if taken else (else_branch, then_branch)
    try:
        return tuple(node.run_subgraph(branch, []))
    except CompilerError as error:
        if not isinstance(condition, Tensor) or not _fails_at_these_sizes(error):
            raise
        outputs = [_as_tensors(one, node) for one in node.run_subgraph(other, [])]
        return tuple(with_tensors(outputs, iter(_not_a_number(list(tensors_in(outputs))))))


def _truth(condition: Any, node: NodeContext) -> bool | None:
    """Whether a condition holds; None where only running the model tells.

    One on symbolic sizes is decided as for the example sizes, which tracing then holds the sizes to.
    """
    if isinstance(condition, Tensor):
        return None if torch.compiler.is_compiling() else bool(condition)
    item = condition.item()
    taken = bool(item)
    if is_symbolic(item):
        kept = "holds" if taken else "does not hold"
        node.module.notes.add(f"{node.label}: its condition on sizes {kept} for the sizes served")
    return taken


def _chosen_at_run_time(condition: Tensor, then_branch: ir.Graph, else_branch: ir.Graph, node: NodeContext) -> Any:
    closure = Closure(node, (then_branch, else_branch))
    results: list[list[Any]] = []
    failed: list[ir.Graph] = []

    def traced(branch: ir.Graph, other: ir.Graph) -> Callable[..., tuple[Tensor, ...]]:
        def run(*operands: Tensor) -> tuple[Tensor, ...]:
            try:
                outputs = closure.run(other if branch in failed else branch, (), operands)
            except CompilerError as error:
                if _fails_at_these_sizes(error):
                    failed.append(branch)
                raise
            outputs = [_as_tensors(one, node) for one in outputs]
            results.append(outputs)
            if structure(outputs) != structure(results[0]):
                raise ValueNeededError.of(node, 0, "its branches give different kinds of values, and the condition")
            tensors = list(tensors_in(outputs))
            return _not_a_number(tensors) if branch in failed else unaliased(tensors, operands)

        return run

    branches = traced(then_branch, else_branch), traced(else_branch, then_branch)
    while True:
        try:
            chosen = cond_op(condition.reshape(()), *branches, closure.operands)
            break
        except CompilerError:
            if len(failed) != 1 or results[1:]:
                raise
            results.clear()
            name = "then" if failed == [then_branch] else "else"
            node.module.notes.add(f"{node.label}: its {name} branch fails at these input sizes, and gives nan")
        except Exception as error:
            hint = "Both branches of an If give tensors of the same dtype and rank."
            raise node.refuse(f"its branches cannot be merged ({first_line(error)})", hint) from error
    return tuple(with_tensors(results[0], iter(chosen)))


def _fails_at_these_sizes(error: CompilerError) -> bool:
    """Whether an operator failed, as it would when the model runs; not whether it is a form that is not read."""
    return error.__cause__ is not None and not isinstance(error, ValueNeededError)


def _not_a_number(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a branch gives that fails whenever it is taken: nan, which no one takes for a result."""
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise ValueError("a branch that fails at these input sizes gives integers, which cannot be nan")
    return tuple(torch.full(tensor.shape, torch.nan, dtype=tensor.dtype) for tensor in tensors)


def _as_tensors(value: Any, node: NodeContext) -> Any:
    """A value with its known numbers as tensors."""
    if isinstance(value, list):
        return [_as_tensors(item, node) for item in value]
    return node.tensor(value) if isinstance(value, Known) else value


@operator("Loop")
def loop(
    trip_count: Value, condition: Value = None, *carried: Value, body: ir.Graph, node: NodeContext
) -> tuple[Any, ...]:
    try:
        return _written_out(trip_count, condition, carried, body, node)
    except NotUnrolledError as error:
        if not torch.compiler.is_compiling():
            raise node.refuse(str(error), "Is its trip count what was meant?") from error
        return _while_loop(trip_count, condition, carried, body, node, str(error))


def _written_out(
    trip_count: Any, condition: Any, carried: Sequence[Any], body: ir.Graph, node: NodeContext
) -> tuple[Any, ...]:
    """The loop step by step. Raises NotUnrolledError where only running the model tells how many steps there are."""
    count = _steps(trip_count)
    values, kept = list(carried), condition
    collected: list[list[Any]] = [[] for _ in body.outputs[1 + len(carried) :]]
    step = 0
    counted = _goes_on(kept) and _runs_to_the_end(body)
    if counted:
        _count_operators(body, node, LARGEST_WRITTEN_OUT if count is None else max(count, 0))
    while _goes_on(kept) and (count is None or step < count):
        if not counted:
            _count_operators(body, node)
        given = [Known.of(step), Known.of(True, torch.bool) if kept is None else kept, *values]
        kept, *results = node.run_subgraph(body, given)
        values = results[: len(carried)]
        for listed, one in zip(collected, results[len(carried) :], strict=True):
            listed.append(one)
        step += 1
    scanned = [_stacked(listed, body.outputs[1 + len(carried) + index], node) for index, listed in enumerate(collected)]
    return (*values, *scanned)


def _steps(trip_count: Any) -> int | None:
    """How many steps there are at most; None for no limit."""
    if trip_count is None:
        return None
    if isinstance(trip_count, Tensor):
        if torch.compiler.is_compiling():
            raise NotUnrolledError("how often it runs is known only when the model runs")
        return int(trip_count)
    count = trip_count.item()
    if is_symbolic(count) and torch.compiler.is_compiling():
        raise NotUnrolledError("how often it runs depends on a dynamic dim")
    return int(count)


def _goes_on(kept: Any) -> bool:
    if kept is None:
        return True
    if isinstance(kept, Tensor) and torch.compiler.is_compiling():
        raise NotUnrolledError("its condition is known only when the model runs")
    return bool(kept) if isinstance(kept, Tensor) else bool(kept.item())


def _runs_to_the_end(body: ir.Graph) -> bool:
    """Whether the body hands its condition on as it is."""
    kept, producer = body.outputs[0], body.outputs[0].producer()
    if producer is not None and producer.op_type == "Identity":
        kept = producer.inputs[0]
    return kept is body.inputs[1]


def _count_operators(body: ir.Graph, node: NodeContext, steps: int = 1) -> None:
    """Count more steps of a loop. Raises NotUnrolledError past the limit."""
    module = node.module
    module.operators_in_loops += (len(body) + 1) * steps
    if module.operators_in_loops > LARGEST_WRITTEN_OUT:
        module.operators_in_loops = 0  # another way may be found
        raise NotUnrolledError(f"with it the model runs more than {LARGEST_WRITTEN_OUT:,} operators in loops")


def _stacked(listed: Sequence[Any], output: ir.Value, node: NodeContext) -> Tensor:
    """The values of all steps along a new first dim; where there were none, as the model states their shape."""
    if listed:
        return torch.stack([node.tensor(one) for one in listed])
    from compiler.frontends.onnx_model.element_types import carrier

    if output.dtype is None or output.shape is None or not all(isinstance(size, int) for size in output.shape):
        raise node.refuse(f"there is no step to tell the shape of {output.name!r}", "State it in the model.")
    return torch.empty([0, *map(int, output.shape)], dtype=carrier(output.dtype))


def _while_loop(
    trip_count: Any, condition: Any, carried: Sequence[Any], body: ir.Graph, node: NodeContext, why: str
) -> tuple[Any, ...]:
    """The loop as torch's own, which carries tensors of fixed shapes."""
    deciding = 0 if isinstance(trip_count, Tensor) else 1
    if len(body.outputs) > 1 + len(carried):
        raise _needed(node, deciding, condition, trip_count, why, "it collects a value from every step")
    if any(not isinstance(one, (Tensor, Known)) for one in carried):
        raise _needed(node, deciding, condition, trip_count, why, "it carries a sequence")
    closure = Closure(node, (body,))
    limit = () if trip_count is None else (node.tensor(trip_count).reshape(()).to(torch.int64),)
    start = torch.zeros((), dtype=torch.int64)
    kept = torch.ones((), dtype=torch.bool) if condition is None else node.tensor(condition).reshape(())
    values = [node.tensor(one) for one in carried]
    count = len(values)

    def goes_on(step: Tensor, kept: Tensor, *rest: Tensor) -> Tensor:
        return kept & (step < rest[count]) if limit else kept.clone()

    def next_step(step: Tensor, kept: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        kept_now, *results = closure.run(body, [step, kept, *rest[:count]], rest[count + len(limit) :])
        tensors = [node.tensor(kept_now).reshape(()), *(node.tensor(one) for one in results)]
        return unaliased([step + 1, *tensors], (step, kept, *rest))

    initial: Any = unaliased([start, kept, *values], (*limit, *closure.operands))
    try:
        _, _, *results = while_loop_op(goes_on, next_step, initial, (*limit, *closure.operands))
    except ValueNeededError:
        raise
    except CompilerError as error:
        raise _needed(node, deciding, condition, trip_count, why, error.problem) from error
    except Exception as error:
        raise _needed(node, deciding, condition, trip_count, why, first_line(error)) from error
    return tuple(results)


def _needed(node: NodeContext, index: int, condition: Any, trip_count: Any, why: str, obstacle: str) -> CompilerError:
    """The error for a loop that can neither be written out nor run as torch's own."""
    if isinstance((trip_count, condition)[index], Tensor):
        return ValueNeededError.of(node, index, f"{why}, and as it is torch cannot run it ({obstacle}); what decides")
    hint = "Loops run with a known trip count, or with values that keep their shapes and no results of every step."
    return node.refuse(f"{why}, and as it is torch cannot run it ({obstacle})", hint)


@operator("Scan", since=9)
def scan(
    *inputs: Value,
    body: ir.Graph,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
    node: NodeContext,
) -> tuple[Any, ...]:
    states = list(inputs[: len(inputs) - num_scan_inputs])
    scanned = [node.tensor(one) for one in inputs[len(states) :]]
    axes = scan_input_axes or [0] * num_scan_inputs
    backwards = scan_input_directions or [0] * num_scan_inputs
    length = int(scanned[0].shape[axes[0]])  # a symbolic length becomes fixed, which the capture notes
    collected: list[list[Tensor]] = [[] for _ in body.outputs[len(states) :]]
    for step in range(length):
        _count_or_refuse(body, node)
        items = [
            one.select(axis, length - 1 - step if back else step)
            for one, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        results = node.run_subgraph(body, [*states, *items])
        states = results[: len(states)]
        for listed, result in zip(collected, results[len(states) :], strict=True):
            listed.append(node.tensor(result))
    output_axes = scan_output_axes or [0] * len(collected)
    output_backwards = scan_output_directions or [0] * len(collected)
    stacked = [
        torch.stack(listed[::-1] if back else listed, axis)
        for listed, axis, back in zip(collected, output_axes, output_backwards, strict=True)
    ]
    return (*states, *stacked)


@operator("Scan")
def batched_scan(
    *inputs: Value,
    body: ir.Graph,
    num_scan_inputs: int,
    directions: list[int] | None = None,
    node: NodeContext,
) -> tuple[Any, ...]:
    """Scan as it was in opset 8: everything has a batch dim first, over which it runs entry by entry."""
    if inputs[0] is not None:
        raise node.refuse("sequences of different lengths (sequence_lens)", "Export it with opset 9 or later.")
    tensors = [node.tensor(one) for one in inputs[1:]]
    entries = [
        scan(*(one.select(0, entry) for one in tensors), body=body, num_scan_inputs=num_scan_inputs,
             scan_input_directions=directions, node=node)
        for entry in range(int(tensors[0].shape[0]))
    ]  # fmt: skip
    return tuple(torch.stack([node.tensor(one) for one in results]) for results in zip(*entries, strict=True))


@operator("SequenceMap")
def sequence_map(first: Value, *others: Value, body: ir.Graph, node: NodeContext) -> tuple[Any, ...]:
    """Runs the body on every item of a sequence, with the items beside it of other sequences; tensors stay."""
    steps = []
    for index, item in enumerate(first):
        _count_or_refuse(body, node)
        steps.append(node.run_subgraph(body, [item, *(o[index] if isinstance(o, list) else o for o in others)]))
    return tuple([step[output] for step in steps] for output in range(len(body.outputs)))


def _count_or_refuse(body: ir.Graph, node: NodeContext) -> None:
    try:
        _count_operators(body, node)
    except NotUnrolledError as error:
        raise node.refuse(str(error), "Export the model with an operator in its place, such as LSTM.") from error
