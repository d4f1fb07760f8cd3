//! A training step of whole models on every backend, beside the same step in f64.
//!
//! Every family that Ballast trains, two and four layers deep, with random weights: the decoder over the CPU backend and
//! (feature `cuda`) over the CUDA backend in both storages, each held to the decoder over
//! [`ballast_kernels::reference::ReferenceBackend`], tensor by tensor. What passes on the software device is *emulated*.

mod comparison;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod decoding;
mod models;
mod reference;
mod step;

use models::Family;

macro_rules! families {
    ($($family:ident)*) => {
        mod as_in_f64 {
            $(#[test] fn $family() { super::comparison::check(&super::models::$family()); })*
        }

        /// All of them.
        fn families() -> Vec<Family> {
            vec![$(models::$family()),*]
        }
    };
}

families! { llama llama_biases mistral_window qwen2 qwen3 gemma }
