//! What `ip link`, `ip address` and `ip route` do, by messages to the kernel (rtnetlink(7)).

use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

const REQUEST_ACK: u16 = 1 | 4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const MAIN_TABLE: u8 = 254;
/// Routes that were made while the machine booted.
const BY_BOOT: u8 = 3;
const UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// An interface by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index(pub u32);

/// Switches an interface on.
pub fn set_up(Index(index): Index) -> Result<(), Errno> {
    let mut body = vec![0; 4];
    for number in [index, IFF_UP, IFF_UP] {
        body.extend(number.to_ne_bytes());
    }
    ask(RTM_NEWLINK, REQUEST_ACK, body)
}

/// Gives an interface an address.
pub fn add_address(index: Index, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
    let mut body = on(index, prefix);
    let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let broadcast = Ipv4Addr::from(u32::from(address) | hosts);
    for (kind, value) in [(IFA_LOCAL, address), (IFA_ADDRESS, address), (IFA_BROADCAST, broadcast)] {
        attribute(&mut body, kind, &value.octets());
    }
    ask(RTM_NEWADDR, REQUEST_ACK | CREATE | REPLACE, body)
}

/// Takes it away.
pub fn remove_address(index: Index, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
    let mut body = on(index, prefix);
    attribute(&mut body, IFA_LOCAL, &address.octets());
    ask(RTM_DELADDR, REQUEST_ACK, body)
}

fn on(Index(index): Index, prefix: u8) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix, 0, SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    body
}

/// Everything that has no other way goes to this router.
pub fn add_gateway(index: Index, gateway: Ipv4Addr) -> Result<(), Errno> {
    let mut body = route(0, SCOPE_UNIVERSE);
    attribute(&mut body, RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, RTA_OIF, &index.0.to_ne_bytes());
    ask(RTM_NEWROUTE, REQUEST_ACK | CREATE | REPLACE, body)
}

/// A way to one address through this interface, while that has no address of its own.
pub fn add_way(index: Index, to: Ipv4Addr) -> Result<(), Errno> {
    ask(RTM_NEWROUTE, REQUEST_ACK | CREATE | REPLACE, way(index, to))
}

/// Takes it away.
pub fn remove_way(index: Index, to: Ipv4Addr) -> Result<(), Errno> {
    ask(RTM_DELROUTE, REQUEST_ACK, way(index, to))
}

fn way(index: Index, to: Ipv4Addr) -> Vec<u8> {
    let mut body = route(32, SCOPE_LINK);
    attribute(&mut body, RTA_DST, &to.octets());
    attribute(&mut body, RTA_OIF, &index.0.to_ne_bytes());
    body
}

fn route(prefix: u8, scope: u8) -> Vec<u8> {
    vec![AF_INET, prefix, 0, 0, MAIN_TABLE, BY_BOOT, scope, UNICAST, 0, 0, 0, 0]
}

/// All of ours are multiples of four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Number of the message, and who sends it: there is one, and the kernel knows.
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    message
}

fn ask(kind: u16, flags: u16, body: Vec<u8>) -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    sendto(&socket, &message(kind, flags, &body), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; 8192];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

fn outcome(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw_os_error(error.saturating_neg())),
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_the_kernel_reads_them() {
        let whole = message(RTM_NEWROUTE, REQUEST_ACK | CREATE, &way(Index(2), Ipv4Addr::BROADCAST));
        assert_eq!(whole.len(), 16 + 12 + 8 + 8);
        assert_eq!(whole.get(..4).unwrap(), 44_u32.to_ne_bytes());
        assert_eq!(
            whole.get(28..36).unwrap(),
            [&8_u16.to_ne_bytes()[..], &RTA_DST.to_ne_bytes(), &[255; 4]].concat()
        );
    }

    #[test]
    fn an_answer_is_an_error_number_or_none() {
        let answer = |kind: u16, error: i32| {
            let mut answer = message(kind, 0, &error.to_ne_bytes());
            answer.extend([0; 16]);
            outcome(&answer)
        };
        assert_eq!(answer(NLMSG_ERROR, 0), Ok(()));
        assert_eq!(answer(NLMSG_ERROR, -17), Err(Errno::EXIST));
        assert_eq!(answer(RTM_NEWADDR, 0), Err(Errno::PROTO));
        assert_eq!(outcome(b"short"), Err(Errno::PROTO));
    }
}
