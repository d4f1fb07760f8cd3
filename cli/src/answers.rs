//! The answers of base and tuned model, side by side.

use ballast_coordinator::evaluation::Answer;
use comfy_table::{ContentArrangement, Table, presets};

/// Width where there is no terminal, and the largest on one: longer lines are hard to read.
const WIDTH: u16 = 110;

/// One prompt and both answers.
pub(crate) fn side_by_side(answer: &Answer) -> String {
    let width = console::Term::stdout().size_checked().map_or(WIDTH, |(_, columns)| columns.min(WIDTH));
    let mut table = Table::new();
    table.load_preset(presets::ASCII_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(["base answers", "tuned answers"]).add_row([printable(&answer.base), printable(&answer.tuned)]);
    format!("prompt: {}\n{table}", printable(&answer.prompt))
}

/// A model may answer with control characters; they must not reach the terminal.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let answer = Answer { prompt: "p\u{1b}[2J".into(), base: "two\nlines".into(), tuned: "\u{7}tuned ".into() };
        let text = side_by_side(&answer);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text}");
        assert!(text.contains("two") && text.contains("lines") && text.contains("tuned"), "{text}");
    }
}
