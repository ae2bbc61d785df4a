//! Tensors of a torch pickle: windows of storages.
//!
//! `_rebuild_tensor_v2(storage, offset, size, stride, …)`: element (i₁, …, i_d) is number offset + Σ iₖ·strideₖ of the
//! storage. The storage is a persistent name ('storage', class, key, device, length[, view]). Every element must lie
//! inside, and there must not be more elements than the storage has numbers, so that a tensor takes no more memory than
//! the file pays for.

use super::pickle::{Id, Pickle, Value};
use super::scalar::Scalar;

/// More axes than any tensor of a flow has.
const MOST_AXES: usize = 16;

/// The place of numbers in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) scalar: Scalar,
    pub(super) key: &'a str,
    /// Numbers in the whole storage.
    pub(super) length: usize,
    /// The part that belongs to the tensor's own storage, if that is a view of another one.
    view: (usize, usize),
}

/// A window of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    offset: usize,
    pub(super) shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Reads a storage's class and length; `None` if the value is no storage.
pub(super) fn storage_extent<'a>(pickle: &Pickle<'a>, id: Id) -> Option<Result<(&'a str, &'a str, usize), String>> {
    let Value::Persistent(name) = *pickle.get(id) else { return None };
    let parts = pickle.items(name)?;
    let &[tag, class, key, _, length, ..] = parts else { return None };
    if pickle.text(tag) != Some("storage") {
        return None;
    }
    let parse = || {
        let (module, class) = pickle.global(class).ok_or("a storage without a class")?;
        if !matches!(module, "torch" | "torch.cuda" | "torch.storage") {
            return Err(format!("a storage of the unknown class {module}.{class}"));
        }
        let key = pickle.text(key).ok_or("a storage without a key")?;
        Ok((class, key, size(pickle, length).ok_or("a storage without a length")?))
    };
    Some(parse())
}

/// A nonnegative integer.
fn size(pickle: &Pickle, id: Id) -> Option<usize> {
    usize::try_from(pickle.int(id)?).ok()
}

impl<'a> Storage<'a> {
    fn parse(pickle: &Pickle<'a>, id: Id) -> Result<Self, String> {
        let extent = storage_extent(pickle, id);
        let (class, key, length) = extent.ok_or_else(|| format!("has {} for a storage", pickle.describe(id)))??;
        let scalar = Scalar::of_storage(class).ok_or_else(|| format!("has numbers of the unknown type {class}"))?;
        let mut view = (0, length);
        if let Value::Persistent(name) = *pickle.get(id)
            && let Some(&[_, _, _, _, _, window]) = pickle.items(name)
            && !matches!(pickle.get(window), Value::None)
        {
            let parts = pickle.items(window).and_then(|parts| match *parts {
                [_, offset, length] => Some((size(pickle, offset)?, size(pickle, length)?)),
                _ => None,
            });
            view = parts
                .filter(|&(offset, part)| offset.checked_add(part).is_some_and(|end| end <= length))
                .ok_or("has a view of a storage that is not inside it")?;
        }
        Ok(Self { scalar, key, length, view })
    }
}

impl<'a> Tensor<'a> {
    /// `None` if the value is no tensor; an error if it is one that cannot be.
    pub(super) fn parse(pickle: &Pickle<'a>, id: Id) -> Option<Result<Self, String>> {
        let mut record = pickle.record(id)?;
        let mut call = (pickle.global(record.class)?, record.arguments);
        // a parameter around a tensor with attributes around a tensor
        for _ in 0..4 {
            let ((module, function), arguments) = call;
            let arguments = pickle.items(arguments)?;
            match (module, function) {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                    record = pickle.record(*arguments.first()?)?;
                    call = (pickle.global(record.class)?, record.arguments);
                }
                // a function, the type that its result is to have, and its arguments
                ("torch._tensor", "_rebuild_from_type_v2") => {
                    let &[function, _, arguments, ..] = arguments else { return None };
                    call = (pickle.global(function)?, arguments);
                }
                ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                    let &[storage, offset, shape, strides, ..] = arguments else {
                        return Some(Err("lacks its storage or shape".into()));
                    };
                    return Some(Self::window(pickle, storage, offset, shape, strides));
                }
                ("torch._utils" | "torch._tensor", name) if name.starts_with("_rebuild") => {
                    return Some(Err(format!("is made by {name}, which is not supported")));
                }
                _ => return None,
            }
        }
        None
    }

    fn window(pickle: &Pickle<'a>, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Self, String> {
        let storage = Storage::parse(pickle, storage)?;
        let offset = size(pickle, offset).ok_or("has an offset that is no size")?;
        let shape = sizes(pickle, shape).ok_or("has a shape that is not a tuple of sizes")?;
        let strides = sizes(pickle, strides).ok_or("has strides that are not a tuple of sizes")?;
        if shape.len() != strides.len() || shape.len() > MOST_AXES {
            return Err(format!("has {} axes and {} strides, at most {MOST_AXES}", shape.len(), strides.len()));
        }
        let tensor = Self { storage, offset, shape, strides };
        let length = tensor.storage.view.1;
        let numbers = tensor.numbers().filter(|&n| n <= length);
        let numbers = numbers.ok_or_else(|| format!("of shape {:?} does not fit {length} numbers", tensor.shape))?;
        let axes = tensor.shape.iter().zip(&tensor.strides);
        let last = axes
            .clone()
            .try_fold(tensor.offset, |at, (n, stride)| at.checked_add(n.checked_sub(1)?.checked_mul(*stride)?));
        if numbers > 0 && last.is_none_or(|last| last >= length) {
            return Err(format!("reaches beyond the {length} numbers of its storage"));
        }
        Ok(tensor)
    }

    fn numbers(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1_usize, |n, &m| n.checked_mul(m))
    }

    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.numbers().expect("checked when it was made")
    }

    /// Equal for the same window of the same storage.
    pub(super) fn order(&self) -> (&'a str, usize, usize, &[usize], &[usize]) {
        (self.storage.key, self.storage.view.0, self.offset, &self.shape, &self.strides)
    }

    /// The places of the elements in the whole storage, in row-major order.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let mut index = vec![0; self.shape.len()];
        let mut at = self.storage.view.0 + self.offset;
        (0..self.len()).map(move |_| {
            let place = at;
            for axis in (0..self.shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    at += self.strides[axis];
                    break;
                }
                at -= (self.shape[axis] - 1) * self.strides[axis];
                index[axis] = 0;
            }
            place
        })
    }
}

/// A tuple of sizes; torch.Size is one with a class around it.
fn sizes(pickle: &Pickle, id: Id) -> Option<Vec<usize>> {
    let id = match pickle.record(id) {
        Some(record) if pickle.global(record.class) == Some(("torch", "Size")) => {
            *pickle.items(record.arguments)?.first()?
        }
        _ => id,
    };
    pickle.items(id)?.iter().take(MOST_AXES + 1).map(|&n| size(pickle, n)).collect()
}
