//! Joining, becoming ready, and the forming of a generation.

use super::{
    Effect, Level, Phase, State, WorkerId,
    state::{ActiveGeneration, Member},
};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, Generation, GenerationFormed, JoinRequest, NumericsFingerprint, Ready, coordinator_message::Message},
};
use std::collections::BTreeMap;

/// Longest name and ring address that a worker may give itself.
const MAX_NAME: usize = 256;

impl State {
    pub(super) fn join(&mut self, request: JoinRequest, now: u64, out: &mut Vec<Effect>) {
        if let Err(failure) = self.admissible(&request) {
            out.push(note(Level::Warn, format!("refused {:?}: {failure}", request.display_name)));
            out.push(Effect::Refuse(failure));
            return;
        }
        let worker = self.next_worker;
        self.next_worker += 1;
        out.push(note(Level::Info, format!("worker {worker} ({}) joined", request.display_name)));
        let member = Member {
            name: request.display_name,
            ring_address: request.ring_address,
            connected: false,
            ready: false,
            joined_at: now,
            seen_at: now,
            progress: 0,
            phase: v1::Phase::Loading,
            moved_at: now,
        };
        self.members.insert(worker, member);
        out.push(Effect::Admit { worker });
    }

    fn admissible(&self, request: &JoinRequest) -> Result<(), Failure> {
        let fail = |code, message: String| Err(Failure::new(code, message));
        if request.version != self.settings.version {
            return fail(
                ErrorCode::VersionMismatch,
                format!(
                    "the worker is ballast {:?}, the coordinator {:?}: install the same version on both",
                    request.version, self.settings.version
                ),
            );
        }
        let fits = |text: &str| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        if !fits(&request.display_name) {
            return fail(
                ErrorCode::BadMessage,
                format!("display_name must be at most {MAX_NAME} bytes without control characters"),
            );
        }
        let has_port = request
            .ring_address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !fits(&request.ring_address) || !has_port {
            return fail(
                ErrorCode::BadMessage,
                format!("ring_address {:?} is not of the form host:port", request.ring_address),
            );
        }
        if let Phase::Over(outcome) = &self.phase {
            return fail(ErrorCode::RunFull, format!("the run is over: {}", outcome.reason));
        }
        if self.members.len() >= self.settings.workers {
            return fail(
                ErrorCode::RunFull,
                format!(
                    "the run already has its {} workers: raise cluster.workers, or try again when one has left",
                    self.settings.workers
                ),
            );
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, worker: WorkerId, now: u64, out: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if member.connected {
            self.misbehaved(worker, "opened a second session", out);
            return;
        }
        member.connected = true;
        member.moved_at = now;
    }

    pub(super) fn ready(&mut self, worker: WorkerId, ready: Ready, now: u64, out: &mut Vec<Effect>) {
        let Some(member) = self.members.get(&worker) else { return };
        if !member.connected || member.ready {
            self.misbehaved(worker, "reported ready twice or before its session began", out);
            return;
        }
        let Some(fingerprint) = ready.fingerprint else {
            self.misbehaved(worker, "reported ready without a numerics fingerprint", out);
            return;
        };
        if let Err(failure) = self.compatible(worker, &fingerprint) {
            self.lose(worker, failure, out);
            return;
        }
        if self.numerics.is_none() {
            out.push(note(
                Level::Info,
                format!("the run is computed with {} ({})", fingerprint.arithmetic, fingerprint.backend),
            ));
            self.numerics = Some(fingerprint.clone());
            out.push(Effect::RecordNumerics(fingerprint));
        }
        let label = self.label(worker);
        if let Some(member) = self.members.get_mut(&worker) {
            member.ready = true;
            member.moved_at = now;
            member.phase = v1::Phase::Waiting;
        }
        let ready = self.members.values().filter(|m| m.ready).count();
        out.push(note(Level::Info, format!("{label} is ready ({ready} of {})", self.settings.workers)));
        if self.phase == Phase::Gathering && ready == self.settings.workers {
            self.form_generation(now, out);
        }
    }

    /// Whether this worker would compute the same bits as the run so far.
    fn compatible(&self, worker: WorkerId, fingerprint: &NumericsFingerprint) -> Result<(), Failure> {
        let label = self.label(worker);
        if fingerprint.weights_sha256 != self.settings.model_sha256 {
            return Err(Failure::new(
                ErrorCode::ModelMismatch,
                format!(
                    "{label} loaded a base model with sha256 {}, the run's is {}: give it the same files",
                    fingerprint.weights_sha256, self.settings.model_sha256
                ),
            ));
        }
        match self.numerics.as_ref().and_then(|run| difference(run, fingerprint)) {
            None => Ok(()),
            Some(difference) => Err(Failure::new(
                ErrorCode::NumericsMismatch,
                format!("{label} would compute different bits: {difference}"),
            )),
        }
    }

    /// Numbers the ready workers, in order of admission, and tells them to begin.
    fn form_generation(&mut self, now: u64, out: &mut Vec<Effect>) {
        self.last_generation += 1;
        let id = Generation::new(self.settings.epoch, self.last_generation);
        let transport = self.transport();
        let ranks: Vec<WorkerId> = self.members.iter().filter(|(_, m)| m.ready).map(|(w, _)| *w).collect();
        let ring_addresses: Vec<String> =
            ranks.iter().filter_map(|w| self.members.get(w)).map(|m| m.ring_address.clone()).collect();
        for (rank, worker) in (0u32..).zip(&ranks) {
            let formed = GenerationFormed {
                generation: Some(id),
                rank,
                ring_addresses: ring_addresses.clone(),
                start_step: self.committed,
                state_source: self.settings.start.source().into(),
                transport: transport.into(),
            };
            out.push(Effect::Send { worker: *worker, message: Message::GenerationFormed(formed) });
        }
        for member in self.members.values_mut() {
            member.moved_at = now;
        }
        out.push(note(
            Level::Info,
            format!("generation {id} formed: {} workers, after step {}", ranks.len(), self.committed),
        ));
        let applied = vec![self.committed; ranks.len()];
        self.generation = Some(ActiveGeneration {
            id,
            ranks,
            transport,
            communicator_made: false,
            applied,
            reports: BTreeMap::new(),
        });
        self.phase = Phase::Training;
        self.committed_at = now;
        self.advance_horizon();
        self.conclude_training(out);
    }
}

/// The first difference between the run's arithmetic and a worker's, in words.
fn difference(run: &NumericsFingerprint, worker: &NumericsFingerprint) -> Option<String> {
    let fields = [
        ("binary", &run.binary_sha256, &worker.binary_sha256),
        ("backend", &run.backend, &worker.backend),
        ("arithmetic", &run.arithmetic, &worker.arithmetic),
        ("base weights", &run.weights_sha256, &worker.weights_sha256),
    ];
    fields
        .into_iter()
        .find(|(_, run, worker)| run != worker)
        .map(|(name, run, worker)| format!("its {name} is {worker:?}, the run's is {run:?}"))
}

pub(super) fn note(level: Level, reason: String) -> Effect {
    Effect::Note { level, reason }
}
