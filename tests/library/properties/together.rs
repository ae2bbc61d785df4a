//! Groups of processes: sums in order, and runs of every family on any number of ranks, bit for bit those of one process; what
//! fails on one rank ends all, with its cause. Ranks are threads. No statistics: seeds are fixed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::properties::families::{all, archive_bytes, rows, settings, source, trainer};
use proptest::prelude::*;
use resflow::backend::Key;
use resflow::checkpoint::Archive;
use resflow::config::{ContextConfig, Family, FlowConfig, ModelConfig};
use resflow::data::{Dataset, ToyDensity};
use resflow::error::{Error, GroupError};
use resflow::flow::Flow;
use resflow::group::{Group, Threads, collective};
use resflow::invert::Inversion;
use resflow::registry::Registry;
use resflow::train::{Budget, RouletteLaw, Source, TrainConfig, Trainer, await_run};

/// No rank of these tests waits longer, unless one hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs a task on every rank of a group.
pub(crate) fn on_ranks<T: Send>(size: usize, limit: Duration, task: impl Fn(Arc<dyn Group>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let task = &task;
        let ranks: Vec<_> = Threads::new(size, limit).into_iter().map(Arc::new).collect();
        let running: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || task(rank))).collect();
        running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

/// Goes through a run on a rank: the leader does `lead` with its trainer. Returns the state that the rank ends with.
pub(crate) fn take_part(
    group: Arc<dyn Group>,
    begin: impl Fn() -> Result<Trainer<Cpu>, Error>,
    source: Source,
    lead: impl Fn(&mut Trainer<Cpu>) -> Result<(), Error>,
) -> Result<Vec<u8>, Error> {
    if group.rank() == 0 {
        let begun = begin().inspect_err(|error| group.abort(&error.to_string()))?;
        let mut trainer = begun.lead(group)?;
        lead(&mut trainer)?;
        let state = archive_bytes(&trainer);
        trainer.dismiss()?;
        assert!(archive_bytes(&trainer) == state);
        Ok(state)
    } else {
        let state = await_run(&*group)?;
        let mut trainer = Trainer::join(cpu(), &state, source, group, &Registry::new())?;
        trainer.follow()?;
        Ok(archive_bytes(&trainer))
    }
}

fn run(trainer: &mut Trainer<Cpu>) -> Result<(), Error> {
    trainer.run(|_, _| ())
}

proptest! {
    #![proptest_config(cases(24))]

    /// The order of additions is that of one process, whoever has which lanes, also where a rank has none; notes go along.
    #[test]
    fn sums_have_the_order_of_one_process(size in 1_usize..6, lanes in 1_usize..9, length in 0_usize..150_000, seed: u64) {
        let number = |i: usize, l: usize| ((i as u64 * 2_654_435_761 + l as u64 * 40_503 + seed % 97) % 1009) as f32;
        let lane = |l: usize| -> Vec<f32> { (0..length).map(|i| number(i, l) * 0.1 - 50.0).collect() };
        let mut expected = lane(0);
        for l in 1..lanes {
            expected.iter_mut().zip(lane(l)).for_each(|(sum, x)| *sum += x);
        }
        let found = on_ranks(size, LIMIT, |group| {
            let own: Vec<_> = (group.rank() * lanes / size..(group.rank() + 1) * lanes / size).map(lane).collect();
            let mut notes = vec![own.len() as f64, group.rank() as f64];
            let merge = |before: &mut [f64], own: &[f64]| {
                before[0] += own[0];
                before[1] = 10.0 * before[1] + own[1];
            };
            (collective::sum_in_order(&*group, &mut notes, merge, &own, length), notes)
        });
        let places = (1..size).fold(0.0, |number, rank| 10.0 * number + rank as f64);
        for (sum, notes) in found {
            let sum = sum.expect("all are there");
            prop_assert!(sum.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
            prop_assert_eq!(notes, vec![lanes as f64, places]);
        }
    }

    #[test]
    fn messages_reach_all(size in 1_usize..9, length in 0_usize..2000) {
        let of = |rank: usize| vec![rank as u8; length + rank];
        for (sent, all) in on_ranks(size, LIMIT, |group| {
            let own = of(group.rank());
            (collective::broadcast(&*group, own.clone()), collective::gather(&*group, own))
        }) {
            prop_assert_eq!(sent.expect("all are there"), of(0));
            prop_assert_eq!(all.expect("all are there"), (0..size).map(of).collect::<Vec<_>>());
        }
    }

    /// Any number of ranks, lanes, samples of a batch and batches of a step; with the clock as budget too, whose time is the leader's.
    #[test]
    fn any_division_gives_the_same_bits(
        ranks in 2_usize..5, lanes in 0_usize..11, batch in 2_usize..40, accumulate in 1_usize..3, timed: bool,
    ) {
        let config = rows(Family::Residual);
        let own = TrainConfig { lanes, batch, accumulate, ..settings(Family::Residual) };
        let begin = || {
            let flow = Flow::new(cpu(), &config, Key::new(3)).expect("a configuration");
            let budget = if timed { Budget::Time(Duration::from_secs(3600)) } else { Budget::Steps(4) };
            Trainer::new(flow, source(&config), &own, budget, Key::new(4))
        };
        let lead = |trainer: &mut Trainer<Cpu>| {
            for _ in 0..3 {
                trainer.step()?;
            }
            trainer.validate().map(|_| ())
        };
        let states = on_ranks(ranks, LIMIT, |group| take_part(group, begin, source(&config), lead).expect("no fault"));
        prop_assert!(states.iter().all(|state| *state == states[0]));
        if !timed {
            let mut alone = begin().expect("data that fit");
            lead(&mut alone).expect("finite");
            prop_assert!(archive_bytes(&alone) == states[0]);
        }
    }
}

#[test]
fn every_family_has_the_bits_of_one_process() {
    for config in all() {
        let mut alone = trainer(&config, 6);
        run(&mut alone).expect("finite");
        let alone = archive_bytes(&alone);
        for ranks in [2, 3] {
            let begin = || Ok(trainer(&config, 6));
            let states =
                on_ranks(ranks, LIMIT, |group| take_part(group, begin, source(&config), run).expect("no fault"));
            let what = (config.family(), config.sample_shape(), config.classes(), ranks);
            assert!(states.iter().all(|state| *state == alone), "{what:?}");
        }
    }
}

/// Weighted rows with contexts, the base fitted to them, early validations that must be significant, roulette's law measured.
#[test]
fn a_conditional_fit_has_the_bits_of_one_process() {
    let table = ToyDensity::Moons.sample(Key::new(1), 300);
    let context = table.select(&(0..300).rev().collect::<Vec<_>>());
    let weights = (0..300).map(|i| f64::from(1 + i % 3)).collect();
    let data = Dataset::from(table).with_context(context).expect("as many").with_weights(weights).expect("as many");
    let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let config = ModelConfig::from(config).with_context(Some(ContextConfig::new(2)));
    let own = TrainConfig {
        batch: 50,
        roulette: RouletteLaw::Measured,
        validations: resflow::train::Validations::Early,
        improvement: resflow::train::Improvement::Significant,
        ..TrainConfig::default()
    };
    let begin = || {
        let flow = Flow::new(cpu(), &config, Key::new(3)).expect("a configuration");
        Trainer::new(flow, data.clone(), &own, Budget::Steps(26), Key::new(4))
    };
    let mut alone = begin().expect("data that fit");
    run(&mut alone).expect("finite");
    let states = on_ranks(4, LIMIT, |group| take_part(group, begin, data.clone().into(), run).expect("no fault"));
    assert!(states.iter().all(|state| *state == archive_bytes(&alone)));
}

#[test]
fn a_run_goes_on_with_other_ranks() {
    let config = rows(Family::Monotone);
    let mut alone = trainer(&config, 6);
    run(&mut alone).expect("finite");
    let half = |trainer: &mut Trainer<Cpu>| (0..3).try_for_each(|_| trainer.step().map(|_| ()));
    let begin = || Ok(trainer(&config, 6));
    let states = on_ranks(2, LIMIT, |group| take_part(group, begin, source(&config), half).expect("no fault"));
    let again = || Trainer::resume(cpu(), &Archive::from_bytes(&states[1])?, source(&config));
    let states = on_ranks(3, LIMIT, |group| take_part(group, again, source(&config), run).expect("no fault"));
    assert!(states.iter().all(|state| *state == archive_bytes(&alone)));
}

#[test]
fn densities_are_those_of_one_process() {
    for config in [rows(Family::Residual), rows(Family::Nsf), rows(Family::Implicit)] {
        let flow = random_flow(&cpu(), &config, Key::new(6), 0.1);
        let x = uniform_rows(333, 2, Key::new(7));
        let all = |prepared: resflow::flow::PreparedFlow<Cpu>| {
            let encoded = prepared.encode(&x, Key::new(8)).expect("rows that fit");
            let scored = prepared.log_prob(&x, Key::new(8)).expect("rows that fit");
            let how = Inversion::for_backend::<Cpu>();
            let drawn = prepared.sample(150, Key::new(9), &how).expect("a flow of rows");
            let back = prepared.decode(&encoded.latents, &how).expect("rows that fit");
            let inverted = [drawn, back].map(|found| (found.samples.values().to_vec(), found.reports, found.residual));
            let latents = encoded.latents.values().to_vec();
            (
                latents,
                encoded.log_det,
                encoded.status,
                scored.values,
                scored.solve_error,
                scored.standard_error,
                inverted,
            )
        };
        let alone = all(flow.prepare());
        for found in on_ranks(3, LIMIT, |group| all(flow.prepare().with_group(group))) {
            assert!(found == alone, "{}", config.family());
        }
    }
}

/// A model whose gradients make several sections, which are sent while the backward pass goes on: each number once and once back.
#[test]
fn what_is_sent_is_the_gradient_and_the_bits_are_those_of_one_process() {
    let config: ModelConfig = FlowConfig { blocks: 3, hidden: vec![256, 256], ..FlowConfig::new(2) }.into();
    let settings = TrainConfig { lanes: 2, batch: 64, ..settings(Family::Residual) };
    let begin = || {
        let flow = Flow::new(cpu(), &config, Key::new(3)).expect("a configuration");
        Trainer::new(flow, ToyDensity::Moons, &settings, Budget::Steps(2), Key::new(4))
    };
    let mut alone = begin().expect("a trainer");
    run(&mut alone).expect("no fault");
    let sent = std::sync::Mutex::new(0);
    let states = on_ranks(2, LIMIT, |group| {
        take_part(group, begin, ToyDensity::Moons.into(), |trainer| {
            run(trainer)?;
            *sent.lock().expect("no panic") = trainer.exchange().expect("a group").bytes;
            Ok(())
        })
    });
    assert!(states.into_iter().all(|state| state.expect("no fault") == archive_bytes(&alone)));
    // in double precision
    let numbers = 8 * alone.flow().parameters() * alone.steps_done();
    let sent = sent.into_inner().expect("no panic");
    assert!((numbers..numbers + numbers / 50).contains(&sent), "{sent} bytes for gradients of {numbers}");
}

/// The errors of all ranks.
fn errors<T: std::fmt::Debug>(results: Vec<Result<T, Error>>) -> Vec<String> {
    results.into_iter().map(|result| result.expect_err("it fails").to_string()).collect()
}

#[test]
fn what_fails_on_one_rank_ends_all() {
    let config = rows(Family::RealNvp);
    let table = |seed| Dataset::from(ToyDensity::Moons.sample(Key::new(seed), 200));
    let begin = || {
        let flow = Flow::new(cpu(), &config, Key::new(3)).expect("a configuration");
        Trainer::new(flow, table(1), &settings(Family::RealNvp), Budget::Steps(1000), Key::new(4))
    };
    let start = Instant::now();
    // other data on rank 2
    let found = errors(on_ranks(3, LIMIT, |group| {
        let own = table(if group.rank() == 2 { 9 } else { 1 });
        take_part(group, begin, own.into(), run)
    }));
    assert!(found[2].contains("other data"), "{found:?}");
    assert!(found[..2].iter().all(|error| error.starts_with("rank 2 ended: the run was on other data")), "{found:?}");
    // the leader cannot begin
    let found = errors(on_ranks(3, LIMIT, |group| {
        let never = || Err(Error::Input("no such file".into()));
        take_part(group, never, table(1).into(), run)
    }));
    assert!(found[1..].iter().all(|error| error == "rank 0 ended: no such file"), "{found:?}");
    // the leader's disk is full: the others do not wait
    let found = on_ranks(3, LIMIT, |group| {
        take_part(group, begin, table(1).into(), |trainer| {
            trainer.step()?;
            trainer.abandon("no space left on device");
            Err(Error::Interrupted)
        })
    });
    let found = errors(found);
    assert!(found[1..].iter().all(|error| error == "rank 0 ended: no space left on device"), "{found:?}");
    assert!(start.elapsed() < LIMIT / 2, "somebody waited");
}

/// A rank that is there and does not answer, as behind a cut link: the others end within the limit, with what they waited for.
#[test]
fn nobody_waits_for_ever() {
    let limit = Duration::from_millis(300);
    let config = rows(Family::RealNvp);
    let start = Instant::now();
    let found = errors(on_ranks(3, limit, |group| {
        if group.rank() == 1 {
            await_run(&*group)?;
            std::thread::sleep(4 * limit);
            return Err(Error::Interrupted);
        }
        take_part(group, || Ok(trainer(&config, 5)), source(&config), run)
    }));
    let waited = |error: &String| error.contains("did not answer");
    assert!(waited(&found[0]) || found[0].starts_with("rank 2 ended"), "{found:?}");
    assert!(waited(&found[2]) || found[2].starts_with("rank 0 ended"), "{found:?}");
    assert!(waited(&found[0]) || waited(&found[2]), "{found:?}");
    assert!(start.elapsed() < 60 * limit);
}

#[test]
fn differences_are_named() {
    for error in on_ranks(4, LIMIT, |group| {
        let own = [u8::from(group.rank() % 2 == 1)];
        collective::check_same(&*group, "the programs differ", &own).expect_err("two have another one")
    }) {
        assert_eq!(error.to_string(), "the programs differ on rank 0 and on ranks 1, 3");
        assert!(matches!(error, GroupError::Differ { differing, .. } if differing == [1, 3]));
    }
}
