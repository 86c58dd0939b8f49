//! Checks of the source itself that no compiler makes: imports go down the floors, files stay
//! short and say what they are for, `unsafe` stays where it is allowed.
//!
//! The rules and their reasons are in `lib.rs` (floors) and in the team's style page.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Floors by top-level module, as drawn in `lib.rs`.
const FLOORS: &[(&str, u32)] = &[
    ("main", 10),
    ("cli", 9),
    ("sim", 8),
    ("server", 7),
    ("client", 7),
    ("frontend", 6),
    ("reactor", 5),
    ("shard", 4),
    ("catalog", 4),
    ("raft", 3),
    ("log", 2),
    ("peer", 2),
    ("budget", 1),
    ("env", 1),
    ("format", 1),
    ("config", 1),
    ("observe", 1),
    ("tls", 1),
    ("ids", 0),
    ("limits", 0),
    ("proto", 0),
];

/// The files that may hold unsafe code, one reason each.
///
/// - `env/uring.rs`: submissions to the kernel own their buffers by promise only.
/// - `format/peer/envelope.rs`: FlatBuffers' accessors ask that the bytes were verified; it has flatc's form.
const UNSAFE_FILES: &[&str] = &["env/uring.rs", "format/peer/envelope.rs"];

/// Longest file, in lines, tests included.
const FILE_LINES_MAX: usize = 700;

/// Names that say nothing about the job of a file.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

struct Source {
    /// Below `src`, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The text without its tests: those may look up (the simulator tests what is below it).
    fn shipped(&self) -> &str {
        match self.text.find("#[cfg(test)]") {
            Some(end) if self.path != "lib.rs" => &self.text[..end],
            _ => &self.text,
        }
    }

    fn is_test(&self) -> bool {
        let of_tests = ["tidy.rs", "fuzz.rs", "fuzz/mutate.rs"].contains(&self.path.as_str());
        of_tests || self.path.ends_with("tests.rs") || self.path.ends_with("/fuzz.rs") || self.path.contains("/tests/")
    }

    fn floor(&self) -> Option<u32> {
        let top = self.path.split('/').next().expect("split yields at least one part");
        floor_of(top.trim_end_matches(".rs"))
    }
}

fn floor_of(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        for entry in read_dir(&dir) {
            if entry.is_dir() {
                pending.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let path = entry.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
                found.push(Source { path, text: read(&entry) });
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[allow(clippy::disallowed_methods, reason = "reads the source tree, not a shard's files")]
fn read_dir(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("src is readable").map(|entry| entry.expect("src is readable").path()).collect()
}

#[allow(clippy::disallowed_methods, reason = "reads the source tree, not a shard's files")]
fn read(path: &Path) -> String {
    String::from_utf8(fs::read(path).expect("src is readable")).expect("sources are UTF-8")
}

/// Top-level modules named behind `crate::` in code (not in comments), with their lines.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open_group = false;
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().expect("split yields at least one part");
        if open_group {
            // Inside `use crate::{ ... };` each line at one indent names a module first.
            if code.starts_with("};") {
                open_group = false;
            } else if code.starts_with("    ") && !code.starts_with("     ") {
                found.push((number + 1, leading_name(code.trim())));
            }
            continue;
        }
        open_group = code.trim_end().ends_with("use crate::{");
        let mut rest = code;
        while let Some(at) = rest.find("crate::") {
            let preceded = rest[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
            rest = &rest[at + "crate::".len()..];
            if preceded {
                continue;
            }
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                let mut name = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.push((number + 1, leading_name(name.trim())));
                            name.clear();
                        }
                        c if depth == 0 => name.push(c),
                        _ => {}
                    }
                }
                found.push((number + 1, leading_name(name.trim())));
            } else {
                found.push((number + 1, leading_name(rest)));
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// An import only goes down, or stays on its own top-level module.
#[test]
fn imports_go_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "lib.rs" || source.is_test() {
            continue;
        }
        let floor = source.floor().unwrap_or_else(|| panic!("src/{} stands on no floor: add it", source.path));
        let own = source.path.split('/').next().expect("not empty").trim_end_matches(".rs").to_owned();
        for (line, name) in imports(source.shipped()) {
            let Some(other) = floor_of(&name) else { continue };
            // Modules of floor 1 are peers (`lib.rs` draws them side by side), as are server and client.
            let peer = other == floor && floor == 1;
            if name != own && other >= floor && !peer {
                wrong.push(format!("src/{}:{line} (floor {floor}) imports crate::{name} (floor {other})", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "imports must go down the floors of lib.rs:\n{}", wrong.join("\n"));
}

/// The import reader sees every form that the sources use: otherwise the check above cannot fail.
#[test]
fn imports_are_seen() {
    let text = "use crate::shard::Shard;\nuse crate::{env::Env, log};\nuse crate::{\n    raft::{\n        Group,\n    },\n    \
                ids,\n};\nlet x = crate::client::connect(); // crate::cli\n";
    let names: Vec<String> = imports(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["shard", "env", "log", "raft", "ids", "client"]);
}

/// Every file opens with what it is for, and none is too long to be read in one sitting.
#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("src/{} has {lines} lines, the limit is {FILE_LINES_MAX}: split it", source.path));
        }
        if !source.text.starts_with("//!") {
            wrong.push(format!("src/{} does not open with `//!` what it is for", source.path));
        }
        let stem = Path::new(&source.path).file_stem().expect("a file has a name").to_string_lossy().into_owned();
        if EMPTY_NAMES.contains(&stem.as_str()) {
            wrong.push(format!("src/{} is not named after a job", source.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `unsafe` stands only where a reason for it is written in the list above.
#[test]
fn unsafe_stays_where_it_is_allowed() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "tidy.rs" || UNSAFE_FILES.contains(&source.path.as_str()) {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().expect("split yields at least one part");
            let is_block =
                ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"].iter().any(|w| code.contains(w));
            if is_block {
                wrong.push(format!("src/{}:{}", source.path, number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe code outside {UNSAFE_FILES:?}:\n{}", wrong.join("\n"));
}

/// No file is mapped into memory: a page that the device cannot read, or that was cut off, would be a SIGBUS, which ends the process
/// with all of its shards (`lib.rs`, "Index files are read, not mapped").
#[test]
fn no_file_is_mapped() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path != "tidy.rs") {
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().expect("split yields at least one part").to_lowercase();
            if code.contains("mmap") {
                wrong.push(format!("src/{}:{}", source.path, number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "files are mapped into memory:\n{}", wrong.join("\n"));
}
