//! Arrow's arrays of text, dictionaries of text, and yes and no, as words and their codes.
//!
//! A word is kept once, however many rows have it, and no more than a column of categories may have levels: a few bytes can announce any
//! number of long words.

use std::collections::HashMap;

use anyhow::{Result, bail};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowDictionaryKeyType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use resflow::data::MOST_LEVELS;

/// Whether a type holds words.
pub(super) fn are_words(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean => true,
        DataType::Dictionary(_, values) => !matches!(**values, DataType::Dictionary(..)) && are_words(values),
        _ => false,
    }
}

/// Adds the codes of an array's words, and the words that did not come before.
pub(super) fn extend(
    known: &mut HashMap<String, u32>,
    words: &mut Vec<String>,
    codes: &mut Vec<Option<u32>>,
    array: &ArrayRef,
) -> Result<()> {
    let mut code = |word: Option<&str>| {
        let word = word?;
        if let Some(code) = known.get(word) {
            return Some(*code);
        }
        // one more than there may be says that there are too many
        if words.len() > MOST_LEVELS {
            return Some(MOST_LEVELS as u32);
        }
        let code = words.len() as u32;
        words.push(word.to_owned());
        known.insert(word.to_owned(), code);
        Some(code)
    };
    match array.data_type() {
        DataType::Dictionary(key, _) => {
            let dictionary = array.as_any_dictionary();
            let mut own = Vec::new();
            each(dictionary.values(), &mut |word| own.push(code(word)))?;
            let place = |keys: Vec<Option<usize>>| keys.into_iter().map(|key| own.get(key?).copied().flatten());
            let keys = match **key {
                DataType::Int8 => keys::<Int8Type>(array),
                DataType::Int16 => keys::<Int16Type>(array),
                DataType::Int32 => keys::<Int32Type>(array),
                DataType::Int64 => keys::<Int64Type>(array),
                DataType::UInt8 => keys::<UInt8Type>(array),
                DataType::UInt16 => keys::<UInt16Type>(array),
                DataType::UInt32 => keys::<UInt32Type>(array),
                DataType::UInt64 => keys::<UInt64Type>(array),
                _ => bail!("a dictionary has keys that are no whole numbers"),
            };
            codes.extend(place(keys));
        }
        _ => each(array, &mut |word| codes.push(code(word)))?,
    }
    Ok(())
}

fn keys<K: ArrowDictionaryKeyType>(array: &ArrayRef) -> Vec<Option<usize>> {
    array.as_dictionary::<K>().keys_iter().collect()
}

/// Shows each word of an array.
fn each(array: &ArrayRef, show: &mut impl FnMut(Option<&str>)) -> Result<()> {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().for_each(show),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().for_each(show),
        DataType::Utf8View => array.as_string_view().iter().for_each(show),
        DataType::Boolean => {
            array.as_boolean().iter().for_each(|cell| show(cell.map(|yes| if yes { "true" } else { "false" })));
        }
        _ => bail!("a column is of another type than its schema says"),
    }
    Ok(())
}
