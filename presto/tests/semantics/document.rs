//! docs/semantics.md and these tests name each other; it names tests of the other programs beside this one, too.

use std::collections::BTreeSet;
use std::path::Path;

/// Words in backticks that look like names of tests: three words at least.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split('`').skip(1).step_by(2);
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    words.filter(is_name).map(str::to_owned).collect()
}

fn tests(dir: &Path) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests.extend(self::tests(&path));
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == "#[test]" {
                let line = lines.next().unwrap().trim().trim_start_matches("fn ");
                tests.insert(line.split('(').next().unwrap().to_owned());
            }
        }
    }
    tests
}

#[test]
fn each_sentence_has_its_test_and_each_test_its_sentence() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(here.join("../docs/semantics.md")).unwrap();
    let (named, mut tests) = (named(&document), tests(&here.join("tests/semantics")));
    tests.remove("each_sentence_has_its_test_and_each_test_its_sentence");
    let other: BTreeSet<String> = tests.difference(&named).cloned().collect();
    assert!(other.is_empty(), "docs/semantics.md does not name {other:?}");
    let all = self::tests(&here.join("tests"));
    let absent: BTreeSet<&String> = named.iter().filter(|name| !all.contains(*name)).collect();
    assert!(absent.is_empty(), "docs/semantics.md names what is no test: {absent:?}");
}
