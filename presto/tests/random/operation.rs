//! What programs may ask, and what they may be told.

use proptest::prelude::*;
use rustix::io::Errno;

/// Names that operations are about: few, in few directories, so that they meet.
pub const PATHS: [&str; 12] =
    ["a", "b", "d", "e", "d/a", "d/b", "d/d", "e/a", "e/d", "d/d/a", "d/d/b", "a/b"];
/// What symbolic links say.
pub const TARGETS: [&str; 6] = ["a", "b", "d", "d/a", "e/d", "nowhere/x"];
/// Descriptors that may be open at a time.
pub const SLOTS: usize = 3;

pub type Path = &'static str;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub create: bool,
    pub exclusive: bool,
    pub truncate: bool,
}

/// What fallocate(2) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Allocate,
    Keep,
    Punch,
    Zero,
}

/// How names change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Plain,
    NoReplace,
    Exchange,
}

/// One call. Those by a slot do nothing where none is open.
#[derive(Clone, Debug)]
pub enum Op {
    Open(usize, Path, How),
    Close(usize),
    Read(usize, u64, usize),
    Write(usize, u64, Vec<u8>),
    Truncate(usize, u64),
    TruncateName(Path, u64),
    Allocate(usize, Space, u64, u64),
    Copy(usize, usize, u64, u64, usize),
    Store(usize, usize, u8),
    Sync(usize),
    StatOpen(usize),
    Mkdir(Path),
    Rmdir(Path),
    Unlink(Path),
    Symlink(Path, Path),
    Link(Path, Path),
    Rename(Path, Path, Way),
    Chmod(Path, u32),
    Chown(Path, u32),
    Touch(Path, i64),
    SetXattr(Path, u8, Vec<u8>),
    GetXattr(Path, u8),
    RemoveXattr(Path, u8),
    Stat(Path),
    ReadLink(Path),
    List(Path),
}

/// What the caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// There is nothing open there.
    Nothing,
    /// A directory was opened, which these tests close again.
    Directory,
    Count(usize),
    Bytes(Vec<u8>),
    Names(Vec<String>),
    Stat(Shown),
}

/// What stat(2) shows, as far as a reference can know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub kind: char,
    pub mode: u32,
    pub owner: u32,
    /// Not of directories.
    pub links: u64,
    pub size: u64,
    /// The modification time, if somebody set it. What else moves it is for file systems to say, not for a reference.
    pub mtime: Option<i64>,
}

impl Answer {
    /// Without what a reference does not know.
    pub fn timeless(self) -> Answer {
        match self {
            Answer::Stat(shown) => Answer::Stat(Shown { mtime: None, ..shown }),
            other => other,
        }
    }
}

pub type Told = Result<Answer, Errno>;

/// Times that are set are below this; the present is not.
pub const LONG_AGO: i64 = 1_000_000;

pub fn operations(length: usize) -> impl Strategy<Value = Vec<Op>> {
    let path = || proptest::sample::select(&PATHS[..]);
    let slot = || 0..SLOTS;
    let at = || prop_oneof![3 => 0..64u64, 1 => 0..20_000u64];
    let bytes = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 0..9000usize).prop_map(|(byte, size)| vec![byte; size]),
    ];
    let one_in = |n: u32| (0..n).prop_map(|drawn| drawn == 0);
    let rest = (one_in(4), one_in(5), one_in(6), one_in(4));
    let how = (one_in(4), one_in(3), rest).prop_map(|(write_only, read_only, rest)| {
        let (append, no_create, exclusive, truncate) = rest;
        let (create, write) = (!no_create, !read_only);
        let read = read_only || !write_only;
        How {
            read,
            write,
            append: append && write,
            create,
            exclusive: exclusive && create,
            truncate: truncate && write,
        }
    });
    let space = proptest::sample::select(&[Space::Allocate, Space::Keep, Space::Punch, Space::Zero][..]);
    let way = proptest::sample::select(&[Way::Plain, Way::Plain, Way::NoReplace, Way::Exchange][..]);
    let op = prop_oneof![
        16 => (slot(), path(), how).prop_map(|(s, p, h)| Op::Open(s, p, h)),
        2 => slot().prop_map(Op::Close),
        8 => (slot(), at(), 0..9000usize).prop_map(|(s, a, n)| Op::Read(s, a, n)),
        10 => (slot(), at(), bytes).prop_map(|(s, a, b)| Op::Write(s, a, b)),
        3 => (slot(), at()).prop_map(|(s, n)| Op::Truncate(s, n)),
        2 => (path(), at()).prop_map(|(p, n)| Op::TruncateName(p, n)),
        3 => (slot(), space, at(), 1..9000u64).prop_map(|(s, m, a, n)| Op::Allocate(s, m, a, n)),
        3 => (slot(), slot(), at(), at(), 0..9000usize).prop_map(|(a, b, x, y, n)| Op::Copy(a, b, x, y, n)),
        3 => (slot(), 0..9000usize, any::<u8>()).prop_map(|(s, a, b)| Op::Store(s, a, b)),
        1 => slot().prop_map(Op::Sync),
        3 => slot().prop_map(Op::StatOpen),
        6 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rmdir),
        3 => path().prop_map(Op::Unlink),
        2 => (proptest::sample::select(&TARGETS[..]), path()).prop_map(|(t, p)| Op::Symlink(t, p)),
        4 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        8 => (path(), path(), way).prop_map(|(a, b, w)| Op::Rename(a, b, w)),
        2 => (path(), 0..0o1000u32).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path(), 0..5u32).prop_map(|(p, o)| Op::Chown(p, o)),
        2 => (path(), 0..LONG_AGO).prop_map(|(p, t)| Op::Touch(p, t)),
        2 => (path(), 0..3u8, proptest::collection::vec(any::<u8>(), 0..30))
            .prop_map(|(p, n, v)| Op::SetXattr(p, n, v)),
        2 => (path(), 0..3u8).prop_map(|(p, n)| Op::GetXattr(p, n)),
        1 => (path(), 0..3u8).prop_map(|(p, n)| Op::RemoveXattr(p, n)),
        8 => path().prop_map(Op::Stat),
        2 => path().prop_map(Op::ReadLink),
        3 => path().prop_map(Op::List),
    ];
    let begin = ["d", "e", "d/d"].map(Op::Mkdir);
    proptest::collection::vec(op, length - begin.len())
        .prop_map(move |rest| begin.iter().cloned().chain(rest).collect())
}
