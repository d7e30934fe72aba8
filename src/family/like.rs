//! Stages that are written as the difference from another one: `like = "layered/areas"` takes over that stage of an embedded
//! recipe, `like = "below 2 Hz"` an earlier one of the same file; the keys beside it replace those of the model, tables key by key.

use super::Recipe;
use crate::invert::Stage;
use crate::{Error, Result};
use serde::Deserialize;
use toml::{Table, Value};

/// Writes out the stages of a recipe that are like others; whether there are any. Errors, in one line, where there is no such
/// stage and where what comes out is none.
pub(super) fn write_out(recipe: &mut Table) -> Result<bool> {
    let Some(Value::Array(stages)) = recipe.get_mut("stage") else { return Ok(false) };
    let mut any = false;
    for i in 0..stages.len() {
        let Some(own) = stages[i].as_table_mut() else { continue };
        let Some(like) = own.remove("like") else { continue };
        let Some(like) = like.as_str().filter(|name| !name.contains('\n')) else {
            return Err(Error::Usage("like takes the name of a stage, STAGE or RECIPE/STAGE, in one line".into()));
        };
        let own = std::mem::take(own);
        let mut whole = model(like, &stages[..i])?;
        merge(&mut whole, own);
        if let Err(e) = Stage::deserialize(whole.clone()) {
            return Err(Error::Usage(format!("the stage like \"{like}\": {}", in_one_line(&e))));
        }
        stages[i] = Value::Table(whole);
        any = true;
    }
    Ok(any)
}

/// What a TOML error says, in one line.
pub(super) fn in_one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

/// The stage that `like` names.
fn model(like: &str, earlier: &[Value]) -> Result<Table> {
    let named = |name: &str, stages: &[Value]| {
        let is_it = |stage: &&Table| stage.get("name").and_then(Value::as_str) == Some(name);
        stages.iter().filter_map(Value::as_table).find(is_it).cloned()
    };
    let found = match like.split_once('/') {
        Some((recipe, stage)) => {
            let text = Recipe::text(recipe).map_err(|e| Error::Usage(format!("like = \"{like}\": {e}")))?;
            let mut recipe: Table = toml::from_str(text).expect("embedded recipes are TOML");
            write_out(&mut recipe)?;
            recipe.get("stage").and_then(Value::as_array).and_then(|stages| named(stage, stages))
        }
        None => named(like, earlier),
    };
    let cure = "name an earlier stage, or RECIPE/STAGE for one of a recipe that fwi recipes list shows";
    found.ok_or_else(|| Error::Usage(format!("like = \"{like}\": there is no such stage; {cure}")))
}

/// Puts the values of one table over those of another.
fn merge(whole: &mut Table, own: Table) {
    for (key, value) in own {
        match (whole.get_mut(&key), value) {
            (Some(Value::Table(whole)), Value::Table(own)) => merge(whole, own),
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"x\"\nabout = \"y\"\n";

    fn parse(stages: &str) -> Result<Recipe> {
        Recipe::parse(&format!("{HEAD}{stages}"), 1e-3)
    }

    #[test]
    fn a_stage_like_another_differs_in_what_it_says() {
        let layered = Recipe::named("layered", 1e-3).unwrap();
        let areas = layered.stages.iter().find(|s| s.name == "areas").unwrap();
        let recipe = parse(
            "[[stage]]\nlike = \"layered/areas\"\n\
             [[stage]]\nlike = \"areas\"\nname = \"more\"\nnewton.noise = [0.5]\nnewton.areas.step = 4.0",
        )
        .unwrap();
        assert_eq!(recipe.stages[0], *areas);
        let mut more = areas.clone();
        more.name = "more".into();
        let newton = more.newton.as_mut().unwrap();
        newton.noise = vec![0.5];
        newton.areas.as_mut().unwrap().step = 4.0;
        assert_eq!(recipe.stages[1], more);
    }

    #[test]
    fn models_that_there_are_not_and_what_is_no_stage_are_told() {
        for (stages, part) in [
            ("[[stage]]\nlike = \"areas\"", "like = \"areas\": there is no such stage; name an earlier stage"),
            ("[[stage]]\nname = \"a\"\n[[stage]]\nlike = 3", "like takes the name of a stage"),
            ("[[stage]]\nlike = \"a\\nb\"", "like takes the name of a stage"),
            ("[[stage]]\nlike = \"layered/x\"", "there is no such stage"),
            ("[[stage]]\nlike = \"none/x\"", "no recipe is called \"none\""),
            ("[[stage]]\nlike = \"layered/areas\"\nsmoothng = 1", "like \"layered/areas\": unknown field `smoothng`"),
            ("[[stage]]\nlike = \"layered/areas\"\nnewton.noise = []", "at least one noise"),
            ("[[stage]]\nlike = \"layered/areas\"\nnewton.over_rms = 0.5", "1 to 1000 times the data rms, not 0.5"),
            (
                "[[stage]]\nlike = \"layered/areas\"\nnewton.calibration = 0.0",
                "calibration between 0.001 and 1000, not 0",
            ),
        ] {
            let message = parse(stages).unwrap_err().to_string();
            assert!(message.contains(part) && message.lines().count() == 1, "{message}");
        }
    }
}
