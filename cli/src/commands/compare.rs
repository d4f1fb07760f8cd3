//! `ballast compare`

use crate::args::CompareArgs;
use crate::comparison::Digest;
use crate::{comparison, report_file, screen};
use ballast_proto::exit;

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<u8> {
    let mut digests = Vec::new();
    for path in &args.runs {
        digests.push(Digest::of(&report_file::read(path)?));
    }
    comparison::tell_apart(&mut digests, &args.runs);
    let text = if args.json { comparison::json(&digests)? } else { comparison::table(&digests) };
    screen::print(&text)?;
    Ok(exit::DONE)
}
