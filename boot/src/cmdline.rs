//! The kernel's command line, as far as it is about the root file system.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::network::{self, Fixed, Wish};

/// How long the disk is waited for, unless the command line says so.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a network and a server, which may have lost their power together with this machine.
const FAR_PATIENCE: Duration = Duration::from_secs(300);
/// Where servers listen, unless it is said.
const PORT: u16 = 7430;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the root file system comes from.
    pub source: Source,
    /// `init=`.
    pub init: Option<String>,
    /// `rootwait=`: how long the disk, or the server, is waited for.
    pub patience: Duration,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a disk of this machine.
    Disk(Disk),
    /// From the server, into memory.
    Server(Server),
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Which.
    pub place: Place,
    /// `rootflags=volume=`: which of the disk's volumes.
    pub volume: Option<String>,
    /// `rootflags=lower=`: type of the disk's file system; else it is looked at.
    pub lower: Option<String>,
    /// `rootflags=data=...` and the like: options of the disk's file system.
    pub options: Vec<String>,
}

/// How the disk is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By its device node.
    Device(String),
    /// By the id of the file system on it.
    Uuid(String),
    /// By the label of the file system on it.
    Label(String),
}

/// `intermezzo:NAMESPACE/NAME@NODE=ADDRESS[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// NAMESPACE/NAME.
    pub volume: String,
    /// Name of the server's node, as its certificate has it.
    pub node: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// `rootflags=mode=`, `access=`, `exclude=`, `pin=`.
    pub replica: Replica,
    /// Other words of `rootflags=`: options of the file system in memory, like `size=`.
    pub options: Vec<String>,
    /// How the network is reached.
    pub network: Wish,
}

/// What this node's part of the volume is to be, where no manifests were packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// `OnDemand` or `Full`.
    pub mode: Option<String>,
    /// `ReadWrite` or `ReadOnly`.
    pub access: Option<String>,
    /// Names that stay on this node.
    pub exclude: Vec<String>,
    /// Names whose contents are fetched at once.
    pub pins: Vec<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Device(path) => write!(f, "{path}"),
            Place::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Place::Label(label) => write!(f, "LABEL={label}"),
        }
    }
}

/// Whether an emergency shell is wanted, also where nothing else can be understood.
pub fn wants_shell(line: &str) -> bool {
    words(line).iter().any(|word| word == "intermezzo.shell")
}

/// Reads the command line.
///
/// # Errors
/// A sentence that says what to change.
pub fn parse(line: &str) -> Result<Request> {
    let words = words(line);
    // The last one counts, as in the kernel.
    let value = |name: &str| {
        words
            .iter()
            .filter_map(|word| word.split_once('='))
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next_back()
    };
    let root = value("root");
    let is_far = root.is_some_and(|root| root.starts_with(SCHEME));
    match value("rootfstype") {
        Some("intermezzo") => {}
        None if is_far => {}
        Some(other) => bail!(
            "rootfstype={other} on the kernel's command line, but this initramfs is for rootfstype=intermezzo: boot with that, \
             or with another initramfs"
        ),
        None => bail!("the kernel's command line has no rootfstype=intermezzo: add it"),
    }
    let flags: Vec<&str> =
        value("rootflags").unwrap_or_default().split(',').filter(|flag| !flag.is_empty()).collect();
    let source = match root {
        None | Some("") => bail!(
            "the kernel's command line has no root=: add root=/dev/NAME, root=UUID=..., root=LABEL=... or \
             root=intermezzo:NAMESPACE/NAME@NODE=ADDRESS"
        ),
        Some(root) => match root.strip_prefix(SCHEME) {
            Some(far) => Source::Server(server(root, far, &flags, wish(value("ip"), value("BOOTIF"))?)?),
            None => Source::Disk(disk(root, &flags)?),
        },
    };
    let patience = match value("rootwait") {
        // As the kernel has it.
        None if words.iter().any(|word| word == "rootwait") => Duration::MAX,
        None if is_far => FAR_PATIENCE,
        None => PATIENCE,
        Some(text) => match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => bail!("rootwait={text} is not a number of seconds"),
        },
    };
    Ok(Request { source, init: value("init").map(str::to_owned), patience })
}

/// How `root=` begins where it names a server.
const SCHEME: &str = "intermezzo:";

fn disk(root: &str, flags: &[&str]) -> Result<Disk> {
    let place = match root.split_once('=') {
        Some(("UUID", uuid)) => Place::Uuid(uuid.to_lowercase()),
        Some(("LABEL", label)) => Place::Label(label.to_owned()),
        None if root.starts_with("/dev/") => Place::Device(root.to_owned()),
        _ => bail!("root={root} names no disk: root=/dev/NAME, root=UUID=... or root=LABEL=..."),
    };
    let mut disk = Disk { place, volume: None, lower: None, options: Vec::new() };
    for flag in flags {
        match flag.split_once('=') {
            Some(("volume", "")) => bail!("rootflags=volume= is empty: rootflags=volume=NAMESPACE/NAME"),
            Some(("volume", name)) => disk.volume = Some(name.to_owned()),
            Some(("lower", kind)) => disk.lower = Some(kind.to_owned()),
            _ => disk.options.push((*flag).to_owned()),
        }
    }
    Ok(disk)
}

fn server(root: &str, text: &str, flags: &[&str], network: Wish) -> Result<Server> {
    let parts = text.split_once('@').and_then(|(volume, server)| {
        let (node, address) = server.split_once('=')?;
        let (namespace, name) = volume.split_once('/')?;
        let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '"', '\\']);
        (is_name(namespace) && is_name(name) && is_name(node)).then_some((volume, node, address))
    });
    let Some((volume, node, address)) = parts else {
        bail!(
            "root={root} does not say which volume of which server: root=intermezzo:NAMESPACE/NAME@NODE=ADDRESS, where NODE is \
             the name in the server's certificate, as in root=intermezzo:site/root@a=10.0.0.1"
        );
    };
    let address = address
        .parse::<SocketAddr>()
        .or_else(|_| address.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    let Ok(address) = address else {
        bail!(
            "root={root}: the server's address must be one of IP, as 10.0.0.1 or 10.0.0.1:{PORT}; names are not looked up"
        );
    };
    let (mut replica, mut options) = (Replica::default(), Vec::new());
    let listed =
        |value: &str| value.split(':').filter(|one| !one.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    for flag in flags {
        match flag.split_once('=') {
            Some(("mode", mode @ ("OnDemand" | "Full"))) => replica.mode = Some(mode.to_owned()),
            Some(("access", access @ ("ReadWrite" | "ReadOnly"))) => replica.access = Some(access.to_owned()),
            Some(("exclude", patterns)) => replica.exclude.extend(listed(patterns)),
            Some(("pin", patterns)) => replica.pins.extend(listed(patterns)),
            Some(("mode", other)) => bail!("rootflags=mode={other}: it is OnDemand or Full"),
            Some(("access", other)) => bail!("rootflags=access={other}: it is ReadWrite or ReadOnly"),
            _ => options.push((*flag).to_owned()),
        }
    }
    Ok(Server { volume: volume.to_owned(), node: node.to_owned(), address, replica, options, network })
}

/// `ip=dhcp`, `ip=:::::DEVICE:dhcp`, `ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off`, as the kernel has it.
fn wish(ip: Option<&str>, booted_from: Option<&str>) -> Result<Wish> {
    // PXE puts the type of the network before the address.
    let mac = booted_from.and_then(|text| network::mac(text.strip_prefix("01-")?, '-'));
    let mut wish = Wish { mac, ..Wish::default() };
    let Some(ip) = ip.filter(|ip| !matches!(*ip, "" | "dhcp" | "on" | "any" | "both")) else {
        return Ok(wish);
    };
    if matches!(ip, "off" | "none") {
        bail!(
            "ip={ip}: without a network there is no root file system; ip=dhcp, or ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off"
        );
    }
    let fields: Vec<&str> = ip.split(':').collect();
    let field = |number: usize| fields.get(number).copied().filter(|text| !text.is_empty());
    let number = |which: usize, what: &str| match field(which).map(str::parse::<Ipv4Addr>) {
        None => Ok(None),
        Some(Ok(address)) => Ok(Some(address)),
        Some(Err(_)) => bail!("ip={ip}: {} is no {what} of IPv4", field(which).unwrap_or_default()),
    };
    wish.device = field(5).map(str::to_owned);
    let Some(address) = number(0, "address")? else {
        match field(6) {
            None | Some("dhcp" | "on" | "any" | "both") if fields.len() > 1 => return Ok(wish),
            _ => bail!(
                "ip={ip} has neither an address nor DHCP: ip=dhcp, or ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off"
            ),
        }
    };
    let Some(mask) = number(3, "netmask")? else {
        bail!("ip={ip} has no netmask: ip=ADDRESS::GATEWAY:NETMASK::DEVICE:off");
    };
    let prefix = u8::try_from(u32::from(mask).leading_ones()).unwrap_or(32);
    wish.fixed = Some(Fixed { address, prefix, gateway: number(2, "gateway")? });
    Ok(wish)
}

/// Words may be quoted.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.trim().chars() {
        match character {
            '"' => quoted = !quoted,
            space if space.is_whitespace() && !quoted => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_of(line: &str) -> Disk {
        match parse(line).unwrap().source {
            Source::Disk(disk) => disk,
            Source::Server(server) => panic!("{server:?}"),
        }
    }

    fn server_of(line: &str) -> Server {
        match parse(line).unwrap().source {
            Source::Server(server) => server,
            Source::Disk(disk) => panic!("{disk:?}"),
        }
    }

    #[test]
    fn a_whole_line_is_understood() {
        let line = "BOOT_IMAGE=/vmlinuz console=ttyS0 root=/dev/sda1 ro rootfstype=ext4 rootfstype=intermezzo \
                    rootflags=volume=team/root,data=journal init=\"/lib/my init\" rootwait=5\n";
        let (request, disk) = (parse(line).unwrap(), disk_of(line));
        assert_eq!(disk.place, Place::Device("/dev/sda1".to_owned()));
        assert_eq!(disk.volume.as_deref(), Some("team/root"));
        assert_eq!(disk.options, ["data=journal"]);
        assert_eq!(request.init.as_deref(), Some("/lib/my init"));
        assert_eq!(request.patience, Duration::from_secs(5));
        let by = |source: &str| disk_of(&format!("rootfstype=intermezzo root={source}")).place;
        assert_eq!(by("UUID=ABCD-12"), Place::Uuid("abcd-12".to_owned()));
        assert_eq!(by("LABEL=node"), Place::Label("node".to_owned()));
        assert!(wants_shell("quiet intermezzo.shell") && !wants_shell(line));
    }

    #[test]
    fn a_server_is_understood() {
        let line = "root=intermezzo:site/root@a=10.0.0.1 BOOTIF=01-52-54-00-12-34-56 \
                    rootflags=size=60%,access=ReadOnly,exclude=/etc/machine-id:/var/log/,pin=/usr/lib/**,exclude=/tmp/";
        let server = server_of(line);
        assert_eq!((server.volume.as_str(), server.node.as_str()), ("site/root", "a"));
        assert_eq!(server.address, "10.0.0.1:7430".parse().unwrap());
        assert_eq!(server.options, ["size=60%"]);
        let replica = Replica {
            mode: None,
            access: Some("ReadOnly".to_owned()),
            exclude: ["/etc/machine-id", "/var/log/", "/tmp/"].map(str::to_owned).into(),
            pins: vec!["/usr/lib/**".to_owned()],
        };
        assert_eq!(server.replica, replica);
        assert_eq!(server.network.mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        let at = |address: &str| server_of(&format!("root=intermezzo:a/b@c={address}")).address;
        assert_eq!(at("[fd00::1]:99"), "[fd00::1]:99".parse().unwrap());
        assert_eq!(at("fd00::1"), "[fd00::1]:7430".parse().unwrap());
        let patience = |more: &str| parse(&format!("root=intermezzo:a/b@c=1.2.3.4 {more}")).unwrap().patience;
        assert_eq!(patience(""), FAR_PATIENCE);
        assert_eq!(patience("rootwait"), Duration::MAX);
        assert_eq!(patience("rootwait=7"), Duration::from_secs(7));
    }

    #[test]
    fn the_network_is_understood_as_the_kernel_has_it() {
        let of = |ip: &str| server_of(&format!("root=intermezzo:a/b@c=1.2.3.4 ip={ip}")).network;
        assert_eq!(of("dhcp"), Wish::default());
        assert_eq!(of(":::::eth1:dhcp").device.as_deref(), Some("eth1"));
        let fixed = of("10.0.2.15::10.0.2.2:255.255.255.0:node-7:eth0:off");
        let gateway = Some(Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(fixed.fixed, Some(Fixed { address: Ipv4Addr::new(10, 0, 2, 15), prefix: 24, gateway }));
        assert_eq!(fixed.device.as_deref(), Some("eth0"));
    }

    #[test]
    fn a_wrong_line_says_what_to_change() {
        for (line, why) in [
            ("root=/dev/vda", "no rootfstype=intermezzo: add it"),
            ("root=/dev/vda rootfstype=ext4", "is for rootfstype=intermezzo"),
            ("rootfstype=intermezzo", "add root=/dev/NAME"),
            ("rootfstype=intermezzo root=vda", "names no disk"),
            ("rootfstype=intermezzo root=PARTUUID=1", "names no disk"),
            ("rootfstype=intermezzo root=/dev/vda rootwait=x", "not a number of seconds"),
            ("rootfstype=intermezzo root=/dev/vda rootflags=volume=", "rootflags=volume=NAMESPACE/NAME"),
            ("root=intermezzo:a/b@c", "which volume of which server"),
            ("root=intermezzo:b@c=1.2.3.4", "which volume of which server"),
            ("root=intermezzo:a/b@c=host.example", "names are not looked up"),
            ("root=intermezzo:a/b@c=1.2.3.4 rootflags=mode=Some", "OnDemand or Full"),
            ("root=intermezzo:a/b@c=1.2.3.4 rootflags=access=none", "ReadWrite or ReadOnly"),
            ("root=intermezzo:a/b@c=1.2.3.4 ip=off", "ip=dhcp"),
            ("root=intermezzo:a/b@c=1.2.3.4 ip=1.2.3:::", "no address of IPv4"),
            ("root=intermezzo:a/b@c=1.2.3.4 ip=1.2.3.4::1.2.3.1", "no netmask"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
