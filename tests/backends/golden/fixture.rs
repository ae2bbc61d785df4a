//! Reading the reference numbers, and comparing with them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use resflow::backend::{Backend, Element};
use resflow::lipschitz::{DenseOperator, PowerIteration, SingularPair};
use safetensors::{Dtype, SafeTensors};

/// A file of reference numbers. It remembers which of them were asked for.
pub(crate) struct Fixture {
    bytes: Vec<u8>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    notes: HashMap<String, String>,
    unread: RefCell<BTreeSet<String>>,
}

impl Fixture {
    /// The file of this name in `tests/fixtures`, or in the folder that `RESFLOW_FIXTURES` names where the program was carried
    /// away from the repository.
    pub(crate) fn open(name: &str) -> Self {
        let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let folder = std::env::var_os("RESFLOW_FIXTURES").map_or_else(here, PathBuf::from);
        let path = folder.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(path).expect("the fixture is in the repository");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        // what is not F64 is a flag of the reference implementation, no number
        let numbers = file.iter().filter(|(_, view)| view.dtype() == Dtype::F64).map(|(key, view)| {
            let (words, []) = view.data().as_chunks::<8>() else { panic!("{key} is cut off") };
            (key.to_owned(), (view.shape().to_vec(), words.iter().map(|w| f64::from_le_bytes(*w)).collect()))
        });
        let tensors: BTreeMap<_, _> = numbers.collect();
        let unread = RefCell::new(tensors.keys().cloned().collect());
        let notes = header.metadata().clone().unwrap_or_default();
        Self { bytes, tensors, notes, unread }
    }

    /// The file itself.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Counts some tensors as compared.
    pub(crate) fn mark_read(&self, which: impl Fn(&str) -> bool) {
        self.unread.borrow_mut().retain(|key| !which(key));
    }

    /// The numbers of a tensor.
    pub(crate) fn values(&self, key: &str) -> &[f64] {
        self.unread.borrow_mut().remove(key);
        &self.get(key).1
    }

    /// A tensor's shape.
    pub(crate) fn shape(&self, key: &str) -> &[usize] {
        &self.get(key).0
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// A tensor on the device.
    pub(crate) fn tensor<B: Backend>(&self, backend: &B, key: &str) -> B::Tensor {
        let values: Vec<_> = self.values(key).iter().map(|&v| B::Elem::from_f64(v)).collect();
        backend.upload(&values, self.shape(key).into())
    }

    /// An entry of the metadata, which is JSON.
    pub(crate) fn note<T: serde::de::DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_str(&self.notes[key]).expect("metadata of the expected type")
    }

    /// An entry of the metadata, as text.
    pub(crate) fn text(&self, key: &str) -> &str {
        &self.notes[key]
    }

    /// Fails if a tensor of the file was never asked for.
    pub(crate) fn assert_all_read(&self) {
        assert!(self.unread.borrow().is_empty(), "reference numbers not compared: {:?}", self.unread.borrow());
    }

    fn get(&self, key: &str) -> &(Vec<usize>, Vec<f64>) {
        self.tensors.get(key).unwrap_or_else(|| panic!("no tensor {key} in the fixture"))
    }
}

/// A tensor on the host, in double precision.
pub(crate) fn host<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f64> {
    backend.download(x).expect("the device works").into_iter().map(Element::to_f64).collect()
}

/// Compares and collects what differs.
pub(crate) struct Comparison {
    context: String,
    tolerance: f64,
    compared: usize,
    worst: (f64, String),
    differing: Vec<String>,
}

impl Comparison {
    /// To the tolerance of a backend's precision: 1e−9 or 1e−4.
    pub(crate) fn new<B: Backend>(context: &str) -> Self {
        let tolerance = if B::Elem::EPSILON < 1e-10 { 1e-9 } else { 1e-4 };
        let context = format!("{context}, {}", B::Elem::NAME);
        Self { context, tolerance, compared: 0, worst: (0.0, String::new()), differing: Vec::new() }
    }

    /// The tolerance.
    pub(crate) fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// By max|Δ| / max|reference|; absolutely where the reference is all zeros.
    pub(crate) fn close(&mut self, name: &str, actual: &[f64], reference: &[f64]) {
        assert_eq!(actual.len(), reference.len(), "{}: {name} has another size", self.context);
        let largest = |values: &mut dyn Iterator<Item = f64>| {
            values.map(f64::abs).fold(0.0, |a: f64, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
        };
        let scale = largest(&mut reference.iter().copied());
        let difference = largest(&mut actual.iter().zip(reference).map(|(a, r)| a - r));
        let deviation = if scale > 0.0 { difference / scale } else { difference };
        self.compared += 1;
        // a NaN is not within the tolerance
        if deviation.is_nan() || deviation > self.tolerance {
            self.differing.push(format!("{name}: {deviation:.2e}"));
        }
        if deviation.is_nan() || deviation > self.worst.0 {
            self.worst = (deviation, name.to_owned());
        }
    }

    /// Each element by |Δ| / max(1, |reference|), to a tolerance of its own.
    pub(crate) fn each(&mut self, name: &str, actual: &[f64], reference: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), reference.len(), "{}: {name} has another size", self.context);
        let apart = |(a, r): (&f64, &f64)| (a - r).abs() / r.abs().max(1.0);
        let worst =
            actual.iter().zip(reference).map(apart).fold(0.0, |a: f64, b| if b.is_nan() { b } else { a.max(b) });
        self.compared += 1;
        if worst.is_nan() || worst > tolerance {
            self.differing.push(format!("{name}: {worst:.2e}, allowed {tolerance:.0e}"));
        }
    }

    /// [`close`](Self::close) for a tensor on the device.
    pub(crate) fn tensor<B: Backend>(&mut self, backend: &B, name: &str, actual: &B::Tensor, reference: &[f64]) {
        self.close(name, &host(backend, actual), reference);
    }

    /// Fails if anything differs.
    pub(crate) fn finish(self) {
        let Self { context, tolerance, compared, worst, differing } = self;
        println!("{context}: {compared} tensors, worst {:.1e} ({})", worst.0, worst.1);
        assert!(compared > 0, "{context}: nothing compared");
        assert!(differing.is_empty(), "{context}: beyond {tolerance:e}:\n  {}", differing.join("\n  "));
    }
}

/// Compares the norms of matrices: by the vectors that are stored, and by power iteration from them where the file has the exact ones.
pub(crate) fn norms_of_matrices<B: Backend>(backend: &B, file: &Fixture, comparison: &mut Comparison) {
    let keys: Vec<String> =
        file.unread.borrow().iter().filter(|key| key.rsplit('.').next() == Some("scale")).cloned().collect();
    for key in keys {
        let path = key.trim_start_matches("buffer.").trim_end_matches(".scale");
        let weight = format!("param.{path}.weight");
        if file.shape(&weight).len() != 2 {
            continue;
        }
        let weight = file.tensor(backend, &weight);
        let operator = DenseOperator::new(backend, &weight).expect("a matrix");
        let [u, v] = ["u", "v"].map(|side| file.tensor(backend, &format!("buffer.{path}.{side}")));
        let pair = SingularPair::new(backend, u, v);
        comparison.tensor(backend, &key, &pair.sigma(backend, &operator), file.values(&key));
        let exact = format!("sigma_exact.{path}");
        if file.has(&exact) {
            let converged = pair.updated(backend, &operator, PowerIteration::converge::<B>());
            comparison.tensor(backend, &exact, &converged.sigma(backend, &operator), file.values(&exact));
        }
    }
}
