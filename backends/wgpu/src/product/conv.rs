//! Convolutions and their adjoints as products: the sizes, and what they are over.

use resflow_backend::{Padding, Shape};

use super::epilogue::Epilogue;
use super::operands::Operands;
use crate::device::Gpu;
use crate::tensor::Tensor;

/// The four extents of an image or a kernel.
#[track_caller]
fn four(operation: &str, x: &Tensor, other: &Tensor) -> [usize; 4] {
    let extents: Option<[usize; 4]> = x.shape().to_vec().try_into().ok();
    extents.unwrap_or_else(|| panic!("{operation}: four axes each, not {} and {}", x.shape(), other.shape()))
}

/// Everything that a convolution is over.
struct Geometry {
    samples: usize,
    channels: [usize; 2],
    image: [usize; 2],
    output: [usize; 2],
    padding: Padding,
    kernel: [usize; 2],
}

impl Geometry {
    /// The fields that [`Operands`] adds to `P` for a convolution.
    fn params(&self) -> [u32; 8] {
        let ([h, w], [oh, ow], [c, out]) = (self.image, self.output, self.channels);
        [c, h, w, out, oh, ow, self.padding.height, self.padding.width].map(|v| v as u32)
    }

    fn extents(&self) -> [u16; 2] {
        self.kernel.map(|k| u16::try_from(k).expect("a kernel is no larger than 65535"))
    }

    /// Pixels of the images, pixels of the results, positions of the kernel.
    fn sizes(&self) -> [usize; 3] {
        let pixels = |[h, w]: [usize; 2]| self.samples * h * w;
        [pixels(self.image), pixels(self.output), self.kernel[0] * self.kernel[1]]
    }
}

impl Gpu {
    pub(crate) fn conv2d(&self, x: &Tensor, kernel: &Tensor, padding: Padding) -> Tensor {
        let [samples, h, w, c] = four("conv2d", x, kernel);
        let [out, kh, kw, channels] = four("conv2d", kernel, x);
        let output = padding.output([h, w], [kh, kw]).filter(|_| c == channels);
        let output = output.unwrap_or_else(|| panic!("conv2d: {} does not fit {}", kernel.shape(), x.shape()));
        let of = Geometry { samples, channels: [c, out], image: [h, w], output, padding, kernel: [kh, kw] };
        let [_, pixels, taps] = of.sizes();
        let sizes = [pixels, taps * c, out];
        let product = self.product(
            Operands::Convolution(of.extents()),
            sizes,
            [x, kernel],
            (Epilogue::Nothing, &[]),
            &of.params(),
        );
        product[0].window(0, [samples, output[0], output[1], out].into())
    }

    pub(crate) fn conv2d_input(&self, gy: &Tensor, kernel: &Tensor, padding: Padding, image: [usize; 2]) -> Tensor {
        let [samples, h, w, out] = four("conv2d_input", gy, kernel);
        let [o, kh, kw, c] = four("conv2d_input", kernel, gy);
        let fits = out == o && padding.output(image, [kh, kw]) == Some([h, w]);
        assert!(fits, "conv2d_input: {} and {} do not fit an image of {image:?}", gy.shape(), kernel.shape());
        let of = Geometry { samples, channels: [c, out], image, output: [h, w], padding, kernel: [kh, kw] };
        let [pixels, _, taps] = of.sizes();
        let sizes = [pixels, taps * out, c];
        let product =
            self.product(Operands::Images(of.extents()), sizes, [gy, kernel], (Epilogue::Nothing, &[]), &of.params());
        product[0].window(0, [samples, image[0], image[1], c].into())
    }

    /// The adjoint in the kernel, added to `sum` if there is one.
    pub(crate) fn conv2d_kernel(
        &self,
        x: &Tensor,
        gy: &Tensor,
        padding: Padding,
        kernel: [usize; 2],
        sum: Option<&Tensor>,
    ) -> Tensor {
        let [samples, h, w, c] = four("conv2d_kernel", x, gy);
        let [rows, oh, ow, out] = four("conv2d_kernel", gy, x);
        let fits = samples == rows && padding.output([h, w], kernel) == Some([oh, ow]);
        assert!(fits, "conv2d_kernel: {} and {} do not fit a kernel of {kernel:?}", x.shape(), gy.shape());
        let shape: Shape = [out, kernel[0], kernel[1], c].into();
        let fits = sum.is_none_or(|sum| sum.shape() == shape);
        assert!(fits, "conv2d_kernel_add: {:?} is not {shape}", sum.map(Tensor::shape));
        let of = Geometry { samples, channels: [c, out], image: [h, w], output: [oh, ow], padding, kernel };
        let [_, pixels, taps] = of.sizes();
        let epilogue = if sum.is_some() { Epilogue::Sum } else { Epilogue::Nothing };
        let added: Vec<&Tensor> = sum.into_iter().collect();
        let sizes = [out, pixels, taps * c];
        self.product(Operands::Kernel(of.extents()), sizes, [gy, x], (epilogue, &added), &of.params())[0]
            .window(0, shape)
    }
}
