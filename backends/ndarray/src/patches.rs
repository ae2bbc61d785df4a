//! Patches of one image as the rows of a matrix, and the adjoint: the two halves of a convolution besides its product.
//!
//! P(x)[(i, j), (a, b, c)] = x[i + a − p, j + b − q, c], zero outside the image, and
//! Pᵀ(m)[i, j, c] = Σ m[(i + p − a, j + q − b), (a, b, c)], summed over taps (a, b) in row-major order.

use std::ops::Range;

use crate::CpuElement;
use crate::simd::{Level, kernel};

/// Elements copied at once.
const BLOCK: usize = 16;

/// Which patches an image has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    /// Height and width.
    pub(crate) image: [usize; 2],
    /// Patches down and across.
    pub(crate) count: [usize; 2],
    /// Height and width of a patch.
    pub(crate) kernel: [usize; 2],
    /// Zeros above and to the left; less than none where patches start within the image.
    pub(crate) padding: [isize; 2],
    pub(crate) channels: usize,
}

impl Windows {
    /// Elements of a patch.
    pub(crate) fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Patches of the image.
    pub(crate) fn patches(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// Elements of the image.
    pub(crate) fn elements(&self) -> usize {
        self.image[0] * self.image[1] * self.channels
    }

    /// Height and width of what the patches cover: the image, less or more at its borders.
    fn covered(&self) -> [usize; 2] {
        [self.count[0] + self.kernel[0] - 1, self.count[1] + self.kernel[1] - 1]
    }

    /// Elements of scratch memory that [`Self::gather`] needs.
    pub(crate) fn scratch(&self) -> usize {
        if self.inside() { 0 } else { self.covered().iter().product::<usize>() * self.channels }
    }

    fn inside(&self) -> bool {
        self.padding == [0, 0] && self.covered() == self.image
    }

    /// P(x); no extent is zero.
    pub(crate) fn gather<E: CpuElement>(&self, level: Level, x: &[E], scratch: &mut [E], patches: &mut [E]) {
        if self.inside() {
            return copy_windows(level, self, x, patches);
        }
        // with the zeros in place no patch is a special case
        self.cover(x, scratch);
        copy_windows(level, self, scratch, patches);
    }

    /// The image with its padding.
    fn cover<E: CpuElement>(&self, x: &[E], out: &mut [E]) {
        let (c, width, [_, across]) = (self.channels, self.image[1], self.covered());
        let columns = overlap(across, width, self.padding[1]);
        for (i, row) in out.chunks_exact_mut(across * c).enumerate() {
            match shifted(i, self.padding[0]).filter(|&i| i < self.image[0]) {
                Some(i) if !columns.is_empty() => {
                    let first = shifted(columns.start, self.padding[1]).expect("`overlap` starts within the image");
                    let from = (i * width + first) * c;
                    row[..columns.start * c].fill(E::ZERO);
                    row[columns.start * c..columns.end * c].copy_from_slice(&x[from..from + columns.len() * c]);
                    row[columns.end * c..].fill(E::ZERO);
                }
                _ => row.fill(E::ZERO),
            }
        }
    }

    /// Pᵀ(patches); no extent is zero.
    pub(crate) fn scatter<E: CpuElement>(&self, level: Level, patches: &[E], x: &mut [E]) {
        add_windows(level, self, patches, x);
    }
}

/// i − shift, unless it is negative.
fn shifted(i: usize, shift: isize) -> Option<usize> {
    i.checked_add_signed(-shift)
}

/// The i below `extent` whose i − shift is in `0..of`.
fn overlap(extent: usize, of: usize, shift: isize) -> Range<usize> {
    let start = shift.clamp(0, extent as isize);
    let end = (of as isize + shift).clamp(start, extent as isize);
    start as usize..end as usize
}

kernel! {
    /// Rows of a patch are contiguous in an image without special cases at its borders.
    fn copy_windows<E>(w: &Windows, image: &[E], patches: &mut [E]) {
        if w.kernel[1] * w.channels <= 4 {
            copy_rows::<E, 4>(w, image, patches);
        } else {
            copy_rows::<E, BLOCK>(w, image, patches);
        }
    }
}

#[inline(always)]
fn copy_rows<E: CpuElement, const N: usize>(w: &Windows, image: &[E], patches: &mut [E]) {
    let (c, run) = (w.channels, w.kernel[1] * w.channels);
    let across = w.covered()[1] * c;
    let mut at = 0;
    for i in 0..w.count[0] {
        for j in 0..w.count[1] {
            for a in 0..w.kernel[0] {
                let from = (i + a) * across + j * c;
                let mut done = 0;
                // whole blocks: what they copy beyond the run, later runs overwrite
                while done < run {
                    let (from, at) = (from + done, at + done);
                    if from + N <= image.len() && at + N <= patches.len() {
                        let mut block = [E::ZERO; N];
                        block.copy_from_slice(&image[from..from + N]);
                        patches[at..at + N].copy_from_slice(&block);
                    } else {
                        let rest = (run - done).min(N);
                        patches[at..at + rest].copy_from_slice(&image[from..from + rest]);
                    }
                    done += N;
                }
                at += run;
            }
        }
    }
}

kernel! {
    /// See [`Windows::scatter`].
    fn add_windows<E>(w: &Windows, patches: &[E], x: &mut [E]) {
        match w.channels {
            1 => add_taps::<E, 1>(w, patches, x),
            2 => add_taps::<E, 2>(w, patches, x),
            3 => add_taps::<E, 3>(w, patches, x),
            4 => add_taps::<E, 4>(w, patches, x),
            8 => add_taps::<E, 8>(w, patches, x),
            12 => add_taps::<E, 12>(w, patches, x),
            16 => add_taps::<E, 16>(w, patches, x),
            _ => add_taps::<E, 0>(w, patches, x),
        }
    }
}

/// C is the number of channels, or 0 for any number.
#[inline(always)]
fn add_taps<E: CpuElement, const C: usize>(w: &Windows, patches: &[E], x: &mut [E]) {
    let (c, patch, width) = (if C == 0 { w.channels } else { C }, w.patch(), w.image[1]);
    for (i, row) in x.chunks_exact_mut(width * c).enumerate() {
        row.fill(E::ZERO);
        for a in 0..w.kernel[0] {
            let Some(down) = shifted(i, a as isize - w.padding[0]).filter(|&i| i < w.count[0]) else { continue };
            for b in 0..w.kernel[1] {
                let shift = b as isize - w.padding[1];
                let columns = overlap(width, w.count[1], shift);
                let Some(across) = shifted(columns.start, shift).filter(|_| !columns.is_empty()) else { continue };
                // the row's sums of one tap after the other: faster than one pixel's sum of all taps
                let from = (down * w.count[1] + across) * patch + (a * w.kernel[1] + b) * c;
                let sums = row[columns.start * c..columns.end * c].chunks_exact_mut(c);
                for (sum, terms) in sums.zip(patches[from..].chunks(patch)) {
                    sum.iter_mut().zip(&terms[..c]).for_each(|(s, &t)| *s += t);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every level against the definition: windows within, beyond and at the edge of images, with blocks that overshoot.
    #[test]
    fn definition() {
        for c in [1, 2, 3, 5, 12, 17] {
            for (image, kernel, padding) in [
                ([4, 5], [3, 3], [1, 1]),
                ([5, 4], [2, 3], [0, 2]),
                ([1, 1], [3, 3], [1, 1]),
                ([6, 7], [3, 1], [-1, -2]),
                ([3, 2], [1, 4], [2, 3]),
                ([3, 3], [3, 3], [0, 0]),
                ([1, 1], [1, 1], [3, 2]),
            ] {
                let count: [usize; 2] =
                    std::array::from_fn(|i| (image[i] as isize + 2 * padding[i]) as usize + 1 - kernel[i]);
                let w = Windows { image, count, kernel, padding, channels: c };
                let x: Vec<f32> = (0..w.elements()).map(|i| i as f32 + 1.0).collect();
                let m: Vec<f32> = (0..w.patches() * w.patch()).map(|i| (i * 37 % 101) as f32).collect();
                let (mut gathered, mut scattered) = (vec![0.0; m.len()], vec![0.0; x.len()]);
                let mut at = 0;
                for (i, j) in (0..count[0]).flat_map(|i| (0..count[1]).map(move |j| (i, j))) {
                    for (a, b) in (0..kernel[0]).flat_map(|a| (0..kernel[1]).map(move |b| (a, b))) {
                        let y = shifted(i + a, padding[0]).filter(|&y| y < image[0]);
                        let z = shifted(j + b, padding[1]).filter(|&z| z < image[1]);
                        for l in 0..c {
                            if let Some((y, z)) = y.zip(z) {
                                gathered[at] = x[(y * image[1] + z) * c + l];
                                scattered[(y * image[1] + z) * c + l] += m[at];
                            }
                            at += 1;
                        }
                    }
                }
                for level in Level::available() {
                    let (mut patches, mut scratch) = (vec![f32::NAN; m.len()], vec![f32::NAN; w.scratch()]);
                    w.gather(level, &x, &mut scratch, &mut patches);
                    assert_eq!(patches, gathered, "{w:?} {level:?}");
                    let mut sums = vec![f32::NAN; x.len()];
                    w.scatter(level, &m, &mut sums);
                    // sums of small whole numbers are exact in any order
                    assert_eq!(sums, scattered, "{w:?} {level:?}");
                }
            }
        }
    }
}
