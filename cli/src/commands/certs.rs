//! `ballast certs`: a development authority, certificates and tokens for a run.

use crate::args::CertsArgs;
use crate::screen;
use ballast_proto::security::SecurityFile;
use ballast_proto::{ErrorCode, Failure, exit};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// Names by which every machine calls itself: local workers and people on the coordinator's machine use them.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;
/// Clocks differ a little.
const SKEW: Duration = Duration::HOUR;

pub(super) fn run(args: &CertsArgs) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&args.out)?;
    let files = Files::make(&args.host, args.days)?;
    files.write(&directory)?;
    screen::print(&instructions(&directory, &args.host, args.days))?;
    Ok(exit::DONE)
}

/// Name, content, and whether it is a secret.
struct Files(Vec<(&'static str, String, bool)>);

impl Files {
    /// Everything, made anew.
    fn make(hosts: &[String], days: u32) -> Result<Self, Failure> {
        let failed = |e: rcgen::Error| Failure::new(ErrorCode::Internal, format!("certificates cannot be made: {e}"));
        let authority = authority(days).map_err(failed)?;
        let names = LOCAL.iter().map(|name| (*name).to_owned()).chain(hosts.iter().cloned());
        let (server, server_key) = leaf(&authority, "ballast coordinator", names.collect(), days).map_err(failed)?;
        let (worker, worker_key) = leaf(&authority, "ballast worker", Vec::new(), days).map_err(failed)?;
        let [first, second, third] = [token()?, token()?, token()?];
        let table = format!(
            "# Tokens of the coordinator (security.token_file), one `ROLE TOKEN` a line. Keep it from others.\n\
             worker   {first}\noperator {second}\nobserver {third}\n"
        );
        let ca = authority.pem();
        Ok(Self(vec![
            // What signed it stands behind it, so that workers on the same machine can check it too.
            ("server.pem", server + &ca, false),
            ("server.key", server_key, true),
            ("ca.pem", ca, false),
            ("worker.pem", worker, false),
            ("worker.key", worker_key, true),
            ("tokens", table, true),
            ("worker.token", first + "\n", true),
            ("operator.token", second + "\n", true),
            ("observer.token", third + "\n", true),
        ]))
    }

    /// Writes all of them, or none when one is there already.
    fn write(&self, directory: &Path) -> Result<(), Failure> {
        let refuse = |path: &Path, why: &dyn std::fmt::Display| SecurityFile::new("--out", path).refuse(why);
        if let Some(there) =
            self.0.iter().map(|(name, ..)| directory.join(name)).find(|path| path.symlink_metadata().is_ok())
        {
            return Err(refuse(&there, &"it is there already, and nothing is overwritten: name another directory"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| refuse(directory, &e))?;
        for (name, content, secret) in &self.0 {
            let path = directory.join(name);
            let mode = if *secret { 0o600 } else { 0o644 };
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
            file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|e| refuse(&path, &e))?;
        }
        Ok(())
    }
}

/// An authority whose private key is forgotten at the end: it signs nothing else.
fn authority(days: u32) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = params("ballast development authority", Vec::new(), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

/// A certificate and its key. Every one may be shown by either side: `ballast train` has one for both.
fn leaf(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    hosts: Vec<String>,
    days: u32,
) -> Result<(String, String), rcgen::Error> {
    let mut params = params(name, hosts, days)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !params.subject_alt_names.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn params(name: &str, hosts: Vec<String>, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - SKEW, now + Duration::days(days.into()));
    Ok(params)
}

fn token() -> Result<String, Failure> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(ErrorCode::Internal, format!("the system gives no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}

/// What to write where.
fn instructions(directory: &Path, hosts: &[String], days: u32) -> String {
    let file = |name: &str| -> PathBuf { directory.join(name) };
    let shown = |name: &str| file(name).display().to_string();
    let host = hosts.first().map_or("localhost", String::as_str);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let (ca, certificate, key) = (shown("ca.pem"), shown("worker.pem"), shown("worker.key"));
    let client = format!("--coordinator https://{host}:7070 --ca {ca} --certificate {certificate} --private-key {key}");
    format!(
        "Valid for {days} days. In the run file:\n\n\
         [security]\n\
         certificate = {:?}\nprivate_key = {:?}\nclient_ca = {:?}\ntoken_file = {:?}\n\n\
         On every worker's machine, with ca.pem, worker.pem, worker.key and worker.token copied there:\n\n\
         ballast worker {client} --token-file {}\n\n\
         To look at the run, and to stop it:\n\n\
         ballast status {client} --token-file {}\n\
         ballast stop {client} --token-file {}\n",
        shown("server.pem"),
        shown("server.key"),
        ca,
        shown("tokens"),
        shown("worker.token"),
        shown("observer.token"),
        shown("operator.token"),
    )
}
