//! How gathers go into a network and maps come out, from its manifest or, without one, by its shapes.
//!
//! Without a manifest the input must be (n, 5, T, 70), T dividing 1000 (then every 1000/T-th sample is taken, from the
//! first one on), with n either 1 or not fixed, and the first output of shape (n, 1, 70, 70) or (n, 70, 70) is the map;
//! further axes of length 1 are accepted in front. f32 and f16 are.
//!
//! Whether such a map is in m/s, or 0..1 or -1..1 for 1500..4500 m/s, is found out by a trial: the network predicts the
//! map of [`trial_map`] from its gather, which is modelled exactly. The reading that is nearest is taken, if it is
//! within 800 m/s on average, no other units would be much nearer and the output has to do with the map at all; else the file is
//! refused, and needs a manifest.

use super::graph::{F16, F32, Graph, Port};
use super::manifest::Manifest;
use super::{MAP, Prediction, RECEIVERS, SAMPLES, SHOTS};
use crate::wave::{CpuOptions, build};
use crate::{Error, Family, Model, Observed, Result, Survey};
use ndarray::{Array2, ArrayD};
use std::path::Path;

/// How a network is fed and read.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The file, for messages.
    pub path: std::path::PathBuf,
    /// Name of the input.
    pub input: String,
    /// Whether the input is f16.
    pub half: bool,
    /// Shape of the input.
    pub shape: Vec<usize>,
    every: usize,
    gain: (f32, f32),
    velocity: Reading,
    error: Option<(String, f32)>,
    families: Option<(String, Vec<Family>)>,
    /// Mean error of the trial map, m/s, where it settled the units.
    trial: Option<f64>,
}

/// How the map is read: from which output, and metres a second from its numbers.
#[derive(Clone, Debug)]
enum Reading {
    /// As the manifest says.
    Known { output: String, scale: f32, offset: f32 },
    /// By shape, and in units that a trial finds out.
    Unknown,
}

/// Scale and offset of the readings that a trial tries, and their names.
const READINGS: [(f32, f32, &str); 3] =
    [(1.0, 0.0, "m/s"), (3000.0, 1500.0, "0..1 for 1500..4500 m/s"), (1500.0, 3000.0, "-1..1 for 1500..4500 m/s")];
/// Mean error of the trial map above which a reading is no reading, m/s.
const NEAR: f64 = 800.0;
/// A reading further off than so many times the error of the best straight line through the trial, and [`SLACK`], is none either: the
/// network then knows the map well and gives it in other units, such as deviations from a mean.
const TIMES_THE_LINE: f64 = 2.5;
/// See [`TIMES_THE_LINE`], m/s.
const SLACK: f64 = 50.0;
/// Correlation with the trial map below which an output says nothing about it.
const RELATED: f64 = 0.5;

/// What to do about a network that is not understood.
const CURE: &str = "write a manifest.toml beside it (the documentation of fwi::prior::manifest shows the keys)";

/// What a network gave: names and arrays of its outputs that hold floating-point numbers.
pub(super) type Outputs = Vec<(String, ArrayD<f32>)>;

/// The map of the trial: five layers from 1600 to 3600 m/s.
pub fn trial_map() -> Array2<f64> {
    Array2::from_shape_fn(MAP, |(z, _)| 1600.0 + 500.0 * (z / 14) as f64)
}

impl Layout {
    /// Resolves names and shapes. Errors: [`Error::Input`] that says what does not fit and what to do.
    pub fn resolve(graph: &Graph, manifest: Option<&Manifest>, path: &Path) -> Result<Self> {
        let fail = |problem: String| Error::input(path, problem);
        let input = match manifest.and_then(|m| m.input.name.as_ref()) {
            Some(name) => graph.inputs.iter().find(|p| p.name == *name).ok_or_else(|| {
                fail(format!("has no input {name:?}, which its manifest names; it has {}", names(&graph.inputs)))
            })?,
            None => &graph.inputs[0],
        };
        if graph.inputs.len() > 1 {
            return Err(fail(format!("has inputs {}; expected the gather alone", names(&graph.inputs))));
        }
        if ![F32, F16].contains(&input.data_type) {
            return Err(fail(format!("input {:?} is neither f32 nor f16; export one of these", input.name)));
        }
        let asked = manifest.map(|m| SAMPLES / m.input.every);
        let (shape, samples) = input_shape(input, asked).map_err(fail)?;
        let has = |name: &String| match graph.outputs.iter().any(|p| p.name == *name) {
            true => Ok(name.clone()),
            false => {
                let all = names(&graph.outputs);
                Err(fail(format!("has no output {name:?}, which its manifest names; it has {all}")))
            }
        };
        let velocity = match manifest.map(|m| &m.velocity) {
            Some(v) => Reading::Known { output: has(&v.output)?, scale: v.scale, offset: v.offset },
            None => Reading::Unknown,
        };
        let error = manifest.and_then(|m| m.error.as_ref()).map(|e| Ok((has(&e.output)?, e.scale))).transpose()?;
        let labels = manifest.map_or(Ok(vec![]), |m| m.families()).map_err(fail)?;
        let families = manifest.and_then(|m| m.families.as_ref()).map(|f| Ok((has(&f.output)?, labels))).transpose()?;
        Ok(Self {
            path: path.to_path_buf(),
            input: input.name.clone(),
            half: input.data_type == F16,
            shape,
            every: SAMPLES / samples,
            gain: manifest.map_or((1.0, 0.0), |m| (m.input.scale, m.input.offset)),
            velocity,
            error,
            families,
            trial: None,
        })
    }

    /// Whether [`Layout::settle`] has yet to find out in what units the map is.
    pub fn needs_trial(&self) -> bool {
        matches!(self.velocity, Reading::Unknown)
    }

    /// The observed gather of the trial map.
    pub fn trial_gather() -> Result<Observed> {
        let cpu = build(Survey::openfwi(), &CpuOptions { threads: 1, ..CpuOptions::default() })?;
        Ok(Observed::new(cpu.forward(&[Model::from_map(trial_map())])?.remove(0)))
    }

    /// Takes the reading under which the outputs are nearest to the trial map.
    pub fn settle(&mut self, outputs: &Outputs) -> Result<()> {
        let Some((output, map)) = outputs.iter().find_map(|(name, a)| Some((name, as_map(a)?))) else {
            let shapes: Vec<String> = outputs.iter().map(|(n, a)| format!("{n:?} {:?}", a.shape())).collect();
            let problem = format!("gives {}; expected a map of shape (1, 1, 70, 70) or (1, 70, 70)", shapes.join(", "));
            return Err(Error::input(&self.path, problem));
        };
        finite(&map, &self.path)?;
        let truth = trial_map();
        let error = |scale: f32, offset: f32| {
            let off = |(y, t): (&f32, &f64)| (f64::from(scale * y + offset) - t).abs();
            map.iter().zip(&truth).map(off).sum::<f64>() / truth.len() as f64
        };
        let tried = READINGS.iter().map(|&(scale, offset, _)| (error(scale, offset), scale, offset));
        let (off, scale, offset) = tried.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are three");
        let best = regression(&map, &truth);
        let unrelated = best.correlation < RELATED;
        let other_units = off > TIMES_THE_LINE * error(best.scale, best.offset) + SLACK;
        if off > NEAR || other_units || unrelated {
            let (low, high) = map.iter().fold((f32::MAX, f32::MIN), |(l, h), &y| (l.min(y), h.max(y)));
            let hint = match unrelated {
                true => String::new(),
                false => format!(" ({:.3} y + {:.0} m/s comes nearest)", best.scale, best.offset),
            };
            let problem = format!(
                "predicts {low:.3}..{high:.3} for a map of 1600..3600 m/s, which is that map neither in m/s nor as 0..1 or -1..1{hint}; {CURE}"
            );
            return Err(Error::input(&self.path, problem));
        }
        self.velocity = Reading::Known { output: output.clone(), scale, offset };
        self.trial = Some(off);
        Ok(())
    }

    /// How it is read, in words.
    pub fn describe(&self) -> String {
        let step = if self.every > 1 { format!(", one sample of {}", self.every) } else { String::new() };
        let units = match &self.velocity {
            Reading::Known { output, scale, offset } => {
                let known = READINGS.iter().find(|r| (r.0, r.1) == (*scale, *offset));
                let units = known.map_or(format!("{scale} y + {offset} m/s"), |r| r.2.to_string());
                format!("{output:?} in {units}")
            }
            Reading::Unknown => "not known yet".into(),
        };
        let trial = self.trial.map_or(String::new(), |off| format!(", {off:.0} m/s off on the trial map"));
        format!("input {:?} {:?}{step}; map {units}{trial}", self.input, self.shape)
    }

    /// The network's input for the samples of a gather, see [`samples`](super::samples).
    pub fn encode(&self, samples: &[f32]) -> Vec<f32> {
        let (scale, offset) = self.gain;
        // the time samples of all shots, one after the other; each shot's begin with one that is taken
        let rows = samples.chunks_exact(RECEIVERS).step_by(self.every);
        rows.flatten().map(|x| scale * x + offset).collect()
    }

    /// The prediction in a network's outputs. Errors: [`Error::Input`] for other shapes and numbers that are not finite.
    pub fn decode(&self, outputs: &Outputs) -> Result<Prediction> {
        let get = |name: &String| {
            outputs.iter().find(|(n, _)| n == name).map(|(_, a)| a).ok_or_else(|| {
                Error::input(&self.path, format!("output {name:?} does not hold floating-point numbers"))
            })
        };
        let map = |name: &String| -> Result<Array2<f32>> {
            let array = get(name)?;
            let map = as_map(array).ok_or_else(|| {
                let shape = array.shape();
                let problem = format!("output {name:?} has shape {shape:?}; expected (1, 1, 70, 70) or (1, 70, 70)");
                Error::input(&self.path, problem)
            })?;
            finite(&map, &self.path).map(|()| map)
        };
        let Reading::Known { output, scale, offset } = &self.velocity else {
            return Err(Error::input(&self.path, format!("is not known to give m/s; {CURE}")));
        };
        let velocity = map(output)?.mapv(|y| scale * y + offset);
        finite(&velocity, &self.path)?;
        if let Some(v) = velocity.iter().find(|v| **v <= 0.0) {
            let problem = format!("predicts a velocity of {v} m/s; check velocity.scale and velocity.offset, {CURE}");
            return Err(Error::input(&self.path, problem));
        }
        let error = self.error.as_ref().map(|(name, scale)| Ok(map(name)?.mapv(|y| (scale * y).abs()))).transpose()?;
        let families = self.families.as_ref().map(|(name, labels)| {
            let logits = get(name)?;
            if logits.len() != labels.len() || logits.iter().any(|y| !y.is_finite()) {
                let (n, m) = (logits.len(), labels.len());
                let problem = format!("output {name:?} holds {n} numbers; expected {m} finite logits, one a label");
                return Err(Error::input(&self.path, problem));
            }
            Ok(labels.iter().copied().zip(softmax(logits)).collect())
        });
        Ok(Prediction { velocity, error, families: families.transpose()? })
    }
}

/// The straight line through a trial: metres a second from a network's numbers.
struct Line {
    scale: f32,
    offset: f32,
    /// Of the numbers with the map, 0 where they do not vary.
    correlation: f64,
}

fn regression(map: &Array2<f32>, truth: &Array2<f64>) -> Line {
    let n = truth.len() as f64;
    let mean = |of: &mut dyn Iterator<Item = f64>| of.sum::<f64>() / n;
    let y = mean(&mut map.iter().map(|&y| f64::from(y)));
    let t = mean(&mut truth.iter().copied());
    let (mut yy, mut yt, mut tt) = (0.0, 0.0, 0.0);
    for (&a, &b) in map.iter().zip(truth) {
        let (a, b) = (f64::from(a) - y, b - t);
        yy += a * a;
        yt += a * b;
        tt += b * b;
    }
    let scale = if yy > 0.0 { yt / yy } else { 0.0 };
    let correlation = if yy > 0.0 { yt / (yy * tt).sqrt() } else { 0.0 };
    Line { scale: scale as f32, offset: (t - scale * y) as f32, correlation }
}

fn names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|p| format!("{:?}", p.name)).collect();
    names.join(", ")
}

/// The shape to feed and the number of time samples in it. `asked` is the number that a manifest asks for.
fn input_shape(input: &Port, asked: Option<usize>) -> std::result::Result<(Vec<usize>, usize), String> {
    let Some(declared) = &input.shape else {
        let samples = asked.unwrap_or(SAMPLES);
        return Ok((vec![1, SHOTS, samples, RECEIVERS], samples));
    };
    let refuse = |why: &str| {
        let axes: Vec<String> = declared.iter().map(|d| d.map_or("?".into(), |n| n.to_string())).collect();
        let wanted = asked.map_or("T, 70) with T = 1000 or a divisor of it".into(), |n| format!("{n}, 70)"));
        Err(format!("input {:?} has shape ({}){why}; expected (1, 5, {wanted}", input.name, axes.join(", ")))
    };
    let Some(front) = declared.len().checked_sub(3) else { return refuse("") };
    let is = |d: Option<usize>, n: usize| d.is_none_or(|d| d == n);
    if let Some(n) = declared[..front].iter().flatten().find(|n| **n != 1) {
        return refuse(&format!(": its batch is fixed at {n}, export it with 1 or a free one"));
    }
    let samples = declared[front + 1].or(asked).unwrap_or(SAMPLES);
    let divides = samples > 0 && SAMPLES.is_multiple_of(samples) && asked.is_none_or(|n| n == samples);
    if front > 2 || !is(declared[front], SHOTS) || !is(declared[front + 2], RECEIVERS) || !divides {
        return refuse("");
    }
    let mut shape = vec![1; front];
    shape.extend([SHOTS, samples, RECEIVERS]);
    Ok((shape, samples))
}

/// An array of shape (1, .., 70, 70) as a map.
fn as_map(array: &ArrayD<f32>) -> Option<Array2<f32>> {
    let (front, map) = array.shape().split_at(array.ndim().checked_sub(2)?);
    let fits = map == [MAP.0, MAP.1] && front.iter().all(|&n| n == 1);
    fits.then(|| Array2::from_shape_vec(MAP, array.iter().copied().collect()).expect("the shape was checked"))
}

fn finite(map: &Array2<f32>, path: &Path) -> Result<()> {
    match map.indexed_iter().find(|(_, y)| !y.is_finite()) {
        None => Ok(()),
        Some(((z, x), y)) => {
            let problem = format!("predicts {y} at row {z}, column {x}; the network or its scaling is broken");
            Err(Error::input(path, problem))
        }
    }
}

fn softmax(logits: &ArrayD<f32>) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&y| f64::from(y - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}
