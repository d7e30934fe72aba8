#!/usr/bin/env python3
"""Settles in one run, of ten minutes at most, what only a GPU can show: correctness, rates, races, use of the device.

    python3 kernels/check_gpu.py [--fwi target/release/fwi] [--out DIR] [--minutes 9.5]

Needs an NVIDIA driver, the built binary and Python 3.8 or later, nothing else. compute-sanitizer is used where it is
found. Every command's output is kept in DIR/*.log, the verdicts in DIR/result.json. Exit code: 0 when all that could be
checked passed, 1 when something failed, 2 when there is no GPU or no binary.
"""

import argparse
import array
import ast
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback

SIZE = 70  # cells along an edge of a map
SAMPLES = 5 * 1000 * 70  # of a gather
FORWARD_TARGET, GRADIENT_TARGET, BUSY_TARGET = 1000.0, 300.0, 0.90
AGREEMENT = 1e-5
TOOLS = ("memcheck", "synccheck", "racecheck", "initcheck")
# what is checked, and against what; all of it counts as unchecked until something is known
ITEMS = [
    ("device", "CUDA device", "listed by fwi doctor"),
    ("gpu_check", "fwi gpu-check", "exit code 0"),
    ("f64", "kernels against the CPU, f64", "1e-12"),
    ("f32", "kernels against the CPU, f32", "1e-5"),
    ("forward_rate", "forward gathers/s, f32", "%.0f" % FORWARD_TARGET),
    ("gradient_rate", "gradients/s, f32", "%.0f" % GRADIENT_TARGET),
    ("adjoint_f64", "adjoint, f64", "1e-12"),
    ("adjoint_f32", "adjoint, f32", "1e-5"),
    ("forward", "fwi forward against the CPU", "%.0e" % AGREEMENT),
    ("batch", "fwi batch", "all inverted"),
    ("busy", "device busy in fwi batch", "%.0f%%" % (100 * BUSY_TARGET)),
    ("smi", "nvidia-smi during fwi batch", "(measured)"),
    ("alone", "maps alone as in the batch", "same bytes"),
] + [(tool, "compute-sanitizer " + tool, "clean") for tool in TOOLS]


class Unchecked(Exception):
    """Something could not be checked; says why."""


class Failed(Exception):
    """A check failed; says how."""


class Check:
    """Commands within a time limit, and what came of them."""

    def __init__(self, args):
        self.args = args
        self.out = os.path.abspath(args.out)
        self.fwi = os.path.abspath(args.fwi)
        self.backend = ["--backend", args.backend]
        self.gpu = args.backend != "cpu"
        self.since = time.monotonic()
        self.end = self.since + 60 * args.minutes
        self.items = {
            key: {"item": item, "result": "unchecked", "figure": "not reached", "target": target}
            for key, item, target in ITEMS
        }
        self.steps = []
        self.rates = {}
        self.short = False  # whether the last command had less time than it was to have

    def left(self):
        return self.end - time.monotonic()

    def path(self, name):
        return os.path.join(self.out, name)

    def set(self, key, result, figure):
        self.items[key].update(result=result, figure=figure)

    def judge(self, key, good, figure):
        self.set(key, "passed" if good else "failed", figure)

    def run(self, name, command, limit):
        """Runs a command in DIR, its output to NAME.log; exit code (None: it ran out of time), seconds and output."""
        log = self.path(name + ".log")
        left = self.left()
        self.short, limit = left < limit, min(limit, left)
        if limit < 1:
            raise Unchecked("no time was left")
        line = " ".join([os.path.basename(command[0])] + command[1:])
        print("[%4.0f s] %s" % (time.monotonic() - self.since, line), flush=True)
        began = time.monotonic()
        with open(log, "wb") as sink:
            child = subprocess.Popen(
                command,
                cwd=self.out,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                # in a session of its own, so whatever it started goes too
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        seconds = time.monotonic() - began
        with open(log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        step = {"step": name, "command": command, "code": code, "seconds": round(seconds, 3), "limit": round(limit, 1)}
        self.steps.append(step)
        self.write()
        return code, seconds, text

    def problem(self, name, code):
        """What to raise of a command that did not succeed."""
        if code is None and self.short:
            return Unchecked("the time left did not suffice; see %s.log" % name)
        return Failed("%s; see %s.log" % (ending(code, self.steps[-1]["limit"]), name))

    def demand(self, name, command, limit):
        """The same for what must succeed."""
        code, seconds, text = self.run(name, command, limit)
        if code != 0:
            raise self.problem(name, code)
        return seconds, text

    def step(self, keys, work):
        """Runs a step; what it leaves open when it fails is said of the items `keys`."""
        try:
            work()
        except (Unchecked, Failed) as e:
            word, why = ("unchecked" if isinstance(e, Unchecked) else "failed"), str(e)
        except Exception as e:  # the other steps go on
            traceback.print_exc()
            word, why = "failed", "%s: %s" % (type(e).__name__, e)
        else:
            word, why = "unchecked", "said nothing of it"
        for key in keys:
            if self.items[key]["figure"] == "not reached":
                self.set(key, word, why)
        self.write()

    def sweep(self):
        """Removes the gathers: hundreds of megabytes, and an earlier run's must not be taken for this one's."""
        for name in ("gathers.npy", "some.npy", "reference.npy"):
            if os.path.exists(self.path(name)):
                os.remove(self.path(name))

    def write(self):
        whole = {
            "passed": self.passed(),
            "seconds": round(time.monotonic() - self.since, 1),
            "backend": self.args.backend,
            "items": list(self.items.values()),
            "rates": self.rates,
            "steps": self.steps,
        }
        with open(self.path("result.json"), "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1)
            file.write("\n")

    def passed(self):
        results = [item["result"] for item in self.items.values()]
        return "failed" not in results and "passed" in results


def ending(code, limit):
    return "not done within %.0f s" % limit if code is None else "exit code %d" % code


# .npy files ----------------------------------------------------------------------------------------------------------


def write_npy(path, shape, payload):
    """Writes float32 samples, given as little-endian bytes."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': %r, }" % (tuple(shape),)
    header += " " * (-(len(header) + 11) % 64) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("ascii"))
        file.write(payload)


def open_npy(path):
    """Shape and open file, at the first sample, of float32 .npy."""
    file = open(path, "rb")
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise Failed("%s is no .npy file" % path)
    size = struct.unpack("<H", file.read(2)) if magic[6] == 1 else struct.unpack("<I", file.read(4))
    header = ast.literal_eval(file.read(size[0]).decode("latin-1"))
    if header["descr"] != "<f4" or header["fortran_order"]:
        raise Failed("%s holds %r" % (path, header))
    return header["shape"], file


def read_items(path, n, size):
    """The first `n` items of `size` float32 samples each, as bytes."""
    shape, file = open_npy(path)
    with file:
        payload = file.read(4 * n * size)
    if math.prod(shape) < n * size or len(payload) != 4 * n * size:
        raise Failed("%s holds less than %d items: %r" % (path, n, shape))
    return payload


def samples(payload):
    numbers = array.array("f")
    numbers.frombytes(payload)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def relative_rms(a, b):
    """Rms of the difference over the rms of `b`; infinite when anything is not finite."""
    error = math.fsum((x - y) * (x - y) for x, y in zip(a, b))
    size = math.fsum(y * y for y in b)
    ratio = math.sqrt(error / size) if size > 0 and math.isfinite(error) else math.inf
    return ratio if len(a) == len(b) and math.isfinite(ratio) else math.inf


def layered_maps(n, seed=1):
    """Maps of two to seven layers with waves and dips, some faulted, velocities growing with depth; as bytes."""
    rng = random.Random(seed)
    cells = array.array("f")
    for _ in range(n):
        layers = rng.randint(2, 7)
        tops = sorted(rng.uniform(6, SIZE - 4) for _ in range(layers - 1))
        speeds = sorted(rng.uniform(1550, 4400) for _ in range(layers))
        dip, height, length = rng.uniform(-0.15, 0.15), rng.uniform(0, 5), rng.uniform(20, 90)
        phase, fault, throw = rng.uniform(0, 6.3), rng.uniform(15, 55), rng.choice([0, 0, rng.uniform(-9, 9)])
        shift = [
            dip * (x - SIZE / 2) + height * math.sin(6.283 * x / length + phase) + (throw if x > fault else 0)
            for x in range(SIZE)
        ]
        for z in range(SIZE):
            cells.extend(speeds[sum(z + s >= top for top in tops)] for s in shift)
    if sys.byteorder == "big":
        cells.byteswap()
    return cells.tobytes()


# steps ---------------------------------------------------------------------------------------------------------------


def doctor(c):
    """What the machine has; ends everything when that is no GPU."""
    code, _, text = c.run("doctor", [c.fwi, "doctor"], 60)
    if not c.gpu:
        raise Unchecked("--backend cpu")
    if code != 0:
        raise c.problem("doctor", code)
    found = re.findall(r"^cuda:\d+: .*$", text, re.M)
    if not found:
        why = re.search(r"^cuda: (.*)$", text, re.M)
        c.set("device", "failed", "none")
        c.write()
        print("no CUDA device: %s; nothing was checked" % (why.group(1) if why else "fwi doctor lists none"))
        sys.exit(2)
    kernels = re.search(r"^cuda:\d+ kernels: .*$", text, re.M)
    c.judge("device", bool(kernels), "; ".join([found[0], kernels.group(0) if kernels else "no kernels for it"]))


def gpu_check(c):
    """Agreement with the CPU and rates, both parsed from the table of `fwi gpu-check`."""
    if not c.gpu:
        raise Unchecked("--backend cpu")
    code, _, text = c.run("gpu-check", [c.fwi, "gpu-check", "--time", "2s"], 200)
    whole = re.search(r"^correctness: (\d+) comparisons, (\d+) failed", text, re.M)
    seen = {"f64": [], "f32": []}
    precision = None
    for line in text.splitlines():
        section = re.match(r"(clusters|a launch a step), (f32|f64):", line)
        row = re.match(r"  (.+?)\s+(\S+)\s+\(limit (\S+)\)\s+(ok|FAILED)$", line)
        if section:
            precision = section.group(2)
        elif row and precision:
            seen[precision].append((row.group(1), float(row.group(2)), float(row.group(3)), row.group(4) == "ok"))
        rate = re.match(r"  (.+?)\s+([\d.]+)\s+([\d.]+)\s+\S+ and \S+ times the CPU", line)
        if rate:
            c.rates[rate.group(1)] = {"forward": float(rate.group(2)), "gradients": float(rate.group(3))}
    if whole and int(whole.group(1)) != sum(map(len, seen.values())):
        raise Failed("the output is not as expected; see gpu-check.log")
    for key, rows in seen.items():
        bad = ["%s %.1e" % row[:2] for row in rows if not row[3]]
        judged = [e / limit for _, e, limit, _ in rows if limit > 0]
        if bad:
            c.judge(key, False, "%d of %d differ: %s" % (len(bad), len(rows), "; ".join(bad[:3])))
        elif whole and rows:
            c.judge(key, True, "%d agree, worst %.1e of its limit" % (len(rows), max(judged, default=0.0)))
    ours = [r for name, r in c.rates.items() if re.match("clusters|a launch a step", name)
            and not re.search("exact|f64|half precision", name)]
    if ours:
        # a later measurement of fwi forward may be better
        best = max(r["gradients"] for r in ours)
        c.judge("gradient_rate", best >= GRADIENT_TARGET, "%.0f" % best)
        best = max(r["forward"] for r in ours)
        c.judge("forward_rate", best >= FORWARD_TARGET, "%.0f" % best)
    if code != 0:
        raise c.problem("gpu-check", code)
    c.judge("gpu_check", True, "exit code 0")


def adjoint(c, precision):
    """Dot products and Taylor remainders."""
    if c.args.quick and precision == "f64":
        raise Unchecked("--quick")
    seeds = "1" if c.args.quick else "3"
    command = [c.fwi, "check", "--adjoint", "--precision", precision, "--seeds", seeds] + c.backend
    name = "adjoint-" + precision
    code, _, text = c.run(name, command, 60)
    worst = max((float(x) for x in re.findall(r"relative difference (\S+)", text)), default=math.nan)
    slope = re.search(r"slope (\S+) \(", text)
    if math.isnan(worst) or not slope or code is None:
        raise c.problem(name, code)
    c.judge("adjoint_" + precision, code == 0, "dot products %.1e, Taylor slope %s" % (worst, slope.group(1)))


def forward(c):
    """A stack of maps to gathers; the first ones against the CPU's."""
    n, few = (4, 2) if c.args.quick else (256, 8)
    maps = layered_maps(n)
    write_npy(c.path("maps.npy"), (n, SIZE, SIZE), maps)
    write_npy(c.path("few.npy"), (few, SIZE, SIZE), maps[: 4 * few * SIZE * SIZE])
    seconds, text = c.demand("forward", [c.fwi, "forward", "maps.npy", "-o", "gathers.npy"] + c.backend, 90)
    told = re.findall(r"^%d of %d gathers, ([\d.]+) per second" % (n, n), text, re.M)
    c.rates["fwi forward"] = {"gathers": n, "wall": n / seconds, "log": float(told[-1]) if told else None}
    rate = "%.1f gathers/s (log), %.1f (wall)" % (float(told[-1]) if told else math.nan, n / seconds)
    if c.gpu and told and float(told[-1]) >= FORWARD_TARGET:
        c.judge("forward_rate", True, "%s (fwi forward)" % told[-1])
    c.demand("forward-cpu", [c.fwi, "forward", "few.npy", "-o", "reference.npy", "--backend", "cpu"], 60)
    pair = [samples(read_items(c.path(name), few, SAMPLES)) for name in ("gathers.npy", "reference.npy")]
    errors = [relative_rms(*(s[i * SAMPLES : (i + 1) * SAMPLES] for s in pair)) for i in range(few)]
    c.judge("forward", max(errors) <= AGREEMENT, "%.1e at most of %d; %s" % (max(errors), few, rate))


class Sampler(threading.Thread):
    """Asks nvidia-smi for utilisation (%) and memory (MiB) once a second, until told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.rows = []
        self.ended = threading.Event()

    def run(self):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self.ended.wait(1.0):
            try:
                text = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10).stdout
                first = text.decode("ascii", "replace").splitlines()[0]
                self.rows.append([float(x) for x in first.split(",")])
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                continue

    def figure(self):
        if len(self.rows) < 4:
            raise Unchecked("nvidia-smi gave %d samples" % len(self.rows))
        middle = [row[0] for row in self.rows[len(self.rows) // 4 : -(len(self.rows) // 4)]]
        memory = max(row[1] for row in self.rows)
        return "%.0f%% used in the middle half of %d s, %.0f MiB at most" % (
            sum(middle) / len(middle), len(self.rows), memory)


def batch(c):
    """Many inversions at once: rate, use of the device, and the same maps as one by one."""
    n, evaluations, alone = (3, "2", [1]) if c.args.quick else (96, "60", [0, 47, 95])
    if not os.path.exists(c.path("gathers.npy")):
        raise Unchecked("there are no gathers to invert")
    write_npy(c.path("some.npy"), (n, 5, 1000, 70), read_items(c.path("gathers.npy"), n, SAMPLES))
    write_npy(c.path("truth.npy"), (n, SIZE, SIZE), read_items(c.path("maps.npy"), n, SIZE * SIZE))
    until = ["--max-evals", evaluations, "--force"] + c.backend
    sampler = Sampler()
    if c.gpu:
        sampler.start()
    try:
        c.demand("batch", [c.fwi, "batch", "some.npy", "--truth", "truth.npy", "-o", "batch"] + until, 150)
    finally:
        sampler.ended.set()
    with open(c.path("batch/summary.json"), encoding="utf-8") as file:
        summary = json.load(file)
    last = summary["last_run"]
    devices = [d for d in last["devices"] if d["evaluations"] > 0]
    per_call = ", ".join("%.1f" % d["evaluations_a_call"] for d in devices)
    rate = summary["evaluations"] / last["seconds"]
    c.rates["fwi batch"] = {"evaluations": rate, "gathers_per_hour": last["gathers_per_hour"], "devices": devices}
    figure = "%.1f evaluations/s, %.0f gathers/h, %s a call, mean MAE %.0f m/s" % (
        rate, last["gathers_per_hour"], per_call, summary["mean_mae"])
    lost = [d["device"] for d in devices if d["lost"]]
    c.judge("batch", summary["inverted"] == n and not lost, figure + (", LOST: " + ", ".join(lost) if lost else ""))
    busy = "; ".join("%.1f%%" % (100 * d["busy"]) for d in devices)
    if c.gpu:
        # the first queue's; a second one, of refined stages, shares the device for a part of the time
        c.judge("busy", devices[0]["busy"] >= BUSY_TARGET, busy)
        c.step(["smi"], lambda: c.set("smi", "measured", sampler.figure()))
    else:
        c.set("busy", "unchecked", "--backend cpu (%s)" % busy)
        c.set("smi", "unchecked", "--backend cpu")
    same = []
    for i in alone:
        out = "alone-%d" % i
        c.demand(out, [c.fwi, "invert", "some.npy", "--index", str(i), "-o", out, "-q"] + until, 60)
        with open(c.path(out + "/velocity.npy"), "rb") as a, open(c.path("batch/velocity/some_%d.npy" % i), "rb") as b:
            same.append(a.read() == b.read())
    c.judge("alone", all(same), "%d of %d the same" % (sum(same), len(same)))


def sanitize(c, tool, share):
    """One of compute-sanitizer's tools over a small gpu-check, for a share of the time left."""
    if not c.gpu:
        raise Unchecked("--backend cpu")
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not found:
        raise Unchecked("not checked: no compute-sanitizer on this machine")
    limit = max(c.left() * share, 1)
    command = [found, "--tool", tool, "--error-exitcode", "99", c.fwi, "gpu-check", "--small"]
    name = "sanitizer-" + tool
    code, seconds, text = c.run(name, command, limit)
    counts = [int(n) for n in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", text)]
    kinds = "Invalid|Race reported|Potential|Barrier error|Uninitialized|Program hit|Misaligned"
    reports = re.findall(r"^={9} (?:Error: |Warning: )?((?:%s) .*)$" % kinds, text, re.M)
    if reports or sum(counts) > 0:
        raise Failed("%s reports; %s; see %s.log" % (sum(counts) or len(reports), (reports or ["-"])[0][:60], name))
    if code is None:
        raise Unchecked("nothing in %.0f s, but not done; see %s.log" % (limit, name))
    if not counts:
        raise Unchecked("%s without a summary; see %s.log" % (ending(code, limit), name))
    c.judge(tool, code == 0, "no report in %.0f s%s" % (seconds, "" if code == 0 else ", but " + ending(code, limit)))


def main():
    parser = argparse.ArgumentParser(description="Checks and times the GPU kernels in one run.")
    parser.add_argument("--fwi", default="target/release/fwi", help="the binary [%(default)s]")
    parser.add_argument("--out", default="gpu-check", help="directory for logs and result.json [%(default)s]")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit for all of it [%(default)s]")
    # for the test of this script on machines without a GPU
    parser.add_argument("--backend", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not os.access(args.fwi, os.X_OK):
        print("no binary at %s; build it with cargo build --release, or name it with --fwi" % args.fwi)
        sys.exit(2)
    os.makedirs(args.out, exist_ok=True)
    c = Check(args)
    c.sweep()
    c.step(["device"], lambda: doctor(c))
    c.step(["gpu_check", "f64", "f32", "forward_rate", "gradient_rate"], lambda: gpu_check(c))
    for precision in ("f64", "f32"):
        c.step(["adjoint_" + precision], lambda p=precision: adjoint(c, p))
    c.step(["forward"], lambda: forward(c))
    c.step(["batch", "busy", "smi", "alone"], lambda: batch(c))
    c.sweep()
    # the slowest come last and may take all the time that is left
    for i, tool in enumerate(TOOLS):
        c.step([tool], lambda t=tool, n=len(TOOLS) - i: sanitize(c, t, 1 / n))
    c.write()
    rows = [("item", "result", "figure", "target")]
    rows += [(i["item"], i["result"], i["figure"], i["target"]) for i in c.items.values()]
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    print()
    for item, result, figure, target in rows:
        print("%-*s  %-*s  %s  [%s]" % (widths[0], item, widths[1], result, figure, target))
    print("\n%s after %.0f s; logs and result.json in %s" % (
        "all that could be checked passed" if c.passed() else "NOT all passed", time.monotonic() - c.since, args.out))
    sys.exit(0 if c.passed() else 1)


if __name__ == "__main__":
    main()
