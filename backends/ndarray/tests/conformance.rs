//! Every property of a backend, in both precisions, on one thread and on three.

use std::num::NonZeroUsize;

use resflow_backend::{Backend as _, Products};
use resflow_conformance::conformance_tests;
use resflow_ndarray::{CpuElement, NdArray};

fn threads<E: CpuElement>(threads: usize) -> NdArray<E> {
    NdArray::with_threads(NonZeroUsize::new(threads).expect("a number above 0")).expect("threads start")
}

conformance_tests!(single, threads::<f32>(1));
conformance_tests!(double, threads::<f64>(1));
conformance_tests!(single_on_three_threads, threads::<f32>(3));
conformance_tests!(double_on_three_threads, threads::<f64>(3));

// six products of bf16 are held to the tolerances of single precision, where the processor has them
conformance_tests!(
    bf16x6,
    match threads::<f32>(1).with_products(Products::Bf16x6) {
        Ok(cpu) => cpu,
        Err(missing) => return eprintln!("SKIPPED, NOT TESTED: {missing}"),
    }
);
