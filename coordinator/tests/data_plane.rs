//! The data plane, from files to plans.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod data_plane {
    mod hollow;
    mod lookahead;
    mod plan;
    mod prepare;
    mod smollm2;
    mod source;
    mod support;
    mod template;
    mod tokenize;
}
