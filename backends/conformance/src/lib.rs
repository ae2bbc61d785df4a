//! The properties that every backend of resflow has, as tests that a new backend runs.
//!
//! Each property is a public function of a [`Backend`](resflow_backend::Backend); it returns, or panics with the
//! smallest case found. [`conformance_tests!`] makes one `#[test]` of each, so a backend's author writes one line:
//!
//! ```
//! # use resflow_conformance::conformance_tests;
//! # #[cfg(any())]
//! conformance_tests!(my_device, MyBackend::new());
//! ```
//!
//! `tests/naive.rs` is a whole backend of plain loops that passes, and the example to start from.
//!
//! The references:
//! * every operation to plain loops in double precision ([`mod@reference`]), within one table of tolerances
//!   ([`tolerance`]), over random shapes with extents of 0 and 1, broadcasting, transposes and operands that are slices
//!   or permutations of larger tensors;
//! * every fused operation to its composition as well, run on the same backend;
//! * adjoints to ⟨Ax, y⟩ = ⟨x, Aᵀy⟩, noise to its published stream, reductions to their own bits;
//! * tensors to value semantics, and shapes that do not fit to a panic that says so.
//!
//! The cases are the same in every run, [`CASES`] for each property.
#![forbid(unsafe_code)]

pub mod activation;
pub mod adam;
pub mod bounded_affine;
pub mod determinant;
pub mod device;
mod draw;
pub mod elementwise;
pub mod fixed_point;
pub mod handle;
pub mod layout;
pub mod mismatch;
pub mod net;
pub mod noise;
pub mod passes;
pub mod power;
pub mod product;
pub mod reduction;
pub mod reference;
pub mod series;
pub mod spline;
pub mod tolerance;

pub use draw::CASES;

/// A module of tests, one for each property, on the backend that the expression makes.
///
/// The expression is evaluated once for each test, so a device that is slow to open belongs into a `LazyLock`, of which
/// the expression takes a clone.
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $backend:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::conformance_tests! { @tests $backend;
                device: transfer full run hints known_zero empty_batches;
                elementwise: unary unary_special_values binary binary_special_values affine axpy select;
                reduction: reduce reduce_max_special_values reductions_repeat dot all_finite;
                product: matmul matmul_adjoint linear linear_activation convolution convolution_adjoint;
                determinant: lu lu_singular;
                layout: reshape permute concat narrow take_rows layout_chains;
                noise: noise noise_slices noise_keys;
                activation: activation activation_special_values activation_reverse;
                series: series_term series_stops;
                net: net_vjp net_series net_series_stops large_net_vjp large_net_series;
                passes: net_forward net_tangents net_pullback large_net_forward large_net_tangents large_net_pullback;
                fixed_point: fixed_point_step fixed_point_ends fixed_point_length fixed_point_overflow net_fixed_point
                    net_fixed_point_limit;
                spline: spline spline_inverse spline_reverse spline_special_values;
                bounded_affine: bounded_affine bounded_affine_reverse;
                power: power_iteration conv2d_power_iteration power_iteration_zero power_iteration_extremes power_iteration_converges;
                adam: adam_step adam_step_gate;
                handle: consumed_operands_are_values aliased_operands borrowed_operands_are_kept;
                mismatch: mismatched_elementwise mismatched_products mismatched_layout mismatched_fused;
            }
        }
    };
    (@tests $backend:expr; $($family:ident: $($property:ident)*;)*) => {
        $($(
            #[test]
            fn $property() {
                $crate::$family::$property(&$backend);
            }
        )*)*
    };
}
