//! The data plane, from files to plans.

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
