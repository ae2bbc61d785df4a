//! Archives: named tensors and a JSON document in a safetensors file, written atomically.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use resflow_backend::Element;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::data::looks_like;
use crate::error::CheckpointError;

/// The metadata entry that makes a safetensors file one of ours.
const ENTRY: &str = "resflow";
/// Stored numbers, in the precision that they were made in.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
}

impl Values {
    /// Takes elements of either precision.
    pub fn of<E: Element>(x: &[E]) -> Self {
        if E::NAME == f32::NAME {
            Self::F32(x.iter().map(|x| x.to_f64() as f32).collect())
        } else {
            Self::F64(x.iter().map(|x| x.to_f64()).collect())
        }
    }

    /// Returns the elements of another precision, rounded if need be.
    pub fn to<E: Element>(&self) -> Vec<E> {
        match self {
            Self::F32(x) => x.iter().map(|&x| E::from_f64(f64::from(x))).collect(),
            Self::F64(x) => x.iter().map(|&x| E::from_f64(x)).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
        }
    }

    fn all_finite(&self) -> bool {
        match self {
            Self::F32(x) => x.iter().all(|x| x.is_finite()),
            Self::F64(x) => x.iter().all(|x| x.is_finite()),
        }
    }
}

/// Named tensors and a JSON document: the contents of a file.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The shape and the numbers of each tensor, row-major, by name.
    pub tensors: BTreeMap<String, (Vec<usize>, Values)>,
    /// The metadata entry.
    pub document: serde_json::Value,
}

impl Archive {
    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Format`] if the bytes are no safetensors file with our metadata,
    /// [`CheckpointError::Tensor`] for a tensor of another type than f32 and f64.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let format = |e: &dyn std::fmt::Display| CheckpointError::Format(e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| match looks_like::describe(bytes) {
            Some(what) => CheckpointError::Format(format!("it looks like {what} ({e})")),
            None => format(&e),
        })?;
        let document = metadata.metadata().as_ref().and_then(|m| m.get(ENTRY)).ok_or_else(|| {
            CheckpointError::Format("a safetensors file, but without the metadata entry `resflow`".into())
        })?;
        let document = serde_json::from_str(document).map_err(|e| format(&format_args!("metadata: {e}")))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| format(&e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => {
                    Values::F32(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
                }
                Dtype::F64 => Values::F64(
                    data.chunks_exact(8)
                        .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                        .collect(),
                ),
                other => {
                    let problem = format!("is of type {other:?}, expected F32 or F64");
                    return Err(CheckpointError::Tensor { name: name.to_owned(), problem });
                }
            };
            tensors.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
        Ok(Self { tensors, document })
    }

    /// Returns `true` for the state of a run (`checkpoint.safetensors`), `false` for a model.
    pub fn is_run(&self) -> bool {
        self.document.get("run").is_some()
    }

    /// Takes the best model out of the state of a run, or its present weights before the first validation; a
    /// model as it is.
    #[must_use]
    pub fn into_model(mut self) -> Self {
        let Some(run) = self.document.get("run") else { return self };
        let best = run.get("best").filter(|v| !v.is_null()).cloned();
        let prefix = if best.is_some() { "best." } else { "flow." };
        let model = best.or_else(|| self.document.get("model").cloned()).unwrap_or_default();
        self.document = serde_json::json!({ "model": model });
        self.tensors.retain(|name, _| name.starts_with(prefix));
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, t)| (name[prefix.len()..].to_owned(), t)).collect();
        self
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Io`] if the file cannot be read, else the errors of [`from_bytes`](Self::from_bytes).
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_bytes(&std::fs::read(path).map_err(|source| io(path, source))?)
    }

    /// Returns the bytes of a file, a function of the contents alone.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Format`] if safetensors refuses a name or a shape.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let bytes: Vec<(&String, Dtype, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| match values {
                Values::F32(x) => (name, Dtype::F32, shape, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
                Values::F64(x) => (name, Dtype::F64, shape, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            })
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, dtype, shape, data) in &bytes {
            let view =
                TensorView::new(*dtype, (*shape).clone(), data).map_err(|e| CheckpointError::Format(e.to_string()))?;
            views.push((name.as_str(), view));
        }
        let metadata = HashMap::from([(ENTRY.to_owned(), self.document.to_string())]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| CheckpointError::Format(e.to_string()))
    }

    /// Writes a file atomically: whoever reads it finds the old contents or the new, whatever happens meanwhile.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Io`] if the file system refuses; the old file is untouched then.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        write_atomically(path, &self.to_bytes()?)
    }

    /// Returns the numbers of a tensor of this shape, row-major.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Tensor`] if it is missing, of another shape, or not finite.
    pub fn get<E: Element>(&self, name: &str, shape: &[usize]) -> Result<Vec<E>, CheckpointError> {
        let error = |problem: String| CheckpointError::Tensor { name: name.to_owned(), problem };
        let (found, values) = self.tensors.get(name).ok_or_else(|| error("is missing".into()))?;
        if found != shape {
            return Err(error(format!("has shape {found:?}, expected {shape:?}")));
        }
        let out = values.to::<E>();
        if out.len() != shape.iter().product::<usize>() {
            return Err(error(format!("has {} numbers for shape {shape:?}", out.len())));
        }
        if !values.all_finite() || !out.iter().all(|x| x.is_finite()) {
            return Err(error("holds infinite or NaN numbers".into()));
        }
        Ok(out)
    }
}

fn io(path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io { path: path.display().to_string(), source }
}

/// Writes a file through a temporary one beside it.
///
/// # Errors
/// Returns [`CheckpointError::Io`] if the file system refuses; the old file is untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|source| io(path, source))?;
    file.finish()
}

/// A file that is written piece by piece into a temporary one beside it, and appears whole or not at all.
#[derive(Debug)]
pub struct AtomicFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins a file at a path, where nothing changes before [`finish`](Self::finish).
    ///
    /// # Errors
    /// Returns [`CheckpointError::Io`] if the file system refuses.
    pub fn create(path: &Path) -> Result<Self, CheckpointError> {
        if path.file_name().is_none() {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "this path names no file to write");
            let shown = if path.as_os_str().is_empty() { "the empty path".into() } else { path.display().to_string() };
            return Err(CheckpointError::Io { path: shown, source });
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".resflow-").suffix(".tmp");
        // readable as the umask says, like any other file: temporary ones are private
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder(path)).map_err(|source| io(path, source))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Puts the file, whole, in the place of an older one.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Io`] if the file system refuses; the old file is untouched then.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let Self { file, path } = self;
        let attempt = || {
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            // the rename itself must reach the disk; not every platform can open a folder
            if let Ok(folder) = std::fs::File::open(folder(&path)) {
                let _ = folder.sync_all();
            }
            Ok(())
        };
        attempt().map_err(|source| io(&path, source))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
