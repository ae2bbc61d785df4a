//! `resflow devices`: what can compute here.

use anyhow::Result;

use crate::arguments::Devices;
use crate::output::print;

pub(crate) fn run(arguments: &Devices) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    print(&if arguments.json { json(threads)? } else { text(threads) })
}

#[cfg(feature = "gpu")]
fn text(threads: usize) -> String {
    use std::fmt::Write as _;
    let mut out = format!("--backend cpu             {threads} threads\n");
    let adapters = resflow::gpu::adapters();
    for adapter in &adapters {
        let _ = writeln!(
            out,
            "--backend wgpu --adapter {}  {adapter}; tensors up to {} MiB{}",
            adapter.index,
            adapter.largest_tensor >> 20,
            if adapter.cooperative_matrices { "; --products f16x3, f16" } else { "" }
        );
    }
    match adapters.iter().min_by_key(|a| (a.kind, a.index)) {
        Some(best) => writeln!(out, "without --adapter: adapter {}", best.index),
        None => writeln!(out, "no adapter: no Vulkan, Metal or DX12 driver answers"),
    }
    .unwrap_or_default();
    out
}

#[cfg(not(feature = "gpu"))]
fn text(threads: usize) -> String {
    format!(
        "--backend cpu  {threads} threads\nbuilt without GPU support; `cargo install --path cli --features gpu` has it\n"
    )
}

#[cfg(feature = "gpu")]
fn json(threads: usize) -> Result<String> {
    let adapters: Vec<_> = resflow::gpu::adapters()
        .into_iter()
        .map(|a| {
            serde_json::json!({
                "index": a.index, "name": a.name, "kind": a.kind.to_string(), "api": a.api, "driver": a.driver,
                "largest_tensor_bytes": a.largest_tensor, "cooperative_matrices": a.cooperative_matrices,
            })
        })
        .collect();
    let all = serde_json::json!({ "cpu": { "threads": threads }, "wgpu": adapters });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

#[cfg(not(feature = "gpu"))]
fn json(threads: usize) -> Result<String> {
    let all = serde_json::json!({ "cpu": { "threads": threads }, "wgpu": null });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}
