//! What agents say to each other (`Replication`), to the operator (`Control`) and to the command line (`Admin`), over gRPC.

/// Generated from `proto/intermezzo/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("intermezzo.v1");
}
