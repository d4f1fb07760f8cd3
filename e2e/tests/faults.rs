//! Processes that die, and workers that do not belong.

use anyhow::{Context, Result, ensure};
use ballast_e2e::cluster::{coordinator, free_port, worker};
use ballast_e2e::process::{Process, send, until, with_arguments};
use ballast_e2e::tiny::play;
use ballast_proto::v1::JoinRequest;
use ballast_proto::v1::membership_client::MembershipClient;
use ballast_proto::{ErrorCode, Failure};
use nix::sys::signal::Signal;
use tonic::Status;

#[test]
fn coordinator_and_workers_as_separate_processes_give_the_same_adapter_as_train() -> Result<()> {
    play(|scene| {
        let together = scene.train("together", &["cluster.workers=2"])?;

        let (mut coordinator, url) = coordinator(scene, "apart", &["cluster.workers=2"])?;
        let mut workers = [worker(scene, "worker a", &url, &[])?, worker(scene, "worker b", &url, &[])?];
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        for worker in &mut workers {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        ensure!(scene.adapter_sha256("apart")? == together);
        Ok(())
    })
}

#[test]
fn a_worker_may_start_before_its_coordinator() -> Result<()> {
    play(|scene| {
        let port = free_port()?;
        let mut worker = worker(scene, "early worker", &format!("http://127.0.0.1:{port}"), &[])?;
        let bind = format!("cluster.bind=127.0.0.1:{port}");
        let mut coordinator =
            scene.start("coordinator", &mut scene.run("coordinator", "late", &["cluster.workers=1", &bind]))?;
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        Ok(())
    })
}

#[test]
fn a_worker_with_another_base_model_is_refused_and_the_run_goes_on_without_it() -> Result<()> {
    play(|scene| {
        let other = scene.other_model()?;
        let (mut coordinator, url) = coordinator(scene, "run", &["cluster.workers=1"])?;
        let other = other.to_str().context("path")?;
        let mut stranger = worker(scene, "stranger", &url, &["--model", other])?;
        ensure!(stranger.exit_code()? == 1, "{}", stranger.printed());
        ensure!(stranger.printed().contains("B3007"), "{}", stranger.printed());

        let mut right = worker(scene, "worker", &url, &[])?;
        ensure!(right.exit_code()? == 0, "{}", right.printed());
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        Ok(())
    })
}

#[test]
fn a_worker_too_many_is_told_so() -> Result<()> {
    play(|scene| {
        let (coordinator, url) = coordinator(scene, "run", &["cluster.workers=2"])?;
        let first = worker(scene, "first", &url, &[])?;
        let second = worker(scene, "second", &url, &[])?;
        first.line_with("joined")?;
        second.line_with("joined")?;
        let mut third = worker(scene, "third", &url, &[])?;
        ensure!(third.exit_code()? == 75, "{}", third.printed());
        ensure!(third.printed().contains("B4012"), "{}", third.printed());
        drop(coordinator);
        Ok(())
    })
}

#[test]
fn a_worker_of_another_version_is_refused() -> Result<()> {
    play(|scene| {
        let (_coordinator, url) = coordinator(scene, "run", &["cluster.workers=1"])?;
        let request =
            JoinRequest { version: "0.0.1".into(), display_name: "old".into(), ring_address: "127.0.0.1:9".into() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let refused = runtime.block_on(async {
            let mut client = MembershipClient::connect(url).await.map_err(|e| Status::unavailable(e.to_string()))?;
            client.join(request).await
        });
        let failure = Failure::from(refused.err().context("an old worker was admitted")?);
        ensure!(failure.code == ErrorCode::VersionMismatch && failure.message.contains("0.0.1"), "{failure}");
        Ok(())
    })
}

#[test]
fn a_worker_that_falls_silent_is_named_and_may_come_back() -> Result<()> {
    play(|scene| {
        let leases =
            ["cluster.workers=2", "train.max_steps=1000000", "cluster.heartbeat_ms=100", "cluster.lease_ms=1000"];
        let (mut coordinator, url) = coordinator(scene, "run", &leases)?;
        let mut healthy = worker(scene, "healthy", &url, &["--name", "healthy"])?;
        let mut frozen = worker(scene, "frozen", &url, &["--name", "frozen"])?;
        coordinator.line_with("checkpoint of step")?;
        frozen.signal(Signal::SIGSTOP)?;
        coordinator.line_with("(frozen) was silent")?;
        coordinator.line(|line| line.starts_with("generation 1.2: 1 in the world"))?;
        frozen.signal(Signal::SIGCONT)?;
        coordinator.line(|line| line.starts_with("generation 1.3: 2 in the world"))?;
        coordinator.signal(Signal::SIGTERM)?;
        ensure!(coordinator.exit_code()? == 75, "{}", coordinator.printed());
        for worker in [&mut healthy, &mut frozen] {
            ensure!(worker.exit_code()? == 75, "{}", worker.printed());
        }
        Ok(())
    })
}

#[test]
fn a_worker_that_is_asked_to_stop_hands_over_and_the_last_one_leaves_a_checkpoint() -> Result<()> {
    play(|scene| {
        let settings = ["cluster.workers=2", "train.max_steps=200", "checkpoint.every=0", "lora.dropout=0.1"];
        let expected = scene.train("whole", &settings)?;
        let (mut coordinator, url) = coordinator(scene, "run", &settings)?;
        let mut a = worker(scene, "a", &url, &[])?;
        let mut b = worker(scene, "b", &url, &[])?;
        coordinator.line_with("step 3/")?;
        a.signal(Signal::SIGTERM)?;
        ensure!(a.exit_code()? == 75, "{}", a.printed());
        coordinator.line(|line| line.starts_with("generation 1.2: 1 in the world"))?;
        b.signal(Signal::SIGTERM)?;
        ensure!(b.exit_code()? == 75, "{}", b.printed());
        coordinator.line_with("checkpoint of step")?;
        coordinator.line_with("waiting: 0 of at least 1 workers are ready")?;
        let mut c = worker(scene, "c", &url, &[])?;
        let mut d = worker(scene, "d", &url, &[])?;
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        ensure!((c.exit_code()?, d.exit_code()?) == (0, 0));
        ensure!(scene.adapter_sha256("run")? == expected);
        ensure!(
            scene.audit("run")?["verified"]["redone"] == 0,
            "nothing is trained twice when everyone leaves in order"
        );
        Ok(())
    })
}

/// The coordinator dies and comes back on its directory; the worker keeps its state meanwhile.
#[test]
fn a_new_coordinator_goes_on_with_the_workers_of_the_old_one() -> Result<()> {
    play(|scene| {
        let port = free_port()?;
        let bind = format!("cluster.bind=127.0.0.1:{port}");
        let settings = ["cluster.workers=2", "train.max_steps=150", "checkpoint.every=0", &bind];
        let expected = scene.train("whole", &settings)?;
        let start = || scene.start("coordinator", &mut scene.run("coordinator", "run", &settings));
        let mut first = start()?;
        let url = format!("http://127.0.0.1:{port}");
        let mut workers = [worker(scene, "a", &url, &[])?, worker(scene, "b", &url, &[])?];
        first.line_with("step 10/")?;
        let elsewhere = format!("cluster.bind=127.0.0.1:{}", free_port()?);
        let settings_of_second = [settings[0], settings[1], settings[2], &elsewhere];
        let mut second = scene.start("second", &mut scene.run("coordinator", "run", &settings_of_second))?;
        ensure!(second.exit_code()? == 1 && second.printed().contains("B5004"), "{}", second.printed());
        first.signal(Signal::SIGKILL)?;
        first.exit_code()?;
        let mut again = start()?;
        ensure!(again.exit_code()? == 0, "{}", again.printed());
        for worker in &mut workers {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        ensure!(scene.adapter_sha256("run")? == expected);
        let audit = scene.audit("run")?;
        ensure!(audit["chapters"].as_array().is_some_and(|all| all.len() == 2), "{audit}");
        ensure!(audit["verified"]["redone"] == 0, "the workers had it all: {audit}");
        Ok(())
    })
}

#[test]
fn a_wider_ring_address_needs_insecure() -> Result<()> {
    play(|scene| {
        let mut worker = worker(scene, "worker", "http://127.0.0.1:9", &["--ring-bind", "0.0.0.0:0"])?;
        ensure!(worker.exit_code()? == 64, "{}", worker.printed());
        ensure!(worker.printed().contains("B1007"), "{}", worker.printed());
        Ok(())
    })
}

/// The value of a process's argument.
fn argument(process: u32, name: &str) -> Result<String> {
    let line = std::fs::read_to_string(format!("/proc/{process}/cmdline"))?;
    line.split('\0').skip_while(|word| *word != name).nth(1).map(str::to_owned).with_context(|| line.clone())
}

/// Workers that a `ballast train` started.
fn workers_of(train: &Process) -> Result<Vec<u32>> {
    let all = with_arguments(&["worker"])?;
    let parent = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // The fields after the command, which stands in parentheses: state, then parent.
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok())
    };
    Ok(all.into_iter().filter(|process| parent(process) == Some(train.id())).collect())
}

#[test]
fn a_killed_local_worker_is_started_again() -> Result<()> {
    play(|scene| {
        let long = ["train.max_steps=100", "cluster.workers=2"];
        let undisturbed = scene.train("whole", &long)?;

        let mut train = scene.start_train("run", &long)?;
        train.line_with("checkpoint of step")?;
        let workers = workers_of(&train)?;
        ensure!(workers.len() == 2, "{workers:?}");
        let victim = workers[1];
        // `local-1` in the coordinator's words is `local worker 1` in the supervisor's.
        let name = argument(victim, "--name")?.replace("local-", "local worker ");
        send(victim, Signal::SIGKILL)?;
        train.line_with(&format!("started again: {name}"))?;
        let code = train.exit_code()?;
        ensure!(code == 0, "ended with {code}:\n{}", train.printed());
        ensure!(scene.adapter_sha256("run")? == undisturbed);
        Ok(())
    })
}

#[test]
fn local_workers_that_die_again_and_again_end_the_run() -> Result<()> {
    play(|scene| {
        let mut train = scene.start_train("run", &["train.max_steps=1000000", "checkpoint.every=0"])?;
        train.line_with("step 2/")?;
        until("the run to end", || {
            if let Some(code) = train.ended()? {
                return Ok(Some(code));
            }
            for worker in workers_of(&train)? {
                // It may be gone already.
                let _ = send(worker, Signal::SIGKILL);
            }
            Ok(None)
        })
        .and_then(|code| {
            // There is no checkpoint that another start would go on from.
            ensure!(code == 1, "{}", train.printed());
            ensure!(train.printed().contains("times in succession"), "{}", train.printed());
            ensure!(train.printed().contains("was ended by signal 9"), "{}", train.printed());
            Ok(())
        })
    })
}

fn workers_gone(workers: &[u32]) -> Result<bool> {
    let alive = with_arguments(&["worker"])?;
    Ok(workers.iter().all(|worker| !alive.contains(worker)))
}

#[test]
fn workers_of_a_killed_train_end_by_themselves() -> Result<()> {
    play(|scene| {
        let mut train = scene.start_train("run", &["train.max_steps=1000000", "cluster.workers=2"])?;
        let workers = until("two workers", || Ok(Some(workers_of(&train)?).filter(|workers| workers.len() == 2)))?;
        train.line_with("checkpoint of step")?;
        train.signal(Signal::SIGKILL)?;
        train.exit_code()?;
        until("the workers to end", || Ok(workers_gone(&workers)?.then_some(())))?;
        Ok(())
    })
}
