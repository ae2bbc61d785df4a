//! The rows that an imputer learns from: each row's seen cells divided into given and wanted ones, again and again.
//!
//! Half of the divisions leave what another row has seen, since such rows are to be filled in; in the others the number of given
//! cells is uniform from 0 to all but one, and which they are is too.

use resflow_backend::{Key, Noise};

use crate::data::column::ColumnMaps;
use crate::data::{Dataset, Incomplete, Table};
use crate::error::Error;

/// Which cells of a row are given, and which are wanted; no cell is both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mask {
    pub(super) given: Vec<bool>,
    pub(super) wanted: Vec<bool>,
}

impl Mask {
    /// All that was seen of a row is given, and the rest is wanted.
    pub(super) fn of_row(rows: &Incomplete, row: usize) -> Self {
        let given: Vec<bool> = (0..rows.width()).map(|j| rows.sees(row, j)).collect();
        Self { wanted: given.iter().map(|given| !given).collect(), given }
    }

    /// Divides what was seen of a row; at least one cell is wanted.
    fn draw(rows: &Incomplete, row: usize, key: Key) -> Self {
        let width = rows.width();
        let mut u = vec![0.0; width + 3];
        Noise::Uniform.fill(key, 0, &mut u);
        let seen: Vec<usize> = (0..width).filter(|&j| rows.sees(row, j)).collect();
        let other = (u[1] * rows.len() as f64) as usize;
        let like_other: Vec<usize> = seen.iter().copied().filter(|&j| rows.sees(other, j)).collect();
        let given = if u[0] < 0.5 && like_other.len() < seen.len() {
            like_other
        } else {
            let count = (u[2] * seen.len() as f64) as usize;
            let mut order = seen.clone();
            order.sort_by(|&a, &b| u[3 + a].total_cmp(&u[3 + b]));
            order.truncate(count);
            order
        };
        let given: Vec<bool> = (0..width).map(|j| given.contains(&j)).collect();
        let wanted = (0..width).map(|j| rows.sees(row, j) && !given[j]).collect();
        Self { given, wanted }
    }

    /// Adds the context \[z⊙m, m, t\] of a row, whose given cells are behind their maps.
    pub(super) fn add_context(&self, z: &[f64], out: &mut Vec<f64>) {
        out.extend(z.iter().zip(&self.given).map(|(&z, &given)| if given { z } else { 0.0 }));
        out.extend(self.given.iter().chain(&self.wanted).map(|&yes| f64::from(u8::from(yes))));
    }
}

/// The cells of a row behind their maps, each in the middle of its cell on a grid, 0 where none was seen; `None` if one is outside of
/// its support.
pub(super) fn middle(rows: &Incomplete, row: usize, maps: &ColumnMaps) -> Option<Vec<f64>> {
    let cells = rows.row(row).iter().zip(maps.maps()).enumerate();
    let map = |(j, (&x, map)): (usize, (&f64, &crate::data::ColumnMap))| {
        if !rows.sees(row, j) {
            return Some(0.0);
        }
        let point = map.contains(x).then(|| map.evaluate(map.spread(x, 0.5))).flatten()?;
        Some(point.value).filter(|z| z.is_finite())
    };
    cells.map(map).collect()
}

/// Makes the samples that an imputer learns from, `copies` of each row: \[z_t, noise elsewhere\], `[copies·n, d]`, each with its
/// context, `[copies·n, 3d]`, and the row's weight.
pub(super) fn masked(rows: &Incomplete, maps: &ColumnMaps, copies: usize, key: Key) -> Result<Dataset, Error> {
    let (n, width) = (rows.len(), rows.width());
    let (mut values, mut contexts) =
        (Vec::with_capacity(copies * n * width), Vec::with_capacity(3 * copies * n * width));
    let middles: Vec<Option<Vec<f64>>> = (0..n).map(|i| middle(rows, i, maps)).collect();
    let outside = || Error::Input("a value is outside of the support that is declared of its column".into());
    let mut uniform = vec![0.0; width];
    for copy in 0..copies {
        for (i, middle) in middles.iter().enumerate() {
            let key = key.split(copy as u64).split(i as u64);
            let middle = middle.as_ref().ok_or_else(outside)?;
            let mask = Mask::draw(rows, i, key.named("mask"));
            mask.add_context(middle, &mut contexts);
            let start = values.len();
            values.resize(start + width, 0.0);
            Noise::Normal.fill(key.named("noise"), 0, &mut values[start..]);
            Noise::Uniform.fill(key.named("cell"), 0, &mut uniform);
            for j in (0..width).filter(|&j| mask.wanted[j]) {
                let map = &maps.maps()[j];
                // multiples of 2⁻²⁴ from 0: in the middle between two
                let x = map.spread(rows.row(i)[j], uniform[j] + 0.5 / 16_777_216.0);
                values[start + j] = map.evaluate(x).ok_or_else(outside)?.value;
            }
        }
    }
    let samples = Dataset::from(Table::new(None, width, values)?);
    let samples = samples.with_context(Table::new(None, 3 * width, contexts)?)?;
    Ok(match rows.weights() {
        Some(weights) => samples.with_weights(weights.repeat(copies))?,
        None => samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Incomplete {
        let hole = f64::NAN;
        Incomplete::from_rows(&[[1.0, 2.0, hole], [2.0, -1.0, 0.5], [hole, 0.0, hole], [0.5, 0.25, 3.0]]).expect("rows")
    }

    #[test]
    fn nothing_that_was_not_seen_is_given_or_wanted() {
        let rows = rows();
        let mut wanted_alone = 0;
        for draw in 0..200 {
            for i in 0..rows.len() {
                let mask = Mask::draw(&rows, i, Key::new(draw).split(i as u64));
                assert!(mask.wanted.contains(&true), "{mask:?}");
                for j in 0..3 {
                    assert!(!(mask.given[j] && mask.wanted[j]));
                    assert_eq!(mask.given[j] || mask.wanted[j], rows.sees(i, j), "{mask:?}");
                }
                wanted_alone += usize::from(!mask.given.contains(&true));
            }
        }
        assert!((100..600).contains(&wanted_alone), "{wanted_alone} of 800 masks give nothing");
    }

    #[test]
    fn samples_are_the_wanted_cells_among_noise() {
        let rows = rows();
        let maps = ColumnMaps::identity(3);
        let samples = masked(&rows, &maps, 5, Key::new(1)).expect("samples");
        let (table, context) = (samples.table().expect("a table"), samples.samples().context().expect("contexts"));
        assert_eq!((table.rows(), context.width()), (20, 9));
        for i in 0..20 {
            for j in 0..3 {
                let (given, wanted) = (context.row(i)[3 + j] == 1.0, context.row(i)[6 + j] == 1.0);
                let x = rows.value(i % 4, j);
                assert_eq!(context.row(i)[j], if given { x.expect("seen") } else { 0.0 });
                assert_eq!(Some(table.row(i)[j]) == x, wanted);
            }
        }
    }
}
