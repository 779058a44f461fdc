//! Limits on what agents send: every length is checked before anything else looks at it.

use intermezzo_identity::name::NODE_NAME_MAX;
use intermezzo_proto::v1;
use intermezzo_proto::v1::agent_frame::Hello;
use tonic::Status;

/// Version of `Control` that this operator speaks.
pub const PROTOCOL: u32 = 1;
/// Longest message from an agent, in bytes.
pub const MESSAGE_MAX: usize = 4 << 20;

const TOKEN_MAX: usize = 16 << 10;
const CSR_MAX: usize = 4 << 10;
const TEXT_MAX: usize = 4 << 10;
const ADDRESS_MAX: usize = 261;
const VOLUMES_MAX: usize = 4096;
const REPLICATORS_MAX: usize = 8192;
const LINES_MAX: usize = 1024;
const CONFLICTS_MAX: usize = 100;

fn limit(what: &str, length: usize, most: usize) -> Result<(), Status> {
    if length > most {
        return Err(Status::invalid_argument(format!(
            "{what} has length {length}; at most {most} is allowed"
        )));
    }
    Ok(())
}

fn texts<'a>(what: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<(), Status> {
    texts.into_iter().try_for_each(|text| limit(what, text.len(), TEXT_MAX))
}

pub(crate) fn enrol(request: &v1::EnrolRequest) -> Result<(), Status> {
    limit("enrol.node", request.node.len(), NODE_NAME_MAX)?;
    limit("enrol.token", request.token.len(), TOKEN_MAX)?;
    limit("enrol.csr", request.csr.len(), CSR_MAX)?;
    if request.token.is_empty() {
        return Err(Status::unauthenticated("there is no token in the request"));
    }
    Ok(())
}

pub(crate) fn hello(hello: &Hello) -> Result<(), Status> {
    if hello.protocol != PROTOCOL {
        let (theirs, version) = (hello.protocol, &hello.version);
        let version: String = version.chars().take(64).collect();
        let text =
            format!("lento {version} speaks version {theirs} of the protocol, this operator {PROTOCOL}");
        return Err(Status::failed_precondition(text));
    }
    limit("hello.version", hello.version.len(), 64)?;
    limit("hello.revision", hello.revision.len(), 128)?;
    limit("hello.advertise", hello.advertise.len(), ADDRESS_MAX)?;
    if !hello.advertise.is_empty() && !is_address(&hello.advertise) {
        return Err(Status::invalid_argument("hello.advertise is not HOST:PORT"));
    }
    Ok(())
}

/// `host:port`, with nothing in it that an address has not.
fn is_address(text: &str) -> bool {
    let host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.bytes().all(host_byte) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

pub(crate) fn report(report: &v1::Report) -> Result<(), Status> {
    limit("report.revision", report.revision.len(), 128)?;
    limit("report.kernel", report.kernel.len(), LINES_MAX)?;
    texts("report.kernel", &report.kernel)?;
    limit("report.problems", report.problems.len(), VOLUMES_MAX)?;
    for problem in &report.problems {
        let fields = [&problem.volume, &problem.kind, &problem.object, &problem.field, &problem.reason];
        texts("report.problems", fields)?;
    }
    limit("report.discarded", report.discarded.len(), VOLUMES_MAX)?;
    texts("report.discarded", &report.discarded)?;
    limit("report.conflicts", report.conflicts.len(), VOLUMES_MAX)?;
    for of_volume in &report.conflicts {
        texts("report.conflicts.volume", [&of_volume.volume])?;
        limit("report.conflicts.records", of_volume.records.len(), CONFLICTS_MAX)?;
        for record in &of_volume.records {
            // A path may be as long as the kernel allows, and shown bytes are longer than the bytes.
            limit("report.conflicts.path", record.path.len(), 4 * TEXT_MAX)?;
            limit("report.conflicts.content", record.content.len(), 4 * TEXT_MAX)?;
            limit("report.conflicts.target", record.target.len(), 4 * TEXT_MAX)?;
            texts(
                "report.conflicts",
                [&record.kind, &record.node, &record.state, &record.kept, &record.operation],
            )?;
        }
    }
    limit("report.volumes", report.volumes.len(), VOLUMES_MAX)?;
    report.volumes.iter().try_for_each(volume)
}

fn volume(status: &v1::VolumeStatus) -> Result<(), Status> {
    limit("report.volumes.held", status.held.len(), VOLUMES_MAX)?;
    for held in &status.held {
        texts("report.volumes.held", [&held.node])?;
        limit("report.volumes.held.paths", held.paths.len(), LINES_MAX)?;
        held.paths.iter().try_for_each(|path| limit("report.volumes.held.path", path.len(), 4 * TEXT_MAX))?;
    }
    let fields = [
        &status.name,
        &status.role,
        &status.server,
        &status.mountpoint,
        &status.cache,
        &status.fault,
        &status.reached,
    ];
    texts("report.volumes", fields)?;
    limit("report.volumes.waiting", status.waiting.len(), LINES_MAX)?;
    texts("report.volumes.waiting", &status.waiting)?;
    limit("report.volumes.replicators", status.replicators.len(), REPLICATORS_MAX)?;
    texts("report.volumes.replicators", status.replicators.iter().map(|replicator| &replicator.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["10.0.0.1:7430", "[::1]:7430", "node-1.example:1"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["10.0.0.1", ":1", "h:0", "h:70000", "a/b:1", "u@h:1", "h:1/x", ""] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_is_named() {
        let long = "x".repeat(TEXT_MAX + 1);
        let volume = v1::VolumeStatus { waiting: vec![long.clone()], ..Default::default() };
        let wrong = report(&v1::Report { volumes: vec![volume], ..Default::default() }).unwrap_err();
        assert!(wrong.message().contains("report.volumes.waiting"), "{wrong}");
        let request = v1::EnrolRequest { token: "x".repeat(TOKEN_MAX + 1), ..Default::default() };
        assert!(enrol(&request).unwrap_err().message().contains("enrol.token"));
        let old = hello(&Hello { protocol: 7, version: "9".to_owned(), ..Default::default() }).unwrap_err();
        assert!(old.message().contains("version 7"), "{old}");
    }
}
