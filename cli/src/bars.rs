//! Bars and spinners at the foot of the terminal. Hidden when standard error is not one.

use crate::screen::Screen;
use indicatif::{ProgressBar, ProgressStyle};
use std::borrow::Cow;
use std::time::Duration;

/// Something of unknown length goes on.
pub(crate) fn spinner(screen: &Screen, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let spinner = screen.bars().add(ProgressBar::new_spinner().with_message(message));
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// A bar of `length` steps.
pub(crate) fn bar(screen: &Screen, what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:28}] {pos}/{len}  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    screen.bars().add(ProgressBar::new(length).with_style(style).with_prefix(what))
}
