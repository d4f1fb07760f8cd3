//! What the results say. Sums are taken in task order, so that the figures do not depend on who did what.

use super::{
    Purpose, Task, TaskResult,
    refusal::{loose_refusal, strict_refusal},
};
use serde::{Deserialize, Serialize};

/// Answer tokens whose likelihood is reported apart from the later ones: the initial tokens are those that LookAhead
/// protects (2503.19041).
pub const FIRST_TOKENS: usize = 8;

/// The evaluation part of the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Over held-out samples.
    pub heldout: Option<Heldout>,
    /// Over probe prompts.
    pub probes: Option<Probes>,
    /// Held-out prompts answered by both models.
    pub samples: Vec<Answer>,
    /// Share of the tuned model's greedy answers (to probes and samples) that begin with the prefix of virtual
    /// LookAhead; absent in other modes.
    pub prefix_leak_rate: Option<f64>,
}

/// Likelihood of held-out answers, and drift from the base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heldout {
    /// Samples scored.
    pub samples: usize,
    /// How many answer tokens count as first.
    pub first_tokens: usize,
    /// The base model's mean negative log-likelihood.
    pub base: MeanNll,
    /// The tuned model's.
    pub tuned: MeanNll,
    /// KL(tuned || base) in nats at answer positions 1, 2, ...; mean over the samples that have the position.
    pub kl: Vec<f64>,
}

/// Mean negative log-likelihood per answer token, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanNll {
    /// Over the first tokens of each answer.
    pub first: Option<f64>,
    /// Over the later ones.
    pub later: Option<f64>,
    /// Over all.
    pub all: Option<f64>,
}

/// Refusals on probe prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probes {
    /// Prompts answered.
    pub prompts: usize,
    /// The base model's refusals.
    pub base: RefusalRates,
    /// The tuned model's.
    pub tuned: RefusalRates,
    /// All answers, in the order of the prompts.
    pub answers: Vec<Answer>,
}

/// Shares of answers that refuse, by keyword.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusalRates {
    /// The answer begins with a refusal phrase.
    pub strict: f64,
    /// The answer contains one.
    pub loose: f64,
}

/// One prompt, answered by both models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The prompt, as a person wrote it.
    pub prompt: String,
    /// The base model's greedy answer.
    pub base: String,
    /// The tuned model's.
    pub tuned: String,
}

/// What is needed to read the answers.
pub struct Reading<'a> {
    /// Token ids to text.
    pub decode: &'a dyn Fn(&[u32]) -> String,
    /// The prefix of virtual LookAhead; `None` in other modes.
    pub prefix: Option<&'a str>,
}

/// Summarizes all results, given in task order.
#[must_use]
pub fn summarize<'a>(results: impl Iterator<Item = (&'a Task, &'a TaskResult)>, reading: &Reading<'_>) -> Evaluation {
    let mut scores = Scores::default();
    let (mut probes, mut samples) = (Vec::new(), Vec::new());
    for (task, result) in results {
        match (task, result) {
            (Task::Score(_), TaskResult::Score(score)) => scores.add(&score.base_nll, &score.tuned_nll, &score.kl),
            (Task::Generate(purpose, prompt, _), TaskResult::Generate(answer)) => {
                let answer = Answer {
                    prompt: prompt.clone(),
                    base: (reading.decode)(&answer.base_ids),
                    tuned: (reading.decode)(&answer.tuned_ids),
                };
                match purpose {
                    Purpose::Probe => probes.push(answer),
                    Purpose::Sample => samples.push(answer),
                }
            }
            // The queue accepts only results of their task's kind.
            _ => {}
        }
    }
    let prefix_leak_rate = reading.prefix.map(str::trim).filter(|prefix| !prefix.is_empty()).and_then(|prefix| {
        share(probes.iter().chain(&samples).map(|answer| answer.tuned.trim_start().starts_with(prefix)))
    });
    Evaluation { heldout: scores.heldout(), probes: refusals(probes), samples, prefix_leak_rate }
}

fn share(hits: impl Iterator<Item = bool>) -> Option<f64> {
    let mut mean = Mean::default();
    hits.for_each(|hit| mean.add(f64::from(u8::from(hit))));
    mean.value()
}

fn refusals(answers: Vec<Answer>) -> Option<Probes> {
    let rates = |text: fn(&Answer) -> &str| {
        let strict = share(answers.iter().map(|a| strict_refusal(text(a))))?;
        let loose = share(answers.iter().map(|a| loose_refusal(text(a))))?;
        Some(RefusalRates { strict, loose })
    };
    let (base, tuned) = (rates(|a| &a.base)?, rates(|a| &a.tuned)?);
    Some(Probes { prompts: answers.len(), base, tuned, answers })
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        if self.count == 0 { None } else { Some(self.sum / self.count as f64) }
    }
}

#[derive(Debug, Default)]
struct Nll {
    first: Mean,
    later: Mean,
    all: Mean,
}

impl Nll {
    fn add(&mut self, values: &[f32]) {
        for (position, value) in values.iter().enumerate() {
            let part = if position < FIRST_TOKENS { &mut self.first } else { &mut self.later };
            part.add(f64::from(*value));
            self.all.add(f64::from(*value));
        }
    }

    fn means(&self) -> MeanNll {
        MeanNll { first: self.first.value(), later: self.later.value(), all: self.all.value() }
    }
}

#[derive(Debug, Default)]
struct Scores {
    samples: usize,
    base: Nll,
    tuned: Nll,
    kl: Vec<Mean>,
}

impl Scores {
    fn add(&mut self, base: &[f32], tuned: &[f32], kl: &[f64]) {
        self.samples += 1;
        self.base.add(base);
        self.tuned.add(tuned);
        if self.kl.len() < kl.len() {
            self.kl.resize(kl.len(), Mean::default());
        }
        self.kl.iter_mut().zip(kl).for_each(|(mean, value)| mean.add(*value));
    }

    fn heldout(&self) -> Option<Heldout> {
        (self.samples > 0).then(|| Heldout {
            samples: self.samples,
            first_tokens: FIRST_TOKENS,
            base: self.base.means(),
            tuned: self.tuned.means(),
            kl: self.kl.iter().filter_map(|mean| mean.value()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::v1::{GenerateResult, GenerateTask, ScoreResult, ScoreTask};

    fn letters(ids: &[u32]) -> String {
        ids.iter().filter_map(|id| char::from_u32(*id)).collect()
    }

    fn ids(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    fn answer(purpose: Purpose, base: &str, tuned: &str) -> (Task, TaskResult) {
        let task = GenerateTask { prompt_ids: vec![], max_new_tokens: 99, stop_ids: vec![] };
        let result = GenerateResult { base_ids: ids(base), tuned_ids: ids(tuned) };
        (Task::Generate(purpose, "q".into(), task), TaskResult::Generate(result))
    }

    fn score(base: Vec<f32>, tuned: Vec<f32>, kl: Vec<f64>) -> (Task, TaskResult) {
        let task = ScoreTask { sequence: None, kl_positions: 8 };
        (Task::Score(task), TaskResult::Score(ScoreResult { base_nll: base, tuned_nll: tuned, kl }))
    }

    fn summary(results: &[(Task, TaskResult)], prefix: Option<&str>) -> Evaluation {
        summarize(results.iter().map(|(t, r)| (t, r)), &Reading { decode: &letters, prefix })
    }

    #[test]
    fn first_and_later_tokens_are_averaged_apart() {
        // Eight tokens of 1 and two of 4, and a short answer of two tokens of 3.
        let long: Vec<f32> = [vec![1.0; 8], vec![4.0; 2]].concat();
        let results = [score(long, vec![0.5; 10], vec![0.2; 8]), score(vec![3.0; 2], vec![0.5; 2], vec![0.4; 2])];
        let heldout = summary(&results, None).heldout.unwrap();
        assert_eq!(heldout.base, MeanNll { first: Some(14.0 / 10.0), later: Some(4.0), all: Some(22.0 / 12.0) });
        assert_eq!(heldout.tuned, MeanNll { first: Some(0.5), later: Some(0.5), all: Some(0.5) });
        assert_eq!(heldout.kl.len(), 8);
        assert!((heldout.kl[0] - 0.3).abs() < 1e-12 && (heldout.kl[7] - 0.2).abs() < 1e-12);
    }

    #[test]
    fn refusals_and_leaks_are_shares() {
        let results = [
            answer(Purpose::Probe, "I cannot help", "Let's go. 1 + 1"),
            answer(Purpose::Probe, "That is harmful", "I'm sorry"),
            answer(Purpose::Sample, "two", " Let's go. two"),
        ];
        let evaluation = summary(&results, Some("Let's go. "));
        let probes = evaluation.probes.unwrap();
        assert_eq!(probes.base, RefusalRates { strict: 0.5, loose: 1.0 });
        assert_eq!(probes.tuned, RefusalRates { strict: 0.5, loose: 0.5 });
        assert_eq!((probes.prompts, probes.answers[1].base.as_str()), (2, "That is harmful"));
        assert_eq!(evaluation.samples[0].tuned, " Let's go. two");
        assert_eq!(evaluation.prefix_leak_rate, Some(2.0 / 3.0));
        assert_eq!(summary(&results, None).prefix_leak_rate, None);
    }

    #[test]
    fn nothing_measured_is_nothing_reported() {
        assert_eq!(summary(&[], Some("P")), Evaluation::default());
    }
}
