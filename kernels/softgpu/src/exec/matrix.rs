//! Tensor cores and the loads that feed them. Fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16".

use super::{
    LANES, Problem,
    approximate::{Perturbation, splitmix},
    block::Machine,
    half::to_f32,
    memory::read_bytes,
    registers::Row,
    shared,
    warp::Warp,
};
use crate::ir::{Address, Element, Mma, Op, Slot};

type A = [[f32; 16]; 16];
type B = [[f32; 8]; 16];
type C = [[f32; 8]; 16];

/// `c += a b` over the first `k` columns of `a`, the products of an element added one after the other from k =
/// `start` in steps of `step` (modulo `k`).
#[multiversion::multiversion(targets("x86_64+avx2+fma"))]
fn multiply(a: &A, b: &B, c: &mut C, k: usize, start: usize, step: usize) {
    // Four rows at a time, so that the processor need not wait for one sum before it goes on with the next.
    for (rows, sums) in a.as_chunks::<4>().0.iter().zip(c.as_chunks_mut::<4>().0) {
        let mut local = *sums;
        for at in 0..k {
            let at = (start + at * step) & (k - 1) & 15;
            for (row, sums) in rows.iter().zip(&mut local) {
                for (sum, factor) in sums.iter_mut().zip(&b[at]) {
                    *sum = row[at].mul_add(*factor, *sum);
                }
            }
        }
        *sums = local;
    }
}

/// Takes A and B out of their fragments; `element` reads part `half` of a register, which holds `width` elements.
#[inline(always)]
fn gather(warp: &Warp, mma: &Mma, width: usize, element: impl Fn(u32, usize) -> f32) -> (A, B) {
    let (mut a, mut b): (A, B) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
    for block in 0..mma.k / (4 * width) {
        let words_b = warp.registers.get32(mma.b[block]);
        let [upper, lower] = [0, 1].map(|rows| warp.registers.get32(mma.a[2 * block + rows]));
        for lane in 0..LANES {
            let (group, within) = (lane / 4, lane % 4);
            for half in 0..width {
                let k = (block * 4 + within) * width + half;
                b[k][group] = element(words_b[lane], half);
                a[group][k] = element(upper[lane], half);
                a[group + 8][k] = element(lower[lane], half);
            }
        }
    }
    (a, b)
}

/// Runs one `mma.sync` for the whole warp.
pub(crate) fn mma(warp: &mut Warp, mma: &Mma, perturbation: Perturbation, count: u64) {
    let (a, b) = match mma.element {
        Element::Bf16 => gather(warp, mma, 2, |word, half| f32::from_bits(word >> (16 * half) << 16)),
        Element::F16 => gather(warp, mma, 2, |word, half| to_f32(Element::F16, (word >> (16 * half)) as u16)),
        // The 13 low bits are not looked at.
        Element::Tf32 => gather(warp, mma, 1, |word, _| f32::from_bits(word & !0x1FFF)),
    };
    let mut c: C = [[0.0; 8]; 16];
    let place = |lane: usize, at: usize| (lane / 4 + at / 2 * 8, lane % 4 * 2 + at % 2);
    for (at, &slot) in mma.c.iter().enumerate() {
        for (lane, &bits) in warp.registers.get32(slot).iter().enumerate() {
            let (row, column) = place(lane, at);
            c[row][column] = f32::from_bits(bits);
        }
    }
    let random = perturbation.map_or(0, |seed| splitmix(seed ^ count));
    // An odd step visits every index once: K is a power of two.
    let (start, step) = if perturbation.is_some() { (random as usize >> 8, random as usize | 1) } else { (0, 1) };
    multiply(&a, &b, &mut c, mma.k, start & 15, step & 15);
    for (at, &slot) in mma.d.iter().enumerate() {
        let row: Row<u32> = std::array::from_fn(|lane| {
            let (row, column) = place(lane, at);
            c[row][column].to_bits()
        });
        warp.registers.set32(slot, &row, u32::MAX);
    }
}

/// Lane `l` of a transposed 8 x 8 fragment: the two elements of column `l / 4` in rows `2 (l % 4)` and the next.
fn transposed(rows: &[[u16; 8]; 8], lane: usize) -> u32 {
    let (row, column) = (lane % 4 * 2, lane / 4);
    u32::from(rows[row + 1][column]) << 16 | u32::from(rows[row][column])
}

fn straight(rows: &[[u16; 8]; 8], lane: usize) -> u32 {
    let (row, column) = (lane / 4, lane % 4 * 2);
    u32::from(rows[row][column + 1]) << 16 | u32::from(rows[row][column])
}

impl Machine<'_> {
    /// Executes an instruction of this family; `false` if it is none. The whole warp takes part.
    pub(crate) fn matrix(&mut self, warp: &mut Warp, op: &Op) -> Result<bool, Problem> {
        match op {
            Op::Mma(operands) => {
                self.counters.mma += 1;
                mma(warp, operands, self.perturbation, self.counters.mma);
            }
            Op::LoadMatrix { count, transposed, address, d } => {
                self.load_matrix(warp, *count as usize, *transposed, *address, d)?;
            }
            Op::MoveMatrix { d, a } => {
                let mut rows = [[0; 8]; 8];
                for (lane, word) in warp.registers.get32(*a).iter().enumerate() {
                    rows[lane / 4][lane % 4 * 2] = *word as u16;
                    rows[lane / 4][lane % 4 * 2 + 1] = (word >> 16) as u16;
                }
                warp.registers.set32(*d, &std::array::from_fn(|lane| transposed(&rows, lane)), u32::MAX);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Row `r` of matrix `m` lies where lane `8 m + r` points to: 16 bytes.
    fn load_matrix(
        &mut self,
        warp: &mut Warp,
        count: usize,
        is_transposed: bool,
        address: Address,
        d: &[Slot; 4],
    ) -> Result<(), Problem> {
        let addresses = warp.addresses(address);
        for (matrix, &slot) in d.iter().enumerate().take(count) {
            let mut rows = [[0_u16; 8]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                self.shared.check_bounds(lane, addresses[lane], 16, "ldmatrix")?;
                self.shared.on_read(warp.thread(lane), addresses[lane], 16)?;
                for (column, value) in values.iter_mut().enumerate() {
                    *value = read_bytes(&self.shared.bytes, addresses[lane] + 2 * column as u64, 2) as u16;
                }
            }
            shared::count(&mut self.counters, &addresses, 0xFF << (8 * matrix), 16);
            let pick = if is_transposed { transposed } else { straight };
            warp.registers.set32(slot, &std::array::from_fn(|lane| pick(&rows, lane)), u32::MAX);
        }
        Ok(())
    }
}
