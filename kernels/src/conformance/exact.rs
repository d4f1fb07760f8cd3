//! Fixed point: every integer and every flag must be right.

use super::{Source, ok};
use crate::{Backend, Bucket, FLAG_NOT_FINITE, Segment, reference};

/// Accumulates `gradient` on `sums` that start at `start`; returns sums and flags.
fn accumulate<B: Backend>(
    b: &B,
    gradient: &[f32],
    segments: &[Segment],
    limit_bits: u32,
    start: i64,
    flags: &[i64],
) -> (Vec<i64>, Vec<i64>) {
    let (mut sums, mut device_flags) = (ok(b.integers(gradient.len())), ok(b.integers(segments.len())));
    ok(b.write_integers(&mut sums, &vec![start; gradient.len()]));
    ok(b.write_integers(&mut device_flags, flags));
    let vector = ok(b.upload_reals(gradient));
    ok(b.accumulate_fixed(&vector, &Bucket::whole(segments, gradient.len()), limit_bits, &mut sums, &mut device_flags));
    let (mut got, mut got_flags) = (vec![0; gradient.len()], vec![0; segments.len()]);
    ok(b.read_integers(&sums, &mut got));
    ok(b.read_integers(&device_flags, &mut got_flags));
    (got, got_flags)
}

pub(super) fn check<B: Backend>(b: &B) {
    rounding(b);
    flags(b);
    many_segments(b);
    buckets(b);
    back_to_gradients(b);
    largest(b);
}

fn rounding<B: Backend>(b: &B) {
    let mut values =
        vec![0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.499_999_97, 0.500_000_06, 1e-45, -1e-40, 8_388_609.0];
    values.extend(Source::new(1).floats(1000, 50.0));
    for exponent in [-20, -1, 0, 1, 3, 24, 40] {
        let scaled: Vec<f32> = values.iter().map(|value| value * 2.0_f32.powi(-exponent)).collect();
        let all = 0..scaled.len();
        let (sums, flags) = accumulate(b, &scaled, &[Segment { range: all, exponent }], 40, 1000, &[0]);
        assert_eq!(flags, [0]);
        for (value, sum) in scaled.iter().zip(sums) {
            let want = reference::to_fixed(*value, exponent, 40);
            assert_eq!(Ok(sum - 1000), want, "{value:e} at 2^{exponent}");
        }
    }
}

fn flags<B: Backend>(b: &B) {
    for (value, exponent, limit_bits) in [
        (1.0, 30, 30),
        (1.000_000_1, 30, 30),
        (-2.0, 30, 30),
        (2.000_000_2, 30, 30),
        (1.0, 62, 62),
        (-1.5, 62, 62),
        (f32::MAX, 0, 62),
        (f32::MAX, 100, 62),
        (1e-45, 300, 50),
        (8.25, 0, 3),
        (8.75, 0, 3),
        (3.0, -600, 10),
        (f32::NAN, 0, 62),
        (f32::INFINITY, -200, 62),
        (f32::NEG_INFINITY, 0, 62),
    ] {
        let mut gradient = vec![0.25; 37];
        gradient[20] = value;
        let quiet = Segment { range: 0..20, exponent: 2 };
        let segments = [quiet, Segment { range: 20..21, exponent }];
        let (_, flags) = accumulate(b, &gradient, &segments, limit_bits, 0, &[0, 0]);
        let want = reference::to_fixed(value, exponent, limit_bits).err().unwrap_or(0);
        assert_eq!(flags, [0, want], "{value:e} at 2^{exponent}, limit 2^{limit_bits}");
        if want > 0 && want < FLAG_NOT_FINITE {
            let fits = exponent - want as i32;
            assert!(reference::to_fixed(value, fits, limit_bits).is_ok());
        }
        // A flag never falls.
        let (_, flags) = accumulate(b, &gradient, &segments, limit_bits, 0, &[5, i64::MAX]);
        assert_eq!(flags, [5, i64::MAX]);
    }
}

fn many_segments<B: Backend>(b: &B) {
    let gradient = Source::new(2).floats(100_000, 1.0);
    let bounds = [0, 1, 1, 17, 9000, 40_000, 99_998, 100_000];
    let segments: Vec<Segment> = bounds
        .windows(2)
        .enumerate()
        .map(|(i, bounds)| Segment { range: bounds[0]..bounds[1], exponent: 20 + 3 * i as i32 })
        .collect();
    let (sums, flags) = accumulate(b, &gradient, &segments, 50, -3, &[0; 7]);
    assert_eq!(flags, [0; 7]);
    for segment in &segments {
        for i in segment.range.clone() {
            assert_eq!(Ok(sums[i] + 3), reference::to_fixed(gradient[i], segment.exponent, 50), "element {i}");
        }
    }
    // What lies between segments is left alone.
    let gap = [Segment { range: 10..20, exponent: 4 }, Segment { range: 30..31, exponent: 4 }];
    let (sums, _) = accumulate(b, &gradient[..40], &gap, 50, 77, &[0, 0]);
    for (i, sum) in sums.iter().enumerate() {
        let inside = gap.iter().any(|segment| segment.range.contains(&i));
        assert!(inside || *sum == 77, "element {i}");
    }
}

/// Buckets together do what the whole does, and each touches what is its own alone.
fn buckets<B: Backend>(b: &B) {
    let bounds = [0, 7, 7, 5000, 5001, 9100, 20_000, 20_013];
    let segment = |(i, bounds): (usize, &[usize])| Segment { range: bounds[0]..bounds[1], exponent: 20 + i as i32 };
    let segments: Vec<Segment> = bounds.windows(2).enumerate().map(segment).collect();
    let len = 20_013;
    let mut gradient = Source::new(9).floats(len, 1.0);
    // Met by segments of two different buckets.
    (gradient[3], gradient[9000]) = (f32::NAN, 2.0_f32.powi(40));
    let (whole, whole_flags) = accumulate(b, &gradient, &segments, 40, 5, &[0; 7]);
    let vector = ok(b.upload_reals(&gradient));
    let (mut flags, mut mean) = (ok(b.integers(7)), ok(b.upload_reals(&vec![0.25; len])));
    let mut want = vec![0.25; len];
    for (done, members) in [4..7, 1..3, 0..1, 3..4].into_iter().enumerate() {
        let elements = bounds[members.start]..bounds[members.end];
        let bucket = Bucket { segments: &segments, members: members.clone(), elements: elements.clone() };
        let mut sums = ok(b.integers(elements.len()));
        ok(b.write_integers(&mut sums, &vec![5; elements.len()]));
        ok(b.accumulate_fixed(&vector, &bucket, 40, &mut sums, &mut flags));
        let mut got = vec![0; elements.len()];
        ok(b.read_integers(&sums, &mut got));
        for (i, (got, want)) in got.iter().zip(&whole[elements.clone()]).enumerate() {
            // A flagged segment's sums are unspecified.
            let at = elements.start + i;
            let flagged = segments.iter().zip(&whole_flags).any(|(s, &flag)| flag > 0 && s.range.contains(&at));
            assert!(flagged || got == want, "element {at}");
        }
        let mut met = vec![0; 7];
        ok(b.read_integers(&flags, &mut met));
        let mine = |i: usize| [4..7, 1..3, 0..1, 3..4][..=done].iter().any(|members| members.contains(&i));
        let so_far: Vec<i64> =
            whole_flags.iter().enumerate().map(|(i, &flag)| if mine(i) { flag } else { 0 }).collect();
        assert_eq!(met, so_far);

        ok(b.fixed_to_gradient(&sums, &bucket, 3.0, &mut mean));
        for segment in &segments[members] {
            for i in segment.range.clone() {
                want[i] = reference::from_fixed(got[i - elements.start], segment.exponent, 3.0);
            }
        }
        assert_eq!(ok(b.read_reals(&mean)), want);
    }
    assert!(whole_flags[0] == FLAG_NOT_FINITE && whole_flags[4] > 0);
}

fn back_to_gradients<B: Backend>(b: &B) {
    let values: Vec<i64> = vec![0, 1, -1, 3, i64::MAX / 2, -(1 << 62), 123_456_789_012_345, -7];
    let segments = [Segment { range: 0..5, exponent: 30 }, Segment { range: 5..8, exponent: -12 }];
    let mut sums = ok(b.integers(values.len()));
    ok(b.write_integers(&mut sums, &values));
    let mut gradient = ok(b.reals(values.len()));
    ok(b.fixed_to_gradient(&sums, &Bucket::whole(&segments, values.len()), 1371.0, &mut gradient));
    let got = ok(b.read_reals(&gradient));
    for segment in &segments {
        for i in segment.range.clone() {
            assert_eq!(got[i], reference::from_fixed(values[i], segment.exponent, 1371.0), "element {i}");
        }
    }
}

fn largest<B: Backend>(b: &B) {
    let mut values = Source::new(3).floats(5000, 1.0);
    values[4000] = -100.0;
    values[10] = 50.0;
    let segments = [
        Segment { range: 0..11, exponent: 0 },
        Segment { range: 11..12, exponent: 0 },
        Segment { range: 100..5000, exponent: 0 },
    ];
    let got = ok(b.max_abs(&ok(b.upload_reals(&values)), &segments));
    assert_eq!(got, [50.0, values[11].abs(), 100.0]);
    values[200] = f32::NAN;
    let got = ok(b.max_abs(&ok(b.upload_reals(&values)), &segments));
    assert!(!got[2].is_finite());
}
