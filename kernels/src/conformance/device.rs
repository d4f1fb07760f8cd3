//! Which device the tests of the CUDA backend run on.

use std::io::Write;

/// Names the device: `ours`, this repository's software device, or `foreign`. Set by `make test-cuda` and `make
/// test-gpu`.
const DEVICE: &str = "BALLAST_TEST_DEVICE";

/// Whether a test that needs this repository's software device (its faults, counters, schedules) must be skipped
/// because another is there (`make test-cuda SOFTGPU_LIB=DIR`); says so. Where nothing is known the test runs.
#[must_use]
pub fn skip_without_our_device() -> bool {
    let skip = foreign();
    if skip {
        say_skipped("needs our device");
    }
    skip
}

/// Whether what needs `ranks` ranks that meet over NCCL must be skipped on a machine with so many `devices`; says so.
/// NCCL wants a device a rank. Our software device is shared by any number of them.
#[must_use]
pub fn skip_without_devices(ranks: usize, devices: usize) -> bool {
    let skip = foreign() && devices < ranks;
    if skip {
        say_skipped(&format!("{ranks} ranks over NCCL need {ranks} devices, and there are {devices}"));
    }
    skip
}

fn foreign() -> bool {
    std::env::var(DEVICE).is_ok_and(|device| device == "foreign")
}

fn say_skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness, which would keep it to itself. Who has closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
}
