//! The program from outside: run, stopped, killed, starved of disk, and given what it must refuse.

mod backends;
mod bad_input;
mod binary;
#[cfg(feature = "parquet")]
mod by_columns;
mod categories;
mod columns;
mod conditional;
mod dequantisation;
mod end_to_end;
mod experiment;
mod families;
mod hybrid;
mod image_pipes;
mod images;
mod import;
mod interruption;
mod keys;
mod large;
mod large_images;
mod looking;
mod missing;
mod percentiles;
mod pictures;
mod report;
#[cfg(unix)]
mod resuming;
mod tables;
mod weights;
#[cfg(not(feature = "parquet"))]
mod without_columns;
