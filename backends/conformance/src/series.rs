//! One term of the log det's series against its definition, its composition, and the rule by which rows stop.
//!
//! A stopped row must be exactly zero: later terms then add exactly nothing, and the work for them may be left out.

use proptest::prelude::*;
use resflow_backend::{Backend, Element, SeriesState, Shape, TermWeight, composed};

use crate::draw::{Draw, check, download, seed, upload};
use crate::reference::Array;
use crate::tolerance::{AFFINE, assert_close, assert_equal, sum};

/// A term on the host, with a weight for each row.
#[derive(Debug)]
struct Term {
    k: usize,
    weights: Vec<f64>,
    probe: Array,
    power: Array,
    neumann: Array,
    value: Array,
}

impl Term {
    fn new<E: Element>(draw: &mut Draw, shape: Shape, k: usize, per_row: bool) -> Self {
        let rows = shape.rows();
        let mut weights = draw.uniform::<E>([rows], 0.0, 3.0).data;
        // rows whose roulette is over have weight 0
        weights.iter_mut().skip(1).step_by(3).for_each(|c| *c = 0.0);
        if !per_row {
            weights = vec![1.25; rows];
        }
        // the rows of the power differ by magnitudes
        let scale = draw.wide::<E>([rows]);
        let mut power = draw.array::<E>(shape);
        for (row, &s) in power.data.chunks_mut(shape.row_elements().max(1)).zip(&scale.data) {
            for x in row {
                *x *= s;
            }
        }
        Self {
            k,
            weights,
            probe: draw.array::<E>(shape),
            power: power.rounded::<E>(),
            neumann: draw.array::<E>(shape),
            value: draw.array::<E>([rows, 1]),
        }
    }

    fn width(&self) -> usize {
        self.power.shape.row_elements()
    }

    /// f of the row's number and of its elements of power and probe.
    fn rows(&self, f: impl Fn(usize, &[f64], &[f64]) -> f64) -> Vec<f64> {
        let w = self.width();
        let row = |i: usize| f(i, &self.power.data[i * w..(i + 1) * w], &self.probe.data[i * w..(i + 1) * w]);
        (0..self.weights.len()).map(row).collect()
    }

    /// c_k ‖power‖ ‖probe‖/k of each row.
    fn bounds(&self) -> Vec<f64> {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        self.rows(|i, p, v| self.weights[i] * norm(p) * norm(v) / self.k as f64)
    }

    fn sign(&self) -> f64 {
        if self.k % 2 == 1 { 1.0 } else { -1.0 }
    }

    /// The value and the Neumann vector after the term, each with the magnitude of its terms.
    fn reference(&self) -> [[Array; 2]; 2] {
        let k = self.k as f64;
        let value = self.rows(|i, p, v| {
            let dot: f64 = p.iter().zip(v).map(|(a, b)| a * b).sum();
            self.value.data[i] + self.sign() * self.weights[i] * dot / k
        });
        let size = self.rows(|i, p, v| {
            let dot: f64 = p.iter().zip(v).map(|(a, b)| (a * b).abs()).sum();
            self.value.data[i].abs() + self.weights[i] * dot / k
        });
        let weight = |i: &[usize]| self.weights[i[0]];
        let neumann =
            Array::from_fn(self.power.shape, |i| self.neumann.at(i) - self.sign() * weight(i) * self.power.at(i));
        let neumann_size =
            Array::from_fn(self.power.shape, |i| self.neumann.at(i).abs() + weight(i) * self.power.at(i).abs());
        let shape = self.value.shape;
        [[Array::new(shape, value), Array::new(shape, size)], [neumann, neumann_size]]
    }

    /// The state on the device.
    fn state<B: Backend>(&self, backend: &B, draw: &mut Draw, neumann: bool) -> SeriesState<B::Tensor> {
        SeriesState {
            power: draw.tensor(backend, &self.power),
            neumann: neumann.then(|| draw.tensor(backend, &self.neumann)),
            value: draw.tensor(backend, &self.value),
        }
    }
}

fn states() -> impl Strategy<Value = Shape> {
    prop_oneof![
        3 => (0usize..7, 1usize..40).prop_map(|(n, c)| Shape::new(&[n, c])),
        1 => (0usize..4, 1usize..4, 1usize..4, 1usize..4).prop_map(|(n, h, w, c)| Shape::new(&[n, h, w, c])),
        1 => (1usize..4, 250usize..1000).prop_map(|(n, c)| Shape::new(&[n, c])),
    ]
}

/// `series_term` for one weight and for a weight for each row, with and without the Neumann vector.
pub fn series_term<B: Backend>(backend: &B) {
    let flags = any::<[bool; 2]>();
    check("series_term", (states(), 1usize..6, flags, 0.0..3.0, seed()), |(shape, k, flags, cut, seed)| {
        let [per_row, neumann] = flags;
        let mut draw = Draw::new(seed);
        let case = Term::new::<B::Elem>(&mut draw, shape, k, per_row);
        let bounds = case.bounds();
        // around the bounds that occur; never stopping, one time in some
        let negligible = if cut < 0.5 { 0.0 } else { cut * bounds.first().copied().unwrap_or(1.0) };
        let weights = upload(backend, &Array::new([shape.rows(), 1], case.weights.clone()));
        let weight = || if per_row { TermWeight::PerRow(&weights) } else { TermWeight::Batch(1.25) };
        let probe = draw.tensor(backend, &case.probe);
        let state = case.state(backend, &mut draw, neumann);
        let composition = composed::series_term(backend, k, weight(), &probe, negligible, state.clone());
        let got = backend.series_term(k, weight(), &probe, negligible, state);

        let [[value, value_size], [vector, vector_size]] = case.reference();
        let units = sum(case.width()) + 2.0 * AFFINE;
        for got in [&got, &composition] {
            assert_close::<B::Elem>("series_term, value", &download(backend, &got.value), &value, &value_size, units);
            assert_eq!(got.neumann.is_some(), neumann, "series_term: the Neumann vector is kept if it was given");
            if let Some(got) = &got.neumann {
                let got = download(backend, got);
                assert_close::<B::Elem>("series_term, neumann", &got, &vector, &vector_size, 2.0 * AFFINE);
            }
            let power = download(backend, &got.power);
            assert_eq!(power.shape, shape, "series_term: the shape of the power");
            for (i, &bound) in bounds.iter().enumerate() {
                let [got, was] = [&power, &case.power].map(|x| x.narrow(0, i, 1));
                if bound < negligible * 0.999 {
                    assert_equal("series_term, a stopped row", &got, &was.map(|_| 0.0));
                } else if bound > negligible * 1.001 || negligible == 0.0 {
                    assert_equal("series_term, a row that goes on", &got, &was);
                }
            }
        }
    });
}

/// Rows that stopped stay as they are for good, while the others go on.
pub fn series_stops<B: Backend>(backend: &B) {
    let mut draw = Draw::new(3);
    let mut case = Term::new::<B::Elem>(&mut draw, [4, 9].into(), 1, false);
    case.power.data[9..27].iter_mut().for_each(|x| *x *= 1e-9);
    case.power = case.power.rounded::<B::Elem>();
    let probe = upload(backend, &case.probe);
    let mut state = case.state(backend, &mut draw, true);
    let mut stopped = None;
    for k in 1..5 {
        state = backend.series_term(k, TermWeight::Batch(1.0), &probe, 1e-4, state);
        let power = download(backend, &state.power);
        assert!(power.data[9..27].iter().all(|&x| x == 0.0), "series_term: rows 1 and 2 stop");
        assert!(power.data[..9].iter().chain(&power.data[27..]).all(|&x| x != 0.0), "series_term: 0 and 3 do not");
        let [value, neumann] = [Some(&state.value), state.neumann.as_ref()]
            .map(|x| download(backend, x.expect("series_term: keeps the Neumann vector")).narrow(0, 1, 2));
        let (value_then, neumann_then) = stopped.get_or_insert_with(|| (value.clone(), neumann.clone()));
        assert_equal("series_term, the value of stopped rows", &value, value_then);
        assert_equal("series_term, the Neumann vector of stopped rows", &neumann, neumann_then);
    }
}
