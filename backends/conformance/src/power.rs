//! Power iteration: step by step against double precision, zero products, and convergence to a known σ.

use resflow_backend::{Backend, Element, Padding, composed};

use crate::draw::{Draw, check, download, extent, seed, upload};
use crate::reference::Array;
use crate::tolerance::{assert_close, assert_same_bits, sum};

fn norm(x: &Array) -> f64 {
    x.data.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A vector on the host, and how far a backend's may lie from it, in units.
struct Vector {
    x: Array,
    units: f64,
}

impl Vector {
    /// w·from, or its transpose, brought to length one; the vector itself if that is zero. Errors of `from` grow by
    /// ‖w‖/‖w·from‖.
    fn step(&mut self, w: &Array, transpose: bool, from: &Self) {
        let product = w.matmul(transpose, &from.x, false);
        let length = norm(&product);
        if length > 0.0 {
            let growth = norm(w) / length;
            self.units = 2.0 * growth * (from.units + sum(from.x.data.len())) + sum(product.data.len()) + 4.0;
            self.x = product.map(|x| x / length);
        }
    }
}

fn sigma(w: &Array, u: &Array, v: &Array) -> f64 {
    let product = w.matmul(false, v, false);
    u.data.iter().zip(&product.data).map(|(a, b)| a * b).sum()
}

/// `power_iteration` of 0 to 3 steps is its definition, and its composition.
pub fn power_iteration<B: Backend>(backend: &B) {
    check("power_iteration", ([extent(12), extent(12)], 0usize..4, seed()), |([o, i], count, seed)| {
        let mut draw = Draw::new(seed);
        let w = draw.array::<B::Elem>([o, i]);
        let mut unit = |n: usize| {
            let x = draw.array::<B::Elem>([n, 1]);
            let length = norm(&x).max(1e-3);
            x.map(|x| x / length).rounded::<B::Elem>()
        };
        let mut u = Vector { x: unit(o), units: 0.0 };
        let mut v = Vector { x: unit(i), units: 0.0 };
        let dw = draw.tensor(backend, &w);
        let [du, dv] = [u.x.reshape([o]), v.x.reshape([i])].map(|x| draw.tensor(backend, &x));
        let composition = composed::power_iteration(backend, &dw, du.clone(), dv.clone(), count);
        let got = backend.power_iteration(&dw, du, dv, count);
        for _ in 0..count {
            v.step(&w, true, &u);
            u.step(&w, false, &v);
        }
        let s = Array::new([1], vec![sigma(&w, &u.x, &v.x)]);
        let s_units = u.units + v.units + sum(i) + sum(o);
        // nothing is learnt where rounding errors have grown to the size of the vector
        if s_units * B::Elem::EPSILON > 0.1 {
            return;
        }
        let want = [(u.x.reshape([o]), u.units, 1.0), (v.x.reshape([i]), v.units, 1.0), (s, s_units, norm(&w))];
        for (k, (want, units, size)) in want.iter().enumerate() {
            let what = ["u", "v", "σ"][k];
            let (got, composed) = (download(backend, &got[k]), download(backend, &composition[k]));
            let size = Array::full(want.shape, *size);
            assert_close::<B::Elem>(&format!("power_iteration, {what}"), &got, want, &size, *units);
            assert_close::<B::Elem>(&format!("power_iteration, {what}"), &got, &composed, &size, 2.0 * units);
        }
    });
}

/// `conv2d_power_iteration` of 0 to 3 steps is that of the matrix of the convolution, and its composition.
pub fn conv2d_power_iteration<B: Backend>(backend: &B) {
    let extents = (1usize..5, 1usize..5, 1usize..4, 1usize..4, 0usize..2, 0usize..2);
    check("conv2d_power_iteration", (extents, 0usize..4, seed()), |((h, w, c, o, kh, kw), count, seed)| {
        let (mut draw, kernel) = (Draw::new(seed), [2 * kh + 1, 2 * kw + 1]);
        let padding = Padding::same(kernel);
        let k = draw.array::<B::Elem>([o, kernel[0], kernel[1], c]);
        let (inputs, outputs) = (h * w * c, h * w * o);
        // column e is what the convolution makes of the unit vector e
        let mut columns = Array::full([inputs, outputs], 0.0);
        for e in 0..inputs {
            let mut one = Array::full([1, h, w, c], 0.0);
            one.data[e] = 1.0;
            columns.data[e * outputs..(e + 1) * outputs].copy_from_slice(&one.conv2d(&k, padding).data);
        }
        let matrix = columns.permute(&[1, 0]);
        let mut unit = |n: usize| {
            let x = draw.array::<B::Elem>([n, 1]);
            let length = norm(&x).max(1e-3);
            x.map(|x| x / length).rounded::<B::Elem>()
        };
        let mut u = Vector { x: unit(outputs), units: 0.0 };
        let mut v = Vector { x: unit(inputs), units: 0.0 };
        let dk = draw.tensor(backend, &k);
        let du = draw.tensor(backend, &u.x.reshape([1, h, w, o]));
        let dv = draw.tensor(backend, &v.x.reshape([1, h, w, c]));
        let composition = composed::conv2d_power_iteration(backend, &dk, padding, du.clone(), dv.clone(), count);
        let got = backend.conv2d_power_iteration(&dk, padding, du, dv, count);
        for _ in 0..count {
            v.step(&matrix, true, &u);
            u.step(&matrix, false, &v);
        }
        let s = Array::new([1], vec![sigma(&matrix, &u.x, &v.x)]);
        let s_units = u.units + v.units + sum(inputs) + sum(outputs);
        if s_units * B::Elem::EPSILON > 0.1 {
            return;
        }
        let [u_image, v_image] = [u.x.reshape([1, h, w, o]), v.x.reshape([1, h, w, c])];
        let want = [(u_image, u.units, 1.0), (v_image, v.units, 1.0), (s, s_units, norm(&matrix))];
        for (k, (want, units, size)) in want.iter().enumerate() {
            let what = format!("conv2d_power_iteration, {}", ["u", "v", "σ"][k]);
            let size = Array::full(want.shape, *size);
            for got in [&got[k], &composition[k]] {
                assert_close::<B::Elem>(&what, &download(backend, got), want, &size, *units);
            }
        }
    });
}

/// A product that is zero leaves its vector as it was, and iterations go on from there.
pub fn power_iteration_zero<B: Backend>(backend: &B) {
    let mut draw = Draw::new(1);
    let [u, v] = [draw.array::<B::Elem>([3]), draw.array::<B::Elem>([4])];
    let w = upload(backend, &Array::full([3, 4], 0.0));
    let [gu, gv, sigma] = backend.power_iteration(&w, upload(backend, &u), upload(backend, &v), 3);
    assert_same_bits("power_iteration of zero, u", &download(backend, &gu), &u);
    assert_same_bits("power_iteration of zero, v", &download(backend, &gv), &v);
    assert_eq!(download(backend, &sigma).data, [0.0], "power_iteration of zero, σ");

    // u is orthogonal to the range of w: the first step can only use v
    let w = upload(backend, &Array::new([2, 2], vec![2.0, 0.0, 0.0, 0.0]));
    let [u, v] = [[0.0, 1.0], [0.6, 0.8]].map(|x| Array::new([2], x.to_vec()).rounded::<B::Elem>());
    for (count, want) in
        [(1, [[1.0, 0.0], v.data[..].try_into().expect("two"), [1.2, 0.0]]), (2, [[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])]
    {
        let got = backend.power_iteration(&w, upload(backend, &u), upload(backend, &v), count);
        for (got, want) in got.iter().zip(want) {
            let got = download(backend, got);
            let want = Array::new(got.shape, want[..got.data.len()].to_vec());
            assert_close::<B::Elem>("power_iteration from a zero product", &got, &want, &want.map(|_| 2.0), 4.0);
        }
    }
}

/// Products whose squares are lost or overflow leave unit vectors as they were: divided by such a length they would be none.
pub fn power_iteration_extremes<B: Backend>(backend: &B) {
    let mut draw = Draw::new(2);
    let unit = |draw: &mut Draw, n: usize| {
        let x = draw.array::<B::Elem>([n, 1]);
        let length = norm(&x);
        x.map(|x| x / length).rounded::<B::Elem>()
    };
    let lost = (B::Elem::TINY * B::Elem::EPSILON).sqrt();
    let [u, v] = [unit(&mut draw, 3), unit(&mut draw, 4)];
    let kernel = [3, 1, 1, 4];
    for size in [lost, 1e-3 * lost, B::Elem::TINY, 0.1 / lost, 0.01 / B::Elem::TINY] {
        let w = draw.array::<B::Elem>([3, 4]).map(|x| size * x).rounded::<B::Elem>();
        let (dw, dk) = (upload(backend, &w), upload(backend, &w.reshape(kernel)));
        let [du, dv] = [&u.reshape([3]), &v.reshape([4])].map(|x| upload(backend, x));
        let [ku, kv] = [&u.reshape([1, 1, 1, 3]), &v.reshape([1, 1, 1, 4])].map(|x| upload(backend, x));
        let padding = Padding::same([1, 1]);
        for got in [
            backend.power_iteration(&dw, du.clone(), dv.clone(), 3),
            composed::power_iteration(backend, &dw, du.clone(), dv.clone(), 3),
            backend.conv2d_power_iteration(&dk, padding, ku.clone(), kv.clone(), 3),
            composed::conv2d_power_iteration(backend, &dk, padding, ku.clone(), kv.clone(), 3),
        ] {
            for x in &got[..2] {
                let length = norm(&download(backend, x));
                assert!((length - 1.0).abs() <= 1e-3, "a vector of length {length} for numbers of size {size:e}");
            }
        }
    }
}

/// x − 2 n nᵀx/‖n‖² for the rows of a matrix: an orthogonal change of basis.
fn reflect(matrix: &Array, n: &Array) -> Array {
    let along = matrix.matmul(false, n, false);
    let scale = 2.0 / n.data.iter().map(|x| x * x).sum::<f64>();
    Array::from_fn(matrix.shape, |i| matrix.at(i) - scale * along.data[i[0]] * n.data[i[1]])
}

/// σ of a matrix with singular values 2.5, 1, ½, ¼, … is 2.5 after enough iterations, u and v have length one.
pub fn power_iteration_converges<B: Backend>(backend: &B) {
    for [o, i] in [[5, 5], [1, 7], [7, 1], [9, 4], [40, 60]] {
        let mut draw = Draw::new(o as u64);
        let diagonal = Array::from_fn([o, i], |at| match (at[0] == at[1], at[0]) {
            (true, 0) => 2.5,
            (true, k) => 0.5f64.powi(k as i32 - 1),
            _ => 0.0,
        });
        let right = reflect(&diagonal, &draw.array::<B::Elem>([i, 1]));
        let w = reflect(&right.permute(&[1, 0]), &draw.array::<B::Elem>([o, 1])).permute(&[1, 0]);
        let [u, v] = [draw.array::<B::Elem>([o]), draw.array::<B::Elem>([i])];
        let w = upload(backend, &w.rounded::<B::Elem>());
        let [u, v, sigma] = backend.power_iteration(&w, upload(backend, &u), upload(backend, &v), 60);
        let units = 4.0 * (sum(o) + sum(i)) * B::Elem::EPSILON;
        let sigma = download(backend, &sigma).data[0];
        assert!((sigma - 2.5).abs() <= 2.5 * units, "power_iteration: σ of {o}×{i} is {sigma}, not 2.5");
        for x in [u, v] {
            let length = norm(&download(backend, &x));
            assert!((length - 1.0).abs() <= units, "power_iteration: a vector of length {length}");
        }
    }
}
