//! Many rows to many samples: in parallel, in order, with everything counted.

use super::error::DataError;
use super::lookahead::{LABEL_TOKENS, LeftOut, is_on};
use super::pipeline::{Outcome, Pipeline, PreparedRow};
use super::prepare::{PrepareProgress, left_out};
use super::prepared::Stats;
use super::row::Row;
use super::source::BadRows;
use super::tokenize::Sample;
use crate::config::{LookAheadMode, RunFile};
use rayon::prelude::*;
use std::io::{self, Write};
use std::path::PathBuf;

/// Rows prepared at once: enough to keep every core busy, few enough to hold.
const CHUNK: usize = 2048;

/// Training rows, prepared.
pub(super) struct Training {
    pub(super) samples: Vec<Sample>,
    pub(super) stats: Stats,
    pub(super) warnings: Vec<String>,
    /// The rewritten rows, JSONL within a Zstandard frame.
    pub(super) rows: Vec<u8>,
}

/// Takes rows one by one and prepares them chunk by chunk.
pub(super) struct Collector<'a> {
    run: &'a RunFile,
    pipeline: &'a Pipeline<'a>,
    progress: &'a dyn Fn(PrepareProgress),
    pending: Vec<Row>,
    refused: BadRows,
    samples: Vec<Sample>,
    rows: zstd::Encoder<'static, Vec<u8>>,
    stats: Stats,
    /// Rows whose answer is a label rather than a text.
    labels: u64,
}

impl<'a> Collector<'a> {
    pub(super) fn new(
        run: &'a RunFile,
        pipeline: &'a Pipeline<'a>,
        progress: &'a dyn Fn(PrepareProgress),
    ) -> Result<Self, DataError> {
        Ok(Self {
            run,
            pipeline,
            progress,
            pending: Vec::with_capacity(CHUNK),
            refused: BadRows::default(),
            samples: Vec::new(),
            rows: zstd::Encoder::new(Vec::new(), 1).map_err(|e| compressor(&e))?,
            stats: Stats::default(),
            labels: 0,
        })
    }

    /// Takes a row.
    pub(super) fn add(&mut self, row: Row) -> Result<(), DataError> {
        self.pending.push(row);
        if self.pending.len() == CHUNK { self.prepare_pending() } else { Ok(()) }
    }

    fn prepare_pending(&mut self) -> Result<(), DataError> {
        let pipeline = self.pipeline;
        let outcomes: Vec<_> =
            std::mem::take(&mut self.pending).into_par_iter().map(|row| pipeline.training(row)).collect();
        for outcome in outcomes {
            self.stats.rows += 1;
            match outcome? {
                Outcome::Prepared(row) => self.keep(*row)?,
                Outcome::Skipped => self.stats.skipped += 1,
                Outcome::NothingLeft => self.stats.truncated_away += 1,
                Outcome::Bad(error) => self.refused.meet(error, self.run.data.on_bad_row)?,
            }
        }
        (self.progress)(PrepareProgress::Rows(self.stats.rows));
        Ok(())
    }

    fn keep(&mut self, row: PreparedRow) -> Result<(), DataError> {
        writeln!(self.rows, "{}", row.json).map_err(|e| compressor(&e))?;
        let stats = &mut self.stats;
        let tokens = row.sample.ids.len() as u64;
        stats.samples += 1;
        stats.tokens += tokens;
        stats.loss_tokens += row.sample.loss_tokens();
        stats.preview_tokens += row.preview_tokens;
        stats.min_tokens = if stats.samples == 1 { tokens } else { stats.min_tokens.min(tokens) };
        stats.max_tokens = stats.max_tokens.max(tokens);
        let short = row.previews.iter().any(|p| p.short) || row.left_out.contains(&LeftOut::Short);
        let label = row.previews.iter().any(|p| p.answer_tokens.is_some_and(|n| n <= LABEL_TOKENS));
        stats.truncated += u64::from(row.cut);
        stats.empty_answers += u64::from(row.empty_answer);
        stats.rewritten += u64::from(!row.previews.is_empty());
        stats.short_answers += u64::from(short);
        stats.whole_previews += u64::from(!row.previews.is_empty() && row.previews.iter().all(|p| p.whole));
        stats.passed_through += u64::from(row.left_out.contains(&LeftOut::NoTurn));
        self.labels += u64::from(label);
        self.samples.push(row.sample);
        Ok(())
    }

    /// Prepares what is left and draws the sum. `unread` are the rows that did not get as far as here.
    pub(super) fn finish(mut self, unread: BadRows) -> Result<Training, DataError> {
        self.prepare_pending()?;
        let bad =
            BadRows { count: unread.count + self.refused.count, first: unread.first.or(self.refused.first.take()) };
        self.stats.rows += unread.count;
        self.stats.bad_rows = bad.count;
        self.stats.mean_tokens = self.stats.tokens as f64 / self.stats.samples.max(1) as f64;
        self.check(&bad)?;
        let warnings = self.warnings(&bad);
        let rows = self.rows.finish().map_err(|e| compressor(&e))?;
        Ok(Training { samples: self.samples, stats: self.stats, warnings, rows })
    }

    /// Refuses a set that cannot be trained on, or on which real mode would protect nothing.
    fn check(&self, bad: &BadRows) -> Result<(), DataError> {
        let (stats, settings) = (&self.stats, &self.run.lookahead);
        if stats.samples == 0 {
            let files = self.run.data.train.as_slice().iter().map(|f| f.display().to_string()).collect::<Vec<_>>();
            let Stats { rows, bad_rows, skipped, truncated_away, .. } = stats;
            let first =
                bad.first.as_ref().map_or_else(String::new, |first| format!("; the first malformed one: {first}"));
            return Err(DataError::Empty(format!(
                "no row is left to train on in {}: {rows} rows, {bad_rows} malformed, {} too long{first}",
                files.join(", "),
                skipped + truncated_away
            )));
        }
        let all_short = stats.rewritten == 0 && stats.short_answers > 0;
        let all_whole = stats.rewritten > 0 && stats.whole_previews == stats.rewritten;
        if settings.mode == LookAheadMode::Real && is_on(settings) && !settings.force && (all_short || all_whole) {
            let m = settings.tokens;
            return Err(DataError::LookAheadShortAnswers(format!(
                "lookahead.tokens = {m} covers every whole answer, so the model would learn to copy; set a smaller number, \
                 lookahead.mode = \"virtual\", or lookahead.force = true"
            )));
        }
        Ok(())
    }

    fn warnings(&self, bad: &BadRows) -> Vec<String> {
        let (stats, settings) = (&self.stats, &self.run.lookahead);
        let counted = [
            (stats.truncated, "samples were cut at data.max_tokens and lost the end of their answers"),
            (stats.truncated_away, "samples were left out: cut at data.max_tokens, no answer would have remained"),
            (stats.skipped, "samples were left out because they are longer than data.max_tokens"),
            (stats.empty_answers, "rows have an empty answer; from them the model learns to say nothing"),
        ];
        let about_lookahead = [
            (stats.short_answers, "rows have an answer shorter than lookahead.tokens (lookahead.short_answer)"),
            (
                stats.passed_through,
                "rows got no preview because no user turn stands before their last answer, or one after",
            ),
        ];
        let shown = counted.into_iter().chain(about_lookahead.into_iter().filter(|_| is_on(settings)));
        let mut warnings: Vec<String> =
            shown.filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        warnings.extend(left_out("rows", bad));
        if settings.mode == LookAheadMode::Real && self.labels * 2 > stats.rewritten {
            warnings.push(format!(
                "most answers have at most {LABEL_TOKENS} tokens: real mode shows them whole in the prompt and the model learns \
                 to copy; lookahead.mode = \"virtual\" suits such data"
            ));
        }
        warnings
    }
}

/// Compressing into memory fails only for want of memory.
fn compressor(error: &io::Error) -> DataError {
    DataError::Cache { path: PathBuf::from("prepared rows"), reason: error.to_string() }
}
