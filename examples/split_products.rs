//! What training in products of sums of bf16 makes of a likelihood: flows are trained from the same seed in single precision and in such products
//! as a processor makes that multiplies bf16, and scored in single precision. On another one a backend that wraps the CPU's splits the
//! operands and multiplies the parts in single precision: the same sums but for their order, and several times slower. Writes a table as Markdown.
//!
//! ```sh
//! cargo run --release --example split_products -- [--products bf16x3] [--steps 2000] [--threads 1]
//! cargo test --example split_products
//! ```

#[path = "chain/mod.rs"]
mod chain;

use std::num::NonZeroUsize;

use chain::chain;
use resflow::backend::{Backend, BackendError, Binary, Key, Noise, Over, Padding, Products, Reduce, Shape, Unary};
use resflow::config::FlowConfig;
use resflow::data::{Table, ToyDensity};
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, NdArray};

type Cpu = NdArray<f32>;
type Tensor = <Cpu as Backend>::Tensor;

/// Fresh points or rows that are scored.
const SCORED: usize = 10_000;

/// The CPU's backend with products of operands that are sums of so many bf16 numbers; 0 leaves them as they are.
#[derive(Debug, Clone)]
struct Split {
    inner: Cpu,
    parts: usize,
}

/// The bf16 number nearest to x.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

impl Split {
    /// x₀ = bf16(x), x₁ = bf16(x − x₀), x₂ = bf16(x − x₀ − x₁).
    fn split(&self, x: &Tensor) -> Vec<Tensor> {
        let mut rest = self.inner.download(x).expect("the CPU does not fail");
        let part = |_| {
            let part: Vec<f32> = rest.iter().copied().map(rounded).collect();
            rest.iter_mut().zip(&part).for_each(|(x, part)| *x -= part);
            self.inner.upload(&part, self.inner.shape(x))
        };
        (0..self.parts).map(part).collect()
    }

    /// The sum of the products of parts i and j with i + j < parts, the smallest first.
    fn product(&self, a: &Tensor, b: &Tensor, multiply: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
        if self.parts == 0 {
            return multiply(a, b);
        }
        let (a, b) = (self.split(a), self.split(b));
        let pairs = (0..self.parts).rev().flat_map(|sum| (0..=sum).map(move |i| (i, sum - i)));
        pairs
            .map(|(i, j)| multiply(&a[i], &b[j]))
            .reduce(|sum, product| self.inner.axpy(1.0, &product, sum))
            .expect("one part at least")
    }
}

/// Hands methods on.
macro_rules! inner {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {$(
        fn $name(&self, $($argument: $type),*) -> $output {
            self.inner.$name($($argument),*)
        }
    )*};
}

/// The required methods, those that say how the device likes its work, and nothing fused: all products are this backend's own.
impl Backend for Split {
    type Elem = f32;
    type Tensor = Tensor;

    inner! {
        fn name() -> String;
        fn shape(x: &Tensor) -> Shape;
        fn upload(data: &[f32], shape: Shape) -> Tensor;
        fn download(x: &Tensor) -> Result<Vec<f32>, BackendError>;
        fn synchronize() -> Result<(), BackendError>;
        fn full(value: f64, shape: Shape) -> Tensor;
        fn noise(key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor;
        fn unary(op: Unary, x: Tensor) -> Tensor;
        fn binary(op: Binary, a: Tensor, b: &Tensor) -> Tensor;
        fn affine(x: Tensor, scale: f64, shift: f64) -> Tensor;
        fn axpy(alpha: f64, x: &Tensor, y: Tensor) -> Tensor;
        fn select(mask: &Tensor, on: &Tensor, off: &Tensor) -> Tensor;
        fn reduce(op: Reduce, over: Over, x: &Tensor) -> Tensor;
        fn lu(a: &Tensor) -> (Tensor, Tensor);
        fn reshape(x: &Tensor, shape: Shape) -> Tensor;
        fn permute(x: &Tensor, axes: &[usize]) -> Tensor;
        fn concat(parts: &[&Tensor], axis: usize) -> Tensor;
        fn narrow(x: &Tensor, axis: usize, start: usize, length: usize) -> Tensor;
        fn take_rows(x: &Tensor, indices: &[u32]) -> Tensor;
        fn shard_rows(bytes_per_row: usize) -> usize;
        fn tile_rows(bytes_per_row: usize) -> usize;
        fn lanes() -> usize;
    }

    fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        self.inner.run(tasks, task)
    }

    fn with_products(&self, products: Products) -> Result<Self, BackendError> {
        let parts = match products {
            Products::F32 => 0,
            Products::Bf16 => 1,
            Products::Bf16x3 => 2,
            Products::Bf16x6 => 3,
            _ => return Err(BackendError::Setup(format!("products in {products} are not split here"))),
        };
        Ok(Self { parts, ..self.clone() })
    }

    fn matmul(&self, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        self.product(a, b, |a, b| self.inner.matmul(a, transpose_a, b, transpose_b))
    }

    fn conv2d(&self, x: &Tensor, kernel: &Tensor, padding: Padding) -> Tensor {
        self.product(x, kernel, |x, kernel| self.inner.conv2d(x, kernel, padding))
    }

    fn conv2d_input(&self, gy: &Tensor, kernel: &Tensor, padding: Padding, image: [usize; 2]) -> Tensor {
        self.product(gy, kernel, |gy, kernel| self.inner.conv2d_input(gy, kernel, padding, image))
    }

    fn conv2d_kernel(&self, x: &Tensor, gy: &Tensor, padding: Padding, kernel: [usize; 2]) -> Tensor {
        self.product(x, gy, |x, gy| self.inner.conv2d_kernel(x, gy, padding, kernel))
    }
}

/// log p of fresh samples by a flow that was trained from a seed.
fn scores<B: Backend<Elem = f32>>(
    b: &B,
    source: Source,
    fresh: &Table,
    train: &TrainConfig,
    seed: u64,
) -> Result<Vec<f64>, Error> {
    let config = FlowConfig { blocks: 8, hidden: vec![64, 64], coefficient: 0.95, ..FlowConfig::new(fresh.width()) };
    let flow = Flow::new(b.clone(), config, Key::new(seed))?;
    let mut trainer = Trainer::new(flow, source, train, Budget::Steps(train.steps), Key::new(seed).named("training"))?;
    while !trainer.finished() {
        trainer.step()?;
    }
    Ok(trainer.averaged().log_prob(fresh, Key::new(0))?.values)
}

fn mean(values: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let steps = value("--steps").and_then(|v| v.parse().ok()).unwrap_or(2000);
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(NonZeroUsize::MIN);
    let products: Products = value("--products").map_or("bf16x3", String::as_str).parse().map_err(Error::Input)?;
    let cpu = Cpu::with_threads(threads)?;
    let has_them = cpu.with_products(products).is_ok();
    println!("{products} by {}, {steps} steps of 256\n", if has_them { "the processor" } else { "parts in f32" });
    println!("| | −log p: f32 | {products} | difference | f32 of another seed, difference |\n|---|---|---|---|---|");
    let densities = [ToyDensity::Checkerboard, ToyDensity::EightGaussians, ToyDensity::TwoSpirals, ToyDensity::Rings];
    let mut sets: Vec<(String, Source, Table)> = Vec::new();
    for density in densities {
        sets.push((density.name().into(), density.into(), density.sample(Key::new(77), SCORED)));
    }
    sets.push(("chain of 21".into(), chain(21, 20_000, Key::new(1))?.into(), chain(21, SCORED, Key::new(77))?));
    for (name, source, fresh) in sets {
        let train = |products| TrainConfig { steps, validate_every: steps, products, ..TrainConfig::default() };
        let split = Split { inner: cpu.clone(), parts: 0 };
        let by = |products, seed| {
            if has_them {
                scores(&cpu, source.clone(), &fresh, &train(products), seed)
            } else {
                scores(&split, source.clone(), &fresh, &train(products), seed)
            }
        };
        let [single, other] = [by(Products::F32, 1)?, by(Products::F32, 2)?];
        let found = by(products, 1)?;
        let (of_single, error) = mean(single.iter().map(|l| -l));
        let (of_found, _) = mean(found.iter().map(|l| -l));
        let behind =
            |scores: &[f64]| mean(single.iter().zip(scores).map(|(a, b)| a - b).collect::<Vec<_>>().into_iter());
        let [(difference, paired), (seeds, seeds_paired)] = [behind(&found), behind(&other)];
        println!(
            "| {name} | {of_single:.4} ± {error:.4} | {of_found:.4} | {difference:.4} ± {paired:.4} | {seeds:.4} ± {seeds_paired:.4} |"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What products of so many parts may be off by, of Σ |terms|.
    #[test]
    fn products_are_as_accurate_as_their_parts() {
        let cpu = Cpu::with_threads(NonZeroUsize::MIN).expect("a thread");
        let split = Split { inner: cpu.clone(), parts: 0 };
        let [a, b] = [1, 2].map(|key| cpu.noise(Key::new(key), Noise::Normal, 0, [40, 40].into()));
        let absolute = |x: &Tensor| cpu.unary(Unary::Abs, x.clone());
        let sizes = cpu.download(&cpu.matmul(&absolute(&a), false, &absolute(&b), true)).expect("no fault");
        let product = |b_: &Split| b_.download(&b_.matmul(&a, false, &b, true)).expect("no fault");
        let exact = product(&split);
        for (products, least, most) in
            [(Products::Bf16, 1e-4, 8e-3), (Products::Bf16x3, 1e-7, 3e-5), (Products::Bf16x6, 0.0, 1e-6)]
        {
            let found = product(&split.with_products(products).expect("split"));
            let off = found.iter().zip(&exact).zip(&sizes).map(|((f, e), size)| (f - e).abs() / size);
            let off = off.fold(0.0, f32::max);
            assert!(off > least && off < most, "{products}: {off:e}");
        }
    }
}
