//! What goes wrong with a device is an error, never a panic, and stays with that device.

mod device;

use resflow_backend::{Activation, Backend, BackendError, Binary, Key, Noise, Over, Reduce, Unary};
use resflow_wgpu::{AdapterChoice, Precision, Wgpu, WgpuOptions};

/// A device of its own with a limit of memory, on the adapter of the other tests.
fn limited(gpu: &Wgpu, bytes: u64) -> Wgpu {
    let adapter = AdapterChoice::Index(gpu.adapter().index);
    Wgpu::open(&WgpuOptions { adapter, memory_limit: Some(bytes), ..WgpuOptions::default() }).expect("opened before")
}

#[test]
fn a_lost_device_is_an_error_and_a_new_one_works() {
    let Some(gpu) = device::open() else { return };
    let x = gpu.upload(&[1.0, 2.0, 3.0], [3].into());
    assert_eq!(gpu.download(&gpu.unary(Unary::Square, x.clone())), Ok(vec![1.0, 4.0, 9.0]));
    gpu.destroy();
    // whatever is asked of it, again and again
    for _ in 0..3 {
        let y = gpu.binary(Binary::Add, x.clone(), &x);
        let z = gpu.matmul(&gpu.reshape(&y, [1, 3].into()), false, &gpu.full(2.0, [3, 2].into()), false);
        let w = gpu.noise(Key::new(1), Noise::Normal, 0, [1000].into());
        for t in [&x, &y, &z, &w] {
            assert!(matches!(gpu.download(t), Err(BackendError::DeviceLost(_))), "{:?}", gpu.download(t));
        }
        assert!(matches!(gpu.synchronize(), Err(BackendError::DeviceLost(_))));
    }
    let again = device::open().expect("it was there");
    let x = again.upload(&[1.0, 2.0], [2].into());
    assert_eq!(again.download(&again.affine(x, 2.0, 0.0)), Ok(vec![2.0, 4.0]));
}

#[test]
fn what_cannot_fit_is_an_error_once() {
    let Some(gpu) = device::open() else { return };
    let largest = gpu.adapter().largest_tensor as usize / 4;
    let x = gpu.upload(&[1.0, 2.0], [2].into());
    let huge = gpu.full(1.0, [largest + 1].into());
    assert_eq!(gpu.shape(&huge)[..], [largest + 1]);
    let doubled = gpu.affine(huge.clone(), 2.0, 0.0);
    let sum = gpu.reduce(Reduce::Sum, Over::All, &doubled);
    // the first wait says so, whatever it waits for
    let error = gpu.download(&x).expect_err("there was a fault");
    assert!(matches!(&error, BackendError::OutOfMemory(text) if text.contains("MiB")), "{error}");
    // it is said once; the device goes on, and only what came from the fault is lost
    assert_eq!(gpu.download(&x), Ok(vec![1.0, 2.0]));
    assert_eq!(gpu.synchronize(), Ok(()));
    for lost in [&huge, &doubled, &sum, &gpu.binary(Binary::Mul, x.clone(), &sum)] {
        assert!(matches!(gpu.download(lost), Err(BackendError::OutOfMemory(_))));
    }
    assert_eq!(gpu.download(&gpu.affine(x, 1.0, 1.0)), Ok(vec![2.0, 3.0]));
}

#[test]
fn a_limit_of_memory_is_kept() {
    const MIB: u64 = 1 << 20;
    let Some(gpu) = device::shared() else { return };
    let gpu = limited(&gpu, 16 * MIB);
    // a megabyte each: many of them, if they are dropped
    for i in 0..100 {
        let x = gpu.noise(Key::new(i), Noise::Uniform, 0, [1 << 18].into());
        let y = gpu.unary(Unary::Sqrt, x);
        let total = gpu.download(&gpu.reduce(Reduce::Sum, Over::All, &y)).expect("it fits")[0];
        assert!((f64::from(total) / f64::from(1 << 18) - 2.0 / 3.0).abs() < 0.01, "{total}");
        assert!(gpu.statistics().memory <= 16 * MIB, "{}", gpu.statistics().memory);
    }
    // sizes that share no class: what is free goes back
    for i in 1..60 {
        let x = gpu.full(1.0, [i << 14].into());
        assert_eq!(gpu.download(&gpu.narrow(&x, 0, 0, 1)), Ok(vec![1.0]));
        assert!(gpu.statistics().memory <= 16 * MIB);
    }
    // not if they are kept
    let kept: Vec<_> = (0..20).map(|i| gpu.noise(Key::new(i), Noise::Uniform, 0, [1 << 18].into())).collect();
    assert!(matches!(gpu.synchronize(), Err(BackendError::OutOfMemory(_))));
    drop(kept);
    assert_eq!(gpu.download(&gpu.full(1.0, [2].into())), Ok(vec![1.0, 1.0]));
}

#[test]
fn what_an_adapter_lacks_is_said() {
    let Some(gpu) = device::shared() else { return };
    let absent = WgpuOptions { adapter: AdapterChoice::Name("no such adapter".into()), ..WgpuOptions::default() };
    let error = Wgpu::open(&absent).expect_err("there is none").to_string();
    assert!(error.contains("no such adapter") && error.contains(&gpu.adapter().name), "{error}");
    for precision in [Precision::F16x3, Precision::F16] {
        let adapter = AdapterChoice::Index(gpu.adapter().index);
        let opened = Wgpu::open(&WgpuOptions { adapter, precision, memory_limit: None });
        if !gpu.adapter().cooperative_matrices {
            let error = opened.expect_err("no matrices").to_string();
            assert!(error.contains("cooperative") && error.contains(&precision.to_string()), "{error}");
        }
    }
}

#[test]
fn a_fault_stays_with_what_it_hit() {
    const MIB: u64 = 1 << 20;
    let Some(gpu) = device::shared() else { return };
    let gpu = limited(&gpu, 16 * MIB);
    // a result of several tensors, of which one does not fit, is lost as a whole
    let kept = gpu.noise(Key::new(1), Noise::Normal, 0, [5 << 18].into());
    let derivatives = gpu.activation(Activation::Tanh, None, &kept, 2);
    assert!(matches!(gpu.synchronize(), Err(BackendError::OutOfMemory(_))));
    for d in &derivatives {
        assert!(matches!(gpu.download(d), Err(BackendError::OutOfMemory(_))));
    }
    drop(derivatives);
    drop(kept);
    // what fits after all that is free is given back does not inherit another's fault
    let oversized = gpu.full(1.0, [1 << 23].into());
    let fits = gpu.full(3.0, [9 << 18].into());
    assert!(matches!(gpu.synchronize(), Err(BackendError::OutOfMemory(_))));
    assert_eq!(gpu.download(&gpu.narrow(&fits, 0, 5, 2)), Ok(vec![3.0, 3.0]));
    assert!(matches!(gpu.download(&oversized), Err(BackendError::OutOfMemory(_))));
}

#[test]
fn tensors_of_another_device_are_refused() {
    let (Some(one), Some(other)) = (device::open(), device::open()) else { return };
    let (x, y) = (one.upload(&[1.0, 2.0], [2].into()), other.upload(&[3.0, 4.0], [2].into()));
    let mixed = one.binary(Binary::Add, x.clone(), &y);
    assert!(matches!(one.download(&mixed), Err(BackendError::Unsupported(text)) if text.contains("another device")));
    assert!(matches!(one.download(&y), Err(BackendError::Unsupported(_))));
    assert_eq!(one.download(&x), Ok(vec![1.0, 2.0]));
    assert_eq!(other.download(&y), Ok(vec![3.0, 4.0]));
}
