//! Which recipe an inversion follows, and why.

use fwi::family::{Classification, Group, Recipe, RecipeStart};
use fwi::invert::{Attempt, Outcome, Settings, Stage};
use fwi::prior::Prediction;
use fwi::reg::RegulariserSpec;
use fwi::{Family, Result};
use std::path::Path;

/// What the command line asks for.
pub enum Choice {
    /// This recipe.
    Recipe(Box<Chosen>),
    /// The recipe of a family.
    Family(Family),
    /// No recipe but stages.
    Stages,
    /// Whatever suits.
    Open,
}

/// A recipe with where it came from.
#[derive(Clone)]
pub struct Chosen {
    /// The recipe.
    pub recipe: Recipe,
    /// Its name, or the file that it was read from.
    pub source: String,
    /// Why it was chosen, in words.
    pub why: String,
}

/// The recipe of that name, or else in that file.
pub fn load(name: &str, dt: f64) -> Result<Chosen> {
    let path = Path::new(name);
    let embedded = Recipe::names().any(|n| n == name);
    let file = !embedded && (name.contains(['.', '/']) || path.exists());
    let recipe = if file { Recipe::read(path, dt)? } else { Recipe::named(name, dt)? };
    let whole = || path.canonicalize().map_or(name.to_string(), |p| p.display().to_string());
    Ok(Chosen { recipe, source: if file { whole() } else { name.into() }, why: "as asked for".into() })
}

impl Choice {
    /// Whether the recipe that is named begins with a gradient.
    pub fn begins_with_gradient(&self) -> bool {
        matches!(self, Self::Recipe(chosen) if chosen.recipe.start == RecipeStart::Gradient)
    }

    /// Whether a prior's word on the gather counts even where the start is another map: on its family, or on how far off maps
    /// of such gathers are.
    pub fn asks_a_prior(&self) -> bool {
        let asks = |stage: &Stage| {
            let newton = stage.newton.iter().flat_map(|newton| &newton.regularisers);
            let lbfgs = stage.lbfgs.iter().flat_map(|lbfgs| &lbfgs.regularisers);
            newton.chain(lbfgs).any(RegulariserSpec::asks_for_confidence)
        };
        match self {
            Self::Recipe(chosen) => chosen.recipe.stages.iter().any(asks),
            Self::Family(_) | Self::Open => true,
            Self::Stages => false,
        }
    }

    /// The recipe, if it is one: of what was asked for, and of what was found where a prior tells.
    pub fn settle(&self, found: Option<(&Classification, &Prediction)>, dt: f64) -> Result<Option<Chosen>> {
        let (name, why) = match (self, found) {
            (Self::Recipe(chosen), _) => return Ok(Some((**chosen).clone())),
            (Self::Stages, _) | (Self::Open, None) => return Ok(None),
            (Self::Family(family), found) => {
                let group = found.map_or(Group::of(*family), |(_, p)| Group::of_predicted(*family, &p.velocity));
                let why = format!("for the group {group}, of the family {family} that was asked for");
                (Recipe::for_group(group), why)
            }
            (Self::Open, Some((class, _))) => {
                let Classification { group, probability, .. } = class;
                let family = class.likeliest().map_or(String::new(), |(family, own)| {
                    format!(", likeliest family {family} ({:.0}%)", 100.0 * own)
                });
                let why = format!("for the group {group} ({:.0}%){family}", 100.0 * probability);
                (Recipe::for_group(*group), why)
            }
        };
        Ok(Some(Chosen { why, ..load(name, dt)? }))
    }
}

impl Chosen {
    /// It and its fall-backs as attempts.
    pub fn attempts(&self, settings: &Settings, dt: f64) -> Result<Vec<Attempt>> {
        Ok(self.recipe.clone().chain(dt)?.into_iter().map(|recipe| Attempt::new(recipe, settings)).collect())
    }
}

/// Stages without a recipe as the only attempt.
pub fn without_recipe(settings: &Settings) -> Vec<Attempt> {
    let (recipe, settings) = ("stages".into(), settings.clone());
    let (accept_rms, again_below) = (f64::INFINITY, None);
    vec![Attempt { recipe, start: RecipeStart::Prior, accept_rms, only_above: None, times: 1, again_below, settings }]
}

/// The attempt whose map is the outcome's.
pub fn kept<'a>(attempts: &'a [Attempt], outcome: &Outcome) -> &'a Attempt {
    attempts.iter().find(|a| outcome.kept_recipe() == Some(&a.recipe)).unwrap_or(&attempts[0])
}
