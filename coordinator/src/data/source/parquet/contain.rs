//! Panics of a library, as errors of the file that it was given.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

/// Longest reason: the library quotes what it cannot read.
const LONGEST: usize = 200;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught and told as an error: a panic hook has nothing to tell then.
#[must_use]
pub fn contains_panic() -> bool {
    CONTAINED.get()
}

/// Calls `decode`. What it leaves half done when it panics must not be used again.
pub(super) fn contain<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    CONTAINED.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(decode));
    CONTAINED.set(false);
    outcome
        .unwrap_or_else(|panic| Err(format!("it is damaged ({})", words(&*panic))))
        .map_err(|reason| shorten(&reason))
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(words), _) => words,
        (None, Some(words)) => words,
        (None, None) => "no reason given",
    }
}

fn shorten(reason: &str) -> String {
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_is_known_as_one_only_while_it_is_caught() {
        let outcome = contain::<()>(|| {
            assert!(contains_panic());
            panic!("index {} out of\nrange", 7)
        });
        assert_eq!(outcome.unwrap_err(), "it is damaged (index 7 out of range)");
        assert!(!contains_panic());
        assert_eq!(contain(|| Ok(3)), Ok(3));
        assert_eq!(contain::<()>(|| Err("x".repeat(1000))).unwrap_err().len(), LONGEST + 3);
    }
}
