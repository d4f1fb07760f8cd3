//! All gRPC services on one port, behind the door and the guard.

use super::{
    admin::AdminService,
    blueprint::Blueprint,
    evaluate::EvaluationService,
    guard::{Guard, Policy},
    incoming::{Door, Listener},
    limits::{self, Limits},
    link::Link,
    progress::Progress,
    relay::Relay,
    saving::Saver,
    session::MembershipService,
    shards::DataService,
    transfer::CheckpointService,
};
use crate::{checkpoint::Store, security::Security};
use ballast_proto::Blocking;
use ballast_proto::v1::{
    admin_server::AdminServer, checkpoint_server::CheckpointServer, data_server::DataServer,
    evaluation_server::EvaluationServer, membership_server::MembershipServer,
};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::layer::layer_fn;

/// What the services of a coordinator share.
pub(super) struct Services {
    pub(super) link: Link,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) store: Arc<dyn Store>,
    pub(super) blocking: Blocking,
    /// Step of the newest checkpoint.
    pub(super) checkpoint: Option<u64>,
    pub(super) epoch: u64,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) security: Security,
    pub(super) limits: Limits,
}

impl Services {
    pub(super) async fn serve(self, listener: impl Listener, shutdown: CancellationToken) {
        let Self { link, blueprint, store, blocking, checkpoint: newest, epoch, progress, security, limits } = self;
        let admin = AdminServer::new(AdminService {
            run_name: blueprint.run.run.name.clone(),
            link: link.clone(),
            progress,
            stopped: false.into(),
        });
        let membership = MembershipServer::new(MembershipService {
            link: link.clone(),
            spec: blueprint.spec(epoch),
            blueprint: Arc::clone(&blueprint),
        });
        let data = DataServer::new(DataService { link: link.clone(), blueprint: Arc::clone(&blueprint) });
        let saver = Saver::new(link.clone(), Arc::clone(&blueprint), Arc::clone(&store), blocking.clone(), newest);
        let (saver, relay) = (Arc::new(saver), Relay::new());
        let checkpoint =
            CheckpointServer::new(CheckpointService { link: link.clone(), blueprint, store, blocking, saver, relay });
        let evaluation = EvaluationServer::new(EvaluationService { link });
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<MembershipServer<MembershipService>>().await;

        let policy = Arc::new(Policy { tokens: security.tokens, limits });
        let door = Door { tls: security.tls, limits };
        let served = Server::builder()
            .http2_keepalive_interval(Some(limits::KEEPALIVE))
            .http2_keepalive_timeout(Some(limits::KEEPALIVE))
            .http2_max_header_list_size(limits::HEADERS)
            .max_concurrent_streams(limits::CALLS)
            .concurrency_limit_per_connection(limits::CALLS as usize)
            .layer(layer_fn(move |inner| Guard { inner, policy: Arc::clone(&policy) }))
            .add_service(health_service)
            .add_service(admin.max_decoding_message_size(limits::MESSAGE))
            .add_service(membership.max_decoding_message_size(limits::MESSAGE))
            .add_service(data.max_decoding_message_size(limits::MESSAGE))
            .add_service(checkpoint.max_decoding_message_size(limits::MESSAGE))
            .add_service(evaluation.max_decoding_message_size(limits::MESSAGE))
            .serve_with_incoming_shutdown(door.open(listener, shutdown.clone()), shutdown.cancelled());
        if let Err(error) = served.await {
            tracing::error!("the gRPC server ended: {error}");
        }
    }
}
