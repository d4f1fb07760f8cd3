//! What we rely on in the CUDA driver, asked through an unchanged cudarc.

mod common;

use std::sync::Arc;

use common::on_device;
use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
        result::memcpy_dtod_async, sys::CUresult,
    },
    nvrtc::Ptx,
};

/// `add_one(data, n)`: adds 1 to each of n integers.
const ADD_ONE: &str = r"
.version 9.0
.target sm_80
.address_size 64

.visible .entry add_one(
    .param .u64 data,
    .param .u32 n
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;

    ld.param.u64 %rd1, [data];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $L_end;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r6, [%rd4];
    add.s32 %r7, %r6, 1;
    st.global.u32 [%rd4], %r7;
$L_end:
    ret;
}
";

const N: usize = 1000;

fn device() -> Arc<CudaContext> {
    let context = CudaContext::new(0).expect("the software device");
    // Waits between streams are ours to make, as in the product.
    // SAFETY: nothing is allocated yet.
    unsafe { context.disable_event_tracking() };
    context
}

fn add_one(context: &Arc<CudaContext>) -> CudaFunction {
    context.load_module(Ptx::from_src(ADD_ONE)).expect("a module").load_function("add_one").expect("a kernel")
}

fn launch(stream: &CudaStream, kernel: &CudaFunction, data: &mut CudaSlice<i32>, n: u32) -> Result<(), DriverError> {
    let mut call = stream.launch_builder(kernel);
    call.arg(data).arg(&n);
    // SAFETY: arguments are of the kernel's types; whether n is right is what some tests are about.
    unsafe { call.launch(LaunchConfig::for_num_elems(n)) }.map(|_| ())
}

fn code<T>(result: Result<T, DriverError>) -> Option<CUresult> {
    result.err().map(|DriverError(code)| code)
}

#[test]
fn says_what_it_is() {
    on_device("says_what_it_is", &[("SOFTGPU_MEMORY", "1000000"), ("SOFTGPU_DEVICES", "2")], || {
        assert_eq!(CudaContext::device_count().expect("a count"), 2);
        let context = CudaContext::new(1).expect("the second device");
        assert!(context.name().expect("a name").contains("emulated"));
        assert_eq!(context.compute_capability().expect("a capability"), (8, 0));
        assert_eq!(context.total_mem().expect("a size"), 1_000_000);
        assert_ne!(context.uuid().expect("an id"), CudaContext::new(0).expect("the first").uuid().expect("an id"));
        assert_eq!(code(CudaContext::new(2)), Some(CUresult::CUDA_ERROR_INVALID_DEVICE));
        let stream = context.default_stream();
        assert_eq!(code(stream.alloc_zeros::<u8>(1_000_001)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        // Memory that queued work frees can be had again without a wait of ours.
        drop(stream.alloc_zeros::<u8>(600_000).expect("room"));
        drop(stream.alloc_zeros::<u8>(600_000).expect("room"));
    });
}

#[test]
fn copies_launches_and_counts() {
    let file = std::env::temp_dir().join(format!("softgpu-counters-{}", std::process::id()));
    let path = file.to_str().expect("UTF-8");
    for schedule in ["lazy", "eager"] {
        let variables = [("SOFTGPU_SCHED", schedule), ("SOFTGPU_COUNTERS", path)];
        on_device("copies_launches_and_counts", &variables, || {
            let context = device();
            let (stream, kernel) = (context.new_stream().expect("a stream"), add_one(&context));
            let host: Vec<i32> = (0..N as i32).collect();
            let mut data = stream.clone_htod(&host).expect("a copy");
            for _ in 0..3 {
                launch(&stream, &kernel, &mut data, N as u32).expect("a launch");
            }
            let copy = stream.clone_dtod(&data).expect("a copy");
            stream.memset_zeros(&mut data).expect("a fill");
            let expected: Vec<i32> = host.iter().map(|x| x + 3).collect();
            assert_eq!(stream.clone_dtoh(&copy).expect("a copy"), expected);
            assert_eq!(stream.clone_dtoh(&data).expect("a copy"), [0; N]);
        });
        let counters = std::fs::read_to_string(&file).expect("counters");
        assert_eq!(counters.lines().count(), 1, "one line a kernel and shape: {counters}");
        assert!(counters.starts_with("{\"launches\":3,\"kernel\":\"add_one\",\"grid\":[1, 1, 1],"), "{counters}");
        std::fs::remove_file(&file).expect("a file");
    }
}

/// Two streams: one makes data, the other copies them. Only the lazy schedule shows for certain that a wait is missing.
#[test]
fn a_missing_wait_is_seen() {
    on_device("a_missing_wait_is_seen", &[("SOFTGPU_SCHED", "lazy")], || {
        let (context, old) = (device(), vec![-1; N]);
        let (maker, reader) = (context.new_stream().expect("a stream"), context.new_stream().expect("a stream"));
        let kernel = add_one(&context);
        for (with_wait, expected) in [(true, vec![1; N]), (false, old.clone())] {
            let mut data = maker.clone_htod(&old).expect("a copy");
            maker.synchronize().expect("a wait");
            let copy = reader.clone_htod(&vec![7; N]).expect("a copy");
            maker.memset_zeros(&mut data).expect("a fill");
            launch(&maker, &kernel, &mut data, N as u32).expect("a launch");
            if with_wait {
                reader.wait(&maker.record_event(None).expect("an event")).expect("a wait");
            }
            // SAFETY: both have N integers.
            let copied = unsafe {
                let (to, from) = (address(&copy, &reader), address(&data, &maker));
                memcpy_dtod_async(to, from, 4 * N, reader.cu_stream())
            };
            copied.expect("a copy");
            assert_eq!(reader.clone_dtoh(&copy).expect("a copy"), expected, "with a wait: {with_wait}");
        }
    });
}

fn address(data: &CudaSlice<i32>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr;
    data.device_ptr(stream).0
}

#[test]
fn a_program_that_polls_gets_there() {
    on_device("a_program_that_polls_gets_there", &[], || {
        let context = device();
        let stream = context.new_stream().expect("a stream");
        let mut data = stream.alloc_zeros::<i32>(N).expect("memory");
        launch(&stream, &add_one(&context), &mut data, N as u32).expect("a launch");
        let event = stream.record_event(None).expect("an event");
        assert!(!event.is_complete(), "nothing asked for the work yet");
        while !event.try_is_complete().expect("an answer") {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_fault_is_sticky_and_explained() {
    let errors = on_device("a_fault_is_sticky_and_explained", &[], || {
        let context = device();
        let stream = context.new_stream().expect("a stream");
        let mut data = stream.alloc_zeros::<i32>(N).expect("memory");
        stream.synchronize().expect("no fault yet");
        launch(&stream, &add_one(&context), &mut data, N as u32 + 1).expect("a launch queues");
        let illegal = Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.synchronize()), illegal);
        assert_eq!(code(stream.alloc_zeros::<i32>(1)), illegal, "every later call answers it");
        assert_eq!(code(context.new_stream()), illegal);
        let name = DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS).error_name().expect("a name").to_owned();
        assert_eq!(name.as_c_str(), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    });
    assert!(errors.contains("add_one") && errors.contains("PTX line"), "{errors}");
}

#[test]
fn a_launch_can_be_ordered_to_fail() {
    let errors = on_device("a_launch_can_be_ordered_to_fail", &[("SOFTGPU_FAULT", "launch:2")], || {
        let context = device();
        let stream = context.new_stream().expect("a stream");
        let mut data = stream.alloc_zeros::<i32>(N).expect("memory");
        let kernel = add_one(&context);
        launch(&stream, &kernel, &mut data, N as u32).expect("a launch queues");
        stream.synchronize().expect("the first is sound");
        launch(&stream, &kernel, &mut data, N as u32).expect("a launch queues");
        assert_eq!(code(stream.synchronize()), Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    });
    assert!(errors.contains("as ordered"), "{errors}");
}

#[test]
fn copies_are_checked() {
    on_device("copies_are_checked", &[], || {
        let context = device();
        let stream = context.new_stream().expect("a stream");
        let data = stream.alloc_zeros::<i32>(N).expect("memory");
        let start = address(&data, &stream);
        // SAFETY: the device checks both ranges.
        let beyond = unsafe { memcpy_dtod_async(start, start + 8, 4 * N, stream.cu_stream()) };
        assert_eq!(code(beyond), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        // What was freed in the order of the stream is gone when the copy comes to it.
        let other = stream.alloc_zeros::<i32>(N).expect("memory");
        let freed = address(&other, &stream);
        drop(other);
        // SAFETY: as above.
        unsafe { memcpy_dtod_async(start, freed, 4 * N, stream.cu_stream()) }.expect("still there when queued");
        assert_eq!(code(stream.synchronize()), Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    });
}

#[test]
fn launches_are_checked_at_the_call() {
    on_device("launches_are_checked_at_the_call", &[], || {
        let context = device();
        let (stream, kernel) = (context.new_stream().expect("a stream"), add_one(&context));
        let mut data = stream.alloc_zeros::<i32>(N).expect("memory");
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        let mut attempt = |shape: LaunchConfig| {
            let mut call = stream.launch_builder(&kernel);
            call.arg(&mut data).arg(&32_u32);
            // SAFETY: arguments are of the kernel's types and sizes.
            code(unsafe { call.launch(shape) }.map(|_| ()))
        };
        let invalid = Some(CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(attempt(shape), None);
        assert_eq!(attempt(LaunchConfig { grid_dim: (0, 1, 1), ..shape }), invalid);
        assert_eq!(attempt(LaunchConfig { block_dim: (2048, 1, 1), ..shape }), invalid);
        assert_eq!(attempt(LaunchConfig { shared_mem_bytes: 50 << 10, ..shape }), invalid, "not opted in");
        let most = cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.set_attribute(most, 100 << 10).expect("an attribute");
        assert_eq!(attempt(LaunchConfig { shared_mem_bytes: 50 << 10, ..shape }), None);
        assert_eq!(code(kernel.set_attribute(most, 200 << 10)), invalid, "more than the device has");
    });
}

#[test]
fn machine_code_is_for_another_device() {
    on_device("machine_code_is_for_another_device", &[], || {
        let context = device();
        let cubin = Ptx::from_binary(b"\x7fELF\x02\x01\x01\x33 and so on".to_vec());
        assert_eq!(code(context.load_module(cubin)), Some(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        let nonsense = ADD_ONE.replace("add.s32", "frobnicate.s32");
        assert_eq!(code(context.load_module(Ptx::from_src(nonsense))), Some(CUresult::CUDA_ERROR_INVALID_PTX));
        let module = context.load_module(Ptx::from_src(ADD_ONE)).expect("a module");
        assert_eq!(code(module.load_function("add_two")), Some(CUresult::CUDA_ERROR_NOT_FOUND));
    });
}

#[test]
fn a_misspelt_variable_is_refused() {
    let errors = on_device("a_misspelt_variable_is_refused", &[("SOFTGPU_SCHED", "lasy")], || {
        assert_eq!(code(CudaContext::new(0)), Some(CUresult::CUDA_ERROR_UNKNOWN));
    });
    assert!(errors.contains("SOFTGPU_SCHED"), "{errors}");
}
