//! Runs whose checkpoints live in a bucket, on a real server that speaks S3 (see `make s3-server`).

use anyhow::{Context, Result, ensure};
use ballast_e2e::tiny::{Scene, play};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends with its standard input, and so with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// With a bucket `ballast`; `None`, and a word about it, where there is no such server.
    fn start() -> Result<Option<Self>> {
        let Some(python) = std::env::var_os("BALLAST_TEST_S3") else {
            println!("skipped: needs BALLAST_TEST_S3, an interpreter with moto (make s3-server)");
            return Ok(None);
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coordinator/tests/remote_stores/s3_server.py");
        let mut process =
            Command::new(python).arg(script).arg("ballast").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("the server said {line:?}"))?;
        Ok(Some(Self { process, port }))
    }

    /// `ballast train` into this run directory, with checkpoints in the bucket.
    fn train(&self, scene: &Scene, dir: &str, settings: &[&str]) -> Command {
        let settings = [settings, &["checkpoint.store=s3://ballast/runs/tiny"]].concat();
        let mut command = scene.run("train", dir, &settings);
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "SECRET");
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn a_killed_run_resumes_from_a_bucket_to_the_same_adapter_but_not_without_its_ledger() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    play(|scene| {
        let long = ["train.max_steps=30", "cluster.workers=2"];
        let undisturbed = scene.train("whole", &long)?;

        let mut killed = scene.start("killed", &mut server.train(scene, "run", &long))?;
        killed.line_with("checkpoint of step 4: s3://ballast/runs/tiny/checkpoints/step-")?;
        killed.signal(Signal::SIGKILL)?;
        killed.exit_code()?;
        ensure!(!scene.path("run/checkpoints").exists() && !scene.path("run/run.json").exists());

        let mut elsewhere = scene.start("elsewhere", &mut server.train(scene, "other", &long))?;
        ensure!(elsewhere.exit_code()? == 1, "{}", elsewhere.printed());
        ensure!(elsewhere.printed().contains("B5007"), "{}", elsewhere.printed());

        // The ledger is all that another machine needs.
        fs::copy(scene.path("run/ledger"), scene.path("other/ledger"))?;
        let mut resumed = scene.start("resumed", &mut server.train(scene, "other", &long))?;
        ensure!(resumed.exit_code()? == 0, "{}", resumed.printed());
        ensure!(scene.adapter_sha256("other")? == undisturbed);
        for process in [&killed, &elsewhere, &resumed] {
            ensure!(!process.printed().contains("SECRET"), "a secret was printed");
        }

        // From here on the first machine's ledger is out of date.
        let mut outdated = scene.start("outdated", &mut server.train(scene, "run", &long))?;
        ensure!(outdated.exit_code()? == 1, "{}", outdated.printed());
        ensure!(outdated.printed().contains("was made by coordinator 2"), "{}", outdated.printed());
        Ok(())
    })
}
