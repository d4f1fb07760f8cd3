//! The stand-in for NCCL, asked through the bindings of an unchanged cudarc: one process a rank.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::ranks::{self, PATIENCE, Role};

use cudarc::{
    driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut},
    nccl::sys::{self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId},
};

const N: usize = 1001;

/// A rank: its stream and its communicator.
struct Rank {
    rank: usize,
    ranks: usize,
    communicator: ncclComm_t,
    stream: Arc<CudaStream>,
}

/// Rank 0 makes the id and publishes it; the others are told it.
fn join() -> Rank {
    let Role { rank, ranks, id: told } = ranks::role().expect("a child");
    let mut id = ncclUniqueId { internal: [0; 128] };
    match told {
        Some(bytes) => id.internal.iter_mut().zip(bytes).for_each(|(byte, told)| *byte = told as _),
        None => {
            // SAFETY: a valid place for the id.
            assert_eq!(unsafe { sys::ncclGetUniqueId(&raw mut id) }, ncclResult_t::ncclSuccess);
            ranks::publish(&id.internal.map(|byte| byte as u8));
        }
    }
    let stream = CudaContext::new(0).expect("the software device").new_stream().expect("a stream");
    let mut communicator = std::ptr::null_mut();
    let mut config = config();
    // SAFETY: valid places, and a configuration as NCCL's header would set it up.
    let begun =
        unsafe { sys::ncclCommInitRankConfig(&raw mut communicator, ranks as i32, id, rank as i32, &raw mut config) };
    assert_eq!(begun, ncclResult_t::ncclInProgress);
    let rank = Rank { rank, ranks, communicator, stream };
    assert_eq!(rank.wait_while(ncclResult_t::ncclInProgress), ncclResult_t::ncclSuccess);
    rank
}

fn config() -> ncclConfig_t {
    // SAFETY: a struct of numbers and pointers.
    let mut config: ncclConfig_t = unsafe { std::mem::zeroed() };
    let undefined = i32::MIN;
    (config.size, config.magic, config.version) = (size_of::<ncclConfig_t>(), 0xcafe_beef, 22_807);
    config.blocking = 0;
    (config.cgaClusterSize, config.minCTAs, config.maxCTAs) = (undefined, undefined, undefined);
    config.splitShare = undefined;
    config
}

impl Rank {
    /// Polls the communicator until its state is another, and returns that.
    fn wait_while(&self, state: ncclResult_t) -> ncclResult_t {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut now = ncclResult_t::ncclSuccess;
            // SAFETY: the communicator lives, and `now` is a valid place.
            let asked = unsafe { sys::ncclCommGetAsyncError(self.communicator, &raw mut now) };
            assert_eq!(asked, ncclResult_t::ncclSuccess);
            if now != state {
                return now;
            }
            assert!(Instant::now() < end, "still {state:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a collective that was begun is on its stream.
    fn enqueue(&self, begun: ncclResult_t) {
        assert_eq!(begun, ncclResult_t::ncclInProgress);
        self.wait_while(ncclResult_t::ncclInProgress);
    }

    /// What this rank brings to a sum.
    fn operand(&self) -> Vec<i64> {
        (0..N as i64).map(|i| (i - 500) * (self.rank as i64 + 1) * 0x1_0000_0001).collect()
    }

    /// Queues a sum of `count` integers and returns what the buffer holds afterwards.
    fn sum(&self, count: usize) -> Vec<i64> {
        let mut data = self.stream.clone_htod(&self.operand()).expect("a copy");
        {
            let (address, _keep) = data.device_ptr_mut(&self.stream);
            self.all_reduce(address, count, ncclDataType_t::ncclInt64, ncclRedOp_t::ncclSum);
        }
        self.stream.clone_dtoh(&data).expect("a copy")
    }

    fn all_reduce(&self, address: u64, count: usize, data: ncclDataType_t, reduction: ncclRedOp_t) {
        let buffer = address as *mut std::ffi::c_void;
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the library checks the buffer when the stream comes to it.
        let begun = unsafe { sys::ncclAllReduce(buffer, buffer, count, data, reduction, self.communicator, stream) };
        self.enqueue(begun);
    }

    fn expected_sum(&self) -> Vec<i64> {
        let weight: i64 = (1..=self.ranks as i64).sum();
        (0..N as i64).map(|i| (i - 500) * weight * 0x1_0000_0001).collect()
    }

    fn destroy(self) {
        // SAFETY: the communicator lives, and nothing uses it afterwards.
        assert_eq!(unsafe { sys::ncclCommDestroy(self.communicator) }, ncclResult_t::ncclSuccess);
    }
}

/// The body of a rank, or the start of all of them, who must all pass.
fn on_ranks(test: &str, count: usize, variables: &[(&str, &str)], body: impl FnOnce(Rank)) {
    ranks::on_ranks(test, count, variables, |_| body(join()));
}

#[test]
fn sums_are_exact_and_the_same_for_all() {
    for schedule in ["lazy", "eager"] {
        on_ranks("sums_are_exact_and_the_same_for_all", 3, &[("SOFTGPU_SCHED", schedule)], |rank| {
            for _ in 0..3 {
                assert!(rank.sum(N) == rank.expected_sum());
            }
            let mut floats = rank.stream.clone_htod(&[rank.rank as f32, -1.5]).expect("a copy");
            {
                let (address, _keep) = floats.device_ptr_mut(&rank.stream);
                rank.all_reduce(address, 2, ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclMax);
            }
            assert_eq!(rank.stream.clone_dtoh(&floats).expect("a copy"), [2.0, -1.5]);
            rank.destroy();
        });
    }
}

#[test]
fn broadcast_and_gather() {
    on_ranks("broadcast_and_gather", 2, &[], |rank| {
        let stream = &rank.stream;
        let mine = stream.clone_htod(&[rank.rank as u64 + 10, 7]).expect("a copy");
        let mut all = stream.alloc_zeros::<u64>(4).expect("memory");
        let (send, _keep) = mine.device_ptr(stream);
        {
            let (receive, _keep) = all.device_ptr_mut(stream);
            let (queue, data) = (stream.cu_stream().cast(), ncclDataType_t::ncclUint64);
            let (send, receive) = (send as *const std::ffi::c_void, receive as *mut std::ffi::c_void);
            // SAFETY: the library checks the buffers when the stream comes to them.
            unsafe {
                rank.enqueue(sys::ncclAllGather(send, receive, 2, data, rank.communicator, queue));
                rank.enqueue(sys::ncclBroadcast(send, receive, 1, data, 1, rank.communicator, queue));
            }
        }
        assert_eq!(stream.clone_dtoh(&all).expect("a copy"), [11, 7, 11, 7]);
    });
}

/// As with NCCL: a collective is on its stream once the communicator says so, and until then takes no other call.
#[test]
fn a_collective_is_enqueued_when_the_communicator_says_so() {
    on_ranks("a_collective_is_enqueued_when_the_communicator_says_so", 1, &[], |rank| {
        let data = rank.stream.clone_htod(&[1_i64]).expect("a copy");
        let (address, _keep) = data.device_ptr(&rank.stream);
        let (buffer, stream) = (address as *mut std::ffi::c_void, rank.stream.cu_stream().cast());
        let (integers, sum) = (ncclDataType_t::ncclInt64, ncclRedOp_t::ncclSum);
        // SAFETY: the library checks the buffer when the stream comes to it.
        let begin = || unsafe { sys::ncclAllReduce(buffer, buffer, 1, integers, sum, rank.communicator, stream) };
        assert_eq!([begin(), begin()], [ncclResult_t::ncclInProgress, ncclResult_t::ncclInvalidArgument]);
        // SAFETY: the communicator lives.
        assert_eq!(unsafe { sys::ncclCommFinalize(rank.communicator) }, ncclResult_t::ncclInvalidArgument);
        assert_eq!(rank.wait_while(ncclResult_t::ncclInProgress), ncclResult_t::ncclSuccess);
        rank.enqueue(begin());
    });
}

/// Whether memory is neither what it was nor what it should have become.
fn is_garbage(rank: &Rank, data: &[i64]) -> bool {
    let (before, after) = (rank.operand(), rank.expected_sum());
    data.iter().enumerate().all(|(i, &x)| x != before[i] && x != after[i])
}

#[test]
fn a_mismatch_is_seen_by_all() {
    on_ranks("a_mismatch_is_seen_by_all", 2, &[], |rank| {
        let data = rank.sum(N - rank.rank);
        assert_eq!(rank.wait_while(ncclResult_t::ncclSuccess), ncclResult_t::ncclInvalidUsage);
        assert!(is_garbage(&rank, &data[..N - 1]));
    });
}

#[test]
fn a_mismatch_can_be_ordered() {
    on_ranks("a_mismatch_can_be_ordered", 2, &[("SOFTGPU_NCCL_FAULT", "mismatch:2@1")], |rank| {
        assert!(rank.sum(N) == rank.expected_sum());
        assert!(is_garbage(&rank, &rank.sum(N)));
        assert_eq!(rank.wait_while(ncclResult_t::ncclSuccess), ncclResult_t::ncclInvalidUsage);
    });
}

/// The rank whose turn it is to die does so in the second sum, when the other has the result of the first.
#[test]
fn the_death_of_a_rank_is_seen() {
    let test = "the_death_of_a_rank_is_seen";
    if common::role().is_some() {
        let rank = join();
        assert!(rank.sum(N) == rank.expected_sum());
        if std::env::var("SOFTGPU_NCCL_FAULT") == Ok(format!("die:2@{}", rank.rank)) {
            ranks::hear("the other rank has the first sum");
        } else {
            ranks::say("the other rank has the first sum", &[]);
        }
        let data = rank.sum(N);
        assert_eq!(rank.wait_while(ncclResult_t::ncclSuccess), ncclResult_t::ncclRemoteError);
        assert!(is_garbage(&rank, &data));
        std::process::exit(0);
    }
    // Rank 1 dies; then rank 0, and the hub with it.
    for dead in [1, 0] {
        let outputs = ranks::run(test, 2, &[("SOFTGPU_NCCL_FAULT", &format!("die:2@{dead}"))]);
        common::passed(test, &outputs[1 - dead]);
        assert!(!outputs[dead].status.success(), "rank {dead} was to die");
    }
}

/// Rank 1 hangs; rank 0, which waits for it, aborts; then rank 1 aborts its own.
#[test]
fn an_abort_ends_a_hanging_collective() {
    let test = "an_abort_ends_a_hanging_collective";
    on_ranks(test, 2, &[("SOFTGPU_NCCL_FAULT", "hang:1@1")], |rank| {
        let mut data = rank.stream.clone_htod(&rank.operand()).expect("a copy");
        {
            let (address, _keep) = data.device_ptr_mut(&rank.stream);
            rank.all_reduce(address, N, ncclDataType_t::ncclInt64, ncclRedOp_t::ncclSum);
        }
        let event = rank.stream.record_event(None).expect("an event");
        let start = Instant::now();
        let over = || ranks::heard("rank 0 has aborted").is_some();
        while if rank.rank == 0 { start.elapsed() < Duration::from_millis(300) } else { !over() } {
            assert!(!event.try_is_complete().expect("no fault"), "rank 1 hangs");
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        // SAFETY: the communicator lives, and nothing uses it afterwards.
        assert_eq!(unsafe { sys::ncclCommAbort(rank.communicator) }, ncclResult_t::ncclSuccess);
        let data = rank.stream.clone_dtoh(&data).expect("a copy");
        assert!(start.elapsed() < Duration::from_secs(5), "the stream goes on at once");
        assert!(is_garbage(&rank, &data));
        ranks::say("rank 0 has aborted", &[]);
    });
}

#[test]
fn a_slow_rank_is_waited_for() {
    on_ranks("a_slow_rank_is_waited_for", 2, &[("SOFTGPU_NCCL_FAULT", "delay:200@0")], |rank| {
        let start = Instant::now();
        assert!(rank.sum(N) == rank.expected_sum());
        assert!(rank.rank > 0 || start.elapsed() >= Duration::from_millis(200));
        rank.destroy();
    });
}

#[test]
fn a_configuration_must_be_set_up() {
    let test = "a_configuration_must_be_set_up";
    common::on_device(test, &[], || {
        let _context = CudaContext::new(0).expect("the software device");
        let mut id = ncclUniqueId { internal: [0; 128] };
        let (mut communicator, mut good) = (std::ptr::null_mut(), config());
        // SAFETY: valid places; the configuration is wrong on purpose, which the library sees.
        let answers = unsafe {
            let unknown = sys::ncclCommInitRankConfig(&raw mut communicator, 1, id, 0, &raw mut good);
            sys::ncclGetUniqueId(&raw mut id);
            let mut zeroed: ncclConfig_t = std::mem::zeroed();
            [unknown, sys::ncclCommInitRankConfig(&raw mut communicator, 1, id, 0, &raw mut zeroed)]
        };
        assert_eq!(answers, [ncclResult_t::ncclInvalidArgument; 2]);
    });
}
