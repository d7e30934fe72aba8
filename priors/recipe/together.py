"""Synthesis, training and export in one go: `python -m recipe.together configs/gpu.toml out/NAME --minutes 60`.

For a machine whose GPU makes thousands of samples a second: `fwi synth` adds set after set of the configuration's `[maps]` while
the network trains on what there is, so that the network hardly sees a sample twice. What was stopped goes on when it is
started again, with the samples that are there.
"""

import argparse
import fnmatch
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import torch

from .export import publish
from .train import device_of, train

SAMPLE_BYTES = 125_000
"""In memory."""

HELD_OUT_SEED, CALIBRATE_SEED, FIRST_SEED = 999, 998, 1000
"""Seeds of the maps that are not trained on, and of the first set of those that are; every set has one of its own, since sets of one
seed have maps in common."""


class Synthesis:
    """Sets of samples, made one after the other by `workers` processes at a time until `stop`, or until there are `most`."""

    def __init__(self, fwi, pattern, maps, most, workers=2):
        self.fwi, self.folder = fwi, Path(pattern).parent
        self.folder.mkdir(parents=True, exist_ok=True)
        rounds = most // sum(maps.values())
        sets = [(self.path(seed, family), family, n, seed) for seed, (family, n) in enumerate(rounds * list(maps.items()), FIRST_SEED)]
        self.first, self.sets = [path for path, *_ in sets[: len(maps)]], iter(sets)
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.running, self.failed = set(), None
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(workers)]

    def path(self, seed, family):
        return self.folder / f"train-{seed}-{family}.h5"

    def start(self):
        """Begins, and returns when there are samples of every set of the first round: what they are like on average counts."""
        for thread in self.threads:
            thread.start()
        while not all(path.exists() for path in self.first):
            if not any(thread.is_alive() for thread in self.threads):
                raise SystemExit(self.failed or "the samples were removed while they were made")
            time.sleep(0.2)

    def work(self):
        while not self.stopped.is_set():
            with self.lock:
                path, family, n, seed = next(self.sets, (None,) * 4)
            if path is None:
                return
            code = self.run(samples(self.fwi, family, n, path, seed))
            if code and not self.stopped.is_set():
                self.failed = f"{path}: fwi synth ended with exit code {code}; what it said is above"
                print(self.failed, file=sys.stderr, flush=True)
                return

    def run(self, command):
        with self.lock:
            if self.stopped.is_set():
                return 0
            # Ctrl-C comes to this process, which stops the others
            process = subprocess.Popen(command, start_new_session=True)
            self.running.add(process)
        code = process.wait()
        with self.lock:
            self.running.discard(process)
        return code

    def stop(self):
        """Ends the sets at work; what is short of them is made at the next start."""
        with self.lock:
            self.stopped.set()
            for process in self.running:
                process.terminate()
        for thread in self.threads:
            thread.join()


def samples(fwi, family, n, path, seed):
    """The command that makes a set as training takes it."""
    options = ["--half", "--every", "8", "--middle-flip"]
    return [fwi, "synth", family, "-n", str(n), "-o", str(path), "--seed", str(seed), *options]


def check(config, path):
    """Errors where a configuration cannot be trained on what is made."""
    every, most, device = config["shape"]["every"], config["most_maps"], config.get("pool", device_of())
    if every % 8 or 1000 % every:
        raise SystemExit(f"{path}: shape.every must be 8, 40, 200 or 1000, since every 8th sample is stored")
    if most < sum(config["maps"].values()):
        raise SystemExit(f"{path}: most_maps is less than one round of [maps]")
    if not fnmatch.fnmatch("train-1-all.h5", Path(config["data"]).name):
        raise SystemExit(f"{path}: data must match the files train-SEED-FAMILY.h5 that are made, such as train*.h5")
    if device == "cuda" and most * SAMPLE_BYTES > torch.cuda.mem_get_info()[0]:
        raise SystemExit(f"{path}: most_maps = {most} do not fit the GPU's memory; lower it, or set pool = \"cpu\"")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path, help="where model.onnx and manifest.toml go; its name is the prior's")
    parser.add_argument("--minutes", type=float, required=True, help="how long to train")
    parser.add_argument("--fwi", default="fwi", help="the binary that makes the samples")
    args = parser.parse_args()
    config = tomllib.loads(args.config.read_text())
    check(config, args.config)
    for name in (signal.SIGTERM, signal.SIGHUP):
        # as an exception, so that the synthesis ends, too
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    held_out = Path(config["held_out"][0])
    calibrate = held_out.with_name("calibrate.h5")
    held_out.parent.mkdir(parents=True, exist_ok=True)
    number = config["held_out_maps"]
    subprocess.run(samples(args.fwi, "all", number, held_out, HELD_OUT_SEED), check=True)
    subprocess.run(samples(args.fwi, "all", 2 * number, calibrate, CALIBRATE_SEED), check=True)
    synthesis = Synthesis(args.fwi, config["data"], config["maps"], config["most_maps"])
    try:
        synthesis.start()
        train(config | {"minutes": args.minutes})
    finally:
        synthesis.stop()
    publish(Path(config["out"]) / "model.pt", args.folder, config, str(calibrate.with_name("calibrate*.h5")))


if __name__ == "__main__":
    main()
