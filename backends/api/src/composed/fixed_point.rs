//! The fixed points of x ↦ y − g(x), row by row: plain, or by Anderson's acceleration.
//!
//! Anderson(m) (Anderson 1965; type II of Fang and Saad 2009), with r = y − x − g(x): x + r − Σ γ_j (ΔX_j + ΔR_j) with γ the
//! least-squares solution of r ≈ Σ γ_j ΔR_j over the last m differences; the plain step wherever the residual grew or the least
//! squares broke down. Invariant: a row that has ended does not change, whatever the others do.

use crate::{
    Backend, BackendError, Binary, Element as _, FixedPointColumn, FixedPointFound, FixedPointSearch, FixedPointState,
    Net, Over, Reduce, Unary,
};

/// Everything that the iteration knows of the rows still going, `[n, d]`.
struct State<B: Backend> {
    y: B::Tensor,
    point: FixedPointState<B::Tensor>,
    // Anderson: the point and residual before, and the differences
    previous: Option<(B::Tensor, B::Tensor)>,
    history: Vec<(B::Tensor, B::Tensor)>,
}

impl<B: Backend> State<B> {
    /// Starts at x = y, nothing known.
    fn new(backend: &B, y: &B::Tensor) -> Self {
        let mut fresh = [B::Elem::ZERO; FixedPointColumn::COUNT];
        for column in [FixedPointColumn::Residual, FixedPointColumn::Norm, FixedPointColumn::Latest] {
            fresh[column as usize] = B::Elem::from_f64(f64::INFINITY);
        }
        fresh[FixedPointColumn::Active as usize] = B::Elem::ONE;
        let one = backend.upload(&fresh, [1, fresh.len()].into());
        let rows = backend.take_rows(&one, &vec![0; backend.shape(y).rows()]);
        let point = FixedPointState { x: y.clone(), best: y.clone(), rows };
        Self { y: y.clone(), point, previous: None, history: Vec::new() }
    }

    fn take(&self, b: &B, rows: &[u32]) -> Self {
        let t = |x: &B::Tensor| b.take_rows(x, rows);
        let point = &self.point;
        Self {
            y: t(&self.y),
            point: FixedPointState { x: t(&point.x), best: t(&point.best), rows: t(&point.rows) },
            previous: self.previous.as_ref().map(|(x, r)| (t(x), t(r))),
            history: self.history.iter().map(|(x, r)| (t(x), t(r))).collect(),
        }
    }
}

/// [`Backend::net_fixed_point`] for any g, of rows x, `[m, d]`: it is also given the numbers among the n rows of those that are still
/// going, in the order in which it gets them.
///
/// # Errors
/// Returns [`BackendError`] if the device failed.
pub fn fixed_point<B: Backend>(
    backend: &B,
    search: &FixedPointSearch,
    y: &B::Tensor,
    mut g: impl FnMut(&B::Tensor, &[u32]) -> B::Tensor,
) -> Result<FixedPointFound<B::Tensor>, BackendError> {
    let mut state = State::new(backend, y);
    // rows that are done, and the number each had at the beginning
    let mut finished: Vec<(Vec<u32>, State<B>)> = Vec::new();
    let mut numbers: Vec<u32> = (0..backend.shape(y).rows() as u32).collect();
    let mut iteration = 0;
    while !numbers.is_empty() && iteration < search.limit {
        for _ in 0..(backend.poll_interval() as u32).min(search.limit - iteration) {
            let gx = g(&state.point.x, &numbers);
            state = advance(backend, search, &gx, state);
            iteration += 1;
        }
        let active = backend.download(&backend.narrow(&state.point.rows, 1, FixedPointColumn::Active as usize, 1))?;
        let (going, done): (Vec<u32>, Vec<u32>) =
            (0..numbers.len() as u32).partition(|&i| active[i as usize] != B::Elem::ZERO);
        if going.is_empty() {
            break;
        }
        // leaving finished rows out costs a copy: do it once a quarter is done
        if done.len() * 4 >= numbers.len() {
            finished.push((done.iter().map(|&i| numbers[i as usize]).collect(), state.take(backend, &done)));
            state = state.take(backend, &going);
            numbers = going.iter().map(|&i| numbers[i as usize]).collect();
        }
    }
    finished.push((numbers, state));
    Ok(in_order(backend, &finished))
}

/// [`Backend::net_fixed_point`] by forward passes of the net.
///
/// # Errors
/// Returns [`BackendError`] if the device failed.
pub fn net_fixed_point<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    sign: f64,
    search: &FixedPointSearch,
    y: &B::Tensor,
) -> Result<FixedPointFound<B::Tensor>, BackendError> {
    let shape = backend.shape(y);
    let flat = backend.reshape(y, [shape.rows(), shape.row_elements()].into());
    let found = fixed_point(backend, search, &flat, |x, _| {
        let rows = backend.shape(x).rows();
        let gx = backend.net_forward(net, &backend.reshape(x, shape.with_rows(rows)), 0).y;
        let gx = if sign == 1.0 { gx } else { backend.affine(gx, sign, 0.0) };
        backend.reshape(&gx, backend.shape(x))
    })?;
    Ok(FixedPointFound { best: backend.reshape(&found.best, shape), ..found })
}

/// Makes the bookkeeping of every row and the step from x, with g(x), `[n, d]`.
fn advance<B: Backend>(b: &B, search: &FixedPointSearch, gx: &B::Tensor, s: State<B>) -> State<B> {
    if search.history == 0 {
        let point = b.fixed_point_step(&search.rule, &s.y, gx, s.point);
        return State { point, ..s };
    }
    let column = |rows: &B::Tensor, c: FixedPointColumn| b.narrow(rows, 1, c as usize, 1);
    let x = s.point.x.clone();
    let before = column(&s.point.rows, FixedPointColumn::Latest);
    let r = b.binary(Binary::Sub, b.binary(Binary::Sub, s.y.clone(), &x), gx);
    let mut point = b.fixed_point_step(&search.rule, &s.y, gx, s.point);
    let mut history = s.history;
    if let Some((x0, r0)) = &s.previous {
        history.push((b.binary(Binary::Sub, x.clone(), x0), b.binary(Binary::Sub, r.clone(), r0)));
        if history.len() > search.history {
            history.remove(0);
        }
    }
    let mixed = anderson(b, &point.x, &r, &history);
    // the plain step where the row is done, the residual grew or the least squares broke down
    let grew = b.binary(Binary::Less, before, &column(&point.rows, FixedPointColumn::Latest));
    let finite = b.unary(Unary::IsFinite, b.reduce(Reduce::Sum, Over::Row, &mixed));
    let usable = b.binary(Binary::Mul, finite, &column(&point.rows, FixedPointColumn::Active));
    let usable = b.binary(Binary::Less, grew, &usable);
    point.x = b.select(&usable, &mixed, &point.x);
    State { y: s.y, point, previous: Some((x, r)), history }
}

/// Computes plain − Σ γ_j (ΔX_j + ΔR_j), per row, `[n, d]`.
fn anderson<B: Backend>(b: &B, plain: &B::Tensor, r: &B::Tensor, history: &[(B::Tensor, B::Tensor)]) -> B::Tensor {
    let m = history.len();
    if m == 0 {
        return plain.clone();
    }
    let rows = b.shape(r).rows();
    let mut gram = vec![Vec::with_capacity(m); m];
    for i in 0..m {
        for j in 0..m {
            let entry = if j < i { B::Tensor::clone(&gram[j][i]) } else { b.dot_rows(&history[i].1, &history[j].1) };
            gram[i].push(entry);
        }
    }
    // a ridge relative to each diagonal keeps the solve finite where differences are parallel
    for (i, row) in gram.iter_mut().enumerate() {
        row[i] = b.affine(row[i].clone(), ridge::<B::Elem>(), B::Elem::TINY);
    }
    let entries: Vec<_> = gram.iter().flatten().collect();
    let matrix = b.reshape(&b.concat(&entries, 1), [rows, m, m].into());
    let inverse = b.reshape(&b.lu(&matrix).1, [rows, m * m].into());
    let target: Vec<_> = history.iter().map(|(_, dr)| b.dot_rows(dr, r)).collect();
    let mut x = plain.clone();
    for (i, (dx, dr)) in history.iter().enumerate() {
        let products = (0..m).map(|j| b.binary(Binary::Mul, b.narrow(&inverse, 1, i * m + j, 1), &target[j]));
        let gamma = products.reduce(|a, c| b.axpy(1.0, &c, a)).expect("m > 0");
        let direction = b.axpy(1.0, dx, dr.clone());
        x = b.axpy(-1.0, &b.binary(Binary::Mul, direction, &gamma), x);
    }
    x
}

/// The factor of the least squares' diagonal; the smallest normal number is added to it, too.
pub fn ridge<E: crate::Element>() -> f64 {
    1.0 + 100.0 * E::EPSILON
}

/// Puts the rows back in order.
fn in_order<B: Backend>(b: &B, finished: &[(Vec<u32>, State<B>)]) -> FixedPointFound<B::Tensor> {
    let order: Vec<u32> = finished.iter().flat_map(|(numbers, _)| numbers.iter().copied()).collect();
    let mut back = vec![0; order.len()];
    for (at, &number) in order.iter().enumerate() {
        back[number as usize] = at as u32;
    }
    let join = |part: fn(&State<B>) -> &B::Tensor| {
        let parts: Vec<_> = finished.iter().map(|(_, state)| part(state)).collect();
        if let [only] = parts[..] { only.clone() } else { b.take_rows(&b.concat(&parts, 0), &back) }
    };
    FixedPointFound { best: join(|s| &s.point.best), rows: join(|s| &s.point.rows) }
}
