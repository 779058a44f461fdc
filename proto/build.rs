//! Compiles the services without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(
        ["replication", "admin", "control"].map(|name| format!("proto/intermezzo/v1/{name}.proto")),
        [root],
    )?;
    // `connect` is ours: the generated dialing helper of that name is left out.
    tonic_prost_build::configure().build_transport(false).bytes(".").compile_fds(descriptors)?;
    Ok(())
}
