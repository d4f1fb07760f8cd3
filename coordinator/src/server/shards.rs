//! The Data service: each rank's share of the plan, a few steps ahead of training.

use super::{
    blueprint::Blueprint,
    control::View,
    link::{Link, ended},
};
use crate::membership::Seat;
use ballast_proto::{
    ErrorCode, Failure,
    v1::{Generation, MicroBatch, ShardRequest, StepShard, data_server::Data},
};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(super) struct DataService {
    pub(super) link: Link,
    pub(super) blueprint: Arc<Blueprint>,
}

#[tonic::async_trait]
impl Data for DataService {
    type StreamShardsStream = ReceiverStream<Result<StepShard, Status>>;

    async fn stream_shards(
        &self,
        request: Request<ShardRequest>,
    ) -> Result<Response<Self::StreamShardsStream>, Status> {
        let ShardRequest { worker_id, generation } = request.into_inner();
        let (generation, seat) = self.link.seat(worker_id, generation).await?;
        let (shards, stream) = mpsc::channel(1);
        let (blueprint, view) = (Arc::clone(&self.blueprint), self.link.view.clone());
        tokio::spawn(async move {
            if let Err(failure) = stream_shards(&blueprint, generation, seat, view, &shards).await {
                // A receiver that is gone needs no explanation.
                let _ = shards.send(Err(failure.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Sends shard after shard as the horizon moves, until the generation's last step or its end.
async fn stream_shards(
    blueprint: &Blueprint,
    generation: Generation,
    seat: Seat,
    mut view: watch::Receiver<View>,
    shards: &mpsc::Sender<Result<StepShard, Status>>,
) -> Result<(), Failure> {
    let mut step = seat.start_step;
    loop {
        // Once a shard has gone out, a requested stop can no longer fall before its step: the horizon covers it.
        let seen = *view
            .wait_for(|v| !v.alive(generation) || v.horizon > step || v.boundary.0 <= step)
            .await
            .map_err(|_| ended(generation))?;
        if !seen.alive(generation) {
            return Err(ended(generation));
        }
        if seen.boundary.0 <= step {
            return Ok(());
        }
        step += 1;
        let shard = shard(blueprint, generation, seat, step, seen)?;
        if shards.send(Ok(shard)).await.is_err() {
            return Ok(());
        }
    }
}

/// One rank's share of one step.
fn shard(
    blueprint: &Blueprint,
    generation: Generation,
    seat: Seat,
    step: u64,
    seen: View,
) -> Result<StepShard, Failure> {
    let missing = || Failure::new(ErrorCode::Internal, format!("the plan has no step {step}"));
    let planned = blueprint.step(step).ok_or_else(missing)?;
    let (plan, totals) = (&planned.plan, planned.totals);
    let shares = blueprint.shares(step, &planned, seat.world_size).ok_or_else(missing)?;
    // A sample that is left out silently would still stand in the ledger as trained.
    let lost = |sample: u32| {
        Failure::new(ErrorCode::Internal, format!("step {step} trains sample {sample}, which is not there"))
    };
    let sequence = |sample: &u32| blueprint.data.samples.get(*sample as usize).cloned().ok_or_else(|| lost(*sample));
    let micro_batches = shares.get(seat.rank).into_iter().flatten().map(|&index| {
        let sequences = plan.micro_batches[index].iter().map(sequence).collect::<Result<_, _>>()?;
        Ok(MicroBatch { index: u32::try_from(index).unwrap_or(u32::MAX), sequences })
    });
    Ok(StepShard {
        generation: Some(generation),
        step,
        step_micro_batches: u32::try_from(plan.micro_batches.len()).unwrap_or(u32::MAX),
        step_loss_tokens: totals.loss_tokens,
        step_tokens: totals.tokens,
        micro_batches: micro_batches.collect::<Result<_, Failure>>()?,
        checkpoint_after: seen.boundary == (step, true) || blueprint.checkpoint_after(step),
        last: step == seen.end_step,
    })
}
