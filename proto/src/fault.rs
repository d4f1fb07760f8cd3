//! Points at which a test has a process struck in the midst of its work. Without the feature `fault-points` they are nothing.
//!
//! `BALLAST_FAULT=SIGNAL@POINT:STEP` (several with commas) makes the process send itself `kill`, `stop` or `term` the first time
//! that it passes the point in that step or a later one. It says so on standard error first.

/// Passes a point in the work on a step.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_point: &'static str, _step: u64) {}

#[cfg(feature = "fault-points")]
pub use armed::point;

#[cfg(feature = "fault-points")]
mod armed {
    use nix::sys::signal::{Signal, raise};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// Read where the process finds its faults.
    const VARIABLE: &str = "BALLAST_FAULT";

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Fault {
        signal: Signal,
        point: String,
        step: u64,
    }

    /// Passes a point in the work on a step.
    pub fn point(point: &'static str, step: u64) {
        static FAULTS: OnceLock<Mutex<Vec<Fault>>> = OnceLock::new();
        let faults = FAULTS.get_or_init(|| Mutex::new(parse(&std::env::var(VARIABLE).unwrap_or_default())));
        let due = take(&mut faults.lock().unwrap_or_else(PoisonError::into_inner), point, step);
        if let Some(fault) = due {
            eprintln!("fault: {} at {point}, step {step}", fault.signal);
            // Nothing to be done about a signal that cannot be raised: the test will miss it.
            let _ = raise(fault.signal);
        }
    }

    fn take(faults: &mut Vec<Fault>, point: &str, step: u64) -> Option<Fault> {
        let due = faults.iter().position(|fault| fault.point == point && fault.step <= step)?;
        Some(faults.swap_remove(due))
    }

    /// What is not understood is left out, and said.
    fn parse(text: &str) -> Vec<Fault> {
        let fault = |word: &str| {
            let (signal, place) = word.split_once('@')?;
            let (point, step) = place.split_once(':')?;
            let signal = match signal {
                "kill" => Signal::SIGKILL,
                "stop" => Signal::SIGSTOP,
                "term" => Signal::SIGTERM,
                _ => return None,
            };
            Some(Fault { signal, point: point.to_owned(), step: step.parse().ok()? })
        };
        let words = text.split(',').filter(|word| !word.is_empty());
        words
            .filter_map(|word| {
                fault(word).or_else(|| {
                    eprintln!("{VARIABLE}: {word:?} is no fault");
                    None
                })
            })
            .collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_strikes_once_at_its_point_from_its_step_on() {
            let mut faults = parse("kill@apply:3,stop@commit:1,nonsense");
            assert_eq!(faults.len(), 2);
            assert_eq!(take(&mut faults, "apply", 2), None);
            assert_eq!(take(&mut faults, "apply", 5).unwrap().signal, Signal::SIGKILL);
            assert_eq!(take(&mut faults, "apply", 6), None);
            assert_eq!(take(&mut faults, "commit", 1).unwrap().signal, Signal::SIGSTOP);
        }
    }
}
