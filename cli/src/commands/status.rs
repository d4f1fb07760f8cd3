//! `ballast status`

use super::admin;
use crate::args::StatusArgs;
use crate::screen;
use anyhow::Context;
use ballast_proto::exit;
use ballast_proto::v1::{RunPhase, StatusRequest, StatusResponse, WorkerStatus};
use serde_json::{Value, json};
use std::fmt::Write;

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<u8> {
    let status = admin::ask(&args.connection, async |mut admin| admin.status(StatusRequest {}).await)?;
    let text = if args.json {
        serde_json::to_string_pretty(&as_json(&status)).context("the status as JSON")? + "\n"
    } else {
        describe(&status)
    };
    screen::print(&text)?;
    Ok(exit::DONE)
}

fn phase(status: &StatusResponse) -> &'static str {
    match status.phase() {
        RunPhase::Unspecified => "unknown",
        RunPhase::Gathering => "gathering",
        RunPhase::Training => "training",
        RunPhase::Evaluating => "evaluating",
        RunPhase::Over => "over",
    }
}

fn as_json(status: &StatusResponse) -> Value {
    let worker = |w: &WorkerStatus| json!({"name": w.name, "rank": w.rank, "ready": w.ready, "slow": w.slow});
    json!({
        "run": status.run_name,
        "phase": phase(status),
        "stopping": status.stopping,
        "step": status.step,
        "total_steps": status.total_steps,
        "loss": status.loss,
        "tokens_per_second": status.tokens_per_second,
        "checkpoint": status.checkpoint,
        "generation": Some(&status.generation).filter(|g| !g.is_empty()),
        "workers_wanted": status.workers_wanted,
        "workers": status.workers.iter().map(worker).collect::<Vec<_>>(),
    })
}

/// A line a thing; what is not known yet is left out.
fn describe(status: &StatusResponse) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<12}{value}");
    };
    line("run", printable(&status.run_name));
    let stopping = if status.stopping { ", stopping" } else { "" };
    line("phase", format!("{}{stopping}", phase(status)));
    line("step", format!("{}/{}", status.step, status.total_steps));
    if let Some(loss) = status.loss {
        line("loss", format!("{loss:.4}"));
    }
    if let Some(speed) = status.tokens_per_second {
        line("speed", format!("{speed:.0} tokens/s"));
    }
    line("checkpoint", status.checkpoint.map_or_else(|| "none yet".to_owned(), |step| format!("step {step}")));
    if !status.generation.is_empty() {
        line("generation", printable(&status.generation));
    }
    line("workers", format!("{} of {}", status.workers.len(), status.workers_wanted));
    for worker in &status.workers {
        let state = match (worker.rank, worker.ready) {
            (Some(rank), _) if worker.slow => format!("rank {rank}, slow"),
            (Some(rank), _) => format!("rank {rank}"),
            (None, true) => "ready".to_owned(),
            (None, false) => "loading".to_owned(),
        };
        line("", format!("{}  {state}", printable(&worker.name)));
    }
    text
}

/// Workers choose their names: control characters in them must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusResponse {
        let worker = |name: &str, rank, ready| WorkerStatus { name: name.into(), rank, ready, slow: rank == Some(1) };
        StatusResponse {
            run_name: "demo".into(),
            phase: RunPhase::Training.into(),
            step: 7,
            total_steps: 30,
            loss: Some(1.25),
            tokens_per_second: Some(220.4),
            checkpoint: Some(5),
            generation: "1.2".into(),
            workers: vec![worker("a", Some(0), true), worker("c", Some(1), true), worker("b\u{1b}[2J", None, false)],
            workers_wanted: 3,
            stopping: false,
        }
    }

    #[test]
    fn a_person_reads_a_line_a_thing() {
        assert_eq!(
            describe(&status()),
            "run         demo\nphase       training\nstep        7/30\nloss        1.2500\nspeed       220 tokens/s\n\
             checkpoint  step 5\ngeneration  1.2\nworkers     3 of 3\n            a  rank 0\n            c  rank 1, slow\n            \
             b\u{fffd}[2J  loading\n"
        );
        let fresh = StatusResponse { total_steps: 30, stopping: true, ..StatusResponse::default() };
        assert!(describe(&fresh).contains("phase       unknown, stopping\nstep        0/30\ncheckpoint  none yet\n"));
    }

    #[test]
    fn a_program_reads_json() {
        let json = as_json(&status());
        assert_eq!(
            (&json["phase"], &json["step"], &json["generation"]),
            (&json!("training"), &json!(7), &json!("1.2"))
        );
        assert_eq!(json["workers"][0], json!({"name": "a", "rank": 0, "ready": true, "slow": false}));
        assert_eq!(as_json(&StatusResponse::default())["generation"], Value::Null);
    }
}
