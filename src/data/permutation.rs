//! Shuffling by key.

use resflow_backend::Key;

/// Draws a permutation of 0, …, n − 1 that is a function of the key (Fisher and Yates), every one with the same
/// probability but for at most n / 2⁶⁴ a draw.
///
/// ```
/// use resflow::{backend::Key, data::permutation};
/// let mut order = permutation(5, Key::new(1));
/// assert_eq!(order, permutation(5, Key::new(1)));
/// order.sort_unstable();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// ```
pub fn permutation(n: usize, key: Key) -> Vec<usize> {
    use rand::Rng as _;
    let mut generator = key.generator();
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}
