//! Batched LU: ln|det| and inverses against elimination in double precision, and singular matrices.

use resflow_backend::{Backend, Element};

use crate::draw::{Draw, check, download, seed, upload};
use crate::reference::{self, Array};
use crate::tolerance::{LU, within};

/// The largest row sum of absolute values.
fn norm(matrix: &[f64], d: usize) -> f64 {
    matrix.chunks(d).map(|row| row.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
}

fn lu_case<B: Backend>(backend: &B, n: usize, d: usize, shift: f64, seed: u64) {
    let mut draw = Draw::new(seed);
    // half of the batches are I + A/√d·½ as layers have them, the others general, with pivots out of order
    let (scale, diagonal) = if shift > 0.0 { (0.5 / (d as f64).sqrt(), shift) } else { (1.0, 0.0) };
    let noise = draw.array::<B::Elem>([n, d, d]);
    let a = Array::from_fn([n, d, d], |i| noise.at(i) * scale + if i[1] == i[2] { diagonal } else { 0.0 });
    let a = a.rounded::<B::Elem>();
    let (log_det, inverse) = backend.lu(&draw.tensor(backend, &a));
    let (log_det, inverse) = (download(backend, &log_det), download(backend, &inverse));
    assert_eq!((&*log_det.shape, &*inverse.shape), (&[n, 1][..], &[n, d, d][..]), "lu: the shapes");
    for (s, matrix) in a.data.chunks(d * d).enumerate() {
        let (want, wanted) = reference::lu(matrix, d);
        let size = norm(&wanted, d);
        let units = LU * d as f64 * norm(matrix, d) * size * B::Elem::EPSILON;
        // nothing is learnt from a matrix that is singular to working precision
        if units < 0.1 {
            let got = log_det.data[s];
            assert!(within::<B::Elem>(got, want, units), "lu: ln|det| of matrix {s} is {got}, not {want}");
            for (i, (&got, &want)) in inverse.data[s * d * d..].iter().zip(&wanted).enumerate() {
                assert!(
                    within::<B::Elem>(got, want, units * size),
                    "lu: element {i} of inverse {s} is {got}, not {want}"
                );
            }
        }
    }
}

/// `lu` of batches of 0 to 9 matrices with 1 to 8 rows, and of a few with up to 40.
pub fn lu<B: Backend>(backend: &B) {
    check("lu", (0usize..10, 1usize..9, 0usize..2, seed()), |(n, d, shift, seed)| {
        lu_case(backend, n, d, shift as f64, seed);
    });
    for d in [16, 31, 32, 33, 40] {
        lu_case(backend, 3, d, 1.0, d as u64);
    }
}

/// A singular matrix gives −∞ and NaNs, and its neighbours in the batch do not notice.
pub fn lu_singular<B: Backend>(backend: &B) {
    let singular: [[f64; 9]; 5] = [
        [0.0; 9],
        // a row of zeros, a column of zeros, a row twice, a multiple of a row
        [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0, 5.0, 7.0],
        [1.0, 0.0, 3.0, 2.0, 0.0, 5.0, 4.0, 0.0, 7.0],
        [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 0.0, 0.0, 1.0],
        [2.0, 4.0, 8.0, 1.0, 2.0, 4.0, 0.0, 1.0, 0.0],
    ];
    // determinant −2, with zeros where the pivots would be
    let regular = [0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    let data: Vec<f64> = singular.iter().flat_map(|m| m.iter().chain(&regular)).copied().collect();
    let (log_det, inverse) = backend.lu(&upload(backend, &Array::new([10, 3, 3], data)));
    let (log_det, inverse) = (download(backend, &log_det), download(backend, &inverse));
    for (s, (&log_det, inverse)) in log_det.data.iter().zip(inverse.data.chunks(9)).enumerate() {
        if s % 2 == 0 {
            assert_eq!(log_det, f64::NEG_INFINITY, "lu: ln|det| of the singular matrix {s}");
            assert!(inverse.iter().all(|x| x.is_nan()), "lu: the inverse of the singular matrix {s} is {inverse:?}");
        } else {
            let allowed = 3.0 * LU * B::Elem::EPSILON;
            assert!(within::<B::Elem>(log_det, 2f64.ln(), allowed), "lu: ln|−2| is {log_det}");
            let want = [0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
            assert!(inverse.iter().zip(want).all(|(&x, w)| within::<B::Elem>(x, w, allowed)), "lu: {inverse:?}");
        }
    }
}
