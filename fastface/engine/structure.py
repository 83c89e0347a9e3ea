"""Rewrites that are true of any module, found by what its ``forward`` does with its children.

A module's ``forward`` is traced by `torch.fx` one level deep, its children being leaves. Modules that cannot be traced
(control flow on tensors) stay as they are. Found are: a batch norm or an activation behind a convolution; a nearest
upsampling by whole numbers in front of one; convolutions of the same input that differ in their outputs alone; pooling
of volumes that leaves their depth alone.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastface.engine.fold import fold_batch_norm, folds
from fastface.engine.report import Step
from fastface.nn import ActivatedConv, SlicePool, UpsampledConv, merge_convs

__all__ = ["is_hooked", "rewrite_structure"]

_OVERWRITING = {"setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "__setitem__"}  # operators
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, ActivatedConv, UpsampledConv)  # nothing to find in them


def rewrite_structure(module: nn.Module) -> tuple[nn.Module, list[Step]]:
    """`module`, in evaluation mode, with what can be rewritten in it; a part whose ``forward`` changes is replaced."""
    shared = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    steps: list[Step] = []

    def visit(part: nn.Module, path: str) -> nn.Module:
        for name, child in list(part.named_children()):
            part._modules[name] = visit(child, f"{path}.{name}" if path else name)
        graph = None if isinstance(part, fx.GraphModule) else _trace(part)
        if graph is None:
            return part
        rewriter = _Rewriter(part, graph, path, shared)
        steps.extend(rewriter.run())
        return rewriter.result

    return visit(module, ""), steps


class _OneLevel(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module) -> fx.Graph | None:
    """What a module with children of its own does with them; None where that depends on values."""
    if not any(module.children()) or isinstance(module, _CONTAINERS) or _asks_for_types(module):
        return None
    try:
        return _OneLevel().trace(module)
    except Exception:  # tracing runs any code there is, and anything may come of it
        return None


def _asks_for_types(module: nn.Module) -> bool:
    """Whether ``forward`` asks what it was given: while it is traced that is no tensor, and it would go another way."""
    names = getattr(getattr(type(module).forward, "__code__", None), "co_names", ())
    return not {"isinstance", "is_tensor", "type"}.isdisjoint(names)


class _Rewriter:
    """One module and its graph; `result` is the module, or a traced form where what ``forward`` does has changed."""

    def __init__(self, module: nn.Module, graph: fx.Graph, path: str, shared: Counter[int]) -> None:
        self.module, self.graph, self.path = module, graph, path
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        # A child with hooks, called twice or from elsewhere as well, or whose parameters are read is left alone.
        self.own = {
            target
            for target, count in calls.items()
            if count == 1
            and target not in read
            and shared[id(child := module.get_submodule(target))] == 1
            and not is_hooked(child)
        }
        self.replaceable = not (_has_other_methods(module) or _has_options(module) or is_hooked(module))
        self.result = module

    def run(self) -> Iterator[Step]:
        yield from self._fold_batch_norms()
        yield from self._join_upsampling()
        yield from self._join_activations()
        if self.replaceable:
            yield from self._merge_siblings()
            yield from self._slice_pools()

    # What the graph is asked.

    def _child(self, node: Any) -> nn.Module | None:
        """The child that a node calls with one argument, if it is the module's alone."""
        if isinstance(node, fx.Node) and node.op == "call_module" and node.target in self.own:
            return self.module.get_submodule(str(node.target)) if len(node.args) == 1 and not node.kwargs else None
        return None

    def _before(self, node: fx.Node) -> Any:
        """The node whose value a node takes first, if nothing else takes it."""
        before = node.args[0] if node.args else None
        return before if isinstance(before, fx.Node) and len(before.users) == 1 else None

    def _is_overwritten(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether anything is written in place between two nodes, so that neither may take the other's turn."""
        node = first.next
        while node is not last:
            if _writes(self.module, node):
                return True
            node = node.next
        return False

    def _droppable(self, node: fx.Node) -> bool:
        return self.replaceable or self._child(node) is not None

    def _named(self, target: object) -> str:
        return f"{self.path}.{target}" if self.path else str(target)

    # What is done to it.

    def _drop(self, node: fx.Node) -> None:
        """Let a node's value be its argument's: a child of the module's own stays as an identity, where it was."""
        own = self._child(node) is not None
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.graph.erase_node(node)
        if own:
            self.module.set_submodule(str(node.target), nn.Identity())
        else:
            self._retrace()

    def _retrace(self) -> None:
        """What is left of the graph as a module, with all that others may look for in this one."""
        self.graph.lint()
        self.result = traced = fx.GraphModule(self.module, self.graph, type(self.module).__name__)
        held = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
        vars(traced).update({k: v for k, v in vars(self.module).items() if k in held or k not in vars(traced)})

    # The rewrites.

    def _fold_batch_norms(self) -> Iterator[Step]:
        for node in list(self.graph.nodes):
            before = self._before(node)
            norm, conv = self._child(node), self._child(before)
            if conv is not None and folds(conv, norm):
                self.module.set_submodule(before.target, fold_batch_norm(conv, norm))  # type: ignore[type-var, arg-type]
                self._drop(node)
                taken = self._named(before.target), self._named(node.target)
                yield Step("batch norm folded", taken, taken[:1])

    def _join_upsampling(self) -> Iterator[Step]:
        for node in list(self.graph.nodes):
            conv, before = self._child(node), self._before(node)
            scale = None if before is None else _scale(self.module, before, conv)
            if scale is None or not self._droppable(before) or self._is_overwritten(before, node):
                continue
            try:
                self.module.set_submodule(str(node.target), UpsampledConv(conv, scale))  # type: ignore[arg-type]
            except ValueError:  # it is not "same"
                continue
            self._drop(before)
            where = (self._named(node.target),)
            yield Step("upsampling joined with its convolution", where, where)

    def _join_activations(self) -> Iterator[Step]:
        for node in list(self.graph.nodes):
            activation, before = _activation(self.module, node), self._before(node)
            conv = self._child(before)
            fits = isinstance(conv, (nn.Conv2d, nn.Conv3d, UpsampledConv))
            if activation is not None and fits and self._droppable(node):
                self.module.set_submodule(before.target, ActivatedConv(conv, *activation))  # type: ignore[arg-type]
                self._drop(node)
                where = (self._named(before.target), f"{self.path}$")
                yield Step("activation behind its convolution", where, where)

    def _merge_siblings(self) -> Iterator[Step]:
        for node in list(self.graph.nodes):
            siblings = [user for user in node.users if isinstance(self._child(user), nn.Conv2d)]
            for group in _alike(siblings, lambda user: _kind(self._child(user))):
                if self._is_overwritten(group[0], group[-1]):
                    continue
                name = self._merge(node, group, [self._child(user) for user in group])
                yield Step(
                    "convolutions of one input merged", tuple(self._named(user.target) for user in group), (name,)
                )

    def _merge(self, source: fx.Node, group: list[fx.Node], convs: list[Any]) -> str:
        name = "_".join(str(user.target).replace(".", "_") for user in group)
        self.module.add_module(name, merge_convs(*convs))
        with self.graph.inserting_before(group[0]):
            merged = self.graph.call_module(name, (source,))
            sizes = [conv.out_channels for conv in convs]
            split = self.graph.call_function(torch.split, (merged, sizes), {"dim": -3})
            for index, user in enumerate(group):
                user.replace_all_uses_with(self.graph.call_function(operator.getitem, (split, index)))
        for user in group:
            self.graph.erase_node(user)
            parent, _, child = str(user.target).rpartition(".")
            del self.module.get_submodule(parent)._modules[child]
        self._retrace()
        return self._named(name)

    def _slice_pools(self) -> Iterator[Step]:
        for node in list(self.graph.nodes):
            size = _pooled(node)
            if size is not None:
                name = f"pool_{node.name}"
                self.module.add_module(name, SlicePool(size))
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.call_module(name, (node.args[0],)))
                self.graph.erase_node(node)
                self._retrace()
                yield Step("pooling slice by slice", (f"{self.path}$",), (f"{self.path}$", self._named(name)))


def _writes(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node may write over its argument, by the names of PyTorch's functions and their ``inplace``."""
    if node.op == "call_module":
        return any(getattr(part, "inplace", False) for part in module.get_submodule(str(node.target)).modules())
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _OVERWRITING or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _pooled(node: fx.Node) -> int | None:
    """The size of an average over depth 1 and as many rows as columns."""
    if node.op != "call_function" or node.target is not F.avg_pool3d or len(node.args) != 2 or node.kwargs:
        return None
    size = node.args[1]
    square = isinstance(size, tuple) and len(size) == 3 and size[0] == 1 and size[1] == size[2]
    return size[1] if square and isinstance(size[1], int) else None  # type: ignore[index]


def _activation(module: nn.Module, node: fx.Node) -> tuple[str, float] | None:
    """The activation that a node is, with its slope."""
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        slope = {nn.ReLU: 0.0, nn.LeakyReLU: getattr(child, "negative_slope", None)}.get(type(child))
    elif node.op in ("call_function", "call_method") and node.target in (F.relu, torch.relu, F.relu_, "relu", "relu_"):
        slope = 0.0
    elif node.op == "call_function" and node.target in (F.leaky_relu, F.leaky_relu_):
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    else:
        return None
    if not isinstance(slope, (int, float)):
        return None
    return ("leaky_relu", float(slope)) if slope else ("relu", 0.0)


def _scale(module: nn.Module, node: Any, conv: nn.Module | None) -> tuple[int, ...] | None:
    """By how much a node upsamples to the nearest, if it does so by whole numbers in front of that convolution."""
    if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
        return None
    if node.op == "call_function" and node.target is F.interpolate and len(node.args) == 1:
        factor, mode = node.kwargs.get("scale_factor"), node.kwargs.get("mode", "nearest")
    elif node.op == "call_module" and isinstance(upsample := module.get_submodule(str(node.target)), nn.Upsample):
        factor, mode = upsample.scale_factor, upsample.mode
    else:
        return None
    axes = len(conv.kernel_size)
    factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,) * axes
    whole = all(isinstance(f, (int, float)) and f >= 1 and f == int(f) for f in factors)
    if mode != "nearest" or not whole or len(factors) != axes:
        return None
    return tuple(int(f) for f in factors)


def _alike(nodes: list[fx.Node], kind: Callable[[fx.Node], Any]) -> list[list[fx.Node]]:
    groups: dict[Any, list[fx.Node]] = {}
    for node in nodes:
        groups.setdefault(kind(node), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _kind(conv: Any) -> tuple[Any, ...]:
    """What convolutions must have in common to be one; those that cannot be merged are each of their own kind."""
    mergeable = conv.groups == 1 and conv.bias is not None
    shape = (conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    return shape if mergeable else (id(conv),)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody watches what goes in or comes out."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _has_options(module: nn.Module) -> bool:
    """Whether ``forward`` may be called with more or less than its arguments: only one way was traced."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.default is not p.empty or p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters)


def _has_other_methods(module: nn.Module) -> bool:
    """Whether there is more to call than ``forward``, which a traced form would not have."""
    names = {name for kind in type(module).__mro__ if not kind.__module__.startswith("torch.nn") for name in vars(kind)}
    return any(hasattr(module, name) for name in ("__getitem__", "__iter__", "__len__")) or any(
        not name.startswith("_") and name != "forward" and callable(getattr(module, name, None))
        for name in names - set(dir(nn.Module))
    )
