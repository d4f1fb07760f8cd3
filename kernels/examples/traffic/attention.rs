//! Attention: packed, backward, and with a cache.
//!
//! Blocks own tiles of queries (or of keys) and read again what these meet: the floor of that division is what flash
//! attention must move, queries and what belongs to them once, keys and values once a tile of queries and head that
//! sees them; backward, also queries once a tile of keys that they see.

use crate::case::{Case, Kernel, Size, matrix};
use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_kernels::{AttentionShape, Backend, KernelError, PackedLayout};

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const F32: usize = 4;

/// One sequence.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    length: usize,
    kv_heads: usize,
    head_dim: usize,
    storage: Storage,
    /// Rows that blocks own: of queries, of keys in the backward pass.
    owned: [usize; 2],
    /// How the kernels are named.
    program: &'static str,
}

impl Attention {
    /// The tensor-core kernels of a head size, whose blocks own 64 queries, or so many keys.
    pub(crate) fn tensor(head_dim: usize, program: &'static str, length: usize, keys: usize) -> Self {
        Self { length, kv_heads: KV_HEADS, head_dim, storage: Storage::Bf16, owned: [64, keys], program }
    }

    /// Plain arithmetic, for parity and unusual heads, not for speed.
    fn plain(length: usize, storage: Storage) -> Self {
        Self { length, kv_heads: KV_HEADS, head_dim: 80, storage, owned: [16, 16], program: "plain" }
    }

    /// With another number of key heads.
    pub(crate) fn with_kv_heads(self, kv_heads: usize) -> Self {
        Self { kv_heads, ..self }
    }

    fn shape(self) -> AttentionShape {
        AttentionShape { heads: HEADS, kv_heads: self.kv_heads, head_dim: self.head_dim, scale: 0.125, window: None }
    }

    /// Bytes of a row of a head.
    fn row(self) -> usize {
        self.head_dim * self.storage.bytes()
    }

    fn kernel(self, name: &str, floor: usize, tiled: usize) -> Kernel {
        Kernel::typed(&format!("{name}_{}", self.program), self.storage, floor).tiled(tiled)
    }

    /// Rows of one side that all heads' tiles of the other meet below the diagonal.
    fn met(self, owned: usize) -> usize {
        let tiles = self.length / owned;
        HEADS * owned * tiles * (tiles + 1) / 2
    }

    fn forward_kernel(self) -> Kernel {
        let own = HEADS * self.length * (2 * self.row() + F32);
        let keys = 2 * self.row();
        self.kernel("attention", own + self.kv_heads * self.length * keys, own + self.met(self.owned[0]) * keys)
    }

    fn backward_kernels(self) -> Vec<Kernel> {
        const STATISTICS: usize = 2 * F32;
        let (row, queries, keys) = (self.row(), HEADS * self.length, self.kv_heads * self.length);
        let delta = Kernel::typed("attention_delta", self.storage, queries * (2 * row + F32 + STATISTICS));
        let own = queries * (3 * row + STATISTICS);
        let by_queries =
            self.kernel("attention_query_gradient", own + keys * 2 * row, own + self.met(self.owned[0]) * 2 * row);
        let (own, met) = (keys * 4 * row, 2 * row + STATISTICS);
        let by_keys = self.kernel("attention_key_gradients", own + queries * met, own + self.met(self.owned[1]) * met);
        vec![delta, by_queries, by_keys]
    }

    /// A prompt into an empty cache: the queries of `attention`, without a log-sum-exp.
    fn cached_kernel(self) -> Kernel {
        let own = HEADS * self.length * 2 * self.row();
        let keys = 2 * self.row();
        self.kernel("attention_cached", own + self.kv_heads * self.length * keys, own + self.met(self.owned[0]) * keys)
    }

    fn forward(self, b: &CudaBackend) -> Result<(), KernelError> {
        let of = |heads: usize| matrix(b, self.length, heads * self.head_dim);
        let packing = b.upload_packing(&PackedLayout::new(&[self.length as u32], &[0]))?;
        let (q, k, v, mut out) = (of(HEADS)?, of(self.kv_heads)?, of(self.kv_heads)?, of(HEADS)?);
        b.attention(&q, &k, &v, &packing, &self.shape(), &mut out, &mut b.reals(self.length * HEADS)?)
    }

    fn backward(self, b: &CudaBackend) -> Result<(), KernelError> {
        let of = |heads: usize| matrix(b, self.length, heads * self.head_dim);
        let packing = b.upload_packing(&PackedLayout::new(&[self.length as u32], &[0]))?;
        let (q, k, v, out, saved) =
            (of(HEADS)?, of(self.kv_heads)?, of(self.kv_heads)?, of(HEADS)?, b.reals(self.length * HEADS)?);
        let (d_out, mut d_q, mut d_k, mut d_v) = (of(HEADS)?, of(HEADS)?, of(self.kv_heads)?, of(self.kv_heads)?);
        b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, &self.shape(), &mut d_q, &mut d_k, &mut d_v)
    }

    fn cached(self, b: &CudaBackend) -> Result<(), KernelError> {
        let mut cache = b.kv_cache(self.length, &self.shape())?;
        let of = |heads: usize| matrix(b, self.length, heads * self.head_dim);
        b.attention_cached(
            &of(HEADS)?,
            &of(self.kv_heads)?,
            &of(self.kv_heads)?,
            &mut cache,
            &self.shape(),
            &mut of(HEADS)?,
        )
    }

    pub(crate) fn cases(self) -> [Case; 3] {
        let shape = [self.length, HEADS, self.kv_heads, self.head_dim];
        [
            Case::new("attention", &shape, vec![self.forward_kernel()], move |b| self.forward(b)),
            Case::new("attention_backward", &shape, self.backward_kernels(), move |b| self.backward(b)),
            Case::new("attention_cached", &shape, vec![self.cached_kernel()], move |b| self.cached(b)),
        ]
    }
}

pub(crate) fn cases(size: Size, storage: Storage) -> Vec<Case> {
    let mut all = match storage {
        Storage::F32 => Vec::new(),
        Storage::Bf16 => vec![
            Attention::tensor(64, "64", size.length, 64),
            Attention::tensor(96, "96", size.length / 2, 64),
            Attention::tensor(128, "128", size.length / 2, 64),
            Attention::tensor(256, "256", size.length / 2, 32),
        ],
    };
    all.push(Attention::plain(size.length / 4, storage));
    all.into_iter().flat_map(Attention::cases).collect()
}
