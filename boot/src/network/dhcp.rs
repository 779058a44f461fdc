//! An address by DHCP (RFC 2131): asked for while the interface has none, and kept for as long as the machine runs.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Card;
use super::netlink;

const CLIENT: u16 = 68;
const SERVER: u16 = 67;
/// Behind the fixed part, before the options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIXED: usize = 236;
/// The server shall answer to all: this interface has no address yet.
const TO_ALL: u16 = 0x8000;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const WANTED: u8 = 50;
const SECONDS: u8 = 51;
const KIND: u8 = 53;
const SERVER_ID: u8 = 54;
const ASKED_FOR: u8 = 55;
const CLIENT_ID: u8 = 61;
const END: u8 = 255;

/// For an answer, at first; twice as long after each silence, up to the last one.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(8);
/// Where a server names no time, and at least.
const HOUR: u32 = 3600;
const MINUTE: u32 = 60;

/// What the server has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// This machine's.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// The way out.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// For how long.
    pub seconds: u32,
}

struct Question<'a> {
    kind: u8,
    number: u32,
    mac: [u8; 6],
    /// The address in use.
    own: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    host: &'a str,
}

struct Answer {
    kind: u8,
    lease: Lease,
}

/// Asks until somebody gives an address.
///
/// # Errors
/// Nobody does before the deadline.
pub fn lease(card: &Card, host: &str, deadline: Instant) -> Result<Lease> {
    // Without an address there is no way anywhere.
    netlink::add_way(card.index, Ipv4Addr::BROADCAST)
        .with_context(|| format!("no way out by {}", card.name))?;
    let leased = discover(card, host, deadline);
    let _ = netlink::remove_way(card.index, Ipv4Addr::BROADCAST);
    leased
}

fn discover(card: &Card, host: &str, deadline: Instant) -> Result<Lease> {
    let socket = socket()?;
    let question = |kind| Question {
        kind,
        number: number(),
        mac: card.mac,
        own: Ipv4Addr::UNSPECIFIED,
        wanted: None,
        server: None,
        host,
    };
    let mut patience = FIRST;
    while Instant::now() < deadline {
        if let Some(Answer { kind: OFFER, lease: offer }) =
            ask(&socket, &question(DISCOVER), Ipv4Addr::BROADCAST, patience)?
        {
            let request =
                Question { wanted: Some(offer.address), server: Some(offer.server), ..question(REQUEST) };
            if let Some(Answer { kind: ACK, lease }) = ask(&socket, &request, Ipv4Addr::BROADCAST, patience)?
            {
                return Ok(lease);
            }
        }
        patience = (patience * 2).min(LAST);
    }
    bail!("no DHCP server answers at {}", card.name)
}

/// Keeps the address, unless somebody else takes care of the interface. Comes back when that is so.
pub fn keep(card: &Card, lease: &Lease, host: &str, told: &dyn Fn(String)) {
    let (mut lease, mut since, mut complaint) = (lease.clone(), Instant::now(), None);
    loop {
        std::thread::sleep(pause(lease.seconds, since.elapsed()));
        if UdpSocket::bind((lease.address, 0)).is_err() {
            return told(format!(
                "{} is no longer an address of this machine; whoever did that renews it",
                lease.address
            ));
        }
        let due = due(lease.seconds, since.elapsed());
        let kept = again(card, &lease, host, due).and_then(|new| {
            super::change(card, &lease, &new)?;
            Ok(new)
        });
        match kept {
            Ok(new) => (lease, since, complaint) = (new, Instant::now(), None),
            // Once for each thing that may be wrong.
            Err(_) if complaint == Some(due) => {}
            Err(error) => {
                complaint = Some(due);
                told(match due {
                    Due::Renew | Due::Rebind => {
                        format!("{} is not renewed yet, and asked for each minute: {error:#}", lease.address)
                    }
                    Due::Anew => format!(
                        "the time of the address {} is over, and somebody else may get it; it is used until a DHCP server gives \
                         another one: {error:#}",
                        lease.address
                    ),
                });
            }
        }
    }
}

/// What has to be done for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The server that gave it is asked.
    Renew,
    /// Any server is asked.
    Rebind,
    /// Its time is over: any server is asked for any address.
    Anew,
}

/// As RFC 2131, 4.4.5 has it.
fn due(seconds: u32, elapsed: Duration) -> Due {
    let whole = Duration::from_secs(seconds.max(MINUTE).into());
    if elapsed >= whole {
        Due::Anew
    } else if elapsed >= whole * 7 / 8 {
        Due::Rebind
    } else {
        Due::Renew
    }
}

/// First after half of the time; then after half of what is left until something else is due, and not before a minute.
fn pause(seconds: u32, elapsed: Duration) -> Duration {
    let whole = Duration::from_secs(seconds.max(MINUTE).into());
    let left = |until: Duration| until.saturating_sub(elapsed);
    let minute = Duration::from_secs(MINUTE.into());
    match due(seconds, elapsed) {
        _ if elapsed < whole / 2 => left(whole / 2),
        Due::Renew => (left(whole * 7 / 8) / 2).max(minute),
        Due::Rebind => (left(whole) / 2).max(minute),
        Due::Anew => minute,
    }
}

/// The same address for longer, or another one.
fn again(card: &Card, lease: &Lease, host: &str, due: Due) -> Result<Lease> {
    let to = match due {
        Due::Renew => lease.server,
        Due::Rebind => Ipv4Addr::BROADCAST,
        Due::Anew => return self::lease(card, host, Instant::now() + LAST * 3),
    };
    let request = Question {
        kind: REQUEST,
        number: number(),
        mac: card.mac,
        own: lease.address,
        wanted: None,
        server: None,
        host,
    };
    // The port is free again before somebody else asks.
    let answer = socket().and_then(|socket| ask(&socket, &request, to, LAST))?;
    match answer {
        Some(Answer { kind: ACK, lease: new }) => Ok(new),
        // Not this one any more.
        Some(_) => self::lease(card, host, Instant::now() + LAST * 3),
        None => bail!("the DHCP server {to} does not answer"),
    }
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT)).context("the port of DHCP clients")?;
    socket.set_broadcast(true)?;
    Ok(socket)
}

fn number() -> u32 {
    let mut bytes = [0; 4];
    let read = std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    read.map_or_else(|_| std::process::id(), |()| u32::from_ne_bytes(bytes))
}

/// One question and its answer; `None`: none came in this time.
fn ask(socket: &UdpSocket, question: &Question, to: Ipv4Addr, patience: Duration) -> Result<Option<Answer>> {
    let end = Instant::now() + patience;
    socket.send_to(&question.bytes(), SocketAddrV4::new(to, SERVER)).context("DHCP")?;
    let mut packet = vec![0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = socket.recv(&mut packet) else {
            // The time is over, or the interface has just gone.
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let answer = read(packet.get(..length).unwrap_or_default(), question.number, question.mac);
        if let Some(answer) = answer.filter(|answer| matches!(answer.kind, OFFER | ACK | NAK)) {
            return Ok(Some(answer));
        }
    }
}

impl Question<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0];
        bytes.extend(self.number.to_be_bytes());
        let flags = if self.own.is_unspecified() { TO_ALL } else { 0 };
        bytes.extend([0, 0]);
        bytes.extend(flags.to_be_bytes());
        bytes.extend(self.own.octets());
        bytes.resize(28, 0);
        bytes.extend(self.mac);
        bytes.resize(FIXED, 0);
        bytes.extend(COOKIE);
        let mut option = |code: u8, value: &[u8]| {
            bytes.push(code);
            bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            bytes.extend(value.iter().take(usize::from(u8::MAX)));
        };
        option(KIND, &[self.kind]);
        let mut id = vec![1];
        id.extend(self.mac);
        option(CLIENT_ID, &id);
        for (code, address) in [(WANTED, self.wanted), (SERVER_ID, self.server)] {
            if let Some(address) = address {
                option(code, &address.octets());
            }
        }
        if !self.host.is_empty() {
            option(HOST_NAME, self.host.as_bytes());
        }
        option(ASKED_FOR, &[MASK, ROUTER, DNS, SECONDS]);
        bytes.push(END);
        // Some servers want as much as BOOTP had.
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

/// What a server says to this question; `None`: it says something else, or to somebody else.
fn read(packet: &[u8], number: u32, mac: [u8; 6]) -> Option<Answer> {
    let is_for_us = packet.first() == Some(&2)
        && packet.get(4..8)? == number.to_be_bytes()
        && packet.get(28..34)? == mac
        && packet.get(FIXED..FIXED + 4)? == COOKIE;
    if !is_for_us {
        return None;
    }
    let mut lease = Lease {
        address: address(packet.get(16..20)?)?,
        prefix: 0,
        gateway: None,
        dns: Vec::new(),
        server: Ipv4Addr::UNSPECIFIED,
        seconds: HOUR,
    };
    let mut kind = 0;
    let mut rest = packet.get(FIXED + 4..)?;
    while let Some((&code, after)) = rest.split_first() {
        if code == END {
            break;
        }
        if code == 0 {
            rest = after;
            continue;
        }
        let (&length, after) = after.split_first()?;
        let value = after.get(..usize::from(length))?;
        rest = after.get(usize::from(length)..)?;
        match code {
            KIND => kind = *value.first()?,
            MASK => lease.prefix = u8::try_from(u32::from(address(value)?).leading_ones()).ok()?,
            ROUTER => lease.gateway = value.get(..4).and_then(address),
            DNS => lease.dns = value.chunks_exact(4).filter_map(address).collect(),
            SERVER_ID => lease.server = address(value)?,
            SECONDS => lease.seconds = u32::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    if lease.prefix == 0 {
        // As it was before networks had masks.
        lease.prefix = match lease.address.octets() {
            [0..=127, ..] => 8,
            [128..=191, ..] => 16,
            _ => 24,
        };
    }
    (kind != 0).then_some(Answer { kind, lease })
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn question(kind: u8) -> Question<'static> {
        Question {
            kind,
            number: 7,
            mac: MAC,
            own: Ipv4Addr::UNSPECIFIED,
            wanted: None,
            server: None,
            host: "node-7",
        }
    }

    /// As a server makes it of the question.
    fn answer(kind: u8, options: &[u8]) -> Vec<u8> {
        let mut packet = question(DISCOVER).bytes();
        packet.truncate(FIXED + 4);
        packet[0] = 2;
        packet[16..20].copy_from_slice(&[10, 0, 2, 15]);
        packet.extend([KIND, 1, kind]);
        packet.extend(options);
        packet.push(END);
        packet
    }

    #[test]
    fn a_question_has_what_servers_want() {
        let bytes = Question { wanted: Some(Ipv4Addr::new(10, 0, 2, 15)), ..question(REQUEST) }.bytes();
        assert!(bytes.len() >= 300);
        assert_eq!(&bytes[..4], [1, 1, 6, 0]);
        assert_eq!(&bytes[10..12], [0x80, 0]);
        assert_eq!(&bytes[28..34], MAC);
        assert_eq!(&bytes[FIXED..FIXED + 7], [99, 130, 83, 99, KIND, 1, REQUEST]);
        assert!(bytes.windows(6).any(|window| window == [WANTED, 4, 10, 0, 2, 15]));
    }

    #[test]
    fn an_address_is_renewed_in_time_and_given_up_when_its_time_is_over() {
        let after = |seconds| Duration::from_secs(seconds);
        assert_eq!(pause(3600, after(0)), after(1800));
        assert_eq!((due(3600, after(1800)), due(3600, after(3150))), (Due::Renew, Due::Rebind));
        assert_eq!((due(3600, after(3599)), due(3600, after(3600))), (Due::Rebind, Due::Anew));
        assert_eq!(pause(3600, after(1800)), after(675));
        assert_eq!(pause(3600, after(3500)), after(60));
        assert_eq!(pause(3600, after(9999)), after(60));
        // Without end, as servers write it; and for a moment, which nobody means.
        assert_eq!((due(u32::MAX, after(1 << 31)), pause(0, after(0))), (Due::Renew, after(30)));
    }

    /// A server that has given the old address away: it refuses that and offers another one.
    #[test]
    fn an_address_that_is_refused_gives_way_to_another_one() {
        use super::super::tests::{ip, is_in_a_network_of_its_own};
        let name = "network::dhcp::tests::an_address_that_is_refused_gives_way_to_another_one";
        if !is_in_a_network_of_its_own(name) {
            return;
        }
        let card = super::super::card("eth9").unwrap();
        let old = lease_of(Ipv4Addr::new(10, 9, 8, 7));
        let own = old.address;
        super::super::configure(&card, old.address, old.prefix, old.gateway).unwrap();
        let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER)).unwrap();
        server.set_broadcast(true).unwrap();
        std::thread::spawn(move || {
            let mut packet = [0; 2048];
            loop {
                let (length, from) = server.recv_from(&mut packet).unwrap();
                let (asked, kind) = (&packet[..length], packet[FIXED + 6]);
                let is_renewal = asked[12..16] != [0; 4];
                let kind = if kind == DISCOVER {
                    OFFER
                } else if is_renewal {
                    NAK
                } else {
                    ACK
                };
                let options = [MASK, 4, 255, 255, 255, 0, ROUTER, 4, 10, 9, 9, 1, SERVER_ID, 4, 10, 9, 9, 1];
                let mut answer = answer(kind, &options);
                answer[4..8].copy_from_slice(&asked[4..8]);
                answer[28..34].copy_from_slice(&asked[28..34]);
                answer[16..20].copy_from_slice(&[10, 9, 9, 15]);
                let to = if from.ip().is_unspecified() || !is_renewal { Ipv4Addr::BROADCAST } else { own };
                server.send_to(&answer, (to, CLIENT)).unwrap();
            }
        });
        let new = again(&card, &old, "node-7", Due::Renew).unwrap();
        assert_eq!(
            (new.address, new.gateway),
            (Ipv4Addr::new(10, 9, 9, 15), Some(Ipv4Addr::new(10, 9, 9, 1)))
        );
        super::super::change(&card, &old, &new).unwrap();
        let addresses = ip("-4 -o address show dev eth9").unwrap();
        assert!(addresses.contains("10.9.9.15/24") && !addresses.contains("10.9.8.7"), "{addresses}");
        assert!(ip("route get 192.0.2.1").unwrap().contains("via 10.9.9.1"));
        let neighbour = Lease { address: Ipv4Addr::new(10, 9, 9, 16), ..new.clone() };
        super::super::change(&card, &new, &neighbour).unwrap();
        let addresses = ip("-4 -o address show dev eth9").unwrap();
        assert!(addresses.contains("10.9.9.16/24") && !addresses.contains("10.9.9.15"), "{addresses}");
        assert!(
            ip("route get 192.0.2.1").unwrap().contains("via 10.9.9.1"),
            "its network went with the other address"
        );
    }

    fn lease_of(address: Ipv4Addr) -> Lease {
        Lease {
            address,
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 9, 8, 1)),
            dns: Vec::new(),
            server: address,
            seconds: 60,
        }
    }

    #[test]
    fn an_answer_is_read_and_others_are_not_ours() {
        let options = [
            &[0, MASK, 4, 255, 255, 252, 0, ROUTER, 4, 10, 0, 2, 2][..],
            &[DNS, 8, 10, 0, 2, 3, 9, 9, 9, 9],
            &[SERVER_ID, 4, 10, 0, 2, 2, SECONDS, 4, 0, 1, 81, 128],
        ]
        .concat();
        let packet = answer(OFFER, &options);
        let read_it = read(&packet, 7, MAC).unwrap();
        assert_eq!(read_it.kind, OFFER);
        let expected = Lease {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 22,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            dns: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(9, 9, 9, 9)],
            server: Ipv4Addr::new(10, 0, 2, 2),
            seconds: 86400,
        };
        assert_eq!(read_it.lease, expected);
        assert!(read(&packet, 8, MAC).is_none(), "another question");
        assert!(read(&packet, 7, [0; 6]).is_none(), "another machine");
        assert_eq!(read(&answer(ACK, &[]), 7, MAC).unwrap().lease.prefix, 8);
        assert!(read(&answer(ACK, &[MASK, 200, 1]), 7, MAC).is_none(), "cut off");
        for length in 0..packet.len() {
            let _ = read(&packet[..length], 7, MAC);
        }
    }
}
