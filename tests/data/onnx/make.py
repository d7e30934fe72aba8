"""Writes the small networks that tests/prior.rs reads. Needs the packages onnx and numpy.

Most of them give the map of five layers from 1600 to 3600 m/s (that of fwi::prior::layout::trial_map), plus ten times the
pressure of the second shot's last time sample at each receiver, so that a test can tell how the gather was fed.
"""

import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

HERE = pathlib.Path(__file__).parent
LAYERS = (1600 + 500 * (np.arange(70) // 14)).astype(np.float32)


def write(name, nodes, inputs, outputs, weights, check=True, opset=17, domains=(), sparse=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, weights, sparse_initializer=list(sparse))
    sets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
    model = helper.make_model(graph, opset_imports=sets, ir_version=8)
    if check:
        checker.check_model(model)
    save(model, HERE / f"{name}.onnx")
    return model


def tensor(name, value, kind=None):
    return numpy_helper.from_array(np.asarray(value, kind), name)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def body(scale=1.0, offset=0.0, front=1, dtype=np.float32, out=(1, 1, 70, 70)):
    """Nodes and weights from "gather" to "velocity" = (map - offset) / scale."""
    axes = [front, front + 1]
    nodes = [
        helper.make_node("Slice", ["gather", "first", "last", "axes"], ["trace"]),  # shot 1, the last sample
        helper.make_node("Reshape", ["trace", "row"], ["along"]),
        helper.make_node("Mul", ["along", "gain"], ["louder"]),
        helper.make_node("Add", ["louder", "layers"], ["map"]),
        helper.make_node("Reshape", ["map", "shape"], ["velocity"]),
    ]
    weights = [
        tensor("first", [1, -1], np.int64),
        tensor("last", [2, 2**31 - 1], np.int64),
        tensor("axes", axes, np.int64),
        tensor("row", [1, 70], np.int64),
        tensor("gain", [10.0 / scale], dtype),
        tensor("layers", ((LAYERS - offset) / scale).reshape(70, 1), dtype),
        tensor("shape", out, np.int64),
    ]
    return nodes, weights


def network(name, shape, out=(1, 1, 70, 70), declared=None, kind=TensorProto.FLOAT, **how):
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    front = len(shape) - 3
    nodes, weights = body(front=front, dtype=dtype, out=out, **how)
    return write(name, nodes, [info("gather", shape, kind)], [info("velocity", declared or out, kind)], weights)


# layouts
network("plain", (1, 5, 1000, 70))
network("free", ("n", 5, "t", 70), out=(1, 70, 70), declared=("n", 70, 70))
network("five_axes", ("n", 1, 5, 1000, 70))
network("half_rate", (1, 5, 500, 70))
network("unit", (1, 5, 1000, 70), scale=3000.0, offset=1500.0)
network("symmetric", (1, 5, 1000, 70), scale=1500.0, offset=3000.0)
network("f16", (1, 5, 1000, 70), kind=TensorProto.FLOAT16)

# layouts that are refused
network("kilometres", (1, 5, 1000, 70), scale=1000.0)
network("deviations", (1, 5, 1000, 70), scale=850.0, offset=2800.0)
network("fractions", (1, 5, 1000, 70), scale=4500.0)
nodes, weights = body()
constant = [tensor("layers", np.full((70, 1), 2500.0), np.float32) if w.name == "layers" else w for w in weights]
write("constant", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))], constant)
network("odd_rate", (1, 5, 300, 70))
network("batch_of_8", (8, 5, 1000, 70))
network("six_shots", (1, 6, 1000, 70))
nodes, weights = body()
write("two_inputs", nodes, [info("gather", (1, 5, 1000, 70)), info("other", (1,))], [info("velocity", (1, 1, 70, 70))], weights)
nodes, weights = body(out=(1, 4900))
write("no_map", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 4900))], weights)

# with error and families, in units of a manifest: velocity = 1500 y + 3000, error = 100 e
nodes, weights = body(scale=1500.0, offset=3000.0)
nodes += [
    helper.make_node("Abs", ["velocity"], ["error"]),
    helper.make_node("Identity", ["logits"], ["families"]),
]
weights += [tensor("logits", [[0.0, np.log(3.0)]], np.float32)]
outputs = [info("velocity", (1, 1, 70, 70)), info("error", (1, 1, 70, 70)), info("families", (1, 2))]
write("full", nodes, [info("gather", (1, 5, 500, 70))], outputs, weights)

# not finite
nodes, weights = body()
nodes[-1] = helper.make_node("Reshape", ["broken", "shape"], ["velocity"])
nodes.insert(4, helper.make_node("Div", ["map", "zero"], ["infinite"]))
nodes.insert(5, helper.make_node("Sub", ["infinite", "infinite"], ["broken"]))
write("nan", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))],
      weights + [tensor("zero", [0.0], np.float32)])

# weights in another file
nodes, weights = body()
layers = next(w for w in weights if w.name == "layers")
(HERE / "weights.bin").write_bytes(b"\0" * 64 + layers.raw_data)
layers.ClearField("raw_data")
layers.data_location = TensorProto.EXTERNAL
for key, value in [("location", "weights.bin"), ("offset", "64"), ("length", "280")]:
    layers.external_data.add(key=key, value=value)
write("external", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))], weights, check=False)

# more than a machine holds
nodes, weights = body()
nodes[-1:] = [
    helper.make_node("ConstantOfShape", ["million"], ["huge"]),
    helper.make_node("ReduceMax", ["huge"], ["highest"], keepdims=0),
    helper.make_node("Add", ["map", "highest"], ["more"]),
    helper.make_node("Reshape", ["more", "shape"], ["velocity"]),
]
write("huge", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))],
      weights + [tensor("million", [1000000, 1000000], np.int64)])

# a weight that claims more than it has
nodes, weights = body()
layers = next(w for w in weights if w.name == "layers")
layers.dims[:] = [1 << 40, 1 << 40]
write("claims", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))], weights, check=False)

# operators that tract does not know, or gets wrong
nodes, weights = body()
loop = helper.make_graph(
    [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
    "twice",
    [info("i", (), TensorProto.INT64), info("go", (), TensorProto.BOOL), info("v", (70, 70))],
    [info("on", (), TensorProto.BOOL), info("w", (70, 70))],
)
nodes = nodes[:4] + [
    helper.make_node("Mul", ["map", "half"], ["halved"]),
    helper.make_node("Loop", ["once", "yes", "halved"], ["twice"], body=loop),
    helper.make_node("Reshape", ["twice", "shape"], ["velocity"]),
]
write("loop", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))],
      weights + [tensor("half", [0.5], np.float32), tensor("once", 1, np.int64), tensor("yes", True, np.bool_)])
nodes, weights = body()
nodes[-1] = helper.make_node("Magic", ["map"], ["velocity"], domain="example")
write("magic", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))], weights, domains=["example"])
nodes, weights = body()
nodes[-1] = helper.make_node("Reshape", ["map", "shape"], ["whole"])
nodes.append(helper.make_node("ConvTranspose", ["whole", "kernel"], ["velocity"], output_shape=[70, 70]))
write("conv_transpose", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))],
      weights + [tensor("kernel", np.ones((1, 1, 1, 1)), np.float32)])

# sparse weights
nodes, weights = body()
values = helper.make_tensor("gain", TensorProto.FLOAT, [1], [10.0])
indices = helper.make_tensor("gain_at", TensorProto.INT64, [1], [0])
sparse = helper.make_sparse_tensor(values, indices, [1])
write("sparse", nodes, [info("gather", (1, 5, 1000, 70))], [info("velocity", (1, 1, 70, 70))],
      [w for w in weights if w.name != "gain"], sparse=[sparse])
