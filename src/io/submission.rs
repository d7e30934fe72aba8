//! Maps as the contest "Yale/UNC-CH - Geophysical Waveform Inversion" takes them: a CSV of their odd columns.

use super::Pending;
use crate::{Error, Result};
use csv::{Writer, WriterBuilder};
use ndarray::Array2;
use std::fmt::{Display, Write};
use std::fs::File;
use std::io;
use std::path::Path;

/// Writes maps (nz, nx) in m/s, each under its gather's id, as a submission: the header `oid_ypos,x_1,x_3,...`, then a row
/// `<id>_y_<row>` for each row of a map with its odd columns, rounded to f32. One map is held at a time; the file appears whole or
/// not at all.
///
/// Errors: those of the maps; [`Error::Usage`] where there is none, or one is of another width than the first; [`Error::Io`].
pub fn write_submission(
    path: impl AsRef<Path>,
    maps: impl IntoIterator<Item = Result<(String, Array2<f64>)>>,
) -> Result<()> {
    let path = path.as_ref();
    let fail = |e: csv::Error| Error::io(path, "write", io::Error::from(e));
    let pending = Pending::create(path)?;
    let mut rows = Rows { out: WriterBuilder::new().from_writer(pending.file()), text: String::new() };
    let mut width = None;
    for named in maps {
        let (id, map) = named?;
        let nx = map.ncols();
        match width {
            None => rows.write("oid_ypos", (1..nx).step_by(2).map(|x| format!("x_{x}"))).map_err(fail)?,
            Some(first) if first == nx => {}
            Some(first) => {
                return Err(Error::Usage(format!("the map of {id} is {nx} cells wide, the first one {first}")));
            }
        }
        width = Some(nx);
        for (z, row) in map.outer_iter().enumerate() {
            let odd = row.into_iter().skip(1).step_by(2);
            rows.write(&format!("{id}_y_{z}"), odd.map(|&v| v as f32)).map_err(fail)?;
        }
    }
    if width.is_none() {
        return Err(Error::Usage("a submission needs a map".into()));
    }
    rows.out.flush().map_err(|e| Error::io(path, "write", e))?;
    drop(rows);
    pending.commit()
}

/// Rows of a table, and the text of one field.
struct Rows<'f> {
    out: Writer<&'f File>,
    text: String,
}

impl Rows<'_> {
    fn write<V: Display>(&mut self, name: &str, values: impl Iterator<Item = V>) -> csv::Result<()> {
        self.out.write_field(name)?;
        for value in values {
            self.text.clear();
            write!(self.text, "{value}").expect("a string takes any text");
            self.out.write_field(&self.text)?;
        }
        self.out.write_record(None::<&[u8]>)
    }
}

#[cfg(test)]
mod tests {
    use super::write_submission;
    use crate::Error;
    use ndarray::Array2;
    use std::fs;

    #[test]
    fn odd_columns_are_written_row_by_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.csv");
        let map = |base: f64| Array2::from_shape_fn((2, 5), |(z, x)| base + 10.0 * z as f64 + x as f64);
        let maps = [("a", 1500.0), ("b,c", 2_000.123_456_789)].map(|(id, base)| Ok((id.to_string(), map(base))));
        write_submission(&path, maps).unwrap();
        let expected = "oid_ypos,x_1,x_3\na_y_0,1501,1503\na_y_1,1511,1513\n\
            \"b,c_y_0\",2001.1234,2003.1234\n\"b,c_y_1\",2011.1234,2013.1234\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn what_is_no_submission_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.csv");
        let map = |nx| Ok(("a".to_string(), Array2::from_elem((2, nx), 1500.0)));
        assert!(matches!(write_submission(&path, []), Err(Error::Usage(_))));
        let error = write_submission(&path, [map(5), map(7)]).unwrap_err();
        assert_eq!(error.to_string(), "the map of a is 7 cells wide, the first one 5");
        let broken = || Err(Error::input("x.npy", "is broken"));
        assert!(write_submission(&path, [map(5), broken()]).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
