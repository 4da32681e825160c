"""A network to read with: the batch norm after a convolution folded into its weights.

In evaluation a batch norm is one factor and one offset a channel. Applied to the weights, it costs nothing; applied to
the activations, it reads and writes all of them once more.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Network = TypeVar("Network", bound=nn.Module)
TOLERANCE = 0.05
"""Of the largest value: far more than folding rounds (with TF32, some thousandths), far less than it can go wrong."""


@torch.no_grad()
def fold_batch_norm(network: Network, example: Tensor) -> Network:
    """Fold every batch norm that takes a convolution's output.

    Which takes which is seen in a pass, whatever the network's modules are called.

    Args:
        network: In eval mode; returns tensors.
        example: An input, of several different pixels.

    Returns:
        A copy that says the same but for rounding. The network itself where there is none, because a convolution's
        output is taken elsewhere too.
    """
    folded = copy.deepcopy(network)
    for convolution, norm in _pairs(folded, example):
        assert norm.running_mean is not None and norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _replace(folded, norm, getattr(norm, "act", nn.Identity()))  # timm's batch norms hold the activation
    same = all(
        torch.allclose(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
        for found, expected in zip(folded(example), network(example), strict=True)
    )
    return folded if same else network


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each batch norm with the convolution whose output it takes."""
    outputs: list[tuple[Tensor, nn.Conv2d]] = []  # held on to, so that no other tensor takes their place
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note_output(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs.append((output, module))

    def note_pair(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        pairs.extend((convolution, module) for output, convolution in outputs if output is inputs[0])

    hooks = [m.register_forward_hook(note_output) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(note_pair) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network(example)
    for hook in hooks:
        hook.remove()
    return pairs


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module where another one is."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
