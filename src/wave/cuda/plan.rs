//! Sizes: how the padded grid lies in a device's memory, which kernels fit it, and what a shot takes.

use super::lane::KEPT;
use super::params::{BIN, BLOCK, CLUSTER, Params, STEP_ROWS, STEP_THREADS, WINDOW};
use super::runtime::{Launch, Limits};
use crate::wave::Precision;
use crate::{Error, Result, Survey};

/// Which kernels step the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All steps of a shot in one launch, both fields in the shared memory of a cluster of eight blocks.
    Cluster,
    /// One launch a step, fields in device memory: any grid on any chip.
    Steps,
}

/// How the forward field is stored for the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// In the fields' own type.
    Full,
    /// In half precision (f32 fields only): half the memory and traffic, gradients good to about 1e-4.
    Half,
}

/// Everything about sizes that the survey, the precision and the device decide.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The acquisition.
    pub survey: Survey,
    /// Type of the fields.
    pub precision: Precision,
    /// Which kernels.
    pub kind: Kind,
    /// The history's type.
    pub history: History,
    /// Whether the adjoint's sums fit into shared memory.
    pub sums_shared: bool,
    /// Rows of the padded grid.
    pub rows: usize,
    /// Columns of the padded grid.
    pub cols: usize,
    /// Elements from a row of a field to the next.
    pub stride: usize,
    /// Elements from a row of the history, or of the sums, to the next.
    pub hstride: usize,
    /// Most threads a block, where smaller grids than usual are computed by fewer.
    pub max_block: u32,
}

impl Plan {
    /// Chooses kernels; errors when `kind` is asked for and does not fit.
    pub fn new(
        survey: Survey,
        precision: Precision,
        history: History,
        kind: Option<Kind>,
        max_block: u32,
        limits: &Limits,
    ) -> Result<Self> {
        let (rows, cols) = survey.padded_shape();
        let w = if precision == Precision::F64 { 2 } else { 4 };
        let history = if precision == Precision::F64 { History::Full } else { history };
        let hstride = cols.next_multiple_of(w);
        // a vector of halo on the left, two cells of it on the right
        let stride = w + (cols + 2).next_multiple_of(w).max(hstride);
        let mut plan = Self {
            survey,
            precision,
            kind: Kind::Cluster,
            history,
            sums_shared: true,
            rows,
            cols,
            stride,
            hstride,
            max_block,
        };
        plan.sums_shared = plan.cluster_shared(true, true) <= limits.shared_bytes;
        let fits = limits.clusters
            && rows >= 2 * CLUSTER as usize
            && plan.cluster_shared(false, false).max(plan.cluster_shared(true, false)) <= limits.shared_bytes;
        plan.kind = match kind {
            Some(Kind::Cluster) if !fits => {
                return Err(Error::Usage(format!(
                    "the cluster kernels need clusters of 8 blocks with {} bytes of shared memory each and at least 16 rows; {} does not give that: let the kernels be chosen",
                    plan.cluster_shared(false, false),
                    limits.name
                )));
            }
            Some(kind) => kind,
            None if fits => Kind::Cluster,
            None => Kind::Steps,
        };
        Ok(plan)
    }

    /// Bytes of an element of a field.
    pub fn element(&self) -> usize {
        if self.precision == Precision::F64 { 8 } else { 4 }
    }

    /// Elements of a vector of 16 bytes.
    pub fn vector(&self) -> usize {
        16 / self.element()
    }

    /// Samples of a shot.
    pub fn samples(&self) -> usize {
        self.survey.nt * self.survey.receivers.len()
    }

    /// Bytes of the history of a shot.
    pub fn history_bytes(&self, levels: usize) -> usize {
        let element = if self.history == History::Half { 2 } else { self.element() };
        levels * self.rows * self.hstride * element
    }

    /// Bytes of the fields of some shots in device memory, with a vector to spare behind the last one.
    pub fn fields_bytes(&self, shots: usize) -> usize {
        (2 * shots * self.rows * self.stride + 2 * self.vector()) * self.element()
    }

    /// Bytes of device memory that a shot of a gradient takes (a model's own few arrays shared out).
    pub fn shot_bytes(&self, levels: usize) -> usize {
        let (sv, t) = (&self.survey, self.element());
        let samples = self.samples() * (t + 8 + 8 * KEPT);
        let inject = sv.nt * self.inject_rows().1 * sv.nx * t;
        let sums = self.rows * self.hstride * t + sv.nz * sv.nx * 16;
        let fields =
            if self.kind == Kind::Steps { 2 * self.rows * self.stride * t + self.items_a_shot() * 8 } else { 0 };
        let blocks = self.rows.div_ceil(BLOCK) * self.cols.div_ceil(BLOCK);
        let windows = sv.nt.div_ceil(BIN) * self.rows.div_ceil(BLOCK) * WINDOW + 3 * 8 * blocks;
        self.history_bytes(levels) + samples + inject + sums + fields + windows + 4 * sv.nz * sv.nx * t
    }

    /// First row of the map with a receiver, and the number of rows to the last.
    pub fn inject_rows(&self) -> (usize, usize) {
        let rows = || self.survey.receivers.iter().map(|r| r.z);
        let (first, last) = (rows().min().unwrap_or(0), rows().max().unwrap_or(0));
        (first, last - first + 1)
    }

    /// The name of a kernel in this precision; `stores` for those that write or read the history.
    pub fn kernel(&self, name: &str, stores: bool) -> String {
        let precision = if self.precision == Precision::F64 { "f64" } else { "f32" };
        let half = if stores && self.history == History::Half { "_half" } else { "" };
        format!("{name}_{precision}{half}")
    }

    /// `threads`, or fewer where a smaller grid needs no more.
    pub fn small_block(&self, threads: u32) -> u32 {
        threads.min(self.max_block)
    }

    /// Threads of the one-launch-a-step kernels that a shot takes, in whole blocks.
    pub fn items_a_shot(&self) -> usize {
        let items = self.cols.div_ceil(self.vector()) * self.rows.div_ceil(STEP_ROWS);
        items.next_multiple_of(self.small_block(STEP_THREADS) as usize)
    }

    /// Bytes of dynamic shared memory of a block of the cluster kernels.
    fn cluster_shared(&self, adjoint: bool, sums: bool) -> usize {
        let (t, w) = (self.element(), self.vector());
        let local = self.rows.div_ceil(CLUSTER as usize);
        let fields = 2 * ((local + 4) * self.stride + 2 * w);
        let kappa = self.survey.sponge.next_multiple_of(w);
        let sums = if sums { local * self.hstride } else { 0 };
        let bin = BIN * (2 * t + 4) + (local.div_ceil(BLOCK) + 1) * WINDOW;
        let all = (fields + kappa + sums) * t + bin;
        if adjoint { all.max(self.cluster_threads(true) as usize * 8) } else { all }
    }

    /// Threads of a block of the cluster kernels: one a column of vectors of the rows that it marches down, at most as
    /// many as `kernels/fwi.cu` allows.
    fn cluster_threads(&self, adjoint: bool) -> u32 {
        let (rows, most) = match (self.precision, self.history, adjoint) {
            (Precision::F32, History::Full, false) => (10, 320),
            (Precision::F32, History::Half, false) => (13, 256),
            (Precision::F32, History::Full, true) => (7, 480),
            (Precision::F32, History::Half, true) => (10, 320),
            (Precision::F64, _, _) => (20, 320),
        };
        let local = self.rows.div_ceil(CLUSTER as usize);
        let items = local.div_ceil(rows) * self.cols.div_ceil(self.vector());
        (items.next_multiple_of(32) as u32).min(most).min(self.max_block)
    }

    /// The launch of a cluster kernel for some shots.
    pub fn cluster_launch(&self, shots: u32, adjoint: bool, sums: bool) -> Launch {
        Launch {
            blocks: shots * CLUSTER,
            threads: self.cluster_threads(adjoint),
            cluster: CLUSTER,
            shared: self.cluster_shared(adjoint, sums),
        }
    }

    /// Fills in what does not depend on the models.
    pub fn fill(&self, p: &mut Params) {
        let sv = &self.survey;
        (p.nz, p.nx, p.pad) = (sv.nz as i32, sv.nx as i32, sv.sponge as i32);
        (p.rows, p.cols, p.nt) = (self.rows as i32, self.cols as i32, sv.nt as i32);
        p.receivers = sv.receivers.len() as i32;
        (p.stride, p.hstride) = (self.stride as i32, self.hstride as i32);
        let (first, count) = self.inject_rows();
        (p.inject_row, p.inject_rows) = (first as i32, count as i32);
        (p.dt, p.dx, p.history_unit) = (sv.dt, sv.dx, 1.0);
    }

    /// The unit in which fields are stored: 1, but for half precision a power of two that leaves room for fields 256 times
    /// as large as what the source adds in a step at the fastest stable velocity, three times weighted.
    pub fn history_unit(&self) -> f64 {
        if self.history == History::Full {
            return 1.0;
        }
        let loudest = self.survey.wavelet.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let largest = 3.0 * 256.0 * loudest * (self.survey.stable_velocity(0.0) * self.survey.dt).powi(2);
        (largest / 65504.0).log2().ceil().exp2()
    }
}
