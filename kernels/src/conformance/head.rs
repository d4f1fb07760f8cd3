//! Output head: cross-entropy, log-probabilities, logits, untied with bias and tied.

use super::source::{poisoned, poisoned_reals};
use super::{Comparison, Source, ok, plain};
use crate::{Backend, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, usize::MAX)
}

/// Without the large vocabulary.
pub(super) fn compare_short<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, 1000)
}

fn compare_up_to<B: Backend>(b: &B, largest: usize) -> Vec<Comparison> {
    let mut source = Source::new(800);
    let mut all = Vec::new();
    for (rows, hidden, vocab, tied) in [
        (1, 1, 2, false),
        (1, 64, 1000, true),
        (33, 31, 129, false),
        (127, 16, 1000, true),
        (1000, 8, 33, true),
        // Some chunks of rows, some stretches of a long K.
        (70, 8, 150_001, true),
    ] {
        if vocab <= largest {
            all.extend(one(b, &mut source, rows, hidden, vocab, tied));
        }
    }
    all
}

/// Typical error of the sum of exponentials, in roundings: a lane adds one sixteenth of the vocabulary in f32, one after
/// the other (ADR 0009), and the roundings walk at random. It has the same sign in a whole row of the gradient.
fn lane_sum_error(vocab: usize) -> f64 {
    (vocab as f64 / 16.0).sqrt()
}

fn one<B: Backend>(
    b: &B,
    source: &mut Source,
    rows: usize,
    hidden: usize,
    vocab: usize,
    tied: bool,
) -> Vec<Comparison> {
    let case = format!("[{rows}, {hidden}] x {vocab}, tied {tied}");
    let (values, bias) = (source.frozen(b, vocab, hidden, 1.0), source.frozen(b, 1, vocab, 2.0));
    let head = match tied {
        true => ok(b.tied_head(&ok(b.pack_embedding(&values, vocab, hidden)))),
        false => ok(b.pack_linear(&values, vocab, hidden, Some(&bias))),
    };
    let (w, bias) = (super::widen(&values), super::widen(&bias));
    let bias = (!tied).then_some(&bias[..]);
    let (x, x_stored) = source.matrix(b, rows, hidden, 1.0);
    let mut ids = source.indices(rows, vocab);
    ids[0] = vocab as u32 - 1;
    let targets = ok(b.upload_indices(&ids));
    let want: Vec<f64> =
        reference::log_probabilities(&x_stored, &w, vocab, bias, &ids).into_iter().map(|log_p| -log_p).collect();

    let plain = plain::Head { hidden: &x_stored, weight: &w, bias, targets: &ids };
    let (plain_losses, plain_d) = plain.cross_entropy();

    let (mut losses, mut d_x) = (poisoned_reals(b, rows), poisoned(b, rows, hidden));
    ok(b.linear_cross_entropy(&x, &head, &targets, &mut losses, Some(&mut d_x)));
    let losses = ok(b.read_reals(&losses));
    // A backend chooses how it sums the exponentials (docs/adr/0009), and an error of the sum has one sign in a whole row
    // of the gradient. So the gradient is held tightly to the sum that the backend's losses report, and to the exact one.
    let own_d = reference::cross_entropy_gradient(&x_stored, &w, vocab, bias, &ids, &super::widen(&losses));
    let (_, exact_d) = reference::cross_entropy(&x_stored, &w, vocab, bias, &ids);
    let d_x = ok(b.read_activations(&d_x));
    let mut all = vec![
        Comparison::real(format!("losses {case}"), losses, want.clone(), 16.0).plainly(plain_losses.clone()),
        Comparison::stored(format!("d_hidden by its losses {case}"), d_x.clone(), own_d, 32.0).plainly(plain_d.clone()),
        Comparison::stored(format!("d_hidden {case}"), d_x, exact_d, 32.0 + lane_sum_error(vocab)).plainly(plain_d),
    ];
    let mut losses = poisoned_reals(b, rows);
    ok(b.linear_cross_entropy(&x, &head, &targets, &mut losses, None));
    all.push(
        Comparison::real(format!("losses alone {case}"), ok(b.read_reals(&losses)), want, 16.0)
            .plainly(plain_losses.clone()),
    );
    let mut log_p = poisoned_reals(b, rows);
    ok(b.log_probabilities(&x, &head, &targets, &mut log_p));
    let want = reference::log_probabilities(&x_stored, &w, vocab, bias, &ids);
    let plain_log_p = plain_losses.iter().map(|loss| -loss).collect();
    all.push(
        Comparison::real(format!("log_probabilities {case}"), ok(b.read_reals(&log_p)), want, 16.0)
            .plainly(plain_log_p),
    );
    if vocab <= 1000 {
        let mut logits = poisoned_reals(b, rows * vocab);
        ok(b.logits(&x, &head, &mut logits));
        let want = reference::logits(&x_stored, rows, &w, vocab, bias);
        all.push(
            Comparison::real(format!("logits {case}"), ok(b.read_reals(&logits)), want, 16.0).plainly(plain.logits()),
        );
    }
    all
}
