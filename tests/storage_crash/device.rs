//! A block device that remembers every write and every flush, in order: a loop device over the only file of a small FUSE file
//! system of our own. The loop driver turns a flush into an fsync, and a forced write into a write and an fsync.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// Bytes of the device.
pub const DEVICE_BYTES: usize = 32 << 20;

/// One of the device's operations, completed.
#[derive(Debug)]
pub enum Op {
    /// These bytes came.
    Write { position: usize, bytes: Vec<u8> },
    /// All before are durable.
    Flush,
}

/// What the device holds, and how it came there.
#[derive(Debug, Default)]
pub struct Tape {
    content: Vec<u8>,
    ops: Vec<Op>,
}

/// The tape, for whoever wants to know how far it is.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Tape>>);

impl Recorder {
    /// Operations so far.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().ops.len()
    }

    /// All operations.
    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut self.0.lock().unwrap().ops)
    }
}

/// The file system with the one file.
struct OneFile(Recorder);

const FOREVER: Duration = Duration::from_secs(3_600);
const FILE: INodeNo = INodeNo(2);

fn attributes(ino: INodeNo) -> FileAttr {
    let is_file = ino == FILE;
    FileAttr {
        ino,
        size: if is_file { DEVICE_BYTES as u64 } else { 0 },
        blocks: if is_file { DEVICE_BYTES as u64 / 512 } else { 0 },
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&FOREVER, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every write comes here as it is made, not out of a cache at some later time.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let tape = self.0.0.lock().unwrap();
        let start = (offset as usize).min(DEVICE_BYTES);
        reply.data(&tape.content[start..(start + size as usize).min(DEVICE_BYTES)]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut tape = self.0.0.lock().unwrap();
        let position = offset as usize;
        tape.content[position..position + data.len()].copy_from_slice(data);
        tape.ops.push(Op::Write { position, bytes: data.to_vec() });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.0.lock().unwrap().ops.push(Op::Flush);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The end of a descriptor, not a flush of the device.
        reply.ok();
    }
}

/// A mounted recording device with ext4 on it. Dropping it takes all apart.
pub struct Device {
    /// Where its file system is mounted.
    pub root: PathBuf,
    /// Its tape; begins behind the making of the file system.
    pub recorder: Recorder,
    /// What it held then.
    pub made: Vec<u8>,
    scratch: PathBuf,
    loop_device: String,
    session: Option<BackgroundSession>,
}

/// Runs a command of the system.
///
/// # Errors
/// What it says.
pub fn run(program: &str, args: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.trim().to_owned());
    }
    Err(io::Error::other(format!("{program} {}: {} {}", args.join(" "), out.trim(), error.trim())))
}

impl Device {
    /// Makes one below `scratch`.
    ///
    /// # Errors
    /// What the machine refuses.
    pub fn new(scratch: &Path) -> io::Result<Device> {
        let [image, front, root] = ["made", "front", "root"].map(|name| scratch.join(name));
        std::fs::write(&image, [])?;
        std::fs::File::options().write(true).open(&image)?.set_len(DEVICE_BYTES as u64)?;
        let options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", &["-q", "-b", "4096", "-E", options, &image.to_string_lossy()])?;
        let made = std::fs::read(&image)?;
        std::fs::remove_file(&image)?;
        std::fs::create_dir_all(&front)?;
        std::fs::create_dir_all(&root)?;
        let recorder = Recorder(Arc::new(Mutex::new(Tape { content: made.clone(), ops: Vec::new() })));
        let session = fuser::spawn_mount(OneFile(recorder.clone()), &front, &Config::default())?;
        let mut device = Device {
            root,
            recorder,
            made,
            scratch: scratch.to_owned(),
            loop_device: String::new(),
            session: Some(session),
        };
        let disk = front.join("disk");
        device.loop_device = run("losetup", &["--direct-io=on", "--show", "-f", &disk.to_string_lossy()])?;
        run("mount", &["-t", "ext4", "-o", "noatime", &device.loop_device, &device.root.to_string_lossy()])?;
        Ok(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // One that was never made cannot be taken apart; the others must not stay behind.
        let root = self.root.to_string_lossy();
        let _ = run("umount", &[&root]).or_else(|_| run("umount", &["-l", &root]));
        if !self.loop_device.is_empty() {
            let _ = run("losetup", &["-d", &self.loop_device]);
        }
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// An image of a device, mounted for a while.
pub struct Mounted {
    root: PathBuf,
}

impl Mounted {
    /// Mounts the file `image` at `root`: ext4 replays its journal.
    ///
    /// # Errors
    /// When ext4 does not take it.
    pub fn new(image: &Path, root: &Path) -> io::Result<Mounted> {
        run("mount", &["-t", "ext4", "-o", "loop,noatime", &image.to_string_lossy(), &root.to_string_lossy()])?;
        Ok(Mounted { root: root.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let root = self.root.to_string_lossy();
        let _ = run("umount", &[&root]).or_else(|_| run("umount", &["-l", &root]));
    }
}
