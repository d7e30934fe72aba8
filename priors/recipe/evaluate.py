"""Mean absolute error by family, of a network on samples that it has not seen."""

import torch

from .model import FAMILIES


@torch.no_grad()
def predict(model, tokens, batch=50):
    """Maps (n, 70, 70), predicted errors and logits of tokens (n, 70, 5 or 6, T), on the CPU wherever the network is."""
    device = next(model.parameters()).device
    model.eval()
    parts = []
    for i in range(0, len(tokens), batch):
        outputs = model.body(*model.inputs(tokens[i : i + batch, :, :5].to(device).float()))
        parts.append([outputs[0].squeeze(1).cpu(), outputs[1].squeeze(1).cpu(), outputs[2].cpu()])
    model.train()
    return [torch.cat(column) for column in zip(*parts)]


def evaluate(model, held_out):
    """By family: maps, mean absolute error, mean predicted error (both m/s), share of maps whose family is told right."""
    rows = {}
    for samples in held_out:
        velocity, error, logits = predict(model, samples.tokens)
        mae = (velocity - samples.velocity).abs().mean((1, 2))
        right = (logits.argmax(1) == samples.family).float()
        for index, name in enumerate(FAMILIES):
            here = samples.family == index
            if here.any():
                rows.setdefault(name, []).append(torch.stack([mae[here], error[here].mean((1, 2)), right[here]], dim=1))
    return {name: (sum(map(len, parts)), *torch.cat(parts).mean(0).tolist()) for name, parts in rows.items()}


def table(rows):
    lines = ["family         maps     MAE  predicted  family told right"]
    lines += [f"{name:13s} {n:5d} {mae:7.1f} {error:10.1f} {100 * right:17.0f}%" for name, (n, mae, error, right) in rows.items()]
    mean = sum(r[1] for r in rows.values()) / max(len(rows), 1)
    return "\n".join([*lines, f"{'mean':13s} {'':5s} {mean:7.1f}"])
