//! Contents that tell where they are from: each sector of a file follows from seed, file, place and version.

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// One sector, cut to `length`.
pub fn sector(seed: u64, file: u32, number: usize, version: u16, length: usize) -> Vec<u8> {
    let place = (u64::from(file) << 32) ^ ((number as u64) << 16) ^ u64::from(version);
    let mut state = seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = mix(state);
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// splitmix64.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number for bytes, eight at a time.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        mix(sum ^ u64::from_le_bytes(word))
    })
}

/// Length of each sector of a file.
pub fn lengths(size: usize) -> impl Iterator<Item = usize> {
    (0..size.div_ceil(SECTOR)).map(move |number| SECTOR.min(size - number * SECTOR))
}
