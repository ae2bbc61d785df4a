//! Rows of a chain of variables, each bent by the one before: data that examples share.

use resflow::Error;
use resflow::backend::{Key, Noise};
use resflow::data::Table;

/// x₁ = z₁ and xᵢ = sin(3/2 xᵢ₋₁) + zᵢ/2, with z standard normal.
pub(crate) fn chain(d: usize, rows: usize, key: Key) -> Result<Table, Error> {
    let mut values = vec![0.0; rows * d];
    Noise::Normal.fill(key, 0, &mut values);
    for row in values.chunks_exact_mut(d) {
        for i in 1..d {
            let before: f64 = row[i - 1];
            row[i] = (1.5 * before).sin() + 0.5 * row[i];
        }
    }
    Ok(Table::new(None, d, values)?)
}
