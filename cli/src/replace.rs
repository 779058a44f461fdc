//! Files that are replaced whole.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file: whoever reads meanwhile sees the old or the new one. `mode`: as in open(2).
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Hidden, so that who follows the directory of manifests does not read half of it.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    // One that a kill has left may be open to others than this one is to be.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = fs::File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_kill_has_left_lends_its_mode_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(".secret.new");
        fs::write(&left, "half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        let path = dir.path().join("secret");
        replace(&path, b"whole", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!left.exists());
    }
}
