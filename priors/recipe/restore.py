"""Weights of an exported prior back into a network, to train it on: `start = "columns/model.onnx"` in a configuration.

`recipe.export` names weights as the network does, but for the matrices of its linear layers, which the exporter
transposes and numbers in the order of their use.
"""

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper


def weights_of(path, model):
    """The weights in an ONNX file of `recipe.export`, by the names that they have in `model`, f32."""
    named, matrices = {}, []
    for tensor in onnx.load(path).graph.initializer:
        name = tensor.name.removesuffix("_half")
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
        if name.startswith("prior."):
            named[name.removeprefix("prior.")] = value
        elif name.startswith("onnx::MatMul"):
            matrices.append(value)
    per_block = ("qkv", "out", "up", "down")
    depth, rest = divmod(len(matrices) - 2, len(per_block))
    if rest or not 0 <= depth <= len(model.blocks):
        raise SystemExit(f"{path}: holds {len(matrices)} matrices, which are not those of {len(model.blocks)} blocks or fewer")
    layers = ["embed", *(f"blocks.{i}.{layer}" for i in range(depth) for layer in per_block), "columns"]
    return named | {f"{layer}.weight": m.T.contiguous() for layer, m in zip(layers, matrices)}


def restore(model, path: Path):
    """Takes over the weights of an exported prior of the same shape, or of one with fewer blocks. Inputs that it did not
    have yet begin without weight, blocks as the identity, so that the network begins as the prior was."""
    saved, state = weights_of(path, model), model.state_dict()
    blocks = {name.split(".")[1] for name in saved if name.startswith("blocks.")}
    features = saved["mean"].shape[-1]
    # those of new inputs stay as they are, but weigh nothing
    state["embed.weight"][:, features:] = 0.0
    for name, own in state.items():
        if name.startswith("blocks.") and name.split(".")[1] not in blocks:
            continue
        part = own[..., :features] if name in ("embed.weight", "mean", "scale") else own
        if name not in saved or saved[name].shape != part.shape:
            raise SystemExit(f"{path}: has no {name} of shape {tuple(part.shape)}; start from a prior of the same shape")
        part.copy_(saved[name])
    model.load_state_dict(state)
