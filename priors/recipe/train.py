"""Trains a prior: `python -m recipe.train configs/bundled.toml`.

Weights and activations are bfloat16, the optimisers hold f32 copies. Matrices are trained by Muon (Jordan et al., 2024),
all else by AdamW. The loss is the mean absolute error of the map, with the Laplace likelihood of that error (which
trains the predicted error) and the cross-entropy of the family at small weights. A run that was stopped goes on from its
checkpoint when it is started again.
"""

import argparse
import copy
import math
import os
import time
import tomllib
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from .data import Pool, read_hdf5
from .evaluate import evaluate, table
from .model import Prior, Shape
from .restore import restore


REFRESH = 2.0
"""Seconds after which new files are looked for."""


class Master:
    """An f32 copy of a bfloat16 network, and the optimisers that move it."""

    def __init__(self, model, config):
        self.model = model
        self.copies = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        linear = lambda name: name.endswith(".weight") and name.split(".")[0] in ("embed", "blocks", "columns")
        matrices = [name for name, p in model.named_parameters() if linear(name) and p.ndim == 2]
        others = [n for n in self.copies if n not in matrices]
        pick = lambda names: [self.copies[n] for n in names]
        self.muon = torch.optim.Muon(
            pick(matrices), lr=config["muon_lr"], weight_decay=config["weight_decay"], adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(pick(others), lr=config["adam_lr"], betas=(0.9, 0.98), weight_decay=0.0)
        self.rates = [(self.muon, config["muon_lr"]), (self.adam, config["adam_lr"])]
        self.average = {n: p.clone() for n, p in self.copies.items()}

    def step(self, factor, decay):
        parameters = dict(self.model.named_parameters())
        for name, p in parameters.items():
            self.copies[name].grad = p.grad.float()
        torch.nn.utils.clip_grad_norm_(list(self.copies.values()), 1.0)
        for optimiser, rate in self.rates:
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(self.copies[name])
                p.grad = None
                self.average[name].lerp_(self.copies[name], 1.0 - decay)

    def averaged(self):
        """The network with the moving average of the weights, f32."""
        model = copy.deepcopy(self.model).float()
        model.load_state_dict({**model.state_dict(), **self.average})
        return model

    def state(self):
        return {"copies": self.copies, "average": self.average, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state):
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.copies[name].copy_(state["copies"][name])
                self.average[name].copy_(state["average"][name])
                p.copy_(self.copies[name])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def half(model):
    """Weights in bfloat16; what makes the inputs stays f32."""
    exact = dict(model.named_buffers())
    model.to(torch.bfloat16)
    for name, buffer in exact.items():
        setattr(model, name, buffer)
    return model


def loss_of(outputs, velocity, family):
    """The loss and the mean absolute error of a batch, m/s."""
    predicted, error, logits = outputs
    residual = (predicted - velocity).abs()
    spread = error.clamp(min=1.0) / 1000.0
    likelihood = (residual.detach() / 1000.0 / spread + spread.log()).mean()
    known = family >= 0
    named = F.cross_entropy(logits[known], family[known]) if known.any() else logits.sum() * 0.0
    mae = residual.mean()
    return mae / 100.0 + 0.05 * likelihood + 0.05 * named, mae.item()


def schedule(progress, warm=0.02, hold=0.35):
    """Share of the full learning rate: a short rise, a plateau, a cosine down."""
    if progress < warm:
        return progress / warm + 1e-3
    if progress < hold:
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - hold) / (1.0 - hold))))


def save(path, content):
    torch.save(content, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def device_of():
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(config):
    shape = Shape(**config["shape"])
    # samples lie where the network is, unless the configuration says pool = "cpu"
    pool = Pool(config["data"], shape.every, config["seed"], config.get("pool", device_of()))
    try:
        train_on(pool, shape, config)
    finally:
        pool.close()


def train_on(pool, shape, config):
    device = device_of()
    torch.manual_seed(config["seed"])
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    held_out = [read_hdf5(path, shape.every) for path in config["held_out"]]
    model = Prior(shape)
    model.standardise(pool.batch(min(512, len(pool)))[0].cpu())
    checkpoint = out / "checkpoint.pt"
    if "start" in config and not checkpoint.exists():
        restore(model, Path(config["start"]))
    model = half(model).to(device)
    master = Master(model, config)
    state = {"samples": 0, "seconds": 0.0, "steps": 0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        master.load(saved["master"])
        model.mean.copy_(saved["mean"])
        model.scale.copy_(saved["scale"])
        state = saved["state"]
        pool.random.manual_seed(config["seed"] + state["steps"])
        print(f"going on after {state['samples']} samples", flush=True)
    inputs, body = model.inputs, model.body
    if config.get("compile"):
        inputs = torch.compile(model.inputs)
        # on a CPU, oneDNN's products and convolutions are as fast without
        body = torch.compile(model.body) if device == "cuda" else model.body
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million weights, {len(pool)} samples, {device}", flush=True)

    def progress():
        budget = config.get("minutes")
        return state["seconds"] / 60 / budget if budget else state["samples"] / config["samples"]

    def keep():
        content = {"master": master.state(), "mean": model.mean, "scale": model.scale, "state": state, "shape": asdict(shape)}
        save(checkpoint, content)

    began = told = refreshed = time.time()
    maes = []
    while progress() < 1.0:
        tokens, velocity, family = (a.to(device) for a in pool.batch(config["batch"]))
        features, surface = (a.to(torch.bfloat16) for a in inputs(tokens))
        # every other column at first, the even ones or the odd ones: half the work
        columns = slice(state["steps"] % 2, None, 2) if progress() < config["coarse_until"] else slice(None)
        outputs = body(features[:, columns], surface, columns)
        loss, mae = loss_of(outputs, velocity[..., columns], family)
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite; lower the learning rates and start from the checkpoint")
        loss.backward()
        master.step(schedule(progress()), min(config["average"], 1.0 - 1.0 / (state["steps"] + 2)))
        now = time.time()
        state["steps"] += 1
        state["samples"] += config["batch"]
        state["seconds"] += now - began
        began = now
        maes.append(mae)
        if now - told > config["tell_every"]:
            rate = len(maes) * config["batch"] / (now - told)
            print(f"{100 * progress():5.1f}%  {state['samples']:8d} samples  {rate:5.1f}/s  MAE {sum(maes) / len(maes):6.1f}", flush=True)
            told, maes = now, []
        if now - refreshed > REFRESH:
            pool.refresh()
            refreshed = now
        if state["steps"] % config["check_every"] == 0:
            keep()
            print(table(evaluate(master.averaged(), held_out)), flush=True)
            began = time.time()
    keep()
    averaged = master.averaged()
    save(out / "model.pt", {"weights": averaged.state_dict(), "shape": asdict(shape), "state": state})
    print(table(evaluate(averaged, held_out)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--threads", type=int, help="CPU threads [default: all cores]")
    parser.add_argument("--samples", type=int, help="train on this many samples in place of the configuration's")
    parser.add_argument("--start", type=Path, help="an exported prior whose weights to begin with, in place of the configuration's")
    parser.add_argument("--out", type=Path, help="folder of the run, in place of the configuration's")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = tomllib.loads(args.config.read_text())
    given = {"samples": args.samples, "start": args.start, "out": args.out}
    config |= {key: value for key, value in given.items() if value is not None}
    train(config)


if __name__ == "__main__":
    main()
