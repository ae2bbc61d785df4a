//! Percentiles among the scores of a fit: against counting, monotone, and as files keep them.

use proptest::prelude::*;
use resflow::flow::{Provenance, ReferenceScores, ScoreQuantiles};

use crate::common::cases;

/// 100 · #{s < x} / n, by counting.
fn counted(scores: &[f64], x: f64) -> f64 {
    100.0 * scores.iter().filter(|s| **s < x).count() as f64 / scores.len() as f64
}

/// Scores with ties, some of them −∞.
fn scores(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f64>> {
    let score = prop_oneof![
        6 => -50.0..10.0_f64,
        2 => (-20..5_i32).prop_map(f64::from),
        1 => Just(f64::NEG_INFINITY),
        1 => prop_oneof![Just(-1e300), Just(1e300)],
    ];
    prop::collection::vec(score, sizes)
}

/// The scores themselves, places between them and beyond.
fn places(scores: &[f64]) -> Vec<f64> {
    let mut places: Vec<f64> = scores.iter().flat_map(|s| [*s, s - 0.01, s + 0.3]).collect();
    places.extend([f64::NEG_INFINITY, f64::MIN, 0.0, f64::MAX, f64::INFINITY]);
    places.sort_by(f64::total_cmp);
    places
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn few_scores_are_counted(scores in scores(1..1002)) {
        let quantiles = ScoreQuantiles::of(&scores).expect("scores");
        for x in places(&scores) {
            prop_assert!((quantiles.percentile(x) - counted(&scores, x)).abs() < 1e-9, "at {x}");
        }
    }

    #[test]
    fn many_scores_are_counted_to_a_tenth(scores in scores(1002..6000)) {
        let quantiles = ScoreQuantiles::of(&scores).expect("scores");
        for x in places(&scores) {
            let off = quantiles.percentile(x) - counted(&scores, x);
            prop_assert!(off.abs() < 0.1, "off by {off} at {x}");
        }
    }

    #[test]
    fn a_larger_score_has_no_smaller_percentile(scores in scores(1..3000)) {
        let quantiles = ScoreQuantiles::of(&scores).expect("scores");
        let percentiles: Vec<f64> = places(&scores).into_iter().map(|x| quantiles.percentile(x)).collect();
        prop_assert!(percentiles.windows(2).all(|pair| pair[0] <= pair[1]));
        prop_assert_eq!((percentiles[0], percentiles[percentiles.len() - 1]), (0.0, 100.0));
    }

    /// A fraction of the rows is below the quantile of that fraction, but for the rows that score the same as it.
    #[test]
    fn a_quantile_has_its_share_below(scores in scores(2..3000), share in 0.0..1.0_f64) {
        let quantiles = ScoreQuantiles::of(&scores).expect("scores");
        let at = quantiles.quantile(share);
        let below = counted(&scores, at);
        let not_above = 100.0 * scores.iter().filter(|s| **s <= at).count() as f64 / scores.len() as f64;
        let slack = 0.21 + 100.0 / scores.len() as f64;
        prop_assert!(below <= 100.0 * share + slack && not_above >= 100.0 * share - slack, "{below} to {not_above}");
    }

    #[test]
    fn files_keep_them(scores in scores(1..2000), with in any::<bool>()) {
        let training = ScoreQuantiles::of(&scores).expect("scores");
        let validation = with.then(|| training.clone());
        let provenance = Provenance { scores: Some(ReferenceScores { training, validation }), ..Provenance::default() };
        let text = serde_json::to_string(&provenance).expect("JSON");
        prop_assert!(text.len() < 60_000, "bounded");
        prop_assert_eq!(serde_json::from_str::<Provenance>(&text).expect("what was written"), provenance);
    }
}

#[test]
fn no_scores_are_no_distribution() {
    for bad in [&[][..], &[1.0, f64::NAN], &[f64::INFINITY]] {
        assert!(ScoreQuantiles::of(bad).is_err(), "{bad:?}");
    }
    let lost = ScoreQuantiles::of(&[f64::NEG_INFINITY; 3]).expect("scores");
    assert_eq!([lost.percentile(f64::NEG_INFINITY), lost.percentile(-1e308)], [0.0, 100.0]);
    assert_eq!((lost.quantile(0.5), lost.rows()), (f64::NEG_INFINITY, 3));
    assert!(lost.percentile(f64::NAN).is_nan());
}

#[test]
fn provenance_of_earlier_versions_has_none() {
    let old = r#"{"data":"d","columns":["a"],"steps":3,"seed":1,"validation_nll":2.5}"#;
    let provenance: Provenance = serde_json::from_str(old).expect("an older document");
    assert!(provenance.scores.is_none());
    // and a model without scores is written as before
    assert_eq!(serde_json::to_string(&provenance).expect("JSON"), old);
}

#[test]
fn hostile_scores_are_refused() {
    for bad in [
        r#"{"rows":0,"values":[]}"#,
        r#"{"rows":2,"lost":3,"values":[]}"#,
        r#"{"rows":2,"values":[1.0]}"#,
        r#"{"rows":2,"values":[2.0,1.0]}"#,
        r#"{"rows":2,"values":[1.0,null]}"#,
        r#"{"rows":1,"values":[1e999]}"#,
        r#"{"rows":18446744073709551615,"values":[1.0]}"#,
        r#"{"rows":1,"values":[1.0],"more":1}"#,
    ] {
        assert!(serde_json::from_str::<ScoreQuantiles>(bad).is_err(), "{bad}");
    }
}
