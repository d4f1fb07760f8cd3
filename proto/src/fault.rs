//! Points at which a test has a process struck in the midst of its work. Without the feature `fault-points` they are nothing.
//!
//! `BALLAST_FAULT=KIND@POINT:NUMBER` (several with commas):
//!
//! - `kill`, `stop` or `term`: the process sends itself that signal the first time that it passes the point in the step of this number
//!   or a later one. It says so on standard error first.
//! - `slow`, at `compute`: every micro-batch takes this many milliseconds longer.
//! - `nan`, at `loss` or `gradient`: that of the micro-batch with the sample of this number is never finite.

/// Passes a point in the work on a step.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_point: &'static str, _step: u64) {}

/// Takes longer than it should.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn drag(_point: &'static str) {}

/// Whether what is computed at a point from a sample is to be no number.
#[cfg(not(feature = "fault-points"))]
#[inline]
#[must_use]
pub fn poisons(_point: &'static str, _sample: u64) -> bool {
    false
}

#[cfg(feature = "fault-points")]
pub use armed::{drag, point, poisons};

#[cfg(feature = "fault-points")]
mod armed {
    use nix::sys::signal::{Signal, raise};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
    use std::time::Duration;

    /// Read where the process finds its faults.
    const VARIABLE: &str = "BALLAST_FAULT";

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        /// Once, from a step on.
        Signal(Signal),
        /// Whenever it is about a sample.
        NotANumber,
        /// Every time, by so many milliseconds.
        Slow,
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Fault {
        kind: Kind,
        point: String,
        number: u64,
    }

    /// Passes a point in the work on a step.
    pub fn point(point: &'static str, step: u64) {
        let due = take(&mut faults(), point, step);
        if let Some(signal) = due {
            eprintln!("fault: {signal} at {point}, step {step}");
            // Nothing to be done about a signal that cannot be raised: the test will miss it.
            let _ = raise(signal);
        }
    }

    /// Whether what is computed at a point from a sample is to be no number.
    #[must_use]
    pub fn poisons(point: &'static str, sample: u64) -> bool {
        poisoned(&faults(), point, sample)
    }

    /// Takes longer than it should.
    pub fn drag(point: &'static str) {
        let pause = pause(&faults(), point);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    fn faults() -> MutexGuard<'static, Vec<Fault>> {
        static FAULTS: OnceLock<Mutex<Vec<Fault>>> = OnceLock::new();
        let faults = FAULTS.get_or_init(|| Mutex::new(parse(&std::env::var(VARIABLE).unwrap_or_default())));
        faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(faults: &mut Vec<Fault>, point: &str, step: u64) -> Option<Signal> {
        let due = |fault: &Fault| match fault.kind {
            Kind::Signal(signal) if fault.point == point && fault.number <= step => Some(signal),
            _ => None,
        };
        let (at, signal) = faults.iter().enumerate().find_map(|(at, fault)| Some((at, due(fault)?)))?;
        faults.swap_remove(at);
        Some(signal)
    }

    fn poisoned(faults: &[Fault], point: &str, sample: u64) -> bool {
        let of_it = |fault: &Fault| fault.kind == Kind::NotANumber && fault.point == point && fault.number == sample;
        faults.iter().any(of_it)
    }

    fn pause(faults: &[Fault], point: &str) -> Duration {
        let slow = faults.iter().filter(|fault| fault.kind == Kind::Slow && fault.point == point);
        Duration::from_millis(slow.map(|fault| fault.number).sum())
    }

    /// What is not understood is left out, and said.
    fn parse(text: &str) -> Vec<Fault> {
        let fault = |word: &str| {
            let (kind, place) = word.split_once('@')?;
            let (point, number) = place.split_once(':')?;
            let kind = match kind {
                "kill" => Kind::Signal(Signal::SIGKILL),
                "stop" => Kind::Signal(Signal::SIGSTOP),
                "term" => Kind::Signal(Signal::SIGTERM),
                "nan" => Kind::NotANumber,
                "slow" => Kind::Slow,
                _ => return None,
            };
            Some(Fault { kind, point: point.to_owned(), number: number.parse().ok()? })
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
            assert_eq!(take(&mut faults, "apply", 5), Some(Signal::SIGKILL));
            assert_eq!(take(&mut faults, "apply", 6), None);
            assert_eq!(take(&mut faults, "commit", 1), Some(Signal::SIGSTOP));
        }

        #[test]
        fn a_poisoned_sample_stays_so() {
            let mut faults = parse("nan@loss:3,kill@loss:9");
            for _ in 0..2 {
                let samples = [2, 3, 9].map(|sample| poisoned(&faults, "loss", sample));
                assert_eq!(samples, [false, true, false]);
                assert!(!poisoned(&faults, "gradient", 3));
            }
            assert_eq!(take(&mut faults, "loss", 3), None);
        }

        #[test]
        fn who_is_slow_is_slow_every_time() {
            let faults = parse("slow@compute:30,nan@compute:7");
            assert_eq!(
                [pause(&faults, "compute"), pause(&faults, "apply")],
                [Duration::from_millis(30), Duration::ZERO]
            );
        }
    }
}
