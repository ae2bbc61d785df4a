//! The top of the report: what was learnt from what, how good it is beside simpler models, and how training went.

use std::fmt::Write as _;
use std::time::Duration;

use super::Evidence;
use super::axis::{Axis, count, number};
use super::page::{escape, figure, grid, paragraph, section, table};
use super::statistic::{quantile, sorted};
use super::svg::{Panel, thinned};

/// Points of a curve.
const POINTS: usize = 500;

/// What was learnt from what.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The data's name, as it was typed.
    pub(crate) data: String,
    /// The directory of the run or the model's file.
    pub(crate) model: String,
    /// The kind of model, in words.
    pub(crate) kind: String,
    /// Trained numbers.
    pub(crate) parameters: u64,
    /// Rows that were trained on; none where that is not known or has no end.
    pub(crate) training_rows: Option<usize>,
    pub(crate) held_out_rows: usize,
    /// What there is to say of the rows, where they may not be those of the training.
    pub(crate) note: Option<&'static str>,
    pub(crate) steps: u64,
    pub(crate) seconds: Option<f64>,
    pub(crate) seed: u64,
    pub(crate) precision: &'static str,
    /// The command that fits the same again.
    pub(crate) command: String,
    /// Flags that later commands on the data need, with a space before each.
    pub(crate) flags: String,
    pub(crate) history: Vec<Point>,
    pub(crate) ladder: Option<Ladder>,
}

/// A logged step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) step: u64,
    /// Nats a row, −log p on the batch.
    pub(crate) training: f64,
    /// Nats a row on held-out rows, and the standard error.
    pub(crate) validation: Option<[f64; 2]>,
}

/// Models of the same held-out rows, from the simplest to the one that was kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ladder {
    pub(crate) rungs: Vec<Rung>,
}

/// A model and how well it does.
#[derive(Debug, Clone)]
pub(crate) struct Rung {
    pub(crate) name: String,
    /// Mean log p of held-out rows, nats, and its standard error.
    pub(crate) log_p: f64,
    pub(crate) standard_error: Option<f64>,
}

/// The heading and the figures below it.
pub(super) fn lead(facts: &Facts, evidence: &Evidence) -> String {
    let d = evidence.dimension();
    let rows = match (facts.training_rows, evidence.excerpt.all) {
        (Some(trained), _) => {
            format!("{} rows of training, {} held out", count(trained), count(facts.held_out_rows))
        }
        (_, Some(all)) => format!("{} rows", count(all)),
        (_, None) => "points drawn anew at every step".to_owned(),
    };
    let mut lead = format!(
        "A {} of {} trained numbers, {} of {} column{}.",
        escape(&facts.kind),
        count(usize::try_from(facts.parameters).unwrap_or(usize::MAX)),
        rows,
        count(d),
        if d == 1 { "" } else { "s" }
    );
    if let Some(note) = facts.note {
        let _ = write!(lead, " <strong>{}</strong>", escape(note));
    }
    if evidence.excerpt.weighted {
        lead.push_str(" Rows were drawn by their weights.");
    }
    if evidence.lost_samples > 0 {
        let _ = write!(lead, " {} samples came out infinite and were left out.", count(evidence.lost_samples));
    }
    let mut out =
        format!("<header><h1>{}</h1><p class=\"lead\">{lead}</p></header>\n<dl class=\"tiles\">", escape(&facts.data));
    let mut tile = |what: &str, value: String, unit: &str| {
        let _ = write!(out, "<div><dt>{what}</dt><dd>{value} <small>{unit}</small></dd></div>");
    };
    if let Some([mean, error]) = mean(&evidence.scores.held_out) {
        tile("log p of held-out rows", number(mean, 4), &format!("± {} nats", number(error, 2)));
    }
    if let Some([mean, error]) = mean(&evidence.sample_scores) {
        tile("log p of its own samples", number(mean, 4), &format!("± {} nats", number(error, 2)));
    }
    tile("steps", count(facts.steps as usize), "");
    if let Some(seconds) = facts.seconds {
        tile("time", time(seconds), "");
    }
    tile("seed", facts.seed.to_string(), facts.precision);
    out.push_str("</dl>\n");
    out
}

fn time(seconds: f64) -> String {
    if seconds < 100.0 {
        return format!("{} s", number(seconds, 3));
    }
    crate::progress::clock(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The mean and its standard error; none of fewer than two values, and where a value is infinite.
fn mean(values: &[f64]) -> Option<[f64; 2]> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let error = (variance / n).sqrt();
    (values.len() > 1 && error.is_finite()).then_some([mean, error])
}

/// The section on the ladder and on training.
pub(super) fn draw(facts: &Facts) -> String {
    let ladder = facts.ladder.as_ref().map(rungs).filter(|html| !html.is_empty());
    let parts: Vec<String> = ladder.into_iter().chain(curve(&facts.history, facts.steps)).collect();
    let body = if parts.is_empty() { String::new() } else { grid("halves", &parts) };
    if body.is_empty() { body } else { section("training", "How good it is", &body) }
}

fn rungs(ladder: &Ladder) -> String {
    let first = ladder.rungs.first().map_or(f64::NAN, |rung| rung.log_p);
    let rows: Vec<Vec<String>> = ladder
        .rungs
        .iter()
        .map(|rung| {
            let error = rung.standard_error.map_or(String::new(), |e| format!(" ± {}", number(e, 2)));
            let more = if rung.log_p == first { "–".to_owned() } else { number(rung.log_p - first, 3) };
            vec![escape(&rung.name), format!("{}{error}", number(rung.log_p, 5)), more]
        })
        .collect();
    let caption = "Mean log p of held-out rows, nats a row; more is better, and a nat is a factor e in the density.";
    match rows.len() {
        0 => String::new(),
        1 => table(caption, &["model", "log p"], &[rows[0][..2].to_vec()]),
        _ => table(caption, &["model", "log p", "gained"], &rows),
    }
}

/// The curve of training and validation.
fn curve(history: &[Point], kept: u64) -> Option<String> {
    let training: Vec<[f64; 2]> =
        history.iter().map(|p| [p.step as f64, p.training]).filter(|p| p[1].is_finite()).collect();
    let validation: Vec<[f64; 3]> =
        history.iter().filter_map(|p| p.validation.map(|[nll, error]| [p.step as f64, nll, error])).collect();
    let last = history.last()?.step as f64;
    if training.len() + validation.len() < 3 {
        return None;
    }
    // the beginning may lie above the picture, and so may a run that explodes
    let late = training.iter().filter(|p| p[0] >= 0.1 * last).map(|p| p[1]);
    let late = sorted(&late.chain(validation.iter().filter(|p| p[0] >= 0.1 * last).map(|p| p[1])).collect::<Vec<_>>());
    // not always the lowest: only what is significantly better replaces the best so far
    let best = validation.iter().copied().find(|p| p[0] == kept as f64);
    let (low, high) = (quantile(&late, 0.0), quantile(&late, 0.98));
    let [low, high] = best.map_or([low, high], |[_, nll, error]| [low.min(nll - error), high.max(nll + 3.0 * error)]);
    let y = Axis::new(low, high).padded(0.06);
    let mut panel = Panel::new([470.0, 280.0], Axis::new(0.0, last), y, true).with_margins(16.0, 16.0);
    panel.line("data", thinned(&training, POINTS));
    panel.line("held", thinned(&validation, POINTS).into_iter().map(|[step, nll, _]| [step, nll]));
    panel.dots("held dots", best.map(|[step, nll, _]| [step, nll]));
    panel.axes(true, "step", "−log p, nats a row");
    let kept = best.map_or(String::new(), |[step, nll, _]| {
        format!("; the model is that after step {step}, {} (dot)", number(nll, 5))
    });
    let caption = "<b class=\"name\">Training</b> — the batches blue, the held-out rows green".to_owned() + &kept;
    Some(figure(
        &caption,
        &panel.finish(&format!("−log p of training batches and of held-out rows over {last} steps{kept}")),
    ))
}

/// How to go on.
pub(super) fn further(facts: &Facts) -> String {
    let (model, data, flags) = (quoted(&facts.model), quoted(&facts.data), &facts.flags);
    let lines = [
        format!(
            "resflow score {model} NEW.csv --out scores.csv --contamination 0.01   # log p, percentile and a flag for each row"
        ),
        format!("resflow sample {model} -n 1000 --out samples.csv                      # rows like these"),
        format!("resflow inspect {model}                                               # what the model is made of"),
        format!("resflow report {model} {data}{flags} --out report.html                # this page again"),
    ];
    let mut body = format!("<pre><code>{}</code></pre>", escape_lines(&lines));
    if !facts.command.is_empty() {
        body = paragraph(&format!("The fit was <code>{}</code>.", escape(&facts.command))) + &body;
    }
    let version = env!("CARGO_PKG_VERSION");
    let _ =
        write!(body, "<p class=\"note\">Written by resflow {version}. The page is one file that loads nothing.</p>");
    section("further", "How to go on", &body)
}

fn escape_lines(lines: &[String]) -> String {
    lines.iter().map(|line| escape(line)).collect::<Vec<_>>().join("\n")
}

/// A word of a command line, quoted if a shell would not take it as it is.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explosion_does_not_flatten_the_curve() {
        let point = |step: u64, validation| Point { step, training: 5.0 - step as f64 / 100.0, validation };
        let mut history: Vec<Point> = (1..100).map(|i| point(i, (i % 10 == 0).then_some([4.0, 0.1]))).collect();
        history.push(point(100, Some([8e4, 1e3])));
        let picture = curve(&history, 50).expect("a curve");
        assert!(picture.contains("after step 50") && !picture.contains("80000"), "{picture}");
        assert!(curve(&history[..1], 1).is_none() && curve(&[], 0).is_none());
        let mut odd = history.clone();
        for point in &mut odd {
            point.training = f64::NAN;
        }
        assert!(curve(&odd, 50).is_some_and(|p| !p.contains("NaN")));
    }

    #[test]
    fn a_ladder_says_what_each_rung_gains() {
        let rung = |name: &str, log_p| Rung { name: name.into(), log_p, standard_error: Some(0.5) };
        let ladder = Ladder { rungs: vec![rung("Gaussian <1>", -20.0), rung("flow", -18.5)] };
        let html = rungs(&ladder);
        assert!(html.contains("Gaussian &lt;1&gt;") && html.contains("<td>1.5</td>"), "{html}");
        assert!(rungs(&Ladder::default()).is_empty());
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("run/1"), "run/1");
        assert_eq!(quoted("it's; rm"), "'it'\\''s; rm'");
        assert_eq!(quoted(""), "''");
    }
}
