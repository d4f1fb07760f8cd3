//! Bytes on the wire, as the system counts them for each connection.

use std::process::Command;

/// Bytes sent and received over all connections to a port of this machine, headers of TCP and IP aside; `None` where there is no `ss` to
/// ask.
pub(super) fn bytes(port: u16) -> Option<u64> {
    let port = format!(":{port}");
    let asked = Command::new("ss").args(["-tinH", "state", "established", "sport", "=", &port]).output().ok()?;
    let told = asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).into_owned())?;
    let counted = |word: &str| {
        word.strip_prefix("bytes_sent:").or_else(|| word.strip_prefix("bytes_received:"))?.parse::<u64>().ok()
    };
    Some(told.split_whitespace().filter_map(counted).sum())
}
