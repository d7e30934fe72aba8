//! Files that appear whole or not at all: written beside their place, synced, renamed into it.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Names of unfinished files begin with this, then the writer's process id, the name to be and eight random letters.
pub const TMP_PREFIX: &str = ".fwi-";
/// Names of unfinished files end with this.
pub const TMP_SUFFIX: &str = ".tmp";
/// Characters of a finished file's name that an unfinished one keeps: systems limit names to 255 bytes.
pub(crate) const TMP_NAME: usize = 50;

/// An unfinished file beside `path`. Dropping it removes it; [`Pending::commit`] puts it in its place.
pub(crate) struct Pending {
    tmp: NamedTempFile,
    path: PathBuf,
}

impl Pending {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        // A link stays a link: what it points to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::Usage(format!("{}: is no regular file; name a file to write", path.display())));
        }
        let tmp = new_tmp(&path).map_err(|e| Error::io(&path, "create", e))?;
        Ok(Self { tmp, path })
    }

    /// The file to write to.
    pub(crate) fn file(&self) -> &File {
        self.tmp.as_file()
    }

    /// The unfinished file's own path.
    pub(crate) fn tmp_path(&self) -> &Path {
        self.tmp.path()
    }

    /// Syncs the file, renames it into its place and syncs the directory.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { tmp, path } = self;
        let renamed = tmp.as_file().sync_all().and_then(|()| tmp.persist(&path).map_err(|e| e.error));
        renamed.and_then(|_| sync_directory(&directory(&path))).map_err(|e| Error::io(&path, "write", e))
    }

    /// Renames the file into its place and leaves the disk to the system.
    fn commit_unsynced(self) -> Result<()> {
        let Self { tmp, path } = self;
        tmp.persist(&path).map(drop).map_err(|e| Error::io(&path, "write", e.error))
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn new_tmp(path: &Path) -> io::Result<NamedTempFile> {
    let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(TMP_NAME).collect();
    let prefix = format!("{TMP_PREFIX}{}-{name}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(TMP_SUFFIX).rand_bytes(8);
    // Made by hand: files here are results, not secrets, so the umask decides as for any file; and tempfile's own error
    // would name the unfinished file instead of the one asked for.
    builder.make_in(directory(path), |path| File::options().read(true).write(true).create_new(true).open(path))
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some network file systems cannot sync a directory; the rename stands all the same.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Writes a file through `write` so that it appears whole or not at all.
///
/// The bytes go to a new file in the same directory, are synced to disk and renamed to `path`. On any error, that of
/// `write` included, what was at `path` before stays and the unfinished file is removed. One left by a killed process is
/// called [`TMP_PREFIX`]`<process id>-<name>-<letters>`[`TMP_SUFFIX`] and may be deleted.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    written(path.as_ref(), write)?.commit()
}

/// [`write_atomic`] without waiting for the disk: the file is whole whatever happens to this process, but after a power
/// cut it may be damaged. For what is written many times a second and checked when read.
pub fn write_unsynced(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    written(path.as_ref(), write)?.commit_unsynced()
}

/// The unfinished file with everything written to it.
fn written(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Pending> {
    let pending = Pending::create(path)?;
    let mut buffer = BufWriter::with_capacity(1 << 16, pending.file());
    let written = write(&mut buffer).and_then(|()| buffer.flush());
    // The buffer must not try again on drop.
    let _ = buffer.into_parts();
    written.map_err(|e| Error::io(path, "write", e))?;
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::write_atomic;
    use std::fs;
    use std::io;

    #[test]
    fn replaces_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(&[7; 200_000])?;
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
        });
        assert_eq!(error.unwrap_err().exit_code(), 4);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomic(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(write_atomic(dir.path(), |_| Ok(())).unwrap_err().exit_code(), 2);
        assert_eq!(write_atomic(dir.path().join("no/such/dir"), |_| Ok(())).unwrap_err().exit_code(), 4);
    }

    #[cfg(unix)]
    #[test]
    fn keeps_links_and_follows_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mode = fs::metadata(&real).unwrap().permissions().mode();
        write_atomic(&link, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode(), mode);
    }
}
