//! All workers of a load: they are told what to do, and what they tell is put together.

use super::samples::{Quantiles, Samples};
use super::worker::{Orders, Said, Simulated, Strings, Word};
use anyhow::{Context, Result, bail, ensure};
use ballast_proto::security::{Channel, ClientSecurity, Connector};
use ballast_proto::v1::{ShardRequest, data_client::DataClient};
use ballast_proto::{ErrorCode, Failure};
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, interval, sleep};
use tokio_util::sync::CancellationToken;

/// Workers that join at the same time.
const JOINING: usize = 64;
/// How long nothing may happen where something must.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens a second; 0 where nothing does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Steps that all workers compute.
    pub(super) steps: f64,
    /// Questions to the event loop, by one worker after the other.
    pub(super) questions: f64,
}

/// What came of some time.
#[derive(Debug)]
pub(super) struct Spent {
    /// Steps a second that all workers have reported.
    pub(super) steps_per_second: f64,
    /// From the last report of the step whose commit released it until a shard had arrived.
    pub(super) shards: Quantiles,
    /// From question to answer.
    pub(super) answers: Quantiles,
}

/// The workers.
pub(super) struct Crowd {
    orders: watch::Sender<Orders>,
    words: mpsc::UnboundedReceiver<Word>,
    tasks: JoinSet<Result<()>>,
    members: Vec<Member>,
    /// Tasks that are to end.
    leaving: usize,
    /// What is known of the newest steps.
    steps: BTreeMap<u64, Step>,
}

/// One worker, as seen from here.
struct Member {
    worker: u64,
    channel: Channel,
    lost: CancellationToken,
}

#[derive(Default)]
struct Step {
    /// When its shards arrived.
    arrived: Vec<Instant>,
    /// When it was reported.
    reported: Vec<Instant>,
}

impl Crowd {
    /// So many workers join and open their sessions; how long that takes.
    pub(super) async fn join(workers: usize, url: &str) -> Result<(Self, Duration)> {
        let connector = Connector::new(url, &ClientSecurity::default())?;
        let (orders, told) = watch::channel(Orders::default());
        let (telling, words) = mpsc::unbounded_channel();
        let (members, steps) = (Vec::with_capacity(workers), BTreeMap::new());
        let mut crowd = Self { orders, words, tasks: JoinSet::new(), members, leaving: 0, steps };
        let (began, places) = (Instant::now(), Arc::new(Semaphore::new(JOINING)));
        for number in 0..workers {
            let strings = Strings { orders: told.clone(), words: telling.clone(), lost: CancellationToken::new() };
            let (connector, places) = (connector.clone(), Arc::clone(&places));
            crowd.tasks.spawn(async move {
                let place = places.acquire_owned().await?;
                let worker = Simulated::join(number, &connector, strings).await.context(format!("w{number}"))?;
                drop(place);
                worker.work().await
            });
        }
        while crowd.members.len() < workers {
            let word = crowd.word().await?;
            if let Said::Joined { worker, channel, lost } = word.said {
                crowd.members.push(Member { worker, channel, lost });
            }
        }
        Ok((crowd, began.elapsed()))
    }

    /// All get ready at once; the time from the last one's word until all know of their generation.
    pub(super) async fn form(&mut self) -> Result<Duration> {
        self.orders.send_modify(|orders| orders.ready = true);
        let (ready, formed) = self.formed(self.members.len()).await?;
        ready.and_then(|ready| formed.checked_duration_since(ready)).context("a generation before all were ready")
    }

    /// One vanishes; the time until all others know of a generation without it.
    pub(super) async fn lose_one(&mut self) -> Result<Duration> {
        let lost = self.members.swap_remove(self.members.len() / 2);
        self.leaving += 1;
        self.steps.clear();
        let began = Instant::now();
        lost.lost.cancel();
        // With the last handle the connection goes.
        drop(lost);
        let (_, formed) = self.formed(self.members.len()).await?;
        formed.checked_duration_since(began).context("a generation before the loss")
    }

    /// Waits until so many are told of a generation of so many; when the last one said that it is ready, and was told.
    async fn formed(&mut self, workers: usize) -> Result<(Option<Instant>, Instant)> {
        let (mut ready, mut told) = (None, 0);
        loop {
            let Word { at, said } = self.word().await?;
            match said {
                Said::Ready => ready = ready.max(Some(at)),
                Said::Formed { world_size } if world_size as usize == workers => told += 1,
                Said::Formed { world_size } => bail!("a generation of {world_size} workers, {workers} are there"),
                said => self.note(Word { at, said }),
            }
            if told == workers {
                return Ok((ready, at));
            }
        }
    }

    /// Lets time pass at a pace. At its end every step that counts as computed is reported.
    pub(super) async fn spend(&mut self, window: Duration, pace: Pace) -> Result<Spent> {
        let (began, first) = (Instant::now(), self.computed());
        let (mut steps, mut questions) = (ticks(pace.steps), ticks(pace.questions));
        let (mut asked, mut answers, mut turn) = (JoinSet::new(), Samples::default(), (0..self.members.len()).cycle());
        let over = sleep(window);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                () = tick(&mut steps) => self.orders.send_modify(|orders| orders.computed += 1),
                () = tick(&mut questions) => {
                    let asking = turn.next().and_then(|turn| self.members.get(turn)).context("no worker is left")?;
                    asked.spawn(ask(asking.worker, asking.channel.clone()));
                }
                Some(answer) = asked.join_next() => answers.push(answer??),
                word = self.word() => self.note(word?),
            }
        }
        let (ended, last) = (Instant::now(), self.computed());
        while self.is_due(first, last) {
            let word = self.word().await?;
            self.note(word);
        }
        while let Some(answer) = asked.join_next().await {
            answers.push(answer??);
        }
        let in_time = |number: &u64| self.reported(*number).is_some_and(|at| at <= ended);
        let steps = (first + 1..=last).filter(in_time).count();
        let shards = self.deliveries(began, last + 1);
        // The reports of the last two have released what comes next.
        self.steps.retain(|step, _| *step + 2 > last);
        let steps_per_second = steps as f64 / ended.duration_since(began).as_secs_f64();
        Ok(Spent { steps_per_second, shards: shards.quantiles(), answers: answers.quantiles() })
    }

    /// Steps that count as computed.
    pub(super) fn computed(&self) -> u64 {
        self.orders.borrow().computed
    }

    /// All vanish.
    pub(super) async fn dismiss(mut self) -> Result<()> {
        self.members.iter().for_each(|member| member.lost.cancel());
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Whether a step after `first` up to `last` is not yet reported by all, or the next one's shards are not yet there.
    fn is_due(&self, first: u64, last: u64) -> bool {
        let arrived = |number| self.steps.get(&number).is_some_and(|step| step.arrived.len() == self.members.len());
        let reported = |number| self.steps.get(&number).is_some_and(|step| step.reported.len() == self.members.len());
        first < last && !((first + 1..=last).all(reported) && arrived(last + 1))
    }

    /// When the last of all ranks reported a step.
    fn reported(&self, number: u64) -> Option<Instant> {
        let step = self.steps.get(&number).filter(|step| step.reported.len() == self.members.len())?;
        step.reported.iter().max().copied()
    }

    /// How long the shards of steps up to `last` that came after `began` took from the report that their release waited for.
    fn deliveries(&self, began: Instant, last: u64) -> Samples {
        let mut samples = Samples::default();
        for (number, Step { arrived, .. }) in self.steps.range(..=last) {
            let Some(first) = arrived.iter().min().filter(|first| **first >= began) else { continue };
            // Of the newest step that was whole by then: how far ahead shards are streamed depends on the pace.
            let whole = self.steps.range(..number).filter_map(|(earlier, _)| self.reported(*earlier));
            let Some(released) = whole.filter(|at| at <= first).max() else { continue };
            arrived.iter().for_each(|at| samples.push(at.duration_since(released)));
        }
        samples
    }

    fn note(&mut self, Word { at, said }: Word) {
        match said {
            Said::Shard { step } => self.steps.entry(step).or_default().arrived.push(at),
            Said::Reported { step } => self.steps.entry(step).or_default().reported.push(at),
            Said::Joined { .. } | Said::Ready | Said::Formed { .. } => {}
        }
    }

    /// What a worker says next.
    async fn word(&mut self) -> Result<Word> {
        loop {
            tokio::select! {
                Some(word) = self.words.recv() => return Ok(word),
                Some(ended) = self.tasks.join_next() => {
                    ended??;
                    ensure!(self.leaving > 0, "a worker was sent away");
                    self.leaving -= 1;
                }
                () = sleep(PATIENCE) => bail!("nothing happened for {PATIENCE:?}"),
            }
        }
    }
}

/// Asks what only the event loop can answer, and what changes nothing: which place a worker has in no generation.
async fn ask(worker: u64, channel: Channel) -> Result<Duration> {
    let asked = Instant::now();
    let request = ShardRequest { worker_id: worker, generation: None };
    match DataClient::new(channel).stream_shards(request).await.map_err(Failure::from) {
        Err(failure) if failure.code == ErrorCode::StaleGeneration => Ok(asked.elapsed()),
        Err(failure) => Err(failure.into()),
        Ok(_) => bail!("worker {worker} was given shards of no generation"),
    }
}

/// So many a second; none for 0.
fn ticks(a_second: f64) -> Option<Interval> {
    (a_second > 0.0).then(|| interval(Duration::from_secs_f64(1.0 / a_second)))
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => pending().await,
    }
}
