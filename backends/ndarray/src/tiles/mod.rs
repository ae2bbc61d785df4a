//! Products of f32 by what multiplies bf16 and adds in f32, Intel's matrix unit (AMX) or AVX-512's dot products of pairs ([`unit`]):
//! an operand is a sum of one to three bf16 numbers ([`pack`]), a product the sum of one, three or six of theirs.
//!
//! With three parts a product is as accurate as one in f32, with two the error is 2e−6 of |row| |column|, with one 1e−3.
//! Numbers that are none, infinite, or rounded to an infinity make no such sum: a product with one is left to f32. What is
//! below 1e−30 loses digits, since both take subnormal numbers for zero.

use std::sync::OnceLock;

use resflow_backend::Products;

#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(target_arch = "x86_64")]
pub(crate) mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod unit;

#[cfg(target_arch = "x86_64")]
pub(crate) use product::{Packed, chain, multiply};

/// A right operand, packed: nothing on other architectures.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug)]
pub(crate) struct Packed;

/// A product of a chain, x ↦ (x ∘ factors)·b with b `[k, n]`.
pub(crate) struct Link<'a, E> {
    pub(crate) b: &'a [E],
    pub(crate) packed: Option<&'a OnceLock<Packed>>,
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// What the rows are multiplied by first, `[rows, k]`.
    pub(crate) factors: Option<&'a [E]>,
}

/// The summands of an operand; 0 if these products are none of bf16.
pub(crate) fn parts(products: Products) -> usize {
    match products {
        Products::Bf16 => 1,
        Products::Bf16x3 => 2,
        Products::Bf16x6 => 3,
        _ => 0,
    }
}

/// Whether this machine multiplies bf16, and lets the process use that.
pub(crate) fn are_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return unit::kind().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
