//! Modules of a kernel package. It comes without an index, so each module is asked what it depends on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const DEADLINE: Duration = Duration::from_secs(60);

/// A module as insmod takes it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// What is loaded.
    pub bytes: Vec<u8>,
}

/// These modules and what they depend on, in an order in which they can be loaded. What the kernel has built in is left out.
///
/// # Errors
/// A module cannot be read.
pub fn closure(modules: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&modules.join("kernel"), &mut files)?;
    ensure!(!files.is_empty(), "no modules in {}", modules.display());
    let mut order = Vec::new();
    for name in wanted {
        add(&files, name, &mut order)?;
    }
    Ok(order)
}

fn add(files: &BTreeMap<String, PathBuf>, name: &str, order: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    if order.iter().any(|known| known.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(&name) else { return Ok(()) };
    let bytes = read(path)?;
    for needed in depends(&bytes) {
        add(files, &needed, order)?;
    }
    order.push(Module { name, bytes });
    Ok(())
}

/// The field of the module's own description.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let value = module.get(at + key.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let out = tempfile::NamedTempFile::new()?;
    let mut child = Command::new("xz").arg("-dc").arg(path).stdout(out.reopen()?).spawn()?;
    let begin = std::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "xz cannot unpack {}", path.display());
            return Ok(fs::read(out.path())?);
        }
        if begin.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("xz does not end with {}", path.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel/fs");
        fs::create_dir_all(&kernel).unwrap();
        let module = |name: &str, needs: &str| {
            fs::write(kernel.join(format!("{name}.ko")), format!("ELF\0depends={needs}\0name={name}\0"))
                .unwrap();
        };
        module("top", "left,right-hand");
        module("left", "base");
        module("right-hand", "base,builtin");
        module("base", "");
        let order = closure(dir.path(), &["top", "base", "builtin"]).unwrap();
        let names: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["base", "left", "right_hand", "top"]);
    }
}
