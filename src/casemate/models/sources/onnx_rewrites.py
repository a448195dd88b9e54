"""Parts of an ONNX graph that onnx2torch cannot convert, written as equal ones that it can."""

from collections.abc import Iterator, Sequence
from typing import Any

_PADDED = ("Conv", "MaxPool", "AveragePool")


def remove_copies(program: Any) -> None:
    """Let every node take a weight itself where it takes a copy by an Identity node, in place.

    PyTorch's exporter writes weights that are equal once, with such copies for all other uses.
    """
    weights, nodes = {each.name for each in program.graph.initializer}, program.graph.node
    results = {each.name for each in program.graph.output}
    origin: dict[str, Any] = {}
    for node in list(nodes):
        if node.op_type == "Identity" and node.input[0] in weights | origin.keys() and node.output[0] not in results:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
            nodes.remove(node)
    for node in nodes:
        inputs = [origin.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)


def write_out_padding(program: Any, onnx: Any) -> None:
    """Replace the attribute `auto_pad` of convolutions and poolings by the same padding in numbers, in place.

    A node with a stride whose input has no fixed size, on which its padding depends, stays as it is.
    """
    nodes = [node for node in program.graph.node if node.op_type in _PADDED and _mode(node).startswith("SAME")]
    if not nodes:
        return
    graph = onnx.shape_inference.infer_shapes(program).graph
    shapes = {each.name: each.type.tensor_type.shape.dim for each in (*graph.input, *graph.value_info)}
    weights = {each.name: list(each.dims) for each in program.graph.initializer}
    for node in nodes:
        kernel = _numbers(node, "kernel_shape") or weights.get(node.input[1], [])[2:]
        found = [dim.dim_value for dim in shapes.get(node.input[0], ())[2:]] or [0] * len(kernel)
        strides, dilations = (_numbers(node, name) or [1] * len(kernel) for name in ("strides", "dilations"))
        if not kernel or any(not size and stride > 1 for size, stride in zip(found, strides, strict=True)):
            continue
        totals = list(_totals(found, kernel, strides, dilations))
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = [*small, *large] if _mode(node) == "SAME_UPPER" else [*large, *small]
        kept = [each for each in node.attribute if each.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])


def _totals(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Iterator[int]:
    """The pixels to add along each axis, so that the output has 1 / stride of its pixels, rounded up."""
    for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = dilation * (length - 1)
        yield reach if stride == 1 else max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)


def _mode(node: Any) -> str:
    return next((each.s.decode() for each in node.attribute if each.name == "auto_pad"), "")


def _numbers(node: Any, name: str) -> list[int]:
    return next((list(each.ints) for each in node.attribute if each.name == name), [])
