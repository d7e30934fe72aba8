"""Pseudo-labels: `python -m recipe.pseudo model.pt -o pseudo.h5 GATHERS...`.

The contest's best networks were trained on the test set's gathers without knowing their maps: predict the maps, model
the predictions exactly, and train on the pairs so made. The pairs are true by construction, whatever the prediction was
worth, and look like the test set's. Name the file in the configuration's `data` pattern and repeat.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from .evaluate import predict
from .model import Prior, Shape


def check(path, shape):
    if len(shape) != 4 or tuple(shape[1:]) != (5, 1000, 70):
        raise SystemExit(f"{path}: holds {tuple(shape)}, not gathers (n, 5, 1000, 70) of every sample")


def tokens_of(path, every):
    if path.suffix == ".h5":
        with h5py.File(path) as f:
            check(path, f["gather"].shape)
            decimated = f["gather"][:, :, ::every]
    else:
        gathers = np.load(path, mmap_mode="r")
        gathers = gathers[None] if gathers.ndim == 3 else gathers
        check(path, gathers.shape)
        decimated = gathers[:, :, ::every]
    return torch.from_numpy(np.array(decimated, dtype=np.float32)).permute(0, 3, 1, 2)


def model_gathers(fwi, maps, every, folder):
    """Gathers of the maps by the exact operator, decimated."""
    source, target = folder / "maps.npy", folder / "gathers.npy"
    np.save(source, maps)
    subprocess.run([fwi, "forward", source, "-o", target], check=True)
    return np.load(target, mmap_mode="r")[:, :, ::every]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="model.pt of a training run")
    parser.add_argument("gathers", type=Path, nargs="+", help="gathers (n, 5, 1000, 70) or (5, 1000, 70), .npy or .h5")
    parser.add_argument("-o", "--output", type=Path, required=True, help="HDF5 file of samples")
    parser.add_argument("--fwi", default="fwi", help="the binary that models the predictions")
    args = parser.parse_args()
    saved = torch.load(args.model, map_location="cpu")
    model = Prior(Shape(**saved["shape"]))
    model.load_state_dict(saved["weights"])
    every = saved["shape"]["every"]
    maps = np.concatenate([predict(model, tokens_of(path, every))[0].numpy() for path in args.gathers])
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent) as folder:
        gathers = np.array(model_gathers(args.fwi, maps, every, Path(folder)), dtype=np.float16)
        mirrored = model_gathers(args.fwi, maps[:, :, ::-1].copy(), every, Path(folder))
        middle = np.array(mirrored[:, 2], dtype=np.float16)
    temporary = args.output.with_suffix(".tmp")
    with h5py.File(temporary, "w") as f:
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        f.create_dataset("gather", data=gathers, chunks=(1, *gathers.shape[1:]), **options)
        f.create_dataset("flipped_middle", data=middle, chunks=(1, *middle.shape[1:]), **options)
        f.create_dataset("velocity", data=maps[:, None].astype(np.float32), chunks=(1, 1, 70, 70), **options)
        f.create_dataset("family", data=np.full(len(maps), -1, dtype=np.int16))
    temporary.replace(args.output)
    print(f"wrote {args.output}: {len(maps)} samples")


if __name__ == "__main__":
    main()
