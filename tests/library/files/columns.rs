//! Maps of columns in files: kept to the bit in models and runs, and whatever is wrong with them refused.

use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Key, Noise};
use resflow::checkpoint::{Archive, Values};
use resflow::config::FlowConfig;
use resflow::data::column::{Asinh, Grid, Spline};
use resflow::data::{ColumnFit, ColumnMap, ColumnMaps, Standardiser, Support, Table};
use resflow::flow::Flow;
use resflow::train::{Budget, TrainConfig, Trainer};
use serde_json::{Value, json};

use crate::memory::peak;

type Cpu = NdArray<f64>;

fn config() -> FlowConfig {
    FlowConfig { blocks: 1, hidden: vec![3], ..FlowConfig::new(3) }
}

fn flow() -> Flow<Cpu> {
    Flow::new(NdArray::new(), config(), Key::new(0)).expect("valid")
}

/// Every kind of part, at a scale.
fn maps(unit: f64) -> ColumnMaps {
    let affine = |centre, scale| ColumnMap::affine(centre, scale).expect("in range");
    let spline = Spline::new(vec![-1.0, 0.1, 2.0], vec![-1.5, 0.3, 1.0], vec![0.5, 1.1, 2.0]).expect("it increases");
    let asinh = Asinh::new(0.3, -0.1, 1.7).expect("in range");
    let grid = Grid::new(unit, 0.0).expect("a grid");
    let maps = vec![
        affine(1.0 / 3.0 * unit, unit).with_marginal(Some(asinh), Some(spline.clone())),
        affine(0.2, 0.7).with_values(Support::Between(0.0, 7.0 * unit), Some(grid)).expect("a support"),
        affine(unit.ln(), 0.7)
            .with_values(Support::Above(-unit), None)
            .expect("a support")
            .with_marginal(None, Some(spline)),
    ];
    ColumnMaps::new(maps).expect("three columns").with_draws(3).expect("in range")
}

fn stored() -> Archive {
    let mut flow = flow();
    flow.set_columns(maps(1.0)).expect("three columns");
    flow.to_archive().expect("stored")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn models_keep_their_maps(exponent in -30_i32..=30) {
        let maps = maps(10_f64.powi(exponent));
        let mut flow = flow();
        flow.set_columns(maps.clone()).expect("three columns");
        let bytes = flow.to_archive().expect("stored").to_bytes().expect("stored");
        let again = Flow::from_archive(NdArray::<f64>::new(), &Archive::from_bytes(&bytes).expect("a file")).expect("a model");
        prop_assert_eq!(again.columns(), &maps);
        prop_assert_eq!(again.to_archive().expect("stored").to_bytes().expect("stored"), bytes);
        let single = flow.to_backend(NdArray::<f32>::new()).expect("moved");
        prop_assert_eq!(single.columns(), &maps);
    }
}

/// A file of a standardisation says nothing of maps, and has the format that it always had.
#[test]
fn a_standardisation_leaves_no_trace() {
    let mut flow = flow();
    let standardiser = Standardiser::new(vec![1.0, 2.0, 3.0], vec![0.5, 1.0, 2.0]).expect("positive");
    flow.set_standardiser(standardiser.clone()).expect("three columns");
    let archive = flow.to_archive().expect("stored");
    assert_eq!(archive.document["model"]["format"], 2);
    assert!(archive.document["model"].get("columns").is_none());
    assert!(archive.tensors.keys().all(|name| !name.starts_with("columns")));
    assert_eq!(*Flow::from_archive(NdArray::<f64>::new(), &archive).expect("a model").standardiser(), standardiser);
    let train = serde_json::to_value(TrainConfig::default()).expect("JSON");
    assert!(["columns", "supports", "grids", "grid_draws"].iter().all(|key| train.get(key).is_none()));
}

#[test]
fn what_is_wrong_with_maps_is_refused() {
    let good = stored();
    assert_eq!(good.document["model"]["format"], 4);
    assert!(Flow::from_archive(NdArray::<f64>::new(), &good).is_ok());
    let refused = |what: &str, change: &dyn Fn(&mut Archive)| {
        let mut archive = good.clone();
        change(&mut archive);
        let (result, held) = peak(|| Flow::from_archive(NdArray::<f64>::new(), &archive).map(|_| ()));
        let error = result.expect_err(what).to_string();
        assert!(error.len() < 300 && held < 1 << 20, "{what}: {held} bytes; {error}");
    };
    let column = |a: &mut Archive, j: usize, key: &str, value: Value| {
        a.document["model"]["columns"]["maps"][j][key] = value;
    };
    for format in [1, 2, 3, 5] {
        refused("another format", &|a| a.document["model"]["format"] = json!(format));
    }
    refused("no maps", &|a| drop(a.document["model"].as_object_mut().expect("an object").remove("columns")));
    refused("a map too few", &|a| drop(a.document["model"]["columns"]["maps"].as_array_mut().expect("a list").pop()));
    refused("a map too many", &|a| {
        let maps = a.document["model"]["columns"]["maps"].as_array_mut().expect("a list");
        maps.push(maps[0].clone());
    });
    for draws in [0, 1, 1001, 1_000_000_000] {
        refused("draws", &|a| a.document["model"]["columns"]["draws"] = json!(draws));
    }
    refused("knots that are not there", &|a| column(a, 1, "knots", json!(3)));
    refused("other knots than there are", &|a| column(a, 0, "knots", json!(4)));
    refused("knots that nobody wants", &|a| column(a, 0, "knots", json!(0)));
    for knots in [json!(1_u64 << 40), json!(u64::MAX), json!(-1), json!(2.5)] {
        refused("a hostile number of knots", &|a| column(a, 0, "knots", knots.clone()));
    }
    for support in
        [json!({ "above": null }), json!({ "between": [1, 1] }), json!({ "between": [2, 1] }), json!("somewhere")]
    {
        refused("a support", &|a| column(a, 2, "support", support.clone()));
    }
    for grid in [json!({ "step": 0, "offset": 0 }), json!({ "step": -1, "offset": 0 }), json!({ "step": 1 })] {
        refused("a grid", &|a| column(a, 1, "grid", grid.clone()));
    }
    for asinh in [[0.0, 0.0, 1.0], [1.0, 0.0, -1.0], [1e9, 0.0, 1.0], [1.0, 0.0, 1e-9]] {
        let [width, centre, scale] = asinh;
        refused("an asinh", &|a| column(a, 0, "asinh", json!({ "width": width, "centre": centre, "scale": scale })));
    }
    refused("a word too many", &|a| column(a, 0, "code", json!("import os")));
    let knots = |values: [f64; 9]| {
        refused("bad knots", &|a| {
            a.tensors.insert("columns.0.knots".into(), (vec![3, 3], Values::F64(values.to_vec())));
        });
    };
    knots([0.0, 1.0, 1.0, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
    knots([0.0, 1.0, 2.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
    knots([0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]);
    knots([0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 1.0, -1.0, 1.0]);
    knots([0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 1.0, f64::NAN, 1.0]);
    knots([0.0, 1e-9, 2.0, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
    knots([0.0, 1.0, f64::INFINITY, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
    refused("a tensor too many", &|a| {
        let tensor = a.tensors["columns.0.knots"].clone();
        a.tensors.insert("columns.1.knots".into(), tensor);
    });
    refused("a tensor too few", &|a| drop(a.tensors.remove("columns.2.knots")));
    refused("a standardisation called maps", &|a| {
        let plain = json!({ "support": "real", "grid": null, "asinh": null, "knots": 0 });
        a.document["model"]["columns"]["maps"] = json!([plain, plain, plain]);
        a.tensors.retain(|name, _| !name.starts_with("columns"));
    });
}

/// The seeds of the fuzz targets that have columns in them, written where `RESFLOW_WRITE_SEEDS` says.
#[test]
fn write_column_seeds() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder =
        std::env::var_os("RESFLOW_WRITE_SEEDS").map_or_else(|| temporary.path().to_owned(), std::path::PathBuf::from);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        assert!(bytes.len() < 16_000, "{name} has {} bytes", bytes.len());
        std::fs::write(path, bytes).expect("writable");
    };
    let good = stored();
    write("checkpoint/mapped.safetensors", &good.to_bytes().expect("stored"));
    let mut flat = good;
    flat.tensors
        .insert("columns.0.knots".into(), (vec![3, 3], Values::F64(vec![0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0])));
    write("checkpoint/mapped_flat.safetensors", &flat.to_bytes().expect("stored"));
    let columns = "[train]\ncolumns = \"auto\"\ngrid_draws = 4\n\
        supports = { price = { above = 0 }, share = { between = [0, 1] }, age = \"real\" }\ngrids = { rooms = 1, \"7\" = 0.5 }\n";
    write("config/columns.toml", columns.as_bytes());
    write("config/columns_empty.toml", columns.replace("[0, 1]", "[1, 0]").as_bytes());
    let train: toml::Table = toml::from_str(columns).expect("TOML");
    let train: TrainConfig = train["train"].clone().try_into().expect("settings");
    assert_eq!((train.columns, train.grid_draws), (ColumnFit::Auto, 4));
    assert_eq!(train.supports["share"], Support::Between(0.0, 1.0));
    assert!(train.check().is_ok() && train.grids["7"] == 0.5);
}

/// A run over skewed columns and counts that is stopped, saved and gone on with makes the steps of one that was not.
#[test]
fn runs_go_on_bit_for_bit() {
    let mut noise = vec![0.0_f64; 900];
    Noise::Normal.fill(Key::new(4), 0, &mut noise);
    let values = noise.chunks(3).flat_map(|x| [x[0].exp(), (2.0 * x[1].exp()).floor().min(30.0), x[2]]).collect();
    let rows = Table::new(None, 3, values).expect("finite");
    let train = TrainConfig {
        columns: ColumnFit::Auto,
        supports: [("2".to_owned(), Support::Above(0.0))].into(),
        batch: 32,
        validate_every: 4,
        ..TrainConfig::default()
    };
    let start = || Trainer::new(flow(), rows.clone(), &train, Budget::Steps(12), Key::new(5)).expect("a trainer");
    let finish = |mut trainer: Trainer<Cpu>| {
        trainer.run(|_, _| ()).expect("steps");
        let mut archive = trainer.to_archive().expect("stored");
        archive.document["run"]["elapsed"] = json!(0.0);
        (archive.to_bytes().expect("stored"), trainer.model().to_archive().expect("stored").to_bytes().expect("stored"))
    };
    let whole = finish(start());
    let mut first = start();
    for _ in 0..5 {
        first.step().expect("a step");
        if first.validation_due() {
            first.validate().expect("a validation");
        }
    }
    assert!(first.flow().columns().has_grids());
    let bytes = first.to_archive().expect("stored").to_bytes().expect("stored");
    let archive = Archive::from_bytes(&bytes).expect("a file");
    let second = Trainer::resume(NdArray::<f64>::new(), &archive, rows.clone()).expect("a run");
    assert_eq!(second.flow().columns(), first.flow().columns());
    let again = finish(second);
    assert!(again == whole);
    // the maps of the run and not what would be fitted now
    let mut other = archive.clone();
    let mean = other.tensors.get_mut("flow.standardise.mean").expect("centres");
    mean.1 = Values::F64(vec![0.5, 0.0, 0.0]);
    let other = Trainer::resume(NdArray::<f64>::new(), &other, rows.clone()).expect("a run");
    assert_eq!(other.flow().columns().maps()[0].centre(), 0.5);
}
