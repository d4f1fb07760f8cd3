//! The state as files: going on from them gives the same bits; anything wrong with them is refused whole.

use super::support::{decoder, run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_proto::v1::StepShard;
use ballast_proto::{Coded, ErrorCode};
use ballast_worker::collective::Solo;
use ballast_worker::trainer::ExportedState;
use bytes::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

fn steps() -> Vec<StepShard> {
    (1..=4).map(|step| shard(step, &[vec![sample(step, 12, 3, 61)], vec![sample(step + 20, 7, 2, 61)]])).collect()
}

fn files(state: &ExportedState) -> Vec<(String, Bytes)> {
    state.files.iter().map(|(name, bytes)| (name.clone(), Bytes::from(bytes.clone()))).collect()
}

#[test]
fn a_resumed_run_continues_to_the_same_bits() {
    let (decoder, steps) = (decoder(&Architecture::tiny(), 1), steps());
    let mut whole = trainer(&decoder, &run_spec());
    let mut stopped = None;
    for step in &steps {
        whole.step(step, &mut Solo).unwrap();
        if step.step == 2 {
            stopped = Some(whole.export_state().unwrap());
        }
    }
    let stopped = stopped.unwrap();
    let mut resumed = trainer(&decoder, &run_spec());
    resumed.import_state(2, &files(&stopped)).unwrap();
    assert_eq!(resumed.applied_step(), 2);
    assert_eq!(resumed.export_state().unwrap().state_sha256, stopped.state_sha256);
    for step in &steps[2..] {
        resumed.step(step, &mut Solo).unwrap();
    }
    let (whole, resumed) = (whole.export_state().unwrap(), resumed.export_state().unwrap());
    assert_eq!(whole.state_sha256, resumed.state_sha256);
    assert_eq!(whole.files, resumed.files);
}

/// A file with one of its tensors changed by `edit`.
fn edited(
    bytes: &[u8],
    tensor: &str,
    edit: impl Fn(Dtype, Vec<usize>, &mut Vec<u8>) -> Option<(Dtype, Vec<usize>)>,
) -> Bytes {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    tensors.sort();
    tensors.retain_mut(|(name, (dtype, shape, data))| {
        if name != tensor {
            return true;
        }
        edit(*dtype, shape.clone(), data).map(|(d, s)| (*dtype, *shape) = (d, s)).is_some()
    });
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    Bytes::from(serialize(views, None).unwrap())
}

#[test]
fn files_that_do_not_fit_are_refused_and_nothing_is_touched() {
    let mut trainer = trainer(&decoder(&Architecture::tiny(), 1), &run_spec());
    trainer.step(&steps()[0], &mut Solo).unwrap();
    let before = trainer.export_state().unwrap();
    let good = files(&before);
    let (adapter, optimizer) = (&before.files[0].1, &before.files[1].1);
    let b = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
    let second_moment = format!("second_moment.{b}");
    let nan = |dtype, shape, data: &mut Vec<u8>| {
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        Some((dtype, shape))
    };
    let replaced = |which: usize, bytes: Bytes| {
        let mut files = good.clone();
        files[which].1 = bytes;
        files
    };
    let cases = [
        (good[..1].to_vec(), "is missing"),
        (replaced(0, Bytes::from_static(b"no safetensors")), "malformed"),
        (replaced(0, good[0].1.slice(..good[0].1.len() - 4)), "malformed"),
        (replaced(0, edited(adapter, b, nan)), "not finite"),
        (replaced(0, edited(adapter, b, |_, _, _| None)), "tensors"),
        (replaced(0, edited(adapter, b, |d, s, _| Some((d, vec![s[1], s[0]])))), "is expected"),
        (replaced(0, edited(adapter, b, |_, s, _| Some((Dtype::I32, s)))), "is expected"),
        (replaced(1, edited(optimizer, &second_moment, nan)), "not finite"),
        (
            replaced(
                1,
                edited(optimizer, &second_moment, |d, s, data| {
                    data[..4].copy_from_slice(&(-1f32).to_le_bytes());
                    Some((d, s))
                }),
            ),
            "negative",
        ),
        (
            replaced(
                1,
                edited(optimizer, "exponents", |d, s, data| {
                    data[..4].copy_from_slice(&9999i32.to_le_bytes());
                    Some((d, s))
                }),
            ),
            "exponent 9999",
        ),
        (
            replaced(
                1,
                edited(optimizer, "step", |d, s, data| {
                    data[0] = 9;
                    Some((d, s))
                }),
            ),
            "step 9",
        ),
        (
            replaced(
                1,
                edited(optimizer, "updates", |d, s, data| {
                    data[0] = 2;
                    Some((d, s))
                }),
            ),
            "2 updates in 1 steps",
        ),
    ];
    for (files, expected) in cases {
        let error = trainer.import_state(1, &files).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.code(), ErrorCode::CheckpointCorrupt);
        assert_eq!(trainer.export_state().unwrap().state_sha256, before.state_sha256);
    }
    assert!(trainer.import_state(1, &good).is_ok());
}
