//! `ringlog verify`: every checksum and chain of a data directory, offline, and whether every replica is there that the
//! catalog says this node holds. It changes nothing.

mod holdings;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::{
    Failure, OutputForm,
    output::{human_bytes, table},
    verdict,
};
use crate::{
    config::DurableForm,
    env::{
        Disk,
        disk::{DiskOptions, RealDisk},
        is_half_removed,
    },
    ids::ShardUid,
    log::verify::{Problem, Report, verify_and_read, verify_dir},
    reactor::{
        control::{made::REPLICAS_FILE, remembered::MEMBERS_FILE},
        node::Identity,
    },
    server::identity,
};

/// `ringlog verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// A node's data directory, or the directory of one shard in it
    dir: PathBuf,
    /// Form of the report
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputForm,
}

/// What was found in a directory.
struct Findings {
    dir: PathBuf,
    shards: Vec<(PathBuf, Report)>,
    /// Problems outside of the shards' logs.
    problems: Vec<Problem>,
    /// What is odd there and harmless.
    notes: Vec<Problem>,
}

/// Runs the command.
pub(super) async fn verify(args: VerifyArgs) -> Result<(), Failure> {
    // The disk's tasks are local ones.
    tokio::task::LocalSet::new().run_until(check(args)).await
}

async fn check(args: VerifyArgs) -> Result<(), Failure> {
    let dir = args.dir.canonicalize().map_err(|error| format!("cannot read {}: {error}", args.dir.display()))?;
    // No ring and no O_DIRECT: nothing is written, not even to find out what the device takes.
    let options = DiskOptions { io_uring: false, direct_io: false, durable_form: DurableForm::Auto };
    let (disk, _) = RealDisk::open(Path::new("/"), options).map_err(|error| format!("cannot read files: {error}"))?;
    let findings = examine(&disk, dir).await?;
    let problems = findings.problems().count();
    let mut out = io::stdout().lock();
    let printed = match args.output {
        OutputForm::Json => writeln!(out, "{}", findings.to_json()),
        OutputForm::Table => findings.print(&mut out),
    };
    verdict(problems == 0, printed.and_then(|()| out.flush()).map_err(Failure::from))
}

async fn examine(disk: &RealDisk, dir: PathBuf) -> Result<Findings, Failure> {
    let unreadable = |path: &Path, error: io::Error| format!("cannot read {}: {error}", path.display());
    let names = disk.list(&dir).await.map_err(|error| unreadable(&dir, error))?;
    let has = |name: &str| names.iter().any(|entry| entry.name == Path::new(name));
    if has("hard_state") || names.iter().any(|entry| entry.name.extension().is_some_and(|end| end == "store")) {
        refuse_if_in_use(&dir.join("../../lock"))?;
        let owner = disk.read_file(&dir.join("../../identity")).await.ok();
        let owner = owner.and_then(|content| identity::decode(&content).ok()).map_or(0, |identity| identity.owner());
        let mut report = verify_dir(disk, &dir).await.map_err(|error| Failure::Message(error.to_string()))?;
        check_place(&mut report, &dir, owner);
        return Ok(Findings { shards: vec![(dir.clone(), report)], dir, problems: Vec::new(), notes: Vec::new() });
    }
    if !has("identity") && !has("shards") {
        return Err(format!("{} is neither a node's data directory nor a shard's", dir.display()).into());
    }
    refuse_if_in_use(&dir.join("lock"))?;
    let mut findings = Findings { dir: dir.clone(), shards: Vec::new(), problems: Vec::new(), notes: Vec::new() };
    let path = dir.join("identity");
    let identity = match disk.read_file(&path).await {
        Ok(content) => identity::decode(&content),
        Err(error) => Err(format!("could not be read: {error}")),
    };
    if let Err(what) = &identity {
        findings.problems.push(Problem { file: path, position: Default::default(), what: what.clone() });
    }
    check_shards(disk, &mut findings, identity.ok().as_ref()).await?;
    Ok(findings)
}

/// Checks every shard's directory, the catalog's first, and what the catalog says about them.
async fn check_shards(disk: &RealDisk, findings: &mut Findings, identity: Option<&Identity>) -> Result<(), Failure> {
    let shards = findings.dir.join("shards");
    let mut entries = match disk.list(&shards).await {
        Ok(entries) => entries,
        // A node that died before it made the first one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot read {}: {error}", shards.display()).into()),
    };
    let uid = |name: &Path| name.to_str().and_then(ShardUid::of_name);
    // In the order of their numbers, not of their digits.
    entries.sort_by_key(|entry| uid(&entry.name));
    let owner = identity.map_or(0, Identity::owner);
    let mut found = BTreeSet::new();
    let mut catalog = None;
    for entry in entries.iter().filter(|entry| entry.is_dir && !is_half_removed(&entry.name)) {
        let path = shards.join(&entry.name);
        let is_catalog = uid(&entry.name) == Some(ShardUid::CATALOG);
        let (mut report, content) = if is_catalog {
            let checked = verify_and_read(disk, &path).await;
            checked.map(|(report, content)| (report, Some(content)))
        } else {
            verify_dir(disk, &path).await.map(|report| (report, None))
        }
        .map_err(|error| Failure::Message(error.to_string()))?;
        check_place(&mut report, &path, owner);
        found.extend(uid(&entry.name));
        catalog = catalog.or(content);
        findings.shards.push((path, report));
    }
    let Some(identity) = identity else { return Ok(()) };
    let list = async |name: &str| match disk.read_file(&findings.dir.join(name)).await {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read the file {name}: {error}")),
    };
    let made = list(REPLICAS_FILE).await?;
    // It only helps to say what to do.
    let members = list(MEMBERS_FILE).await.ok().flatten();
    let (data, catalog, made, members) = (&findings.dir, catalog.as_ref(), made.as_deref(), members.as_deref());
    let judgement = holdings::Holdings { data, identity, catalog, made, members, found: &found }.judge();
    findings.problems.extend(judgement.problems);
    findings.notes.extend(judgement.notes);
    Ok(())
}

/// The directory must be the one of the shard whose log it holds, and of this node.
fn check_place(report: &mut Report, dir: &Path, owner: u64) {
    let named = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
    if report.problems.is_empty() && named.is_some_and(|uid| uid != report.shard.0) {
        let what = format!("it holds the log of shard {}; was it moved here?", report.shard);
        report.problems.push(Problem { file: dir.to_owned(), position: Default::default(), what });
    }
    report.check_owner(dir, owner);
}

/// What a running node is writing looks torn. The lock is only looked at.
#[allow(clippy::disallowed_methods, reason = "an offline command")]
fn refuse_if_in_use(lock: &Path) -> Result<(), Failure> {
    let Ok(file) = File::open(lock) else { return Ok(()) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let dir = lock.parent().unwrap_or(lock).display();
            Err(format!("a server is running on {dir}: stop it first, what it is writing looks torn").into())
        }
        // File systems without locks cannot tell.
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Findings {
    fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(self.shards.iter().flat_map(|(_, report)| &report.problems))
    }

    fn notes(&self) -> impl Iterator<Item = &Problem> {
        self.notes.iter().chain(self.shards.iter().flat_map(|(_, report)| &report.notes))
    }

    fn total(&self, number: impl Fn(&Report) -> u64) -> u64 {
        self.shards.iter().map(|(_, report)| number(report)).sum()
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let row = |(_, report): &(PathBuf, Report)| {
            let state = match (report.problems.len(), report.clean) {
                (0, true) => "ok, closed cleanly".to_owned(),
                (0, false) => "ok, not closed".to_owned(),
                (1, _) => "DAMAGED, 1 problem".to_owned(),
                (count, _) => format!("DAMAGED, {count} problems"),
            };
            vec![
                report.shard.to_string(),
                report.files.to_string(),
                report.entries.to_string(),
                report.records.to_string(),
                report.log_start.to_string(),
                report.log_end.to_string(),
                human_bytes(report.bytes),
                report.torn_tail.to_string(),
                state,
            ]
        };
        let headings =
            ["SHARD UID", "FILES", "ENTRIES", "RECORDS", "LOG START", "LOG END", "SIZE", "TORN BYTES", "STATE"];
        table(out, &headings, &self.shards.iter().map(row).collect::<Vec<_>>())?;
        for Problem { file, position, what } in self.problems() {
            writeln!(out, "{} at byte {position}: {what}", file.display())?;
        }
        for Problem { file, position, what } in self.notes() {
            writeln!(out, "note: {} at byte {position}: {what}", file.display())?;
        }
        for (dir, _) in self.shards.iter().filter(|(_, report)| !report.problems.is_empty()) {
            let dir = dir.display();
            writeln!(
                out,
                "{dir}: a node mends it from the shard's other replicas; if there are none, `ringlog repair {dir}` says \
                 what is lost"
            )?;
        }
        let (shards, records) = (self.shards.len(), self.total(|report| report.records));
        match self.problems().count() {
            0 => writeln!(out, "{}: ok, {records} records in {shards} logs", self.dir.display()),
            1 => writeln!(out, "{}: 1 problem in {shards} logs", self.dir.display()),
            count => writeln!(out, "{}: {count} problems in {shards} logs", self.dir.display()),
        }
    }

    fn to_json(&self) -> Value {
        let problem = |Problem { file, position, what }: &Problem| json!({ "file": file.display().to_string(), "position": position.0, "what": what });
        let shard = |(dir, report): &(PathBuf, Report)| {
            json!({
                "dir": dir.display().to_string(),
                "shard_uid": report.shard.0,
                "files": report.files,
                "entries": report.entries,
                "records": report.records,
                "log_start": report.log_start.0,
                "log_end": report.log_end.0,
                "bytes": report.bytes,
                "torn_bytes": report.torn_tail,
                "clean": report.clean,
                "problems": report.problems.len(),
            })
        };
        json!({
            "ok": self.problems().count() == 0,
            "dir": self.dir.display().to_string(),
            "records": self.total(|report| report.records),
            "entries": self.total(|report| report.entries),
            "bytes": self.total(|report| report.bytes),
            "shards": self.shards.iter().map(shard).collect::<Vec<_>>(),
            "problems": self.problems().map(problem).collect::<Vec<_>>(),
            "notes": self.notes().map(problem).collect::<Vec<_>>(),
        })
    }
}
