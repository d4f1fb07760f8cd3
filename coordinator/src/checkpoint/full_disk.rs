//! Checkpoints and ledger on a real disk that has no room, or cannot be written.
//!
//! The disk is a tmpfs of a mebibyte in a mount namespace of its own, so the tests run themselves once more in there.

use super::{
    LocalStore, Store,
    save::tests::{newest_step, put, try_put},
};
use crate::ledger::{LEDGER, Ledger, SampleSet, StepRecord};
use ballast_proto::ErrorCode;
use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

const DISK: &str = "BALLAST_TEST_DISK";
const PAGE: usize = 4096;

/// Runs one of the ignored tests below on a small disk of its own.
fn on_a_small_disk(test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=1m none \"$BALLAST_TEST_DISK\"";
    let namespace = |script: String| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script]).env(DISK, directory.path());
        command.arg("sh").arg(env::current_exe().unwrap()).output()
    };
    match namespace(mount.to_owned()) {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped: {test} needs a mount namespace: {other:?}");
            return;
        }
    }
    let name = format!("checkpoint::full_disk::{test}");
    let output = namespace(format!("{mount} && exec \"$1\" --exact {name} --ignored --nocapture")).unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{output:?}");
}

fn disk() -> PathBuf {
    env::var_os(DISK).unwrap().into()
}

/// Fills the disk but for so many pages.
fn fill(filler: &Path, pages_left: usize) {
    let mut file = File::create(filler).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[0; PAGE]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let written = file.metadata().unwrap().len();
    file.set_len(written - (pages_left * PAGE) as u64).unwrap();
}

fn record(step: u64) -> StepRecord {
    StepRecord {
        step,
        data_epoch: 0,
        generation: (1, 1),
        samples: SampleSet::new([step as u32 - 1]).unwrap(),
        loss: 0.5,
        loss_tokens: 1,
        tokens: 1,
        // Long, so that a record fills pages.
        state_sha256: "0".repeat(PAGE),
        at_ms: 0,
        skipped: None,
    }
}

#[test]
fn a_full_disk_costs_only_what_was_being_written() {
    on_a_small_disk("on_a_full_disk");
}

#[test]
#[ignore = "on a small disk only"]
fn on_a_full_disk() {
    let (store, filler) = (LocalStore::open(&disk().join("run")).unwrap(), disk().join("filler"));
    put(&store, 1, 1);
    let mut refused = 0;
    for pages_left in 0..12 {
        fill(&filler, pages_left);
        let saved = try_put(&store, 2, 1);
        fs::remove_file(&filler).unwrap();
        let Err(failure) = saved else { break };
        assert_eq!(failure.code, ErrorCode::StorageFailed);
        assert!(failure.message.contains("No space left on device"), "{failure}");
        let published = store.get("checkpoints/step-00000002.g1/manifest.json").is_ok();
        assert_eq!(newest_step(&store), (Some(if published { 2 } else { 1 }), 0));
        refused += 1;
    }
    assert!(refused >= 3, "room was missing for several files, one after the other: {refused}");
    put(&store, 2, 1);
    assert_eq!(newest_step(&store), (Some(2), 0));
    let hidden = fs::read_dir(disk().join("run/checkpoints/step-00000002.g1")).unwrap();
    assert_eq!(hidden.count(), 5, "nothing half-written is left");
}

#[test]
fn a_full_disk_leaves_the_ledger_with_every_step_it_acknowledged() {
    on_a_small_disk("a_ledger_on_a_full_disk");
}

#[test]
#[ignore = "on a small disk only"]
fn a_ledger_on_a_full_disk() {
    let (path, filler) = (disk().join(LEDGER), disk().join("filler"));
    let mut ledger = Ledger::open(&path).unwrap().0;
    ledger.start(1, "recipe", 100, 0).unwrap();
    ledger.commit(record(1)).unwrap();
    fill(&filler, 1);
    let mut step = 2;
    let error = loop {
        match ledger.commit(record(step)) {
            Ok(()) => step += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("No space left on device"), "{error}");
    fs::remove_file(&filler).unwrap();
    // As at the end of a run: how it ended is written after the half line.
    ledger.end(1, Some(ErrorCode::StorageFailed), "the disk is full").unwrap();
    let (reopened, _) = Ledger::open(&path).unwrap();
    assert_eq!(reopened.head(), step - 1);
    assert_eq!(reopened.verify(100).unwrap().head, step - 1);
}

#[test]
fn a_disk_that_cannot_be_written_costs_no_checkpoint() {
    on_a_small_disk("on_a_read_only_disk");
}

#[test]
#[ignore = "on a small disk only"]
fn on_a_read_only_disk() {
    let store = LocalStore::open(&disk().join("run")).unwrap();
    put(&store, 1, 1);
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(disk()).status().unwrap();
        assert!(done.success());
    };
    remount("ro");
    let failure = try_put(&store, 2, 1).unwrap_err();
    assert_eq!(failure.code, ErrorCode::StorageFailed);
    assert!(failure.message.contains("Read-only file system"), "{failure}");
    assert_eq!(newest_step(&store), (Some(1), 0));
    assert!(store.delete("checkpoints/step-00000001.g1/manifest.json").is_err());
    remount("rw");
    put(&store, 2, 1);
    assert_eq!(newest_step(&store), (Some(2), 0));
}
