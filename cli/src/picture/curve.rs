//! Bits per dimension of training and validation over the steps.

use image::RgbImage;

use crate::picture::canvas::{Axes, Canvas};

const TRAINING: [u8; 3] = [80, 110, 180];
const VALIDATION: [u8; 3] = [200, 60, 40];

/// The curve of points [step, bits/dim], where training has at least two. The beginning may lie above the picture: its
/// height is that of the last nine tenths of the run. The numbers may be upper bounds.
pub(crate) fn draw(training: &[[f64; 2]], validation: &[[f64; 2]], is_bound: bool) -> Option<RgbImage> {
    let last = training.last().filter(|_| training.len() > 1)?[0];
    let late = || training.iter().chain(validation).filter(|p| p[0] >= 0.1 * last).map(|p| p[1]);
    let (low, high) = (late().fold(f64::INFINITY, f64::min), late().fold(f64::NEG_INFINITY, f64::max));
    let margin = 0.06 * (high - low).max(1e-3);
    let axes = Axes { x: [0.0, last], y: [low - margin, high + margin] };
    let mut canvas = Canvas::new();
    for &point in training {
        canvas.dot(axes.place(point), TRAINING, 1.0);
    }
    for pair in validation.windows(2) {
        canvas.line(axes.place(pair[0]), axes.place(pair[1]), VALIDATION, 0.5);
    }
    for &point in validation {
        canvas.dot(axes.place(point), VALIDATION, 1.0);
    }
    let title = if is_bound { "bits/dim at most (red: validation)" } else { "bits/dim (red: validation)" };
    Some(canvas.finish(title, &axes))
}
