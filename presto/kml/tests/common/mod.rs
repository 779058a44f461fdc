//! Records to write, each different, each known by its number.

#![allow(dead_code, reason = "each test uses some of it")]

use intermezzo_kml::{
    Attributes, Caller, Config, FileId, Flags, Intent, Mask, Opcode, Origin, OriginKind, Outcome, Tag, Time,
};

/// Small segments, so that they change often.
pub fn config() -> Config {
    Config { max_bytes: 1 << 20, segment_bytes: 16384, reserve_bytes: 32768, volume: 7 }
}

fn attributes(n: u64) -> Attributes {
    Attributes {
        mode: 0o100_644,
        uid: n as u32,
        gid: 2,
        nlink: 1,
        rdev: n << 33,
        size: n * 1000,
        mtime: Time { sec: -(n as i64), nsec: 999_999_999 },
        ctime: Time { sec: n as i64, nsec: n as u32 },
    }
}

/// Uses every field; length of names and value differs with the number.
pub fn create_of(n: u64) -> Intent {
    let file = |k: u64| FileId { ino: n * 10 + k, generation: k << 40 };
    Intent {
        opcode: Opcode::from_u16(1 + (n % 13) as u16),
        time: Time { sec: 1_700_000_000 + n as i64, nsec: 123_456_789 },
        caller: Caller { uid: 1, gid: 2, pid: n as u32 },
        object: file(1),
        parent: file(2),
        target_parent: file(3),
        replaced: file(4),
        flags: Flags::LAST_LINK | Flags::XATTRS,
        mask: Mask::MODE | Mask::SIZE,
        before: attributes(n + 1),
        origin: Origin {
            record: Tag { replica: n, incarnation: 3, number: n + 7 },
            object: Tag { replica: !n, incarnation: 4, number: n + 8 },
            hash: [n as u8; 32],
            verdict: 9,
            kind: if n.is_multiple_of(2) { OriginKind::Replay } else { OriginKind::User },
        },
        name: vec![b'a'; (n % 256) as usize],
        target_name: vec![b'b'; (n % 7) as usize],
        value: vec![n as u8; (n * 13 % 400) as usize],
        parent_times: n.is_multiple_of(3).then(|| [5, 6].map(|k| Time { sec: -(n as i64), nsec: k })),
    }
}

/// The usual small one.
pub fn close_of(n: u64) -> Intent {
    Intent {
        opcode: Some(Opcode::Close),
        object: FileId { ino: n, generation: 1 },
        before: attributes(n),
        ..Intent::default()
    }
}

/// Uses every field.
pub fn outcome(n: u64) -> Outcome {
    Outcome {
        object: FileId { ino: n, generation: n },
        after: attributes(n + 2),
        parent_mtime: Time { sec: n as i64, nsec: 1 },
        target_parent_mtime: Time { sec: 5, nsec: n as u32 },
        flags: Flags::HASHED | Flags::LIMBO,
    }
}
