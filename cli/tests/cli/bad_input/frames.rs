//! Frames between workers. They are met byte by byte in the worker's own tests; here their messages are collected.

use std::fmt::Write;
use std::path::Path;

/// What is wrong with a frame, and the end of the message, which must stand in the tests of the frames.
const FRAMES: &[(&str, &str)] = &[
    ("bytes that are no frame (`HTTP`)", "it does not begin as a frame of ballast"),
    ("a frame of another version", "frame version 9, expected 1"),
    ("an unknown kind", "unknown kind of frame 77"),
    ("a maximum where a sum is due", "kind is Max, expected Sum"),
    ("a reserved byte that is set", "reserved byte is 1, expected 0"),
    ("a frame of another round", "round is 4, expected 3"),
    ("a length of 4 GiB", "a payload of 4294967295 bytes, more than the 4194304 that are allowed"),
    ("a length that is not due", "length is 32, expected 24"),
    ("a frame of another coordinator's generation", "generation epoch is 2, expected 1"),
    ("a frame of an old generation", "generation number is 1, expected 2"),
    ("a frame of another reduction", "sequence is 8, expected 7"),
    ("a vector of another size", "total is 101, expected 100"),
    ("a part that is not due", "offset is 0, expected 50"),
    ("a header or payload with a flipped bit", "its checksum does not match"),
];

/// The table of frames.
pub(crate) fn table() -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/src/collective/frame.rs");
    let tests = std::fs::read_to_string(tests).unwrap();
    let mut text = String::from(
        "\n## Frames between workers\n\nA malformed frame ends the generation (exit code 75 for the worker that met it) before a byte of it reaches a sum. \
         Tested in\n`worker/src/collective/frame.rs` and, over sockets, in `worker/src/collective/tests.rs`; \
         any other bytes, by property tests there.\n\n| frame | what Ballast says |\n|---|---|\n",
    );
    for (what, message) in FRAMES {
        assert!(tests.contains(&format!("\"{message}\"")), "no test of frames expects {message:?}");
        let _ =
            writeln!(text, "| {what} | `` error[B4009]: malformed frame from rank 1 (10.0.0.2:7071): {message} `` |");
    }
    text
}
