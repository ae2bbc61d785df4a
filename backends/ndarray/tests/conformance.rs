//! Every property of a backend, in both precisions, on one thread and on three.

use std::num::NonZeroUsize;

use resflow_conformance::conformance_tests;
use resflow_ndarray::{CpuElement, NdArray};

fn threads<E: CpuElement>(threads: usize) -> NdArray<E> {
    NdArray::with_threads(NonZeroUsize::new(threads).expect("a number above 0")).expect("threads start")
}

conformance_tests!(single, threads::<f32>(1));
conformance_tests!(double, threads::<f64>(1));
conformance_tests!(single_on_three_threads, threads::<f32>(3));
conformance_tests!(double_on_three_threads, threads::<f64>(3));
