//! Decoding with a cache, and the measurements of evaluation, against passes over whole sequences.

use super::support::{decoder, run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::PackedLayout;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::next_task_response::Task;
use ballast_proto::v1::task_result::Result as TaskResult;
use ballast_proto::v1::{GenerateTask, ScoreTask};
use ballast_worker::collective::Solo;
use ballast_worker::evaluate;
use ballast_worker::lora::Adapter;
use ballast_worker::model::{Batch, Decoder, Pass, Rows};
use ballast_worker::progress::Progress;
use ballast_worker::trainer::Trainer;
use std::sync::Arc;

fn architectures() -> [Architecture; 2] {
    [Architecture::tiny(), Architecture { sliding_window: Some(4), qk_norm: true, ..Architecture::tiny() }]
}

/// A trainer whose adapter has moved away from the base.
fn tuned(decoder: &Arc<Decoder<CpuBackend>>) -> Trainer<CpuBackend> {
    let mut run = run_spec();
    if let Some(optimizer) = &mut run.optimizer {
        optimizer.learning_rate = 0.1;
    }
    let mut trainer = trainer(decoder, &run);
    for step in 1..=4 {
        trainer.step(&shard(step, &[vec![sample(step, 20, 2, 61)]]), &mut Solo).unwrap();
    }
    trainer
}

/// Logits after every token, without a cache: `[tokens, vocab]`.
fn logits(decoder: &Decoder<CpuBackend>, adapter: Option<&Adapter<'_, CpuBackend>>, ids: &[u32]) -> Vec<Vec<f64>> {
    let backend = &**decoder.backend();
    let layout = PackedLayout::new(&[ids.len() as u32], &[0]);
    let (batch, progress) = (Batch::new(backend, ids, &layout).unwrap(), Progress::new());
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let pass = Pass { batch: &batch, adapter, progress: &progress };
    let hidden = decoder.hidden(&pass, &Rows::new(backend, &rows).unwrap()).unwrap();
    let logits = decoder.logits(&hidden, ids.len()).unwrap();
    logits.chunks(decoder.architecture().vocab_size).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

fn greedy(decoder: &Decoder<CpuBackend>, adapter: Option<&Adapter<'_, CpuBackend>>, prompt: &[u32]) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..12 {
        let rows = logits(decoder, adapter, &ids);
        let last = rows.last().unwrap();
        let best = (0..last.len()).rev().max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn cached_decoding_is_uncached_decoding() {
    for architecture in architectures() {
        let decoder = decoder(&architecture, 1);
        let mut trainer = tuned(&decoder);
        let prompt_ids = sample(77, 9, 1, 61).token_ids;
        let (base, tuned) = (greedy(&decoder, None, &prompt_ids), {
            let adapter = trainer.adapter();
            greedy(&decoder, Some(&adapter), &prompt_ids)
        });
        assert_ne!(base, tuned, "the adapter changes nothing, so nothing is tested");
        let mut decode = |stop_ids: Vec<u32>| {
            let task = GenerateTask { prompt_ids: prompt_ids.clone(), max_new_tokens: 12, stop_ids };
            match evaluate::run(&mut trainer, &Task::Generate(task)).unwrap() {
                TaskResult::Generate(result) => (result.base_ids, result.tuned_ids),
                TaskResult::Score(_) => panic!("a generate task was scored"),
            }
        };
        assert_eq!(decode(vec![]), (base.clone(), tuned.clone()));
        let first = base.iter().position(|&id| id == base[5]).unwrap();
        assert_eq!(decode(vec![base[5]]).0, base[..=first]);
    }
}

#[test]
fn decoding_ends_with_the_models_positions() {
    let mut trainer = trainer(&decoder(&Architecture::tiny(), 1), &run_spec());
    let task = GenerateTask { prompt_ids: sample(1, 62, 1, 61).token_ids, max_new_tokens: 100, stop_ids: vec![] };
    let TaskResult::Generate(result) = evaluate::run(&mut trainer, &Task::Generate(task)).unwrap() else {
        panic!("a generate task was scored")
    };
    assert_eq!(result.base_ids.len(), 2);
    // B is still zero: the tuned model is the base.
    assert_eq!(result.base_ids, result.tuned_ids);
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let norm = row.iter().map(|x| x.exp()).sum::<f64>().ln();
    row.iter().map(|x| x - norm).collect()
}

#[test]
fn scores_are_those_of_the_logits() {
    for architecture in architectures() {
        let decoder = decoder(&architecture, 1);
        let mut trainer = tuned(&decoder);
        let sequence = sample(5, 15, 6, 61);
        let task = ScoreTask { sequence: Some(sequence.clone()), kl_positions: 4 };
        let TaskResult::Score(scores) = evaluate::run(&mut trainer, &Task::Score(task)).unwrap() else {
            panic!("a score task was decoded")
        };
        let adapter = trainer.adapter();
        let log_p = |adapter| -> Vec<Vec<f64>> {
            logits(&decoder, adapter, &sequence.token_ids).iter().map(|row| log_softmax(row)).collect()
        };
        let (base, tuned) = (log_p(None), log_p(Some(&adapter)));
        assert_eq!((scores.base_nll.len(), scores.tuned_nll.len(), scores.kl.len()), (9, 9, 4));
        for (n, token) in (6..15).enumerate() {
            let target = sequence.token_ids[token] as usize;
            assert!((f64::from(scores.base_nll[n]) + base[token - 1][target]).abs() < 1e-4);
            assert!((f64::from(scores.tuned_nll[n]) + tuned[token - 1][target]).abs() < 1e-4);
        }
        for (n, kl) in scores.kl.iter().enumerate() {
            let (p, q) = (&tuned[5 + n], &base[5 + n]);
            let expected: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
            assert!(*kl > 1e-4 && (kl / expected - 1.0).abs() < 1e-3, "{kl} {expected}");
        }
    }
}

#[test]
fn malformed_tasks_are_refused() {
    let mut trainer = trainer(&decoder(&Architecture::tiny(), 1), &run_spec());
    let mut refused = |task: Task| evaluate::run(&mut trainer, &task).unwrap_err().to_string();
    assert!(refused(Task::Score(ScoreTask::default())).contains("no token bears loss"));
    assert!(refused(Task::Generate(GenerateTask::default())).contains("no tokens"));
    let unknown = GenerateTask { prompt_ids: vec![61], ..GenerateTask::default() };
    assert!(refused(Task::Generate(unknown)).contains("token id 61"));
}
