//! --image-size: one size for all images, cut or padded about the centre.

/// The size that images are brought to.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Size {
    /// Cut or pad images about the centre to this height and width, such as 32x32; nothing is scaled
    #[arg(long, value_name = "HxW", value_parser = height_and_width)]
    pub(crate) image_size: Option<[usize; 2]>,
}

/// More pixels along an axis than any model takes.
const MOST: usize = 1 << 14;

fn height_and_width(text: &str) -> Result<[usize; 2], String> {
    let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=MOST).contains(n));
    let sides = text.split_once(['x', 'X', '×']).unwrap_or((text, text));
    match (number(sides.0), number(sides.1)) {
        (Some(height), Some(width)) => Ok([height, width]),
        _ => Err(format!("expected a height and a width in pixels, 1 to {MOST}, such as 32x32")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_two_numbers_or_one() {
        for (text, size) in [("32x20", [32, 20]), ("7", [7, 7]), ("8X 9", [8, 9]), ("8×9", [8, 9])] {
            assert_eq!(height_and_width(text), Ok(size), "{text}");
        }
        for text in ["", "x", "0x3", "3x-1", "3x4x5", "99999", "a"] {
            assert!(height_and_width(text).is_err(), "{text}");
        }
    }
}
