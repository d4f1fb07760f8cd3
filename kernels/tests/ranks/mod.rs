//! A rank with a CUDA backend, in a process of its own.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

#[path = "../../softgpu/tests/common/mod.rs"]
mod common;

pub(crate) use common::passed;
pub(crate) use common::ranks::{hear, heard, run, say};

use ballast_kernels::Backend;
use ballast_kernels::conformance::skip_without_devices;
use ballast_kernels::cuda::nccl::{Batch, Reduction};
use ballast_kernels::cuda::nccl::{Communicator, CommunicatorAbort, CommunicatorError, CommunicatorId, Member};
use ballast_kernels::cuda::{CudaBackend, IntegerVector, Storage, probe};
use std::fs;
use std::time::Duration;

/// For what ends by itself.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// For what does not.
pub(crate) const SHORT: Duration = Duration::from_millis(700);
/// More than any communicator needs to be torn down.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Elements of a vector.
pub(crate) const N: usize = 1001;

/// A rank, its backend, and what it needs to join the others.
pub(crate) struct Rank {
    pub(crate) member: Member,
    pub(crate) backend: CudaBackend,
    pub(crate) id: CommunicatorId,
    pub(crate) abort: CommunicatorAbort,
}

/// The body of a rank, or the start of all of them, who must all pass and leave no thread behind. Skipped where there
/// are too few devices for so many.
pub(crate) fn on_ranks(test: &str, count: usize, variables: &[(&str, &str)], body: impl FnOnce(&Rank)) {
    if common::role().is_none() && skip_without_devices(count, devices()) {
        return;
    }
    common::ranks::on_ranks(test, count, variables, |role| as_rank(role, body));
}

/// The body of a rank; `false` in the process that is to start them.
pub(crate) fn is_rank(body: impl FnOnce(&Rank)) -> bool {
    common::ranks::role().is_some_and(|role| {
        as_rank(role, body);
        std::process::exit(0);
    })
}

/// Devices of this machine.
fn devices() -> usize {
    probe().devices.len()
}

fn as_rank(role: common::ranks::Role, body: impl FnOnce(&Rank)) {
    // A device each, as far as there are; only our software device lets ranks share one.
    let backend = CudaBackend::new(role.rank % devices().max(1), Storage::F32).unwrap();
    let id = match role.id {
        Some(bytes) => CommunicatorId::try_from(&bytes[..]).unwrap(),
        None => {
            let id = CommunicatorId::new().unwrap();
            common::ranks::publish(&id.to_bytes());
            id
        }
    };
    let member = Member { rank: role.rank, world_size: role.ranks };
    body(&Rank { member, backend, id, abort: CommunicatorAbort::new() });
    assert_eq!(watchdogs(), 0, "a watchdog is left behind");
}

/// Watchdog threads of this process.
pub(crate) fn watchdogs() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "nccl watchdog").count()
}

impl Rank {
    pub(crate) fn join(&self, timeout: Duration) -> Communicator {
        self.try_join(timeout).unwrap()
    }

    /// Joins once all are there: with a timeout that the start of a process might exceed.
    pub(crate) fn join_together(&self, timeout: Duration) -> Communicator {
        let here = |rank| format!("rank {rank} is here");
        say(&here(self.member.rank), &[]);
        for rank in 0..self.member.world_size {
            hear(&here(rank));
        }
        self.join(timeout)
    }

    pub(crate) fn try_join(&self, timeout: Duration) -> Result<Communicator, CommunicatorError> {
        Communicator::new(&self.backend, &self.id, self.member, timeout, &self.abort)
    }

    /// What this rank brings to reduction number `round`.
    pub(crate) fn values(&self, round: usize) -> Vec<i64> {
        values(self.member.rank, round)
    }

    pub(crate) fn upload(&self, values: &[i64]) -> IntegerVector {
        let mut vector = self.backend.integers(values.len()).unwrap();
        self.backend.write_integers(&mut vector, values).unwrap();
        vector
    }

    pub(crate) fn read(&self, vector: &IntegerVector) -> Vec<i64> {
        let mut values = vec![0; N];
        self.backend.read_integers(vector, &mut values).unwrap();
        values
    }

    /// The elementwise wrapping sum of what all ranks bring.
    pub(crate) fn sum(&self, round: usize) -> Vec<i64> {
        self.fold(round, i64::wrapping_add)
    }

    /// The elementwise maximum of what all ranks bring.
    pub(crate) fn max(&self, round: usize) -> Vec<i64> {
        self.fold(round, i64::max)
    }

    fn fold(&self, round: usize, combine: fn(i64, i64) -> i64) -> Vec<i64> {
        let all = (0..self.member.world_size).map(|rank| values(rank, round));
        all.reduce(|a, b| a.iter().zip(b).map(|(&a, b)| combine(a, b)).collect()).unwrap()
    }
}

/// Values of all magnitudes and both signs, whose sums wrap.
fn values(rank: usize, round: usize) -> Vec<i64> {
    let mut state = (rank * 1000 + round + 1) as i64;
    let mut next = |i: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> (i % 64)
    };
    (0..N).map(&mut next).collect()
}

/// Whether a buffer holds neither what it held nor what it should have become.
pub(crate) fn is_garbage(held: &[i64], before: &[i64], after: &[i64]) -> bool {
    held.iter().zip(before).zip(after).all(|((held, before), after)| held != before && held != after)
}

/// Enqueues sums of all of these.
pub(crate) fn enqueue<'a>(batch: &mut Batch<'a>, vectors: impl IntoIterator<Item = &'a mut IntegerVector>) {
    for vector in vectors {
        batch.enqueue(Reduction::sum(vector)).unwrap();
    }
}
