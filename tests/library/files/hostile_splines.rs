//! Files of spline flows that want more memory than they hold numbers, or hold what is none.

use resflow::checkpoint::Values;
use serde_json::json;

use crate::files::fuzz_models::checkpoint;
use crate::files::hostile_models::{hostile, seed};

#[test]
fn hostile_spline_flows() {
    let settings = [
        ("/model/config/rows/bins", json!(256), false),
        ("/model/config/rows/bins", json!(u64::MAX), false),
        ("/model/config/rows/bins", json!(1), false),
        ("/model/config/rows/bound", json!(1e300), false),
        ("/model/config/rows/bound", json!(0.0), false),
        ("/model/config/rows/bound", json!(3.0), true),
        ("/model/config/rows/blocks", json!(10_000), false),
        ("/model/config/rows/hidden", json!([65_536]), false),
        ("/model/config/rows/dimension", json!(1024), false),
        ("/model/config/rows/dimension", json!(65_536), false),
        ("/model/config/rows/model", json!("glow"), false),
    ];
    hostile("nsf_run.safetensors", &settings);
    for values in [[0.0, 1.0, 1.0], [0.0, 3.0, 1.0], [0.5, 2.0, 1.0]] {
        let mut archive = seed("nsf.safetensors");
        archive.tensors.insert("links.0.permutation".into(), (vec![3], Values::F64(values.to_vec())));
        assert!(!checkpoint(&archive.to_bytes().expect("stored")), "permutation {values:?}");
    }
}
