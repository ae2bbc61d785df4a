//! Tables, their files, standardisation and the split, as properties; the built-in densities against their
//! definitions.

use npyz::WriterBuilder as _;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use resflow::backend::Key;
use resflow::data::{self, DataError, Fault, Place, Standardiser, Table, ToyDensity, csv, npy};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// Every finite double, subnormal and negative zero included.
fn finite() -> BoxedStrategy<f64> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![-10.0..10.0, POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO].boxed()
}

fn single() -> BoxedStrategy<f64> {
    use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    (POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO).prop_map(f64::from).boxed()
}

/// Names that a table takes: the quotes, commas and line ends among them are the writer's to escape.
fn names(width: usize) -> impl Strategy<Value = Option<Vec<String>>> {
    let name = prop_oneof!["[a-z]{1,8}", "[ -~\r\n\té☃\u{feff}]{1,12}"]
        .prop_filter("not a name", |s| Table::new(Some(vec![s.clone()]), 1, vec![]).is_ok());
    proptest::option::of(proptest::collection::vec(name, width))
}

fn table(value: BoxedStrategy<f64>) -> impl Strategy<Value = Table> {
    (1_usize..6, 1_usize..20).prop_flat_map(move |(width, rows)| {
        (names(width), proptest::collection::vec(value.clone(), rows * width))
            .prop_map(move |(names, values)| Table::new(names, width, values).expect("a table"))
    })
}

fn bits(table: &Table) -> Vec<u64> {
    table.values().iter().map(|v| v.to_bits()).collect()
}

/// The values of a one-array NPY file in Fortran order, written by npyz alone.
fn fortran<T: npyz::AutoSerialize + Copy>(table: &Table, convert: impl Fn(f64) -> T) -> Vec<u8> {
    let mut out = Vec::new();
    let shape = [table.rows() as u64, table.width() as u64];
    let options = npyz::WriteOptions::new().default_dtype().shape(&shape).order(npyz::Order::Fortran);
    let mut writer = options.writer(&mut out).begin_nd().expect("a header");
    for column in 0..table.width() {
        writer.extend((0..table.rows()).map(|row| convert(table.row(row)[column]))).expect("memory");
    }
    writer.finish().expect("a whole array");
    out
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn csv_round_trip_is_exact(table in table(finite())) {
        let mut text = Vec::new();
        csv::write(&table, &mut text)?;
        let back = csv::read(&text)?;
        prop_assert_eq!(bits(&back), bits(&table));
        prop_assert_eq!(back, table);
    }

    #[test]
    fn npy_round_trip_is_exact(double in table(finite()), single in table(single())) {
        for (table, float) in [(&double, npy::Float::F8), (&single, npy::Float::F8), (&single, npy::Float::F4)] {
            let mut file = Vec::new();
            npy::write(table, float, &mut file)?;
            let back = npy::read(&file)?;
            prop_assert_eq!((back.width(), bits(&back)), (table.width(), bits(table)));
        }
        prop_assert_eq!(bits(&npy::read(&fortran(&double, |v| v))?), bits(&double));
        prop_assert_eq!(bits(&npy::read(&fortran(&single, |v| v as f32))?), bits(&single));
    }

    /// One bad cell or row, anywhere, under any line ends and blank lines, is reported where it is.
    #[test]
    fn csv_faults_are_placed(
        width in 2_usize..5,
        rows in proptest::collection::vec(0_usize..3, 2..10),
        header in any::<bool>(),
        end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        at in any::<(prop::sample::Index, prop::sample::Index)>(),
        fault in prop_oneof![Just("x"), Just("NaN"), Just("-inf"), Just(""), Just("1e999"), Just("\u{e9}"), Just("1,2")],
    ) {
        // the first row decides on the header, so the fault comes later
        let (row, column) = (1 + at.0.index(rows.len() - 1), at.1.index(width));
        let mut text = String::new();
        let mut line = 1;
        let mut bad_line = 0;
        if header {
            text += &(0..width).map(|i| format!("c{i}")).collect::<Vec<_>>().join(",");
            text += end;
            line += 1;
        }
        for (i, blank) in rows.iter().enumerate() {
            text += &end.repeat(*blank);
            line += *blank as u64;
            let cells = (0..width).map(|j| if (i, j) == (row, column) { fault } else { "1.5" });
            text += &cells.collect::<Vec<_>>().join(",");
            text += end;
            if i == row {
                bad_line = line;
            }
            line += 1;
        }
        let name = header.then(|| format!("c{column}"));
        let expected = Place::Line { line: bad_line, column: column + 1, name };
        match (fault, csv::read(text.as_bytes()).expect_err("a fault")) {
            ("1,2", DataError::Ragged { line, found, expected, .. }) => {
                prop_assert_eq!((line, found, expected), (bad_line, width + 1, width));
            }
            (fault, DataError::Cells(faults)) => {
                let [only] = &faults.columns[..] else { panic!("{faults:?}") };
                prop_assert_eq!((&only.places, only.count), (&vec![expected], 1));
                let right = match fault {
                    "" | "NaN" => matches!(&only.fault, Fault::Missing { text } if text == fault),
                    "x" | "\u{e9}" => matches!(&only.fault, Fault::Text { text } if text == fault),
                    _ => matches!(only.fault, Fault::Infinite { value } if value.is_infinite()),
                };
                prop_assert!(right && faults.rows == rows.len(), "{:?}", faults);
            }
            (_, error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn npy_faults_are_placed(
        table in table(finite()),
        at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        bad in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ) {
        let at = at.index(table.values().len());
        let mut file = Vec::new();
        npy::write(&table, npy::Float::F8, &mut file)?;
        let start = file.len() - 8 * table.values().len();
        let mut poisoned = file.clone();
        poisoned[start + 8 * at..][..8].copy_from_slice(&bad.to_le_bytes());
        let expected = Place::Index { row: at / table.width(), column: at % table.width(), name: None };
        match npy::read(&poisoned).expect_err("a fault") {
            DataError::Cells(faults) => {
                let [only] = &faults.columns[..] else { panic!("{faults:?}") };
                prop_assert_eq!(&only.places, &vec![expected]);
                let right = match only.fault {
                    Fault::Missing { .. } => bad.is_nan(),
                    Fault::Infinite { value } => value == bad,
                    _ => false,
                };
                prop_assert!(right, "{:?}", faults);
            }
            error => prop_assert!(false, "{error}"),
        }
        let cut = cut.index(file.len());
        match npy::read(&file[..cut]).expect_err("a short file") {
            DataError::NpyLength { expected, found } => {
                prop_assert_eq!((expected, found), ((file.len() - start) as u64, (cut - start) as u64));
            }
            DataError::NpyHeader { .. } => prop_assert!(cut < start),
            DataError::Empty => prop_assert_eq!(cut, 0),
            error => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn readers_survive_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[0-9a,.\"\r\n -]{0,100}") {
        for input in [&bytes[..], text.as_bytes(), &[b"\x93NUMPY\x01\x00", &bytes[..]].concat()] {
            let _ = csv::read(input);
            let _ = npy::read(input);
        }
    }

    #[test]
    fn split_is_a_partition(rows in 2_usize..200, fraction in 0.001..0.999, seed in any::<u64>()) {
        // every value says where it comes from
        let values = (0..2 * rows).map(|i| i as f64).collect();
        let table = Table::new(Some(vec!["a".to_owned(), "b".to_owned()]), 2, values).expect("a table");
        let (training, validation) = table.split(fraction, Key::new(seed))?;
        prop_assert!(training.rows() > 0 && validation.rows() > 0);
        prop_assert!((validation.rows() as f64 - fraction * rows as f64).abs() <= 1.0);
        prop_assert_eq!(training.columns(), table.columns());
        let mut seen = [training.values(), validation.values()].concat();
        for row in seen.chunks_exact(2) {
            prop_assert_eq!(row[0] + 1.0, row[1]);
        }
        seen.sort_by(f64::total_cmp);
        prop_assert_eq!(&seen[..], table.values());
        prop_assert_eq!(table.split(fraction, Key::new(seed))?, (training, validation));
    }

    #[test]
    fn standardising_is_affine_and_inverts(
        rows in proptest::collection::vec(proptest::array::uniform3(-1.0..1.0), 2..50),
        scale in proptest::array::uniform3(-30_i32..30),
        offset in proptest::array::uniform3(-1e3..1e3),
    ) {
        let scale = scale.map(|s| 10.0_f64.powi(s));
        let values = rows.iter().flat_map(|row| (0..3).map(|j| scale[j] * (row[j] + offset[j])).collect::<Vec<_>>());
        let table = Table::new(None, 3, values.collect()).expect("a table");
        let Ok(fitted) = Standardiser::fit(&table) else { return Ok(()) };
        let standard = fitted.apply(&table)?;
        let n = table.rows() as f64;
        for j in 0..3 {
            let column = || (0..table.rows()).map(|i| standard.row(i)[j]);
            // rounding of the input, relative to the spread
            let slack = 1e-14 * (1.0 + fitted.mean()[j].abs() / fitted.deviation()[j]);
            prop_assert!((column().sum::<f64>() / n).abs() < slack);
            prop_assert!((column().map(|z| z * z).sum::<f64>() / n - 1.0).abs() < 8.0 * slack);
        }
        let back = fitted.invert(&standard)?;
        for (i, (a, b)) in back.values().iter().zip(table.values()).enumerate() {
            prop_assert!((a - b).abs() <= 4.0 * f64::EPSILON * (fitted.mean()[i % 3].abs() + b.abs()), "{} {}", a, b);
        }
        prop_assert_eq!(Standardiser::new(fitted.mean().to_vec(), fitted.deviation().to_vec())?, fitted);
    }
}

#[test]
fn files_are_told_apart_by_their_content() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = Table::new(Some(vec!["a".into(), "b".into()]), 2, vec![0.1, -2.0, 3e-7, 4.0]).expect("a table");
    for name in ["table.csv", "table.npy", "TABLE.CSV"] {
        let path = folder.path().join(name);
        data::write(&table, &path).expect("written");
        assert_eq!(data::read(&path).expect("read").values(), table.values());
    }
    // whatever their names
    for (from, to) in [("table.csv", "table.txt"), ("table.npy", "array.csv"), ("table.csv", "text.npy")] {
        std::fs::copy(folder.path().join(from), folder.path().join(to)).expect("a copy");
        assert_eq!(data::read(folder.path().join(to)).expect(to).values(), table.values());
        assert_eq!(data::open(folder.path().join(to)).expect(to).data.table().map(Table::values), Some(table.values()));
    }
    let message = |name: &str| data::read(folder.path().join(name)).expect_err(name).to_string();
    assert!(
        data::write(&table, folder.path().join("x.txt"))
            .expect_err("a name")
            .to_string()
            .ends_with("must end in .csv or .npy")
    );
    assert!(message("absent.csv").contains("absent.csv: "));
    std::fs::create_dir(folder.path().join("folder.npy")).expect("a folder");
    assert!(message("folder.npy").contains("folder.npy: "));
    std::fs::write(folder.path().join("bad.csv"), "a,b\n1,x\n").expect("written");
    assert!(message("bad.csv").contains("bad.csv: column 2 (`b`) holds text (line 2: `x`)"));
    assert!(data::write(&table, folder.path().join("no/such/folder.csv")).is_err());
    assert!(data::write(&table, folder.path().join("table.parquet")).is_err());
}

/// Frequencies at which the characteristic functions are compared.
const FREQUENCIES: [[f64; 2]; 8] =
    [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0], [2.0, 1.0], [-1.0, 2.0], [3.0, 0.0], [0.0, 3.0]];

/// The means of x, y, x², xy, y² and of cos and sin at each frequency, over 4·10⁷ points of the original Python
/// (`toy_data.inf_train_gen` in NumPy and scikit-learn): accurate to 0.0015.
#[rustfmt::skip]
const ORIGINAL: [(ToyDensity, [f64; 21]); 8] = [
    (ToyDensity::EightGaussians, [
        0.0003, -0.0003, 4.1265, -0.0005, 4.1261,
        -0.1842, 0.0001, -0.1841, 0.0000, -0.3434, -0.0001, -0.3435, 0.0000,
        0.0737, 0.0000, 0.0736, -0.0001, 0.3317, -0.0002, 0.3317, -0.0001,
    ]),
    (ToyDensity::Checkerboard, [
        0.0004, 0.0002, 5.3335, 1.0004, 5.3338,
        -0.1893, 0.0001, -0.1893, 0.0001, -0.0510, -0.0002, 0.1227, -0.0002,
        -0.1031, -0.0001, 0.0562, 0.0002, -0.0449, 0.0001, -0.0450, -0.0001,
    ]),
    (ToyDensity::TwoSpirals, [
        0.0000, 0.0001, 2.5941, 0.5875, 2.5101,
        0.1799, 0.0000, 0.1716, 0.0000, -0.1084, 0.0000, -0.0507, 0.0000,
        0.0181, 0.0000, -0.0122, 0.0001, -0.0389, -0.0001, -0.0129, 0.0000,
    ]),
    (ToyDensity::Moons, [
        0.0000, 0.3000, 3.0402, -0.7732, 1.1067,
        0.1185, 0.0000, 0.5391, 0.1668, 0.2354, 0.0728, -0.2777, 0.0859,
        0.0871, 0.0269, -0.2442, -0.1671, -0.1246, -0.0001, -0.0901, -0.1135,
    ]),
    (ToyDensity::Circles, [
        0.0000, 0.0000, 2.8700, 0.0001, 2.8700,
        0.1224, 0.0000, 0.1223, 0.0000, -0.1018, -0.0001, -0.1018, 0.0001,
        -0.0303, -0.0001, -0.0302, -0.0001, -0.1585, 0.0000, -0.1583, -0.0001,
    ]),
    (ToyDensity::Rings, [
        0.0000, 0.0000, 2.1158, 0.0000, 2.1158,
        0.2987, 0.0000, 0.2987, 0.0000, 0.0513, 0.0000, 0.0514, 0.0000,
        0.0428, 0.0000, 0.0428, 0.0000, -0.0094, 0.0000, -0.0094, 0.0000,
    ]),
    (ToyDensity::Pinwheel, [
        -0.0001, 0.0001, 2.2002, -0.0001, 2.2002,
        0.2284, -0.0012, 0.2284, 0.0112, -0.0983, -0.0255, -0.0984, 0.0423,
        -0.1413, 0.2248, -0.1416, -0.0252, 0.0198, -0.3278, 0.0103, 0.1288,
    ]),
    (ToyDensity::SwissRoll, [
        0.3999, 0.0422, 1.9546, 0.1885, 1.9746,
        0.2859, 0.1973, 0.2888, -0.0010, -0.0615, 0.0361, -0.0282, 0.0506,
        -0.1115, 0.0658, -0.2023, -0.0219, -0.0203, 0.1822, -0.0314, -0.0573,
    ]),
];

/// 168 means of 40,000 points, each allowed 5.5 standard errors and the reference's own error: with fresh keys a false
/// alarm in 10⁵ runs; the key is fixed.
#[test]
fn densities_match_the_original_code() {
    for (density, expected) in ORIGINAL {
        let points = density.sample(Key::new(11), 40_000);
        let n = points.rows() as f64;
        let (mut sum, mut square) = ([0.0; 21], [0.0; 21]);
        for point in points.values().chunks_exact(2) {
            let [x, y] = [point[0], point[1]];
            let mut features = vec![x, y, x * x, x * y, y * y];
            for [a, b] in FREQUENCIES {
                features.extend([(a * x + b * y).cos(), (a * x + b * y).sin()]);
            }
            for (i, f) in features.into_iter().enumerate() {
                sum[i] += f;
                square[i] += f * f;
            }
        }
        for i in 0..21 {
            let mean = sum[i] / n;
            let error = ((square[i] / n - mean * mean) / n).sqrt();
            assert!(
                (mean - expected[i]).abs() < 5.5 * error + 0.0015,
                "{density}, feature {i}: {mean} ± {error}, expected {}",
                expected[i]
            );
        }
    }
}

/// The entropy of the mixture of eight normal densities, by quadrature of its formula.
#[test]
fn entropy_of_eight_gaussians() {
    let deviation = 0.5 / 1.414;
    let (half, steps) = (5.0, 1000);
    let h = 2.0 * half / f64::from(steps);
    let mut entropy = 0.0;
    for i in 0..steps {
        for j in 0..steps {
            let [x, y] = [i, j].map(|k| h * (f64::from(k) + 0.5) - half);
            let p: f64 = (0..8)
                .map(|k| {
                    let (sin, cos) = (f64::from(k) * std::f64::consts::FRAC_PI_4).sin_cos();
                    let r2 = (x - 4.0 * cos / 1.414).powi(2) + (y - 4.0 * sin / 1.414).powi(2);
                    (-r2 / (2.0 * deviation * deviation)).exp()
                })
                .sum::<f64>()
                / (8.0 * std::f64::consts::TAU * deviation * deviation);
            if p > 0.0 {
                entropy -= p * p.ln() * h * h;
            }
        }
    }
    assert!((entropy - ToyDensity::EightGaussians.entropy()).abs() < 1e-4, "{entropy}");
}
