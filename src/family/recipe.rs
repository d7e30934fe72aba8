//! Recipes: how the maps of a group are best inverted, as data.
//!
//! A recipe is a TOML file: its name, what it is for, where it starts, and the stages one after the other.

use crate::invert::Stage;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How to invert the gathers of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// What it is for and why it is as it is.
    pub about: String,
    /// Where it begins.
    #[serde(default)]
    pub start: RecipeStart,
    /// Name of the recipe to try where this one stalls far above the noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The stages, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

/// Where a recipe begins unless something else is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipeStart {
    /// The prior's map.
    #[default]
    Prior,
    /// A gradient with depth.
    Gradient,
}

impl Recipe {
    /// Parses a recipe. Errors, in one line, on what is no recipe and on stages that make no sense.
    pub fn parse(text: &str, dt: f64) -> Result<Self> {
        let recipe: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |s| text[..s.start.min(text.len())].lines().count().max(1));
            Error::Usage(format!("line {line} of the recipe: {}", e.message().replace('\n', " ")))
        })?;
        if recipe.stages.is_empty() {
            return Err(Error::Usage("a recipe needs at least one [[stage]]".into()));
        }
        recipe.stages.iter().try_for_each(|s| s.validate(dt))?;
        Ok(recipe)
    }
}
