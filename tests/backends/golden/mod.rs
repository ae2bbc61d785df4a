//! Golden tests: the core against reference numbers computed in float64 with the authors' PyTorch implementation.
//!
//! Every number of every file in `tests/fixtures` is compared, in f64 to 1e−9 and in f32 to 1e−4, by
//! max|Δ| / max|reference| over a tensor. One test runs one file on one backend and names every tensor that differs. A backend
//! is one line at the end of this file.

mod activations;
mod actnorm;
mod conditional;
mod convolution;
mod coupling;
mod dense;
mod dense_block;
mod estimators;
mod exact_trace;
mod fixture;
mod image;
mod implicit;
mod induced_norms;
mod lipschitz_upper;
mod logistic;
mod mixture_base;
mod monotone;
mod ode;
mod spline;
mod survival;
mod whole_flows;

/// A module with a test of every file, on the backend that the expression makes; it is evaluated once for each test.
macro_rules! golden_tests {
    ($module:ident, $backend:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            golden_tests! { @tests $backend;
                dense_2d: dense::compare, "dense_2d";
                dense_2d_actnorm: dense::compare, "dense_2d_actnorm";
                dense_6d: dense::compare, "dense_6d";
                dense_block_rows: dense_block::compare, "dense_block_rows";
                dense_block_fc: dense_block::compare, "dense_block_fc";
                dense_block_images: dense_block::compare, "dense_block_images";
                dense_rows_flow: dense_block::compare_rows_flow;
                flow_dense_images: dense_block::compare_flow, "flow_dense_images";
                flow_dense_fc_end: dense_block::compare_flow, "flow_dense_fc_end";
                image_mnist_like: image::compare, "image_mnist_like";
                image_cifar_like: image::compare, "image_cifar_like";
                image_factor_out: image::compare, "image_factor_out";
                image_squeeze_first: image::compare, "image_squeeze_first";
                activation_functions: activations::compare;
                more_activation_functions: activations::compare_more;
                actnorm_initialisation: actnorm::compare;
                convolution_norms: convolution::compare;
                coupling_dense: coupling::dense;
                coupling_image: coupling::images;
                norms_between_orders: induced_norms::compare;
                mixture_densities: mixture_base::mixtures;
                student_densities: mixture_base::student;
                known_traces: exact_trace::compare;
                conditional_block: conditional::rows;
                implicit_block: implicit::rows;
                implicit_gradient: implicit::gradient;
                monotone_block_rows: monotone::compare, "monotone_block_rows";
                monotone_block_images: monotone::compare, "monotone_block_images";
                monotone_flow: monotone::flow;
                monotone_rows_flow: whole_flows::monotone_rows;
                implicit_rows_flow: whole_flows::implicit_rows;
                implicit_images_flow: whole_flows::implicit_images;
                continuous_flow: ode::rows;
                logistic_mixtures: logistic::rows;
                spline_rows: spline::rows;
                spline_flow: spline::flow;
            }
        }
    };
    (@tests $backend:expr; $($name:ident: $file:ident::$run:ident $(, $fixture:literal)?;)*) => {$(
        #[test]
        fn $name() {
            crate::golden::$file::$run(&$backend $(, $fixture)?);
        }
    )*};
}

golden_tests!(ndarray_f64, resflow::NdArray::<f64>::new());
golden_tests!(ndarray_f32, resflow::NdArray::<f32>::new());

#[cfg(feature = "gpu")]
golden_tests!(
    wgpu,
    match crate::device::shared() {
        Some(gpu) => gpu,
        None => return,
    }
);
