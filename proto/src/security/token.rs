//! Join tokens: shared secrets by which a coordinator knows what a caller may do.

use super::SecurityFile;
use crate::Failure;
use std::fmt;
use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

/// A token. No text of it shows a character, and its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Fewer characters could be guessed.
    pub const SHORTEST: usize = 32;
    /// More would fill the header in which a token travels.
    pub const LONGEST: usize = 512;

    /// A token of this text.
    ///
    /// # Errors
    /// What is wrong with it, without quoting any of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !(Self::SHORTEST..=Self::LONGEST).contains(&text.len()) {
            let (shortest, longest) = (Self::SHORTEST, Self::LONGEST);
            return Err(format!("a token has {shortest} to {longest} characters, this one has {}", text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
        if !text.chars().all(allowed) {
            return Err("a token consists of letters, digits and - . _ ~ + / =".to_owned());
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The one token that a client's file holds; lines that begin with `#` are comments.
    ///
    /// # Errors
    /// When others can read the file, or it does not hold one token.
    pub fn load(file: SecurityFile<'_>) -> Result<Self, Failure> {
        let bytes = file.read_secret()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| file.refuse("it is not text"))?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        match (lines.next(), lines.next()) {
            (Some(line), None) if line.split_whitespace().nth(1).is_some() => {
                Err(file.refuse("a client's file holds its token alone: this looks like the coordinator's token file"))
            }
            (Some(line), None) => Self::parse(line).map_err(|why| file.refuse(why)),
            (None, _) => Err(file.refuse("it holds no token")),
            (Some(_), Some(_)) => Err(file.refuse("it holds more than one line: a client has one token")),
        }
    }

    /// The text, for whoever sends or compares it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// As it travels: marked as sensitive, so that neither logs nor header compression keep it.
    pub(super) fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        let text = Zeroizing::new(format!("Bearer {}", self.reveal()));
        // Every character of a token may stand in a header.
        let mut value: MetadataValue<Ascii> = text.parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const TEXT: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::parse(TEXT).unwrap();
        let bearer = token.bearer().unwrap();
        assert_eq!(bearer.to_str().unwrap(), format!("Bearer {TEXT}"));
        let shown = format!("{token:?} {:?} {bearer:?}", Some(&token));
        assert!(!shown.contains("0123"), "{shown}");
        for bad in ["short-but-secret", &format!("{TEXT} {TEXT}"), &format!("{TEXT}\u{e9}"), &"secret".repeat(100)] {
            let why = Token::parse(bad).unwrap_err();
            assert!(!why.contains("secret") && !why.contains("0123"), "{why}");
        }
    }

    #[test]
    fn a_client_has_one_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            Token::load(SecurityFile::new("--token-file", &path)).map_err(|failure| failure.message)
        };
        assert_eq!(load(&format!("# mine\n\n{TEXT}\n")).unwrap().reveal(), TEXT);
        for (text, why) in [
            (String::new(), "holds no token"),
            (format!("{TEXT}\n{TEXT}\n"), "more than one line"),
            (format!("worker {TEXT}\n"), "the coordinator's token file"),
            ("tooshort\n".to_owned(), "has 32 to 512 characters, this one has 8"),
        ] {
            let message = load(&text).unwrap_err();
            assert!(message.contains(why) && !message.contains("0123"), "{message}");
        }
    }
}
