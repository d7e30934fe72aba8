"""Exports a trained prior to ONNX with its manifest: `python -m recipe.export out/bundled/model.pt DIR --config ...`.

Weights are stored in half precision (half the file) and cast to f32 when the model is loaded. The batch is fixed at one,
which the built-in runtime of `fwi` runs fastest. The exported file is compared with the network before it is kept.
"""

import argparse
import hashlib
import os
import tomllib
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from .calibrate import calibrate
from .model import FAMILIES, Prior, Shape, Whole

SMALL = 2048
"""Arrays of fewer numbers than this keep their f32."""


def half_weights(model):
    """Stores large f32 initialisers as f16, each followed by a cast."""
    casts = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < SMALL:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), name + "_half"))
        casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def rounded(model):
    """The network with its large weights rounded to f16, as the file will hold them."""
    state = {k: v.half().float() if v.numel() >= SMALL else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def export(model, path):
    """Writes the network for one gather (1, 5, 1000, 70) and returns the largest deviation of the velocity from
    torch's, m/s, where onnxruntime is installed."""
    whole = Whole(rounded(model)).eval()
    gather = torch.randn(1, 5, 1000, 70)
    gather[:, :, 0] = -1e-3
    names = ["velocity", "error", "families"]
    temporary = path.with_suffix(".tmp")
    torch.onnx.export(whole, (gather,), temporary, input_names=["gather"], output_names=names, opset_version=17, dynamo=False)
    proto = half_weights(onnx.load(temporary))
    onnx.checker.check_model(proto)
    onnx.save(proto, temporary)
    try:
        import onnxruntime
    except ImportError:
        deviation = None
    else:
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = whole(gather)[0].numpy()
        deviation = float(np.abs(session.run(None, {"gather": gather.numpy()})[0] - expected).max())
        if not deviation < 1.0:
            raise SystemExit(f"the exported model deviates by {deviation} m/s from the network; it was not kept")
    os.replace(temporary, path)
    return deviation


def quote(text):
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def manifest(name, config, digest, factor):
    """The manifest that `fwi` reads beside the model."""
    card = config["card"]
    lines = [f"{key} = {quote(value)}" for key, value in {"name": name, **card}.items()]
    lines += ['model = "model.onnx"', f'sha256 = "{digest}"']
    lines += ["", "[input]", 'name = "gather"', "", "[velocity]", 'output = "velocity"', "", "[error]", 'output = "error"', f"scale = {factor:.3f}"]
    lines += ["", "[families]", 'output = "families"', f"labels = [{', '.join(quote(f) for f in FAMILIES)}]"]
    return "\n".join(lines) + "\n"


def publish(model_file, folder, config, pattern=None):
    """Writes the model of a training run with its manifest to a folder, calibrated on the files of a pattern."""
    saved = torch.load(model_file, map_location="cpu")
    model = Prior(Shape(**saved["shape"]))
    model.load_state_dict(saved["weights"])
    factor = calibrate(model, pattern) if pattern else 1.0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    deviation = export(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.toml").write_text(manifest(folder.resolve().name, config, digest, factor))
    checked = "not checked (no onnxruntime)" if deviation is None else f"within {deviation:.2g} m/s of the network"
    print(f"wrote {path}: {path.stat().st_size / 2**20:.1f} MiB, {checked}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="model.pt of a training run")
    parser.add_argument("folder", type=Path, help="where model.onnx and manifest.toml go; its name is the prior's")
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration, for the card")
    parser.add_argument("--calibrate", metavar="PATTERN", help="files of fwi synth to calibrate families and errors on")
    args = parser.parse_args()
    publish(args.model, args.folder, tomllib.loads(args.config.read_text()), args.calibrate)


if __name__ == "__main__":
    main()
