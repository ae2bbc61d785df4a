//! The properties that every backend has.
