//! What holds of every file that is imported, for the targets here and for the mutation loops in tests/library/files/fuzz_import.rs.

use std::fmt::Write as _;

use resflow::checkpoint::Values;
use resflow::import::{ImportError, StateDict, Weights};

/// The reader of foreign state dicts never panics, makes no more numbers than there are bytes, explains itself in a few
/// lines, and gives every tensor that it found exactly once.
pub(crate) fn state_dict(bytes: &[u8]) -> bool {
    let [current, average] = [Weights::Current, Weights::Ema].map(|weights| StateDict::from_bytes(bytes, weights));
    let accepted = [current, average].map(|result| result.map(examine).map_err(|error| explained(&error)).is_ok());
    accepted[0] || accepted[1]
}

/// The same for the pickle of a checkpoint whose one storage, `0`, has sixteen numbers in single precision.
pub(crate) fn pickle(bytes: &[u8]) -> bool {
    state_dict(&legacy(bytes, &[("0", 16, &[0; 64])]))
}

/// A file in the older of torch's formats around the pickle of an object.
pub(crate) fn legacy(object: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}(X\x10\x00\x00\x00protocol_versionM\xe9\x03X\r\x00\x00\x00little_endian\x88u.");
    file.extend(object);
    file.extend(b"\x80\x02](");
    for (key, ..) in storages {
        file.push(b'X');
        file.extend((key.len() as u32).to_le_bytes());
        file.extend(key.as_bytes());
    }
    file.extend(b"e.");
    for (_, numbers, contents) in storages {
        file.extend(numbers.to_le_bytes());
        file.extend(*contents);
    }
    file
}

fn examine(mut dict: StateDict) {
    assert!(matches!(dict.precision(), "f32" | "f64"));
    let tensors = dict.tensors.clone();
    for (name, (shape, values)) in &tensors {
        let numbers: Vec<f64> = values.to();
        assert_eq!(numbers.len(), shape.iter().product::<usize>(), "{name}");
        if matches!(values, Values::F64(_)) && numbers.iter().all(|x| x.is_finite()) {
            assert_eq!(dict.take::<f64>(name, shape).expect("finite"), numbers);
        } else if let Err(error) = dict.take::<f32>(name, shape) {
            explained(&error);
            assert!(numbers.iter().any(|x| !x.is_finite()));
        }
    }
    if let Err(error) = dict.finish() {
        explained(&error);
    }
}

/// An error is a few lines of printable text, whatever the file holds.
fn explained(error: &ImportError) {
    let mut message = String::new();
    write!(message, "{error}").expect("memory takes every message");
    assert!(!message.is_empty() && message.chars().count() < 1000, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}
