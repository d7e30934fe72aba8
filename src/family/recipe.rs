//! Recipes: how the maps of a group are best inverted, as data.
//!
//! A recipe is a TOML file: its name, what it is for, where it starts, and the stages one after the other. Those in
//! `recipes/` are part of the library; one table says which group gets which. A stage may be written as the difference from
//! another: `like = "layered/areas"` with what is to be otherwise.

use super::{Group, like};
use crate::invert::{Stage, is_one, one};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How to invert the gathers of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name, as `fwi recipes list` and results show it.
    pub name: String,
    /// What it is for and why it is as it is.
    pub about: String,
    /// Where it begins, unless something else is asked for.
    #[serde(default)]
    pub start: RecipeStart,
    /// Data rms, in the data's units, above which it counts as stalled and [`fallback`](Self::fallback) is tried.
    #[serde(default = "accept_rms")]
    pub accept_rms: f64,
    /// As a fall-back, it is left out where an attempt before has come to a data rms at or below this: it is for maps that are
    /// further off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_above: Option<f64>,
    /// How many times it is tried at most, while it stalls: more than once for one that begins with the best map so far.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub times: usize,
    /// It is tried again only where it has brought the data rms below this share of the lowest before: 1 where it is lower at
    /// all. By default however little it gained, for a step that gains nothing may lead on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_below: Option<f64>,
    /// Name of the embedded recipe to try where this one stalls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The stages, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

fn accept_rms() -> f64 {
    1e-4
}

/// Where a recipe begins unless something else is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipeStart {
    /// The prior's map; as a fall-back, the map that the first recipe began with.
    #[default]
    Prior,
    /// Exact source velocities and a gradient with depth.
    Gradient,
    /// As a fall-back, the map with the lowest data rms of all attempts before, or, tried again, the one that it came to; else
    /// the prior's map.
    Best,
}

impl RecipeStart {
    /// What a fall-back's start is called, where the first recipe began with `first`.
    pub fn called(self, first: &str) -> &str {
        match self {
            Self::Prior => first,
            Self::Gradient => "gradient",
            Self::Best => "best",
        }
    }
}

/// The recipes in the library, by name.
const EMBEDDED: &[(&str, &str)] = &[
    ("anneal", include_str!("../../recipes/anneal.toml")),
    ("continuation", include_str!("../../recipes/continuation.toml")),
    ("cottaar-flat", include_str!("../../recipes/cottaar-flat.toml")),
    ("cottaar-rest", include_str!("../../recipes/cottaar-rest.toml")),
    ("cottaar-style-a", include_str!("../../recipes/cottaar-style-a.toml")),
    ("cottaar-style-b", include_str!("../../recipes/cottaar-style-b.toml")),
    ("cottaar-two-velocity", include_str!("../../recipes/cottaar-two-velocity.toml")),
    ("far", include_str!("../../recipes/far.toml")),
    ("far-style", include_str!("../../recipes/far-style.toml")),
    ("flat", include_str!("../../recipes/flat.toml")),
    ("flat-skipped", include_str!("../../recipes/flat-skipped.toml")),
    ("layered", include_str!("../../recipes/layered.toml")),
    ("level", include_str!("../../recipes/level.toml")),
    ("sharp", include_str!("../../recipes/sharp.toml")),
    ("skipped", include_str!("../../recipes/skipped.toml")),
    ("smooth", include_str!("../../recipes/smooth.toml")),
];

/// Which recipe a group gets.
const CHOICES: &[(Group, &str)] = &[
    (Group::FlatVel, "flat"),
    (Group::StyleA, "smooth"),
    (Group::StyleB, "sharp"),
    (Group::TwoVelocities, "layered"),
    (Group::Layered, "layered"),
];

/// Longest recipe that is read from a file, bytes.
const LONGEST: u64 = 1 << 20;

impl Recipe {
    /// Names of the embedded recipes, sorted.
    pub fn names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// The text of an embedded recipe. Errors on a name that there is not.
    pub fn text(name: &str) -> Result<&'static str> {
        EMBEDDED.iter().find(|(n, _)| *n == name).map(|(_, text)| *text).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            Error::Usage(format!("no recipe is called \"{name}\"; there are {}", names.join(", ")))
        })
    }

    /// An embedded recipe for records sampled every `dt` s. Errors on a name that there is not.
    pub fn named(name: &str, dt: f64) -> Result<Self> {
        Self::parse(Self::text(name)?, dt).map_err(|e| Error::Usage(format!("recipe {name}: {e}")))
    }

    /// Name of the recipe for a group.
    pub fn for_group(group: Group) -> &'static str {
        CHOICES.iter().find(|row| row.0 == group).map_or("continuation", |row| row.1)
    }

    /// Names of the recipes that some group gets.
    pub fn chosen() -> Vec<&'static str> {
        let mut names: Vec<&str> = CHOICES.iter().map(|row| row.1).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A recipe in a file. Errors name the file and, where the text is no recipe, the line.
    pub fn read(path: &Path, dt: f64) -> Result<Self> {
        let fail = |e| Error::io(path, "read", e);
        let mut bytes = Vec::new();
        File::open(path).map_err(fail)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > LONGEST {
            return Err(Error::input(
                path,
                "is longer than 1 MB and no recipe; name a TOML file with [[stage]] tables",
            ));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::input(path, "is no text and so no recipe; name a TOML file with [[stage]] tables"))?;
        Self::parse(&text, dt).map_err(|e| Error::input(path, e.to_string()))
    }

    /// Parses a recipe for records sampled every `dt` s. Errors, in one line, on what is no recipe and on stages that make
    /// no sense.
    pub fn parse(text: &str, dt: f64) -> Result<Self> {
        let fail = |e: toml::de::Error| {
            let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Error::Usage(format!("line {line} of the recipe: {}", like::in_one_line(&e)))
        };
        let mut written: toml::Table = toml::from_str(text).map_err(fail)?;
        let recipe = match like::write_out(&mut written)? {
            true => Self::deserialize(written)
                .map_err(|e| Error::Usage(format!("the recipe: {}", like::in_one_line(&e))))?,
            // lines are told of what is parsed from text alone
            false => toml::from_str::<Self>(text).map_err(fail)?,
        };
        if recipe.stages.is_empty() {
            return Err(Error::Usage("a recipe needs at least one [[stage]]".into()));
        }
        if !(recipe.accept_rms > 0.0 && recipe.accept_rms.is_finite()) {
            return Err(Error::Usage(format!("accept_rms must be above 0 and finite, not {}", recipe.accept_rms)));
        }
        for (key, value) in [("only_above", recipe.only_above), ("again_below", recipe.again_below)] {
            if value.is_some_and(|x| !(x > 0.0 && x.is_finite())) {
                return Err(Error::Usage(format!("{key} must be above 0 and finite")));
            }
        }
        let most = if recipe.start == RecipeStart::Best { 100 } else { 1 };
        if recipe.times == 0 || recipe.times > most {
            let problem = "a recipe is tried once, or, with start = \"best\", 1 to 100 times";
            return Err(Error::Usage(format!("{problem}, not {}", recipe.times)));
        }
        if let Some(name) = &recipe.fallback {
            Self::text(name).map_err(|e| Error::Usage(format!("fallback: {e}")))?;
        }
        recipe.stages.iter().try_for_each(|s| s.validate(dt))?;
        Ok(recipe)
    }

    /// It as TOML, every stage written out. Errors on numbers that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Usage(format!("recipe {}: {e}", self.name)))
    }

    /// This recipe and those that it falls back on, one after the other; none comes twice.
    pub fn chain(self, dt: f64) -> Result<Vec<Self>> {
        let mut chain = vec![self];
        while let Some(next) = chain.last().and_then(|r| r.fallback.clone()) {
            if chain.iter().any(|r| r.name == next) {
                break;
            }
            chain.push(Self::named(&next, dt)?);
        }
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invert::{Areas, Newton, QuasiNewton, Round, default_schedule};
    use crate::reg::RegulariserSpec;

    #[test]
    fn every_embedded_recipe_is_read_under_its_name_and_every_choice_is_one() {
        for name in Recipe::names() {
            let recipe = Recipe::named(name, 1e-3).unwrap();
            assert_eq!(recipe.name, name);
            let text = recipe.to_toml().unwrap();
            assert_eq!(Recipe::parse(&text, 1e-3).unwrap(), recipe, "{text}");
            recipe.chain(1e-3).unwrap();
        }
        assert!(Recipe::names().is_sorted());
        for group in Group::ALL {
            assert!(CHOICES.iter().any(|row| row.0 == group), "no recipe for {group}");
        }
        assert!(CHOICES.iter().all(|row| Recipe::text(row.1).is_ok()), "{CHOICES:?}");
        assert_eq!(Recipe::for_group(Group::Layered), "layered");
    }

    #[test]
    fn the_table_of_keys_has_them_all() {
        /// The names that a type tells in its refusal of another one.
        fn names<T: serde::de::DeserializeOwned>(text: &str) -> Vec<String> {
            let refusal = toml::from_str::<T>(text).err().expect("no such name").to_string();
            let (_, names) = refusal.split_once("expected").expect("a list of names");
            names.split('`').skip(1).step_by(2).map(String::from).collect()
        }
        #[derive(Deserialize)]
        struct Penalty {
            #[serde(rename = "x")]
            _kind: RegulariserSpec,
        }
        let text = include_str!("../../recipes/README.md");
        let mut keys: Vec<String> = Recipe::names().filter(|n| !n.starts_with("cottaar")).map(String::from).collect();
        for list in [
            names::<Recipe>("zzz = 1"),
            names::<Stage>("zzz = 1"),
            names::<Newton>("zzz = 1"),
            names::<QuasiNewton>("zzz = 1"),
            names::<Penalty>("x = { kind = \"zzz\" }"),
        ] {
            assert!(list.len() > 2, "{list:?}");
            keys.extend(list.into_iter().filter(|key| key != "stage"));
        }
        for key in &keys {
            assert!(text.contains(&format!("`{key}`")) || text.contains(&format!("`{key} = {{")), "{key} is missing");
        }
        for key in names::<Areas>("zzz = 1").into_iter().chain(names::<Round>("zzz = 1")) {
            assert!(text.contains(&format!(" {key},")) || text.contains(&format!(" {key} ")), "{key} is missing");
        }
    }

    #[test]
    fn continuation_is_the_default_schedule() {
        let recipe = Recipe::named("continuation", 1e-3).unwrap();
        assert_eq!((recipe.stages, recipe.start), (default_schedule(), RecipeStart::Gradient));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let head = "name = \"x\"\nabout = \"y\"\n";
        let stage = "[[stage]]\nname = \"a\"\n";
        for (text, part) in [
            (format!("{head}{stage}smoothng = 1\n"), "line 5 of the recipe: unknown field `smoothng`"),
            (format!("{head}[[stage]\n"), "line 3 of the recipe"),
            (format!("{head}stage = []"), "at least one [[stage]]"),
            (format!("{head}accept_rms = nan\n{stage}"), "accept_rms must be above 0"),
            (format!("{head}only_above = 0.0\n{stage}"), "only_above must be above 0"),
            (format!("{head}times = 2\n{stage}"), "tried once, or, with start = \"best\", 1 to 100 times, not 2"),
            (format!("{head}start = \"best\"\ntimes = 0\n{stage}"), "1 to 100 times, not 0"),
            (format!("{head}fallback = \"none\"\n{stage}"), "fallback: no recipe is called \"none\"; there are"),
            (format!("{head}{stage}smoothing = -1.0"), "stage \"a\": smoothing must be above 0"),
            (format!("{head}{stage}stall = {{ window = 5, decrease = 0.1, step = 1 }}"), "unknown field `step`"),
            (
                format!("{head}{stage}stall = {{ window = 5, decrease = 0.1 }}\nnewton = {{ noise = [0.01] }}"),
                "stage \"a\": a stall ends L-BFGS only",
            ),
        ] {
            let message = Recipe::parse(&text, 1e-3).unwrap_err().to_string();
            assert!(message.contains(part) && message.lines().count() == 1, "{message}");
        }
    }

    #[test]
    fn a_chain_of_fall_backs_ends() {
        let text = "name = \"continuation\"\nabout = \"\"\nfallback = \"continuation\"\n[[stage]]\nname = \"a\"";
        assert_eq!(Recipe::parse(text, 1e-3).unwrap().chain(1e-3).unwrap().len(), 1);
        let text = text.replacen("continuation", "mine", 1);
        let names: Vec<String> =
            Recipe::parse(&text, 1e-3).unwrap().chain(1e-3).unwrap().into_iter().map(|r| r.name).collect();
        assert_eq!(names, ["mine", "continuation"]);
    }
}
