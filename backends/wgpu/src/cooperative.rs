//! Text of matrix products on cooperative matrices, the matrix units of a GPU ("tensor cores"), which a subgroup uses together.
//!
//! The units take half-precision operands and add in single precision. [`Split::F16`] rounds each operand to half precision.
//! [`Split::F16x3`] writes it as `hi + lo / 2048` with both parts in half precision, 22 bits together, and adds the three
//! products that matter, `hi hi + (hi lo + lo hi) / 2048`: about as accurate as a product in single precision.
//!
//! # Range
//!
//! Half precision ends at 65504 and loses bits below 6e-5, too small for gradients. So each step along k scales its tiles of A
//! and B by powers of two, which the workgroup finds itself, such that the largest magnitude of each lies in `[2^14, 2^15)`,
//! and undoes that, exactly, where it adds the step's product to the sum in single precision. No caller has to know the size of
//! its numbers. What remains:
//!
//! * Precision is relative to the largest magnitude in a tile (128 rows by 32 columns, say). `F16x3` keeps 22 bits of an element
//!   down to 2^-28 of that, and half precision's 11 down to 2^-39; `F16` keeps 11 bits down to 2^-28. Smaller ones fade out. So
//!   with `F16x3` a row or column that is 2^16 times smaller than others in its tile is as accurate as they are; at 2^24 times
//!   its relative error is some 1e-6, at 2^32 times some 5e-5.
//! * An infinity or NaN does not count in the scale, and reaches the elements of the product that it reaches in single
//!   precision; with `F16x3` always as NaN, with `F16` as infinity or NaN. Other elements are as if it were not there.
//! * Tiles whose largest magnitudes multiply to 2^156 or more (single precision ends at 2^128) overflow in whole columns of the
//!   product; below 2^-96 they lose bits gradually.
//!
//! Adding each step's product outside the matrix units costs little and gains accuracy: units are known that do not round to
//! nearest, and over a long k their error would grow with the number of steps.
//!
//! # What it needs
//!
//! The features `EXPERIMENTAL_COOPERATIVE_MATRIX`, `SHADER_F16` and `SUBGROUP`, and a subgroup size that is known beforehand.
//! Vulkan only: on Metal wgpu knows no fixed subgroup size, so that [`tiles`] is empty there, and the text would not do
//! either, as Metal's matrices have no operators.
#![allow(clippy::format_push_string)] // a few thousand bytes, once per kernel

/// The directives with which a module must begin.
pub(crate) const ENABLES: &str = "enable f16;\nenable wgpu_cooperative_matrix;\n";

/// Rounding of the operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    /// To half precision: one product.
    F16,
    /// To two numbers of half precision: three products, accurate like single precision.
    F16x3,
}

/// How a workgroup computes its tile of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CooperativeTile {
    /// Side of the cooperative matrices: 8 or 16.
    pub(crate) coop: u32,
    /// Rows of the output, a multiple of `coop * warps[0]`.
    pub(crate) rows: u32,
    /// Columns of the output, a multiple of `coop * warps[1]`.
    pub(crate) columns: u32,
    /// Summands of one step, a multiple of `coop`.
    pub(crate) depth: u32,
    /// Subgroups along the rows and along the columns.
    pub(crate) warps: [u32; 2],
    /// Threads of a subgroup.
    pub(crate) subgroup: u32,
    /// Whether A's neighbours in memory are neighbours in m, not in k, and B's in k, not in n. For speed only: neighbouring
    /// threads load neighbours in memory.
    pub(crate) transposed: [bool; 2],
}

impl CooperativeTile {
    /// Threads of a workgroup.
    pub(crate) fn threads(&self) -> u32 {
        self.warps[0] * self.warps[1] * self.subgroup
    }

    /// Bytes of workgroup memory. Nobody else compares them with the device's limit: wgpu does not.
    pub(crate) fn shared_bytes(&self, split: Split) -> u32 {
        let parts = if split == Split::F16x3 { 2 } else { 1 };
        let operands: u32 = self.operands().iter().map(Operand::pairs_stored).sum();
        let warps = self.warps[0] * self.warps[1];
        operands * 4 * parts + warps * (self.coop * self.coop * 4 + 8)
    }

    fn operands(&self) -> [Operand; 2] {
        let make = |name, index: &'static str, along: u32, transposed| Operand {
            name,
            // columns in memory are those of the matrix or, if it is transposed, its rows
            shape: if (name == 'a') == transposed { [self.depth, along] } else { [along, self.depth] },
            index: if (name == 'a') == transposed { ["k", index] } else { [index, "k"] },
            load: if transposed { "coopLoad" } else { "coopLoadT" },
        };
        [make('a', "m", self.rows, self.transposed[0]), make('b', "n", self.columns, self.transposed[1])]
    }
}

/// The tile of an operand in workgroup memory, in pairs of neighbours.
struct Operand {
    name: char,
    /// Lines, and elements of a line.
    shape: [u32; 2],
    /// Names of the matrix's index along the lines' order and along a line.
    index: [&'static str; 2],
    load: &'static str,
}

impl Operand {
    /// Pairs from a line to the next: 16 bytes more than a line, for fewer bank conflicts with the alignment that loads need.
    fn stride(&self) -> u32 {
        self.shape[1] / 2 + 4
    }

    fn pairs_stored(&self) -> u32 {
        self.shape[0] * self.stride()
    }

    fn pairs(&self) -> u32 {
        self.shape[0] * self.shape[1] / 2
    }

    /// The workgroup variables, `tile_load_x` (two elements) and `tile_put_x` (which rounds and stores them).
    fn text(&self, split: Split) -> String {
        let (x, size, stride, half) = (self.name, self.pairs_stored(), self.stride(), self.shape[1] / 2);
        let [line, within] = self.index;
        let other = if x == 'a' { "m" } else { "n" };
        let load = |along: &str, k: &str| {
            if x == 'a' { format!("load_a({along}, {k})") } else { format!("load_b({k}, {along})") }
        };
        let first = load(other, "k");
        let (guard, second) = if within == "k" {
            ("if k + 1u < end", load(other, "k + 1u")) // the slice may end between the two
        } else {
            ("if k < end", load(&format!("{other} + 1u"), "k"))
        };
        let mut text = format!("var<workgroup> tile_hi_{x}: array<vec2<f16>, {size}>;\n");
        let put = if split == Split::F16x3 {
            text += &format!("var<workgroup> tile_lo_{x}: array<vec2<f16>, {size}>;\n");
            // By masks, as a compiler may take f32(f16(v)) for v. To the nearest: a lo of either sign has half the error, and
            // the product lo lo, which is left out, the mean 0. No hi where it would be subnormal: lo alone has more bits.
            format!(
                "    let bits = (bitcast<vec2<u32>>(v) + 0x1000u) & vec2(0xffffe000u);
    let hi = select(bitcast<vec2<f32>>(bits), vec2(0.0), abs(v) < vec2(0.00006103515625));
    tile_hi_{x}[at] = vec2<f16>(hi);
    tile_lo_{x}[at] = vec2<f16>((v - hi) * 2048.0);\n"
            )
        } else {
            format!("    tile_hi_{x}[at] = vec2<f16>(v);\n")
        };
        text + &format!(
            "fn tile_load_{x}(pair: u32, {other}0: u32, k0: u32, end: u32) -> vec2<f32> {{
    let {line} = {line}0 + pair / {half}u;
    let {within} = {within}0 + pair % {half}u * 2u;
    var v = vec2(0.0);
    if k < end {{ v.x = {first}; }}
    {guard} {{ v.y = {second}; }}
    return v;
}}
fn tile_put_{x}(pair: u32, v: vec2<f32>) {{
    let at = pair / {half}u * {stride}u + pair % {half}u;
{put}}}\n"
        )
    }

    /// Statements that load the matrix `x{number}_{step}` (and its `lo`, `x{number}_{step}l`) from (number, step), counted in
    /// cooperative matrices; `base` is the text of the first element of the subgroup's part, along m or n.
    fn fragment(&self, coop: u32, split: Split, base: &str, number: u32, step: u32) -> String {
        let (x, load, stride) = (self.name, self.load, self.stride());
        let (along, k) = (format!("({base} + {}u)", number * coop), format!("{}u", step * coop));
        let (line, within) = if self.index[1] == "k" { (along, k) } else { (k, along) };
        let role = x.to_ascii_uppercase();
        let mut text = format!("        let o{x}{number}_{step} = {line} * {stride}u + {within} / 2u;\n");
        for (part, name) in [("hi", ""), ("lo", "l")].into_iter().take(if split == Split::F16x3 { 2 } else { 1 }) {
            text += &format!(
                "        let {x}{number}_{step}{name} = \
                 {load}<coop_mat{coop}x{coop}<f16, {role}>>(&tile_{part}_{x}[o{x}{number}_{step}], {stride}u);\n"
            );
        }
        text
    }
}

/// The tiles that an adapter can use where neither operand is transposed, by decreasing size of their part of the output and
/// depth; none where it has no fitting matrices.
///
/// `subgroup` has the least and the greatest subgroup size of `wgpu::AdapterInfo`, `properties` come from
/// `adapter.cooperative_matrix_properties()`. The largest tile is for products that have many of them.
pub(crate) fn tiles(
    properties: &[wgpu::CooperativeMatrixProperties],
    subgroup: [u32; 2],
    limits: &wgpu::Limits,
    split: Split,
) -> Vec<CooperativeTile> {
    let fits = |size: u32| {
        properties.iter().any(|entry| {
            // wgpu also lists shapes that WGSL has no types for
            [entry.m_size, entry.n_size, entry.k_size] == [size; 3]
                && entry.ab_type == wgpu::CooperativeScalarType::F16
                && entry.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    // warps is a matter of the text: of unknown size they could not share it
    let Some(coop) = [16, 8].into_iter().find(|&size| fits(size) && subgroup[0] == subgroup[1]) else {
        return Vec::new();
    };
    // in cooperative matrices, so with 16 x 16: 128 x 128 in steps of 32 where workgroup memory is large, of 16 in 32 KiB
    let shapes = [(8, 2, [4, 2]), (8, 1, [4, 2]), (4, 2, [2, 2]), (2, 2, [2, 1])];
    let mut found: Vec<CooperativeTile> = Vec::new();
    for (side, depth, warps) in shapes {
        let (rows, columns, depth, subgroup) = (side * coop, side * coop, depth * coop, subgroup[0]);
        let tile = CooperativeTile { coop, rows, columns, depth, warps, subgroup, transposed: [false; 2] };
        let fits = tile.shared_bytes(split) <= limits.max_compute_workgroup_storage_size
            && tile.threads() <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            && (coop * coop).is_multiple_of(subgroup)
            && tile.operands().iter().all(|operand| operand.pairs().is_multiple_of(tile.threads()));
        if fits {
            found.push(tile);
        }
    }
    found
}

/// Text of the workgroup variables and of the entry point `main`, whose workgroup (x, y, z) computes the output's tile with
/// first column `x * columns` and first row `y * rows`, summed over k from `z * p.k_slice` to the next slice or the end.
///
/// It follows, in a module that begins with [`ENABLES`], upon `var<immediate> p` with the members `k` and `k_slice`,
/// `load_a(m, k)` and `load_b(k, n)`, which give 0 outside the matrix, and `store(m, n, slice, value)`, which does nothing
/// outside the output. Its global names begin with `tile_`; the module must have none that are A, B or C.
///
/// # Panics
///
/// If the sizes of the tile do not divide as its fields say, or its threads do not share its elements evenly.
pub(crate) fn main_text(tile: &CooperativeTile, split: Split) -> String {
    let CooperativeTile { coop, rows, columns, depth, warps: [down, across], subgroup, .. } = *tile;
    let (threads, warps, size) = (tile.threads(), down * across, coop * coop);
    let operands = tile.operands();
    assert!(matches!(coop, 8 | 16) && depth.is_multiple_of(coop) && size.is_multiple_of(subgroup), "{tile:?}");
    assert!(rows.is_multiple_of(coop * down) && columns.is_multiple_of(coop * across), "{tile:?}");
    assert!(operands.iter().all(|operand| operand.pairs().is_multiple_of(threads)), "{tile:?}");
    let (high, wide, deep) = (rows / down / coop, columns / across / coop, depth / coop);
    let [count_a, count_b] = [0, 1].map(|x| operands[x].pairs() / threads);
    let each = |count: u32, make: &dyn Fn(u32) -> String| (0..count).map(make).collect::<String>();
    let loads = |from: &str| {
        let load =
            |x, base, i| format!("        {x}{i} = tile_load_{x}(thread + {}u, {base}, {from}, end);\n", i * threads);
        each(count_a, &|i| load('a', "m0", i)) + &each(count_b, &|i| load('b', "n0", i))
    };
    let puts =
        |x, count| each(count, &|i| format!("        tile_put_{x}(thread + {}u, {x}{i} * scale_{x});\n", i * threads));
    let peaks = |x, count| each(count, &|i| format!("        peak_{x} = max(peak_{x}, tile_key({x}{i}));\n"));

    let mut text = operands[0].text(split) + &operands[1].text(split);
    text += &format!(
        "var<workgroup> tile_out: array<f32, {out}>;
var<workgroup> tile_peak: array<vec2<u32>, {warps}>;
// In the upper byte, one more than the exponent of a magnitude, and 0 for infinities and NaN
fn tile_key(v: vec2<f32>) -> vec2<u32> {{ return (bitcast<vec2<u32>>(v) << vec2(1u)) + vec2(0x1000000u); }}
fn tile_power(exponent: i32) -> f32 {{ return bitcast<f32>(u32(exponent + 127) << 23u); }}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) warp: u32, @builtin(subgroup_invocation_id) lane: u32) {{
    let m0 = group.y * {rows}u;
    let n0 = group.x * {columns}u;
    let begin = group.z * p.k_slice;
    let end = min(p.k, begin + p.k_slice);
    let warp_m = warp / {across}u * {warp_rows}u;
    let warp_n = warp % {across}u * {warp_columns}u;\n",
        out = warps * size,
        warp_rows = high * coop,
        warp_columns = wide * coop,
    );
    for (x, count) in [('a', count_a), ('b', count_b)] {
        text += &each(count, &|i| format!("    var {x}{i} = vec2(0.0);\n"));
    }
    for i in 0..high {
        text += &each(wide, &|j| format!("    var c{i}_{j} = coop_mat{coop}x{coop}<f32, C>();\n"));
    }
    text += &format!(
        "    if begin < end {{\n{first}    }}
    for (var k0 = begin; k0 < end; k0 += {depth}u) {{
        var peak_a = vec2(0u);
        var peak_b = vec2(0u);
{peaks_a}{peaks_b}        let top_a = subgroupMax(max(peak_a.x, peak_a.y));
        let top_b = subgroupMax(max(peak_b.x, peak_b.y));
        if lane == 0u {{ tile_peak[warp] = vec2(top_a, top_b); }}
        workgroupBarrier(); // also: the last step's matrices have been loaded
        var top = tile_peak[0];
{tops}        let power_a = min(142 - i32(top.x >> 24u), 126);
        let power_b = clamp(min(142 - i32(top.y >> 24u), 126), -127 - power_a, 126 - power_a);
        let scale_a = tile_power(power_a);
        let scale_b = tile_power(power_b);
        let undo = tile_power(-power_a - power_b);
{puts_a}{puts_b}        workgroupBarrier();
        // the next step's elements arrive while this one multiplies
{next}",
        first = loads("begin"),
        peaks_a = peaks('a', count_a),
        peaks_b = peaks('b', count_b),
        tops = each(warps - 1, &|w| format!("        top = max(top, tile_peak[{}]);\n", w + 1)),
        puts_a = puts('a', count_a),
        puts_b = puts('b', count_b),
        next = loads(&format!("k0 + {depth}u")),
    );
    for s in 0..deep {
        text += &each(high, &|i| operands[0].fragment(coop, split, "warp_m", i, s));
    }
    for j in 0..wide {
        text += &each(deep, &|s| operands[1].fragment(coop, split, "warp_n", j, s));
        text += &each(high, &|i| product(split, coop, deep, i, j));
    }
    text += "    }\n";
    // The results pass through workgroup memory, so that any thread can take any of them; arguments of coopStore are names, as
    // naga 30 does not translate expressions there
    text += &format!("    let at = warp * {size}u;\n");
    for i in 0..high {
        for j in 0..wide {
            text += &format!(
                "    let r{i}_{j} = c{i}_{j};
    coopStoreT(r{i}_{j}, &tile_out[at], {coop}u);
    workgroupBarrier();
    for (var e = lane; e < {size}u; e += {subgroup}u) {{
        store(m0 + warp_m + {}u + e / {coop}u, n0 + warp_n + {}u + e % {coop}u, group.z, tile_out[at + e]);
    }}
    workgroupBarrier();\n",
                i * coop,
                j * coop,
            );
        }
    }
    text + "}\n"
}

/// Statements that add one step's product of row `i` and column `j` of cooperative matrices.
fn product(split: Split, coop: u32, deep: u32, i: u32, j: u32) -> String {
    // the sum, and which parts of the operands it takes
    let all = [("p", "", ""), ("q", "", "l"), ("q", "l", "")];
    let (sums, products) = if split == Split::F16x3 { (&["p", "q"][..], &all[..]) } else { (&["p"][..], &all[..1]) };
    let mut text = String::new();
    for sum in sums {
        text += &format!("        var {sum}{i}_{j} = coop_mat{coop}x{coop}<f32, C>();\n");
    }
    for (sum, a, b) in products {
        for s in 0..deep {
            text += &format!("        {sum}{i}_{j} = coopMultiplyAdd(a{i}_{s}{a}, b{j}_{s}{b}, {sum}{i}_{j});\n");
        }
    }
    if split == Split::F16x3 {
        text += &format!("        p{i}_{j} = p{i}_{j} + q{i}_{j} * 0.00048828125;\n");
    }
    text + &format!("        c{i}_{j} = c{i}_{j} + p{i}_{j} * undo;\n")
}

/// The tiles of all kinds of adapters, each with its split, for validation without a device.
#[cfg(test)]
pub(crate) fn everywhere() -> Vec<(CooperativeTile, Split)> {
    let mut all = Vec::new();
    for (coop, subgroup) in [(8, 8), (8, 32), (16, 32), (16, 64)] {
        for (kib, split) in [16, 32, 48].into_iter().flat_map(|kib| [(kib, Split::F16), (kib, Split::F16x3)]) {
            let entry = tests::entry([coop; 3], wgpu::CooperativeScalarType::F32);
            let found = tiles(&[entry], [subgroup; 2], &tests::limits(kib * 1024), split);
            all.extend(
                found.into_iter().map(|tile| (tile, split)).filter(|new| !all.contains(new)).collect::<Vec<_>>(),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn entry(shape: [u32; 3], result: wgpu::CooperativeScalarType) -> wgpu::CooperativeMatrixProperties {
        wgpu::CooperativeMatrixProperties {
            m_size: shape[0],
            n_size: shape[1],
            k_size: shape[2],
            ab_type: wgpu::CooperativeScalarType::F16,
            cr_type: result,
            saturating_accumulation: false,
        }
    }

    /// Limits of a device with so much workgroup memory.
    pub(super) fn limits(shared: u32) -> wgpu::Limits {
        wgpu::Limits {
            max_compute_workgroup_storage_size: shared,
            max_compute_invocations_per_workgroup: 1024,
            max_compute_workgroup_size_x: 1024,
            ..wgpu::Limits::default()
        }
    }

    #[test]
    fn tiles_fit_and_come_largest_first() {
        use wgpu::CooperativeScalarType::F32;
        for (coop, subgroup) in [(8, 8), (8, 32), (16, 32), (16, 64)] {
            for (kib, split) in [16, 32, 48].into_iter().flat_map(|kib| [(kib, Split::F16), (kib, Split::F16x3)]) {
                let found = tiles(&[entry([coop; 3], F32)], [subgroup; 2], &limits(kib * 1024), split);
                assert!(!found.is_empty() && found.is_sorted_by(|a, b| (a.rows, a.depth) > (b.rows, b.depth)));
                assert!(found.iter().all(|tile| tile.shared_bytes(split) <= kib * 1024));
                // some tile for each orientation of the operands: the padding, and so the size, depends on it
                for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                    let bytes = |tile: &CooperativeTile| CooperativeTile { transposed, ..*tile }.shared_bytes(split);
                    assert!(found.iter().any(|tile| bytes(tile) <= kib * 1024), "{transposed:?} in {kib} KiB");
                }
            }
        }
    }

    #[test]
    fn only_what_the_language_has_types_for() {
        use wgpu::CooperativeScalarType::{F16, F32};
        let find = |properties: &[_], subgroup| tiles(properties, subgroup, &limits(32768), Split::F16x3);
        assert!(find(&[], [32, 32]).is_empty());
        assert!(find(&[entry([16, 8, 16], F32), entry([16; 3], F16)], [32, 32]).is_empty());
        assert!(find(&[entry([16; 3], F32)], [8, 32]).is_empty());
        let both = find(&[entry([8; 3], F32), entry([16; 3], F32)], [32, 32]);
        assert!(both.iter().all(|tile| tile.coop == 16) && both.len() == 3);
        let sizes: Vec<_> = both.iter().map(|tile| (tile.rows, tile.depth)).collect();
        assert_eq!(sizes, [(128, 16), (64, 32), (32, 32)]);
    }
}
