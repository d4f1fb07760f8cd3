//! Gradients go to the collective while lower layers are still computed.

use super::support::{decoder, part, run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::Backend;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::{Phase, Reduction, RunSpec, Sequence};
use ballast_worker::WorkerError;
use ballast_worker::collective::{DeviceCollective, Operand, Reductions};
use ballast_worker::progress::Progress;

const LAYERS: usize = 3;

/// What was enqueued: its kind, its length, the phase and how far the trainer was.
type Event = (&'static str, usize, Phase, u64);

/// A world of one that writes down when what is enqueued.
struct Recorder {
    progress: Progress,
    events: Vec<Event>,
}

struct Recording<'a> {
    recorder: &'a mut Recorder,
    backend: &'a CpuBackend,
}

impl DeviceCollective<CpuBackend> for Recorder {
    fn begin<'a>(&'a mut self, backend: &'a CpuBackend) -> Box<dyn Reductions<'a, CpuBackend> + 'a> {
        Box::new(Recording { recorder: self, backend })
    }
}

impl<'a> Reductions<'a, CpuBackend> for Recording<'a> {
    fn enqueue(&mut self, operand: Operand<'a, CpuBackend>) -> Result<(), WorkerError> {
        let (kind, len) = match operand {
            Operand::Sum(values) => ("sum", self.backend.integers_len(values)),
            Operand::Max(values) => ("maximum", self.backend.integers_len(values)),
            Operand::SumReals(values) => ("sum of reals", self.backend.read_reals(values)?.len()),
            Operand::SumHalves(values) => ("sum of halves", self.backend.read_halves(values)?.len()),
        };
        let now = self.recorder.progress.heartbeat();
        self.recorder.events.push((kind, len, now.phase(), now.progress));
        Ok(())
    }

    fn wait(self: Box<Self>) -> Result<(), WorkerError> {
        Ok(())
    }
}

/// What a step of a model of [`LAYERS`] layers enqueues, which has three micro-batches, the last of them without loss.
fn events(run: &RunSpec, owned: fn(u32) -> bool) -> Vec<Event> {
    let architecture = Architecture { layers: LAYERS, ..Architecture::tiny() };
    let mut trainer = trainer(&decoder(&architecture, 1), run);
    let batch = |number: u64, prompt| vec![sample(number, 6, prompt, architecture.vocab_size)];
    let silent = vec![Sequence { loss: Vec::new(), ..sample(3, 6, 2, architecture.vocab_size) }];
    let step = part(&shard(1, &[batch(1, 2), batch(2, 3), silent]), owned);
    let mut recorder = Recorder { progress: trainer.progress().clone(), events: Vec::new() };
    let stepped = trainer.step(&step, &mut recorder);
    // A part's totals are not the step's, and nobody is here who adds the others'.
    let whole = step.micro_batches.len() == 3;
    assert!(
        if whole { stepped.is_ok() } else { matches!(stepped, Err(WorkerError::TokenCount { .. })) },
        "{stepped:?}"
    );
    recorder.events
}

fn shape(events: &[Event]) -> Vec<(&'static str, usize)> {
    events.iter().map(|(kind, len, _, _)| (*kind, *len)).collect()
}

#[test]
fn layers_are_reduced_from_the_top_while_those_below_are_computed() {
    let kinds = [(Reduction::Exact, "sum"), (Reduction::Fast, "sum of reals"), (Reduction::FastBf16, "sum of halves")];
    for (reduction, kind) in kinds {
        let run = RunSpec { reduction: reduction as i32, ..run_spec() };
        let events = events(&run, |_| true);
        let mut kinds = vec![kind; LAYERS];
        kinds.extend(["maximum", "sum"]);
        assert_eq!(shape(&events).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), kinds);
        let phases: Vec<Phase> = events.iter().map(|(_, _, phase, _)| *phase).collect();
        assert_eq!(phases, [[Phase::Compute; LAYERS].as_slice(), &[Phase::Reduce; 2]].concat());
        let ticks: Vec<u64> = events.iter().map(|(_, _, _, ticks)| *ticks).collect();
        // A layer of backward pass lies between one bucket and the next.
        assert!(ticks[..LAYERS].is_sorted_by(|upper, lower| upper < lower), "{ticks:?}");
        // Forward and backward pass of the first micro-batch, and forward pass of the second, lie before the first.
        assert!(ticks[0] >= 3 * LAYERS as u64, "{ticks:?}");
    }
}

/// Else ranks would reduce one thing with another.
#[test]
fn all_ranks_enqueue_the_same_whatever_their_share() {
    let run = run_spec();
    let all = shape(&events(&run, |_| true));
    let shares: [fn(u32) -> bool; 4] = [|index| index == 0, |index| index == 1, |index| index == 2, |_| false];
    for owned in shares {
        assert_eq!(shape(&events(&run, owned)), all);
    }
}
