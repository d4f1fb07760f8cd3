//! Low-rank paths and the head. The products with frozen weights are cuBLASLt's and launch no kernel of ours.

use crate::case::{Case, Kernel, Size, matrix};
use ballast_kernels::cuda::{CudaBackend, Packing, Storage, Vector};
use ballast_kernels::{Backend, Dropout, KernelError, LoraPath, PackedLayout, Target};

/// Tiles of kernels/cuda/lora.cu for ranks above 16: the rank's side, the wide side, elements of K a block contracts.
const THIN: usize = 64;
const WIDE: usize = 128;
const SPLIT: usize = 1024;
/// The same for ranks up to 16, where only the number of pieces shows in a floor.
const NARROW: usize = 16;
const NARROW_SPLIT: usize = 512;
const F32: usize = 4;

/// A frozen layer with its low-rank path.
#[derive(Clone, Copy)]
struct Layer {
    tokens: usize,
    inp: usize,
    out: usize,
    rank: usize,
    storage: Storage,
}

impl Layer {
    fn name(self, kernel: &str) -> String {
        format!("{kernel}_{}", if self.rank <= NARROW { NARROW } else { THIN })
    }

    /// `[side, k]` activations times a thin operand. Up to rank 16 it is bound by memory.
    fn contraction(self, kernel: &str, side: usize, k: usize) -> Kernel {
        let (wide, thin, out) = (side * k * self.storage.bytes(), k * self.rank * F32, side * self.rank * F32);
        let whole = Kernel::typed(&self.name(kernel), self.storage, wide + thin + out);
        if self.rank <= NARROW {
            return whole;
        }
        whole.tiled(wide * self.rank.div_ceil(THIN) + thin * side.div_ceil(WIDE) + out * k.div_ceil(SPLIT))
    }

    /// Thin times a matrix of the adapter, added to `[tokens, cols]` activations.
    fn expansion(self, kernel: &str, cols: usize) -> Kernel {
        let to = 2 * self.tokens * cols * self.storage.bytes();
        let (thin, matrix) = (self.tokens * self.rank * F32, cols * self.rank * F32);
        let whole = Kernel::typed(&self.name(kernel), self.storage, to + thin + matrix);
        if self.rank <= NARROW {
            return whole;
        }
        whole.tiled(to + thin * cols.div_ceil(WIDE) + matrix * self.tokens.div_ceil(WIDE))
    }

    /// The sums of the pieces of contractions of `(side, k)`; none where there is one piece.
    fn sums(self, contractions: &[(usize, usize)]) -> Vec<Kernel> {
        let split = if self.rank <= NARROW { NARROW_SPLIT } else { SPLIT };
        let pieces = contractions.iter().map(|&(side, k)| (side, k.div_ceil(split))).filter(|&(_, pieces)| pieces > 1);
        let bytes: usize = pieces.map(|(side, pieces)| (pieces + 1) * side * self.rank * F32).sum();
        if bytes > 0 { vec![Kernel::plain("lora_sum", bytes)] } else { Vec::new() }
    }

    fn path<'a>(self, parameters: &'a Vector, packing: &'a Packing) -> LoraPath<'a, CudaBackend> {
        let a = 0..self.rank * self.inp;
        let b = a.end..a.end + self.rank * self.out;
        let dropout = Dropout { probability: 0.1, seed: 1, step: 1, module: 0, packing };
        LoraPath { parameters, a, b, rank: self.rank, scaling: 2.0, dropout: Some(dropout) }
    }

    fn forward(self, b: &CudaBackend) -> Result<(), KernelError> {
        let weight = b.pack_linear(&vec![0.5; self.out * self.inp], self.out, self.inp, None)?;
        let packing = b.upload_packing(&PackedLayout::new(&[self.tokens as u32], &[0]))?;
        let (parameters, mut down) = (b.reals(self.rank * (self.inp + self.out))?, b.reals(self.tokens * self.rank)?);
        let (x, mut y) = (matrix(b, self.tokens, self.inp)?, matrix(b, self.tokens, self.out)?);
        b.linear(&x, &weight, Some((&self.path(&parameters, &packing), &mut down)), &mut y)
    }

    fn backward(self, b: &CudaBackend) -> Result<(), KernelError> {
        let weight = b.pack_linear(&vec![0.5; self.out * self.inp], self.out, self.inp, None)?;
        let packing = b.upload_packing(&PackedLayout::new(&[self.tokens as u32], &[0]))?;
        let parameters = b.reals(self.rank * (self.inp + self.out))?;
        let (mut gradient, down) = (b.reals(self.rank * (self.inp + self.out))?, b.reals(self.tokens * self.rank)?);
        let (d_y, x) = (matrix(b, self.tokens, self.out)?, matrix(b, self.tokens, self.inp)?);
        let mut d_x = matrix(b, self.tokens, self.inp)?;
        let lora = (&self.path(&parameters, &packing), &down, &mut gradient);
        b.linear_backward(&d_y, &x, &weight, Some(lora), Some(Target::Overwrite(&mut d_x)))
    }

    fn cases(self) -> [Case; 2] {
        let Self { tokens, inp, out, rank, .. } = self;
        let shape = [tokens, inp, out, rank];
        let mut forward = vec![self.contraction("lora_down", tokens, inp), self.expansion("lora_up", out)];
        forward.extend(self.sums(&[(tokens, inp)]));
        let mut backward = vec![
            self.contraction("lora_d_b", out, tokens),
            self.contraction("lora_d_down", tokens, out),
            self.contraction("lora_d_a", inp, tokens),
            self.expansion("lora_d_x", inp),
        ];
        backward.extend(self.sums(&[(out, tokens), (tokens, out), (inp, tokens)]));
        [
            Case::new("linear", &shape, forward, move |b| self.forward(b)),
            Case::new("linear_backward", &shape, backward, move |b| self.backward(b)),
        ]
    }
}

/// Rank 16, the usual one, bound by memory; and rank 64, bound by arithmetic, at half the width.
pub(crate) fn lora_cases(size: Size, storage: Storage) -> Vec<Case> {
    let Size { tokens, hidden, .. } = size;
    let usual = Layer { tokens, inp: hidden, out: hidden, rank: 16, storage };
    let broad = Layer { tokens: tokens / 2, inp: hidden / 2, out: hidden / 2, rank: 64, storage };
    usual.cases().into_iter().chain(broad.cases()).collect()
}

/// Rows of logits.
pub(crate) const ROWS: usize = 8;
const HIDDEN: usize = 16;
/// Logits that a block keeps in the shared memory of the software device (163 KiB less 1, as head.rs has it).
const KEPT: usize = (162 << 10) / F32;

pub(crate) fn head_cases(size: Size, storage: Storage) -> Vec<Case> {
    let mut all = Vec::new();
    for vocab in size.vocabularies {
        // Losses, targets and the targets' logits besides.
        let (read, written) = (ROWS * (vocab * F32 + 3 * F32), ROWS * vocab * storage.bytes());
        let shape = [ROWS, vocab];
        let kernel = Kernel::typed("cross_entropy", storage, read + written);
        let again = ROWS * vocab.saturating_sub(KEPT) * F32;
        // What a block cannot keep it must read twice.
        let kernel = if again * 8 > read + written { kernel.tiled(read + written + again) } else { kernel };
        all.push(Case::new("linear_cross_entropy", &shape, vec![kernel], move |b| {
            let head = b.tied_head(&b.pack_embedding(&vec![0.5; vocab * HIDDEN], vocab, HIDDEN)?)?;
            let (hidden, targets) = (matrix(b, ROWS, HIDDEN)?, b.upload_indices(&[1; ROWS])?);
            let (mut losses, mut d_hidden) = (b.reals(ROWS)?, matrix(b, ROWS, HIDDEN)?);
            b.linear_cross_entropy(&hidden, &head, &targets, &mut losses, Some(&mut d_hidden))
        }));
        let kernel = vec![Kernel::typed("cross_entropy", storage, read)];
        all.push(Case::new("log_probabilities", &shape, kernel, move |b| {
            let head = b.tied_head(&b.pack_embedding(&vec![0.5; vocab * HIDDEN], vocab, HIDDEN)?)?;
            let (hidden, targets) = (matrix(b, ROWS, HIDDEN)?, b.upload_indices(&[1; ROWS])?);
            b.log_probabilities(&hidden, &head, &targets, &mut b.reals(ROWS)?)
        }));
    }
    all
}
