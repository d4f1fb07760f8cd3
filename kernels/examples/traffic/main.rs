//! Global memory that each kernel moves on the software device, beside the least it could (`make traffic`): emulated,
//! and exact. One JSON object a line; fails, after all of them, when a kernel moves more than [`LIMIT`] times what it
//! must or meets bank conflicts, and when a kernel of `kernels/cuda` is in no case.
//!
//! Every case runs in a process of its own, whose counters the device writes at its end (`SOFTGPU_COUNTERS`); nothing
//! but the operation launches kernels there. `bytes` counts 32 for each sector of each request, as if there were no
//! cache; `floor` counts inputs once and outputs once, `tiled` what tiles must read again besides (only where a kernel
//! cannot do without: then it is what the limit is held to); `conflicts` are passes over the banks of shared memory
//! beyond the fewest. `--small` takes shapes for a check in seconds.
//!
//! `--llmc FILE` sets operations beside those of llm.c, whose kernels are in a PTX file that `llmc/compile.py` made.

mod attention;
mod case;
mod llmc;
mod memory;
mod products;

use ballast_kernels::Backend;
use ballast_kernels::cuda::{CudaBackend, Storage};
use case::{Case, Kernel, Size};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

/// Most that a kernel may move over its floor, or over what its tiles need.
const LIMIT: f64 = 1.15;
/// The kernels that ship, one a line and architecture, after a heading.
const RESOURCES: &str = include_str!("../../cuda/resources.tsv");

/// What is common to both storage types comes with the first.
fn cases(size: Size, storage: Storage) -> Vec<Case> {
    let mut all = memory::row_cases(size, storage);
    all.extend(memory::norm_cases(size, storage));
    all.extend(memory::gated_cases(size, storage));
    all.extend(products::lora_cases(size, storage));
    all.extend(products::head_cases(size, storage));
    all.extend(attention::cases(size, storage));
    if storage == Storage::Bf16 {
        all.extend(memory::flat_cases(size));
    }
    all
}

/// Names of all kernels that ship.
fn shipped() -> BTreeSet<&'static str> {
    let rows = RESOURCES.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.filter_map(|line| line.split('\t').next()).collect()
}

/// What the launches of one kernel did.
#[derive(Clone, Copy, Default)]
struct Moved {
    /// Instructions, each counted for every thread that took part.
    instructions: u64,
    bytes: u64,
    conflicts: u64,
}

/// A number of a JSON object that the device wrote.
fn field(line: &str, name: &str) -> Result<u64, String> {
    let missing = || format!("the device's counters lack {name}: {line}");
    let (_, rest) = line.split_once(&format!("\"{name}\":")).ok_or_else(missing)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| missing())
}

/// The kernel of such an object.
fn kernel(line: &str) -> Result<&str, String> {
    let name = line.split_once("\"kernel\":\"").and_then(|(_, rest)| rest.split_once('"'));
    name.map(|(name, _)| name).ok_or_else(|| format!("the device's counters name no kernel: {line}"))
}

/// Runs this program with these arguments, and with these checks of shared memory by the device; what each kernel did that
/// it launched.
fn measure(arguments: &[&str], checks: &str) -> Result<BTreeMap<String, Moved>, String> {
    let counters = env::temp_dir().join(format!("ballast-traffic-{}.jsonl", std::process::id()));
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(arguments).env("SOFTGPU_COUNTERS", &counters).env("SOFTGPU_CHECKS", checks);
    let status = command.status();
    let status = status.map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("traffic {}: {status}", arguments.join(" ")));
    }
    let lines = fs::read_to_string(&counters)
        .map_err(|_| "no counters were written: this needs the software device on LD_LIBRARY_PATH (make traffic)")?;
    fs::remove_file(&counters).map_err(|error| error.to_string())?;
    let mut kernels = BTreeMap::<String, Moved>::new();
    for line in lines.lines() {
        let moved = kernels.entry(kernel(line)?.to_owned()).or_default();
        moved.instructions += field(line, "thread_instructions")?;
        moved.bytes += field(line, "global_bytes")?;
        moved.conflicts += field(line, "shared_conflicts")?;
    }
    Ok(kernels)
}

/// Prints the line of one kernel; whether it is within its bounds.
fn report(case: &Case, kernel: &Kernel, moved: Moved) -> bool {
    let ratio = |bytes: usize| moved.bytes as f64 / bytes as f64;
    let tiled =
        kernel.tiled.map_or(String::new(), |bytes| format!("\"tiled\":{bytes},\"tiled_ratio\":{:.3},", ratio(bytes)));
    println!(
        "{{\"kernel\":\"{}\",\"operation\":\"{}\",\"shape\":{:?},\"bytes\":{},\"floor\":{},\"ratio\":{:.3},{tiled}\
         \"conflicts\":{},\"result\":\"emulated\"}}",
        kernel.name,
        case.operation,
        case.shape,
        moved.bytes,
        kernel.floor,
        ratio(kernel.floor),
        moved.conflicts
    );
    let needed = ratio(kernel.tiled.unwrap_or(kernel.floor));
    // Written so that a NaN fails; a kernel that moves less than its inputs did not do its work.
    let within = (0.99..=LIMIT).contains(&needed) && moved.conflicts == 0;
    if !within {
        eprintln!("traffic: {} is not within {LIMIT} of what it must move, without bank conflicts", kernel.name);
    }
    within
}

/// All cases at this size; whether everything is as it should be.
fn run_all(size: Size, name: &str) -> Result<bool, String> {
    let (mut fine, mut unmet) = (true, shipped());
    for storage in [Storage::Bf16, Storage::F32] {
        for (number, case) in cases(size, storage).iter().enumerate() {
            let mut moved = measure(&[name, "--case", storage.suffix(), &number.to_string()], "all")?;
            for kernel in &case.kernels {
                unmet.remove(kernel.name.as_str());
                fine &= report(case, kernel, moved.remove(&kernel.name).unwrap_or_default());
            }
            if let Some(stranger) = moved.keys().next() {
                eprintln!("traffic: {} launches {stranger}, whose floor it does not state", case.operation);
                fine = false;
            }
        }
    }
    if !unmet.is_empty() {
        eprintln!("traffic: no case has {unmet:?}");
    }
    Ok(fine && unmet.is_empty())
}

/// Operations of both, a line each, in counts an element of the result.
fn compare_all(ptx: &str) -> Result<(), String> {
    for (number, comparison) in llmc::comparisons().iter().enumerate() {
        // llm.c's backward softmax uses the shared memory of a reduction again without a barrier.
        for (by, checks) in [("ballast", "all"), ("llm.c", "none")] {
            let mut total = Moved::default();
            for moved in measure(&["--llmc", ptx, by, &number.to_string()], checks)?.values() {
                total.instructions += moved.instructions;
                total.bytes += moved.bytes;
                total.conflicts += moved.conflicts;
            }
            let an_element = |count: u64| count as f64 / comparison.elements as f64;
            println!(
                "{{\"operation\":\"{}\",\"shape\":{:?},\"by\":\"{by}\",\"instructions\":{:.2},\"bytes\":{:.3},\
                 \"conflicts\":{:.4},\"result\":\"emulated\"}}",
                comparison.ours.operation,
                comparison.ours.shape,
                an_element(total.instructions),
                an_element(total.bytes),
                an_element(total.conflicts)
            );
        }
    }
    Ok(())
}

/// The number of a list on the command line.
fn pick<T>(mut all: Vec<T>, number: &str) -> Result<T, Box<dyn Error>> {
    let number: usize = number.parse()?;
    if number < all.len() { Ok(all.swap_remove(number)) } else { Err("there is no such case".into()) }
}

fn run_case(case: &Case, storage: Storage) -> Result<(), Box<dyn Error>> {
    let backend = CudaBackend::new(0, storage)?;
    (case.run)(&backend)?;
    Ok(backend.synchronize()?)
}

/// Whether all is within its bounds. What comes after a size or a file is how the program calls itself.
fn run(arguments: &[&str]) -> Result<bool, Box<dyn Error>> {
    let size = |name: &str| if name == "--small" { Size::SMALL } else { Size::FULL };
    match *arguments {
        [] => Ok(run_all(Size::FULL, "--full")?),
        [name @ ("--full" | "--small")] => Ok(run_all(size(name), name)?),
        [name @ ("--full" | "--small"), "--case", storage, number] => {
            let storage = if storage == Storage::F32.suffix() { Storage::F32 } else { Storage::Bf16 };
            run_case(&pick(cases(size(name), storage), number)?, storage).map(|()| true)
        }
        ["--llmc", ptx] => Ok(compare_all(ptx).map(|()| true)?),
        ["--llmc", _, "ballast", number] => {
            run_case(&pick(llmc::comparisons(), number)?.ours, Storage::Bf16).map(|()| true)
        }
        ["--llmc", ptx, "llm.c", number] => {
            llmc::run(Path::new(ptx), &pick(llmc::comparisons(), number)?.theirs).map(|()| true)
        }
        _ => Err("usage: traffic [--full | --small | --llmc FILE]".into()),
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(if run(&arguments)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
