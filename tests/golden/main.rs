//! Golden tests: the core against reference numbers computed in float64 with the authors' PyTorch implementation.
//!
//! Every number of every file in `tests/fixtures` is compared, in f64 to 1e−9 and in f32 to 1e−4, by
//! max|Δ| / max|reference| over a tensor. One test runs one file in one precision and names every tensor that differs.
#![cfg(feature = "cpu")]

mod activations;
mod actnorm;
mod convolution;
mod coupling;
mod dense;
mod estimators;
mod fixture;
mod image;
mod induced_norms;
mod survival;

/// A test of one comparison in both precisions.
macro_rules! both_precisions {
    ($($name:ident: $run:path $(, $file:literal)?;)*) => {$(
        mod $name {
            #[test]
            fn f64() {
                $run(&resflow::NdArray::<f64>::new() $(, $file)?);
            }

            #[test]
            fn f32() {
                $run(&resflow::NdArray::<f32>::new() $(, $file)?);
            }
        }
    )*};
}

both_precisions! {
    dense_2d: crate::dense::compare, "dense_2d";
    dense_2d_actnorm: crate::dense::compare, "dense_2d_actnorm";
    dense_6d: crate::dense::compare, "dense_6d";
    image_mnist_like: crate::image::compare, "image_mnist_like";
    image_cifar_like: crate::image::compare, "image_cifar_like";
    image_factor_out: crate::image::compare, "image_factor_out";
    image_squeeze_first: crate::image::compare, "image_squeeze_first";
    activation_functions: crate::activations::compare;
    actnorm_initialisation: crate::actnorm::compare;
    convolution_norms: crate::convolution::compare;
    coupling_dense: crate::coupling::dense;
    coupling_image: crate::coupling::images;
    norms_between_orders: crate::induced_norms::compare;
}
