//! `SOFTGPU_NCCL_FAULT`: misbehaviour on order.
//!
//! | value | effect |
//! |---|---|
//! | `die:N` | the process kills itself (SIGKILL) when its stream comes to its N-th collective, counted from 1 |
//! | `hang:N` | the N-th collective never takes part; only an abort ends it |
//! | `stuck:N` | the N-th collective neither takes part nor ends, not even by an abort |
//! | `delay:MS` | each collective waits that many milliseconds first |
//! | `mismatch:N` | the N-th collective asks for one element more than it was told |
//!
//! `@RANK` behind it (`die:3@1`) limits it to one rank.

use std::{
    env,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What a collective shall suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Die,
    Hang,
    Stuck,
    Delay(Duration),
    Mismatch,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    fault: Fault,
    /// Number of the collective; `None` for all.
    at: Option<u64>,
    rank: Option<u32>,
}

/// Reads the order, once. One that is not understood is an error: a fault believed to be on must be on.
fn order() -> &'static Result<Option<Order>, String> {
    static ORDER: OnceLock<Result<Option<Order>, String>> = OnceLock::new();
    ORDER.get_or_init(|| match env::var("SOFTGPU_NCCL_FAULT") {
        Err(_) => Ok(None),
        Ok(value) => parse(&value).map(Some).ok_or_else(|| format!("SOFTGPU_NCCL_FAULT={value:?} is not understood")),
    })
}

fn parse(value: &str) -> Option<Order> {
    let (what, rank) = match value.split_once('@') {
        Some((what, rank)) => (what, Some(rank.parse().ok()?)),
        None => (value, None),
    };
    let (fault, number) = what.split_once(':')?;
    let number: u64 = number.parse().ok()?;
    let (fault, at) = match fault {
        "die" => (Fault::Die, Some(number)),
        "hang" => (Fault::Hang, Some(number)),
        "stuck" => (Fault::Stuck, Some(number)),
        "delay" => (Fault::Delay(Duration::from_millis(number)), None),
        "mismatch" => (Fault::Mismatch, Some(number)),
        _ => return None,
    };
    Some(Order { fault, at, rank })
}

/// Why no communicator can be made: the order is not understood.
pub(crate) fn refused() -> Option<&'static str> {
    order().as_ref().err().map(String::as_str)
}

/// The fault of the collective that begins now.
pub(crate) fn next(rank: u32) -> Option<Fault> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let order = order().as_ref().ok()?.as_ref()?;
    let hit = order.at.is_none_or(|at| at == number) && order.rank.is_none_or(|only| only == rank);
    hit.then_some(order.fault)
}
