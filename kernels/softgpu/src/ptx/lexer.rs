//! Tokens of PTX.

use crate::module::LoadError;

/// A token and its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) line: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier, register, directive, or a whole dotted opcode.
    Word,
    /// Starts with a digit.
    Number,
    /// A quoted string, quotes included.
    Text,
    /// One character.
    Symbol,
}

/// Cuts `source` into tokens; comments vanish.
pub(crate) fn tokens(source: &str) -> Result<Vec<Token<'_>>, LoadError> {
    let bytes = source.as_bytes();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        let length = match byte {
            b'\n' | b' ' | b'\t' | b'\r' | 0 => 1,
            b'/' if source[at..].starts_with("//") => source[at..].find('\n').unwrap_or(source.len() - at),
            b'/' if source[at..].starts_with("/*") => match source[at..].find("*/") {
                Some(end) => end + 2,
                None => return Err(LoadError { line, message: "comment without an end".to_owned() }),
            },
            b'"' => match source[at + 1..].find('"') {
                Some(end) => end + 2,
                None => return Err(LoadError { line, message: "string without an end".to_owned() }),
            },
            _ if is_word(byte) => word_length(&bytes[at..]),
            _ if byte.is_ascii() => 1,
            _ => return Err(LoadError { line, message: format!("unexpected byte {byte:#04x}") }),
        };
        let text = &source[at..at + length];
        let kind = match byte {
            b'\n' | b' ' | b'\t' | b'\r' | 0 => None,
            b'/' if length > 1 => None,
            b'"' => Some(Kind::Text),
            b'0'..=b'9' => Some(Kind::Number),
            _ if is_word(byte) => Some(Kind::Word),
            _ => Some(Kind::Symbol),
        };
        found.extend(kind.map(|kind| Token { kind, text, line }));
        line += text.bytes().filter(|&b| b == b'\n').count() as u32;
        at += length;
    }
    Ok(found)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Length of the word at the start; `::` belongs to it (`.shared::cta`), a single colon does not (a label's end).
fn word_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    loop {
        match (bytes.get(length), bytes.get(length + 1)) {
            (Some(&byte), _) if is_word(byte) => length += 1,
            (Some(b':'), Some(b':')) => length += 2,
            _ => return length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_symbols_and_lines() {
        let found =
            tokens("L_1:\n ld.shared::cta.u32 %r1, [%r2+-4]; // x\n/* a\nb */ .reg \"s\" 0f3F80").expect("valid");
        let texts: Vec<_> = found.iter().map(|t| t.text).collect();
        let expected = "L_1 : ld.shared::cta.u32 %r1 , [ %r2 + - 4 ] ; .reg \"s\" 0f3F80";
        assert_eq!(texts, expected.split(' ').collect::<Vec<_>>());
        assert_eq!(found[2].line, 2);
        assert_eq!(found.last().map(|t| (t.line, t.kind)), Some((4, Kind::Number)));
        assert!(tokens("/* never ends").is_err());
    }
}
