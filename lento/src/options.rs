//! The command line. Every option can come from the environment as well.

use crate::tls::NodeFiles;
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
    /// Directory with Volume and Replicator manifests; changes are followed. Either this or --operator
    #[arg(long, env = "LENTO_MANIFESTS", value_name = "DIR", required_unless_present = "operator",
        requires_all = ["tls_cert", "tls_key", "tls_ca"])]
    pub manifests: Option<PathBuf>,
    /// Operator that says what this node shall do, and gives it its certificate
    #[arg(long, env = "LENTO_OPERATOR", value_name = "HOST:PORT", conflicts_with = "manifests",
        requires_all = ["operator_ca", "token"], value_parser = address)]
    pub operator: Option<String>,
    /// The authorities that the operator's certificate is checked by (PEM); followed when it changes
    #[arg(long, env = "LENTO_OPERATOR_CA", value_name = "FILE", requires = "operator")]
    pub operator_ca: Option<PathBuf>,
    /// Token that proves to the operator which node this is; read anew each time
    #[arg(long, env = "LENTO_TOKEN", value_name = "FILE", requires = "operator")]
    pub token: Option<PathBuf>,
    /// Where the other nodes reach this one, told to the operator
    #[arg(long, env = "LENTO_ADVERTISE", value_name = "HOST:PORT", requires = "operator", value_parser = address)]
    pub advertise: Option<String>,
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
    /// This node's certificate (PEM), with the DNS name NODE.node.intermezzo.internal; followed when it changes
    #[arg(long, env = "LENTO_TLS_CERT", value_name = "FILE", conflicts_with = "operator")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "LENTO_TLS_KEY", value_name = "FILE", conflicts_with = "operator")]
    pub tls_key: Option<PathBuf>,
    /// The authorities that all nodes trust (PEM)
    #[arg(long, env = "LENTO_TLS_CA", value_name = "FILE", conflicts_with = "operator")]
    pub tls_ca: Option<PathBuf>,
    /// Socket for the command line tool
    #[arg(
        long,
        env = "LENTO_ADMIN_SOCKET",
        value_name = "PATH",
        default_value = "/run/intermezzo/lento.sock"
    )]
    pub admin_socket: PathBuf,
    /// File that says of each volume whether its tree is whole here or what it waits for, and how many bytes have moved; written when
    /// that changes.
    /// For what begins before anybody can ask at the socket, like an initramfs
    #[arg(long, env = "LENTO_PROGRESS", value_name = "FILE")]
    pub progress: Option<PathBuf>,
    /// Where a node listens, as NODE=HOST:PORT; once for each node
    #[arg(long = "peer", env = "LENTO_PEERS", value_name = "NODE=ADDR", value_delimiter = ',', value_parser = peer)]
    pub peers: Vec<(NodeName, String)>,
}

/// Where the desired state comes from, with what belongs to it.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory, and an identity made by hand.
    Manifests {
        /// The directory.
        dir: PathBuf,
        /// The identity.
        files: NodeFiles,
    },
    /// An operator.
    Operator(OperatorOptions),
}

/// How to reach the operator.
#[derive(Clone, Debug)]
pub struct OperatorOptions {
    /// `host:port`.
    pub address: String,
    /// Authorities that it is checked by.
    pub authorities: PathBuf,
    /// Proof of who we are.
    pub token: PathBuf,
    /// Where the other nodes reach us.
    pub advertise: Option<String>,
}

impl Options {
    /// Which of the two sources of desired state was asked for.
    ///
    /// # Errors
    /// Text for people: none, both, or something is missing beside it.
    pub fn source(&self) -> Result<Source, String> {
        let need = |path: &Option<PathBuf>, option: &str| {
            path.clone().ok_or_else(|| format!("{option} is needed as well"))
        };
        match (&self.manifests, &self.operator) {
            (Some(dir), None) => Ok(Source::Manifests {
                dir: dir.clone(),
                files: NodeFiles {
                    certificate: need(&self.tls_cert, "--tls-cert")?,
                    key: need(&self.tls_key, "--tls-key")?,
                    authorities: need(&self.tls_ca, "--tls-ca")?,
                },
            }),
            (None, Some(address)) => Ok(Source::Operator(OperatorOptions {
                address: address.clone(),
                authorities: need(&self.operator_ca, "--operator-ca")?,
                token: need(&self.token, "--token")?,
                advertise: self.advertise.clone(),
            })),
            _ => Err("exactly one of --manifests and --operator is wanted".to_owned()),
        }
    }
}

fn peer(text: &str) -> Result<(NodeName, String), String> {
    let (node, at) = text.split_once('=').ok_or("NODE=HOST:PORT is wanted")?;
    if node.is_empty() || address(at).is_err() {
        return Err("NODE=HOST:PORT is wanted".to_owned());
    }
    Ok((node.to_owned(), at.to_owned()))
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("HOST:PORT is wanted".to_owned()),
    }
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

    fn source(more: &[&str]) -> Result<Source, String> {
        let args = ["lento", "--node", "a"].iter().chain(more);
        Options::try_parse_from(args).map_err(|error| error.to_string())?.source()
    }

    #[test]
    fn there_is_one_source_of_desired_state() {
        let files = ["--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"];
        let manifests = [&["--manifests", "m"][..], &files].concat();
        let operator = ["--operator", "op:7440", "--operator-ca", "a", "--token", "t"];
        assert!(matches!(source(&manifests), Ok(Source::Manifests { .. })));
        assert!(matches!(source(&operator), Ok(Source::Operator(_))));
        assert!(source(&["--manifests", "m"]).is_err());
        assert!(source(&["--operator", "op:7440"]).unwrap_err().contains("--token"));
        assert!(source(&["--operator", "op"]).unwrap_err().contains("HOST:PORT"));
        assert!(source(&[&manifests[..], &operator].concat()).unwrap_err().contains("cannot be used with"));
        assert!(source(&files).is_err());
    }
}
