//! The counter-based generator behind dropout masks and adapter initialization.

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words from a
/// counter and a key, the same on every device.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

impl Philox {
    /// A generator with this key.
    #[must_use]
    pub fn new(key: [u32; 2]) -> Self {
        Self { key }
    }

    /// The generator of the dropout masks of one step: key = (fold of the seed's halves, low half of the step).
    #[must_use]
    pub fn dropout(seed: u64, step: u64) -> Self {
        Self::new([(seed ^ (seed >> 32)) as u32, step as u32])
    }

    /// The key.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Four words of the dropout mask: channels `4 * quad .. 4 * quad + 4` of one row.
    #[must_use]
    pub fn mask(&self, quad: u32, position: u32, sample: u64, module: u32) -> [u32; 4] {
        self.words([quad, position, sample as u32, module])
    }

    /// The words of sixteen neighbouring quads at once: `[w][i]` is word `w` of quad `first_quad + i`.
    #[inline(always)]
    pub(crate) fn mask_lanes(&self, first_quad: u32, position: u32, sample: u64, module: u32) -> [[u32; 16]; 4] {
        let quads = std::array::from_fn(|i| first_quad.wrapping_add(i as u32));
        self.rounds([quads, [position; 16], [sample as u32; 16], [module; 16]])
    }

    /// Ten rounds.
    #[must_use]
    pub fn words(&self, counter: [u32; 4]) -> [u32; 4] {
        self.rounds(counter.map(|word| [word])).map(|[word]| word)
    }

    /// Ten rounds on `N` counters side by side, so that they vectorize.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // One index into four arrays.
    fn rounds<const N: usize>(&self, mut c: [[u32; N]; 4]) -> [[u32; N]; 4] {
        let mut k = self.key;
        for round in 0..10 {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            for i in 0..N {
                let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0][i]);
                let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2][i]);
                c[0][i] = (b >> 32) as u32 ^ c[1][i] ^ k[0];
                c[2][i] = (a >> 32) as u32 ^ c[3][i] ^ k[1];
                c[1][i] = b as u32;
                c[3][i] = a as u32;
            }
        }
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(Philox::new([0, 0]).words([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            Philox::new([u32::MAX; 2]).words([u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn lanes_are_neighbouring_quads() {
        let philox = Philox::dropout(0x0123_4567_89ab_cdef, 77);
        let lanes = philox.mask_lanes(5, 9, 1 << 33 | 3, 40);
        for i in 0..16 {
            assert_eq!(lanes.map(|word| word[i]), philox.mask(5 + i as u32, 9, 1 << 33 | 3, 40));
        }
    }
}
