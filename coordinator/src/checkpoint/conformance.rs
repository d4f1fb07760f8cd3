//! What every [`Store`] must do. Run it against an empty store; it leaves it empty.

use super::store::{Store, StoreError};
use std::{sync::Barrier, thread};

/// Bytes of the large objects: more than any store here sends in one piece.
const LARGE: usize = (9 << 20) + 13;

/// Runs the whole suite.
///
/// # Errors
/// The first expectation that the store does not meet, in words.
pub fn run(store: &impl Store) -> Result<(), String> {
    ensure(store.list("").map_err(text)?.is_empty(), "the store is not empty to begin with")?;
    reads_what_was_written(store)?;
    knows_what_is_missing(store)?;
    replaces_on_put_but_not_on_create(store)?;
    lists_in_order_by_whole_segments(store)?;
    deletes_idempotently(store)?;
    refuses_names_that_lead_elsewhere(store)?;
    lets_exactly_one_of_two_create(store)?;
    lets_exactly_one_of_many_create(store)?;
    shows_old_or_new_and_nothing_between(store)?;
    ensure(store.list("").map_err(text)?.is_empty(), "the suite left objects behind")
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn text(error: StoreError) -> String {
    error.to_string()
}

/// Bytes in which no part is like another.
fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8 ^ salt).collect()
}

fn reads_what_was_written(store: &impl Store) -> Result<(), String> {
    let large = pattern(LARGE, 0);
    let names =
        [("empty", &b""[..]), ("a/b.json", b"{}"), ("deep/er/and-er/still_1.x", b"\0\n\xff"), ("large", &large)];
    for (name, bytes) in names {
        store.put(name, bytes).map_err(text)?;
        ensure(store.get(name).map_err(text)? == bytes, &format!("{name} reads back different"))?;
        store.delete(name).map_err(text)?;
        store.create(name, bytes).map_err(text)?;
        ensure(store.get(name).map_err(text)? == bytes, &format!("{name}, created, reads back different"))?;
        store.delete(name).map_err(text)?;
    }
    Ok(())
}

fn knows_what_is_missing(store: &impl Store) -> Result<(), String> {
    let missing = |name: &str| match store.get(name) {
        Err(StoreError::NotFound(named)) if named == name => Ok(()),
        other => Err(format!("reading the missing {name} gave {other:?}")),
    };
    missing("nothing")?;
    store.put("some/thing", b"1").map_err(text)?;
    // Neither a neighbour nor a prefix is an object.
    missing("some/thin")?;
    missing("some/thing2")?;
    missing("some")?;
    store.delete("some/thing").map_err(text)?;
    missing("some/thing")
}

fn replaces_on_put_but_not_on_create(store: &impl Store) -> Result<(), String> {
    store.create("once", b"1").map_err(text)?;
    ensure(matches!(store.create("once", b"2"), Err(StoreError::Exists(_))), "create replaced an object")?;
    ensure(matches!(store.create("once", b"1"), Err(StoreError::Exists(_))), "create of equal bytes must fail too")?;
    ensure(store.get("once").map_err(text)? == b"1"[..], "a failed create changed the object")?;
    for bytes in [&pattern(LARGE, 1)[..], b"short", b""] {
        store.put("once", bytes).map_err(text)?;
        ensure(store.get("once").map_err(text)? == bytes, "put did not replace the object, or not all of it")?;
    }
    ensure(matches!(store.create("once", b"2"), Err(StoreError::Exists(_))), "create replaced an empty object")?;
    store.delete("once").map_err(text)?;
    store.create("once", b"4").map_err(text)?;
    store.delete("once").map_err(text)
}

fn lists_in_order_by_whole_segments(store: &impl Store) -> Result<(), String> {
    let names = ["d/b", "d/a", "d/c/x", "dd/a", "e"];
    for name in names {
        store.put(name, b"").map_err(text)?;
    }
    ensure(store.list("d").map_err(text)? == ["d/a", "d/b", "d/c/x"], "list of a prefix")?;
    ensure(store.list("d/c").map_err(text)? == ["d/c/x"], "list of a longer prefix")?;
    ensure(store.list("none").map_err(text)?.is_empty(), "list of a prefix that nothing has")?;
    ensure(store.list("e").map_err(text)?.is_empty(), "an object is not below itself")?;
    ensure(store.list("").map_err(text)? == ["d/a", "d/b", "d/c/x", "dd/a", "e"], "list of everything")?;
    names.iter().try_for_each(|name| store.delete(name).map_err(text))
}

fn deletes_idempotently(store: &impl Store) -> Result<(), String> {
    store.put("a/gone", b"1").map_err(text)?;
    store.put("a/kept", b"1").map_err(text)?;
    store.delete("a/gone").map_err(text)?;
    store.delete("a/gone").map_err(text)?;
    ensure(store.list("a").map_err(text)? == ["a/kept"], "delete removed the wrong object")?;
    store.delete("a/kept").map_err(text)?;
    store.delete("never/was").map_err(text)
}

fn refuses_names_that_lead_elsewhere(store: &impl Store) -> Result<(), String> {
    let names = [
        "",
        "/",
        "/etc/x",
        "..",
        ".",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\\b",
        "a\0b",
        "a b",
        "é",
        "a?b",
        "a%2fb",
    ];
    for name in names {
        ensure(matches!(store.put(name, b"1"), Err(StoreError::Name(_))), &format!("put accepted {name:?}"))?;
        ensure(matches!(store.create(name, b"1"), Err(StoreError::Name(_))), &format!("create accepted {name:?}"))?;
        ensure(matches!(store.get(name), Err(StoreError::Name(_))), &format!("get accepted {name:?}"))?;
        ensure(matches!(store.delete(name), Err(StoreError::Name(_))), &format!("delete accepted {name:?}"))?;
        let listed = name.is_empty() || matches!(store.list(name), Err(StoreError::Name(_)));
        ensure(listed, &format!("list accepted {name:?}"))?;
    }
    Ok(())
}

/// Lets so many create one object at the same moment; exactly one must succeed, and its bytes must be there.
fn contend(store: &impl Store, contenders: u8) -> Result<(), String> {
    let start = Barrier::new(contenders.into());
    let outcomes: Vec<(u8, Result<(), StoreError>)> = thread::scope(|scope| {
        let create = |n| {
            start.wait();
            (n, store.create("contended", &[n]))
        };
        let contenders: Vec<_> = (0..contenders).map(|n| scope.spawn(move || create(n))).collect();
        contenders.into_iter().filter_map(|contender| contender.join().ok()).collect()
    });
    let winners: Vec<u8> = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(n, _)| *n).collect();
    let refused = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Err(StoreError::Exists(_)))).count();
    let [winner] = winners[..] else { return Err(format!("of {contenders} creators these succeeded: {winners:?}")) };
    ensure(refused == usize::from(contenders) - 1, "a creator that came too late was not told that the object exists")?;
    ensure(store.get("contended").map_err(text)? == [winner][..], "the object is not the winner's")?;
    store.delete("contended").map_err(text)
}

fn lets_exactly_one_of_two_create(store: &impl Store) -> Result<(), String> {
    (0..16).try_for_each(|_| contend(store, 2))
}

fn lets_exactly_one_of_many_create(store: &impl Store) -> Result<(), String> {
    contend(store, 8)
}

fn shows_old_or_new_and_nothing_between(store: &impl Store) -> Result<(), String> {
    let versions = [pattern(200_000, 2), pattern(300_000, 3)];
    store.put("replaced", &versions[0]).map_err(text)?;
    thread::scope(|scope| {
        let writer =
            scope.spawn(|| (1..=12).try_for_each(|round| store.put("replaced", &versions[round % 2])).map_err(text));
        for _ in 0..12 {
            let seen = store.get("replaced").map_err(text)?;
            ensure(versions.iter().any(|version| seen == version), "a reader saw half of an object")?;
        }
        writer.join().map_err(|_| "the writer panicked".to_owned())?
    })?;
    store.delete("replaced").map_err(text)
}
