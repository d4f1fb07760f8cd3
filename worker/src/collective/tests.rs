//! The ring among threads of one process, and against peers that break the rules.

use super::frame::{HEADER_LEN, Header, Kind, MAX_PAYLOAD, run_hash};
use super::*;
use crate::progress::Progress;
use ballast_proto::v1::Generation;
use ballast_proto::{Coded, ErrorCode};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Long enough never to pass when all goes well.
const PATIENCE: Duration = Duration::from_secs(60);

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn config(rank: usize, addresses: &[String]) -> RingConfig {
    let world_size = addresses.len();
    let address = |rank: usize| rank.checked_rem(world_size).map_or_else(String::new, |rank| addresses[rank].clone());
    RingConfig {
        run_id: "run".into(),
        generation: Generation::new(1, 2),
        rank,
        world_size,
        next_address: address(rank + 1),
        previous_address: address(rank + world_size.saturating_sub(1)),
        timeout: PATIENCE,
        lease: PATIENCE,
    }
}

/// Runs `work` on every rank of a ring, each on a thread of its own.
fn ring<T: Send>(world: usize, chunk: usize, work: impl Fn(TcpRing) -> T + Sync) -> Vec<T> {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..world).map(|_| listener()).unzip();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(rank, listener)| {
                let (config, work) = (config(rank, &addresses), &work);
                scope.spawn(move || {
                    work(TcpRing::with_chunk(listener, config, &AbortHandle::new(), Progress::new(), chunk).unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Values that differ by rank and wrap around in a sum.
fn values(rank: usize, len: usize) -> Vec<i64> {
    (0..len as i64)
        .map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64).rotate_left(7 * rank as u32))
        .collect()
}

fn expected(world: usize, len: usize, op: fn(i64, i64) -> i64) -> Vec<i64> {
    (1..world).fold(values(0, len), |sum, rank| sum.into_iter().zip(values(rank, len)).map(|(a, b)| op(a, b)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_rank_gets_the_sum_and_the_maximum(world in 2..9_usize, len in 0..300_usize, chunk in 1..100_usize) {
        let results = ring(world, chunk, |mut ring| {
            let (mut sum, mut max) = (values(ring.rank(), len), values(ring.rank(), len));
            ring.all_reduce_sum(&mut sum).unwrap();
            ring.all_reduce_max(&mut max).unwrap();
            (sum, max)
        });
        let reference = (expected(world, len, i64::wrapping_add), expected(world, len, i64::max));
        prop_assert!(results.iter().all(|result| *result == reference));
    }
}

#[test]
fn sums_of_reals_are_the_same_bits_on_every_rank() {
    for (world, len) in [(2, 0), (2, 1), (3, 1000), (5, 257)] {
        let own = |rank: usize| (0..len).map(|i| ((rank + 1) * (i + 3)) as f32 / 7.0).collect::<Vec<f32>>();
        let results = ring(world, 64, |mut ring| {
            let mut values = own(ring.rank());
            ring.all_reduce_sum_reals(&mut values).unwrap();
            values
        });
        assert!(results.iter().all(|result| *result == results[0]), "{world} ranks of {len}");
        let ranks: f32 = (1..=world).map(|rank| rank as f32).sum();
        for (i, sum) in results[0].iter().enumerate() {
            let expected = ranks * (i + 3) as f32 / 7.0;
            assert!((sum - expected).abs() <= 1e-6 * expected, "{sum} {expected}");
        }
    }
}

#[test]
fn vectors_much_larger_than_any_socket_buffer_pass() {
    let len = 2_000_003;
    for world in [2, 3] {
        let results = ring(world, 1 << 15, |mut ring| {
            let mut sum = values(ring.rank(), len);
            ring.all_reduce_sum(&mut sum).unwrap();
            sum
        });
        let reference = expected(world, len, i64::wrapping_add);
        assert!(results.iter().all(|result| *result == reference));
    }
}

#[test]
fn short_vectors_and_a_world_of_one() {
    for len in [0, 1, 3] {
        for result in ring(5, 4, |mut ring| {
            let mut sum = vec![1; len];
            ring.all_reduce_sum(&mut sum).unwrap();
            sum
        }) {
            assert_eq!(result, vec![5; len]);
        }
    }
    let mut solo = vec![7];
    Solo.all_reduce_sum(&mut solo).unwrap();
    Solo.all_reduce_max(&mut solo).unwrap();
    assert_eq!((solo, Solo.rank(), Solo.world_size()), (vec![7], 0, 1));
}

#[test]
fn ranks_that_disagree_about_the_length_notice() {
    let errors = ring(2, 8, |mut ring| {
        let mut values = vec![1; 3 * ring.rank()];
        ring.all_reduce_sum(&mut values).unwrap_err().code()
    });
    assert!(errors.contains(&ErrorCode::BadFrame), "{errors:?}");
}

#[test]
fn frames_move_the_progress_counter() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
    let progress = Progress::new();
    std::thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let (config, progress) = (config(rank, &addresses), progress.clone());
            scope.spawn(move || {
                let mut ring = TcpRing::connect(listener, config, &AbortHandle::new(), progress).unwrap();
                ring.all_reduce_sum(&mut [1, 2]).unwrap();
            });
        }
    });
    assert_eq!(progress.heartbeat().progress, 4);
}

#[test]
fn abort_ends_a_blocked_reduction_at_once() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
    let abort = AbortHandle::new();
    std::thread::scope(|scope| {
        let (silent, silence) = mpsc::channel::<()>();
        let (first, second, other) = (config(0, &addresses), config(1, &addresses), &listeners[1]);
        scope.spawn(move || {
            let _ring = TcpRing::connect(other, second, &AbortHandle::new(), Progress::new()).unwrap();
            let _ = silence.recv();
        });
        let mut ring = TcpRing::connect(&listeners[0], first, &abort, Progress::new()).unwrap();
        let aborter = abort.clone();
        let start = Instant::now();
        scope.spawn(move || aborter.abort("worker 3 is gone"));
        let error = ring.all_reduce_sum(&mut [1; 100]).unwrap_err();
        assert_eq!(error.to_string(), "aborted: worker 3 is gone");
        assert!(start.elapsed() < PATIENCE / 10);
        assert!(matches!(ring.all_reduce_max(&mut [1]), Err(CollectiveError::Broken)));
        drop(silent);
    });
}

#[test]
fn abort_ends_a_handshake() {
    let (listener, address) = listener();
    let abort = AbortHandle::new();
    abort.abort("enough");
    let addresses = [address.clone(), address];
    let error = TcpRing::connect(&listener, config(0, &addresses), &abort, Progress::new()).err().unwrap();
    assert!(matches!(error, CollectiveError::Aborted(_)), "{error}");
}

#[test]
fn abort_ends_a_handshake_with_a_neighbour_that_never_answers() {
    let ((own, own_address), (theirs, their_address)) = (listener(), listener());
    let (config, abort) = (config(0, &[own_address, their_address]), AbortHandle::new());
    let (start, aborter) = (Instant::now(), abort.clone());
    std::thread::scope(|scope| {
        let silent = scope.spawn(move || {
            let (mut socket, _) = theirs.accept().unwrap();
            let mut greeting = [0; HEADER_LEN];
            socket.read_exact(&mut greeting).unwrap();
            aborter.abort("worker 3 is gone");
            socket
        });
        let error = TcpRing::connect(&own, config, &abort, Progress::new()).err().unwrap();
        assert_eq!(error.to_string(), "aborted: worker 3 is gone");
        drop(silent.join());
    });
    assert!(start.elapsed() < PATIENCE / 10);
}

#[test]
fn a_silent_peer_times_out_and_a_vanished_one_is_named() {
    for silent in [true, false] {
        let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
        std::thread::scope(|scope| {
            let (hold, held) = mpsc::channel::<()>();
            let (first, second, other) = (config(0, &addresses), config(1, &addresses), &listeners[1]);
            scope.spawn(move || {
                let _ring = TcpRing::connect(other, second, &AbortHandle::new(), Progress::new()).unwrap();
                if silent {
                    let _ = held.recv();
                }
            });
            let mut ring = TcpRing::connect(&listeners[0], first, &AbortHandle::new(), Progress::new()).unwrap();
            if silent {
                ring.timeout = Duration::from_millis(300);
            }
            let error = ring.all_reduce_sum(&mut [1; 100]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::CollectiveFailed);
            assert!(error.to_string().contains(&format!("rank 1 ({})", addresses[1])), "{error}");
            assert_eq!(matches!(error, CollectiveError::TimedOut { .. }), silent, "{error}");
            drop(hold);
        });
    }
}

// ---- peers that break the rules ----------------------------------------------------------------------------------------

fn frame(kind: Kind, total: u64, offset: u64, values: &[i64]) -> (Header, Vec<u8>) {
    let header = Header {
        kind,
        round: 0,
        length: 8 * values.len() as u32,
        run: run_hash("run"),
        epoch: 1,
        number: 2,
        sequence: 0,
        total,
        offset,
    };
    let mut bytes = vec![0; HEADER_LEN];
    values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
    header.seal(&mut bytes);
    (header, bytes)
}

/// A peer at rank 1 of 2 that shakes hands by the rules and then sends `bytes`, at the ring's first reduction.
fn against(bytes: &[u8], close: bool) -> CollectiveError {
    let (own, own_address) = listener();
    let (theirs, their_address) = listener();
    let addresses = [own_address, their_address];
    std::thread::scope(|scope| {
        let (hold, held) = mpsc::channel::<()>();
        let target = addresses[0].clone();
        scope.spawn(move || {
            let mut to_rank_0 = TcpStream::connect(target).unwrap();
            to_rank_0.write_all(&frame(Kind::Hello, 2, 1, &[]).1).unwrap();
            let (mut from_rank_0, _) = theirs.accept().unwrap();
            let mut greeting = [0; HEADER_LEN];
            from_rank_0.read_exact(&mut greeting).unwrap();
            from_rank_0.write_all(&frame(Kind::Welcome, 2, 1, &[]).1).unwrap();
            to_rank_0.read_exact(&mut greeting).unwrap();
            to_rank_0.write_all(bytes).unwrap();
            if !close {
                let _ = held.recv();
            }
        });
        let mut config = config(0, &addresses);
        config.timeout = Duration::from_secs(20);
        let mut ring = TcpRing::connect(&own, config, &AbortHandle::new(), Progress::new()).unwrap();
        let error = ring.all_reduce_sum(&mut [1, 2, 3, 4]).unwrap_err();
        drop(hold);
        error
    })
}

/// The frame that rank 0 of 2 awaits first, in a sum of four elements, after `change`.
fn due(change: impl Fn(&mut Header)) -> Vec<u8> {
    let (mut header, mut bytes) = frame(Kind::Sum, 4, 2, &[5, 6]);
    change(&mut header);
    header.seal(&mut bytes);
    bytes
}

#[test]
fn malformed_frames_break_the_ring_and_nothing_else() {
    let mut magic = due(|_| ());
    magic[0] = b'X';
    let mut version = due(|_| ());
    version[4] = 2;
    let mut damaged = due(|_| ());
    damaged[HEADER_LEN] ^= 1;
    let table = [
        (magic, "does not begin as a frame of ballast"),
        (version, "frame version 2, expected 1"),
        (due(|h| h.length = u32::MAX), "a payload of 4294967295 bytes"),
        (due(|h| h.length = MAX_PAYLOAD as u32), "length is 4194304, expected 16"),
        (due(|h| h.number = 1), "generation number is 1, expected 2"),
        (due(|h| h.run = 0), "run is 0"),
        (due(|h| h.kind = Kind::Max), "kind is Max, expected Sum"),
        (due(|h| h.kind = Kind::Hello), "kind is Hello, expected Sum"),
        (due(|h| h.sequence = 1), "sequence is 1, expected 0"),
        (due(|h| h.round = 1), "round is 1, expected 0"),
        (due(|h| h.offset = u64::MAX), "offset is 18446744073709551615, expected 2"),
        (due(|h| h.total = 5), "total is 5, expected 4"),
        (damaged, "checksum does not match"),
    ];
    for (bytes, message) in table {
        let error = against(&bytes, false);
        assert_eq!(error.code(), ErrorCode::BadFrame, "{error}");
        let error = error.to_string();
        assert!(error.starts_with("malformed frame from rank 1 (127.0.0.1:") && error.contains(message), "{error}");
    }
}

#[test]
fn a_truncated_frame_is_a_lost_connection() {
    let whole = due(|_| ());
    for cut in [0, 1, HEADER_LEN - 1, HEADER_LEN, HEADER_LEN + 3] {
        let error = against(&whole[..cut], true);
        assert_eq!(error.code(), ErrorCode::CollectiveFailed, "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_babbling_peer_never_does_more_than_break_the_ring(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let code = against(&bytes, true).code();
        prop_assert!(matches!(code, ErrorCode::BadFrame | ErrorCode::CollectiveFailed));
    }
}

// ---- strangers at the door ---------------------------------------------------------------------------------------------

#[test]
fn strangers_and_stale_generations_are_refused_and_the_ring_forms_all_the_same() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
    // All of these stand in the queue of rank 0 before its true neighbour.
    let silent = TcpStream::connect(&addresses[0]).unwrap();
    let mut web = TcpStream::connect(&addresses[0]).unwrap();
    web.write_all(&[b'G'; 200]).unwrap();
    let gone = TcpStream::connect(&addresses[0]).unwrap();
    drop(gone);
    let stale = |change: fn(&mut Header)| {
        let (mut header, _) = frame(Kind::Hello, 2, 1, &[]);
        change(&mut header);
        let mut socket = TcpStream::connect(&addresses[0]).unwrap();
        socket.write_all(&header.sealed()).unwrap();
        socket
    };
    let mut refused = [
        stale(|h| h.number = 1),
        stale(|h| h.run = 9),
        stale(|h| h.offset = 0),
        stale(|h| h.total = 3),
        stale(|h| h.kind = Kind::Welcome),
    ];
    std::thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let config = config(rank, &addresses);
            scope.spawn(move || {
                let mut ring = TcpRing::connect(listener, config, &AbortHandle::new(), Progress::new()).unwrap();
                let mut values = [1, 2, 3];
                ring.all_reduce_sum(&mut values).unwrap();
                assert_eq!(values, [2, 4, 6]);
            });
        }
    });
    for socket in &mut refused {
        let mut reply = [0; HEADER_LEN];
        socket.read_exact(&mut reply).unwrap();
        assert_eq!(Header::decode(&reply).unwrap().0.kind, Kind::Refused);
    }
    drop(silent);
}

#[test]
fn a_neighbour_in_another_generation_is_named_when_time_is_over() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listener()).unzip();
    std::thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let mut config = config(rank, &addresses);
            config.generation.number += rank as u64;
            config.timeout = Duration::from_millis(1500);
            let addresses = &addresses;
            scope.spawn(move || {
                let error = TcpRing::connect(listener, config, &AbortHandle::new(), Progress::new()).err().unwrap();
                let error = error.to_string();
                assert!(error.contains(&format!("rank {} ({})", 1 - rank, addresses[1 - rank])), "{error}");
                assert!(error.contains("generation number is"), "{error}");
            });
        }
    });
}

#[test]
fn senseless_places_are_refused() {
    let (listener, address) = listener();
    for (rank, world) in [(0, 0), (0, 1), (2, 2)] {
        let config = config(rank, &vec![address.clone(); world]);
        let error = TcpRing::connect(&listener, config, &AbortHandle::new(), Progress::new()).err().unwrap();
        assert!(matches!(error, CollectiveError::Setup(_)));
    }
}
