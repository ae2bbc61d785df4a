//! Tables of other libraries: by columns, and through Arrow's C interface, by the library's rules for tables.

use std::iter::repeat_n;
use std::sync::{Mutex, PoisonError};

use arrow_array::cast::AsArray as _;
use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array as _, ArrayRef, RecordBatchReader as _};
use arrow_schema::{ArrowError, DataType};
use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use resflow::data::{
    ColumnValues, Dataset, Missing, ModelColumns, NamedColumn, ReadOptions, TextColumns, read_columns,
};

use crate::error::of_data;
use crate::words::{Words, are_words};

/// The columns of a model: their names, how many there are, and the places of those that hold categories.
pub(crate) type Columns = (Option<Vec<String>>, usize, Vec<usize>);

/// A table that was read from a frame. Whatever is done with it takes it, so that there is one copy.
#[pyclass(frozen, module = "resflow._core")]
#[derive(Debug)]
pub(crate) struct Frame {
    rows: Mutex<Option<Dataset>>,
    notes: Vec<String>,
}

impl Frame {
    /// Takes the rows.
    pub(crate) fn take(&self) -> PyResult<Dataset> {
        let mut held = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        held.take().ok_or_else(|| PyRuntimeError::new_err("this table was taken already"))
    }

    /// Makes rows of columns; of a model's, where there is one, whatever their order. Else columns of few words are categories, and
    /// those that are declared to be.
    fn of(
        columns: Vec<NamedColumn>,
        mut notes: Vec<String>,
        model: Option<Columns>,
        categories: Vec<String>,
        missing: bool,
    ) -> PyResult<Self> {
        let missing = if missing { Missing::Keep } else { Missing::Refuse };
        let model = model.map(|(names, width, categories)| ModelColumns {
            names,
            width,
            // where categories are kept apart, the order is no news
            in_any_order: !categories.is_empty(),
            categories,
            ..ModelColumns::default()
        });
        let options =
            ReadOptions { model, categories, text: TextColumns::Categories, missing, ..ReadOptions::default() };
        let reading = read_columns(columns, &options).map_err(of_data)?;
        notes.extend(reading.notes.iter().filter(|note| note.is_warning()).map(ToString::to_string));
        let mut rows = Dataset::from(reading.table);
        if let Some(categories) = reading.categories {
            rows = rows.with_categories(categories).map_err(of_data)?;
        }
        Ok(Self { rows: Mutex::new(Some(rows)), notes })
    }
}

#[pymethods]
impl Frame {
    /// Reads an object that has Arrow's C interface for streams of tables.
    #[staticmethod]
    fn of_arrow(
        frame: &Bound<'_, PyAny>,
        model: Option<Columns>,
        categories: Vec<String>,
        missing: bool,
    ) -> PyResult<Self> {
        let capsule = frame.call_method0("__arrow_c_stream__")?;
        let (columns, notes) = columns_of(stream_of(&capsule)?)?;
        Self::of(columns, notes, model, categories, missing)
    }

    /// Takes columns: a name with numbers, NaN where one is missing; with the name of a type and words, `None` where one is
    /// missing; or with the name of another type.
    #[staticmethod]
    fn of_columns(
        columns: Vec<(String, Bound<'_, PyAny>)>,
        model: Option<Columns>,
        categories: Vec<String>,
        missing: bool,
    ) -> PyResult<Self> {
        let column = |(name, values): (String, Bound<'_, PyAny>)| {
            let values = match values.extract::<PyReadonlyArray1<'_, f64>>() {
                Ok(numbers) => ColumnValues::Numbers(numbers.as_array().iter().copied().collect()),
                Err(_) => match values.extract::<(String, Vec<Option<String>>)>() {
                    Ok((type_name, rows)) => {
                        let mut words = Words::new(type_name);
                        for word in &rows {
                            words.push(word.as_deref());
                        }
                        words.into_values()
                    }
                    Err(_) => ColumnValues::Other(values.extract()?),
                },
            };
            Ok(NamedColumn { name, values })
        };
        Self::of(columns.into_iter().map(column).collect::<PyResult<_>>()?, Vec::new(), model, categories, missing)
    }

    /// What was decided to read it and changes which numbers are taken, a sentence each.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// The number of rows.
    #[getter]
    fn rows(&self) -> usize {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Dataset::len)
    }
}

/// A capsule's stream, which it gives away.
#[allow(unsafe_code, reason = "Arrow's C interface hands over a pointer")]
fn stream_of(capsule: &Bound<'_, PyAny>) -> PyResult<RecordBatchStreamReader> {
    let capsule =
        capsule.cast::<PyCapsule>().map_err(|_| PyTypeError::new_err("`__arrow_c_stream__` gave no capsule"))?;
    let pointer = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: a capsule of this name holds an ArrowArrayStream, which is moved out: what is left behind has no release function, so
    // that the capsule frees nothing. Python's lock is held, and nobody else reads the capsule.
    let stream = unsafe { FFI_ArrowArrayStream::from_raw(pointer.as_ptr().cast()) };
    RecordBatchStreamReader::try_new(stream).map_err(|e| broken(&e))
}

fn broken(error: &ArrowError) -> PyErr {
    PyValueError::new_err(format!("the table cannot be read through Arrow's interface: {error}"))
}

/// The columns of a stream, and what was lost of them.
fn columns_of(stream: RecordBatchStreamReader) -> PyResult<(Vec<NamedColumn>, Vec<String>)> {
    let schema = stream.schema();
    let mut columns: Vec<Growing> = schema.fields().iter().map(|field| Growing::of(field.data_type())).collect();
    let mut rounded = vec![0_usize; columns.len()];
    for batch in stream {
        let batch = batch.map_err(|e| broken(&e))?;
        for (place, array) in batch.columns().iter().enumerate() {
            match &mut columns[place] {
                Growing::Numbers(values) => rounded[place] += extend(values, array),
                Growing::Words(words) => words.extend(array),
                Growing::Other(_) => {}
            }
        }
    }
    let lost = schema.fields().iter().zip(rounded).filter(|(_, cells)| *cells > 0);
    let notes = lost.map(|(field, cells)| {
        format!("`{}`: {cells} whole numbers beyond 2^53 rounded to double precision", field.name())
    });
    let notes = notes.collect();
    let named = schema.fields().iter().zip(columns);
    let named = named.map(|(field, values)| NamedColumn { name: field.name().clone(), values: values.into_values() });
    Ok((named.collect(), notes))
}

/// A column while it is read.
enum Growing {
    Numbers(Vec<f64>),
    Words(Words),
    Other(String),
}

impl Growing {
    fn of(kind: &DataType) -> Self {
        match kind {
            kind if number_of(kind) || *kind == DataType::Null => Self::Numbers(Vec::new()),
            kind if are_words(kind) => Self::Words(Words::new(kind.to_string())),
            kind => Self::Other(kind.to_string()),
        }
    }

    fn into_values(self) -> ColumnValues {
        match self {
            Self::Numbers(values) => ColumnValues::Numbers(values),
            Self::Words(words) => words.into_values(),
            Self::Other(name) => ColumnValues::Other(name),
        }
    }
}

/// Whether values of a type are read as numbers.
fn number_of(kind: &DataType) -> bool {
    kind.is_integer() || kind.is_floating()
}

/// Adds the numbers of an array, NaN where one is missing; returns how many whole ones were rounded.
fn extend(values: &mut Vec<f64>, array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Int8 => plain::<Int8Type>(values, array),
        DataType::Int16 => plain::<Int16Type>(values, array),
        DataType::Int32 => plain::<Int32Type>(values, array),
        DataType::Int64 => whole::<Int64Type>(values, array),
        DataType::UInt8 => plain::<UInt8Type>(values, array),
        DataType::UInt16 => plain::<UInt16Type>(values, array),
        DataType::UInt32 => plain::<UInt32Type>(values, array),
        DataType::UInt64 => whole::<UInt64Type>(values, array),
        DataType::Float16 => plain::<Float16Type>(values, array),
        DataType::Float32 => plain::<Float32Type>(values, array),
        DataType::Float64 => plain::<Float64Type>(values, array),
        // a column of nothing
        _ => {
            values.extend(repeat_n(f64::NAN, array.len()));
            0
        }
    }
}

/// Numbers that a double holds exactly.
fn plain<T: ArrowPrimitiveType<Native: Into<f64>>>(values: &mut Vec<f64>, array: &ArrayRef) -> usize {
    values.extend(array.as_primitive::<T>().iter().map(|value| value.map_or(f64::NAN, Into::into)));
    0
}

/// Whole numbers that may have more digits.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "what is lost is counted")]
fn whole<T: ArrowPrimitiveType<Native: Into<i128>>>(values: &mut Vec<f64>, array: &ArrayRef) -> usize {
    let mut rounded = 0;
    values.extend(array.as_primitive::<T>().iter().map(|value| {
        let Some(value) = value else { return f64::NAN };
        let exact: i128 = value.into();
        rounded += usize::from(exact as f64 as i128 != exact);
        exact as f64
    }));
    rounded
}
