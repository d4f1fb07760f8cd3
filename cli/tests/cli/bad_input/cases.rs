//! The shape of a case.

use crate::scene::Scene;

/// One bad input.
pub(crate) struct Case {
    /// What is wrong, as the documentation says it.
    pub(crate) what: &'static str,
    /// The error code that must come.
    pub(crate) code: &'static str,
    /// Command line; `{port}` stands for the scene's port.
    pub(crate) args: &'static [&'static str],
    /// Environment variables.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// Makes the sound scene a bad one.
    pub(crate) break_it: fn(&Scene),
}

/// Reads and checks the run file only.
pub(crate) const SHOW: &[&str] = &["config", "show", "run.toml"];
/// Opens the base model and prepares the data.
pub(crate) const PREPARE: &[&str] = &["prepare", "run.toml"];
/// Trains.
pub(crate) const TRAIN: &[&str] = &["train", "run.toml"];

pub(crate) fn case(
    what: &'static str,
    code: &'static str,
    args: &'static [&'static str],
    break_it: fn(&Scene),
) -> Case {
    Case { what, code, args, env: &[], break_it }
}
