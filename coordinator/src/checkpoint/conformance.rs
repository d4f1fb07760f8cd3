//! What every [`Store`] must do. Run it against an empty store; it leaves it empty.

use super::store::{Store, StoreError};
use std::thread;

/// Runs the whole suite.
///
/// # Errors
/// The first expectation that the store does not meet, in words.
pub fn run(store: &impl Store) -> Result<(), String> {
    reads_what_was_written(store)?;
    replaces_on_put_but_not_on_create(store)?;
    lists_in_order_by_whole_segments(store)?;
    deletes_idempotently(store)?;
    refuses_names_that_lead_elsewhere(store)?;
    lets_exactly_one_create(store)?;
    ensure(store.list("").map_err(text)?.is_empty(), "the suite left objects behind")
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn text(error: StoreError) -> String {
    error.to_string()
}

fn reads_what_was_written(store: &impl Store) -> Result<(), String> {
    let large = vec![7; 3 << 20];
    for (name, bytes) in [("empty", &b""[..]), ("a/b.json", b"{}"), ("large", &large)] {
        store.put(name, bytes).map_err(text)?;
        ensure(store.get(name).map_err(text)? == bytes, "an object reads back different")?;
        store.delete(name).map_err(text)?;
    }
    ensure(matches!(store.get("missing"), Err(StoreError::NotFound(_))), "a missing object must be NotFound")
}

fn replaces_on_put_but_not_on_create(store: &impl Store) -> Result<(), String> {
    store.create("once", b"1").map_err(text)?;
    ensure(matches!(store.create("once", b"2"), Err(StoreError::Exists(_))), "create replaced an object")?;
    ensure(store.get("once").map_err(text)? == b"1"[..], "a failed create changed the object")?;
    store.put("once", b"3").map_err(text)?;
    ensure(store.get("once").map_err(text)? == b"3"[..], "put did not replace the object")?;
    store.delete("once").map_err(text)
}

fn lists_in_order_by_whole_segments(store: &impl Store) -> Result<(), String> {
    let names = ["d/b", "d/a", "d/c/x", "dd/a", "e"];
    for name in names {
        store.put(name, b"").map_err(text)?;
    }
    ensure(store.list("d").map_err(text)? == ["d/a", "d/b", "d/c/x"], "list of a prefix")?;
    ensure(store.list("none").map_err(text)?.is_empty(), "list of a prefix that nothing has")?;
    ensure(store.list("").map_err(text)? == ["d/a", "d/b", "d/c/x", "dd/a", "e"], "list of everything")?;
    names.iter().try_for_each(|name| store.delete(name).map_err(text))
}

fn deletes_idempotently(store: &impl Store) -> Result<(), String> {
    store.put("a/gone", b"1").map_err(text)?;
    store.put("a/kept", b"1").map_err(text)?;
    store.delete("a/gone").map_err(text)?;
    store.delete("a/gone").map_err(text)?;
    ensure(store.list("a").map_err(text)? == ["a/kept"], "delete removed the wrong object")?;
    store.delete("a/kept").map_err(text)
}

fn refuses_names_that_lead_elsewhere(store: &impl Store) -> Result<(), String> {
    for name in ["", "/etc/x", "a//b", "a/../b", "..", ".", "a/.hidden", "a\\b", "a\0b", "a b", "a/", "é"] {
        ensure(matches!(store.put(name, b"1"), Err(StoreError::Name(_))), &format!("put accepted {name:?}"))?;
        ensure(matches!(store.create(name, b"1"), Err(StoreError::Name(_))), &format!("create accepted {name:?}"))?;
        ensure(matches!(store.get(name), Err(StoreError::Name(_))), &format!("get accepted {name:?}"))?;
        ensure(matches!(store.delete(name), Err(StoreError::Name(_))), &format!("delete accepted {name:?}"))?;
    }
    Ok(())
}

fn lets_exactly_one_create(store: &impl Store) -> Result<(), String> {
    let winners = thread::scope(|scope| {
        let contenders: Vec<_> =
            (0..8u8).map(|n| scope.spawn(move || store.create("contended", &[n]).is_ok())).collect();
        contenders.into_iter().filter_map(|c| c.join().ok()).filter(|won| *won).count()
    });
    ensure(winners == 1, "not exactly one of eight creators succeeded")?;
    store.delete("contended").map_err(text)
}
