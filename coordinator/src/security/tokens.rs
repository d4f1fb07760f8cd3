//! The tokens of a run, and the role of each.

use ballast_proto::{
    Failure,
    security::{SecurityFile, Token},
};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq;

/// What the holder of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Join and train.
    Worker,
    /// Look at the run, and stop it.
    Operator,
    /// Look at the run.
    Observer,
}

impl FromStr for Role {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "worker" => Ok(Self::Worker),
            "operator" => Ok(Self::Operator),
            "observer" => Ok(Self::Observer),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Observer => "observer",
        })
    }
}

/// Hashes of the tokens: the tokens themselves are not kept.
pub(crate) struct Tokens(Vec<([u8; 32], Role)>);

impl Tokens {
    /// Reads `ROLE TOKEN` lines. A role may have several tokens, so that one can be exchanged for another.
    pub(crate) fn load(file: SecurityFile<'_>) -> Result<Self, Failure> {
        let entries = read(file)?;
        Ok(Self(entries.iter().map(|(role, token)| (digest(token.reveal().as_bytes()), *role)).collect()))
    }

    /// The role of a token. Hashes are compared, so that no length shows, each in full and all of them, so that no time
    /// tells how much of a guess was right.
    pub(crate) fn role_of(&self, presented: &[u8]) -> Option<Role> {
        let presented = digest(presented);
        let mut found = None;
        for (known, role) in &self.0 {
            if bool::from(known.ct_eq(&presented)) {
                found = Some(*role);
            }
        }
        found
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} of them)", self.0.len())
    }
}

/// The first token of the workers, for those that this machine starts itself.
pub(super) fn worker_token(file: SecurityFile<'_>) -> Result<Token, Failure> {
    let worker = read(file)?.into_iter().find(|(role, _)| *role == Role::Worker);
    worker.map(|(_, token)| token).ok_or_else(|| no_worker(file))
}

fn read(file: SecurityFile<'_>) -> Result<Vec<(Role, Token)>, Failure> {
    let bytes = file.read_secret()?;
    let text = std::str::from_utf8(&bytes).map_err(|_| file.refuse("it is not text"))?;
    let mut entries: Vec<(Role, Token)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // What stands there may be a secret: no message quotes it.
        let wrong = |why: &str| file.refuse(format!("line {number}: {why}"));
        let (role, token) = line
            .split_once(char::is_whitespace)
            .ok_or_else(|| wrong("write a role and its token, as in `worker 9f86d0...`"))?;
        let role = role.parse().map_err(|()| wrong("the roles are worker, operator and observer"))?;
        let token = Token::parse(token.trim()).map_err(|why| wrong(&why))?;
        if entries.iter().any(|(_, earlier)| earlier.reveal() == token.reveal()) {
            return Err(wrong("this token stands in an earlier line too: every line needs a token of its own"));
        }
        entries.push((role, token));
    }
    if !entries.iter().any(|(role, _)| *role == Role::Worker) {
        return Err(no_worker(file));
    }
    Ok(entries)
}

fn no_worker(file: SecurityFile<'_>) -> Failure {
    file.refuse("it has no token for workers, so none could join: add a line `worker TOKEN`")
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::ErrorCode;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn token(letter: &str) -> String {
        letter.repeat(Token::SHORTEST)
    }

    fn load(text: &str) -> Result<Tokens, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = SecurityFile::new("security.token_file", &path);
        assert_eq!(worker_token(file).is_ok(), Tokens::load(file).is_ok());
        Tokens::load(file)
    }

    #[test]
    fn each_token_has_its_role() {
        let (w, v, o, b) = (token("w"), token("v"), token("o"), token("b"));
        let tokens = load(&format!("# tokens\n\nworker\t{w}\n worker {v} \noperator {o}\nobserver  {b}\n")).unwrap();
        let roles = [w, v, o, b].map(|token| tokens.role_of(token.as_bytes()));
        assert_eq!(roles, [Role::Worker, Role::Worker, Role::Operator, Role::Observer].map(Some));
        for stranger in [String::new(), token("x"), token("w") + "w", token("w")[1..].to_owned()] {
            assert_eq!(tokens.role_of(stranger.as_bytes()), None, "{stranger}");
        }
        assert_eq!(format!("{tokens:?}"), "Tokens(4 of them)");
    }

    #[test]
    fn a_malformed_file_is_refused_without_quoting_it() {
        let w = token("w");
        for (text, why) in [
            (String::new(), "no token for workers"),
            (format!("operator {w}"), "no token for workers"),
            (w.clone(), "line 1: write a role"),
            (format!("worker {w}\nadmin {w}"), "line 2: the roles are worker, operator and observer"),
            ("worker wwwwww".into(), "line 1: a token has 32 to 512 characters, this one has 6"),
            (format!("worker {w}\n#\noperator {w}"), "line 3: this token stands in an earlier line"),
            (format!("worker {w} {w}"), "line 1: a token consists of"),
        ] {
            let failure = load(&text).unwrap_err();
            assert_eq!(failure.code, ErrorCode::SecurityFile);
            assert!(failure.message.contains(why) && !failure.message.contains("wwww"), "{failure}");
        }
    }
}
