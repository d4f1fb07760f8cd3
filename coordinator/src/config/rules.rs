//! What single values cannot show: contradictions between them, and the order of the timeout ladder.

use super::error::{ConfigError, Contradiction, Side};
use super::kind;
use super::layers::shown;
use super::load::Resolved;
use super::sections::{Cluster, Eval, RunFile, Security};
use super::words::{LookAheadMode, PreviewLevel, RowFormat, Turns};
use std::net::SocketAddr;

/// Applies every rule; the first broken one is told.
pub(super) fn check(resolved: &Resolved) -> Result<(), ConfigError> {
    let run = &resolved.run;
    let rules = [
        rows(run),
        lookahead(run),
        schedule(run),
        evaluation(&run.eval),
        model(run),
        enough_workers(&run.cluster),
        ladder(&run.cluster),
        security(&run.security),
    ];
    match rules.into_iter().flatten().next() {
        Some(broken) => Err(broken.told(resolved)),
        None => bind(resolved),
    }
}

impl Resolved {
    /// Warm-up must leave steps to train in. Called again by the coordinator when the plan has told the steps of the
    /// run.
    ///
    /// # Errors
    /// A contradiction between `train.warmup_steps` and the steps of the run.
    pub fn check_total_steps(&self, total_steps: u64) -> Result<(), ConfigError> {
        let warmup = self.run.train.warmup_steps;
        if warmup == 0 || warmup < total_steps {
            return Ok(());
        }
        let mut error = Broken {
            key: "train.warmup_steps",
            other: "train.epochs",
            why: format!("the run has {total_steps} steps, so the learning rate would never leave its warm-up"),
        };
        if self.run.train.max_steps.is_some_and(|max| max <= warmup) {
            error.other = "train.max_steps";
        }
        Err(error.told(self))
    }
}

impl Resolved {
    /// A coordinator that workers are told of by address needs a port that is known beforehand.
    ///
    /// # Errors
    /// A bad value of `cluster.bind`, when its port is 0.
    pub fn require_port(&self) -> Result<(), ConfigError> {
        if self.run.cluster.address().is_none_or(|address| address.port() != 0) {
            return Ok(());
        }
        Err(ConfigError::BadValue {
            key: "cluster.bind",
            value: value_of(&self.run, "cluster.bind"),
            origin: self.origin("cluster.bind").clone(),
            problem: "leaves the port open, and workers could not be told where to go".into(),
            allowed: "an address with a port that is not 0 (only `ballast train` takes a free one)".into(),
        })
    }
}

/// Two keys that contradict each other.
struct Broken {
    key: &'static str,
    other: &'static str,
    why: String,
}

impl Broken {
    fn new(key: &'static str, other: &'static str, why: impl Into<String>) -> Option<Self> {
        Some(Self { key, other, why: why.into() })
    }

    fn told(self, resolved: &Resolved) -> ConfigError {
        let side = |key| Side { key, value: value_of(&resolved.run, key), origin: resolved.origin(key).clone() };
        Box::new(Contradiction { one: side(self.key), other: side(self.other), why: self.why }).into()
    }
}

/// The value of a key as TOML writes it; `nothing` for one that is not set.
pub(super) fn value_of(run: &RunFile, key: &str) -> String {
    let value = toml::Value::try_from(run).ok().and_then(|document| {
        let (section, key) = key.split_once('.')?;
        document.get(section)?.get(key).map(shown)
    });
    value.unwrap_or_else(|| "nothing".into())
}

fn rows(run: &RunFile) -> Option<Broken> {
    let named = [("data.prompt_field", &run.data.prompt_field), ("data.answer_field", &run.data.answer_field)];
    for (key, field) in named {
        match (run.data.format, field) {
            (RowFormat::Fields, None) => {
                return Broken::new("data.format", key, format!("rows of named fields need {key}"));
            }
            (RowFormat::Fields, Some(_)) | (_, None) => {}
            (_, Some(_)) => {
                return Broken::new(key, "data.format", "a named field is only read with data.format = \"fields\"");
            }
        }
    }
    if run.data.format == RowFormat::Fields && run.data.prompt_field == run.data.answer_field {
        return Broken::new("data.prompt_field", "data.answer_field", "prompt and answer cannot be the same field");
    }
    None
}

/// With `mode = "off"` no other key of the section means anything, so that one `--set` makes the plain run to
/// compare with.
fn lookahead(run: &RunFile) -> Option<Broken> {
    let lookahead = &run.lookahead;
    if lookahead.mode == LookAheadMode::Off {
        return None;
    }
    if lookahead.turns == Turns::All && run.data.train_turns == Turns::Last {
        return Broken::new(
            "lookahead.turns",
            "data.train_turns",
            "a preview never shows an answer that bears no loss: set both to \"all\" or both to \"last\"",
        );
    }
    if lookahead.mode == LookAheadMode::Virtual && lookahead.preview_level == PreviewLevel::Token {
        return Broken::new(
            "lookahead.preview_level",
            "lookahead.mode",
            "a fixed prefix is text and has no tokens of the answer: set preview_level = \"text\" or mode = \"real\"",
        );
    }
    if lookahead.mode == LookAheadMode::Real
        && lookahead.preview_level == PreviewLevel::Token
        && lookahead.connector.ends_with(' ')
    {
        return Broken::new(
            "lookahead.connector",
            "lookahead.preview_level",
            "the answer's own tokens cannot follow a dangling space: end the connector without one, or with a newline",
        );
    }
    None
}

fn schedule(run: &RunFile) -> Option<Broken> {
    let max_steps = run.train.max_steps?;
    if run.train.warmup_steps > 0 && run.train.warmup_steps >= max_steps {
        return Broken::new(
            "train.warmup_steps",
            "train.max_steps",
            "the learning rate would never leave its warm-up: warm up over fewer steps than the run has",
        );
    }
    None
}

fn evaluation(eval: &Eval) -> Option<Broken> {
    if eval.heldout.is_none() {
        if eval.heldout_limit.is_some() {
            return Broken::new("eval.heldout_limit", "eval.heldout", "there are no held-out rows to limit");
        }
        // The default needs no held-out rows: without them there is nothing to answer.
        if eval.samples > Eval::default().samples {
            return Broken::new("eval.samples", "eval.heldout", "sample answers are given to held-out prompts");
        }
    }
    let nothing_to_say = eval.max_new_tokens == 0;
    if nothing_to_say && eval.samples > 0 && eval.heldout.is_some() {
        return Broken::new("eval.max_new_tokens", "eval.samples", "an answer needs at least one token");
    }
    if nothing_to_say && eval.probes.is_some() {
        return Broken::new("eval.max_new_tokens", "eval.probes", "an answer to a probe needs at least one token");
    }
    None
}

fn model(run: &RunFile) -> Option<Broken> {
    if run.model.revision.is_some() && !run.model.source.starts_with("hf:") {
        return Broken::new("model.revision", "model.source", "only a hub model (hf:org/name) has revisions");
    }
    None
}

fn enough_workers(cluster: &Cluster) -> Option<Broken> {
    if cluster.min_workers > cluster.workers {
        return Broken::new(
            "cluster.min_workers",
            "cluster.workers",
            "no more workers than cluster.workers are let in, so the run would wait for ever",
        );
    }
    None
}

/// Each rung of the ladder notices what the one below it cannot, and only after that one had its chance.
fn ladder(cluster: &Cluster) -> Option<Broken> {
    let (heartbeat, lease, progress) = (cluster.heartbeat_ms, cluster.lease_ms, cluster.progress_ms);
    if heartbeat >= lease {
        return Broken::new(
            "cluster.heartbeat_ms",
            "cluster.lease_ms",
            "a lease must outlast a heartbeat, or every worker is lost between two of them",
        );
    }
    if lease >= progress {
        return Broken::new(
            "cluster.lease_ms",
            "cluster.progress_ms",
            "a silent worker must be noticed before a standing one, or its loss is told with the wrong reason",
        );
    }
    if progress > cluster.collective_ms {
        return Broken::new(
            "cluster.progress_ms",
            "cluster.collective_ms",
            "a hung worker must be noticed before its peers' collectives time out, or the healthy ones are blamed",
        );
    }
    if cluster.collective_ms > cluster.load_ms {
        return Broken::new(
            "cluster.collective_ms",
            "cluster.load_ms",
            "loading a base model takes longer than any collective, so its limit must not be shorter",
        );
    }
    None
}

fn security(security: &Security) -> Option<Broken> {
    let (certificate, key) = (security.certificate.is_some(), security.private_key.is_some());
    if certificate && !key {
        return Broken::new("security.certificate", "security.private_key", "a certificate needs its private key");
    }
    if key && !certificate {
        return Broken::new("security.private_key", "security.certificate", "a private key needs its certificate");
    }
    if security.client_ca.is_some() && !certificate {
        return Broken::new(
            "security.client_ca",
            "security.certificate",
            "clients can be asked for certificates only over TLS, for which the coordinator needs its own",
        );
    }
    None
}

impl Security {
    /// What is missing before strangers may reach the port, in words; `None` when nothing is.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        match (self.certificate.is_some(), self.token_file.is_some()) {
            (true, true) => None,
            (false, true) => Some("security.certificate and security.private_key (TLS)"),
            (true, false) => Some("security.token_file (tokens)"),
            (false, false) => {
                Some("security.certificate and security.private_key (TLS), and security.token_file (tokens)")
            }
        }
    }
}

impl Cluster {
    /// The address of `bind`, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        kind::parse_address(&self.bind)
    }
}

fn bind(resolved: &Resolved) -> Result<(), ConfigError> {
    let RunFile { cluster, security, .. } = &resolved.run;
    let loopback = cluster.address().is_some_and(|address| address.ip().is_loopback());
    let Some(missing) = security.missing().filter(|_| !loopback && !cluster.insecure) else { return Ok(()) };
    let value = value_of(&resolved.run, "cluster.bind");
    Err(ConfigError::InsecureBind { value, origin: resolved.origin("cluster.bind").clone(), missing })
}
