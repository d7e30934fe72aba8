//! Stages that are written as the difference from another one: `like = "layered/areas"` takes over that stage of an embedded
//! recipe, `like = "below 2 Hz"` an earlier one of the same file; the keys beside it replace those of the model, tables key by key, and
//! `without = ["skip_below", "newton.polish"]` drops some of its first.
//! `like = "layered/flat..contacts"` takes over several that follow on each other, as they are.

use super::Recipe;
use crate::invert::Stage;
use crate::{Error, Result};
use serde::Deserialize;
use toml::{Table, Value};

/// Writes out the stages of a recipe that are like others; whether there are any. Errors, in one line, where there is no such
/// stage and where what comes out is none.
pub(super) fn write_out(recipe: &mut Table) -> Result<bool> {
    let Some(Value::Array(stages)) = recipe.get_mut("stage") else { return Ok(false) };
    let mut written = Vec::with_capacity(stages.len());
    let mut any = false;
    for stage in std::mem::take(stages) {
        let (like, mut own) = match stage {
            Value::Table(mut own) => (own.remove("like"), own),
            other => {
                written.push(other);
                continue;
            }
        };
        let Some(like) = like else {
            written.push(Value::Table(own));
            continue;
        };
        let Some(like) = like.as_str().filter(|name| !name.contains('\n')) else {
            let forms = "STAGE, RECIPE/STAGE or RECIPE/STAGE..STAGE";
            return Err(Error::Usage(format!("like takes the name of a stage, {forms}, in one line")));
        };
        let mut models = models(like, &written)?;
        match &mut models[..] {
            [whole] => {
                if let Some(keys) = own.remove("without") {
                    drop_keys(whole, &keys).map_err(|e| Error::Usage(format!("the stage like \"{like}\": {e}")))?;
                }
                merge(whole, own);
            }
            _ if own.is_empty() => {}
            _ => {
                let cure = "write those apart that are to be otherwise";
                return Err(Error::Usage(format!("like = \"{like}\" stands for several stages as they are: {cure}")));
            }
        }
        for whole in models {
            if let Err(e) = Stage::deserialize(whole.clone()) {
                return Err(Error::Usage(format!("the stage like \"{like}\": {}", in_one_line(&e))));
            }
            written.push(Value::Table(whole));
        }
        any = true;
    }
    *stages = written;
    Ok(any)
}

/// What a TOML error says, in one line.
pub(super) fn in_one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

/// The stage that `like` names, or those from a first to a last one.
fn models(like: &str, earlier: &[Value]) -> Result<Vec<Table>> {
    let found = match like.split_once('/') {
        Some((recipe, stages)) => {
            let text = Recipe::text(recipe).map_err(|e| Error::Usage(format!("like = \"{like}\": {e}")))?;
            let mut recipe: Table = toml::from_str(text).expect("embedded recipes are TOML");
            write_out(&mut recipe)?;
            recipe.get("stage").and_then(Value::as_array).and_then(|all| named(stages, all))
        }
        None => named(like, earlier),
    };
    let cure = "name an earlier stage, or RECIPE/STAGE for one of a recipe that fwi recipes list shows";
    found.ok_or_else(|| Error::Usage(format!("like = \"{like}\": there is no such stage; {cure}")))
}

/// The stage of a name, or those from `FIRST..LAST` on, of all.
fn named(name: &str, all: &[Value]) -> Option<Vec<Table>> {
    let place = |name: &str| {
        let is_it = |stage: &Value| stage.get("name").and_then(Value::as_str) == Some(name);
        all.iter().position(is_it)
    };
    let range = match (place(name), name.split_once("..")) {
        (Some(one), _) => one..=one,
        (None, Some((first, last))) => place(first)?..=place(last)?,
        (None, None) => return None,
    };
    let stages: Vec<Table> = all.get(range)?.iter().filter_map(Value::as_table).cloned().collect();
    (!stages.is_empty()).then_some(stages)
}

/// Drops the keys of a list, those of tables within as `newton.polish`. Errors tell what is wrong with it.
fn drop_keys(whole: &mut Table, keys: &Value) -> std::result::Result<(), String> {
    let keys = keys.as_array().ok_or("without takes a list of keys")?;
    for key in keys {
        let path = key.as_str().ok_or("without takes a list of keys")?;
        let mut parts: Vec<&str> = path.split('.').collect();
        let last = parts.pop().expect("split gives one part at least");
        let mut table = &mut *whole;
        let there_is_none = || format!("without = {key}: that stage has no such key");
        for part in parts {
            table = table.get_mut(part).and_then(Value::as_table_mut).ok_or_else(there_is_none)?;
        }
        table.remove(last).ok_or_else(there_is_none)?;
    }
    Ok(())
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
    fn stages_that_follow_on_each_other_are_taken_over_together() {
        let layered = Recipe::named("layered", 1e-3).unwrap();
        let recipe = parse("[[stage]]\nname = \"a\"\n[[stage]]\nlike = \"layered/flat..contacts\"").unwrap();
        let names: Vec<&str> = recipe.stages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "flat", "areas", "contacts"]);
        let flat = layered.stages.iter().position(|s| s.name == "flat").unwrap();
        assert_eq!(recipe.stages[1..], layered.stages[flat..flat + 3]);
    }

    #[test]
    fn keys_of_the_model_are_dropped() {
        let layered = Recipe::named("layered", 1e-3).unwrap();
        let sharp = layered.stages.iter().find(|s| s.name == "sharp").unwrap();
        assert!(sharp.abandon_above.is_some() && sharp.newton.as_ref().unwrap().linear != Default::default());
        let text = "[[stage]]\nlike = \"layered/sharp\"\nwithout = [\"abandon_above\", \"newton.linear\"]\nnewton.noise = [0.5]";
        let recipe = parse(text).unwrap();
        let mut expected = sharp.clone();
        expected.abandon_above = None;
        let newton = expected.newton.as_mut().unwrap();
        newton.linear = Default::default();
        newton.noise = vec![0.5];
        assert_eq!(recipe.stages, [expected]);
    }

    #[test]
    fn models_that_there_are_not_and_what_is_no_stage_are_told() {
        for (stages, part) in [
            ("[[stage]]\nlike = \"areas\"", "like = \"areas\": there is no such stage; name an earlier stage"),
            ("[[stage]]\nname = \"a\"\n[[stage]]\nlike = 3", "like takes the name of a stage"),
            ("[[stage]]\nlike = \"a\\nb\"", "like takes the name of a stage"),
            ("[[stage]]\nlike = \"layered/x\"", "there is no such stage"),
            ("[[stage]]\nlike = \"layered/areas..x\"", "there is no such stage"),
            ("[[stage]]\nlike = \"layered/areas..flat\"", "there is no such stage"),
            ("[[stage]]\nlike = \"layered/flat..areas\"\nrefined = false", "several stages as they are"),
            ("[[stage]]\nlike = \"none/x\"", "no recipe is called \"none\""),
            ("[[stage]]\nlike = \"layered/flat..areas\"\nwithout = [\"only\"]", "several stages as they are"),
            ("[[stage]]\nlike = \"layered/areas\"\nwithout = \"only\"", "without takes a list of keys"),
            ("[[stage]]\nlike = \"layered/areas\"\nwithout = [3]", "without takes a list of keys"),
            (
                "[[stage]]\nlike = \"layered/flat\"\nwithout = [\"only\"]",
                "without = \"only\": that stage has no such key",
            ),
            ("[[stage]]\nlike = \"layered/flat\"\nwithout = [\"newton.x.y\"]", "that stage has no such key"),
            ("[[stage]]\nlike = \"layered/flat\"\nwithout = [\"newton\", \"name\"]", "missing field `name`"),
            ("[[stage]]\nname = \"a\"\nwithout = [\"only\"]", "unknown field `without`"),
            ("[[stage]]\nlike = \"layered/areas\"\nsmoothng = 1", "like \"layered/areas\": unknown field `smoothng`"),
            ("[[stage]]\nlike = \"layered/areas\"\nnewton.noise = []", "at least one noise"),
            ("[[stage]]\nlike = \"layered/areas\"\nnewton.over_rms = 0.5", "1 to 1000 times the data rms, not 0.5"),
            (
                "[[stage]]\nlike = \"layered/areas\"\nnewton.within_rms = 0.5",
                "must lie between over_rms, 1 by default, and",
            ),
            ("[[stage]]\nlike = \"smooth/detail\"\nnewton.within_rms = 3.0", "within_rms must lie between over_rms"),
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
