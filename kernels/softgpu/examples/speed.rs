//! How fast the interpreter is on this machine: `cargo run -p ballast-softgpu --example speed`.

use ballast_softgpu::{AllocationTable, LaunchConfig, Module, Settings, launch};
use std::{num::NonZeroUsize, time::Instant};

const LOOPS: &str = "\
.version 9.0
.target sm_80
.address_size 64
.visible .entry arithmetic(.param .u64 p)
{
    .reg .b32 %r<9>; .reg .pred %q;
    mov.u32 %r0, 0; mov.u32 %r1, 0f3F800000; mov.u32 %r2, 0f3F000000; mov.u32 %r3, 0;
$loop:
    fma.rn.f32 %r1, %r1, %r2, %r2;
    fma.rn.f32 %r4, %r1, %r2, %r1;
    add.f32 %r5, %r4, %r1;
    mul.f32 %r6, %r5, %r2;
    xor.b32 %r3, %r3, %r6;
    add.s32 %r0, %r0, 1;
    setp.lt.s32 %q, %r0, 20000;
    @%q bra $loop;
    ret;
}
.visible .entry memory(.param .u64 p)
{
    .shared .align 16 .b8 s[4096];
    .reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %q;
    ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u32 %r2, s;
    mad.lo.u32 %r2, %r0, 16, %r2; mad.wide.u32 %d1, %r0, 16, %d0;
$loop:
    ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%d1];
    st.shared.v4.u32 [%r2], {%r3, %r4, %r5, %r6};
    ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2];
    add.s32 %r1, %r1, 1;
    setp.lt.s32 %q, %r1, 5000;
    @%q bra $loop;
    ret;
}
.visible .entry tensor(.param .u64 p)
{
    .shared .align 16 .b8 s[1024];
    .reg .b32 %r<16>; .reg .b32 %c<4>; .reg .pred %q;
    mov.u32 %r0, %tid.x; and.b32 %r0, %r0, 31; mov.u32 %r1, 0; mov.u32 %r2, s; mad.lo.u32 %r2, %r0, 16, %r2;
    st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};
    bar.sync 0;
    mov.u32 %c0, 0; mov.u32 %c1, 0; mov.u32 %c2, 0; mov.u32 %c3, 0;
$loop:
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r2];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%c0,%c1,%c2,%c3}, {%r4,%r5,%r6,%r7}, {%r4,%r5}, {%c0,%c1,%c2,%c3};
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%c0,%c1,%c2,%c3}, {%r4,%r5,%r6,%r7}, {%r6,%r7}, {%c0,%c1,%c2,%c3};
    add.s32 %r1, %r1, 1;
    setp.lt.s32 %q, %r1, 5000;
    @%q bra $loop;
    ret;
}
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let module = Module::parse(LOOPS)?;
    let table = AllocationTable::new(1 << 20);
    let params = table.allocate(4096)?.to_le_bytes();
    let settings = Settings { threads: NonZeroUsize::MIN, ..Settings::default() };
    let config = LaunchConfig { grid: [4, 1, 1], block: [128, 1, 1], dynamic_shared_bytes: 0 };
    for kernel in module.kernels() {
        let start = Instant::now();
        let counters = launch(kernel, &module, &table, &config, &params, &settings)?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {:.0} M thread instructions/s, {:.1} GFLOP/s of tensor cores, one host thread",
            kernel.name,
            counters.thread_instructions as f64 / seconds / 1e6,
            counters.mma as f64 * 4096.0 / seconds / 1e9,
        );
    }
    Ok(())
}
