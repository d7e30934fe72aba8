//! The file of a bench: a line of JSON a gather, from which `--resume` goes on.

use super::rundir::lock;
use fwi::family::bench::Case;
use fwi::io::write_atomic;
use fwi::{Error, Family, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Largest file that is read, bytes: some 100,000 gathers.
const MAX_BYTES: u64 = 256 << 20;

/// What earlier runs measured, and where this one adds to it.
pub struct CaseFile {
    known: Vec<Case>,
    to: Option<(PathBuf, File)>,
    /// Keeps a second process from putting another file in this one's place.
    _lock: Option<File>,
}

impl CaseFile {
    /// Opens or begins a file. Errors when there is one already and nothing says what to do with it.
    pub fn open(path: Option<&Path>, resume: bool, force: bool) -> Result<Self> {
        let Some(path) = path else { return Ok(Self { known: vec![], to: None, _lock: None }) };
        if path.exists() && !resume && !force {
            let problem = "exists; continue it with --resume, replace it with --force or choose another --json";
            return Err(Error::Usage(format!("{}: {problem}", path.display())));
        }
        let lock = hold(path)?;
        let text = if resume { read(path)? } else { String::new() };
        let (lines, known) = cases(&text, path)?;
        write_atomic(path, |w| lines.iter().try_for_each(|l| writeln!(w, "{l}")))?;
        let file = fs::OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, "write", e))?;
        Ok(Self { known, to: Some((path.to_path_buf(), file)), _lock: Some(lock) })
    }

    /// What an earlier run measured.
    pub fn find(&self, family: Family, key: &str) -> Option<&Case> {
        self.known.iter().find(|c| c.family == family.name() && c.key == key)
    }

    /// Adds a line.
    pub fn append(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.to else { return Ok(()) };
        let mut text = serde_json::to_string(line).expect("numbers and texts");
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(|e| Error::io(&*path, "write", e))
    }
}

/// Locks a file by one beside it, for as long as that lives. Errors when another process holds it.
fn hold(path: &Path) -> Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.lock"));
    lock(&beside, || format!("{}: another fwi is writing it; wait for that or choose another --json", path.display()))
}

/// The cases among the lines of a file. The summary is left out, and a last line that a kill cut short; errors on any other line
/// that is no case, for then the file is not a bench's.
fn cases<'t>(text: &'t str, path: &Path) -> Result<(Vec<&'t str>, Vec<Case>)> {
    let (mut lines, mut known) = (vec![], vec![]);
    let count = text.lines().count();
    for (i, line) in text.lines().enumerate() {
        let torn = i + 1 == count && !text.ends_with('\n');
        match serde_json::from_str::<Case>(line) {
            Ok(case) => {
                lines.push(line);
                known.push(case);
            }
            Err(_) if torn || is_summary(line) => {}
            Err(e) => {
                let problem = format!("line {} is no case of this version's bench ({e})", i + 1);
                return Err(Error::input(path, format!("{problem}; choose another --json, or --force to replace it")));
            }
        }
    }
    Ok((lines, known))
}

fn is_summary(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|v| v.get("contest").is_some())
}

fn read(path: &Path) -> Result<String> {
    let size = match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(String::new()),
        found => found.map_err(|e| Error::io(path, "read", e))?.len(),
    };
    if size > MAX_BYTES {
        let problem = format!("is larger than the {} MB that a bench writes; choose another --json", MAX_BYTES >> 20);
        return Err(Error::input(path, problem));
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
