//! The product of two packed blocks, 32 rows by 32 columns: on the matrix unit four tiles of sums, else by [`pairs`].
//!
//! Of the products of parts the smallest are left out: with two parts x₁y₁, with three those of order three and more.
#![allow(unsafe_code)]

use std::arch::asm;

use super::pack::{BLOCK, Line, SIDE};
use super::pairs;
use super::unit::{Configured, Multiplier};

/// The bytes of a tile.
const TILE: usize = SIDE * 64;

/// Products of both tiles in tmm4, tmm5 with both in tmm6, tmm7, added to the sums of two tiles of columns
macro_rules! multiply {
    (2) => {
        "tdpbf16ps tmm0,tmm4,tmm6\ntdpbf16ps tmm1,tmm4,tmm7\ntdpbf16ps tmm2,tmm5,tmm6\ntdpbf16ps tmm3,tmm5,tmm7\n"
    };
    (1) => {
        "tdpbf16ps tmm0,tmm4,tmm6\ntdpbf16ps tmm2,tmm5,tmm6\n"
    };
}

macro_rules! left {
    ($part:literal) => {
        concat!("tileloadd tmm4,[{a}+{s}+", $part, "*2048]\ntileloadd tmm5,[{a}+{s}+", $part, "*2048+1024]\n")
    };
}

macro_rules! right {
    (2, $part:literal) => {
        concat!("tileloadd tmm6,[{b}+{s}+", $part, "*2048]\ntileloadd tmm7,[{b}+{s}+", $part, "*2048+1024]\n")
    };
    (1, $part:literal) => {
        concat!("tileloadd tmm6,[{b}+{s}+", $part, "*2048]\n")
    };
}

/// What is done at each depth, for a number of parts and of tiles of columns.
macro_rules! step {
    (1, $n:tt) => {
        concat!(left!(0), right!($n, 0), multiply!($n))
    };
    (2, $n:tt) => {
        concat!(left!(0), right!($n, 1), multiply!($n), right!($n, 0), multiply!($n), left!(1), multiply!($n))
    };
    (3, $n:tt) => {
        concat!(
            left!(0),
            right!($n, 2),
            multiply!($n),
            right!($n, 1),
            multiply!($n),
            right!($n, 0),
            multiply!($n),
            left!(2),
            multiply!($n),
            left!(1),
            multiply!($n),
            right!($n, 1),
            multiply!($n)
        )
    };
}

macro_rules! store {
    (2) => {
        "tilestored [{c}+{l}],tmm0\ntilestored [{e}+{l}],tmm1\ntilestored [{d}+{l}],tmm2\ntilestored [{f}+{l}],tmm3\n"
    };
    (1) => {
        "tilestored [{c}+{l}],tmm0\ntilestored [{d}+{l}],tmm2\n# {e} {f}\n"
    };
}

macro_rules! load {
    (2) => {
        "tileloadd tmm0,[{c}+{l}]\ntileloadd tmm1,[{e}+{l}]\ntileloadd tmm2,[{d}+{l}]\ntileloadd tmm3,[{f}+{l}]\n"
    };
    (1) => {
        "tileloadd tmm0,[{c}+{l}]\ntileloadd tmm2,[{d}+{l}]\n"
    };
}

macro_rules! product {
    ($parts:tt, $n:tt, $a:expr, $b:expr, [$c:expr, $d:expr, $e:expr, $f:expr], $row:expr, $depths:expr, $add:expr) => {
        asm!(
            "test {add},{add}",
            "jnz 3f",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "jmp 2f",
            "3:",
            load!($n),
            "2:",
            step!($parts, $n),
            concat!("add {a},", $parts, "*2048"),
            concat!("add {b},", $parts, "*2048"),
            "dec {k}",
            "jnz 2b",
            store!($n),
            a = inout(reg) $a => _, b = inout(reg) $b => _, k = inout(reg) $depths => _,
            add = in(reg) $add, c = in(reg) $c, d = in(reg) $d, e = in(reg) $e, f = in(reg) $f, l = in(reg) $row, s = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

/// Where the sums of a block go: 32 rows, and one or two tiles of columns that begin at these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) stride: usize,
    pub(crate) columns: [usize; 2],
    pub(crate) tiles: usize,
    /// Whether they are added to what is there.
    pub(crate) accumulate: bool,
}

/// Makes the product of a block of rows and a block of columns, packed in PARTS parts of as many depths.
pub(crate) fn product<const PARTS: usize>(
    by: &Multiplier,
    a: &[Line],
    b: &[Line],
    depths: usize,
    out: &mut [f32],
    place: Place,
) {
    let lines = depths * PARTS * BLOCK;
    assert!(depths > 0 && a.len() >= lines && b.len() >= lines, "tiles: an operand is too short");
    let Place { stride, columns, tiles, .. } = place;
    assert!((1..=2).contains(&tiles), "tiles: {tiles} tiles of columns");
    for &column in &columns[..tiles] {
        assert!(
            column + SIDE <= stride && (BLOCK - 1) * stride + column + SIDE <= out.len(),
            "tiles: no room for sums"
        );
    }
    let (a, b) = (&a[..lines], &b[..lines]);
    // SAFETY: operands have the lines of their depths, at least one, and `out` has room for 32 rows of the tiles of columns.
    unsafe {
        match by {
            Multiplier::Matrices(configured) => by_matrices::<PARTS>(configured, a, b, depths, out, place),
            Multiplier::Pairs(found) => pairs::product::<PARTS>(*found, a, b, out, place),
        }
    }
}

/// The product on the matrix unit.
///
/// # Safety
/// Operands have the lines of their depths, at least one, and `out` has room for 32 rows of the tiles of columns.
unsafe fn by_matrices<const PARTS: usize>(
    _unit: &Configured,
    a: &[Line],
    b: &[Line],
    depths: usize,
    out: &mut [f32],
    place: Place,
) {
    let Place { stride, columns, tiles, accumulate } = place;
    let (a, b, row) = (a.as_ptr(), b.as_ptr(), stride * size_of::<f32>());
    let first = out.as_mut_ptr();
    let at = |line: usize, column: usize| first.wrapping_add(line * stride + column);
    let c = [at(0, columns[0]), at(SIDE, columns[0]), at(0, columns[1]), at(SIDE, columns[1])];
    let add = u64::from(accumulate);
    // SAFETY: the unit is configured for tiles of 16 rows by 64 bytes as long as `_unit` lives; what is read are the lines of
    // a and of b, what is written 32 rows of one or two tiles of columns of `out`, by the caller's promise.
    // Nothing stays in a tile behind the block.
    unsafe {
        match (PARTS, tiles) {
            (1, 2) => product!(1, 2, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            (1, _) => product!(1, 1, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            (2, 2) => product!(2, 2, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            (2, _) => product!(2, 1, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            (3, 2) => product!(3, 2, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            (3, _) => product!(3, 1, a, b, [c[0], c[1], c[2], c[3]], row, depths, add),
            _ => unreachable!("one to three parts"),
        }
    }
}

const _: () = assert!(TILE == 1024 && size_of::<Line>() == 64);
