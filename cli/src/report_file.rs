//! Reading `report.json`.

use ballast_coordinator::report::{REPORT, Report};
use ballast_proto::{ErrorCode, Failure};
use std::path::Path;

/// The report at `path`: the file, or the run directory that holds it.
pub(crate) fn read(path: &Path) -> Result<Report, Failure> {
    let file = if path.is_dir() { path.join(REPORT) } else { path.to_owned() };
    let failed = |reason: String| Failure::new(ErrorCode::ReportUnreadable, format!("{}: {reason}", file.display()));
    let bytes = std::fs::read(&file).map_err(|e| failed(e.to_string()))?;
    let report: Report = serde_json::from_slice(&bytes).map_err(|e| failed(format!("not a report of a run: {e}")))?;
    if report.format != Report::FORMAT {
        return Err(failed(format!("format {} is not known to this version of ballast", report.format)));
    }
    Ok(report)
}
