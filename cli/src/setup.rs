//! From a run file to all that a coordinator is started with.

use crate::args::{LogFormat, RunFileArgs};
use crate::bars;
use crate::descriptors;
use crate::failure::coded;
use crate::screen::Screen;
use ballast_basemodel::{BaseModel, ModelSource};
use ballast_coordinator::config::{self, Resolved, RunFile};
use ballast_coordinator::data::{self, PrepareProgress, PreparedSet};
use ballast_coordinator::security::Security;
use ballast_coordinator::server::{self, Limits, ModelInfo, RunData, StartOptions};
use ballast_proto::{ErrorCode, Failure};
use serde_json::json;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Loads a run file; `--insecure` is one more setting.
pub(crate) fn resolve(args: &RunFileArgs, insecure: bool) -> anyhow::Result<Resolved> {
    let mut overrides = args.set.clone();
    if insecure {
        overrides.push(("cluster.insecure".into(), "true".into()));
    }
    config::load(&args.run_file, &overrides, &config::environment()).map_err(coded)
}

/// Opens the base model, downloading it if need be.
pub(crate) fn open_model(run: &RunFile, screen: &Screen) -> anyhow::Result<BaseModel> {
    let spinner = bars::spinner(screen, format!("opening {}", run.model.source));
    let source = ModelSource::parse(&run.model.source, run.model.revision.as_deref()).map_err(coded)?;
    let model = source.fetch().map_err(coded);
    spinner.finish_and_clear();
    model
}

/// Prepares the data, or finds it prepared.
pub(crate) fn prepare(run: &RunFile, model: &BaseModel, screen: &Screen) -> anyhow::Result<PreparedSet> {
    let spinner = bars::spinner(screen, "preparing the data");
    let progress = |progress: PrepareProgress| match progress {
        PrepareProgress::Cached => spinner.set_message("reading the prepared set from the cache"),
        PrepareProgress::Rows(rows) => spinner.set_message(format!("preparing the data: {rows} rows")),
    };
    let prepared = data::prepare(run, model, &progress).map_err(coded);
    spinner.finish_and_clear();
    let prepared = prepared?;
    let stats = &prepared.stats;
    match screen.format() {
        LogFormat::Json => screen.json(&json!({"event": "prepared", "sha256": prepared.sha256, "stats": stats})),
        LogFormat::Text => screen.line(&format!(
            "data: {} samples, {} tokens ({} bear loss)",
            stats.samples, stats.tokens, stats.loss_tokens
        )),
    }
    Ok(prepared)
}

/// All that a coordinator is started with: certificates and tokens read, base model opened, data prepared.
pub(crate) fn start_options(resolved: Resolved, screen: &Screen) -> anyhow::Result<StartOptions> {
    // First, because the rest takes time.
    let security = Security::load(&resolved.run.security)?;
    let model = open_model(&resolved.run, screen)?;
    let prepared = prepare(&resolved.run, &model, screen)?;
    let binary = server::binary_sha256()
        .map_err(|e| Failure::new(ErrorCode::Internal, format!("this binary cannot be read: {e}")))?;
    let limits = Limits::of(resolved.run.cluster.workers);
    let mut data = RunData::of(&prepared);
    data.warnings.extend(descriptors::make_room(&limits));
    Ok(StartOptions {
        security,
        limits,
        resolved: Arc::new(resolved),
        model: ModelInfo::of(&model)?,
        data,
        binary_sha256: binary,
    })
}

/// The async runtime of a coordinator.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.map_err(|e| Failure::new(ErrorCode::Internal, format!("the async runtime cannot start: {e}")))?)
}
