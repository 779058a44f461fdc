//! The far side of a request, by its certificate.

use crate::name::expiry_of_certificate;
use crate::name::node_of_certificate;
use std::time::SystemTime;
use tonic::Request;
use tonic::Status;

/// The node at the other end of a request.
///
/// # Errors
/// It has not proved to be one.
pub fn peer_node<T>(request: &Request<T>) -> Result<String, Status> {
    of_leaf(request, node_of_certificate)
}

/// Until when the certificate of the node at the other end is valid.
///
/// # Errors
/// It has shown none.
pub fn peer_expiry<T>(request: &Request<T>) -> Result<SystemTime, Status> {
    of_leaf(request, expiry_of_certificate)
}

fn of_leaf<T, V>(request: &Request<T>, read: impl Fn(&[u8]) -> Result<V, String>) -> Result<V, Status> {
    let certificates = request.peer_certs();
    let first = certificates.as_ref().and_then(|certificates| certificates.first());
    let first = first.ok_or_else(|| Status::unauthenticated("no client certificate"))?;
    read(first).map_err(Status::unauthenticated)
}
