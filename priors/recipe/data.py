"""Training samples: the files of `fwi synth`, held in memory in half precision, and batches of them.

A sample is a map, the gather of it and the middle shot of the mirrored map. The outer shots of a mirrored map are those of
the map, mirrored and swapped; the middle shot is not, since column 34 mirrors to 35. So a flip of the sample is exact
for a fifth of a gather's cost.
"""

import glob
import json
from dataclasses import dataclass
from pathlib import Path

import torch

MIRRORED = (4, 3, 5, 1, 0)
"""Where each shot of the mirrored map lies among the five shots and the mirrored map's middle shot."""


@dataclass
class Samples:
    """`tokens` (n, 70, 6, T) f16: receivers, five shots and the mirrored map's middle one, samples; `velocity`
    (n, 70, 70) f32, m/s; `family` (n,), an index into `FAMILIES`."""

    tokens: torch.Tensor
    velocity: torch.Tensor
    family: torch.Tensor

    def __len__(self):
        return len(self.velocity)


def read_hdf5(path, every):
    """Samples of a file that `fwi synth --middle-flip` wrote; `every` is the decimation that the network wants."""
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
        tokens = torch.from_numpy(shots.astype(np.float16)).permute(0, 3, 1, 2).contiguous()
        velocity = torch.from_numpy(f["velocity"][:].astype(np.float32)).reshape(-1, 70, 70)
        return Samples(tokens, velocity, torch.from_numpy(f["family"][:].astype(np.int64)))


class Pool:
    """All samples of the files that match a pattern; files that appear later are taken in by `refresh`."""

    def __init__(self, pattern, every, seed, read=read_hdf5):
        self.pattern, self.every, self.read = pattern, every, read
        self.files, self.parts = [], []
        self.random = torch.Generator().manual_seed(seed)
        self.refresh()
        if not self.parts:
            raise SystemExit(f"{pattern}: no such file; make one with fwi synth")

    def __len__(self):
        return sum(map(len, self.parts))

    def refresh(self):
        for path in sorted(glob.glob(str(Path(self.pattern)))):
            if path not in self.files:
                self.parts.append(self.read(path, self.every))
                self.files.append(path)

    def add(self, samples):
        """Takes in samples made elsewhere, such as pseudo-labels."""
        self.parts.append(samples)

    def batch(self, size):
        """A random batch, each sample mirrored with probability 1/2: tokens (n, 70, 5, T) f32, velocity (n, 1, 70, 70),
        family (n,)."""
        sizes = torch.tensor([len(p) for p in self.parts])
        ends = sizes.cumsum(0)
        picks = torch.randint(int(ends[-1]), (size,), generator=self.random)
        flips = torch.rand(size, generator=self.random) < 0.5
        parts = torch.searchsorted(ends, picks, right=True)
        tokens, velocity, family = [], [], []
        for part, pick, flip in zip(parts.tolist(), picks.tolist(), flips.tolist()):
            i = pick - int(ends[part] - sizes[part])
            chosen = self.parts[part]
            tokens.append(mirror(chosen.tokens[i]) if flip else chosen.tokens[i, :, :5])
            velocity.append(chosen.velocity[i].flip(1) if flip else chosen.velocity[i])
            family.append(chosen.family[i])
        return torch.stack(tokens).float(), torch.stack(velocity).unsqueeze(1), torch.stack(family)


def mirror(tokens):
    """The gather of the mirrored map: (70, 6, T) to (70, 5, T). The last shot is stored as it was modelled on that map."""
    turned = tokens.flip(0)[:, MIRRORED]
    turned[:, 2] = tokens[:, 5]
    return turned
