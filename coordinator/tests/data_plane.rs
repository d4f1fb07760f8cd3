//! The data plane, from files to plans.

mod data_plane {
    mod lookahead;
    mod plan;
    mod prepare;
    mod source;
    mod support;
    mod template;
    mod tokenize;
}
