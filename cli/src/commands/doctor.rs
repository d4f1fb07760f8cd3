//! `ballast doctor`

use crate::args::DoctorArgs;
use crate::screen;
use anyhow::Context;
use ballast_proto::exit;
use ballast_worker::machine::{Cuda, Machine};
use std::fmt::Write;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let machine = Machine::look()?;
    let text = if args.json {
        serde_json::to_string_pretty(&machine).context("the machine as JSON")? + "\n"
    } else {
        describe(&machine)
    };
    screen::print(&text)?;
    if let Some(device) = args.device {
        machine.usable(device)?;
    }
    Ok(exit::DONE)
}

/// The machine, a line a thing.
fn describe(machine: &Machine) -> String {
    let mut lines = vec![
        ("ballast", format!("{} {}", env!("CARGO_PKG_VERSION"), built_with(machine))),
        ("--device cpu", format!("{} cores; {}", machine.cpu.cores, machine.cpu.arithmetic)),
    ];
    if let Some(cuda) = &machine.cuda {
        lines.extend(cuda_lines(cuda));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$}  {value}");
        text
    })
}

fn built_with(machine: &Machine) -> &'static str {
    if machine.cuda.is_some() { "with CUDA" } else { "without CUDA: build it with `--features cuda` after `make cuda`" }
}

fn cuda_lines(cuda: &Cuda) -> Vec<(&'static str, String)> {
    let absent = || "not found".to_owned();
    let missing = |file: &str| cuda.missing.iter().find(|missing| missing.library.starts_with(file));
    let library = |file: &str, version: Option<String>| match (missing(file), version) {
        (Some(missing), None) => format!("not found: {}", missing.remedy),
        (Some(missing), Some(version)) => format!("{version} is too old: {}", missing.remedy),
        (None, version) => version.unwrap_or_else(absent),
    };
    let driver = cuda.driver.as_ref().map(|version| format!("for CUDA {version}"));
    let mut lines = vec![
        ("driver", library("libcuda", driver)),
        ("cuBLASLt", library("libcublasLt", cuda.cublaslt.map(|version| version.to_string()))),
        ("NCCL", library("libnccl", cuda.nccl.map(|version| version.to_string()))),
    ];
    if let Some(failure) = &cuda.failure {
        lines.push(("devices", failure.clone()));
    }
    for (ordinal, device) in cuda.devices.iter().enumerate() {
        let kernels = device.kernels.as_deref().unwrap_or("no kernel fits it");
        let gib = device.memory as f64 / f64::from(1 << 30);
        let value = format!("cuda:{ordinal}: {}, sm {}, {gib:.1} GiB; {kernels}", device.name, device.capability);
        lines.push(("--device", value));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_worker::machine::{Cpu, Missing};

    #[test]
    fn a_library_that_is_too_old_is_not_told_as_missing() {
        let missing = |library, remedy| Missing { library, remedy, for_several_workers: true };
        let cuda = Cuda {
            driver: None,
            devices: Vec::new(),
            cublaslt: None,
            nccl: Some(21_304),
            missing: vec![missing("libcublasLt.so.13", "install it"), missing("libnccl.so", "install NCCL 2.14")],
            failure: None,
        };
        let machine = Machine { cpu: Cpu { cores: 2, arithmetic: "cpu f32".into() }, cuda: Some(cuda) };
        let text = describe(&machine);
        assert!(text.contains("NCCL          21304 is too old: install NCCL 2.14\n"), "{text}");
        assert!(text.contains("cuBLASLt      not found: install it\n"), "{text}");
    }
}
