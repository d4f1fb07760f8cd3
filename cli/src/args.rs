//! The command line.

use ballast_proto::ErrorCode;
use ballast_worker::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Fine-tunes language models with LoRA across machines, and keeps them safe while doing it.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// How progress, log lines and errors are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) log: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A progress bar on a terminal, lines otherwise.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a run on this machine: a coordinator and its local workers.
    Train(TrainArgs),
    /// Coordinate a run whose workers are started elsewhere.
    Coordinator(TrainArgs),
    /// Work for a coordinator.
    Worker(WorkerArgs),
    /// Tell where a run stands.
    Status(StatusArgs),
    /// Stop a run after a checkpoint.
    Stop(StopArgs),
    /// Make certificates and tokens for a run.
    Certs(CertsArgs),
    /// Prepare the data of a run and look at it; nothing is trained.
    Prepare(PrepareArgs),
    /// Tell what each worker of a run will take of memory; nothing is trained.
    Estimate(EstimateArgs),
    /// Look at the configuration of a run.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Tell what this machine has, and what Ballast would use of it.
    Doctor(DoctorArgs),
    /// Set finished runs side by side.
    Compare(CompareArgs),
    /// Prove from a run's ledger that every sample was trained exactly once per epoch, and tell what happened.
    Audit(AuditArgs),
    /// Explain an error code; without one, list all.
    Explain(ExplainArgs),
}

impl Command {
    /// Log lines that are wanted when `BALLAST_LOG` says nothing. A worker has nothing else to tell; all others show
    /// events.
    pub(crate) fn default_filter(&self) -> &'static str {
        if matches!(self, Self::Worker(_)) { "info" } else { "error" }
    }
}

/// A run file and what is changed of it.
#[derive(Debug, Args)]
pub(crate) struct RunFileArgs {
    /// The run file (TOML).
    #[arg(value_name = "RUNFILE")]
    pub(crate) run_file: PathBuf,
    /// Change a key of the run file; may be given many times. Lists are written a,b.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = parse_set)]
    pub(crate) set: Vec<(String, String)>,
}

/// `ballast train` and `ballast coordinator`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// Let the coordinator listen beyond loopback though TLS or tokens are not set up (as cluster.insecure = true).
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// How a coordinator is reached, and what is shown to it. A token also comes from the environment variable BALLAST_TOKEN,
/// and never from the command line, which every user of a machine can read.
#[derive(Debug, Args)]
pub(crate) struct ConnectionArgs {
    /// URL of the coordinator, http:// or https://.
    #[arg(long, value_name = "URL", env = "BALLAST_COORDINATOR")]
    pub(crate) coordinator: String,
    /// Authorities (PEM) that the coordinator's certificate is checked with; https:// needs them.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate (PEM) to present, where the coordinator asks for one.
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// The private key to it (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) private_key: Option<PathBuf>,
    /// Name in the coordinator's certificate, when it is not the URL's.
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// File that holds the token; BALLAST_TOKEN in the environment holds the token itself.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Accept what is not encrypted: a token over http://, and a worker's ring beyond loopback.
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// `ballast status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ballast stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

/// `ballast certs`.
#[derive(Debug, Args)]
pub(crate) struct CertsArgs {
    /// Directory for the files; nothing in it is overwritten.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Name or IP address by which the coordinator is reached; may be given many times. localhost is always among them.
    #[arg(long, value_name = "NAME_OR_IP", required = true, value_parser = parse_host)]
    pub(crate) host: Vec<String>,
    /// Days for which the certificates are valid.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=825))]
    pub(crate) days: u32,
}

/// `ballast worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    /// Name of this worker for people; host and process id when not given.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where this machine has the base model (directory, GGUF file, hf:org/name), when not where the run says.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Address on which other workers are listened to; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub(crate) ring_bind: String,
    /// Address under which other workers reach this one; as bound when not given.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) ring_advertise: Option<String>,
    /// What to compute on (cpu, cuda:N, or cuda for the device of this process's number on its machine), when not what the
    /// run says.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Compute threads, when not as many as the run says; 0 for all cores.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// How long the coordinator may be unreachable at the start, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    pub(crate) connect_timeout: Duration,
    /// How long to keep the training state and try to join again when the coordinator is lost, in seconds; 0: not at all.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    pub(crate) rejoin_timeout: Duration,
}

/// `ballast prepare`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// Directory for the prepared rows and their manifest; `prepared` in the run directory when not given.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Samples to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) show: usize,
}

/// `ballast estimate`.
#[derive(Debug, Args)]
pub(crate) struct EstimateArgs {
    #[command(flatten)]
    pub(crate) file: RunFileArgs,
    /// What the worker computes on (cpu or cuda), when not what the run says. It need not be there.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ballast config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the run file as it is in effect, with the origin of every value.
    Show(TrainArgs),
    /// Print the JSON Schema of a run file, for editors.
    Schema,
}

/// `ballast doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Fail when this device cannot be used (cpu, cuda or cuda:N).
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ballast compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Run directories (or their report.json).
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    pub(crate) runs: Vec<PathBuf>,
    /// Print JSON in place of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ballast audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// The run directory, or its ledger.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ballast explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// An error code, such as B1002.
    #[arg(value_parser = parse_code)]
    pub(crate) code: Option<ErrorCode>,
}

/// The command line of this process, or what clap has to say about it (which may be the help that was asked for).
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    Cli::try_parse()
}

/// The format of a command line that may not be understood otherwise.
pub(crate) fn format_asked_for(arguments: impl Iterator<Item = OsString>) -> LogFormat {
    let words: Vec<OsString> = arguments.collect();
    let asked = words.iter().any(|word| word == "--log=json")
        || words.windows(2).any(|pair| pair[0] == "--log" && pair[1] == "json");
    if asked { LogFormat::Json } else { LogFormat::Text }
}

fn parse_set(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write section.key=value")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn parse_host(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '*');
    let name = !text.is_empty() && text.chars().all(letter);
    if name || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("write a name or an IP address".into())
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "write a number of whole seconds".to_owned())
}

fn parse_code(text: &str) -> Result<ErrorCode, String> {
    let unknown = |()| "there is no such code; `ballast explain` lists all of them".to_owned();
    text.to_ascii_uppercase().parse().map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_format_is_known_without_understanding_the_rest() {
        let format = |words: &[&str]| format_asked_for(words.iter().map(OsString::from));
        assert_eq!(format(&["ballast", "trian", "--log", "json"]), LogFormat::Json);
        assert_eq!(format(&["ballast", "--log=json"]), LogFormat::Json);
        assert_eq!(format(&["ballast", "--log", "text", "json"]), LogFormat::Text);
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for host in ["host-0", "a.example.org", "*.example.org", "10.0.0.1", "::1"] {
            assert_eq!(parse_host(host).as_deref(), Ok(host));
        }
        for bad in ["", "two words", "http://host", "host:7070", "h\u{fc}"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_are_cut_at_the_first_equals_sign() {
        assert_eq!(parse_set("data.system=a=b").unwrap(), ("data.system".into(), "a=b".into()));
        assert_eq!(parse_set("data.system=").unwrap(), ("data.system".into(), String::new()));
        assert!(parse_set("data.system").is_err());
    }
}
