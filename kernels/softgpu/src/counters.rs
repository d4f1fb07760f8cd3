//! What a launch did: the figures from which memory traffic and bank conflicts are read without a GPU.

use std::ops::AddAssign;

/// Sums over all warps of a launch. They depend on neither seed nor host threads, unless the kernel itself does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions issued, each counted once for its warp.
    pub warp_instructions: u64,
    /// The same, counted for each thread that took part.
    pub thread_instructions: u64,
    /// Matrix products of tensor cores (`mma.sync`), one per warp.
    pub mma: u64,
    /// Loads and stores of shared memory, one per warp instruction (`ldmatrix` counts one per 8 x 8 matrix).
    pub shared_requests: u64,
    /// Extra passes over the 32 banks that these needed, beyond the fewest possible for their bytes.
    pub shared_conflicts: u64,
    /// Loads from global memory, one per warp instruction (`cp.async` included).
    pub global_loads: u64,
    /// Sectors of 32 bytes that those loads touched, counted once per request.
    pub global_load_sectors: u64,
    /// Stores and atomics to global memory.
    pub global_stores: u64,
    /// Sectors of 32 bytes that those stores touched.
    pub global_store_sectors: u64,
    /// Bytes that threads asked for from global memory, loads and stores; at most 32 per sector unless lanes overlap.
    pub global_requested_bytes: u64,
}

impl Counters {
    /// Bytes moved between the SMs and the memory system: 32 for each sector of each request.
    pub fn global_bytes(&self) -> u64 {
        32 * (self.global_load_sectors + self.global_store_sectors)
    }

    /// One JSON object on one line, as `SOFTGPU_COUNTERS` files hold them.
    pub fn to_json(&self, kernel: &str, grid: [u32; 3], block: [u32; 3]) -> String {
        let fields = [
            ("warp_instructions", self.warp_instructions),
            ("thread_instructions", self.thread_instructions),
            ("mma", self.mma),
            ("shared_requests", self.shared_requests),
            ("shared_conflicts", self.shared_conflicts),
            ("global_loads", self.global_loads),
            ("global_load_sectors", self.global_load_sectors),
            ("global_stores", self.global_stores),
            ("global_store_sectors", self.global_store_sectors),
            ("global_requested_bytes", self.global_requested_bytes),
            ("global_bytes", self.global_bytes()),
        ];
        let figures: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        // A PTX identifier holds no character that JSON would want escaped.
        format!("{{\"kernel\":\"{kernel}\",\"grid\":{grid:?},\"block\":{block:?},{}}}", figures.join(","))
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        self.mma += other.mma;
        self.shared_requests += other.shared_requests;
        self.shared_conflicts += other.shared_conflicts;
        self.global_loads += other.global_loads;
        self.global_load_sectors += other.global_load_sectors;
        self.global_stores += other.global_stores;
        self.global_store_sectors += other.global_store_sectors;
        self.global_requested_bytes += other.global_requested_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_per_launch() {
        let counters = Counters { global_load_sectors: 2, global_store_sectors: 1, mma: 5, ..Counters::default() };
        let line = counters.to_json("rows_f32", [2, 1, 1], [128, 1, 1]);
        assert!(line.starts_with("{\"kernel\":\"rows_f32\",\"grid\":[2, 1, 1],\"block\":[128, 1, 1],"), "{line}");
        assert!(line.contains("\"mma\":5,") && line.ends_with("\"global_bytes\":96}"), "{line}");
    }
}
