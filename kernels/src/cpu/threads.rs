//! The threads of the backend: a few fat pieces at a time.

use crate::KernelError;
use crate::contract::Result;
use gemm::Parallelism;
use rayon::prelude::*;

/// Elements below which waking another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 15;
/// Pieces a thread, so that a thread that the system holds up can be helped out.
const PIECES_PER_THREAD: usize = 3;

/// A thread pool made once; with one thread everything runs on the caller's.
#[derive(Debug)]
pub(crate) struct Threads {
    pool: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// `count` threads; 0 is all that the process may use.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        if count == 1 {
            return Ok(Self { pool: None, count });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("kernels-{index}"))
            .build()
            .map_err(|error| KernelError::Device(format!("cannot start {count} threads: {error}")))?;
        Ok(Self { pool: Some(pool), count })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` with the parallelism that matrix products inside may use.
    pub(crate) fn with_parallelism<R: Send>(&self, work: impl FnOnce(Parallelism) -> R + Send) -> R {
        match &self.pool {
            None => work(Parallelism::None),
            Some(pool) => pool.install(|| work(Parallelism::Rayon(self.count))),
        }
    }

    /// Calls `work` on every item, in any order, on any thread: items must not share what they write.
    pub(crate) fn for_each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Send + Sync) {
        match &self.pool {
            Some(pool) if items.len() > 1 => {
                pool.install(|| items.into_par_iter().with_max_len(1).for_each(work));
            }
            _ => items.into_iter().for_each(work),
        }
    }

    /// As [`Threads::for_each`], for work that can fail.
    pub(crate) fn try_for_each<T: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        match &self.pool {
            Some(pool) if items.len() > 1 => pool.install(|| items.into_par_iter().with_max_len(1).try_for_each(work)),
            _ => items.into_iter().try_for_each(work),
        }
    }

    /// Rows of a piece, when `rows` rows of `cols` elements are shared out. Only for work whose bits do not depend on
    /// the cut.
    pub(crate) fn rows_per_piece(&self, rows: usize, cols: usize) -> usize {
        let pieces = self.count * PIECES_PER_THREAD;
        let least = (WORTH_A_THREAD / cols.max(1)).max(1);
        if self.count == 1 { rows.max(1) } else { rows.div_ceil(pieces).max(least) }
    }
}
