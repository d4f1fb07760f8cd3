//! A coordinator and two workers on three hosts, which are network namespaces.

use anyhow::{Context, Result, ensure};
use ballast_e2e::hosts::Hosts;
use ballast_e2e::tiny::play;

const PORT: u16 = 7070;

#[test]
fn three_hosts_give_the_same_adapter_as_one() -> Result<()> {
    play(|scene| {
        let Some(hosts) = Hosts::on_switch(3)? else { return Ok(()) };
        let on_one = scene.train("one", &["cluster.workers=2"])?;

        let bind = format!("cluster.bind=10.98.7.1:{PORT}");
        let refused = scene.run("coordinator", "three", &["cluster.workers=2", &bind]);
        let mut refused = scene.start("coordinator without --insecure", &mut hosts.on(1, &refused))?;
        ensure!(refused.exit_code()? == 64, "{}", refused.printed());
        ensure!(refused.printed().contains("B1007"), "{}", refused.printed());

        let mut coordinator = scene.run("coordinator", "three", &["cluster.workers=2", &bind]);
        coordinator.arg("--insecure");
        let mut coordinator = scene.start("coordinator", &mut hosts.on(1, &coordinator))?;
        let mut workers = Vec::new();
        for host in [2, 3] {
            let mut worker = scene.ballast("worker");
            worker.args(["--coordinator", &format!("http://10.98.7.1:{PORT}"), "--insecure"]);
            // One advertises what it binds, the other binds everything and names itself.
            if host == 2 {
                worker.args(["--ring-bind", "10.98.7.2:0"]);
            } else {
                worker.args(["--ring-bind", "0.0.0.0:0", "--ring-advertise", "10.98.7.3"]);
            }
            workers.push(scene.start(&format!("worker on host {host}"), &mut hosts.on(host, &worker))?);
        }
        for worker in &mut workers {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        let on_three = scene.adapter_sha256("three").context("the run on three hosts")?;
        ensure!(on_three == on_one, "{on_three} is not {on_one}");
        Ok(())
    })
}
