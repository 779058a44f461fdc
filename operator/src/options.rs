//! The command line. Every option can come from the environment as well.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs InterMezzo on Kubernetes.
#[derive(Clone, Debug, Parser)]
#[command(name = "intermezzo-operator", version)]
pub struct Options {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the operator
    Run(Run),
    /// Print the CustomResourceDefinitions as YAML
    Crds,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Settings, as the chart writes them
    #[arg(
        long,
        env = "INTERMEZZO_SETTINGS",
        value_name = "FILE",
        default_value = "/etc/intermezzo/operator.yaml"
    )]
    pub settings: PathBuf,
    /// Namespace of the operator
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub namespace: String,
    /// Name of this operator among several
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: String,
    /// Address where agents attach
    #[arg(long, env = "INTERMEZZO_CONTROL", value_name = "ADDR", default_value = "0.0.0.0:7440")]
    pub control: SocketAddr,
    /// Address for /metrics, /healthz and /readyz over plain HTTP
    #[arg(long, env = "INTERMEZZO_METRICS", value_name = "ADDR", default_value = "0.0.0.0:7441")]
    pub metrics: SocketAddr,
}
