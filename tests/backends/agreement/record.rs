//! What one backend computed of a case, and the comparison of three of them.
//!
//! An [`Experiment`] is one function of a backend and a case. It runs on the tested backend, on the CPU in f32 and on the CPU
//! in f64; both f32 results must agree with f64, so that neither's error hides the other's, and with each other.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::Location;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner};
use resflow::NdArray;
use resflow::backend::{Backend, Element};

use crate::agreement::tolerance::{EPSILON, Quantity, SHARE};

/// The reference in the tested precision.
pub(crate) fn single() -> NdArray<f32> {
    NdArray::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// The reference.
pub(crate) fn double() -> NdArray<f64> {
    NdArray::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// A tensor on the host.
pub(crate) fn host<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f64> {
    backend.download(x).expect("no device fault").into_iter().map(Element::to_f64).collect()
}

/// Some numbers of one kind.
#[derive(Debug)]
struct Entry {
    name: String,
    quantity: Quantity,
    values: Vec<f64>,
    /// The tensors that the values consist of.
    parts: Vec<(String, Range<usize>)>,
    /// What each value may be off besides, where the case makes it ill conditioned.
    slack: Vec<f64>,
    /// What each value of this run is said to be off by.
    error: Vec<f64>,
}

/// Everything that an experiment found.
#[derive(Debug)]
pub(crate) struct Record {
    entries: Vec<Entry>,
    /// The numbers in a row.
    dimension: usize,
}

impl Record {
    /// Of rows of so many numbers.
    pub(crate) fn new(dimension: usize) -> Self {
        Self { entries: Vec::new(), dimension }
    }

    pub(crate) fn push(&mut self, quantity: Quantity, name: impl Into<String>, values: Vec<f64>) {
        let parts = vec![(String::new(), 0..values.len())];
        self.entries.push(Entry { name: name.into(), quantity, values, parts, slack: Vec::new(), error: Vec::new() });
    }

    pub(crate) fn tensor<B: Backend>(
        &mut self,
        backend: &B,
        quantity: Quantity,
        name: impl Into<String>,
        x: &B::Tensor,
    ) {
        self.push(quantity, name, host(backend, x));
    }

    /// Tensors that are measured together and each by itself.
    pub(crate) fn parts(
        &mut self,
        quantity: Quantity,
        name: &str,
        values: Vec<f64>,
        parts: Vec<(String, Range<usize>)>,
    ) {
        assert_eq!(parts.last().map_or(0, |(_, range)| range.end), values.len(), "{name}: the parts are not the whole");
        self.entries.push(Entry {
            name: name.to_owned(),
            quantity,
            values,
            parts,
            slack: Vec::new(),
            error: Vec::new(),
        });
    }

    /// Allows each value of the last entry so much more, as this run finds it.
    pub(crate) fn slack(&mut self, slack: Vec<f64>) {
        let last = self.entries.last_mut().expect("an entry");
        assert_eq!(slack.len(), last.values.len());
        last.slack = slack;
    }

    /// Says what each value of the last entry may be off by in this run.
    pub(crate) fn error(&mut self, error: Vec<f64>) {
        let last = self.entries.last_mut().expect("an entry");
        assert_eq!(error.len(), last.values.len());
        // more would let any value pass
        assert!(error.iter().all(|error| (0.0..1e-2).contains(error)), "{error:?}");
        last.error = error;
    }

    /// The bits of everything.
    pub(crate) fn bits(&self) -> Vec<(&str, Vec<u64>)> {
        let bits = |entry: &Entry| entry.values.iter().map(|v| v.to_bits()).collect();
        self.entries.iter().map(|entry| (&*entry.name, bits(entry))).collect()
    }
}

/// The largest absolute value; NaN if there is one.
fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a: f64, v| if a.is_nan() || v.is_nan() { f64::NAN } else { a.max(v.abs()) })
}

/// The largest part of its tolerance that each quantity has needed, and where.
#[derive(Debug, Default)]
pub(crate) struct Worst(RefCell<BTreeMap<(Quantity, &'static str), (f64, String)>>);

impl Worst {
    /// Compares two records; `pair` names them.
    pub(crate) fn compare(&self, pair: &'static str, actual: &Record, reference: &Record) -> Result<(), TestCaseError> {
        let fail = |problem: String| Err(TestCaseError::fail(format!("{pair}: {problem}")));
        if actual.entries.len() != reference.entries.len() {
            return fail(format!("{} entries, expected {}", actual.entries.len(), reference.entries.len()));
        }
        let mut wrong = Vec::new();
        for (a, r) in actual.entries.iter().zip(&reference.entries) {
            if (&a.name, a.values.len()) != (&r.name, r.values.len()) {
                return fail(format!("{} of {}, expected {} of {}", a.name, a.values.len(), r.name, r.values.len()));
            }
            let tolerance = r.quantity.tolerance();
            let numbers = if r.quantity == Quantity::LogDet { reference.dimension as f64 } else { 1.0 };
            let floor = numbers * tolerance.floor;
            let whole = if r.parts.len() > 1 { SHARE * largest(&r.values) } else { 0.0 };
            for (part, range) in &r.parts {
                let scale = largest(&r.values[range.clone()]).max(whole).max(floor);
                let allowed = tolerance.units * EPSILON * scale;
                let own = |of: &[f64], i: usize| of.get(i).copied().unwrap_or(0.0);
                let allowed = |i: usize| allowed + own(&r.slack, i) + own(&a.error, i) + own(&r.error, i);
                // the element that needs most of what it is allowed, NaN first
                let needed = |i: usize| (a.values[i] - r.values[i]).abs() / (allowed(i) + f64::MIN_POSITIVE);
                let rank = |i: usize| if needed(i).is_nan() { f64::INFINITY } else { needed(i) };
                let Some(i) = range.clone().max_by(|&i, &j| rank(i).total_cmp(&rank(j))) else { continue };
                let (ratio, name) = (rank(i), format!("{}{part}", r.name));
                if ratio > 1.0 {
                    let (found, expected, allowed) = (a.values[i], r.values[i], allowed(i));
                    let number = i - range.start;
                    wrong.push(format!("{name}[{number}] is {found:e}, not {expected:e} ± {allowed:.1e}"));
                }
                let mut worst = self.0.borrow_mut();
                let worst = worst.entry((r.quantity, pair)).or_default();
                if ratio > worst.0 {
                    *worst = (ratio, name);
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { fail(wrong.join("\n  ")) }
    }

    fn print(&self, test: &str) {
        for ((quantity, pair), (ratio, name)) in &*self.0.borrow() {
            println!("{test}: {quantity:?} {ratio:.3} of the tolerance ({pair}, {name})");
        }
    }
}

/// A computation that every backend must agree on.
pub(crate) trait Experiment {
    type Case: Debug;

    fn cases() -> impl Strategy<Value = Self::Case>;

    fn run<B: Backend>(backend: &B, case: &Self::Case) -> Record;
}

/// A test of this name: the function of a backend and a case, on so many cases of a strategy.
macro_rules! agreement {
    ($(#[$doc:meta])* $test:ident: $cases:literal of $strategy:expr => $run:ident($case:ty)) => {
        $(#[$doc])*
        pub(crate) fn $test<B: Backend<Elem = f32>>(backend: &B) {
            struct Of;

            impl $crate::agreement::record::Experiment for Of {
                type Case = $case;

                fn cases() -> impl proptest::strategy::Strategy<Value = $case> {
                    $strategy
                }

                fn run<X: Backend>(backend: &X, case: &$case) -> $crate::agreement::record::Record {
                    $run(backend, case)
                }
            }

            $crate::agreement::record::agree::<Of, B>(stringify!($test), $cases, backend);
        }
    };
}
pub(crate) use agreement;

/// Runs a property on so many cases, the same ones in every run; failures are written beside the caller's source.
#[track_caller]
pub(crate) fn check<S: Strategy>(
    test: &'static str,
    cases: u32,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: Debug,
{
    let seed = test.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let config = Config {
        cases,
        source_file: Some(Location::caller().file()),
        test_name: Some(test),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 100,
        ..Config::default()
    };
    if let Err(failure) = TestRunner::new(config).run(&strategy, property) {
        panic!("{test}: {failure}");
    }
}

/// Runs an experiment on all three backends.
#[track_caller]
pub(crate) fn agree<E: Experiment, B: Backend<Elem = f32>>(test: &'static str, cases: u32, backend: &B) {
    let (single, double) = (single(), double());
    let worst = Worst::default();
    check(test, cases, E::cases(), |case| {
        let reference = E::run(&double, &case);
        let cpu = E::run(&single, &case);
        worst.compare("the CPU's f32 and f64", &cpu, &reference)?;
        let tested = E::run(backend, &case);
        worst.compare("tested and f64", &tested, &reference)?;
        worst.compare("tested and the CPU's f32", &tested, &cpu)
    });
    worst.print(&format!("{test} on {}", backend.name()));
}
