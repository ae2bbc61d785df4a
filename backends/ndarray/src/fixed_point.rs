//! Fixed points x = y ∓ g(x) of nets on rows as one operation: a tile of rows goes through all layers and iterations while it is in a
//! core's own caches.
//!
//! The rows of a tile are of any age. One that has ended leaves, the next one takes its place, and only when there is none does
//! the tile become shorter: products have full tiles almost to the end, whatever the slowest row needs. Otherwise it is the
//! iteration of `composed::fixed_point`, with the differences of the last steps of each row side by side.

use resflow_backend::{Activation, FixedPointColumn, FixedPointFound, FixedPointSearch, Net, NetLayer, composed};

use crate::fused::{Rule, activate, iterate, parameter_value};
use crate::matmul::{Operands, Start};
use crate::reduce::dot;
use crate::simd::kernel;
use crate::{CpuElement, NdArray, Tensor};

/// What the widest layer makes of a tile, in bytes.
const TILE_BYTES: usize = 48 << 10;
/// Rows of a tile are a multiple of those of the products' tiles.
const STEP: usize = 12;
/// The longest history of Anderson's acceleration that is kept here.
const MOST: usize = 5;
const COLUMNS: usize = FixedPointColumn::COUNT;

/// A layer of a net on rows.
enum Layer<'a, E> {
    Linear { transposed: &'a Tensor<E>, bias: &'a Tensor<E>, inputs: usize, outputs: usize },
    Activation(Activation, E),
}

/// The layers and the widest row between them, if this is a chain of affine layers and activations on rows of d numbers.
fn layers<E: CpuElement>(net: &Net<Tensor<E>>, d: usize) -> Option<(Vec<Layer<'_, E>>, usize)> {
    let (mut width, mut widest) = (d, d);
    let mut layers = Vec::with_capacity(net.layers.len());
    for layer in &net.layers {
        layers.push(match layer {
            NetLayer::Linear { transposed, bias, .. } => {
                let [inputs, outputs] = transposed.shape()[..] else { return None };
                assert_eq!(inputs, width, "net_fixed_point: a weight {} for rows of {width}", transposed.shape());
                (width, widest) = (outputs, widest.max(outputs));
                Layer::Linear { transposed, bias, inputs, outputs }
            }
            NetLayer::Activation { function, parameter } => {
                Layer::Activation(*function, parameter_value(*function, parameter.as_ref()))
            }
            _ => return None,
        });
    }
    (width == d).then_some((layers, widest))
}

/// The rows of a tile, `[capacity, d]` each, and what is known of them.
struct Tile<E> {
    d: usize,
    history: usize,
    y: Vec<E>,
    x: Vec<E>,
    best: Vec<E>,
    /// `[capacity, 6]`.
    rows: Vec<E>,
    /// x and r of the step before.
    last: [Vec<E>; 2],
    /// ΔX and ΔR of the last steps, `[capacity, history, d]`.
    differences: [Vec<E>; 2],
    /// Steps of each row since it came, and its number.
    age: Vec<usize>,
    number: Vec<usize>,
    live: usize,
}

/// Copies run `from` of so many numbers over run `to`.
fn move_run<E: Copy>(numbers: &mut [E], length: usize, from: usize, to: usize) {
    numbers.copy_within(from * length..(from + 1) * length, to * length);
}

impl<E: CpuElement> Tile<E> {
    fn new(capacity: usize, d: usize, history: usize) -> Self {
        let take = |width: usize| vec![E::ZERO; capacity * width];
        Self {
            d,
            history,
            y: take(d),
            x: take(d),
            best: take(d),
            rows: take(COLUMNS),
            last: [take(d), take(d)],
            differences: [take(history * d), take(history * d)],
            age: vec![0; capacity],
            number: vec![0; capacity],
            live: 0,
        }
    }

    /// Puts a row into a place.
    fn put(&mut self, place: usize, number: usize, y: &[E]) {
        let range = place * self.d..(place + 1) * self.d;
        for part in [&mut self.y, &mut self.x, &mut self.best] {
            part[range.clone()].copy_from_slice(y);
        }
        let row = &mut self.rows[place * COLUMNS..(place + 1) * COLUMNS];
        row.fill(E::ZERO);
        for column in [FixedPointColumn::Residual, FixedPointColumn::Norm, FixedPointColumn::Latest] {
            row[column as usize] = E::from_f64(f64::INFINITY);
        }
        row[FixedPointColumn::Active as usize] = E::ONE;
        (self.age[place], self.number[place]) = (0, number);
    }

    /// Lets the last row take the place of one that is gone.
    fn close(&mut self, place: usize) {
        self.live -= 1;
        let (from, d) = (self.live, self.d);
        if from == place {
            return;
        }
        for part in [&mut self.y, &mut self.x, &mut self.best].into_iter().chain(&mut self.last) {
            move_run(part, d, from, place);
        }
        for part in &mut self.differences {
            move_run(part, self.history * d, from, place);
        }
        move_run(&mut self.rows, COLUMNS, from, place);
        self.age[place] = self.age[from];
        self.number[place] = self.number[from];
    }

    fn column(&self, place: usize, column: FixedPointColumn) -> E {
        self.rows[place * COLUMNS + column as usize]
    }
}

/// The differences of a row's last steps, `[count, d]` each, in any order.
struct Differences<'a, E> {
    x: &'a [E],
    r: &'a [E],
    count: usize,
}

kernel! {
    /// x ← x − Σ γ_j (ΔX_j + ΔR_j) for the γ that make r − Σ γ_j ΔR_j least; x stays where that is not finite. `ridge` times the
    /// diagonal and `tiny` keep the solve finite.
    fn mix<E>(ridge: f64, tiny: f64, r: &[E], differences: &Differences<'_, E>, x: &mut [E], mixed: &mut [E]) {
        let (d, m) = (r.len(), differences.count);
        let run = |j: usize| &differences.r[j * d..(j + 1) * d];
        // the normal equations, with their right side in the last column
        let mut system = [[0.0; MOST + 1]; MOST];
        for i in 0..m {
            for j in i..m {
                let entry = dot(run(i), run(j)).to_f64();
                system[i][j] = entry;
                system[j][i] = entry;
            }
            system[i][i] = system[i][i] * ridge + tiny;
            system[i][m] = dot(run(i), r).to_f64();
        }
        // Gauss: a Gram matrix with a ridge needs no pivoting
        for i in 0..m {
            let row = system[i];
            for below in system.iter_mut().take(m).skip(i + 1) {
                let factor = below[i] / row[i];
                for (b, a) in below.iter_mut().zip(&row).skip(i) {
                    *b -= factor * a;
                }
            }
        }
        let mut gamma = [0.0; MOST];
        for i in (0..m).rev() {
            let known: f64 = (i + 1..m).map(|j| system[i][j] * gamma[j]).sum();
            gamma[i] = (system[i][m] - known) / system[i][i];
        }
        mixed.copy_from_slice(x);
        for (j, &gamma) in gamma.iter().enumerate().take(m) {
            let gamma = E::from_f64(gamma);
            for ((o, &a), &b) in mixed.iter_mut().zip(&differences.x[j * d..(j + 1) * d]).zip(run(j)) {
                *o -= gamma * (a + b);
            }
        }
        let mut sum = E::ZERO;
        for &o in mixed.iter() {
            sum += o;
        }
        if sum.is_finite() {
            x.copy_from_slice(mixed);
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    /// sign·g of rows, `[rows, d]`, in one of two scratches; returns that.
    fn through<'a>(
        &self,
        layers: &[Layer<'_, E>],
        sign: f64,
        rows: usize,
        d: usize,
        x: &[E],
        scratch: [&'a mut [E]; 2],
    ) -> &'a [E] {
        let [mut to, mut other] = scratch;
        let mut width = d;
        let mut first = true;
        for layer in layers {
            let from = if first { &x[..rows * width] } else { &other[..rows * width] };
            match layer {
                Layer::Linear { transposed, bias, inputs, outputs } => {
                    let o = Operands {
                        a: from,
                        transpose_a: false,
                        b: transposed.as_slice(),
                        transpose_b: false,
                        m: rows,
                        k: *inputs,
                        n: *outputs,
                        packed: transposed.packed(),
                    };
                    self.multiply(&o, Start::Bias(bias.as_slice()), &mut to[..rows * outputs]);
                    width = *outputs;
                }
                Layer::Activation(function, b) => {
                    activate(self.level(), *function, *b, from, [&mut to[..rows * width]]);
                }
            }
            std::mem::swap(&mut to, &mut other);
            first = false;
        }
        let g = &mut other[..rows * width];
        if sign != 1.0 {
            let sign = E::from_f64(sign);
            for value in &mut *g {
                *value *= sign;
            }
        }
        g
    }

    pub(crate) fn net_fixed_point_op(
        &self,
        net: &Net<Tensor<E>>,
        sign: f64,
        search: &FixedPointSearch,
        y: &Tensor<E>,
    ) -> Option<FixedPointFound<Tensor<E>>> {
        let [n, d] = y.shape()[..] else { return None };
        let (layers, widest) = layers(net, d)?;
        if layers.is_empty() || d == 0 || search.history > MOST || search.limit == 0 {
            return None;
        }
        let capacity = (TILE_BYTES / (widest * size_of::<E>()) / STEP * STEP).clamp(STEP, 8 * STEP).min(n.max(1));
        let y = y.as_slice();
        let mut found = FixedPointFound {
            best: self.take(n * d).with_shape([n, d].into()),
            rows: self.take(n * COLUMNS).with_shape([n, COLUMNS].into()),
        };
        let (best, rows) = (found.best.as_mut_slice(), found.rows.as_mut_slice());
        let mut tile = Tile::new(capacity, d, search.history);
        let [mut one, mut other] = [0; 2].map(|_| vec![E::ZERO; capacity * widest]);
        let [mut r, mut x] = [0; 2].map(|_| vec![E::ZERO; capacity * d]);
        let mut before = vec![E::ZERO; capacity];
        let mut mixed = vec![E::ZERO; d];
        let [accuracy, floor, patience] =
            [search.rule.accuracy, search.rule.floor, search.rule.patience].map(E::from_f64);
        let rule = Rule { accuracy, floor, patience };
        let mut next = 0;
        while tile.live < capacity && next < n {
            tile.put(tile.live, next, &y[next * d..(next + 1) * d]);
            (tile.live, next) = (tile.live + 1, next + 1);
        }
        while tile.live > 0 {
            let live = tile.live;
            let all = live * d;
            let g = self.through(&layers, sign, live, d, &tile.x[..all], [&mut one, &mut other]);
            if search.history > 0 {
                x[..all].copy_from_slice(&tile.x[..all]);
                residuals(self.level(), &tile.y[..all], &x[..all], g, &mut r[..all]);
            }
            for (place, before) in before.iter_mut().enumerate().take(live) {
                *before = tile.column(place, FixedPointColumn::Latest);
            }
            iterate(
                self.level(),
                rule,
                d,
                &tile.y[..all],
                g,
                &mut tile.x[..all],
                &mut tile.best[..all],
                &mut tile.rows[..live * COLUMNS],
            );
            if search.history > 0 {
                for place in 0..live {
                    let run = place * d..(place + 1) * d;
                    let now = [&x[run.clone()], &r[run]];
                    let grew = before[place] < tile.column(place, FixedPointColumn::Latest);
                    self.accelerate(&mut tile, place, now, grew, &mut mixed);
                }
            }
            // from the last on, so that what takes a place was looked at
            for place in (0..live).rev() {
                tile.age[place] += 1;
                let active = tile.column(place, FixedPointColumn::Active) != E::ZERO;
                if active && tile.age[place] < search.limit as usize {
                    continue;
                }
                let number = tile.number[place];
                best[number * d..(number + 1) * d].copy_from_slice(&tile.best[place * d..(place + 1) * d]);
                let row = &tile.rows[place * COLUMNS..(place + 1) * COLUMNS];
                rows[number * COLUMNS..(number + 1) * COLUMNS].copy_from_slice(row);
                if next < n {
                    tile.put(place, next, &y[next * d..(next + 1) * d]);
                    next += 1;
                } else {
                    tile.close(place);
                }
            }
        }
        Some(found)
    }

    /// Keeps the differences of a row's step, and takes the accelerated step in place of the plain one, unless the residual grew or the
    /// row is done. `now` is x and r at the beginning of the step.
    fn accelerate(&self, tile: &mut Tile<E>, place: usize, now: [&[E]; 2], grew: bool, mixed: &mut [E]) {
        let (d, history, age) = (tile.d, tile.history, tile.age[place]);
        let run = place * d..(place + 1) * d;
        if age > 0 {
            let at = (place * history + (age - 1) % history) * d;
            for ((differences, last), now) in tile.differences.iter_mut().zip(&tile.last).zip(now) {
                let last = &last[run.clone()];
                let out = &mut differences[at..at + d];
                out.iter_mut().zip(now).zip(last).for_each(|((o, &a), &b)| *o = a - b);
            }
        }
        for (last, now) in tile.last.iter_mut().zip(now) {
            last[run.clone()].copy_from_slice(now);
        }
        let count = age.min(history);
        if count == 0 || grew || tile.column(place, FixedPointColumn::Active) == E::ZERO {
            return;
        }
        let own = place * history * d..(place * history + count) * d;
        let [dx, dr] = &tile.differences;
        let differences = Differences { x: &dx[own.clone()], r: &dr[own], count };
        let ridge = composed::ridge::<E>();
        mix(self.level(), ridge, E::TINY, now[1], &differences, &mut tile.x[run], mixed);
    }
}

kernel! {
    /// r = y − x − g.
    fn residuals<E>(y: &[E], x: &[E], g: &[E], r: &mut [E]) {
        for (((r, &y), &x), &g) in r.iter_mut().zip(y).zip(x).zip(g) {
            *r = y - x - g;
        }
    }
}
