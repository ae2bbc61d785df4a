//! Whatever is read: tables, images, configurations, checkpoints and state dicts; good files, bad ones, and mutations of the
//! fuzz targets' seeds.

mod bases;
mod by_columns;
mod by_the_document;
mod categories;
#[path = "../../../fuzz/checks.rs"]
#[expect(dead_code, reason = "one that only the fuzz target needs")]
mod checks;
#[path = "../../../fuzz/checks_images.rs"]
mod checks_images;
#[path = "../../../fuzz/checks_import.rs"]
mod checks_import;
#[path = "../../../fuzz/checks_tables.rs"]
mod checks_tables;
mod columns;
mod data;
mod data_folders;
mod data_images;
mod data_pictures;
mod data_streams;
mod document_categories;
mod document_columns;
mod document_context;
mod document_noise;
mod document_reader;
mod document_sample;
mod document_spline;
mod document_stages;
mod document_transform;
#[path = "../../../fuzz/frame.rs"]
mod frame;
mod fuzz_data;
mod fuzz_images;
mod fuzz_import;
mod fuzz_models;
mod given_transforms;
mod hostile_models;
mod hostile_splines;
mod import_places;
mod import_state;
mod listed;
mod model_seeds;
mod own_parts;
mod own_wrong;
mod tables;
mod yesterday;
