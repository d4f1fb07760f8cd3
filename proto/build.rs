//! Compiles `proto/ballast/v1/*.proto` with protox, so that no protoc is needed.

use prost_types::FileDescriptorSet;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("ballast/v1"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "proto"));
    files.sort();
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, [&root])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("methods.rs"), methods(&descriptors))?;
    // Secrets have a Debug of their own, which shows nothing of them.
    tonic_prost_build::configure().bytes(".").skip_debug(["ballast.v1.CommunicatorId"]).compile_fds(descriptors)?;
    Ok(())
}

/// The paths of all methods, as a constant: whoever decides about methods can be held to this list.
fn methods(descriptors: &FileDescriptorSet) -> String {
    let services = descriptors.file.iter().flat_map(|file| file.service.iter().map(move |s| (file.package(), s)));
    let paths = services.flat_map(|(package, service)| {
        service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
    });
    let paths: Vec<String> = paths.collect();
    format!("/// The path of every method of every service.\npub const METHODS: &[&str] = &{paths:?};\n")
}
