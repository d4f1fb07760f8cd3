//! Measures all-reduce over loopback: `cargo run --release -p ballast-worker --example ring_throughput`.

use ballast_proto::v1::Generation;
use ballast_worker::collective::{AbortHandle, Collective, RingConfig, TcpRing};
use ballast_worker::progress::Progress;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const ELEMENTS: usize = 5_000_000;
const REPEATS: u32 = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for world in [2, 3, 4] {
        let listeners = (0..world).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let addresses =
            listeners.iter().map(|l| l.local_addr().map(|a| a.to_string())).collect::<Result<Vec<_>, _>>()?;
        let seconds = std::thread::scope(|scope| {
            let ranks: Vec<_> = listeners
                .iter()
                .enumerate()
                .map(|(rank, listener)| {
                    let config = RingConfig {
                        run_id: "throughput".into(),
                        generation: Generation::new(1, 1),
                        rank,
                        world_size: world,
                        next_address: addresses[(rank + 1) % world].clone(),
                        previous_address: addresses[(rank + world - 1) % world].clone(),
                        timeout: Duration::from_secs(60),
                        lease: Duration::from_secs(60),
                    };
                    scope.spawn(move || measure(listener, config))
                })
                .collect();
            ranks.into_iter().map(|r| r.join().map_err(|_| "a rank panicked")?).collect::<Result<Vec<_>, String>>()
        })?;
        let slowest = seconds.into_iter().fold(0.0, f64::max);
        let megabytes = (ELEMENTS * 8) as f64 / 1e6;
        println!(
            "{{\"measure\": \"all_reduce\", \"world_size\": {world}, \"megabytes\": {megabytes}, \
             \"milliseconds\": {:.1}, \"megabytes_per_second\": {:.0}}}",
            slowest * 1e3,
            megabytes / slowest
        );
    }
    Ok(())
}

/// Mean seconds of one reduction.
fn measure(listener: &TcpListener, config: RingConfig) -> Result<f64, String> {
    let mut ring =
        TcpRing::connect(listener, config, &AbortHandle::new(), Progress::new()).map_err(|e| e.to_string())?;
    let mut values = vec![1; ELEMENTS];
    ring.all_reduce_sum(&mut values).map_err(|e| e.to_string())?;
    let start = Instant::now();
    for _ in 0..REPEATS {
        ring.all_reduce_sum(&mut values).map_err(|e| e.to_string())?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(REPEATS))
}
