//! A worker's place in the network.

use ballast_proto::security::Connector;
use std::time::Duration;

/// How a worker reaches the others, and for how long it tries.
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "only simulations make one outside"))]
#[derive(Clone, Debug)]
pub struct Station {
    /// The way to the coordinator.
    pub connector: Connector,
    /// Its name, for people.
    pub name: String,
    /// `host:port` under which other workers reach it.
    pub ring_address: String,
    /// How long the coordinator may be unreachable at the start.
    pub connect_timeout: Duration,
    /// How long it may be later; zero: not at all.
    pub rejoin_timeout: Duration,
}
