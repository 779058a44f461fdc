//! `intermezzo pki`.

use std::time::Duration;

use anyhow::Result;

use crate::Exit;
use crate::args::Pki;
use crate::initramfs::{Access, identity, write};
use crate::output::{bytes, print_text};
use crate::pki::{self, make_ca, make_node};

pub(super) fn run(pki: Pki) -> Result<Exit> {
    match pki {
        Pki::Ca { out, name, days } => {
            let files = make_ca(&out, &name, valid(days))?;
            print_text(&format!("{}\n{}\n", files.cert.display(), files.key.display()))?;
        }
        Pki::Node { ca, out, days, nodes } => {
            for node in nodes {
                let files = make_node(&ca, &out, &node, valid(days))?;
                print_text(&format!(
                    "{}  {}  {}\n",
                    pki::identity(&node),
                    files.cert.display(),
                    files.key.display()
                ))?;
            }
        }
        Pki::Archive { pki, manifests, out, node } => {
            let archive = identity::archive(&node, &pki, manifests.as_deref())?;
            write(&out, &archive, Access::Owner)?;
            print_text(&format!("{}: node {node}, {}\n", out.display(), bytes(archive.len() as u64)))?;
        }
    }
    Ok(Exit::Done)
}

fn valid(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}
