//! What a prior's word on a gather leads to: where the inversion begins, how far off that may be, and by which recipe it goes on.

use super::prior_options::{confidence, expected_error};
use super::recipe_choice::{Choice, Chosen};
use fwi::family::{Classification, classify};
use fwi::invert::Start;
use fwi::prior::predict_one;
use fwi::{Observed, Prior, Result, Survey};
use ndarray::Array2;

/// See the [module](self).
pub struct Asked {
    /// The map that is given, or else the prior's.
    pub start: Start,
    /// How far off it may be in every cell (nz, nx), m/s, if the prior tells.
    pub confidence: Option<Array2<f64>>,
    /// The mean error that the prior expects of its own map, m/s, where that is the start.
    pub expected_mae: Option<f64>,
    /// What the gather was found to be of.
    pub class: Classification,
    /// The recipe, if it is one.
    pub chosen: Option<Chosen>,
}

/// Asks a prior about a gather, which is to be inverted from the map `given`, or from what the prior predicts. Errors as
/// [`Prior::predict`] and [`Choice::settle`] do, and where the map given has another shape than the prior's.
pub fn ask(
    prior: &dyn Prior,
    survey: &Survey,
    observed: &Observed,
    given: Option<&Array2<f64>>,
    choice: &Choice,
) -> Result<Asked> {
    let predicted = predict_one(prior, observed)?;
    let expected_mae = expected_error(&predicted).filter(|_| given.is_none());
    let prediction = match given {
        Some(map) => predicted.of_map(map)?,
        None => predicted,
    };
    let class = classify(survey, observed, &prediction);
    let chosen = choice.settle(Some((&class, &prediction)), survey.dt)?;
    let start = Start::Map(given.cloned().unwrap_or_else(|| prediction.velocity.mapv(f64::from)));
    Ok(Asked { start, confidence: confidence(&prediction), expected_mae, class, chosen })
}
