//! A coordinator and its workers, each started by itself.

use crate::process::Process;
use crate::tiny::Scene;
use anyhow::Result;
use std::net::TcpListener;

/// A port that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts a coordinator; returns it with its URL once it listens.
///
/// # Errors
/// When it cannot be started or does not listen.
pub fn coordinator(scene: &Scene, dir: &str, settings: &[&str]) -> Result<(Process, String)> {
    let port = free_port()?;
    let bind = format!("cluster.bind=127.0.0.1:{port}");
    let mut command = scene.run("coordinator", dir, settings);
    command.args(["--set", &bind]);
    let process = scene.start(&format!("coordinator {dir}"), &mut command)?;
    process.line_with(&format!("127.0.0.1:{port}"))?;
    Ok((process, format!("http://127.0.0.1:{port}")))
}

/// Starts a worker of the coordinator at `url`.
///
/// # Errors
/// When it cannot be started.
pub fn worker(scene: &Scene, name: &str, url: &str, arguments: &[&str]) -> Result<Process> {
    worker_with(scene, name, url, arguments, &[])
}

/// As [`worker`], with variables in its environment.
///
/// # Errors
/// When it cannot be started.
pub fn worker_with(
    scene: &Scene,
    name: &str,
    url: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<Process> {
    let mut command = scene.ballast("worker");
    // All of them share this machine.
    command.env("NCCL_SOCKET_IFNAME", "lo");
    command.args(["--coordinator", url]).args(arguments).envs(variables.iter().copied());
    scene.start(name, &mut command)
}
