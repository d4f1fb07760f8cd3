//! `ballast worker`

use crate::args::WorkerArgs;
use crate::connection;
use crate::failure::coded;
use ballast_worker::WorkerOptions;

pub(super) fn run(args: WorkerArgs) -> anyhow::Result<u8> {
    let options = WorkerOptions {
        security: connection::security(&args.connection)?,
        coordinator: args.connection.coordinator,
        name: args.name,
        ring_bind: args.ring_bind,
        ring_advertise: args.ring_advertise,
        model: args.model,
        device: args.device,
        threads: args.threads,
        insecure: args.connection.insecure,
        connect_timeout: args.connect_timeout,
        rejoin_timeout: args.rejoin_timeout,
    };
    ballast_worker::run(options).map_err(coded)
}
