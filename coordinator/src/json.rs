//! JSON of our own records. They are made of strings, numbers and lists of them, which always serialize: a failure is a
//! bug in the record's type, and an empty file in its place would be worse than a crash.
#![expect(clippy::expect_used, reason = "no input makes these fail, and nothing may be written instead")]

use serde::Serialize;

const ALWAYS: &str = "a record of strings and numbers serializes";

/// One line, without its end.
pub(crate) fn line(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect(ALWAYS)
}

/// A whole file, for people too.
pub(crate) fn file(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(record).expect(ALWAYS);
    bytes.push(b'\n');
    bytes
}

/// As a part of another record.
pub(crate) fn value(record: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(record).expect(ALWAYS)
}
