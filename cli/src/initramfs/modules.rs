//! Modules of a kernel, found by name; each is asked what it depends on, so no index is needed, which a package that is only
//! unpacked lacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A module as the kernel takes it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// What is loaded.
    pub bytes: Vec<u8>,
}

/// All modules of one kernel.
#[derive(Clone, Debug)]
pub struct Modules {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    /// Modules by another name that they go by, as depmod found them.
    aliases: BTreeMap<String, Vec<String>>,
}

impl Modules {
    /// Those below a directory like `/lib/modules/6.12.1`.
    ///
    /// # Errors
    /// There are none.
    pub fn open(dir: &Path) -> Result<Modules> {
        let mut files = BTreeMap::new();
        find(&dir.join("kernel"), &mut files)?;
        ensure!(!files.is_empty(), "no modules in {}", dir.display());
        let index = fs::read_to_string(dir.join("modules.alias")).unwrap_or_default();
        let mut aliases = BTreeMap::<String, Vec<String>>::new();
        for line in index.lines() {
            // Of devices, whose aliases are patterns, the kernel asks by itself.
            if let ["alias", alias, name] = line.split(' ').collect::<Vec<_>>()[..]
                && !alias.contains(['*', ':'])
            {
                aliases.entry(same(alias)).or_default().push(same(name));
            }
        }
        Ok(Modules { dir: dir.to_owned(), files, aliases })
    }

    /// Whether the kernel has it, as a module or built in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let name = same(name);
        let builtin = fs::read_to_string(self.dir.join("modules.builtin")).unwrap_or_default();
        let is_it = |line: &str| file_name(Path::new(line)).is_some_and(|found| found == name);
        self.files.contains_key(&name) || builtin.lines().any(is_it)
    }

    /// These modules and what they depend on, in an order in which they can be loaded. What the kernel has built in is left
    /// out.
    ///
    /// # Errors
    /// A module cannot be read.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        let name = same(name);
        if order.iter().any(|known| known.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            for module in self.aliases.get(&name).into_iter().flatten() {
                self.add(module, order)?;
            }
            return Ok(());
        };
        let bytes = read(path)?;
        let depends = told(&bytes, "depends").into_iter().flat_map(|names| listed(&names, ','));
        let softly = told(&bytes, "softdep").into_iter().flat_map(|names| before(&names));
        for needed in depends.chain(softly) {
            self.add(&needed, order)?;
        }
        order.push(Module { name, bytes });
        Ok(())
    }
}

/// A module's name is written with either.
fn same(name: &str) -> String {
    name.replace('-', "_")
}

/// Of "pre: a b post: c" what comes before.
fn before(softdep: &str) -> Vec<String> {
    let before = softdep.split("post:").next().unwrap_or_default().trim();
    listed(before.strip_prefix("pre:").unwrap_or_default(), ' ')
}

fn listed(names: &str, by: char) -> Vec<String> {
    names.split(by).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What a field of the module's own description says, as often as it is there.
fn told(module: &[u8], field: &str) -> Vec<String> {
    let key = format!("\0{field}=").into_bytes();
    let mut values = Vec::new();
    let mut rest = module;
    while let Some(at) = rest.windows(key.len()).position(|window| window == key) {
        rest = rest.get(at + key.len()..).unwrap_or_default();
        let value = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        values.push(String::from_utf8_lossy(value).into_owned());
    }
    values
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some(name) = file_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module's name, of a path that ends with `.ko`, perhaps compressed.
fn file_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    name.split_once(".ko").map(|(name, _)| same(name))
}

/// The kernel unpacks none itself at this point.
fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("{}", path.display())),
    };
    let unpacked = Command::new(program)
        .args(["-q", "-dc"])
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program}, which unpacks {}", path.display()))?;
    if !unpacked.status.success() {
        bail!(
            "{program} cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&unpacked.stderr).trim()
        );
    }
    Ok(unpacked.stdout)
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
        module("top", "left,right-hand\0softdep=pre: soft sum post: late\0softdep=pre: another");
        for name in ["soft", "sum_generic", "late", "another"] {
            module(name, "");
        }
        fs::write(
            dir.path().join("modules.alias"),
            "# Aliases\nalias sum sum_generic\nalias pci:v*d* left\nalias sum sum-of-a-cpu\n",
        )
        .unwrap();
        module("left", "base");
        module("right-hand", "base,builtin");
        module("base", "");
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/built-in.ko\n").unwrap();
        let modules = Modules::open(dir.path()).unwrap();
        let order = modules.closure(&["top", "base", "builtin"]).unwrap();
        let names: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["base", "left", "right_hand", "soft", "sum_generic", "another", "top"]);
        assert!(modules.has("built_in") && modules.has("right_hand") && !modules.has("other"));
    }
}
