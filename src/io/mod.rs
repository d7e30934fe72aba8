//! Reading and writing of gathers and velocity maps: .npy, .npz and HDF5.
//!
//! [`ArrayFile`] opens any of the three by what the file holds, not by its name, and reads ranges of items along
//! axis 0, so that a stack of gathers larger than memory can be streamed. [`Maps`] and [`Gathers`] sit on top of it:
//! they check shape and values and hand out one map or gather at a time. [`write_array`] and [`ArrayWriter`] write
//! .npy or HDF5 by the name's extension, [`write_submission`] the contest's CSV, [`write_atomic`] anything else.
//!
//! A path may name an entry of a container: `file.npz:name`, `file.h5:/group/dataset`. Without one, the first entry
//! that holds numbers is taken.
//!
//! Files are not trusted. Headers are checked against the file's length before anything is allocated from them;
//! compressed data grow a buffer only as they are decoded; and a panic of a parser becomes an error. Files are written
//! beside their place and renamed into it, so a reader sees the old file or the new one, never a part.

mod array;
mod atomic;
mod dtype;
pub(crate) mod guard;
mod hdf5;
mod hdf5_guard;
mod items;
mod npy;
mod npz;
mod submission;
mod writer;

pub use array::{ArrayFile, Limits, split_entry};
pub(crate) use atomic::Pending;
pub(crate) use atomic::TMP_NAME;
pub use atomic::{TMP_PREFIX, TMP_SUFFIX, write_atomic, write_unsynced};
pub use dtype::{DType, Element};
pub use items::{Gathers, Maps, read_gather, read_map};
pub use submission::write_submission;
pub(crate) use writer::hdf5_call;
pub use writer::{ArrayWriter, DATASET, write_array};
