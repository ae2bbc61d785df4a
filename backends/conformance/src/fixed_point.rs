//! One step of a fixed-point iteration against its composition, the rules by which rows end, and the fixed points of whole nets.
//!
//! A row that has ended must not change any more: the answer for a sample would depend on how long its batch goes on.

use proptest::prelude::any;
use resflow_backend::{
    Activation, Backend, Element, FixedPointColumn, FixedPointRule, FixedPointSearch, FixedPointState, Net, NetLayer,
    composed,
};

use crate::draw::{Draw, check, check_some, download, seed, upload};
use crate::reference::Array;
use crate::tolerance::{AFFINE, assert_equal, assert_within, sum};

const COLUMNS: usize = FixedPointColumn::COUNT;

/// The arrays of one step.
#[derive(Debug)]
struct Step {
    y: Array,
    g: Array,
    x: Array,
    best: Array,
    rows: Array,
}

impl Step {
    /// Rows in every state: fresh, with a better residual behind them, patient, ended, solved exactly, not finite.
    fn new<E: Element>(draw: &mut Draw, n: usize, d: usize) -> Self {
        let [y, mut g, x, best] = [0; 4].map(|_| draw.array::<E>([n, d]));
        let mut rows = draw.uniform::<E>([n, COLUMNS], 0.0, 3.0);
        for i in 0..n {
            let row = &mut rows.data[i * COLUMNS..(i + 1) * COLUMNS];
            row[FixedPointColumn::Residual as usize] = [f64::INFINITY, 1e-3, 1e3][i % 3];
            row[FixedPointColumn::Stall as usize] = (i % 6) as f64;
            row[FixedPointColumn::Steps as usize] = i as f64;
            row[FixedPointColumn::Active as usize] = if i % 4 == 3 { 0.0 } else { 1.0 };
            for e in i * d..(i + 1) * d {
                match i % 7 {
                    4 => g.data[e] = E::from_f64(y.data[e] - x.data[e]).to_f64(),
                    5 if e == i * d => g.data[e] = f64::NAN,
                    _ => {}
                }
            }
        }
        Self { y, g, x, best, rows: rows.rounded::<E>() }
    }

    fn state<B: Backend>(&self, backend: &B) -> FixedPointState<B::Tensor> {
        FixedPointState {
            x: upload(backend, &self.x),
            best: upload(backend, &self.best),
            rows: upload(backend, &self.rows),
        }
    }
}

/// No row in the middle of these thresholds: random residuals are far above, exact solutions below.
const RULE: FixedPointRule = FixedPointRule { accuracy: 1e-5, floor: 2e-3, patience: 4.0 };

/// The override computes what the composition does.
pub fn fixed_point_step<B: Backend>(backend: &B) {
    check("fixed_point_step", (seed(), 0_usize..30, 1_usize..40), |(seed, n, d)| {
        let step = Step::new::<B::Elem>(&mut Draw::new(seed), n, d);
        let (y, g) = (upload(backend, &step.y), upload(backend, &step.g));
        let got = backend.fixed_point_step(&RULE, &y, &g, step.state(backend));
        let want = composed::fixed_point_step(backend, &RULE, &y, &g, step.state(backend));
        assert_equal("fixed_point_step: x", &download(backend, &got.x), &download(backend, &want.x));
        assert_equal("fixed_point_step: best", &download(backend, &got.best), &download(backend, &want.best));
        let (got, want) = (download(backend, &got.rows), download(backend, &want.rows));
        let units = 2.0 * sum(d) + 8.0;
        let size = |i: usize| if want.data[i].is_finite() { want.data[i].abs() } else { 0.0 };
        assert_within::<B::Elem>("fixed_point_step: rows", &got, &want, |i| units * B::Elem::EPSILON * size(i));
    });
}

/// Ended rows stay as they are; solved, patient and broken rows end; the others move to y − g.
pub fn fixed_point_ends<B: Backend>(backend: &B) {
    check("fixed_point_ends", (seed(), 1_usize..30, 1_usize..20), |(seed, n, d)| {
        let step = Step::new::<B::Elem>(&mut Draw::new(seed), n, d);
        let (y, g) = (upload(backend, &step.y), upload(backend, &step.g));
        let got = backend.fixed_point_step(&RULE, &y, &g, step.state(backend));
        let (x, best, rows) = (download(backend, &got.x), download(backend, &got.best), download(backend, &got.rows));
        for i in 0..n {
            let (own, range) = (i * COLUMNS..(i + 1) * COLUMNS, i * d..(i + 1) * d);
            let (before, after) = (&step.rows.data[own.clone()], &rows.data[own]);
            let active = |row: &[f64]| row[FixedPointColumn::Active as usize] != 0.0;
            if !active(before) {
                assert_eq!(after, before, "an ended row changed");
                assert_eq!(&x.data[range.clone()], &step.x.data[range.clone()]);
                assert_eq!(&best.data[range.clone()], &step.best.data[range]);
                continue;
            }
            assert_eq!(after[FixedPointColumn::Steps as usize], i as f64 + 1.0);
            let solved = range.clone().all(|e| (step.y.data[e] - step.g.data[e] - step.x.data[e]).abs() < 1e-6);
            if i % 7 == 5 || (i % 7 == 4 && solved) {
                assert!(!active(after), "a broken or solved row goes on");
            } else if i % 3 == 1 && i % 6 >= 4 && i % 7 != 4 {
                assert!(!active(after), "a row at its floor goes on");
            } else if i % 3 != 1 && i % 7 != 4 {
                assert!(active(after), "a row ended early");
                for e in range {
                    let next = B::Elem::from_f64(step.y.data[e]) - B::Elem::from_f64(step.g.data[e]);
                    assert_eq!(x.data[e], next.to_f64());
                }
            }
        }
    });
}

/// A row ends by the length of its residual, not by its largest entry: r of d equal entries goes on until r√d is small.
pub fn fixed_point_length<B: Backend>(backend: &B) {
    check("fixed_point_length", 1_usize..40, |d| {
        let rule = FixedPointRule { accuracy: 1e-2, ..RULE };
        // x = 0 and y = level: the residual is y − g
        for (level, entry, ends) in [
            (0.0, 0.9e-2, d == 1),
            (0.0, 0.9e-2 / (d as f64).sqrt(), true),
            (0.0, 1.1e-2 / (d as f64).sqrt(), false),
            (4.0, 3.6e-2, true),
            (4.0, 4.4e-2, false),
        ] {
            let full = |value: f64| Array::full([1, d], value).rounded::<B::Elem>();
            let mut rows = vec![0.0; COLUMNS];
            rows[FixedPointColumn::Residual as usize] = f64::INFINITY;
            rows[FixedPointColumn::Active as usize] = 1.0;
            let step = Step {
                y: full(level),
                g: full(level - entry),
                x: full(0.0),
                best: full(0.0),
                rows: Array::new([1, COLUMNS], rows),
            };
            let (y, g) = (upload(backend, &step.y), upload(backend, &step.g));
            for got in [
                backend.fixed_point_step(&rule, &y, &g, step.state(backend)),
                composed::fixed_point_step(backend, &rule, &y, &g, step.state(backend)),
            ] {
                let rows = download(backend, &got.rows).data;
                let residual = entry * (d as f64).sqrt() / (level * (d as f64).sqrt()).max(1.0);
                let found = rows[FixedPointColumn::Residual as usize];
                // level − entry is rounded at the size of the level
                let rounding = (2.0 * sum(d) + 8.0) * B::Elem::EPSILON * residual + 4.0 * B::Elem::EPSILON;
                assert!((found - residual).abs() <= rounding, "{found} instead of {residual}");
                assert_eq!(rows[FixedPointColumn::Active as usize] == 0.0, ends, "d = {d}, y = {level}, r = {entry}");
            }
        }
    });
}

/// A y whose square overflows ends as broken, and never as solved.
pub fn fixed_point_overflow<B: Backend>(backend: &B) {
    let huge = B::Elem::TINY.recip() / 8.0;
    let mut rows = vec![0.0; COLUMNS];
    rows[FixedPointColumn::Residual as usize] = f64::INFINITY;
    rows[FixedPointColumn::Active as usize] = 1.0;
    let step = Step {
        y: Array::new([1, 3], vec![huge, 0.5, -huge]).rounded::<B::Elem>(),
        g: Array::full([1, 3], 0.25),
        x: Array::new([1, 3], vec![huge, 0.0, -huge]).rounded::<B::Elem>(),
        best: Array::full([1, 3], 0.0),
        rows: Array::new([1, COLUMNS], rows),
    };
    let (y, g) = (upload(backend, &step.y), upload(backend, &step.g));
    for got in [
        backend.fixed_point_step(&RULE, &y, &g, step.state(backend)),
        composed::fixed_point_step(backend, &RULE, &y, &g, step.state(backend)),
    ] {
        let rows = download(backend, &got.rows).data;
        assert!(!rows[FixedPointColumn::Residual as usize].is_finite(), "{rows:?}");
        assert_eq!(rows[FixedPointColumn::Active as usize], 0.0, "it cannot get better");
    }
}

/// A net that contracts in the largest component, on rows of d numbers: layers of these widths with LipSwish between, and before the
/// first if `leading`.
fn contraction<B: Backend>(backend: &B, draw: &mut Draw, d: usize, widths: &[usize], leading: bool) -> Net<B::Tensor> {
    let ends: Vec<usize> = [d].iter().chain(widths).chain(&[d]).copied().collect();
    let mut layers = Vec::new();
    for (l, pair) in ends.windows(2).enumerate() {
        if l > 0 || leading {
            let parameter = Some(backend.upload(&[B::Elem::from_f64(0.7)], [1].into()));
            layers.push(NetLayer::Activation { function: Activation::LipSwish, parameter });
        }
        let weight = draw.array::<B::Elem>([pair[1], pair[0]]);
        let largest = (0..pair[1]).map(|o| (0..pair[0]).map(|i| weight.data[o * pair[0] + i].abs()).sum::<f64>());
        let norm = largest.fold(1e-3, f64::max);
        let weight = upload(backend, &weight.map(|w| CONTRACTION * w / norm).rounded::<B::Elem>());
        let bias = upload(backend, &draw.array::<B::Elem>([pair[1]]));
        let transposed = backend.permute(&weight, &[1, 0]);
        layers.push(NetLayer::Linear { weight, transposed, bias });
    }
    Net { layers }
}

/// What a layer does to the largest component.
const CONTRACTION: f64 = 0.8;

/// Every row of a net's fixed points satisfies its equation, alone and whatever its neighbours do; those that are not finite end as such.
/// By Anderson's acceleration and plainly, for the override and for the composition, in fewer rows than a tile and in more.
pub fn net_fixed_point<B: Backend>(backend: &B) {
    let cases = (seed(), 0_usize..400, 1_usize..30, 1_usize..80, 0_usize..4, any::<bool>());
    check_some("net_fixed_point", 24, cases, |(seed, n, d, width, history, leading)| {
        let mut draw = Draw::new(seed);
        let net = contraction(backend, &mut draw, d, &[width, width], leading);
        let mut y = draw.array::<B::Elem>([n, d]);
        // rows that need few steps, many, and that have no answer
        for i in 0..n {
            for e in i * d..(i + 1) * d {
                y.data[e] *= [1.0, 1e-3, 30.0][i % 3];
            }
            if i % 50 == 49 {
                y.data[i * d] = f64::NAN;
            }
        }
        let y = y.rounded::<B::Elem>();
        let accuracy = 1e3 * B::Elem::EPSILON;
        let rule = FixedPointRule { accuracy, floor: 0.0, patience: 4.0 };
        let search = FixedPointSearch { rule, history, limit: 3000 };
        let target = upload(backend, &y);
        let sign = if seed % 2 == 0 { 1.0 } else { -1.0 };
        let composition = composed::net_fixed_point(backend, &net, sign, &search, &target).expect("no fault");
        for found in [backend.net_fixed_point(&net, sign, &search, &target).expect("no fault"), composition] {
            let g = download(backend, &backend.net_forward(&net, &found.best, 0).y);
            let (best, rows) = (download(backend, &found.best), download(backend, &found.rows));
            for i in 0..n {
                let row = &rows.data[i * COLUMNS..(i + 1) * COLUMNS];
                let column = |c: FixedPointColumn| row[c as usize];
                assert!(column(FixedPointColumn::Active) == 0.0, "net_fixed_point: row {i} goes on after {row:?}");
                if i % 50 == 49 {
                    let residual = column(FixedPointColumn::Residual);
                    assert!(residual == f64::INFINITY, "net_fixed_point: row {i}, of NaN, has the residual {residual}");
                    continue;
                }
                assert!(column(FixedPointColumn::Residual) <= accuracy, "net_fixed_point: row {i} ended at {row:?}");
                let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
                let own = i * d..(i + 1) * d;
                let off = length(&mut own.clone().map(|e| y.data[e] - best.data[e] - sign * g.data[e]));
                let scale = length(&mut own.clone().map(|e| y.data[e])).max(1.0);
                // the answer is one step of a contraction behind the point whose residual was measured
                let allowed = (d as f64).sqrt() * accuracy * scale + 64.0 * B::Elem::EPSILON * scale;
                assert!(off <= allowed, "net_fixed_point: row {i} is off by {off:e}, allowed {allowed:e}");
            }
        }
    });
}

/// No row makes more steps than the limit, and one that reached it goes on being active; plain steps are those of the composition.
pub fn net_fixed_point_limit<B: Backend>(backend: &B) {
    let cases = (seed(), 1_usize..250, 1_usize..20, 1_u32..5, 0_usize..3);
    check_some("net_fixed_point_limit", 24, cases, |(seed, n, d, limit, history)| {
        let mut draw = Draw::new(seed);
        let net = contraction(backend, &mut draw, d, &[24], false);
        let y = draw.array::<B::Elem>([n, d]);
        let y = draw.tensor(backend, &y);
        let rule = FixedPointRule { accuracy: 0.0, floor: 0.0, patience: 4.0 };
        let search = FixedPointSearch { rule, history, limit };
        let found = backend.net_fixed_point(&net, -1.0, &search, &y).expect("no fault");
        let composition = composed::net_fixed_point(backend, &net, -1.0, &search, &y).expect("no fault");
        let rows = download(backend, &found.rows);
        for (i, row) in rows.data.chunks_exact(COLUMNS).enumerate() {
            let [steps, active] = [FixedPointColumn::Steps, FixedPointColumn::Active].map(|c| row[c as usize]);
            // a residual of exactly zero is as good as the accuracy asked for
            let early = row[FixedPointColumn::Residual as usize] == 0.0;
            assert!(
                early || (steps, active) == (f64::from(limit), 1.0),
                "net_fixed_point_limit: row {i} ended at {row:?}"
            );
        }
        if history == 0 {
            let [got, want] = [&found.best, &composition.best].map(|t| download(backend, t));
            let units = f64::from(limit) * (sum(24) + sum(d) + 8.0 * AFFINE);
            assert_within::<B::Elem>("net_fixed_point_limit: best", &got, &want, |_| units * B::Elem::EPSILON * 4.0);
        }
    });
}
