//! Files of the reference implementation (github.com/rtqichen/residual-flows): safetensors files and torch's
//! checkpoints, in the zip format and in the older format of consecutive pickles.
//!
//! Nothing in a file is executed: a pickle is read as data, and an object of an unknown class becomes an inert record
//! of its class's name and its attributes. The readers are functions of a byte slice, never panic, and hold at most a
//! multiple of the slice in memory.
//!
//! ```no_run
//! use resflow::import::{StateDict, Weights};
//! let mut state = StateDict::read("checkpt-0100.pth".as_ref(), Weights::Ema)?;
//! let beta: Vec<f64> = state.take("transforms.0.chain.2.nnet.1.beta", &[1])?;
//! # Ok::<(), resflow::import::ImportError>(())
//! ```

mod container;
mod dense;
mod names;
mod pickle;
mod reference;
mod scalar;
mod tensor;
mod torch_file;
mod torch_legacy;
mod torch_zip;

use std::collections::BTreeMap;
use std::path::Path;

use resflow_backend::Element;
use safetensors::SafeTensors;

use crate::checkpoint::Values;
use crate::data::looks_like;
pub use crate::error::ImportError;
use scalar::Scalar;

/// The numbers of a checkpoint that the parameters get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weights {
    /// The numbers of the last step, `state_dict`.
    #[default]
    Current,
    /// Their exponential moving average (EMA), `ema.shadow_params`. What is not averaged, u and v among it, comes from
    /// `state_dict` and should be updated.
    Ema,
}

/// One of the saved arguments of the program that trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
}

/// Named tensors of a foreign file. What torch's wrappers put into names (`module.`, `_orig_mod.`) is stripped, and so are
/// `param.` and `buffer.`, without which names are left out where they are present. What a program put before a flow
/// (`model.`, `net.`) is taken off; of several flows in a file the caller chooses.
#[derive(Debug, Clone, Default)]
pub struct StateDict {
    /// Shape and numbers by name, in the order and layout of torch. Half precision was widened to single, integers and
    /// flags to double (exactly).
    pub tensors: BTreeMap<String, (Vec<usize>, Values)>,
    /// The numbers, texts and flags among the saved arguments (`args`) of the program that trained; empty if
    /// none were saved.
    pub arguments: BTreeMap<String, Argument>,
    /// Sentences on what was decided in reading the file: the place of the tensors, what was taken off their names.
    pub notes: Vec<String>,
    /// Marks that a tensor was made in double precision.
    double: bool,
}

impl StateDict {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// Returns [`ImportError::Format`] if it is damaged, [`ImportError::Tensor`] if two names are the same without
    /// their prefixes, or if a tensor's type is none of F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL or an
    /// integer has no exact double.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ImportError> {
        Self::from_safetensors_at(bytes, None)
    }

    fn from_safetensors_at(bytes: &[u8], key: Option<&str>) -> Result<Self, ImportError> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| ImportError::Format(format!("not a readable safetensors file: {e}")))?;
        let views = file.tensors();
        let views = views.iter().map(|(name, view)| (name.as_str(), view)).collect();
        let selected = names::select(views, key)?;
        let mut dict = Self { notes: selected.note.into_iter().collect(), ..Self::default() };
        for (name, view) in selected.entries {
            let scalar = Scalar::of_safetensors(view.dtype())
                .ok_or_else(|| ImportError::tensor(&name, format!("is of the type {}", view.dtype())))?;
            let count = view.data().len() / scalar.size();
            let values = scalar.read(view.data(), 0..count).map_err(|problem| ImportError::tensor(&name, problem))?;
            dict.insert(name, view.shape().to_vec(), scalar, values);
        }
        Ok(dict)
    }

    /// Reads a file that torch wrote, of either format: a checkpoint of the reference implementation, a state dict alone,
    /// or one anywhere in the dicts and lists of a file.
    ///
    /// # Errors
    /// Returns [`ImportError::Format`] or [`ImportError::Pickle`] if the file is damaged or wants something other than
    /// data to be read, [`ImportError::Content`] or [`ImportError::Tensor`] if it does not hold the tensors that are
    /// asked for.
    pub fn from_pth(bytes: &[u8], weights: Weights) -> Result<Self, ImportError> {
        torch_file::read(bytes, weights, None)
    }

    /// Reads the contents of a file of any of these formats.
    ///
    /// # Errors
    /// Returns the errors of [`from_safetensors`](Self::from_safetensors) and [`from_pth`](Self::from_pth),
    /// [`ImportError::Content`] if the average is asked of a safetensors file, which has none, and
    /// [`ImportError::Format`] for any other file.
    pub fn from_bytes(bytes: &[u8], weights: Weights) -> Result<Self, ImportError> {
        Self::from_bytes_at(bytes, weights, None)
    }

    /// Reads one state dict of several: `key` is where it is in the file, keys joined by dots (`model.ema`), or what its
    /// names begin with (`net`).
    ///
    /// # Errors
    /// Returns the errors of [`from_bytes`](Self::from_bytes), and [`ImportError::Content`] with what there is if there
    /// is nothing of that name.
    pub fn from_bytes_at(bytes: &[u8], weights: Weights, key: Option<&str>) -> Result<Self, ImportError> {
        if is_safetensors(bytes) {
            if weights == Weights::Ema {
                return Err(ImportError::Content("a safetensors file has no average of the weights".into()));
            }
            return Self::from_safetensors_at(bytes, key);
        }
        if bytes.starts_with(torch_file::ZIP_MAGIC) || bytes.first() == Some(&torch_file::PICKLE_MAGIC) {
            return torch_file::read(bytes, weights, key);
        }
        let what = looks_like::describe(bytes).map_or(String::new(), |what| format!(": it looks like {what}"));
        Err(ImportError::Format(format!("neither a safetensors file nor a checkpoint of torch{what}")))
    }

    /// Reads a file of any of these formats, told apart by its contents.
    ///
    /// # Errors
    /// Returns [`ImportError::Io`] if the file cannot be read, else the errors of [`from_bytes`](Self::from_bytes).
    pub fn read(path: &Path, weights: Weights) -> Result<Self, ImportError> {
        Self::read_at(path, weights, None)
    }

    /// Reads one state dict of several in a file; see [`from_bytes_at`](Self::from_bytes_at).
    ///
    /// # Errors
    /// Returns [`ImportError::Io`] if the file cannot be read, else the errors of
    /// [`from_bytes_at`](Self::from_bytes_at).
    pub fn read_at(path: &Path, weights: Weights, key: Option<&str>) -> Result<Self, ImportError> {
        let bytes =
            std::fs::read(path).map_err(|source| ImportError::Io { path: path.display().to_string(), source })?;
        Self::from_bytes_at(&bytes, weights, key)
    }

    /// Removes a tensor and returns its numbers, row-major.
    ///
    /// # Errors
    /// Returns [`ImportError::Tensor`] if it is missing, of another shape, or not finite in the precision asked for; it
    /// stays then.
    pub fn take<E: Element>(&mut self, name: &str, shape: &[usize]) -> Result<Vec<E>, ImportError> {
        let (found, values) = self.tensors.get(name).ok_or_else(|| ImportError::tensor(name, "is missing"))?;
        if found != shape {
            return Err(ImportError::tensor(name, format!("has shape {found:?}, expected {shape:?}")));
        }
        let out = values.to::<E>();
        if !out.iter().all(|x| x.is_finite()) {
            return Err(ImportError::tensor(name, format!("holds numbers that are not finite in {}", E::NAME)));
        }
        self.tensors.remove(name);
        Ok(out)
    }

    /// Returns the precision that the tensors were made in: `f64` if any of them is in double precision, integers and
    /// ignored ones (see [`remove_ignored`](Self::remove_ignored)) left aside, and `f32` otherwise.
    pub fn precision(&self) -> &'static str {
        if self.double { f64::NAME } else { f32::NAME }
    }

    /// Removes what the reference's estimators keep in the blocks: `geom_p`, `lamb` and names that begin with `last_`, and the second
    /// pair of nets of implicit blocks, `nnet_x_copy` and `nnet_z_copy`.
    pub fn remove_ignored(&mut self) {
        self.tensors.retain(|name, _| !names::is_ignored(name));
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    /// Returns [`ImportError::Unused`] if a tensor is left that is not to be ignored.
    pub fn finish(mut self) -> Result<(), ImportError> {
        self.remove_ignored();
        let count = self.tensors.len();
        if count == 0 {
            return Ok(());
        }
        let first = self.tensors.keys().take(5).map(|name| crate::error::Excerpt(name).to_string());
        let names = first.chain((count > 5).then(|| "…".to_owned())).collect::<Vec<_>>().join(", ");
        Err(ImportError::Unused { count, names })
    }

    fn insert(&mut self, name: String, shape: Vec<usize>, scalar: Scalar, values: Values) {
        // the reference makes geom_p in double precision, whatever the model is in
        self.double |= scalar == Scalar::F64 && !names::is_ignored(&name);
        self.tensors.insert(name, (shape, values));
    }
}

/// Eight bytes with the length of a JSON header, which is there.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}
