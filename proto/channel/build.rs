//! Compiles the channel's messages without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "proto";
    let file = "proto/intermezzo/channel/v1/channel.proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile([file], [root])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
