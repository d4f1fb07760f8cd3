//! `ballast explain`

use crate::args::ExplainArgs;
use crate::{pages, screen};
use ballast_proto::{ErrorCode, exit};

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<u8> {
    match args.code {
        Some(code) => screen::print(pages::page(code))?,
        None => {
            for code in ErrorCode::ALL {
                screen::print(&format!("{code}  {}\n", code.title()))?;
            }
        }
    }
    Ok(exit::DONE)
}
