//! `resflow devices`: what can compute here.

use std::fmt::Write as _;

use anyhow::Result;
use resflow::device::{self, Products};

use crate::arguments::Devices;
use crate::output::print;

pub(crate) fn run(arguments: &Devices) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    print(&if arguments.json { json(threads)? } else { text(threads) })
}

/// The products of the processor by name.
fn products() -> Vec<&'static str> {
    device::processor_products().into_iter().map(Products::name).collect()
}

fn text(threads: usize) -> String {
    let more: Vec<_> = products().into_iter().filter(|name| *name != Products::F32.name()).collect();
    let more = if more.is_empty() { String::new() } else { format!("; fit --products {}", more.join(", ")) };
    let Some(adapters) = device::adapters() else {
        return format!(
            "--backend cpu  {threads} threads{more}\n\
             built without GPU support; `cargo install --path cli --features gpu` has it\n"
        );
    };
    let mut out = format!("--backend cpu             {threads} threads{more}\n");
    for adapter in &adapters {
        // writing to a String cannot fail
        let _ = writeln!(
            out,
            "--backend wgpu --adapter {}  {}; tensors up to {} MiB{}",
            adapter.index,
            adapter.description,
            adapter.largest_tensor >> 20,
            if adapter.cooperative_matrices { "; --products f16x3, f16" } else { "" }
        );
    }
    let _ = match adapters.iter().find(|a| a.best) {
        Some(best) => writeln!(out, "without --adapter: adapter {}", best.index),
        None => writeln!(out, "no adapter: no Vulkan, Metal or DX12 driver answers"),
    };
    out
}

fn json(threads: usize) -> Result<String> {
    let adapters = device::adapters().map(|adapters| {
        let one = |a: device::Adapter| {
            serde_json::json!({
                "index": a.index, "name": a.name, "kind": a.kind, "api": a.api, "driver": a.driver,
                "largest_tensor_bytes": a.largest_tensor, "cooperative_matrices": a.cooperative_matrices,
            })
        };
        adapters.into_iter().map(one).collect::<Vec<_>>()
    });
    let all = serde_json::json!({ "cpu": { "threads": threads, "products": products() }, "wgpu": adapters });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}
