//! What the device is asked to do: large grids, many launches, threads, and how often the host waits.

mod device;

use std::thread;

use resflow_backend::{
    Backend, Binary, FixedPointColumn, FixedPointRule, FixedPointState, Key, Noise, Over, Reduce, Unary,
};

/// More workgroups than one axis of a grid has, and sums of as many elements.
#[test]
fn grids_of_more_than_65535_workgroups() {
    let Some(gpu) = device::shared() else { return };
    let n = 65_535 * 256 + 1000;
    let x = gpu.affine(gpu.full(1.0, [n].into()), 1.0, 1.0);
    assert_eq!(gpu.download(&gpu.narrow(&x, 0, n - 2, 2)), Ok(vec![2.0, 2.0]));
    assert_eq!(gpu.download(&gpu.reduce(Reduce::Sum, Over::All, &x)), Ok(vec![2.0 * n as f32]));
    // a workgroup a row, and a thread a row
    for width in [40, 3] {
        let rows = 70_000;
        let x = gpu.full(0.5, [rows, width].into());
        let sums = gpu.download(&gpu.reduce(Reduce::Sum, Over::Row, &x)).expect("the device is sound");
        assert!(sums.len() == rows && sums.iter().all(|&s| s == 0.5 * width as f32));
    }
}

/// Only downloads wait, however much lies between them.
#[test]
fn nothing_but_a_download_waits() {
    let Some(gpu) = device::open() else { return };
    let before = gpu.statistics();
    let w = gpu.noise(Key::new(1), Noise::Normal, 0, [40, 40].into());
    let mut x = gpu.noise(Key::new(2), Noise::Normal, 0, [30, 40].into());
    for _ in 0..300 {
        x = gpu.unary(Unary::Tanh, gpu.matmul(&x, false, &w, false));
        x = gpu.binary(Binary::Div, x.clone(), &gpu.reduce(Reduce::Max, Over::Row, &gpu.unary(Unary::Abs, x)));
        x = gpu.take_rows(&x, &(0..30).rev().collect::<Vec<_>>());
        let (_, inverse) = gpu.lu(&gpu.reshape(&gpu.narrow(&x, 1, 0, 9), [30, 3, 3].into()));
        x = gpu.axpy(0.0, &gpu.concat(&[&gpu.reshape(&inverse, [30, 9].into()), &gpu.narrow(&x, 1, 9, 31)], 1), x);
    }
    let middle = gpu.statistics();
    assert_eq!(middle.read_backs, before.read_backs);
    assert!(middle.launches - before.launches > 1500 && middle.submissions > before.submissions + 10);
    assert!(middle.launches > 20 * (middle.submissions - before.submissions), "launches go in batches");
    gpu.download(&x).expect("the device is sound");
    let after = gpu.statistics();
    assert_eq!((after.read_backs, after.bytes_read_back), (before.read_backs + 1, before.bytes_read_back + 4800));
}

/// A fixed-point iteration leaves its rows on the device.
#[test]
fn fixed_point_steps_do_not_wait() {
    let Some(gpu) = device::open() else { return };
    let y = gpu.noise(Key::new(2), Noise::Normal, 0, [50, 6].into());
    let fresh = [f32::INFINITY, f32::INFINITY, f32::INFINITY, 0.0, 0.0, 1.0];
    let rows = gpu.take_rows(&gpu.upload(&fresh, [1, FixedPointColumn::COUNT].into()), &[0; 50]);
    let mut state = FixedPointState { x: y.clone(), best: y.clone(), rows };
    let rule = FixedPointRule { accuracy: 1e-6, floor: 1e-5, patience: 4.0 };
    for _ in 0..40 {
        let g = gpu.affine(gpu.unary(Unary::Sin, state.x.clone()), 0.5, 0.0);
        state = gpu.fixed_point_step(&rule, &y, &g, state);
    }
    assert_eq!(gpu.statistics().read_backs, 0);
    let rows = gpu.download(&state.rows).expect("the device is sound");
    for row in rows.chunks_exact(FixedPointColumn::COUNT) {
        assert!(row[FixedPointColumn::Residual as usize] <= 1e-5 && row[FixedPointColumn::Active as usize] == 0.0);
    }
}

/// Threads share a device: each gets its own results, bit for bit those of one alone.
#[test]
fn threads_share_a_device() {
    let Some(gpu) = device::shared() else { return };
    let work = |seed: u64| {
        let x = gpu.noise(Key::new(seed), Noise::Normal, 0, [64, 48].into());
        let mut y = x.clone();
        for _ in 0..20 {
            y = gpu.affine(
                gpu.unary(Unary::Tanh, gpu.matmul(&y, false, &gpu.matmul(&x, true, &x, false), false)),
                0.9,
                0.1,
            );
        }
        gpu.download(&y).expect("the device is sound").iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let alone: Vec<_> = (0..8).map(work).collect();
    for _ in 0..3 {
        let together: Vec<_> = thread::scope(|scope| {
            let handles: Vec<_> = (0..8).map(|seed| scope.spawn(move || work(seed))).collect();
            handles.into_iter().map(|h| h.join().expect("no panic")).collect()
        });
        assert!(together == alone, "a thread's results depend on the others");
    }
}

/// Kernels that loop for long are cut into launches: a driver may end a loop, or reset the device.
#[test]
fn long_loops() {
    let Some(gpu) = device::shared() else { return };
    let of = |seed, shape: &[usize]| gpu.noise(Key::new(seed), Noise::Normal, 0, shape.into());
    for [rows, columns] in [[300, 500], [1024, 250]] {
        let (w, u, v) = (of(1, &[rows, columns]), of(2, &[rows]), of(3, &[columns]));
        let fused = gpu.power_iteration(&w, u.clone(), v.clone(), 60);
        let composed = resflow_backend::composed::power_iteration(&gpu, &w, u, v, 60);
        let [fused, composed] = [&fused, &composed].map(|r| gpu.download(&r[2]).expect("the device is sound")[0]);
        assert!((fused - composed).abs() <= 1e-4 * composed, "{rows}×{columns}: {fused}, not {composed}");
    }
    // one row of more than a workgroup goes over
    let n = 17_000_000;
    let row = gpu.full(1.0, [1, n].into());
    assert_eq!(gpu.download(&gpu.reduce(Reduce::Sum, Over::Row, &row)), Ok(vec![n as f32]));
    drop(row);
    // ⟨a, b⟩ of 0s and 1s, exact in any order
    let k = 200_000;
    let ones = gpu.affine(gpu.noise(Key::new(4), Noise::Rademacher, 0, [1, k].into()), 0.5, 0.5);
    let product = gpu.download(&gpu.matmul(&ones, false, &gpu.full(1.0, [k, 3].into()), false));
    let sum = gpu.download(&gpu.reduce(Reduce::Sum, Over::All, &ones)).expect("the device is sound")[0];
    assert_eq!(product, Ok(vec![sum; 3]));
}

/// Operations on small tensors wait for each other: as many launches as there are levels, whatever their number.
#[test]
fn small_operations_run_together() {
    let Some(gpu) = device::open() else { return };
    let (rows, width) = (60, 7);
    let x = gpu.noise(Key::new(6), Noise::Uniform, 0, [rows, width].into());
    let before = gpu.statistics().launches;
    let shares = |row: usize| {
        let row = gpu.narrow(&x, 0, row, 1);
        // what nobody asks for never runs
        drop(gpu.unary(Unary::Sin, row.clone()));
        let e = gpu.unary(Unary::Exp, gpu.affine(row, 2.0, 1.0));
        let sum = gpu.reduce(Reduce::Sum, Over::All, &e);
        gpu.binary(Binary::Div, e, &sum)
    };
    let all: Vec<_> = (0..rows).map(shares).collect();
    assert_eq!(gpu.statistics().launches, before, "nothing was asked for");
    let joined = gpu.concat(&all.iter().collect::<Vec<_>>(), 0);
    let transposed = gpu.permute(&joined, &[1, 0]);
    let got = gpu.download(&transposed).expect("the device is sound");
    // exponentials; sums; shares; copies into one; the transpose
    assert_eq!(gpu.statistics().launches - before, 5);
    let x = gpu.download(&x).expect("the device is sound");
    for (row, x) in x.chunks_exact(width).enumerate() {
        let e: Vec<f64> = x.iter().map(|&x| (2.0 * f64::from(x) + 1.0).exp()).collect();
        for (c, own) in e.iter().enumerate() {
            let want = own / e.iter().sum::<f64>();
            assert!((f64::from(got[c * rows + row]) - want).abs() < 1e-6, "row {row}, column {c}");
        }
    }
}

/// More than may wait, each on the one before, and results that are dropped while others wait for what comes after.
#[test]
fn long_chains_of_small_operations() {
    let Some(gpu) = device::shared() else { return };
    let one = gpu.full(1.0, [5].into());
    let mut x = gpu.full(0.0, [5].into());
    let mut kept = Vec::new();
    for step in 0..10_000 {
        x = gpu.axpy(1.0, &one, x);
        if step % 1000 == 0 {
            kept.push(gpu.affine(x.clone(), 2.0, 0.0));
        }
    }
    let sums = gpu.concat(&kept.iter().collect::<Vec<_>>(), 0);
    drop(kept);
    assert_eq!(gpu.download(&x), Ok(vec![10_000.0; 5]));
    let want: Vec<f32> = (0..10).flat_map(|k| [2.0 * (1000 * k + 1) as f32; 5]).collect();
    assert_eq!(gpu.download(&sums), Ok(want));
}

/// A thread that waits for everything runs what others have written down so far, also half of what they join.
#[test]
fn threads_run_what_waits_for_others() {
    let Some(gpu) = device::shared() else { return };
    let join = |thread: usize| {
        for round in 0..500 {
            let parts: Vec<_> = (0..40)
                .map(|k| gpu.affine(gpu.full(1.0, [3, 1].into()), f64::from(k), (thread + round) as f64))
                .collect();
            let joined = gpu.concat(&parts.iter().collect::<Vec<_>>(), 0);
            let want: Vec<f32> = (0..40).flat_map(|k| [(k + thread + round) as f32; 3]).collect();
            assert_eq!(gpu.download(&joined), Ok(want), "thread {thread}, round {round}");
        }
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..4).map(|thread| scope.spawn(move || join(thread))).collect();
        while handles.iter().any(|handle| !handle.is_finished()) {
            gpu.synchronize().expect("the device is sound");
        }
        for handle in handles {
            handle.join().expect("no panic");
        }
    });
}
