//! The command line. Every option can come from the environment as well.

use clap::Parser;
use lento_core::io::NodeName;
use std::net::SocketAddr;
use std::path::PathBuf;

/// InterMezzo's cache manager and file server: one per node.
#[derive(Clone, Debug, Parser)]
#[command(name = "lento", version)]
pub struct Options {
    /// Name of this node, as its certificate has it
    #[arg(long, env = "LENTO_NODE")]
    pub node: NodeName,
    /// Directory with Volume and Replicator manifests; changes are followed
    #[arg(long, env = "LENTO_MANIFESTS", value_name = "DIR")]
    pub manifests: PathBuf,
    /// Address to serve other nodes at
    #[arg(long, env = "LENTO_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:7430")]
    pub listen: SocketAddr,
    /// Address for /metrics, /healthz and /readyz over plain HTTP; nothing is served there unless this is given
    #[arg(long, env = "LENTO_METRICS", value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Presto's socket
    #[arg(
        long,
        env = "LENTO_PRESTO_SOCKET",
        value_name = "PATH",
        default_value = "/run/intermezzo/presto.sock"
    )]
    pub presto_socket: PathBuf,
    /// Directory for stores and kept conflicts
    #[arg(long, env = "LENTO_STATE", value_name = "DIR", default_value = "/var/lib/intermezzo/state")]
    pub state: PathBuf,
    /// Directory for caches, as presto sees it; each volume has NAMESPACE/NAME below
    #[arg(long, env = "LENTO_CACHE", value_name = "DIR", default_value = "/var/lib/intermezzo/cache")]
    pub cache: PathBuf,
    /// Directory for mounts, as presto sees it; each volume has NAMESPACE/NAME below
    #[arg(long, env = "LENTO_MOUNTS", value_name = "DIR", default_value = "/var/lib/intermezzo/mounts")]
    pub mounts: PathBuf,
    /// This node's certificate (PEM), with the DNS name NODE.node.intermezzo.internal
    #[arg(long, env = "LENTO_TLS_CERT", value_name = "FILE")]
    pub tls_cert: PathBuf,
    /// Its key (PEM)
    #[arg(long, env = "LENTO_TLS_KEY", value_name = "FILE")]
    pub tls_key: PathBuf,
    /// The authority that all nodes trust (PEM)
    #[arg(long, env = "LENTO_TLS_CA", value_name = "FILE")]
    pub tls_ca: PathBuf,
    /// Socket for the command line tool
    #[arg(
        long,
        env = "LENTO_ADMIN_SOCKET",
        value_name = "PATH",
        default_value = "/run/intermezzo/lento.sock"
    )]
    pub admin_socket: PathBuf,
    /// Where a node listens, as NODE=HOST:PORT; once for each node
    #[arg(long = "peer", env = "LENTO_PEERS", value_name = "NODE=ADDR", value_delimiter = ',', value_parser = peer)]
    pub peers: Vec<(NodeName, String)>,
}

fn peer(text: &str) -> Result<(NodeName, String), String> {
    let (node, address) = text.split_once('=').ok_or("NODE=HOST:PORT is wanted")?;
    let (host, port) = address.rsplit_once(':').ok_or("HOST:PORT is wanted after the '='")?;
    if node.is_empty() || host.is_empty() || port.parse::<u16>().is_err() {
        return Err("NODE=HOST:PORT is wanted".to_owned());
    }
    Ok((node.to_owned(), address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_node_and_address() {
        assert_eq!(peer("b=10.0.0.2:7430"), Ok(("b".to_owned(), "10.0.0.2:7430".to_owned())));
        assert_eq!(peer("b=[::1]:7430"), Ok(("b".to_owned(), "[::1]:7430".to_owned())));
        for wrong in ["b", "b=", "b=host", "=host:1", "b=host:port", "b=:1"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
    }
}
