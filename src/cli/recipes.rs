//! `fwi recipes`: the recipes in this binary.

use super::{recipe_choice, tell};
use fwi::family::{Group, Recipe};
use fwi::{Error, Result, Survey};
use std::io::Write;
use std::process::ExitCode;

/// Recipes, how maps of a group are inverted: list, show.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The recipes in this binary, what they are for and which groups of maps get them
    List,
    /// Print a recipe's TOML: to read, or to change and give as --recipe FILE
    Show {
        /// Its name, or a file: that is checked and written out whole
        #[arg(value_name = "NAME|FILE")]
        name: String,
        /// Write out stages that are given as the difference from others
        #[arg(long)]
        whole: bool,
    },
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::List => list()?,
        Command::Show { name, whole } => {
            let chosen = recipe_choice::load(&name, Survey::openfwi().dt)?;
            let text = match Recipe::text(&chosen.source) {
                Ok(text) if !whole => text.to_string(),
                _ => chosen.recipe.to_toml()?,
            };
            std::io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("standard output", "write", e))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<()> {
    let dt = Survey::openfwi().dt;
    let width = Recipe::names().map(str::len).max().unwrap_or(0);
    for name in Recipe::names() {
        let recipe = Recipe::named(name, dt)?;
        let gets = |group: &Group| Recipe::for_group(*group) == name;
        let groups: Vec<&str> = Group::ALL.iter().filter(|g| gets(g)).map(|g| g.name()).collect();
        let groups = if groups.is_empty() { String::new() } else { format!(" [default of {}]", groups.join(", ")) };
        tell(format_args!("{name:width$}  {}{groups}", recipe.about.trim().replace('\n', " ")))?;
    }
    Ok(())
}
