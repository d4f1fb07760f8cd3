//! Every supported model variant beside transformers and PEFT: logits, gradients, losses and final adapter of the fixtures that
//! scripts/make_model_variants.py makes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(missing_docs)]

use ballast_basemodel::ModelSource;
use ballast_e2e::golden::Golden;
use ballast_e2e::parity::compare;
use ballast_kernels::Storage;
use std::path::Path;

fn check(variant: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/fixtures/variants").join(variant);
    let source = directory.join("model");
    let model = ModelSource::parse(source.to_str().unwrap(), None).unwrap().fetch().unwrap();
    let parity = compare(&Golden::read(&directory).unwrap(), &model, 1, Storage::F32).unwrap();
    assert_eq!(parity.differences.len(), 4);
    for difference in &parity.differences {
        assert!(difference.accepted(), "{variant}: {difference:?}");
    }
    assert_eq!(parity.zero_gradients, 0, "{variant}");
}

macro_rules! variants {
    ($($test:ident = $variant:literal,)*) => {
        $(#[test] fn $test() { check($variant); })*

        /// A variant without a test would be a claim without proof.
        #[test]
        fn every_fixture_is_tested() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/fixtures/variants");
            let mut found: Vec<String> =
                directory.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            let mut tested = vec![$($variant),*];
            tested.sort_unstable();
            assert_eq!(found, tested);
        }
    };
}

variants! {
    llama_untied_sharded = "llama-untied",
    llama_tied_stored_as_bf16 = "llama-tied",
    llama_with_biases_stored_as_f16 = "llama-biases",
    llama_with_two_target_modules = "llama-two-targets",
    llama_3_rotary_scaling = "llama3-rope",
    llama_3_rotary_scaling_in_the_old_layout = "llama3-rope-old-layout",
    linear_rotary_scaling_in_the_old_layout = "linear-rope-old-layout",
    mistral_with_a_sliding_window = "mistral-window",
    qwen_2 = "qwen2",
    qwen_3 = "qwen3",
    gemma = "gemma",
}
