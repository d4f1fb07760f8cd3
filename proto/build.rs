//! Compiles `proto/ballast/v1/*.proto` with protox, so that no protoc is needed.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("ballast/v1"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "proto"));
    files.sort();
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, [&root])?;
    // Secrets have a Debug of their own, which shows nothing of them.
    tonic_prost_build::configure().bytes(".").skip_debug(["ballast.v1.CommunicatorId"]).compile_fds(descriptors)?;
    Ok(())
}
