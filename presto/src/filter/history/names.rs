//! Names in `history/`: what is kept under them.

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use intermezzo_kml::record::Time;

use super::Content;
use super::Kept;
use super::Was;

/// `after`: the newest record that had been begun.
pub(super) fn entry_name(after: Recno, kept: Kept) -> String {
    match kept {
        Kept::Whole(id) => format!("{:016x}-{}-{}", after.0, id.ino, id.generation),
        Kept::Copy(Was { content: Content { file, mtime, size }, ctime }) => {
            let touched = ctime.map(|ctime| format!("+{}.{}", ctime.sec, ctime.nsec)).unwrap_or_default();
            format!(
                "{:016x}-{}-{}-{}.{}-{size}{touched}",
                after.0, file.ino, file.generation, mtime.sec, mtime.nsec
            )
        }
    }
}

/// `None`: it is no such name.
pub(super) fn parse(name: &[u8]) -> Option<(Recno, Kept)> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts = name.splitn(4, '-');
    let after = Recno(u64::from_str_radix(parts.next()?, 16).ok()?);
    let file = FileId { ino: parts.next()?.parse().ok()?, generation: parts.next()?.parse().ok()? };
    let kept = match parts.next() {
        None => Kept::Whole(file),
        Some(rest) => {
            let (rest, touched) =
                rest.split_once('+').map_or((rest, None), |(rest, touched)| (rest, Some(touched)));
            // A time before 1970 has a minus of its own.
            let (mtime, size) = rest.rsplit_once('-')?;
            let content = Content { file, mtime: time(mtime)?, size: size.parse().ok()? };
            let ctime = match touched {
                Some(touched) => Some(time(touched)?),
                None => None,
            };
            Kept::Copy(Was { content, ctime })
        }
    };
    (entry_name(after, kept) == name).then_some((after, kept))
}

fn time(text: &str) -> Option<Time> {
    let (sec, nsec) = text.split_once('.')?;
    Some(Time { sec: sec.parse().ok()?, nsec: nsec.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn was(ino: u64, sec: i64) -> Was {
        let content = Content { file: FileId { ino, generation: 1 }, mtime: Time { sec, nsec: 7 }, size: 3 };
        Was { content, ctime: Some(Time { sec: sec - 1, nsec: 9 }) }
    }

    #[test]
    fn a_name_says_what_is_kept_and_no_other_one_does() {
        let earlier = Was { ctime: None, ..was(1, 5) };
        let copies = [was(1, 5), was(1, -5), earlier].map(Kept::Copy);
        for kept in copies.into_iter().chain([Kept::Whole(earlier.content.file)]) {
            let name = entry_name(Recno(77), kept);
            assert_eq!(parse(name.as_bytes()), Some((Recno(77), kept)), "{name}");
        }
        for other in [
            "000000000000004d-1-1-5.7-3+",
            "000000000000004d-1-1-5.7-3+5",
            "",
            "4d-1-1",
            "000000000000004d-01-1",
            "000000000000004d-1-1-5.7",
            "000000000000004d-1",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
