"""Training samples: the files of `fwi synth`, held in memory in half precision, and batches of them.

A sample is a map, the gather of it and the middle shot of the mirrored map. The outer shots of a mirrored map are those of
the map, mirrored and swapped; the middle shot is not, since column 34 mirrors to 35. So a flip of the sample is exact
for a fifth of a gather's cost.
"""

import glob
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

MIRRORED = (4, 3, 5, 1, 0)
"""Where each shot of the mirrored map lies among the five shots and the mirrored map's middle shot."""

LARGE = 8000
"""Samples in a block that is joined with no other."""


@dataclass
class Samples:
    """`tokens` (n, 70, 6, T) f16: receivers, five shots and the mirrored map's middle one, samples; `velocity`
    (n, 70, 70) f32, m/s; `family` (n,), an index into `FAMILIES`."""

    tokens: torch.Tensor
    velocity: torch.Tensor
    family: torch.Tensor

    def __len__(self):
        return len(self.velocity)

    def columns(self):
        return self.tokens, self.velocity, self.family


def arrays_of(path, every):
    """The columns of `Samples` as arrays, from a file that `fwi synth --middle-flip` wrote; `every` is the decimation that the
    network wants."""
    import h5py
    import numpy as np

    with h5py.File(path) as f:
        recipe = f.attrs.get("recipe")
        stored = json.loads(recipe)["every"] if recipe is not None else -(-1000 // f["gather"].shape[2])
        if every % stored:
            raise SystemExit(f"{path}: holds every {stored}th sample, but every {every}th is wanted; synthesise it anew")
        if "flipped_middle" not in f:
            raise SystemExit(f"{path}: has no middle shot of the mirrored maps; synthesise it with --middle-flip")
        step = every // stored
        shots = np.concatenate([f["gather"][:, :, ::step], f["flipped_middle"][:, ::step][:, None]], axis=1)
        tokens = np.ascontiguousarray(shots.astype(np.float16).transpose(0, 3, 1, 2))
        velocity = f["velocity"][:].astype(np.float32).reshape(-1, 70, 70)
        return tokens, velocity, f["family"][:].astype(np.int64)


def read_hdf5(path, every):
    """All samples of a file, see `arrays_of`."""
    return Samples(*map(torch.from_numpy, arrays_of(path, every)))


class Pool:
    """All samples of the files that match a pattern, in the memory of a device. Files that appear later are taken in by `refresh`: other
    processes read and inflate them while training goes on. What is added to a file that has been read is not."""

    def __init__(self, pattern, every, seed, device="cpu"):
        self.pattern, self.every, self.device = pattern, every, device
        self.blocks, self.files, self.reading = [], set(), []
        self.random = torch.Generator().manual_seed(seed)
        # processes that are forked would inherit the threads of this one; Ctrl-C is for this one alone
        spawn = multiprocessing.get_context("spawn")
        readers = min(8, max(1, (os.cpu_count() or 2) // 2))
        self.readers = ProcessPoolExecutor(readers, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            self.refresh()
            while self.reading:
                self.take(self.reading.pop(0))
            if not self.blocks:
                raise SystemExit(f"{pattern}: no such file; make one with fwi synth")
        except BaseException:
            self.close()
            raise

    def close(self):
        """Ends the reading."""
        self.readers.shutdown(wait=False, cancel_futures=True)

    def __len__(self):
        return sum(map(len, self.blocks))

    def refresh(self):
        """Takes in what has been read, and has new files read."""
        done = [part for part in self.reading if part.done()]
        self.reading = [part for part in self.reading if part not in done]
        for part in done:
            self.take(part)
        for path in sorted(set(glob.glob(str(Path(self.pattern)))) - self.files):
            self.files.add(path)
            self.reading.append(self.readers.submit(arrays_of, path, self.every))

    def take(self, part):
        samples = Samples(*(torch.from_numpy(array).to(self.device) for array in part.result()))
        # a few large blocks are drawn from faster than many small ones; larger ones would take too much while they are joined
        while self.blocks and len(self.blocks[-1]) <= len(samples) <= LARGE:
            last = self.blocks.pop()
            samples = Samples(*(torch.cat(pair) for pair in zip(last.columns(), samples.columns())))
        self.blocks.append(samples)

    def batch(self, size):
        """Samples drawn with replacement, each mirrored with probability 1/2: tokens (n, 70, 5, T) f32, velocity
        (n, 1, 70, 70), family (n,)."""
        picks = torch.randint(len(self), (size,), generator=self.random)
        flip = (torch.rand(size, generator=self.random) < 0.5).to(self.device)
        parts, begin = [], 0
        for block in self.blocks:
            here = (picks[(picks >= begin) & (picks < begin + len(block))] - begin).to(self.device)
            parts.append([column[here] for column in block.columns()])
            begin += len(block)
        tokens, velocity, family = (torch.cat(columns) for columns in zip(*parts))
        tokens = torch.where(flip[:, None, None, None], mirror(tokens), tokens[:, :, :5])
        velocity = torch.where(flip[:, None, None], velocity.flip(2), velocity)
        return tokens.float(), velocity.unsqueeze(1), family


def mirror(tokens):
    """The gathers of the mirrored maps: (n, 70, 6, T) to (n, 70, 5, T). The last shot is stored as it was modelled on them."""
    turned = tokens.flip(1)[:, :, MIRRORED]
    turned[:, :, 2] = tokens[:, :, 5]
    return turned
