//! Files that secure a connection.

use crate::{ErrorCode, Failure};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Certificates and tokens are short: a longer file is something else.
const LONGEST: u64 = 1 << 20;
/// Permission bits of everybody who is neither the owner nor of the file's group.
const OTHERS: u32 = 0o007;

/// A file that a setting names: both stand in every message about it.
#[derive(Clone, Copy, Debug)]
pub struct SecurityFile<'a> {
    /// The setting, such as `security.private_key` or `--ca`.
    pub setting: &'a str,
    /// Where the file lies.
    pub path: &'a Path,
}

impl<'a> SecurityFile<'a> {
    /// The file at `path`, named by `setting`.
    #[must_use]
    pub fn new(setting: &'a str, path: &'a Path) -> Self {
        Self { setting, path }
    }

    /// A refusal of this file.
    #[must_use]
    pub fn refuse(&self, why: impl Display) -> Failure {
        Failure::new(ErrorCode::SecurityFile, format!("{} = {}: {why}", self.setting, self.path.display()))
    }

    /// What the file holds.
    ///
    /// # Errors
    /// `SecurityFile` when it is not there, not a file, or too long.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.read_opened(0)
    }

    /// What the file holds, if it is kept from others. The group may read it: that is how Kubernetes mounts secrets.
    ///
    /// # Errors
    /// As [`Self::read`], and when users outside the file's group have any access to it.
    pub fn read_secret(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.read_opened(OTHERS)
    }

    /// The permissions are those of the opened file: a name could be exchanged between two looks.
    fn read_opened(&self, forbidden: u32) -> Result<Zeroizing<Vec<u8>>, Failure> {
        // Opening a pipe would wait for its other end.
        let named = std::fs::metadata(self.path).map_err(|e| self.refuse(e))?;
        if !named.is_file() {
            return Err(self.refuse("it is not a file"));
        }
        let file = File::open(self.path).map_err(|e| self.refuse(e))?;
        let mode = file.metadata().map_err(|e| self.refuse(e))?.permissions().mode() & 0o777;
        if mode & forbidden != 0 {
            return Err(
                self.refuse(format!("every user of this machine has access to it (mode {mode:04o}): chmod 600 it"))
            );
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|e| self.refuse(e))?;
        if bytes.len() as u64 > LONGEST {
            return Err(self.refuse(format!("it is longer than {LONGEST} bytes")));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "secret").unwrap();
        let file = SecurityFile::new("--private-key", &path);
        for (mode, allowed) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o602, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(file.read_secret().is_ok(), allowed, "{mode:o}");
        }
        let failure = file.read_secret().unwrap_err();
        assert_eq!(failure.code, ErrorCode::SecurityFile);
        assert!(failure.message.starts_with("--private-key = /"), "{failure}");
        assert!(failure.message.contains("(mode 0602)") && failure.message.contains("chmod 600"), "{failure}");
        assert_eq!(&**file.read().unwrap(), b"secret");
    }

    #[test]
    fn what_is_no_short_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("long");
        fs::write(&long, vec![b'x'; LONGEST as usize + 1]).unwrap();
        for (path, why) in
            [(directory.path().join("none"), "No such file"), (directory.path().into(), "not a file"), (long, "longer")]
        {
            let failure = SecurityFile::new("--ca", &path).read().unwrap_err();
            assert!(failure.code == ErrorCode::SecurityFile && failure.message.contains(why), "{failure}");
        }
    }
}
