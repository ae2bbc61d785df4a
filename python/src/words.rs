//! Columns of words: text, and dictionaries of text.

use std::collections::HashMap;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use resflow::data::{ColumnValues, MOST_LEVELS};

/// The words of a column, each kept once, and which of them a row has.
#[derive(Debug, Default)]
pub(crate) struct Words {
    type_name: String,
    known: HashMap<String, u32>,
    texts: Vec<String>,
    codes: Vec<Option<u32>>,
}

/// Whether a type of Arrow's holds words.
pub(crate) fn are_words(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => !matches!(**values, DataType::Dictionary(..)) && are_words(values),
        _ => false,
    }
}

impl Words {
    /// No words yet, of a type with this name.
    pub(crate) fn new(type_name: String) -> Self {
        Self { type_name, ..Self::default() }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, word: Option<&str>) {
        let code = self.code(word);
        self.codes.push(code);
    }

    /// Adds the rows of an array of words.
    pub(crate) fn extend(&mut self, array: &ArrayRef) {
        match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().iter().for_each(|word| self.push(word)),
            DataType::LargeUtf8 => array.as_string::<i64>().iter().for_each(|word| self.push(word)),
            DataType::Utf8View => array.as_string_view().iter().for_each(|word| self.push(word)),
            _ => {
                let dictionary = array.as_any_dictionary();
                let mut own = Self::default();
                own.extend(dictionary.values());
                let own: Vec<Option<u32>> = own
                    .codes
                    .iter()
                    .map(|code| self.code(code.map(|code| own.texts[code as usize].as_str())))
                    .collect();
                let keys = dictionary.normalized_keys();
                let rows = keys.iter().enumerate();
                self.codes.extend(rows.map(|(row, &key)| if array.is_null(row) { None } else { own[key] }));
            }
        }
    }

    /// The code of a word. One more than there may be levels says that there are too many.
    fn code(&mut self, word: Option<&str>) -> Option<u32> {
        let word = word?;
        if let Some(&code) = self.known.get(word) {
            return Some(code);
        }
        let code = u32::try_from(self.texts.len().min(MOST_LEVELS)).ok()?;
        if self.texts.len() <= MOST_LEVELS {
            self.texts.push(word.to_owned());
            self.known.insert(word.to_owned(), code);
        }
        Some(code)
    }

    /// The column.
    pub(crate) fn into_values(self) -> ColumnValues {
        ColumnValues::Words { type_name: self.type_name, words: self.texts, codes: self.codes }
    }
}
