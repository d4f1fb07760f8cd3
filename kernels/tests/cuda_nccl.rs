//! All-reduces between processes, one a rank: exact, in order with the backend's work, and undone without a trace.
//!
//! As tests/cuda.rs, these need a device, real or emulated. On the software device (`make test-cuda`) several ranks share
//! one; NCCL itself wants a GPU a rank, and what needs more ranks than there are GPUs is skipped.
#![cfg(all(feature = "cuda", feature = "reference"))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod ranks;

use ballast_kernels::cuda::nccl::{
    Communicator, CommunicatorAbort, CommunicatorError, CommunicatorId, Member, Reduction,
};
use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_kernels::{Backend, Bucket, Segment};
use ranks::{LONG, N, Rank, SHORT, SOON, enqueue, on_ranks, watchdogs};
use std::time::Instant;

const SCHEDULES: [&str; 2] = ["lazy", "eager"];

#[test]
fn sums_and_maxima_are_exact_and_equal() {
    let test = "sums_and_maxima_are_exact_and_equal";
    for (schedule, count) in [("lazy", 2), ("eager", 3), ("lazy", 3)] {
        on_ranks(test, count, &[("SOFTGPU_SCHED", schedule)], |rank| {
            let mut communicator = rank.join(LONG);
            assert_eq!(communicator.member(), rank.member);
            for round in 0..3 {
                let (mut sums, mut maxima) = (rank.upload(&rank.values(round)), rank.upload(&rank.values(round)));
                communicator.all_reduce(Reduction::sum(&mut sums), || ()).unwrap();
                communicator.all_reduce(Reduction::max(&mut maxima), || ()).unwrap();
                assert_eq!(rank.read(&sums), rank.sum(round));
                assert_eq!(rank.read(&maxima), rank.max(round));
            }
            let mut reals = rank.backend.upload_reals(&[0.5, rank.member.rank as f32, -1e30]).unwrap();
            communicator.all_reduce(Reduction::sum_reals(&mut reals), || ()).unwrap();
            let count = rank.member.world_size as f32;
            let want = [0.5 * count, count * (count - 1.0) / 2.0, -1e30 * count];
            assert_eq!(rank.backend.read_reals(&reals).unwrap(), want);
        });
    }
}

#[test]
fn only_the_range_is_reduced_and_each_piece_is_progress() {
    on_ranks("only_the_range_is_reduced_and_each_piece_is_progress", 2, &[], |rank| {
        let mut communicator = rank.join(LONG);
        let (mut vector, mut ticks) = (rank.upload(&rank.values(0)), 0);
        let reduction = Reduction::sum(&mut vector).of(17..900).in_pieces_of(100);
        communicator.all_reduce(reduction, || ticks += 1).unwrap();
        let mut want = rank.values(0);
        want[17..900].copy_from_slice(&rank.sum(0)[17..900]);
        assert_eq!((rank.read(&vector), ticks), (want, 9));
        communicator.all_reduce(Reduction::sum(&mut vector).of(5..5), || ticks += 1).unwrap();
        assert_eq!(ticks, 9, "nothing to reduce");
    });
}

/// The reduced values come from kernels that are enqueued just before, and go into kernels enqueued just after. The
/// batch's vectors are borrowed meanwhile; everything else goes on.
#[test]
fn reductions_are_in_order_with_the_backend() {
    let test = "reductions_are_in_order_with_the_backend";
    for (schedule, seed) in SCHEDULES.into_iter().flat_map(|schedule| ["0", "1"].map(|seed| (schedule, seed))) {
        let variables = [("SOFTGPU_SCHED", schedule), ("SOFTGPU_SEED", seed)];
        on_ranks(test, 2, &variables, in_order_with_the_backend);
    }
}

fn in_order_with_the_backend(rank: &Rank) {
    let (b, mut communicator) = (&rank.backend, rank.join(LONG));
    let segments = [Segment { range: 0..N, exponent: 10 }];
    let whole = Bucket::whole(&segments, N);
    let (mut sums, mut flags) = (b.integers(N).unwrap(), b.integers(1).unwrap());
    let mut aside = b.integers(N).unwrap();
    let mut total = 0.0;
    for round in 1..=3_u8 {
        let mine = f32::from(round) * (rank.member.rank as f32 + 1.0);
        let gradient = b.upload_reals(&[mine; N]).unwrap();
        b.clear_integers(&mut sums).unwrap();
        b.accumulate_fixed(&gradient, &whole, 48, &mut sums, &mut flags).unwrap();
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut sums]);
        batch.enqueue(Reduction::max(&mut flags)).unwrap();
        b.accumulate_fixed(&gradient, &whole, 48, &mut aside, &mut b.integers(1).unwrap()).unwrap();
        let mut ticks = 0;
        batch.wait(|| ticks += 1).unwrap();
        let mut mean = b.reals(N).unwrap();
        b.fixed_to_gradient(&sums, &whole, 3.0, &mut mean).unwrap();
        assert_eq!(b.read_reals(&mean).unwrap(), [f32::from(round); N]);
        total += mine;
        assert_eq!((rank.read(&aside), ticks), (vec![(total * 1024.0) as i64; N], 2));
    }
}

#[test]
fn a_world_of_one_changes_nothing() {
    on_ranks("a_world_of_one_changes_nothing", 1, &[], |rank| {
        let mut communicator = rank.join(LONG);
        let mut vector = rank.upload(&rank.values(0));
        communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap();
        communicator.all_reduce(Reduction::max(&mut vector).in_pieces_of(7), || ()).unwrap();
        assert_eq!(rank.read(&vector), rank.values(0));
    });
}

fn refused(communicator: &mut Communicator, reduction: Reduction<'_>) -> String {
    match communicator.all_reduce(reduction, || ()) {
        Err(CommunicatorError::Setup(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    on_ranks("what_makes_no_sense_is_refused_and_changes_nothing", 1, &[], |rank| {
        let mut communicator = rank.join(LONG);
        let stranger = CudaBackend::new(0, Storage::F32).unwrap();
        let (mut vector, mut foreign) = (rank.upload(&rank.values(0)), stranger.integers(N).unwrap());
        let c = &mut communicator;
        assert!(refused(c, Reduction::sum(&mut vector).of(0..N + 1)).contains("0..1002 of 1001"));
        assert!(refused(c, Reduction::sum(&mut vector).of(N + 1..N + 1)).contains("1002..1002 of 1001"));
        assert!(refused(c, Reduction::sum(&mut vector).in_pieces_of(0)).contains("pieces of 0"));
        assert!(refused(c, Reduction::sum(&mut foreign)).contains("another backend"));
        communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap();
        assert_eq!(rank.read(&vector), rank.values(0));
        for (number, world_size) in [(1, 1), (0, 0), (usize::MAX, usize::MAX)] {
            let member = Member { rank: number, world_size };
            let made = Communicator::new(&rank.backend, &rank.id, member, LONG, &rank.abort);
            assert!(matches!(made, Err(CommunicatorError::Setup(_))), "{made:?}");
        }
        let garbled = CommunicatorId::try_from(&[7; 128][..]).unwrap();
        let made = Communicator::new(&rank.backend, &garbled, rank.member, SHORT, &rank.abort);
        assert!(matches!(made, Err(CommunicatorError::Failed { .. } | CommunicatorError::TimedOut { .. })), "{made:?}");
    });
}

#[test]
fn debug_shows_nothing_of_an_id() {
    on_ranks("debug_shows_nothing_of_an_id", 1, &[], |rank| {
        let communicator = rank.join(LONG);
        let shown = format!("{:?} {:#?} {communicator:?} {:?}", rank.id, rank.id, rank.abort);
        let bytes = rank.id.to_bytes();
        for secret in bytes.windows(4).filter(|bytes| bytes.iter().all(|&byte| byte != 0)) {
            let (list, digits) = (format!("{secret:?}"), secret.iter().map(|byte| format!("{byte:02x}")));
            assert!(!shown.contains(list.trim_matches(['[', ']'])) && !shown.contains(&digits.collect::<String>()));
        }
    });
}

/// The other rank never comes: an abort from another thread, before and while the communicator is made, and the timeout.
#[test]
fn a_communicator_that_is_never_made_ends() {
    on_ranks("a_communicator_that_is_never_made_ends", 1, &[], |rank| {
        let lonely = |timeout, abort: &CommunicatorAbort| {
            let member = Member { rank: 0, world_size: 2 };
            Communicator::new(&rank.backend, &CommunicatorId::new().unwrap(), member, timeout, abort).unwrap_err()
        };
        let start = Instant::now();
        let abort = CommunicatorAbort::new();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                while watchdogs() == 0 {
                    std::thread::yield_now();
                }
                abort.abort("the generation is given up");
                abort.abort("a later reason");
            });
            lonely(LONG, &abort)
        });
        assert!(error.to_string().contains("rank 0 of 2: aborted: the generation is given up"), "{error}");
        let error = lonely(LONG, &abort);
        assert!(matches!(error, CommunicatorError::Aborted { .. }), "aborted before it was made: {error}");
        let error = lonely(SHORT, &CommunicatorAbort::new());
        assert!(matches!(error, CommunicatorError::TimedOut { .. }), "{error}");
        assert!(error.to_string().contains("making the communicator did not end within 700 ms"), "{error}");
        assert!(start.elapsed() < SOON);
    });
}

/// Unused, used, aborted while idle, with a batch that nobody waits for, and with one that was forgotten.
#[test]
fn a_communicator_can_be_dropped_in_any_state() {
    on_ranks("a_communicator_can_be_dropped_in_any_state", 1, &[], |rank| {
        let start = Instant::now();
        let join = |abort: &CommunicatorAbort| {
            let id = CommunicatorId::new().unwrap();
            Communicator::new(&rank.backend, &id, rank.member, LONG, abort).unwrap()
        };
        drop(join(&rank.abort));
        let abort = CommunicatorAbort::new();
        let communicator = join(&abort);
        abort.abort("nobody needs it");
        drop(communicator);

        let mut communicator = join(&rank.abort);
        let (mut first, mut second) = (rank.upload(&rank.values(0)), rank.upload(&rank.values(1)));
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut first, &mut second]);
        drop(batch);
        let error = communicator.all_reduce(Reduction::sum(&mut first), || ()).unwrap_err();
        assert!(error.to_string().contains("not waited for"), "{error}");
        drop(communicator);

        let mut communicator = join(&rank.abort);
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut first, &mut second]);
        std::mem::forget(batch);
        drop(communicator);
        // What was given up is no longer written to.
        rank.backend.write_integers(&mut first, &rank.values(2)).unwrap();
        drop(second);
        assert_eq!(rank.read(&first), rank.values(2));
        assert!(start.elapsed() < SOON);
    });
}
