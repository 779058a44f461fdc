//! The network of a machine without a disk: up before its root file system is there.
//!
//! `netlink` is the way to the kernel, `dhcp` the way to an address. What the kernel has set up by itself (`ip=` with
//! CONFIG_IP_PNP) is taken as it is.

pub mod dhcp;
pub mod netlink;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use crate::console::say;
use dhcp::Lease;
use netlink::Index;

/// Interfaces of this machine.
const CARDS: &str = "/sys/class/net";
/// How often they are looked at.
const BREATH: Duration = Duration::from_millis(20);
/// How often it is said what is waited for.
const WORD: Duration = Duration::from_secs(10);
/// For one of several interfaces to get an address before the next one is tried.
const TURN: Duration = Duration::from_secs(15);

/// What the command line wants (`ip=`, `BOOTIF=`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Name of the interface.
    pub device: Option<String>,
    /// Address of the interface from which the machine was booted.
    pub mac: Option<[u8; 6]>,
    /// Without DHCP.
    pub fixed: Option<Fixed>,
}

/// An address that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// This machine's.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// The way out.
    pub gateway: Option<Ipv4Addr>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: Index,
    /// Its address.
    pub mac: [u8; 6],
}

/// Brings it up; the lease where the address is one for a time.
///
/// # Errors
/// No interface, no address; with what to change.
pub fn up(wish: &Wish, host: &str, patience: Duration) -> Result<Option<(Card, Lease)>> {
    // Programs of this machine talk to one another by it.
    if let Ok(loopback) = card("lo") {
        let _ = netlink::set_up(loopback.index);
    }
    if is_up() {
        return Ok(None);
    }
    let begun = Instant::now();
    let deadline = begun.checked_add(patience);
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let mut said = Duration::ZERO;
    loop {
        let cards = cards(wish);
        for card in &cards {
            netlink::set_up(card.index).with_context(|| format!("{} is not switched on", card.name))?;
        }
        let connected: Vec<&Card> = cards.iter().filter(|card| has_carrier(&card.name)).collect();
        for card in &connected {
            if let Some(fixed) = &wish.fixed {
                configure(card, fixed.address, fixed.prefix, fixed.gateway)?;
                return Ok(None);
            }
            match dhcp::lease(card, host, Instant::now() + TURN.min(patience)) {
                Ok(lease) => {
                    configure(card, lease.address, lease.prefix, lease.gateway)?;
                    return Ok(Some(((*card).clone(), lease)));
                }
                Err(error) => say(format_args!("{error:#} ({} s)", begun.elapsed().as_secs())),
            }
        }
        let why = lacks(wish, &cards, &connected);
        if is_over() {
            bail!("no network after {} s: {why}", begun.elapsed().as_secs());
        }
        if begun.elapsed() >= said + WORD {
            said = begun.elapsed();
            say(format_args!("waiting for the network: {why} ({} s)", said.as_secs()));
        }
        std::thread::sleep(BREATH);
    }
}

fn lacks(wish: &Wish, cards: &[Card], connected: &[&Card]) -> String {
    let names = |cards: &[Card]| cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>().join(", ");
    if let (true, Some(device)) = (cards.is_empty(), &wish.device) {
        return format!("there is no interface {device} (ip=) but {}", names(&self::cards(&Wish::default())));
    }
    if cards.is_empty() {
        return "there is no network interface; pack the module of its controller (intermezzo initramfs --module NAME)"
            .to_owned();
    }
    if connected.is_empty() {
        return format!("no cable, or nobody at its other end, at {}", names(cards));
    }
    "no DHCP server answers; is the machine in its network? ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off needs none".to_owned()
}

fn configure(card: &Card, address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Result<()> {
    let done = |done: Result<(), Errno>| {
        done.or_else(|errno| if errno == Errno::EXIST { Ok(()) } else { Err(errno) })
    };
    done(netlink::add_address(card.index, address, prefix))
        .with_context(|| format!("{} does not get the address {address}/{prefix}", card.name))?;
    if let Some(gateway) = gateway {
        if !is_beside(address, prefix, gateway) {
            // Of a network of one address (as some clouds give it) the router is no part, and all the same on this line.
            done(netlink::add_way(card.index, gateway))
                .with_context(|| format!("no way to the router {gateway} by {}", card.name))?;
        }
        done(netlink::add_gateway(card.index, gateway))
            .with_context(|| format!("no way to the router {gateway} by {}", card.name))?;
    }
    say(format_args!("{} has the address {address}/{prefix}", card.name));
    Ok(())
}

fn is_beside(address: Ipv4Addr, prefix: u8, other: Ipv4Addr) -> bool {
    let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    u32::from(address) | hosts == u32::from(other) | hosts
}

/// Another lease in the place of one that has ended, or what was renewed of it. The old address goes first: the kernel takes a
/// second one of the same network away together with it.
fn change(card: &Card, old: &Lease, new: &Lease) -> Result<()> {
    let of = |lease: &Lease| (lease.address, lease.prefix, lease.gateway);
    if of(new) == of(old) {
        return Ok(());
    }
    if (new.address, new.prefix) != (old.address, old.prefix) {
        match netlink::remove_address(card.index, old.address, old.prefix) {
            Ok(()) | Err(Errno::ADDRNOTAVAIL) => {}
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("{} keeps the address {}", card.name, old.address));
            }
        }
    }
    configure(card, new.address, new.prefix, new.gateway)
}

/// Whether the kernel has been there already.
fn is_up() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().skip(1).any(|line| !line.starts_with("lo\t"))
}

/// Those that come into question, by name.
fn cards(wish: &Wish) -> Vec<Card> {
    let names = std::fs::read_dir(CARDS).into_iter().flatten().flatten();
    let mut cards: Vec<Card> =
        names.filter_map(|name| card(&name.file_name().to_string_lossy()).ok()).collect();
    cards.retain(|card| {
        card.name != "lo"
            && wish.device.as_ref().is_none_or(|name| *name == card.name)
            && (wish.device.is_some() || wish.mac.is_none_or(|mac| mac == card.mac))
    });
    cards.sort_by(|one, other| one.name.cmp(&other.name));
    cards
}

/// The interface of this name.
///
/// # Errors
/// There is none, or it has no Ethernet address.
pub fn card(name: &str) -> Result<Card> {
    let told = |what: &str| std::fs::read_to_string(Path::new(CARDS).join(name).join(what));
    Ok(Card {
        name: name.to_owned(),
        index: Index(told("ifindex")?.trim().parse()?),
        mac: mac(told("address")?.trim(), ':').context("no Ethernet")?,
    })
}

fn has_carrier(name: &str) -> bool {
    std::fs::read_to_string(Path::new(CARDS).join(name).join("carrier")).is_ok_and(|text| text.trim() == "1")
}

/// Six bytes in hexadecimal digits.
pub fn mac(text: &str, between: char) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(between).map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
pub mod tests {
    use std::process::Command;

    use super::*;

    /// Runs this test in a network of its own, with one interface `eth9`; true there.
    pub fn is_in_a_network_of_its_own(test: &str) -> bool {
        const MARK: &str = "INTERMEZZO_TEST_OWN_NETWORK";
        if std::env::var_os(MARK).is_some() {
            for words in [
                "link add eth9 type veth peer name eth8",
                "link set lo up",
                "link set eth8 up",
                "link set eth9 up",
            ] {
                assert!(ip(words).is_some(), "ip {words}");
            }
            return true;
        }
        let own = std::env::current_exe().unwrap();
        let mut again = Command::new("unshare");
        again.args(["-n", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && exec \"$@\"", "sh"]);
        again.arg(own).args(["--exact", test, "--nocapture"]).env(MARK, "1");
        let done = again.output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(
            done.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&done.stderr)
        );
        false
    }

    pub fn ip(words: &str) -> Option<String> {
        let done = Command::new("ip").args(words.split(' ')).output().unwrap();
        done.status.success().then(|| String::from_utf8(done.stdout).unwrap())
    }

    #[test]
    fn a_router_outside_of_the_network_is_reached() {
        if !is_in_a_network_of_its_own("network::tests::a_router_outside_of_the_network_is_reached") {
            return;
        }
        let (card, router) = (card("eth9").unwrap(), Ipv4Addr::new(10, 9, 0, 1));
        configure(&card, Ipv4Addr::new(10, 9, 8, 7), 32, Some(router)).unwrap();
        assert!(ip("route get 192.0.2.1").unwrap().contains("via 10.9.0.1 dev eth9"), "{:?}", ip("route"));
        // And one inside as before.
        configure(&card, Ipv4Addr::new(10, 8, 0, 7), 24, Some(Ipv4Addr::new(10, 8, 0, 1))).unwrap();
        assert!(ip("route get 192.0.2.1").unwrap().contains("via 10.8.0.1 dev eth9"), "{:?}", ip("route"));
    }

    #[test]
    fn addresses_of_interfaces_are_read() {
        assert_eq!(mac("52:54:00:12:34:ff", ':'), Some([0x52, 0x54, 0, 0x12, 0x34, 0xff]));
        for wrong in ["52:54:00:12:34", "52-54-00-12-34-56", "x2:54:00:12:34:56", ""] {
            assert_eq!(mac(wrong, ':'), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_change() {
        let card = Card { name: "eth0".to_owned(), index: Index(2), mac: [0; 6] };
        let says = |cards: &[Card], connected: &[&Card]| lacks(&Wish::default(), cards, connected);
        assert!(says(&[], &[]).contains("--module NAME"));
        assert!(says(std::slice::from_ref(&card), &[]).contains("no cable"));
        assert!(
            says(std::slice::from_ref(&card), &[&card]).contains("ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off")
        );
        let wish = Wish { device: Some("eth9".to_owned()), ..Wish::default() };
        assert!(lacks(&wish, &[], &[]).contains("no interface eth9"));
    }
}
