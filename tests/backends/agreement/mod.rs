//! Agreement of backends: whole flows on the backend under test, on the CPU in f32 and on the CPU in f64 compute the same, for
//! random small architectures and keys, within one table of tolerances ([`tolerance`]).
//!
//! What each operation does is the conformance suite's business; here is what is made of them: nets and their derivatives,
//! gradients of the likelihood, log dets by all estimators, inverses and samples, singular values, training, files. A
//! backend is one line at the end of this file.

mod conditional;
mod densities;
mod files;
#[cfg(feature = "gpu")]
mod gpu;
mod gradients;
mod inverses;
#[cfg(feature = "gpu")]
mod launches;
mod missing;
mod model;
mod nets;
mod norms;
mod record;
mod tolerance;
mod training;

/// A module with a test of everything, on the backend that the expression makes; it is evaluated once for each test.
macro_rules! agreement_tests {
    ($module:ident, $backend:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            agreement_tests! { @tests $backend;
                nets: dense_nets image_nets;
                gradients: dense_gradients image_gradients dense_surrogates image_surrogates hybrid_gradients;
                densities: dense_densities image_densities solved_densities;
                conditional: conditional_rows conditional_images;
                missing: rows_with_holes;
                inverses: dense_inverses image_inverses dense_samples image_samples;
                norms: dense_norms image_norms;
                training: dense_descent image_descent dense_adam image_adam dense_adam_steps image_adam_steps;
                files: fresh_flows checkpoints repeats;
            }
        }
    };
    (@tests $backend:expr; $($part:ident: $($test:ident)*;)*) => {
        $($(
            #[test]
            fn $test() {
                crate::agreement::$part::$test(&$backend);
            }
        )*)*
    };
}

/// The CPU with its rows spread over threads.
fn threads(threads: usize) -> resflow::NdArray<f32> {
    let threads = std::num::NonZeroUsize::new(threads).expect("a number above 0");
    resflow::NdArray::with_threads(threads).expect("threads start")
}

agreement_tests!(ndarray, threads(3));

/// Six products of bf16, where the processor has them, held to the tolerances of single precision.
fn on_tiles() -> Option<resflow::NdArray<f32>> {
    use resflow::backend::{Backend as _, Products};
    let found = threads(1).with_products(Products::Bf16x6);
    found.inspect_err(|missing| eprintln!("SKIPPED, NOT TESTED: {missing}")).ok()
}

agreement_tests!(
    tiles,
    match on_tiles() {
        Some(cpu) => cpu,
        None => return,
    }
);

#[cfg(feature = "gpu")]
agreement_tests!(
    wgpu,
    match crate::device::shared() {
        Some(gpu) => gpu,
        None => return,
    }
);
