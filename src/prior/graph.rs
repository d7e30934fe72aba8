//! Reading and checking an ONNX file before any runtime sees it.
//!
//! The file is decoded whole (protobuf, through the types of `tract-onnx`), every tensor in it is checked against its
//! declared shape, and tensors kept in other files are read in: only regular files inside the model's own folder, within
//! their length. A runtime is handed the result, re-encoded, and never opens a file itself.
//!
//! Fields are those of onnx.proto, <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.

use super::manifest::is_text;
use super::runtime::one_line;
use crate::{Error, Result};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

/// How much a file may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphLimits {
    /// Largest file, bytes; protobuf itself ends at 2 GiB.
    pub max_file: u64,
    /// Most bytes of external data.
    pub max_external: u64,
}

impl Default for GraphLimits {
    /// 1 GiB each.
    fn default() -> Self {
        Self { max_file: 1 << 30, max_external: 1 << 30 }
    }
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Lengths of the axes, `None` for those that are not fixed; nothing at all where the rank is not declared.
    pub shape: Option<Vec<Option<usize>>>,
    /// Number type, as in TensorProto.DataType (1 is f32, 10 is f16).
    pub data_type: i32,
}

/// A checked graph: everything it needs is inside.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The model; its external data have become internal.
    pub(super) model: ModelProto,
    /// Inputs that are not initialised.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Version of the default operator set, 0 if none is declared.
    pub opset: i64,
    /// Numbers in initialisers.
    pub parameters: u64,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of external data.
    pub external_bytes: u64,
    /// What tract is known to compute wrongly without a word, if the graph has it.
    pub tract_gets_wrong: Option<String>,
}

/// Longest name of an operator, characters, and most of them that differ; ONNX has some 200.
const MAX_OPERATOR: usize = 100;
const MAX_OPERATORS: usize = 1000;

/// Number type f32 in TensorProto.DataType.
pub const F32: i32 = 1;
/// Number type f16 in TensorProto.DataType.
pub const F16: i32 = 10;

/// The bytes of a regular file of at most `limit` bytes, which is to be `what`.
pub(super) fn read_capped(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    // asked before opening: opening a pipe would wait for its writer
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !metadata.is_file() {
        return Err(Error::input(path, format!("is no regular file; expected {what}")));
    }
    let too_long = || Error::input(path, format!("is longer than the limit of {} MB; expected {what}", limit >> 20));
    if metadata.len() > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}

impl Graph {
    /// Decodes and checks a model. `path` is where it comes from: for messages, and its folder for external data.
    ///
    /// Errors: [`Error::Input`] for anything that is no complete ONNX model, or that reaches out of its folder.
    pub fn parse(bytes: &[u8], path: &Path, limits: &GraphLimits) -> Result<Self> {
        let fail = |problem: String| Error::input(path, one_line(&problem));
        if bytes.is_empty() {
            return Err(fail("is empty; expected an ONNX model".into()));
        }
        let mut model = ModelProto::decode(bytes).map_err(|e| {
            // the path of fields before it is as long as the nesting is deep
            let text = e.to_string();
            let why = text.rsplit(": ").next().unwrap_or_default();
            fail(format!("is no ONNX model, or a truncated or damaged one ({why}); export it again"))
        })?;
        let mut walk = Walk {
            folder: path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            files: HashMap::new(),
            left: limits.max_external,
            limit: limits.max_external,
            external: 0,
            operators: BTreeMap::new(),
            wrong: None,
        };
        let Some(graph) = model.graph.as_mut() else {
            return Err(fail("holds no graph: it is no ONNX model, or a truncated one; export it again".into()));
        };
        walk.graph(graph).map_err(fail)?;
        model.functions.iter_mut().try_for_each(|f| walk.nodes(&mut f.node)).map_err(fail)?;
        // only training would use it
        model.training_info.clear();
        let graph = model.graph.as_ref().expect("seen above");
        let initialised: Vec<&str> = graph.initializer.iter().map(|t| &t.name[..]).collect();
        let (inputs, outputs): (Vec<Port>, Vec<Port>) =
            (graph.input.iter().map(port).collect(), graph.output.iter().map(port).collect());
        let inputs: Vec<Port> = inputs.into_iter().filter(|p| !initialised.contains(&&p.name[..])).collect();
        if inputs.is_empty() || outputs.is_empty() {
            return Err(fail("has a graph without inputs or outputs; expected a network from gathers to maps".into()));
        }
        let parameters = graph.initializer.iter().map(|t| numbers(&t.dims).unwrap_or(0)).sum();
        let default_set = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
        Ok(Self {
            inputs,
            outputs,
            opset: default_set.map_or(0, |o| o.version),
            parameters,
            operators: walk.operators,
            file_bytes: bytes.len() as u64,
            external_bytes: walk.external,
            tract_gets_wrong: walk.wrong,
            model,
        })
    }

    /// The checked model as bytes, external data included.
    pub(super) fn encode(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }
}

fn port(info: &ValueInfoProto) -> Port {
    let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
    let tensor = value.map(|type_proto::Value::TensorType(t)| t);
    let length = |d: &Option<Dim>| match d {
        Some(Dim::DimValue(n)) => usize::try_from(*n).ok(),
        _ => None,
    };
    let shape = tensor.and_then(|t| t.shape.as_ref()).map(|s| s.dim.iter().map(|d| length(&d.value)).collect());
    Port { name: info.name.clone(), shape, data_type: tensor.map_or(0, |t| t.elem_type) }
}

/// Product of the dimensions, if they are possible.
fn numbers(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
}

/// Bytes of a number of a TensorProto.DataType.
fn size_of_type(data_type: i32) -> Option<u64> {
    match data_type {
        2 | 3 | 9 => Some(1),
        4 | 5 | F16 | 16 => Some(2),
        F32 | 6 | 12 => Some(4),
        7 | 11 | 13 => Some(8),
        _ => None,
    }
}

/// One pass over everything that can hold tensors.
struct Walk<'a> {
    folder: &'a Path,
    /// External files read so far.
    files: HashMap<String, Vec<u8>>,
    /// Bytes of external files that may yet be read.
    left: u64,
    /// Bytes that tensors may take out of them; any number of tensors may name the same ones.
    limit: u64,
    external: u64,
    operators: BTreeMap<String, usize>,
    wrong: Option<String>,
}

impl Walk<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> std::result::Result<(), String> {
        graph.initializer.iter_mut().try_for_each(|t| self.tensor(t))?;
        if !graph.sparse_initializer.is_empty() {
            return Err("holds sparse weights, which are not supported; export them dense".into());
        }
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> std::result::Result<(), String> {
        for node in nodes {
            if !is_text(&node.op_type, MAX_OPERATOR) {
                return Err(
                    "holds an operator whose name is no text, or too long; the file is damaged or hostile".into()
                );
            }
            *self.operators.entry(node.op_type.clone()).or_default() += 1;
            if self.operators.len() > MAX_OPERATORS {
                return Err(format!(
                    "holds more than {MAX_OPERATORS} kinds of operators; the file is damaged or hostile"
                ));
            }
            if node.op_type == "ConvTranspose" && node.attribute.iter().any(|a| a.name == "output_shape") {
                self.wrong = Some("ConvTranspose with output_shape".into());
            }
            node.attribute.iter_mut().try_for_each(|a| self.attribute(a))?;
        }
        Ok(())
    }

    fn attribute(&mut self, a: &mut AttributeProto) -> std::result::Result<(), String> {
        if a.sparse_tensor.is_some() || !a.sparse_tensors.is_empty() {
            return Err("holds sparse tensors, which are not supported; export them dense".into());
        }
        a.t.iter_mut().chain(&mut a.tensors).try_for_each(|t| self.tensor(t))?;
        a.g.iter_mut().chain(&mut a.graphs).try_for_each(|g| self.graph(g))
    }

    /// Checks that a tensor holds as many numbers as its shape says.
    fn tensor(&mut self, t: &mut TensorProto) -> std::result::Result<(), String> {
        let name = t.name.clone();
        let fail = |problem: String| Err::<(), String>(format!("tensor {name:?} {problem}"));
        let Some(size) = size_of_type(t.data_type) else {
            return fail(format!("has number type {}, which is not supported; export f32 or f16 weights", t.data_type));
        };
        let Some((n, bytes)) = numbers(&t.dims).and_then(|n| Some((n, n.checked_mul(size)?))) else {
            return fail(format!("has the impossible shape {:?}", t.dims));
        };
        if t.segment.is_some() {
            return fail("comes in segments, which are not supported; export it whole".into());
        }
        // 1 is EXTERNAL
        if t.data_location == Some(1) {
            t.raw_data = self.external(t, bytes).map_err(|problem| format!("tensor {name:?} {problem}"))?;
            t.data_location = None;
        }
        t.external_data.clear();
        let typed = [
            t.float_data.len(),
            t.int32_data.len(),
            t.int64_data.len(),
            t.double_data.len(),
            t.uint64_data.len(),
            t.string_data.len(),
        ];
        let found: usize = typed.iter().sum();
        if t.raw_data.is_empty() && found as u64 != n {
            return fail(format!("holds {found} numbers, but its shape {:?} needs {n}; the file is damaged", t.dims));
        }
        if !t.raw_data.is_empty() && (t.raw_data.len() as u64 != bytes || found > 0) {
            let found = t.raw_data.len();
            return fail(format!("holds {found} bytes, but its shape {:?} needs {bytes}; the file is damaged", t.dims));
        }
        Ok(())
    }

    /// The bytes of a tensor that is kept in another file.
    fn external(&mut self, t: &TensorProto, bytes: u64) -> std::result::Result<Vec<u8>, String> {
        let value = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| &e.value[..]);
        let number = |key: &str, otherwise: Option<u64>| match value(key) {
            None => Ok(otherwise),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("has external {key} {text:?}, no number")),
        };
        let location = value("location").ok_or("is said to lie in another file, but none is named")?;
        let offset = number("offset", Some(0))?.unwrap_or(0);
        let length = number("length", Some(bytes))?.unwrap_or(bytes);
        if length != bytes {
            return Err(format!("has {length} bytes of external data, but its shape needs {bytes}"));
        }
        if !self.files.contains_key(location) {
            let data = self.file(location)?;
            self.files.insert(location.to_string(), data);
        }
        let file = &self.files[location];
        let end = offset.checked_add(length).filter(|&end| end <= file.len() as u64).ok_or_else(|| {
            let n = file.len();
            format!("lies at {offset} + {length} bytes in {location:?}, which has {n}; the file is truncated")
        })?;
        self.external = self.external.saturating_add(length);
        if self.external > self.limit {
            return Err(format!("takes the external data beyond the limit of {} MB", self.limit >> 20));
        }
        Ok(file[offset as usize..end as usize].to_vec())
    }

    /// The bytes of an external file, which must lie inside the model's folder, links followed.
    fn file(&mut self, location: &str) -> std::result::Result<Vec<u8>, String> {
        let inside = |c| matches!(c, Component::Normal(_) | Component::CurDir);
        let relative = Path::new(location);
        if location.is_empty() || location.contains(['\\', '\0']) || !relative.components().all(inside) {
            return Err(format!(
                "names the external file {location:?}; only files inside the model's own folder are read"
            ));
        }
        let path = self.folder.join(relative);
        let real = |p: &Path| -> std::result::Result<PathBuf, String> {
            p.canonicalize().map_err(|e| format!("names the external file {location:?}, which cannot be read: {e}"))
        };
        let (path, folder) = (real(&path)?, real(self.folder)?);
        if !path.starts_with(&folder) {
            return Err(format!(
                "names the external file {location:?}, which links to outside of the model's own folder"
            ));
        }
        let data = read_capped(&path, self.left, "the weights of a model")
            .map_err(|e| format!("names the external file {location:?}: {e}"))?;
        self.left -= data.len() as u64;
        Ok(data)
    }
}
