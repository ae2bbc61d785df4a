//! The command line of resflow.
fn main() {}
