//! Power failures on the real ring and a real file system.
//!
//! A log is used on ext4 on a block device that records its writes and flushes (`device`). Then the device is put together
//! as a crash may have left it after any prefix of them: all that was flushed, and of the rest any sectors in any order, so
//! that writes are torn and reordered (`images`). ext4 replays its journal, and the log must recover to what was promised
//! up to there: acknowledged entries, votes and checkpoints are there, removed entries are not, and nothing counts as
//! corruption.
//!
//! Needs root, /dev/fuse, loop devices and mkfs.ext4; where one is missing it says so and does nothing. A long run:
//! `RINGLOG_CRASH_SECONDS=600 cargo test --release --test storage_crash -- --nocapture`.

#![allow(clippy::disallowed_methods, reason = "tests use real files, devices and clocks")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod device;
mod images;
mod workload;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use device::{Device, Mounted, Op};
use images::{Images, Left, Promise};
use ringlog::config::DurableForm;
use workload::{Event, Workload};

/// Things done to the log in one round.
const STEPS: usize = 120;

/// How long images are looked at, by default.
const SECONDS: u64 = 20;

/// Why this machine cannot run it.
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root, for mounts and loop devices");
    }
    [("/dev/fuse", "there is no /dev/fuse"), ("/dev/loop-control", "there are no loop devices")]
        .into_iter()
        .find_map(|(path, why)| (!Path::new(path).exists()).then_some(why))
        .or_else(|| device::run("mkfs.ext4", &["-V"]).is_err().then_some("there is no mkfs.ext4"))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// A directory in memory: syncs of the images' files cost nothing there.
fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let base: PathBuf = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("ringlog-crash-").tempdir_in(base).unwrap()
}

/// What a round has recorded.
struct Round {
    made: Vec<u8>,
    ops: Vec<Op>,
    events: Vec<Event>,
}

fn record(form: DurableForm, seed: u64) -> Round {
    let scratch = scratch();
    let mut device = Device::new(scratch.path()).unwrap();
    let events = block_on(async {
        let workload = Workload::begin(&device.root, &device.recorder, form, seed).await;
        workload.run(STEPS).await
    });
    Round { made: std::mem::take(&mut device.made), ops: device.recorder.take(), events }
}

/// An image on which the log is not what it should be.
struct Failure {
    what: String,
    image: Vec<u8>,
}

/// Looks at images of a round until the time is over; returns how many.
fn check(round: &Round, seed: u64, time: Duration) -> Result<u64, Failure> {
    let scratch = scratch();
    let [file, root] = ["image", "root"].map(|name| scratch.path().join(name));
    std::fs::create_dir_all(&root).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < time {
        // Through the whole tape, in steps that fit the time, then again with others.
        let stride = round.ops.len() / 60 + 1;
        let mut images = Images::new(round.made.clone(), &round.ops);
        let mut end = rng.usize(..stride);
        while end <= round.ops.len() && begin.elapsed() < time {
            let left = match rng.u32(..6) {
                0 => Left::Nothing,
                1 => Left::All,
                _ => Left::Some(rng.u64(..)),
            };
            let image = images.at(end, left);
            // In place: the file's memory is used again.
            File::options().create(true).truncate(false).write(true).open(&file).unwrap().write_all(&image).unwrap();
            let promise = Promise::at(&round.events, end);
            let result = Mounted::new(&file, &root)
                .map_err(|error| error.to_string())
                .and_then(|_mounted| block_on(promise.check(&root)));
            if let Err(what) = result {
                let of = round.ops.len();
                let what = format!("after {end} of {of} operations, {left:?} of the rest: {what}\n{promise:?}");
                return Err(Failure { what, image });
            }
            count += 1;
            end += 1 + rng.usize(..2 * stride);
        }
    }
    Ok(count)
}

/// Every image of every prefix that there is time for.
#[test]
fn recovers_from_every_prefix() {
    if let Some(why) = missing() {
        println!("storage_crash is skipped: {why}");
        return;
    }
    let seconds = number("RINGLOG_CRASH_SECONDS").unwrap_or(SECONDS);
    let mut seed = number("RINGLOG_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let begin = Instant::now();
    loop {
        for form in [DurableForm::Dsync, DurableForm::Linked] {
            let round = record(form, seed);
            let flushes = round.ops.iter().filter(|op| matches!(op, Op::Flush)).count();
            let time = Duration::from_secs((seconds / 2).clamp(1, 60));
            let images = check(&round, seed, time).unwrap_or_else(|Failure { what, image }| {
                let kept = std::env::temp_dir().join(format!("ringlog-crash-{seed}.ext4"));
                std::fs::write(&kept, image).unwrap();
                panic!("{form:?}, seed {seed}, {what}\nthe image is kept: mount -o loop {}", kept.display());
            });
            println!("{form:?}, seed {seed}: {} operations, {flushes} flushes, {images} images", round.ops.len());
            assert!(flushes > 50 && images > 20, "too little was recorded or looked at");
        }
        if begin.elapsed() >= Duration::from_secs(seconds) {
            return;
        }
        seed += 1;
    }
}

/// The machinery reports: when a flush is left out of the tape, some acknowledged entry is missing in some image.
#[test]
fn a_lost_flush_is_noticed() {
    if let Some(why) = missing() {
        println!("storage_crash is skipped: {why}");
        return;
    }
    let mut round = record(DurableForm::Dsync, 7);
    // The device lies: it completes flushes and does nothing.
    for op in &mut round.ops {
        if matches!(op, Op::Flush) {
            *op = Op::Write { position: 0, bytes: Vec::new() };
        }
    }
    let noticed = check(&round, 7, Duration::from_secs(20)).err().map(|failure| failure.what);
    assert!(noticed.is_some_and(|what| what.contains("was acknowledged")), "flushes do nothing, and nobody notices");
}
