//! What /etc/fstab in the volume, or the options of a remount, say of the root file system.

use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::filter::Volume;
use crate::lower::Stat;

/// Longer ones nobody writes.
const LIMIT: u64 = 1 << 20;

/// The options of `/` in the volume's fstab.
///
/// # Errors
/// There is none, for people.
pub(super) fn options(volume: &Volume) -> Result<String, String> {
    let text = read(volume).map_err(|error| format!("/etc/fstab cannot be read: {error}"))?;
    find(&text).ok_or_else(|| {
        format!("/etc/fstab has no line for /; add `{0} / intermezzo volume={0},mtpt=/ 0 0`", volume.name)
    })
}

/// Brings its content here, where that is not.
pub(super) fn bring(volume: &Volume) -> std::io::Result<()> {
    let file = open(volume)?;
    Ok(volume.bring(volume.lower.identify(&file)?)?)
}

fn read(volume: &Volume) -> std::io::Result<String> {
    let file = open(volume)?;
    let stat = Stat::of(&file)?;
    if volume.lacking_file(volume.lower.identify(&file)?, &stat)?.is_some() {
        return Err(std::io::Error::other("its content is not here yet"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// From the tree below, not through the mount, which this presto itself serves.
fn open(volume: &Volume) -> std::io::Result<File> {
    let tree = volume.lower.dir(volume.lower.root())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::openat2(&*tree, "etc/fstab", flags, Mode::empty(), ResolveFlags::IN_ROOT)?))
}

fn find(fstab: &str) -> Option<String> {
    let lines = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut options = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.nth(1)? == "/").then(|| words.nth(1).unwrap_or_default().to_owned())
    });
    options.next_back()
}

/// Whether these options name this volume and `/`.
///
/// # Errors
/// They do not, as the rest of a sentence.
pub(super) fn names(options: &str, volume: &str) -> Result<(), String> {
    let value = |name: &str| {
        let words = options.split(',').filter_map(|word| word.trim().split_once('='));
        words.filter(|(key, _)| *key == name).map(|(_, value)| value).next_back()
    };
    match (value("volume"), value("mtpt")) {
        (Some(named), _) if named != volume => {
            Err(format!("names volume {named}, but this is volume {volume}: it needs volume={volume},mtpt=/"))
        }
        (_, Some(mtpt)) if mtpt != "/" => {
            Err(format!("names the mount point {mtpt}, but the root file system is at /: it needs mtpt=/"))
        }
        (Some(_), Some(_)) => Ok(()),
        _ => Err(format!(
            "does not say which volume and mount point are meant: it needs volume={volume},mtpt=/"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_for_the_root_counts() {
        let fstab = "# <device> <mount point> <type> <options>\n\
            /dev/vda / ext4 errors=remount-ro 0 1\n\
            tmpfs /tmp tmpfs defaults\n\
            a/b  /  intermezzo  rw,volume=a/b,mtpt=/  0 0\n";
        assert_eq!(find(fstab).unwrap(), "rw,volume=a/b,mtpt=/");
        assert_eq!(find("a/b /\n").unwrap(), "");
        assert_eq!(find("#a/b / intermezzo x\n\n"), None);
    }

    #[test]
    fn volume_and_mount_point_must_both_be_named() {
        assert_eq!(names("rw,remount,volume=a/b,mtpt=/", "a/b"), Ok(()));
        // Old versions of mount(8) give them twice.
        assert_eq!(names("volume=a/b,mtpt=/,volume=a/b,mtpt=/", "a/b"), Ok(()));
        for (options, why) in [
            ("rw", "needs volume=a/b,mtpt=/"),
            ("volume=a/b", "needs volume=a/b,mtpt=/"),
            ("volume=a/c,mtpt=/", "names volume a/c"),
            ("volume=a/b,mtpt=/mnt", "mount point /mnt"),
        ] {
            assert!(names(options, "a/b").unwrap_err().contains(why), "{options}");
        }
    }
}
