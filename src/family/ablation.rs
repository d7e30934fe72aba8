//! What a recipe's ingredients are worth: recipes with some of them left out.

use super::Recipe;
use crate::invert::{Linear, Newton, QuasiNewton, Stage, Unknowns};
use crate::reg::{Mean, RegulariserSpec};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Mean and standard deviation, m/s, of a process that knows no prior: those of OpenFWI's layered maps, about.
const UNINFORMED: (f64, f64) = (3000.0, 700.0);

/// Evaluations that L-BFGS gets in place of a Gauss-Newton stage.
const EVALUATIONS: u64 = 400;

/// What can be left out of a recipe to see what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingredient {
    /// The prior's map as the start: a gradient with depth takes its place. The prior still chooses the recipe.
    PriorStart,
    /// The prior's map as the mean of Gaussian processes, and its confidence as their scale: 3000 +- 700 m/s takes its place.
    PriorMean,
    /// Total variation that grows sharper and less noise from step to step: the last step of the last such stage stays,
    /// taken as often as there were steps.
    Continuation,
    /// Gauss-Newton steps: L-BFGS minimises the last objective of each such stage.
    GaussNewton,
    /// Steps that are linear in squared slowness: they are linear in velocity.
    SquaredSlowness,
    /// Stages over flat patches, and those that end in areas.
    Patches,
    /// Rounding to whole numbers.
    Rounding,
    /// Velocities of the source cells from the first sample.
    SourceRow,
    /// Recipes to fall back on.
    Fallbacks,
}

impl Ingredient {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PriorStart,
        Self::PriorMean,
        Self::Continuation,
        Self::GaussNewton,
        Self::SquaredSlowness,
        Self::Patches,
        Self::Rounding,
        Self::SourceRow,
        Self::Fallbacks,
    ];

    /// Its name, such as "prior-start".
    pub fn name(self) -> &'static str {
        match self {
            Self::PriorStart => "prior-start",
            Self::PriorMean => "prior-mean",
            Self::Continuation => "continuation",
            Self::GaussNewton => "gauss-newton",
            Self::SquaredSlowness => "squared-slowness",
            Self::Patches => "patches",
            Self::Rounding => "rounding",
            Self::SourceRow => "source-row",
            Self::Fallbacks => "fallbacks",
        }
    }
}

impl fmt::Display for Ingredient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Ingredient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|i| i.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|i| i.name()).collect();
            Error::Usage(format!("\"{text}\" is no ingredient; there are {}", names.join(", ")))
        })
    }
}

impl Recipe {
    /// This recipe without some of its ingredients. [`Ingredient::PriorStart`] and [`Ingredient::SourceRow`] are none of a
    /// recipe's own and change nothing here. Errors when no stage would be left.
    pub fn without(mut self, ingredients: &[Ingredient]) -> Result<Self> {
        for ingredient in ingredients {
            match ingredient {
                Ingredient::PriorStart | Ingredient::SourceRow => (),
                Ingredient::PriorMean => self.stages.iter_mut().for_each(forget_mean),
                Ingredient::Continuation => self.stages = at_once(std::mem::take(&mut self.stages)),
                Ingredient::GaussNewton => self.stages.iter_mut().for_each(by_lbfgs),
                Ingredient::SquaredSlowness => {
                    self.stages.iter_mut().flat_map(|s| &mut s.newton).for_each(|n| n.linear = Linear::Velocity);
                }
                Ingredient::Patches => self.stages.retain(|s| !is_over_patches(s)),
                Ingredient::Rounding => self.stages.iter_mut().for_each(|s| s.round = None),
                Ingredient::Fallbacks => self.fallback = None,
            }
        }
        if self.stages.is_empty() {
            let left_out: Vec<&str> = ingredients.iter().map(|i| i.name()).collect();
            return Err(Error::Usage(format!(
                "nothing is left of recipe {} without {}",
                self.name,
                left_out.join(", ")
            )));
        }
        Ok(self)
    }
}

fn forget_mean(stage: &mut Stage) {
    let newton = stage.newton.iter_mut().flat_map(|n| &mut n.regularisers);
    for spec in newton.chain(stage.lbfgs.iter_mut().flat_map(|q| &mut q.regularisers)) {
        if let RegulariserSpec::GaussianProcess { mean: mean @ Mean::Map(_), confidence, sigma, white, .. } = spec {
            *mean = Mean::Constant(UNINFORMED.0);
            if std::mem::take(confidence) {
                (*sigma, *white) = (UNINFORMED.1, UNINFORMED.1 * *white / *sigma);
            }
        }
    }
}

/// The steps of a stage that belongs to the continuation of total variation over cells; polished ones are an end of their own.
fn steps_of_continuation(stage: &Stage) -> Option<&Newton> {
    let varies = |n: &&Newton| n.regularisers.iter().any(|r| matches!(r, RegulariserSpec::Tv { .. }));
    stage.newton.as_ref().filter(|n| n.unknowns == Unknowns::Cells && n.polish == 0 && n.areas.is_none()).filter(varies)
}

fn at_once(stages: Vec<Stage>) -> Vec<Stage> {
    let steps: usize = stages.iter().filter_map(steps_of_continuation).map(|n| n.noise.len()).sum();
    let last = stages.iter().rposition(|s| steps_of_continuation(s).is_some());
    let mut left = vec![];
    for (i, mut stage) in stages.into_iter().enumerate() {
        if last == Some(i) {
            if let Some(newton) = &mut stage.newton {
                newton.noise = newton.noise.last().map_or(vec![], |&noise| vec![noise; steps]);
            }
        } else if steps_of_continuation(&stage).is_some() {
            continue;
        }
        left.push(stage);
    }
    left
}

fn by_lbfgs(stage: &mut Stage) {
    let Some(Newton { noise, unknowns, regularisers, .. }) = stage.newton.take() else { return };
    let noise = noise.last().copied().unwrap_or(1.0);
    stage.lbfgs = Some(QuasiNewton { noise, unknowns, regularisers });
    stage.max_evals = Some(stage.max_evals.unwrap_or(EVALUATIONS));
}

fn is_over_patches(stage: &Stage) -> bool {
    stage.newton.as_ref().is_some_and(Newton::is_flat)
        || stage.lbfgs.as_ref().is_some_and(|q| matches!(q.unknowns, Unknowns::Patches { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layered() -> Recipe {
        Recipe::named("layered", 1e-3).unwrap()
    }

    #[test]
    fn names_are_read_back() {
        assert!(Ingredient::ALL.iter().all(|i| i.name().parse::<Ingredient>().unwrap() == *i));
        let error = "salt".parse::<Ingredient>().unwrap_err().to_string();
        assert!(error.contains("\"salt\" is no ingredient; there are prior-start, prior-mean"), "{error}");
    }

    #[test]
    fn every_embedded_recipe_is_valid_without_any_of_them() {
        for name in Recipe::names() {
            for ingredient in Ingredient::ALL {
                let recipe = Recipe::named(name, 1e-3).unwrap();
                let nothing_else = recipe.stages.iter().all(is_over_patches);
                let Ok(less) = recipe.without(&[ingredient]) else {
                    assert!(nothing_else && ingredient == Ingredient::Patches, "{name} without {ingredient}");
                    continue;
                };
                let text = toml::to_string(&less).unwrap();
                assert_eq!(Recipe::parse(&text, 1e-3).unwrap(), less, "{name} without {ingredient}");
            }
        }
    }

    #[test]
    fn each_takes_out_what_it_names() {
        let count = |r: &Recipe, what: fn(&Stage) -> bool| r.stages.iter().filter(|s| what(s)).count();
        let without = |i| layered().without(&[i]).unwrap();
        assert_eq!(count(&layered(), is_over_patches), 2);
        assert_eq!(count(&without(Ingredient::Patches), is_over_patches), 0);
        assert!(layered().fallback.is_some() && without(Ingredient::Fallbacks).fallback.is_none());
        assert_eq!(count(&without(Ingredient::Rounding), |s| s.round.is_some()), 0);
        assert_eq!(count(&without(Ingredient::GaussNewton), |s| s.newton.is_some()), 0);
        assert_eq!(count(&without(Ingredient::GaussNewton), |s| s.lbfgs.is_some()), layered().stages.len());
        assert_eq!(without(Ingredient::PriorStart), layered());

        let newton = |r: &Recipe, name: &str| {
            r.stages.iter().find(|s| s.name == name).and_then(|s| s.newton.clone()).expect("a Gauss-Newton stage")
        };
        let RegulariserSpec::GaussianProcess { mean, confidence, sigma, white, .. } =
            newton(&without(Ingredient::PriorMean), "basin").regularisers[0]
        else {
            panic!("no process")
        };
        assert_eq!((mean, confidence, sigma), (Mean::Constant(3000.0), false, 700.0));
        assert!((white / sigma - 0.05 / 1.5).abs() < 1e-12);

        let steps: usize = layered().stages.iter().filter_map(steps_of_continuation).map(|n| n.noise.len()).sum();
        let less = without(Ingredient::Continuation);
        assert!(less.stages.iter().all(|s| s.name != "edges" && s.name != "sharp"));
        assert_eq!(newton(&less, "flat").noise, vec![1e-3; steps]);
        assert_eq!(newton(&layered(), "sharp").linear, Linear::SquaredSlowness);
        assert_eq!(newton(&without(Ingredient::SquaredSlowness), "sharp").linear, Linear::Velocity);
        assert_eq!(newton(&less, "basin"), newton(&layered(), "basin"));

        let patches = "name = \"p\"\nabout = \"\"\n[[stage]]\nname = \"p\"\n[stage.newton]\nnoise = [1e-4]\n\
                       unknowns = { patches = { step = 1, min_area = 2 } }\n";
        let error = Recipe::parse(patches, 1e-3).unwrap().without(&[Ingredient::Patches]).unwrap_err().to_string();
        assert!(error.contains("nothing is left of recipe p without patches"), "{error}");
    }
}
