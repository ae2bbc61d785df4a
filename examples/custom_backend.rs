//! A backend of one's own: it wraps another backend, leaves all computing to it and counts what it is asked for.
//!
//! ```sh
//! cargo run --release --example custom_backend     # which operations scoring, inversion and training are made of
//! cargo test --example custom_backend              # the conformance suite
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use resflow::backend::{
    Activation, ActivationReverse, AdamStep, Backend, BackendError, Binary, BoundedAffineReverse, FixedPointFound,
    FixedPointRule, FixedPointSearch, FixedPointState, Key, Net, NetForward, Noise, Over, Padding, Products, Reduce,
    SeriesState, Shape, Spline, SplineReverse, TermWeight, TermWeights, Unary,
};
use resflow::config::FlowConfig;
use resflow::data::{Dataset, Table};
use resflow::invert::Inversion;
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::{Flow, NdArray};

/// What an operation was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    calls: usize,
    /// The numbers in all results.
    numbers: usize,
}

/// The counts by operation.
type Counts = BTreeMap<&'static str, Count>;

/// The backend `B`, counted. Clones share their counts, which any number of threads may add to.
#[derive(Clone, Debug)]
struct Counting<B> {
    inner: B,
    counts: Arc<Mutex<Counts>>,
}

impl<B: Backend> Counting<B> {
    fn new(inner: B) -> Self {
        Self { inner, counts: Arc::default() }
    }

    /// Returns what was counted since the last call.
    fn take(&self) -> Counts {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts one call with results of so many numbers.
    fn count(&self, operation: &'static str, numbers: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(operation).or_default();
        count.calls += 1;
        count.numbers += numbers;
    }

    /// Counts one call with these results.
    fn count_tensors<'a>(&self, operation: &'static str, results: impl IntoIterator<Item = &'a B::Tensor>) {
        self.count(operation, results.into_iter().map(|tensor| self.inner.shape(tensor).elements()).sum());
    }
}

/// Writes methods of `Backend` that call the inner backend's method of the same name and count the tensors that it
/// returns.
macro_rules! counted {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty { |$result:ident| $tensors:expr })*) => {$(
        fn $name(&self, $($argument: $type),*) -> $output {
            let $result = self.inner.$name($($argument),*);
            self.count_tensors(stringify!($name), $tensors);
            $result
        }
    )*};
}

/// All 54 methods are handed on, those with a default body too: the default composes methods of *this* backend, so that
/// the inner backend's fused operation would not run, and its parts would be counted in its place. What the inner
/// backend composes itself counts as one call. The lint tells of methods that a later version of the trait adds.
#[warn(clippy::missing_trait_methods)]
impl<B: Backend> Backend for Counting<B> {
    type Elem = B::Elem;
    type Tensor = B::Tensor;

    // What computes nothing: names, shapes, hints and threads.

    fn name(&self) -> String {
        format!("counting-{}", self.inner.name())
    }

    fn shape(&self, x: &B::Tensor) -> Shape {
        self.inner.shape(x)
    }

    fn shard_rows(&self, bytes_per_row: usize) -> usize {
        self.inner.shard_rows(bytes_per_row)
    }

    fn tile_rows(&self, bytes_per_row: usize) -> usize {
        self.inner.tile_rows(bytes_per_row)
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        self.inner.run(tasks, task)
    }

    fn with_products(&self, products: Products) -> Result<Self, BackendError> {
        Ok(Self { inner: self.inner.with_products(products)?, ..self.clone() })
    }

    fn poll_interval(&self) -> usize {
        self.inner.poll_interval()
    }

    fn known_zero(&self, x: &B::Tensor) -> bool {
        self.inner.known_zero(x)
    }

    // What waits.

    fn download(&self, x: &B::Tensor) -> Result<Vec<B::Elem>, BackendError> {
        self.count_tensors("download", [x]);
        self.inner.download(x)
    }

    fn synchronize(&self) -> Result<(), BackendError> {
        self.count("synchronize", 0);
        self.inner.synchronize()
    }

    fn net_fixed_point(
        &self,
        net: &Net<B::Tensor>,
        sign: f64,
        search: &FixedPointSearch,
        y: &B::Tensor,
    ) -> Result<FixedPointFound<B::Tensor>, BackendError> {
        let found = self.inner.net_fixed_point(net, sign, search, y)?;
        self.count_tensors("net_fixed_point", [&found.best, &found.rows]);
        Ok(found)
    }

    // What makes tensors.

    counted! {
        fn upload(data: &[B::Elem], shape: Shape) -> B::Tensor { |y| [&y] }
        fn full(value: f64, shape: Shape) -> B::Tensor { |y| [&y] }
        fn noise(key: Key, noise: Noise, first: u64, shape: Shape) -> B::Tensor { |y| [&y] }

        fn unary(op: Unary, x: B::Tensor) -> B::Tensor { |y| [&y] }
        fn binary(op: Binary, a: B::Tensor, b: &B::Tensor) -> B::Tensor { |y| [&y] }
        fn affine(x: B::Tensor, scale: f64, shift: f64) -> B::Tensor { |y| [&y] }
        fn axpy(alpha: f64, x: &B::Tensor, y: B::Tensor) -> B::Tensor { |sum| [&sum] }
        fn select(mask: &B::Tensor, on: &B::Tensor, off: &B::Tensor) -> B::Tensor { |y| [&y] }

        fn reduce(op: Reduce, over: Over, x: &B::Tensor) -> B::Tensor { |y| [&y] }
        fn dot(a: &B::Tensor, b: &B::Tensor) -> B::Tensor { |y| [&y] }
        fn dot_rows(a: &B::Tensor, b: &B::Tensor) -> B::Tensor { |y| [&y] }
        fn all_finite(x: &B::Tensor) -> B::Tensor { |y| [&y] }

        fn matmul(a: &B::Tensor, transpose_a: bool, b: &B::Tensor, transpose_b: bool) -> B::Tensor { |y| [&y] }
        fn matmul_add(
            sum: B::Tensor, a: &B::Tensor, transpose_a: bool, b: &B::Tensor, transpose_b: bool
        ) -> B::Tensor {
            |y| [&y]
        }
        fn linear(x: &B::Tensor, wt: &B::Tensor, bias: &B::Tensor) -> B::Tensor { |y| [&y] }
        fn conv2d(x: &B::Tensor, kernel: &B::Tensor, padding: Padding) -> B::Tensor { |y| [&y] }
        fn conv2d_input(gy: &B::Tensor, kernel: &B::Tensor, padding: Padding, image: [usize; 2]) -> B::Tensor {
            |y| [&y]
        }
        fn conv2d_kernel(x: &B::Tensor, gy: &B::Tensor, padding: Padding, kernel: [usize; 2]) -> B::Tensor { |y| [&y] }
        fn conv2d_kernel_add(sum: B::Tensor, x: &B::Tensor, gy: &B::Tensor, padding: Padding) -> B::Tensor { |y| [&y] }
        fn lu(a: &B::Tensor) -> (B::Tensor, B::Tensor) { |result| [&result.0, &result.1] }

        fn reshape(x: &B::Tensor, shape: Shape) -> B::Tensor { |y| [&y] }
        fn permute(x: &B::Tensor, axes: &[usize]) -> B::Tensor { |y| [&y] }
        fn concat(parts: &[&B::Tensor], axis: usize) -> B::Tensor { |y| [&y] }
        fn narrow(x: &B::Tensor, axis: usize, start: usize, length: usize) -> B::Tensor { |y| [&y] }
        fn take_rows(x: &B::Tensor, indices: &[u32]) -> B::Tensor { |y| [&y] }

        fn activation(f: Activation, parameter: Option<&B::Tensor>, x: &B::Tensor, order: usize) -> Vec<B::Tensor> {
            |derivatives| &derivatives
        }
        fn linear_activation(
            x: &B::Tensor, wt: &B::Tensor, bias: &B::Tensor,
            f: Activation, parameter: Option<&B::Tensor>, order: usize
        ) -> (Option<B::Tensor>, Vec<B::Tensor>) {
            |result| result.0.iter().chain(&result.1)
        }
        fn activation_reverse(
            f: Activation, parameter: Option<&B::Tensor>, x: &B::Tensor,
            derivatives: &[B::Tensor], tangents: &[B::Tensor], gy: B::Tensor, gdy: Vec<B::Tensor>
        ) -> ActivationReverse<B::Tensor> {
            |result| [&result.gx].into_iter().chain(&result.gdx).chain(&result.parameter)
        }

        fn series_term(
            k: usize, weight: TermWeight<'_, B::Tensor>, probe: &B::Tensor,
            negligible: f64, state: SeriesState<B::Tensor>
        ) -> SeriesState<B::Tensor> {
            |state| [&state.power, &state.value].into_iter().chain(&state.neumann)
        }
        fn net_forward(net: &Net<B::Tensor>, x: &B::Tensor, order: usize) -> NetForward<B::Tensor> {
            |result| [&result.y].into_iter().chain(result.kept.iter().flatten())
        }
        fn net_tangents(net: &Net<B::Tensor>, slopes: &[&B::Tensor], dx: &B::Tensor) -> Vec<B::Tensor> {
            |tangents| &tangents
        }
        fn net_jvp(net: &Net<B::Tensor>, slopes: &[&B::Tensor], dx: &B::Tensor) -> (B::Tensor, Vec<B::Tensor>) {
            |result| [&result.0].into_iter().chain(&result.1)
        }
        fn net_pullback(
            net: &Net<B::Tensor>, kept: &[&[B::Tensor]], tangents: &[Vec<&B::Tensor>],
            gy: B::Tensor, gdy: Vec<B::Tensor>, grads: &mut [Option<B::Tensor>]
        ) -> (B::Tensor, Vec<B::Tensor>) {
            |result| [&result.0].into_iter().chain(&result.1)
        }
        fn net_vjp(net: &Net<B::Tensor>, slopes: &[&B::Tensor], gy: B::Tensor) -> B::Tensor { |gx| [&gx] }
        fn net_series(
            net: &Net<B::Tensor>, slopes: &[&B::Tensor], first: usize, weights: TermWeights<'_, B::Tensor>,
            probe: &B::Tensor, negligible: f64, state: SeriesState<B::Tensor>
        ) -> SeriesState<B::Tensor> {
            |state| [&state.power, &state.value].into_iter().chain(&state.neumann)
        }
        fn fixed_point_step(
            rule: &FixedPointRule, y: &B::Tensor, g: &B::Tensor, state: FixedPointState<B::Tensor>
        ) -> FixedPointState<B::Tensor> {
            |state| [&state.x, &state.best, &state.rows]
        }
        fn power_iteration(w: &B::Tensor, u: B::Tensor, v: B::Tensor, count: usize) -> [B::Tensor; 3] {
            |result| &result
        }
        fn conv2d_power_iteration(
            kernel: &B::Tensor, padding: Padding, u: B::Tensor, v: B::Tensor, count: usize
        ) -> [B::Tensor; 3] {
            |result| &result
        }
        fn spline(rule: &Spline, x: &B::Tensor, raw: &B::Tensor) -> [B::Tensor; 2] { |result| &result }
        fn spline_inverse(rule: &Spline, y: &B::Tensor, raw: &B::Tensor) -> B::Tensor { |x| [&x] }
        fn spline_reverse(
            rule: &Spline, x: &B::Tensor, raw: &B::Tensor, gy: &B::Tensor, weights: &B::Tensor
        ) -> SplineReverse<B::Tensor> {
            |result| [&result.gx, &result.graw]
        }
        fn bounded_affine(most: f64, x: &B::Tensor, told: &B::Tensor) -> [B::Tensor; 2] { |result| &result }
        fn bounded_affine_reverse(
            most: f64, x: &B::Tensor, told: &B::Tensor, gy: &B::Tensor, weights: &B::Tensor
        ) -> BoundedAffineReverse<B::Tensor> {
            |result| [&result.gx, &result.gtold]
        }
        fn adam_step(
            rule: &AdamStep, scale: &B::Tensor, gate: &B::Tensor, decayed: &B::Tensor,
            parameters: B::Tensor, moments: [B::Tensor; 2], gradient: &B::Tensor
        ) -> (B::Tensor, [B::Tensor; 2]) {
            |result| [&result.0].into_iter().chain(&result.1)
        }
    }
}

/// Prints a line for each operation, and two columns, calls and numbers, for each task.
fn print(tasks: &[(&str, Counts)]) {
    print!("{:20}", "");
    for (task, _) in tasks {
        print!("{task:>20}");
    }
    print!("\n{:20}", "operation");
    println!("{}", format!("{:>8}{:>12}", "calls", "numbers").repeat(tasks.len()));
    let operations: BTreeSet<_> = tasks.iter().flat_map(|(_, counts)| counts.keys()).collect();
    for operation in operations {
        print!("{operation:20}");
        for (_, counts) in tasks {
            match counts.get(operation) {
                Some(count) => print!("{:8}{:12}", count.calls, count.numbers),
                None => print!("{:>8}{:>12}", "·", "·"),
            }
        }
        println!();
    }
    print!("{:20}", "all");
    for (_, counts) in tasks {
        let calls: usize = counts.values().map(|count| count.calls).sum();
        let numbers: usize = counts.values().map(|count| count.numbers).sum();
        print!("{calls:8}{numbers:12}");
    }
    println!();
}

/// Points on a curve in eight dimensions.
fn curve(points: u32) -> Result<Table, resflow::Error> {
    let frequencies = [0.3, 0.7, 1.1, 1.3, 1.7, 1.9, 2.3, 2.9];
    let point = |i| frequencies.map(|frequency| (frequency * f64::from(i)).sin());
    Ok(Table::from_rows(&(0..points).map(point).collect::<Vec<_>>())?)
}

fn main() -> Result<(), resflow::Error> {
    let device = Counting::new(NdArray::<f64>::new());
    let config = FlowConfig { blocks: 4, ..FlowConfig::new(8) };
    let flow = Flow::new(device.clone(), &config, Key::new(0))?;
    let train = TrainConfig { batch: 100, ..TrainConfig::default() };
    let mut trainer = Trainer::new(flow, Dataset::from(curve(400)?), &train, Budget::Steps(2), Key::new(1))?;
    trainer.step()?; // the first step initialises the transforms too
    let x = curve(100)?;
    let mut tasks = Vec::new();

    device.take();
    trainer.step()?;
    tasks.push(("training step", device.take()));

    let flow = trainer.flow().prepare();
    tasks.push(("preparation", device.take()));

    let score = flow.log_prob(&x, Key::new(2))?;
    tasks.push(("score", device.take()));

    let z = flow.encode(&x, Key::new(3))?.latents;
    device.take();
    let decoded = flow.decode(&z, &Inversion::for_backend::<Counting<NdArray<f64>>>())?;
    tasks.push(("inversion", device.take()));

    println!("{} rows of {} numbers on {}", x.rows(), x.width(), device.name());
    println!("log p = {:.2} nats ({}), residual {:.0e}\n", score.mean(), score.estimator, decoded.residual);
    print(&tasks);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    resflow_conformance::conformance_tests!(double, Counting::new(NdArray::<f64>::new()));
    resflow_conformance::conformance_tests!(single, Counting::new(NdArray::<f32>::new()));

    /// The counts are what was asked for: calls, and numbers in the results.
    #[test]
    fn counts() {
        let device = Counting::new(NdArray::<f64>::new());
        let a = device.full(1.0, [2, 3].into());
        let b = device.clone().full(2.0, [3, 5].into());
        device.matmul(&a, false, &b, false);
        let count = |calls, numbers| Count { calls, numbers };
        assert_eq!(device.take(), Counts::from([("full", count(2, 6 + 15)), ("matmul", count(1, 10))]));
        assert_eq!(device.take(), Counts::new());
    }

    /// Counting changes no bit of a result.
    #[test]
    fn results() -> Result<(), resflow::Error> {
        let counted = Flow::new(Counting::new(NdArray::<f64>::new()), FlowConfig::new(8), Key::new(0))?;
        let bare = counted.to_backend(NdArray::<f64>::new())?;
        let x = curve(100)?;
        assert_eq!(counted.log_prob(&x, Key::new(1))?.values, bare.log_prob(&x, Key::new(1))?.values);
        Ok(())
    }
}
