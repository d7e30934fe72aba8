"""Calibration on samples that were not trained on: biases of the family logits that minimise their cross-entropy (vector
scaling without the scale, after Guo et al., 2017), and the factor that brings the predicted errors to the true ones."""

import glob

import torch
from torch.nn import functional as F

from .data import read_hdf5
from .evaluate import predict


def calibrate(model, pattern):
    """Adds the biases to the network's own and returns the factor of the errors."""
    parts = [read_hdf5(path, model.shape.every) for path in sorted(glob.glob(pattern))]
    if not parts:
        raise SystemExit(f"{pattern}: no such file; make one with fwi synth and a seed of its own")
    outputs = [predict(model, part.tokens) for part in parts]
    velocity, error, logits = (torch.cat(column) for column in zip(*outputs))
    truth, family = torch.cat([p.velocity for p in parts]), torch.cat([p.family for p in parts])
    bias = torch.zeros(logits.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=100)

    def closure():
        optimiser.zero_grad()
        loss = F.cross_entropy(logits + bias, family)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        model.family.bias += bias - bias.mean()
    right = ((logits + bias).argmax(1) == family).float().mean().item()
    factor = ((velocity - truth).abs().mean() / error.mean()).item()
    before = (logits.argmax(1) == family).float().mean().item()
    print(f"calibrated on {len(family)} samples: families told right {100 * before:.1f}% before, {100 * right:.1f}% now; errors x {factor:.2f}")
    return factor
