//! The NBD protocol (doc/proto.md of the NBD project), as far as QEMU's client speaks it with a server that offers little:
//! no TLS, no structured replies, no trim, no forced unit access, so that a flush is the only way to the medium.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::cache::Cache;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes; also what the client answers.
const HANDSHAKE: u16 = 3;
/// Has flags, sends flushes.
const EXPORT: u16 = 1 | 4;
const EINVAL: u32 = 22;
const EIO: u32 = 5;
/// Longest option and longest request.
const LIMIT: u32 = 64 << 20;

/// Talks until the client is gone.
pub fn serve(mut stream: UnixStream, cache: &mut Cache) -> io::Result<()> {
    stream.write_all(GREETING)?;
    stream.write_all(&HANDSHAKE.to_be_bytes())?;
    let _client_flags: [u8; 4] = take(&mut stream)?;
    while !option(&mut stream, cache.size())? {}
    loop {
        request(&mut stream, cache)?;
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn body(stream: &mut UnixStream, length: u32) -> io::Result<Vec<u8>> {
    if length > LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// One option of the handshake; true when requests follow.
fn option(stream: &mut UnixStream, size: u64) -> io::Result<bool> {
    if u64::from_be_bytes(take(stream)?) != OPTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let option = u32::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    let _data = body(stream, length)?;
    let mut reply = |kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap_or_default();
        let head = [option, kind, length].map(u32::to_be_bytes).concat();
        stream.write_all(&[&OPTION_REPLY.to_be_bytes()[..], &head, data].concat())
    };
    match option {
        // EXPORT_NAME has no reply but the export itself.
        1 => {
            stream.write_all(&[&size.to_be_bytes()[..], &EXPORT.to_be_bytes()].concat())?;
            Ok(true)
        }
        // ABORT.
        2 => {
            reply(1, b"")?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        // INFO and GO.
        6 | 7 => {
            let export = [&0_u16.to_be_bytes()[..], &size.to_be_bytes(), &EXPORT.to_be_bytes()].concat();
            let sizes =
                [&3_u16.to_be_bytes()[..], &[512_u32, 4096, LIMIT / 2].map(u32::to_be_bytes).concat()]
                    .concat();
            reply(3, &export)?;
            reply(3, &sizes)?;
            reply(1, b"")?;
            Ok(option == 7)
        }
        _ => {
            reply(1 << 31 | 1, b"")?;
            Ok(false)
        }
    }
}

fn request(stream: &mut UnixStream, cache: &mut Cache) -> io::Result<()> {
    if u32::from_be_bytes(take(stream)?) != REQUEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let _flags: [u8; 2] = take(stream)?;
    let kind = u16::from_be_bytes(take(stream)?);
    let handle: [u8; 8] = take(stream)?;
    let offset = u64::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    let mut data = Vec::new();
    let done = match kind {
        0 if length <= LIMIT => {
            data.resize(length as usize, 0);
            cache.read(offset, &mut data)
        }
        1 => cache.write(offset, body(stream, length)?),
        2 => return Err(io::ErrorKind::ConnectionAborted.into()),
        3 => cache.flush(),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    let error = match done {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => EINVAL,
        Err(_) => EIO,
    };
    let data = if error == 0 { &data[..] } else { &[] };
    stream.write_all(&[&REPLY.to_be_bytes()[..], &error.to_be_bytes(), &handle, data].concat())
}
