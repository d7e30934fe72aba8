//! The unknowns that the Jacobian's columns are taken over, as linear combinations of cells.

use crate::{Error, Result, Survey};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// How rows over the map's cells become rows over the unknowns.
#[derive(Clone, Debug)]
pub enum Columns {
    /// One unknown a cell.
    Cells {
        /// Number of cells.
        cells: usize,
    },
    /// One unknown a group of cells; cells of no group are held.
    Groups {
        /// Group of every cell.
        of: Vec<Option<u32>>,
        /// Number of groups.
        groups: usize,
    },
    /// Products of vectors down (nz, kz) and across (nx, kx): unknown `i` is the pair `pairs[i]` of their columns, times
    /// `scale[i]`.
    Products {
        /// Vectors over depth, in columns.
        down: Mat<f32>,
        /// Vectors over distance, in columns.
        across: Mat<f32>,
        /// Columns of `down` and `across` of every unknown.
        pairs: Vec<(usize, usize)>,
        /// Factor of every unknown.
        scale: Vec<f32>,
        /// Factor of every cell.
        weight: Option<Vec<f32>>,
    },
}

impl Columns {
    /// Number of unknowns.
    pub fn len(&self) -> usize {
        match self {
            Self::Cells { cells } => *cells,
            Self::Groups { groups, .. } => *groups,
            Self::Products { pairs, .. } => pairs.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Errors when they do not fit the survey's map.
    pub(super) fn check(&self, survey: &Survey) -> Result<()> {
        let (nz, nx) = survey.map_shape();
        let fits = match self {
            Self::Cells { cells } => *cells == nz * nx,
            Self::Groups { of, groups } => {
                of.len() == nz * nx && of.iter().flatten().all(|&group| (group as usize) < *groups)
            }
            Self::Products { down, across, pairs, scale, weight } => {
                (down.nrows(), across.nrows()) == (nz, nx)
                    && pairs.iter().all(|&(i, j)| i < down.ncols() && j < across.ncols())
                    && scale.len() == pairs.len()
                    && weight.as_ref().is_none_or(|w| w.len() == nz * nx)
            }
        };
        match fits {
            true => Ok(()),
            false => Err(Error::Usage(format!("the unknowns do not fit the survey's map of {nz} x {nx} cells"))),
        }
    }

    /// Floating-point operations of the projection of a row.
    pub(super) fn operations(&self, survey: &Survey) -> usize {
        let (nz, nx) = survey.map_shape();
        match self {
            Self::Cells { .. } => 0,
            Self::Groups { .. } => 4 * nz * nx, // scattered additions
            Self::Products { down, across, .. } => 2 * nz * across.ncols() * (nx + down.ncols()),
        }
    }

    /// Appends the projections of rows over the cells.
    pub fn project(&self, rows: &mut [f32], out: &mut Vec<f32>) {
        match self {
            Self::Cells { .. } => out.extend_from_slice(rows),
            Self::Groups { of, groups } => {
                for row in rows.chunks_exact(of.len()) {
                    let at = out.len();
                    out.resize(at + groups, 0.0);
                    for (x, group) in row.iter().zip(of) {
                        if let Some(g) = group {
                            out[at + *g as usize] += x;
                        }
                    }
                }
            }
            Self::Products { down, across, pairs, scale, weight } => {
                let (nz, nx) = (down.nrows(), across.nrows());
                let (kz, kx) = (down.ncols(), across.ncols());
                if let Some(weight) = weight {
                    rows.chunks_exact_mut(nz * nx).for_each(|r| r.iter_mut().zip(weight).for_each(|(x, w)| *x *= w));
                }
                let count = rows.len() / (nz * nx);
                let mut half = vec![0.0f32; count * nz * kx];
                matmul(
                    MatMut::from_row_major_slice_mut(&mut half, count * nz, kx),
                    Accum::Replace,
                    MatRef::from_row_major_slice(rows, count * nz, nx),
                    across.as_ref(),
                    1.0,
                    Par::Seq,
                );
                let mut both = vec![0.0f32; kz * kx];
                for row in half.chunks_exact(nz * kx) {
                    matmul(
                        MatMut::from_row_major_slice_mut(&mut both, kz, kx),
                        Accum::Replace,
                        down.transpose(),
                        MatRef::from_row_major_slice(row, nz, kx),
                        1.0,
                        Par::Seq,
                    );
                    out.extend(pairs.iter().zip(scale).map(|(&(i, j), s)| s * both[i * kx + j]));
                }
            }
        }
    }
}
