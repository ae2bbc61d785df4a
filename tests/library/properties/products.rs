//! The arithmetic of products: gradients alone are computed by it, on any number of threads to the same bits, and a run keeps
//! what it began with. Where the processor multiplies no bf16, it is refused.

use std::num::NonZeroUsize;

use resflow::backend::{Backend as _, Key, Noise, Products};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::config::{FlowConfig, ImageConfig, ModelConfig};
use resflow::data::{Dataset, Table, ToyDensity};
use resflow::flow::Objective;
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::{Error, Flow, NdArray};

const TILES: [Products; 3] = [Products::Bf16x6, Products::Bf16x3, Products::Bf16];

fn cpu(threads: usize) -> NdArray<f32> {
    NdArray::with_threads(NonZeroUsize::new(threads).expect("a number above 0")).expect("threads start")
}

/// Whether the processor has them; if not, that they are refused in words.
fn are_there() -> bool {
    match cpu(1).with_products(Products::Bf16x3) {
        Ok(_) => true,
        Err(missing) => {
            assert!(missing.to_string().contains("AVX512_BF16"), "{missing}");
            eprintln!("SKIPPED, NOT TESTED: {missing}");
            false
        }
    }
}

/// Nets that are wide enough for tiles: of rows behind an activation and without, and of images.
fn models() -> [ModelConfig; 3] {
    let rows = |d, leading_activation| FlowConfig {
        blocks: 2,
        hidden: vec![64, 48],
        leading_activation,
        ..FlowConfig::new(d)
    };
    let images = ImageConfig {
        height: 8,
        width: 8,
        channels: 1,
        blocks: vec![2],
        filters: 32,
        fully_connected: 0,
        logit: false,
        ..ImageConfig::default()
    };
    [rows(20, true).into(), rows(3, false).into(), images.into()]
}

#[test]
fn gradients_are_those_of_single_precision() {
    if !are_there() {
        return;
    }
    for model in models() {
        let b = cpu(1);
        let flow = Flow::new(b.clone(), &model, Key::new(1)).expect("a flow");
        let n = 96;
        let shape: Vec<usize> = [&[n][..], &model.sample_shape()].concat();
        let batch = Batch::new(b.noise(Key::new(2), Noise::Normal, 0, shape[..].into()));
        let weights = b.full(1.0 / n as f64, [n, 1].into());
        let objective = Objective {
            batch: &batch,
            weights: &weights,
            key: Key::new(3),
            memory: Memory::Store,
            input_gradient: true,
            supervision: None,
        };
        let gradient = |products| {
            let prepared = flow.prepare().with_products(products).expect("found above");
            let gradient = prepared.gradient(&objective).expect("finite");
            let input = gradient.input.expect("asked for");
            [gradient.flat, gradient.loss, input].map(|x| b.download(&x).expect("no fault"))
        };
        let exact = gradient(Products::F32);
        for (products, bound) in TILES.into_iter().zip([1e-5, 3e-5, 2e-2]) {
            let found = gradient(products);
            assert_ne!(found[0], exact[0], "{products}: nothing was computed on tiles");
            for (found, exact) in found.iter().zip(&exact) {
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let error = norm(&mut found.iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
                assert!(error < bound, "{products}: {error:e} of the gradient's norm");
            }
        }
    }
}

#[test]
fn values_stay_what_they_are() {
    if !are_there() {
        return;
    }
    let flow = Flow::new(cpu(1), &models()[0], Key::new(1)).expect("a flow");
    let rows = cpu(1).download(&cpu(1).noise(Key::new(2), Noise::Normal, 0, [40, 20].into())).expect("no fault");
    let rows = Table::new(None, 20, rows.into_iter().map(f64::from).collect()).expect("a table");
    let rows = Dataset::from(rows);
    let plain = flow.prepare().log_prob(rows.samples(), Key::new(3)).expect("finite");
    let relaxed = flow.prepare().with_products(Products::Bf16).expect("found above");
    assert_eq!(relaxed.log_prob(rows.samples(), Key::new(3)).expect("finite").values, plain.values);
}

fn settings(products: Products) -> TrainConfig {
    TrainConfig { batch: 200, steps: 6, validation_rows: 64, products, ..TrainConfig::default() }
}

fn trainer(b: NdArray<f32>, products: Products) -> Result<Trainer<NdArray<f32>>, Error> {
    let model = FlowConfig { blocks: 2, hidden: vec![64, 64], ..FlowConfig::new(2) };
    let flow = Flow::new(b, model, Key::new(4))?;
    Trainer::new(flow, ToyDensity::Moons, &settings(products), Budget::Steps(6), Key::new(5))
}

#[test]
fn a_run_keeps_its_products() {
    if !are_there() {
        return;
    }
    let bits = |trainer: &Trainer<NdArray<f32>>| {
        let state = trainer.to_archive().expect("stored");
        state.tensors.iter().map(|(name, (_, values))| (name.clone(), format!("{values:?}"))).collect::<Vec<_>>()
    };
    let mut whole = trainer(cpu(1), Products::Bf16x3).expect("a run");
    let mut state = None;
    for step in 0..6 {
        if step == 3 {
            state = Some(whole.to_archive().expect("stored"));
        }
        whole.step().expect("finite");
    }
    let state = state.expect("stored");
    assert_eq!(state.document["run"]["config"]["products"], "bf16x3");
    // on three threads, from the middle on
    let mut resumed = Trainer::resume(cpu(3), &state, ToyDensity::Moons).expect("the same data");
    for _ in 3..6 {
        resumed.step().expect("finite");
    }
    assert!(bits(&resumed) == bits(&whole), "another run");
    let mut plain = trainer(cpu(1), Products::F32).expect("a run");
    for _ in 0..6 {
        plain.step().expect("finite");
    }
    assert!(bits(&plain) != bits(&whole), "the same numbers in single precision");
}

#[test]
fn products_that_are_not_there_are_refused() {
    // a GPU's on the processor, and a processor's for numbers that it has not
    for products in [Products::F16x3, Products::F16] {
        let error = trainer(cpu(1), products).expect_err("half precision").to_string();
        assert!(error.contains(&format!("no products in {products}")), "{error}");
    }
    for products in TILES {
        let error = NdArray::<f64>::new().with_products(products).expect_err("double precision").to_string();
        assert!(error.contains("ndarray-f64 has no products in"), "{error}");
    }
    assert!(NdArray::<f64>::new().with_products(Products::F32).is_ok());
    let unknown = serde_json::from_str::<TrainConfig>(r#"{ "products": "bf8" }"#).expect_err("unknown").to_string();
    assert!(unknown.contains("f32, bf16x6, bf16x3, bf16, f16x3, f16"), "{unknown}");
    // what is the default leaves no trace in files
    assert!(!serde_json::to_string(&TrainConfig::default()).expect("written").contains("products"));
}
