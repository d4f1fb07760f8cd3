//! How the device runs: seed, checks, perturbation. Read from the environment by [`Settings::from_env`].

use std::{env, num::NonZeroUsize, thread};

/// A variable whose value is not understood. It is refused: a check believed to be on must be on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?} is not understood: {expected}")]
pub struct SettingsError {
    variable: &'static str,
    value: String,
    expected: &'static str,
}

/// Which faults are looked for. Memory accesses are always checked against the allocation table: without that, a bad
/// kernel would damage the process that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of shared memory that nobody has written.
    pub uninitialized: bool,
    /// Two threads on one shared byte, one of them writing, with no barrier between.
    pub races: bool,
    /// Shared memory that a `cp.async` in flight will write: touching it before its wait.
    pub asynchronous: bool,
}

impl Checks {
    /// Everything is checked.
    pub const ALL: Self = Self { uninitialized: true, races: true, asynchronous: true };
    /// Only what keeps the host process safe is checked.
    pub const NONE: Self = Self { uninitialized: false, races: false, asynchronous: false };
}

/// How a launch runs. Results of a correct kernel depend on none of these, up to the perturbation asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Seed of the order in which warps run and of the perturbation (`SOFTGPU_SEED`, default 0).
    pub seed: u64,
    /// Checks that are on (`SOFTGPU_CHECKS`: `all`, `none`, or a list of `uninitialized`, `races`, `asynchronous`).
    pub checks: Checks,
    /// Moves approximate instructions within their documented error and reorders sums of tensor cores
    /// (`SOFTGPU_PERTURB`: `0` or `1`, default 0).
    pub perturb: bool,
    /// Host threads over which the blocks of a grid are spread. It changes no result.
    pub threads: NonZeroUsize,
}

impl Default for Settings {
    fn default() -> Self {
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { seed: 0, checks: Checks::ALL, perturb: false, threads }
    }
}

impl Settings {
    /// Reads the `SOFTGPU_*` variables.
    ///
    /// # Errors
    /// A variable holds a value that is not understood.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        if let Some(value) = variable("SOFTGPU_SEED") {
            let expected = "a number below 2^64";
            settings.seed = value.parse().map_err(|_| SettingsError { variable: "SOFTGPU_SEED", value, expected })?;
        }
        if let Some(value) = variable("SOFTGPU_CHECKS") {
            settings.checks = parse_checks(&value)?;
        }
        if let Some(value) = variable("SOFTGPU_PERTURB") {
            settings.perturb = match value.as_str() {
                "0" => false,
                "1" => true,
                _ => return Err(SettingsError { variable: "SOFTGPU_PERTURB", value, expected: "0 or 1" }),
            };
        }
        Ok(settings)
    }
}

fn parse_checks(value: &str) -> Result<Checks, SettingsError> {
    let mut checks = Checks::NONE;
    for word in value.split(',').map(str::trim) {
        match word {
            "all" | "1" => checks = Checks::ALL,
            "none" | "0" => {}
            "uninitialized" => checks.uninitialized = true,
            "races" => checks.races = true,
            "asynchronous" => checks.asynchronous = true,
            _ => {
                let expected = "all, none, or a list of uninitialized, races, asynchronous";
                return Err(SettingsError { variable: "SOFTGPU_CHECKS", value: value.to_owned(), expected });
            }
        }
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_variables(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn everything_is_checked_unless_said_otherwise() {
        assert_eq!(read(&[]), Ok(Settings::default()));
        assert_eq!(Settings::default().checks, Checks::ALL);
        let races = read(&[("SOFTGPU_CHECKS", "races"), ("SOFTGPU_SEED", "7"), ("SOFTGPU_PERTURB", "1")]);
        let expected =
            Settings { seed: 7, perturb: true, checks: Checks { races: true, ..Checks::NONE }, ..Settings::default() };
        assert_eq!(races, Ok(expected));
    }

    #[test]
    fn a_misspelt_value_is_refused() {
        assert!(read(&[("SOFTGPU_CHECKS", "race")]).is_err());
        assert!(read(&[("SOFTGPU_SEED", "-1")]).is_err());
        assert!(read(&[("SOFTGPU_PERTURB", "yes")]).is_err());
    }
}
