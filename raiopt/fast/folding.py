"""Folds batch norm into the preceding convolution, because in eval mode both are linear."""

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_(net: nn.Module) -> tuple[int, str]:
    """Folds each `BatchNorm2d` into the `Conv2d` before it; returns how many, and why a module could not be traced.

    The network must be in eval mode (Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 3.2). torch.fx is
    only used to find the pairs: the code of forward passes is unchanged. If a module cannot be traced, its children are
    traced individually. A convolution shared with other modules is not detected: compare the results.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> fold_(net)
    (1, '')
    >>> net[1]
    Identity()
    """
    try:
        if any(_has_hooks(part) for part in net.modules()):
            raise TypeError("a module has hooks")
        graph = fx.Tracer().trace(net)
    except Exception as error:  # user code may raise anything when it is traced
        found = [fold_(child) for child in net.children()]
        return sum(count for count, _ in found), f"{type(net).__name__}: {first_line(error)}"
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    count = 0
    for node in nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = net.get_submodule(str(before.target)), net.get_submodule(str(node.target))
        once = calls[before.target] == calls[node.target] == 1
        if once and type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and not norm.training:
            mean, variance = norm.running_mean, norm.running_var
            if mean is None or variance is None:
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            parent, _, name = str(node.target).rpartition(".")
            setattr(net.get_submodule(parent), name, nn.Identity())
            count += 1
    return count, ""


def _has_hooks(part: nn.Module) -> bool:
    return any((part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks))


def first_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
