//! What a set of synthetic samples is made of: which maps, how changed, and what is stored of each.

use super::augment::Augment;
use super::{GENERATOR, SHAPE, draw};
use crate::{Error, Family, Gather, Position, Result, Survey};
use ndarray::{Array, Array2, Array3, ArrayView, Dimension, s};
use serde::{Deserialize, Serialize};

/// Column of the middle shot's mirror image, and that shot's number.
const MIDDLE: usize = 2;

/// What samples are made of. To rounding, a sample depends on this and its index only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The family, or `None` for all ten in turn: sample `i` is then number `i / 10` of family `i % 10`.
    #[serde(with = "family_name")]
    pub family: Option<Family>,
    /// The seed of the maps.
    pub seed: u64,
    /// [`GENERATOR`] of the version that drew the maps; 0 in files from before it was kept.
    #[serde(default)]
    pub generator: u32,
    /// What is done to the maps, in order.
    #[serde(with = "augment_text")]
    pub augment: Augment,
    /// Samples as f16 in place of f32; maps stay f32.
    pub half: bool,
    /// Of the time samples, 0, `every`, 2 `every` ... are kept.
    pub every: usize,
    /// No gathers at all.
    pub maps_only: bool,
    /// The middle shot of the mirrored map besides.
    pub middle_flip: bool,
    /// Samples in a file.
    pub per_file: u64,
    /// The arithmetic of the samples, such as "f32 fast"; empty with `maps_only`. CPU and GPU differ by rounding only, so a
    /// set may be continued on either.
    pub arithmetic: String,
}

/// Which map a sample begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The family.
    pub family: Family,
    /// The map's number in it.
    pub number: u64,
}

impl Recipe {
    /// Unchanged maps with f32 gathers of every time sample.
    pub fn new(family: Option<Family>, seed: u64) -> Self {
        Self {
            family,
            seed,
            generator: GENERATOR,
            augment: Augment::default(),
            half: false,
            every: 1,
            maps_only: false,
            middle_flip: false,
            per_file: 500,
            arithmetic: String::new(),
        }
    }

    /// What sample `index` begins with.
    pub fn origin(&self, index: u64) -> Origin {
        let all = Family::ALL.len() as u64;
        match self.family {
            Some(family) => Origin { family, number: index },
            None => Origin { family: Family::ALL[(index % all) as usize], number: index / all },
        }
    }

    /// The map of a sample, (70, 70) in m/s.
    pub fn map(&self, origin: Origin) -> Array2<f32> {
        let map = draw(origin.family, self.seed, origin.number);
        self.augment.apply(map, origin.family, self.seed, origin.number)
    }

    /// The survey that gives everything that is stored of a sample: OpenFWI's, with one more shot for `middle_flip`.
    ///
    /// The middle shot of a mirrored map is the shot from the mirrored place into the map as it is, its receivers in
    /// reverse.
    pub fn survey(&self) -> Survey {
        let mut survey = Survey::openfwi();
        if self.middle_flip {
            let middle = survey.sources[MIDDLE];
            survey.sources.push(Position { x: survey.nx - 1 - middle.x, ..middle });
        }
        survey
    }

    /// Time samples that are kept of a trace.
    pub fn samples(&self) -> usize {
        Survey::openfwi().nt.div_ceil(self.every)
    }

    /// What is stored of a gather of [`Recipe::survey`]: (5, T, 70), and the middle shot of the mirrored map, (T, 70).
    pub fn kept(&self, gather: &Gather) -> (Array3<f32>, Option<Array2<f32>>) {
        let shots = Survey::openfwi().sources.len();
        let main = gather.data.slice(s![..shots, ..;self.every, ..]);
        let flipped = self.middle_flip.then(|| gather.data.slice(s![shots, ..;self.every, ..;-1]));
        (single(main), flipped.map(single))
    }

    /// Errors where the options make no sense together.
    pub fn check(&self) -> Result<()> {
        let nt = Survey::openfwi().nt;
        let problem = match self {
            Self { per_file: 0, .. } => "a file holds at least one sample; raise --per-file".into(),
            Self { every, .. } if !(1..=nt).contains(every) => {
                format!("--every takes 1 to {nt}, not {every}")
            }
            Self { maps_only: true, half, every, middle_flip, .. } if *half || *every != 1 || *middle_flip => {
                "--half, --every and --middle-flip are about gathers; leave them or --maps-only out".into()
            }
            _ => return Ok(()),
        };
        Err(Error::Usage(problem))
    }

    /// The recipe as a line of JSON, as the files keep it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a recipe holds nothing that JSON cannot")
    }

    /// In what another recipe, that of an existing file, differs: "seed 1, not 0; half true, not false".
    pub fn differences(&self, existing: &Self) -> Option<String> {
        let fields = |r: &Self| match serde_json::to_value(r) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        let (wanted, found) = (fields(self), fields(existing));
        let differ = found.iter().filter(|(name, value)| wanted.get(*name) != Some(value));
        let lines: Vec<String> =
            differ.map(|(n, v)| format!("{n} {v}, not {}", wanted.get(n).cloned().unwrap_or_default())).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// Whether `map`, found in an existing file, is the one that this version draws for a sample.
    pub fn draws(&self, origin: Origin, map: ndarray::ArrayView2<f32>) -> bool {
        let drawn = self.map(origin);
        // another machine's sine may differ in its last bit
        map.dim() == SHAPE && (&drawn - &map).iter().map(|d| d.abs()).sum::<f32>() < 0.01 * drawn.len() as f32
    }
}

/// The array as f32, in C order.
fn single<D: Dimension>(from: ArrayView<f64, D>) -> Array<f32, D> {
    let mut to = Array::zeros(from.raw_dim());
    to.zip_mut_with(&from, |to, &from| *to = from as f32);
    to
}

mod family_name {
    use crate::Family;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(family: &Option<Family>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(family.map_or("all", Family::name))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Family>, D::Error> {
        match String::deserialize(d)?.as_str() {
            "all" => Ok(None),
            name => name.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

mod augment_text {
    use super::Augment;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(augment: &Augment, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(augment)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Augment, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let all = Recipe::new(None, 3);
        assert_eq!(all.origin(27), Origin { family: Family::CurveFaultB, number: 2 });
        let one = Recipe::new(Some(Family::StyleA), 3);
        assert_eq!(one.origin(27), Origin { family: Family::StyleA, number: 27 });
    }

    #[test]
    fn recipes_are_read_back_and_compared() {
        let mut recipe = Recipe::new(None, 3);
        recipe.augment = "flip:0.5,elastic".parse().unwrap();
        let back: Recipe = serde_json::from_str(&recipe.to_json()).unwrap();
        assert_eq!((back == recipe, recipe.differences(&back)), (true, None));
        let older = recipe.to_json().replace(&format!("\"generator\":{GENERATOR},"), "");
        assert_eq!(serde_json::from_str::<Recipe>(&older).unwrap().generator, 0);
        let other = Recipe { seed: 4, family: Some(Family::StyleB), ..recipe.clone() };
        let text = recipe.differences(&other).unwrap();
        assert!(text.contains("seed 4, not 3") && text.contains("family \"Style_B\", not \"all\""), "{text}");
        assert!(Recipe { every: 0, ..Recipe::new(None, 0) }.check().is_err());
        assert!(Recipe { maps_only: true, half: true, ..Recipe::new(None, 0) }.check().is_err());
    }

    #[test]
    fn time_is_thinned_and_the_mirror_shot_reversed() {
        let recipe = Recipe { every: 3, middle_flip: true, ..Recipe::new(None, 0) };
        let survey = recipe.survey();
        let gather =
            Gather::new(Array3::from_shape_fn(survey.gather_shape(), |(s, t, r)| (s * 1000 + t + 7 * r) as f64));
        let (main, flipped) = recipe.kept(&gather);
        assert_eq!((main.dim(), recipe.samples()), ((5, 334, 70), 334));
        assert_eq!(main[[4, 2, 3]], 4000.0 + 6.0 + 21.0);
        assert_eq!(flipped.unwrap()[[2, 0]], 5000.0 + 6.0 + 7.0 * 69.0);
    }
}
