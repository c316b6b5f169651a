//! Bytes to table types and back: the only crate that sees generated code.

pub mod convert;
pub mod errors;
pub mod timestamp;

/// The messages and services of `proto/`, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("holdfast.v1");
}

/// The descriptors of every service, encoded, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
