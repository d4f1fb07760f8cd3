//! Embeds the CUDA artifacts of `make cuda` when the feature `cuda` is on.
//!
//! They lie in `BALLAST_CUDA_ARTIFACTS`, else in `cuda` of the target directory, as `<file>.ptx` and
//! `<file>.sm_<arch>.cubin`. What is generated is a list of `(file, form, bytes)` for `src/cuda/modules.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=BALLAST_CUDA_ARTIFACTS");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(message) = embed() {
        println!("cargo::error={message}");
    }
}

fn embed() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let directory = directory(&out);
    println!("cargo::rerun-if-changed={}", directory.display());
    let artifacts = artifacts(&directory).map_err(|error| {
        format!("the feature `cuda` embeds compiled kernels, but {}: {error}; run `make cuda`", directory.display())
    })?;
    let mut source = String::from("&[\n");
    for (file, form, path) in artifacts {
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(source, "    ({file:?}, {form:?}, include_bytes!({path:?})),").map_err(|error| error.to_string())?;
    }
    source.push_str("]\n");
    let generated = out.join("artifacts.rs");
    fs::write(&generated, source).map_err(|error| format!("{}: {error}", generated.display()))
}

/// Where the artifacts lie. `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
fn directory(out: &Path) -> PathBuf {
    if let Some(directory) = env::var_os("BALLAST_CUDA_ARTIFACTS") {
        return directory.into();
    }
    let target = out.ancestors().nth(4).unwrap_or(out);
    target.join("cuda")
}

/// File, form (`ptx`, `sm_80`, ...) and path of each artifact, sorted.
fn artifacts(directory: &Path) -> Result<Vec<(String, String, PathBuf)>, String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(file) = name.strip_suffix(".ptx") {
            found.push((file.to_owned(), "ptx".to_owned(), path));
        } else if let Some((file, form)) = name.strip_suffix(".cubin").and_then(|stem| stem.split_once('.')) {
            found.push((file.to_owned(), form.to_owned(), path));
        }
    }
    if !found.iter().any(|(_, form, _)| form == "ptx") {
        return Err("holds no PTX".to_owned());
    }
    found.sort();
    Ok(found)
}
