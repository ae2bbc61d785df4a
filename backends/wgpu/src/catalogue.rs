//! The catalogue of all kernels, which tests validate and translate to what every API compiles, without a device.

use std::any::type_name;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

use crate::kernel::{IMMEDIATES, Identity, Kernel};
use crate::{
    activation, adam, deferred, elementwise, fixed_point, layout, lu, net, noise, power, product, reduce, series,
};

/// The variants of one type.
fn of<K: Kernel>() -> (&'static str, Vec<Box<dyn Kernel>>) {
    let name = type_name::<K>().rsplit("::").next().unwrap_or_default();
    (name, K::variants().iter().map(Identity::kept).collect())
}

/// The variants of every type, with its name: a new kernel adds a line.
fn catalogue() -> Vec<(&'static str, Vec<Box<dyn Kernel>>)> {
    vec![
        of::<activation::Fused>(),
        of::<adam::Adam>(),
        of::<deferred::ConvolutionPowers>(),
        of::<deferred::Powers>(),
        of::<deferred::Program>(),
        of::<deferred::Reductions>(),
        of::<elementwise::Elementwise>(),
        of::<fixed_point::FixedPoint>(),
        of::<layout::Layout>(),
        of::<lu::Lu>(),
        of::<net::Forward>(),
        of::<net::Gradient>(),
        of::<net::Pullback>(),
        of::<net::Series>(),
        of::<net::SegmentForward>(),
        of::<net::SegmentGradients>(),
        of::<net::SegmentPass>(),
        of::<net::SegmentPullback>(),
        of::<net::SegmentTerms>(),
        of::<net::Tangent>(),
        of::<noise::Draw>(),
        of::<power::Power>(),
        of::<product::Product>(),
        of::<reduce::Reduction>(),
        of::<series::Term>(),
    ]
}

/// Parses, validates and translates a kernel to what Vulkan, Metal and DX12 compile, without a device.
fn translate(kernel: &dyn Kernel) {
    let source = kernel.source();
    let text = source.module();
    let cooperative = !source.enables.is_empty();
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = Capabilities::all();
    let parsed = naga::front::wgsl::Frontend::new_with_options(options).parse(&text);
    let module = parsed.unwrap_or_else(|e| panic!("{kernel:?}: {}\n{text}", e.emit_to_string(&text)));
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    let info = validator.validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{kernel:?}: {}\n{text}", e.emit_to_string(&text)));

    let options = spv::Options { lang_version: (1, 6), capabilities: None, ..spv::Options::default() };
    let words = spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
    assert!(!words.is_empty());
    let options = msl::Options { lang_version: (3, 1), fake_missing_bindings: true, ..msl::Options::default() };
    msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
    // DX12 has no cooperative matrices
    if !cooperative {
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_2,
            fake_missing_bindings: true,
            immediates_target: Some(hlsl::BindTarget::default()),
            ..hlsl::Options::default()
        };
        let (mut out, pipeline) = (String::new(), hlsl::PipelineOptions::default());
        hlsl::Writer::new(&mut out, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        assert!(!out.is_empty());
    }
    assert!(source.immediates() <= IMMEDIATES, "{kernel:?}: {} bytes of immediates", source.immediates());
    assert!(source.reads.len() + source.writes.len() <= 8, "{kernel:?} binds more than every device can");
    // what every device has, but for tiles that are made for what theirs has
    assert!(cooperative || source.shared <= 16 << 10, "{kernel:?}: {} bytes of workgroup memory", source.shared);
    // single components of a vector in workgroup memory are never written: others of it may be lost
    assert!(!text.contains("% 4u] ="), "{kernel:?} writes a component of a shared vector");
    // what a kernel says of its workgroup memory is what it declares
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("types have layouts");
    let workgroup = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let declared: u32 = workgroup.map(|(_, v)| layouter[v.ty].size).sum();
    assert_eq!(source.shared, declared, "{kernel:?}: bytes of workgroup memory");
}

#[test]
fn every_kernel_translates_for_every_api() {
    let all: Vec<_> = catalogue().into_iter().flat_map(|(_, variants)| variants).collect();
    assert!(all.len() > 200, "{} kernels", all.len());
    for kernel in &all {
        translate(kernel.as_ref());
    }
}

/// A kernel that is not in the catalogue would be launched without ever being validated.
#[test]
fn the_catalogue_is_whole() {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("the source is there") {
            let path = entry.expect("the source is there").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("the source is there");
                // those of tests are launched by tests alone
                let own = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let implementors = own.lines().filter_map(|line| line.strip_prefix("impl Kernel for "));
                found.extend(implementors.map(|rest| rest.trim_end_matches(" {").to_owned()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    let catalogue = catalogue();
    let mut listed: Vec<_> = catalogue.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    assert_eq!(listed, found);
    for (name, variants) in &catalogue {
        let different: HashSet<_> = variants.iter().collect();
        assert!(!variants.is_empty() && different.len() == variants.len(), "{name}: variants twice, or none");
    }
}
