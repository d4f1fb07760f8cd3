//! Text that callers send, before it reaches logs, ledger, report and terminals.

use ballast_proto::{ErrorCode, Failure};

/// Longest reason that is kept, in bytes.
const REASON: usize = 4096;
/// Longest other text that is taken, in bytes: names, versions, addresses, hashes, the description of an arithmetic.
const WORD: usize = 4096;

/// A reason as it may be shown: one text of bearable length without control characters.
pub(super) fn reason(text: &str) -> String {
    let end = (0..=text.len().min(REASON)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let kept = text.get(..end).unwrap_or_default();
    let mut shown: String = kept.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
    if end < text.len() {
        shown.push_str("...");
    }
    shown
}

/// Refuses a text that is too long, or holds control characters; it is not quoted.
pub(super) fn check<'a>(what: &str, texts: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
    let sound = |text: &str| text.len() <= WORD && !text.chars().any(char::is_control);
    if texts.into_iter().all(sound) {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::BadMessage,
        format!("{what} holds a text of more than {WORD} bytes, or control characters"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters_and_cannot_move_a_cursor() {
        assert_eq!(reason("two\nlines"), "two\nlines");
        assert_eq!(reason("\u{1b}[2Jgone\r"), "\u{fffd}[2Jgone\u{fffd}");
        let long = reason(&"\u{20ac}".repeat(REASON));
        assert!(long.ends_with("\u{20ac}...") && long.len() <= REASON + 3, "{}", long.len());
        assert_eq!(reason(&"x".repeat(REASON)).len(), REASON);
    }

    #[test]
    fn long_texts_and_control_characters_are_refused_unquoted() {
        check("a join", ["", "host:1", "0.1.0"]).unwrap();
        for bad in ["\u{1b}[2J", &"secret".repeat(1000)] {
            let failure = check("a join", ["fine", bad]).unwrap_err();
            assert!(failure.code == ErrorCode::BadMessage && failure.message.len() < 100, "{failure}");
        }
    }
}
