//! `ringlog repair`: what is damaged of a shard's log, offline, and with `--cut`, for the only copy, the end of it there.
//!
//! A replica with others beside it needs none of this: it is mended from them when its node runs.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use super::{Failure, verdict};
use crate::{
    config::DurableForm,
    env::{
        Disk,
        disk::{DiskOptions, RealDisk},
    },
    ids::ShardUid,
    limits::SEGMENT_BYTES_MIN,
    log::{
        LogOptions,
        repair::{Survey, cut, survey},
    },
    server::identity,
};

/// `ringlog repair`.
#[derive(Debug, clap::Args)]
pub(super) struct RepairArgs {
    /// The directory of one shard: DATA/shards/NUMBER
    dir: PathBuf,
    /// End the log before the first entry that cannot be read, and give up all behind it
    ///
    /// For the only copy of a shard: acknowledged records are lost by it, and their offsets will be given to other records.
    /// Never where the shard has other replicas: this one is mended from them when its node runs. Files that are changed are
    /// kept beside, under names that end with `.damaged`.
    #[arg(long)]
    cut: bool,
}

/// Runs the command.
pub(super) async fn repair(args: RepairArgs) -> Result<(), Failure> {
    // The disk's tasks are local ones.
    tokio::task::LocalSet::new().run_until(run(args)).await
}

async fn run(args: RepairArgs) -> Result<(), Failure> {
    let dir = args.dir.canonicalize().map_err(|error| format!("cannot read {}: {error}", args.dir.display()))?;
    let shown = dir.display();
    let uid = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let uid = uid.ok_or_else(|| format!("{shown} is not a shard's directory: those are called DATA/shards/NUMBER"))?;
    // Until the end.
    let _lock = lock(&dir.join("../../lock"))?;
    let options = DiskOptions { io_uring: false, direct_io: false, durable_form: DurableForm::Auto };
    let (disk, _) = RealDisk::open(Path::new("/"), options).map_err(|error| format!("cannot read files: {error}"))?;
    let owner = disk.read_file(&dir.join("../../identity")).await.ok();
    let owner = owner.and_then(|content| identity::decode(&content).ok()).map_or(0, |identity| identity.owner());
    let options = LogOptions { dir: dir.clone(), shard: ShardUid(uid), segment_bytes_max: SEGMENT_BYTES_MIN, owner };
    let found = survey(&disk, &options, None).await.map_err(|error| error.to_string())?;
    let mut out = io::stdout().lock();
    let Some(first) = found.gaps().next().map(|gap| gap.before.offset) else {
        let words =
            if found.is_whole() { "nothing is damaged" } else { "nothing is lost: the node mends what is damaged" };
        writeln!(out, "{shown}: {words}")?;
        return Ok(());
    };
    let described = describe(&found, &mut out);
    let end = found.end_offset();
    let range =
        if end > first { format!("offsets {first} to {end} (exclusive)") } else { format!("offsets from {first} on") };
    if !args.cut {
        let unless = "if there is no other replica to mend it from";
        let printed = described.and_then(|()| writeln!(out, "{shown}: with --cut {range} would be given up, {unless}"));
        return verdict(false, printed.and_then(|()| out.flush()).map_err(Failure::from));
    }
    described?;
    let done = cut(&disk, &options, &found).await.map_err(|error| error.to_string())?;
    let done = done.ok_or_else(|| format!("{shown}: there is nothing to be cut"))?;
    for kept in &done.kept {
        writeln!(out, "kept: {}", kept.display())?;
    }
    writeln!(out, "{shown}: {range} are given up; the log ends at offset {} now", done.end)?;
    Ok(())
}

fn describe(found: &Survey, out: &mut impl Write) -> io::Result<()> {
    for gap in found.gaps() {
        writeln!(out, "{gap}")?;
    }
    Ok(())
}

/// Keeps nodes out as long as it is held.
#[allow(clippy::disallowed_methods, reason = "an offline command")]
fn lock(path: &Path) -> Result<Option<File>, Failure> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let dir = path.parent().unwrap_or(path).display();
            Err(format!("a server is running on {dir}: stop it first").into())
        }
        // File systems without locks cannot tell.
        Ok(()) | Err(_) => Ok(Some(file)),
    }
}
