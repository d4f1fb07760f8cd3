//! Runs small PTX kernels and hands back what they wrote.

#![allow(dead_code, reason = "each test file uses a part of it")]

use ballast_softgpu::{AllocationTable, Counters, Fault, LaunchConfig, Module, Settings, launch};

/// What precedes the kernels of a module.
pub(crate) const HEADER: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

/// A device with room for small tests.
pub(crate) fn device() -> AllocationTable {
    AllocationTable::new(1 << 28)
}

/// Copies `values` to the device.
pub(crate) fn upload<T: Copy>(table: &AllocationTable, values: &[T]) -> u64 {
    let address = table.allocate(size_of_val(values) as u64).expect("room");
    // SAFETY: the allocation is fresh and as long as `values`.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<T>(address as usize)
            .copy_from_nonoverlapping(values.as_ptr(), values.len());
    }
    address
}

/// Copies `count` values from the device.
pub(crate) fn download<T: Copy>(table: &AllocationTable, address: u64, count: usize) -> Vec<T> {
    table.check(address, (count * size_of::<T>()) as u64, 1).expect("inside");
    // SAFETY: the range has just been checked, and the tests use types for which all bits are valid.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address as usize), count).to_vec() }
}

/// The parameter buffer of a kernel whose arguments are all 64 bits long.
pub(crate) fn params(arguments: &[u64]) -> Vec<u8> {
    arguments.iter().flat_map(|argument| argument.to_le_bytes()).collect()
}

/// One block along x.
pub(crate) fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared_bytes: 0 }
}

/// Parses `ptx` and launches its kernel `k`.
pub(crate) fn run(
    ptx: &str,
    table: &AllocationTable,
    config: &LaunchConfig,
    arguments: &[u64],
    settings: &Settings,
) -> Result<Counters, Fault> {
    let mut module = Module::parse(ptx).unwrap_or_else(|error| panic!("{error}\n{ptx}"));
    module.place(table).expect("room");
    let result = launch(&module.kernels()[0], &module, table, config, &params(arguments), settings);
    module.unplace(table).expect("guard zones are whole");
    result
}

/// The text of a kernel of 32 threads with parameters `p0`, … that starts with thread index `%tx` and, per parameter,
/// a 64-bit register `%p0`, …
pub(crate) fn kernel(parameters: usize, declarations: &str, body: &str) -> String {
    let formals: Vec<String> = (0..parameters).map(|i| format!(".param .u64 k_{i}")).collect();
    let loads: Vec<String> =
        (0..parameters).map(|i| format!(".reg .b64 %p{i};\nld.param.u64 %p{i}, [k_{i}];")).collect();
    format!(
        "{HEADER}.visible .entry k({})\n{{\n.reg .b32 %tx;\nmov.u32 %tx, %tid.x;\n{}\n{declarations}\n{body}\nret;\n}}\n",
        formals.join(", "),
        loads.join("\n")
    )
}

/// Evaluates one instruction in thread 0: 64-bit words in, 64-bit words out.
///
/// Operands are written in the text: `%d` (32 bits), `%dd` (64), `%h` (16) and `%q` (predicate) take results;
/// `%a0..3`, `%b0..3` (64 bits), `%s0..3` (16 bits) hold the inputs.
pub(crate) fn evaluate(instruction: &str, inputs: &[u64]) -> u64 {
    let table = device();
    let mut words = inputs.to_vec();
    words.resize(4, 0);
    let (input, output) = (upload(&table, &words), upload(&table, &[0_u64]));
    let declarations = ".reg .b32 %a<4>, %d;\n.reg .b64 %b<4>, %dd;\n.reg .b16 %s<4>, %h;\n.reg .pred %q, %q2;\n";
    let mut body = String::from("mov.u32 %d, 0;\nmov.u64 %dd, 0;\nmov.u16 %h, 0;\nsetp.ne.s32 %q, 0, 0;\n");
    for at in 0..4 {
        body += &format!("ld.global.u64 %b{at}, [%p0+{}];\ncvt.u32.u64 %a{at}, %b{at};\n", 8 * at);
        body += &format!("cvt.u16.u64 %s{at}, %b{at};\n");
    }
    body += instruction;
    body += "\n.reg .b64 %r32, %r16, %rp;\ncvt.u64.u32 %r32, %d;\ncvt.u64.u16 %r16, %h;\nselp.u64 %rp, 1, 0, %q;\n";
    body += "or.b64 %dd, %dd, %r32;\nor.b64 %dd, %dd, %r16;\nor.b64 %dd, %dd, %rp;\nst.global.u64 [%p1], %dd;";
    let text = kernel(2, declarations, &body);
    run(&text, &table, &shape(1, 1), &[input, output], &Settings::default()).unwrap_or_else(|f| panic!("{f}\n{text}"));
    download::<u64>(&table, output, 1)[0]
}
