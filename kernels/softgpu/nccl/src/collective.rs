//! The collectives, as the API shows them.

use std::ffi::c_int;

use crate::{
    abi::{DataType, Failure, Handle, Outcome, Reduction, failed, outcome},
    communicator::{self, Buffers},
    wire::{Call, Kind},
};

struct Operands {
    send: u64,
    receive: u64,
    count: usize,
    data: u32,
}

/// Checks a collective and queues it. `kind` gets the number of ranks.
fn queue(
    operands: &Operands,
    kind: impl FnOnce(u32) -> Result<Kind, Failure>,
    communicator: Handle,
    stream: usize,
) -> Outcome {
    let start = || {
        let communicator = communicator::get(communicator)?;
        let kind = kind(communicator.ranks)?;
        let data = DataType::from_code(operands.data)
            .ok_or_else(|| failed(Failure::InvalidArgument, &format!("data type {} is not there", operands.data)))?;
        let bytes = operands.count.checked_mul(data.bytes()).ok_or(Failure::InvalidArgument)?;
        // Only the root's send buffer matters in a broadcast.
        let send_bytes = match kind {
            Kind::Broadcast(root) if root != communicator.rank => 0,
            _ => bytes,
        };
        let receive_bytes = match kind {
            Kind::AllGather => bytes.checked_mul(communicator.ranks as usize).ok_or(Failure::InvalidArgument)?,
            _ => bytes,
        };
        if (send_bytes > 0 && operands.send == 0) || (receive_bytes > 0 && operands.receive == 0) {
            return Err(failed(Failure::InvalidArgument, "a buffer is null"));
        }
        let call = Call { kind, data, count: operands.count as u64 };
        let buffers = Buffers { send: operands.send, send_bytes, receive: operands.receive, receive_bytes };
        communicator.begin(call, buffers, stream)
    };
    outcome(start())
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    data: u32,
    reduction: u32,
    communicator: Handle,
    stream: usize,
) -> Outcome {
    let kind = |_| match Reduction::from_code(reduction) {
        Some(reduction) => Ok(Kind::AllReduce(reduction)),
        None => Err(failed(Failure::InvalidArgument, &format!("reduction {reduction} is not there"))),
    };
    queue(&Operands { send, receive, count, data }, kind, communicator, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    send: u64,
    receive: u64,
    count: usize,
    data: u32,
    root: c_int,
    communicator: Handle,
    stream: usize,
) -> Outcome {
    let kind = |ranks| match u32::try_from(root) {
        Ok(root) if root < ranks => Ok(Kind::Broadcast(root)),
        _ => Err(failed(Failure::InvalidArgument, &format!("there is no rank {root}"))),
    };
    queue(&Operands { send, receive, count, data }, kind, communicator, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    data: u32,
    communicator: Handle,
    stream: usize,
) -> Outcome {
    queue(&Operands { send, receive, count, data }, |_| Ok(Kind::AllGather), communicator, stream)
}
