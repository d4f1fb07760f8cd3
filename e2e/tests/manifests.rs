//! The Kubernetes manifests' own words, as real processes: their arguments, their `[security]` section and their probe, with the files of
//! `ballast certs`, train behind mutual TLS and tokens to the adapter that an open run gives.
#![allow(missing_docs, reason = "tests")]

use anyhow::{Context, Result, ensure};
use ballast_e2e::cluster;
use ballast_e2e::tiny::{Scene, play};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where the manifests mount the files of `ballast certs`.
const MOUNTED: &str = "/etc/ballast-security";
/// The coordinator's address in the cluster.
const SERVICE: &str = "https://coordinator:7070";

fn manifest(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The files of `ballast certs` that a mount of the kustomization holds.
fn mounted(kustomization: &str, secret: &str) -> Result<Vec<String>> {
    let files = kustomization.split_once(&format!("name: {secret}\n")).and_then(|(_, rest)| rest.lines().next());
    let files = files.and_then(|line| line.trim().strip_prefix("files: [")?.strip_suffix(']'));
    let files = files.with_context(|| format!("{secret} has no files"))?;
    files.split(", ").map(|file| Ok(file.strip_prefix("certs/").context("not of certs")?.to_owned())).collect()
}

/// As the pods see them: a directory for each secret. Returns the paths of the coordinator's and the worker's.
fn secrets(scene: &Scene) -> Result<[String; 2]> {
    let certs = scene.ballast("certs").args(["--out", "certs", "--host", "coordinator"]).output()?;
    ensure!(certs.status.success(), "{}", String::from_utf8_lossy(&certs.stderr));
    let kustomization = manifest("kustomization.yaml")?;
    let mount = |secret: &str, manifest_of: &str| -> Result<String> {
        let mode = manifest(manifest_of)?;
        let mode = mode.lines().find_map(|line| line.trim().strip_prefix("defaultMode: ")).context("no mode")?;
        let mode = fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?);
        let directory = scene.path(secret);
        fs::create_dir(&directory)?;
        for file in mounted(&kustomization, secret)? {
            let copy = directory.join(&file);
            fs::copy(scene.path("certs").join(&file), &copy).with_context(|| file.clone())?;
            fs::set_permissions(&copy, mode.clone())?;
        }
        Ok(directory.display().to_string())
    };
    Ok([mount("coordinator-security", "coordinator.yaml")?, mount("worker-security", "worker.yaml")?])
}

/// The options of a manifest, for files that lie elsewhere and a coordinator and workers on this machine.
fn arguments(manifest: &str, mount: &str, url: &str) -> Vec<String> {
    let listed = manifest.lines().filter_map(|line| line.trim().strip_prefix("- --"));
    let here = |word: &str| {
        let word = word.replace(MOUNTED, mount).replace(SERVICE, url).replace("https://localhost:7070", url);
        word.replace("0.0.0.0:7071", "127.0.0.1:0").replace("$(POD_IP):7071", "127.0.0.1")
    };
    // The probe stands once, under an anchor.
    let distinct: BTreeSet<String> = listed.map(|word| format!("--{}", here(word))).collect();
    distinct.into_iter().collect()
}

#[test]
fn the_manifests_train_behind_mutual_tls_and_tokens() -> Result<()> {
    play(|scene| {
        let open = scene.train("open", &["cluster.workers=2"])?;
        let [coordinator_files, worker_files] = secrets(scene)?;
        let run_file = manifest("run.toml")?;
        let section = run_file.split_once("[security]\n").context("no [security] section")?.1;
        let lines = section.lines().take_while(|line| !line.is_empty());
        let settings: Vec<String> = lines
            .map(|line| {
                format!("security.{}", line.replace(" = ", "=").replace('"', "").replace(MOUNTED, &coordinator_files))
            })
            .chain(["cluster.workers=2".to_owned()])
            .collect();
        ensure!(settings.len() == 5 && !run_file.contains("insecure"), "{settings:?}");
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();

        let (mut coordinator, http) = cluster::coordinator(scene, "closed", &settings)?;
        let url = http.replace("http://127.0.0.1", "https://localhost");
        let probe = arguments(&manifest("coordinator.yaml")?, &coordinator_files, &url);
        let status = scene.ballast("status").args(&probe).output()?;
        ensure!(status.status.success(), "{probe:?}: {}", String::from_utf8_lossy(&status.stderr));

        // By the coordinator's name in the cluster, to which this machine has no address.
        let mut workers = Vec::new();
        let words = arguments(&manifest("worker.yaml")?, &worker_files, &url);
        for name in ["worker-0", "worker-1"] {
            let mut command = scene.ballast("worker");
            command.args(&words).args(["--server-name", "coordinator"]);
            workers.push(scene.start(name, &mut command)?);
        }
        for process in workers.iter_mut().chain([&mut coordinator]) {
            let code = process.exit_code()?;
            ensure!(code == 0, "ended with {code}:\n{}", process.printed());
        }
        ensure!(scene.adapter_sha256("closed")? == open, "another adapter than that of the open run");
        ensure!(scene.audit("closed")?["verified"]["head"].as_u64() > Some(0));
        Ok(())
    })
}
