//! What becomes of a rank when another dies, hangs, is slow or asks for something else, and when its device fails.
//! These need the faults of this repository's software device: `make test-cuda`.
#![cfg(all(feature = "cuda", feature = "reference"))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod ranks;

use ballast_kernels::Backend;
use ballast_kernels::conformance::skip_without_our_device;
use ballast_kernels::cuda::nccl::{Communicator, CommunicatorAbort, CommunicatorError, CommunicatorId, Reduction};
use ballast_kernels::cuda::{CudaBackend, IntegerVector, Storage};
use ranks::{LONG, Rank, SHORT, SOON, enqueue, hear, heard, is_garbage, is_rank, on_ranks, passed, run, say};
use std::time::{Duration, Instant};

const FAULT: &str = "SOFTGPU_NCCL_FAULT";
/// For ranks that are there together, and one of which hangs.
const TIMEOUT: Duration = Duration::from_millis(1500);
const SCHEDULES: [&str; 2] = ["lazy", "eager"];

/// A sum that succeeds, then one that does not. Returns the error.
fn second_fails(rank: &Rank, communicator: &mut Communicator) -> CommunicatorError {
    let mut vector = rank.upload(&rank.values(0));
    communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap();
    assert_eq!(rank.read(&vector), rank.sum(0));
    fails(rank, communicator)
}

/// A sum that does not succeed: the vector holds garbage, the state beside it is whole, nothing is progress, and the
/// communicator is broken.
fn fails(rank: &Rank, communicator: &mut Communicator) -> CommunicatorError {
    let (mut vector, state) = (rank.upload(&rank.values(1)), rank.upload(&rank.values(2)));
    let mut ticks = 0;
    let start = Instant::now();
    let error = communicator.all_reduce(Reduction::sum(&mut vector), || ticks += 1).unwrap_err();
    assert!(start.elapsed() < TIMEOUT + SOON && ticks == 0, "{:?}, {ticks}", start.elapsed());
    assert!(is_garbage(&rank.read(&vector), &rank.values(1), &rank.sum(1)));
    assert_eq!(rank.read(&state), rank.values(2));
    broken(&error, communicator, &mut vector);
    error
}

fn broken(first: &CommunicatorError, communicator: &mut Communicator, vector: &mut IntegerVector) {
    let start = Instant::now();
    match communicator.all_reduce(Reduction::sum(vector), || ()) {
        Err(CommunicatorError::Broken { cause, .. }) => assert_eq!(cause, first.to_string()),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < SHORT, "at once");
}

/// The rank whose turn it is dies in the second sum, when the other has the result of the first. Rank 0's process also
/// holds the hub.
#[test]
fn the_death_of_a_rank_is_an_error_of_the_others() {
    let test = "the_death_of_a_rank_is_an_error_of_the_others";
    if skip_without_our_device() {
        return;
    }
    let body = |rank: &Rank| {
        let mut communicator = rank.join(LONG);
        let mut vector = rank.upload(&rank.values(0));
        communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap();
        if std::env::var(FAULT) == Ok(format!("die:2@{}", rank.member.rank)) {
            hear("the first sum is there");
        } else {
            say("the first sum is there", &[]);
        }
        let error = fails(rank, &mut communicator);
        let text = error.to_string();
        assert!(matches!(error, CommunicatorError::Failed { .. }), "{text}");
        assert!(text.contains("remote process exited") && text.contains("NCCL_DEBUG=WARN"), "{text}");
        assert!(text.contains("of 2: the sum of integers over elements 0..1001 of 1001 failed"), "{text}");
    };
    if is_rank(body) {
        return;
    }
    for (dead, schedule) in [(1, "lazy"), (0, "lazy"), (1, "eager")] {
        let outputs = run(test, 2, &[(FAULT, &format!("die:2@{dead}")), ("SOFTGPU_SCHED", schedule)]);
        passed(test, &outputs[1 - dead]);
        assert!(!outputs[dead].status.success(), "rank {dead} was to die");
    }
}

#[test]
fn a_rank_that_hangs_is_an_error_of_all() {
    let test = "a_rank_that_hangs_is_an_error_of_all";
    if skip_without_our_device() {
        return;
    }
    for schedule in SCHEDULES {
        on_ranks(test, 2, &[(FAULT, "hang:2@1"), ("SOFTGPU_SCHED", schedule)], |rank| {
            let error = second_fails(rank, &mut rank.join_together(TIMEOUT));
            // The rank that sees its timeout first aborts, which the other may see before its own.
            let text = error.to_string();
            assert!(text.contains("did not end within 1500 ms") || text.contains("remote process exited"), "{text}");
        });
    }
}

/// A communicator with a fresh id, which rank 0 makes.
fn next_generation(rank: &Rank, name: &str, timeout: Duration) -> Communicator {
    let id = match rank.member.rank {
        0 => {
            let id = CommunicatorId::new().unwrap();
            say(name, &id.to_bytes());
            id
        }
        _ => CommunicatorId::try_from(&hear(name)[..]).unwrap(),
    };
    Communicator::new(&rank.backend, &id, rank.member, timeout, &CommunicatorAbort::new()).unwrap()
}

/// Each piece comes late, and all together need longer than the timeout, which is each piece's own.
#[test]
fn a_slow_rank_is_waited_for() {
    let test = "a_slow_rank_is_waited_for";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 2, &[(FAULT, "delay:300@1")], |rank| {
        let mut communicator = rank.join_together(TIMEOUT);
        let mut vector = rank.upload(&rank.values(0));
        let (start, mut ticks) = (Instant::now(), 0);
        communicator.all_reduce(Reduction::sum(&mut vector).in_pieces_of(167), || ticks += 1).unwrap();
        assert!(start.elapsed() > TIMEOUT && ticks == 6);
        assert_eq!(rank.read(&vector), rank.sum(0));
    });
}

/// Nobody looks at the collectives while they end: they are not taken for late.
#[test]
fn a_late_look_is_no_late_collective() {
    let test = "a_late_look_is_no_late_collective";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 2, &[("SOFTGPU_SCHED", "eager")], |rank| {
        let mut communicator = rank.join_together(TIMEOUT);
        let (mut first, mut second) = (rank.upload(&rank.values(0)), rank.upload(&rank.values(1)));
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut first, &mut second]);
        // Something else to do on the host for longer than the timeout.
        std::thread::sleep(TIMEOUT + SHORT);
        batch.wait(|| ()).unwrap();
        assert_eq!((rank.read(&first), rank.read(&second)), (rank.sum(0), rank.sum(1)));
    });
}

#[test]
fn ranks_that_disagree_get_an_error() {
    let test = "ranks_that_disagree_get_an_error";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 3, &[(FAULT, "mismatch:2@1")], |rank| {
        let text = second_fails(rank, &mut rank.join(LONG)).to_string();
        assert!(text.contains("invalid usage") || text.contains("remote process exited"), "{text}");
    });
}

/// Rank 1 hangs in the second of three collectives; rank 0 aborts from another thread, at once, and both go on with a
/// new communicator.
#[test]
fn an_abort_ends_a_collective_and_the_next_generation_works() {
    let test = "an_abort_ends_a_collective_and_the_next_generation_works";
    if skip_without_our_device() {
        return;
    }
    for schedule in SCHEDULES {
        on_ranks(test, 2, &[(FAULT, "hang:2@1"), ("SOFTGPU_SCHED", schedule)], |rank| {
            let mut communicator = rank.join(LONG);
            let mut vectors: Vec<_> = (0..3).map(|round| rank.upload(&rank.values(round))).collect();
            let mut batch = communicator.batch();
            enqueue(&mut batch, &mut vectors);
            let enqueued = |rank| format!("rank {rank} has enqueued");
            say(&enqueued(rank.member.rank), &[]);
            let mut aborted = None;
            let error = std::thread::scope(|scope| {
                let (first_is_done, wait) = std::sync::mpsc::channel();
                let abort = &rank.abort;
                let thread = scope.spawn(move || {
                    // The other rank may be quicker: then the wait ends before anything is done, and the channel with it.
                    let _ = wait.recv();
                    hear(&enqueued(1 - rank.member.rank));
                    abort.abort("membership changed");
                    Instant::now()
                });
                let error = batch.wait(move || first_is_done.send(()).unwrap()).unwrap_err();
                aborted = Some(thread.join().unwrap());
                error
            });
            assert!(aborted.unwrap().elapsed() < SOON);
            let text = error.to_string();
            assert!(text.contains("aborted: membership changed") || text.contains("remote process exited"), "{text}");
            for (round, vector) in vectors.iter().enumerate() {
                let (held, before, after) = (rank.read(vector), rank.values(round), rank.sum(round));
                assert!(if round == 0 { held == after } else { is_garbage(&held, &before, &after) }, "{round}");
            }
            broken(&error, &mut communicator, &mut vectors[0]);
            drop(communicator);

            let mut communicator = next_generation(rank, "second", LONG);
            let mut vector = rank.upload(&rank.values(7));
            communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap();
            assert_eq!(rank.read(&vector), rank.sum(7));
        });
    }
}

/// The compute thread waits in the driver, which waits for the device, which waits for rank 1: freeing memory does.
#[test]
fn a_thread_that_waits_in_the_driver_comes_back() {
    let test = "a_thread_that_waits_in_the_driver_comes_back";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 2, &[(FAULT, "hang:1@1"), ("SOFTGPU_SCHED", "eager")], |rank| {
        let other = CudaBackend::new(0, Storage::F32).unwrap();
        drop(other.reals(1000).unwrap());
        let mut communicator = rank.join_together(TIMEOUT);
        let mut vector = rank.upload(&rank.values(0));
        let mut batch = communicator.batch();
        let start = Instant::now();
        enqueue(&mut batch, [&mut vector]);
        drop(other);
        let held_up = start.elapsed();
        assert!(held_up > SHORT && held_up < TIMEOUT + SOON, "{held_up:?}");
        let error = batch.wait(|| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("did not end within") || text.contains("remote process exited"), "{text}");
    });
}

/// A fault that lasts, as of a kernel that reached outside its operands.
#[test]
fn a_device_that_fails_is_an_error() {
    let test = "a_device_that_fails_is_an_error";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 2, &[], |rank| {
        let mut communicator = rank.join(LONG);
        let mut vector = rank.upload(&rank.values(0));
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut vector]);
        if rank.member.rank == 1 {
            raise();
            let error = batch.wait(|| ()).unwrap_err();
            assert!(matches!(error, CommunicatorError::Device { .. }), "{error}");
            assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
            say("the device has failed", &[]);
        } else {
            let error = batch.wait(|| ()).unwrap_err();
            assert!(
                heard("the device has failed").is_some() || error.to_string().contains("remote process"),
                "{error}"
            );
        }
    });
}

/// An abort that comes first must not hide that the device is lost: the process that is told of an abort goes on.
#[test]
fn a_device_that_fails_is_told_though_an_abort_came_first() {
    let test = "a_device_that_fails_is_told_though_an_abort_came_first";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 1, &[], |rank| {
        let mut communicator = rank.join(LONG);
        let mut vector = rank.upload(&rank.values(0));
        let mut batch = communicator.batch();
        enqueue(&mut batch, [&mut vector]);
        rank.abort.abort("membership changed");
        raise();
        let error = batch.wait(|| ()).unwrap_err();
        assert!(matches!(error, CommunicatorError::Device { .. }), "{error}");
        assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    });
}

/// What neither ends by an abort nor in time may write to memory at any moment: the device is given up, with all that is on
/// it, and whoever uses it is told so. Nothing waits for it any more, not even the process's end.
#[test]
fn a_collective_that_survives_its_abort_condemns_the_device() {
    let test = "a_collective_that_survives_its_abort_condemns_the_device";
    if skip_without_our_device() {
        return;
    }
    on_ranks(test, 1, &[(FAULT, "stuck:1"), ("SOFTGPU_SCHED", "eager")], |rank| {
        let mut communicator = rank.join(TIMEOUT);
        let mut vector = rank.upload(&rank.values(0));
        let error = communicator.all_reduce(Reduction::sum(&mut vector), || ()).unwrap_err();
        assert!(matches!(error, CommunicatorError::Device { .. }), "{error}");
        let condemned = "the device is still busy with an aborted collective";
        assert!(error.to_string().contains(condemned), "{error}");
        let refused = rank.backend.reals(1).map(drop).unwrap_err().to_string();
        assert!(refused.contains(condemned), "{refused}");
        let refused = rank.backend.synchronize().unwrap_err().to_string();
        assert!(refused.contains(condemned), "{refused}");
    });
}

fn raise() {
    type Raise = unsafe extern "C" fn(u32, *const std::ffi::c_char) -> u32;
    // SAFETY: the software device exports this function, of this type; it copies the text.
    unsafe {
        let raise = cudarc::driver::sys::culib().get::<Raise>(b"softgpu_raise").unwrap();
        raise(700, c"raised by a test".as_ptr());
    }
}
