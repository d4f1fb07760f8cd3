//! Rotary embedding on packed positions.

use super::{Comparison, Source, ok};
use crate::{Backend, Direction, PackedLayout, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(400);
    let mut all = Vec::new();
    for (heads, half, layout) in [
        (1, 1, PackedLayout::new(&[1], &[0])),
        (3, 8, PackedLayout::new(&[31, 1, 2], &[0, 1, 2])),
        (9, 32, PackedLayout::new(&[129, 127], &[0, 1])),
        (1, 64, PackedLayout::new(&[1000], &[0])),
        (2, 5, PackedLayout::continuing(33, 7)),
    ] {
        let positions = layout.positions();
        let longest = 1 + positions.iter().copied().max().unwrap_or(0) as usize;
        let angle = |i: usize| (i / half) as f64 * 10_000_f64.powf(-((i % half) as f64) / half as f64);
        let cos: Vec<f32> = (0..longest * half).map(|i| angle(i).cos() as f32).collect();
        let sin: Vec<f32> = (0..longest * half).map(|i| angle(i).sin() as f32).collect();
        let tables = ok(b.upload_rotary(&cos, &sin, half));
        let (cos, sin) = (super::widen(&cos), super::widen(&sin));
        let packing = ok(b.upload_packing(&layout));
        for direction in [Direction::Forward, Direction::Backward] {
            let (mut x, stored) = source.matrix(b, positions.len(), heads * 2 * half, 1.0);
            ok(b.rotary(&mut x, heads, &tables, &packing, direction));
            let want = reference::rotary(&stored, heads, &cos, &sin, half, &positions, direction);
            let what = format!("rotary {direction:?}, {heads} heads, half {half}, {} rows", positions.len());
            all.push(Comparison::stored(what, ok(b.read_activations(&x)), want, 4.0));
        }
    }
    all
}
