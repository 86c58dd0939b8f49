//! The same durable append and the same echo on four runtimes, side by side in one run: tokio with our ring (what
//! Ringlog ships), monoio, glommio and tokio-uring.
//!
//! `cargo bench --bench runtimes --features bench-runtimes` prints a Markdown table. Appends are 4 KiB, O_DIRECT,
//! one at a time, into a zero-written file; the echo is 1 KiB back and forth over loopback with a blocking client on
//! another core. The server's thread is pinned. Each figure is the median of the repeats; the runtimes take
//! turns, so that a noisy moment hits all of them alike. CPU counts all threads of the process for appends (kernel workers
//! included) and the server's thread for the echo.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a benchmark outside of the seams, which stops at errors"
)]

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ringlog::env::{
    buffer::Buffer,
    floor::DeviceFloor,
    uring::{Durability, Ring},
};
use rustix::fs::{Mode, OFlags};

const APPEND_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;
const ECHO_BYTES: usize = 1024;
const WARM_UP: usize = 100;
/// A repeat ends after this long with what it has: beside a busy neighbour an append may take 16 ms.
const REPEAT_MAX: Duration = Duration::from_secs(2);

/// How an append becomes durable.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// RWF_DSYNC, or a descriptor with O_DSYNC.
    Dsync,
    /// A write, then fdatasync (linked by our ring).
    WriteSync,
}

/// What is measured.
struct Runtime {
    name: &'static str,
    append: fn(&Target, Form, usize) -> io::Result<Sample>,
    echo: Option<fn(Sender<SocketAddr>) -> io::Result<()>>,
}

const RUNTIMES: [Runtime; 6] = [
    Runtime { name: "no runtime: blocking pwritev2", append: append_floor, echo: Some(echo_blocking) },
    Runtime { name: "**tokio + our ring**", append: append_ours, echo: Some(echo_tokio) },
    Runtime { name: "tokio + our ring, without its spin", append: append_ours_parked, echo: None },
    Runtime { name: "monoio", append: append_monoio, echo: Some(echo_monoio) },
    Runtime { name: "glommio", append: append_glommio, echo: Some(echo_glommio) },
    Runtime { name: "tokio-uring", append: append_tokio_uring, echo: Some(echo_tokio_uring) },
];

/// Latencies of one repeat, and the CPU it took.
struct Sample {
    latencies: Vec<Duration>,
    cpu: Duration,
}

fn main() {
    // `cargo bench` passes --bench; anything else is a try whether it works.
    let full = std::env::args().any(|argument| argument == "--bench");
    let (repeats, appends, echoes) = if full { (5, 1_000, 10_000) } else { (1, 50, 50) };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let target = Target::make(dir.path()).unwrap();
    let mut rows: Vec<[Column; 3]> = RUNTIMES.iter().map(|_| Default::default()).collect();
    for _ in 0..repeats {
        for (runtime, row) in RUNTIMES.iter().zip(&mut rows) {
            for (column, form) in [Form::Dsync, Form::WriteSync].into_iter().enumerate() {
                let (append, target) = (runtime.append, target.clone());
                row[column].add(on_server_core(move || append(&target, form, appends)));
            }
            if let Some(echo) = runtime.echo {
                row[2].add(measure_echo(echo, echoes));
            }
        }
    }
    println!();
    println!("Medians of {repeats} repeats, p50 / p99 µs (CPU µs per operation), {}", machine());
    println!();
    println!("| | append, DSYNC | append, write + fdatasync | echo 1 KiB |");
    println!("|---|---|---|---|");
    for (runtime, row) in RUNTIMES.iter().zip(&mut rows) {
        let [dsync, write_sync, echo] = row;
        println!("| {} | {} | {} | {} |", runtime.name, dsync.show(), write_sync.show(), echo.show());
    }
}

/// A cell of the table.
#[derive(Default)]
struct Column {
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
    refused: Option<String>,
}

impl Column {
    fn add(&mut self, sample: io::Result<Sample>) {
        match sample {
            Ok(mut sample) => {
                let count = sample.latencies.len();
                sample.latencies.sort();
                self.p50.push(micros(sample.latencies[count / 2]));
                self.p99.push(micros(sample.latencies[count * 99 / 100]));
                self.cpu.push(micros(sample.cpu) / count as f64);
            }
            Err(error) => self.refused = Some(error.to_string()),
        }
    }

    fn show(&mut self) -> String {
        match &self.refused {
            Some(error) => format!("does not run here: {error}"),
            None if self.p50.is_empty() => "–".into(),
            None => {
                let [p50, p99, cpu] = [&mut self.p50, &mut self.p99, &mut self.cpu].map(|values| median(values));
                format!("{p50:.0} / {p99:.0} ({cpu:.0})")
            }
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// The zero-written file that everybody appends to, round and round.
#[derive(Clone)]
struct Target {
    path: PathBuf,
}

impl Target {
    fn make(dir: &Path) -> io::Result<Target> {
        let path = dir.join("append");
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&[0; 1 << 20])?;
        }
        file.sync_all()?;
        Ok(Target { path })
    }

    fn open(&self, form: Form, flags: OFlags) -> io::Result<OwnedFd> {
        let dsync = if form == Form::Dsync { OFlags::DSYNC } else { OFlags::empty() };
        Ok(rustix::fs::open(
            &self.path,
            OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC | flags | dsync,
            Mode::empty(),
        )?)
    }
}

/// Where append number `i` goes.
fn position(i: usize) -> u64 {
    (i * APPEND_BYTES) as u64 % FILE_BYTES
}

fn data() -> Bytes {
    let mut data = Buffer::zeroed(APPEND_BYTES);
    data.bytes_mut().fill(0xa5);
    data.freeze_padded()
}

/// The same, for runtimes whose buffers are a closed set of types.
fn data_static() -> &'static [u8] {
    Box::leak(Box::new(data()))
}

/// Collects latencies, and CPU after the warm-up, of a given number of operations or `REPEAT_MAX`.
struct Meter {
    latencies: Vec<Duration>,
    count: usize,
    started: Instant,
    next: usize,
    cpu: Duration,
}

impl Meter {
    fn new(count: usize) -> Meter {
        let latencies = Vec::with_capacity(count);
        Meter { latencies, count: WARM_UP + count, started: Instant::now(), next: 0, cpu: Duration::ZERO }
    }

    /// Number of the next operation; `None` when there are enough.
    fn next(&mut self) -> Option<usize> {
        let late = self.next > WARM_UP && self.started.elapsed() > REPEAT_MAX;
        if self.next == self.count || late {
            return None;
        }
        if self.next == WARM_UP {
            self.cpu = process_cpu();
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn add(&mut self, latency: Duration) {
        if self.next > WARM_UP {
            self.latencies.push(latency);
        }
    }

    fn done(self) -> Sample {
        Sample { cpu: process_cpu().saturating_sub(self.cpu), latencies: self.latencies }
    }
}

fn append_floor(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    let mut meter = Meter::new(count);
    if form == Form::Dsync {
        let mut floor = DeviceFloor::new(target.path.parent().unwrap(), APPEND_BYTES)?;
        while meter.next().is_some() {
            meter.add(floor.append_once()?);
        }
        return Ok(meter.done());
    }
    let fd = target.open(form, OFlags::empty())?;
    let data = data();
    while let Some(i) = meter.next() {
        let started = Instant::now();
        let written = rustix::io::pwrite(&fd, &data, position(i))?;
        rustix::fs::fdatasync(&fd)?;
        meter.add(started.elapsed());
        assert_eq!(written, APPEND_BYTES);
    }
    Ok(meter.done())
}

fn append_ours(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    on_tokio(async { append_ring(Ring::open()?, target, form, count).await })
}

fn append_ours_parked(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    on_tokio(async { append_ring(Ring::open_spinning(Duration::ZERO)?, target, form, count).await })
}

fn on_tokio<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

async fn append_ring(ring: Ring, target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    let fd = Arc::new(target.open(Form::WriteSync, OFlags::empty())?);
    let durability = if form == Form::Dsync { Durability::Dsync } else { Durability::Linked };
    let data = data();
    let mut meter = Meter::new(count);
    while let Some(i) = meter.next() {
        let started = Instant::now();
        let written = ring.write(&fd, position(i), vec![data.clone()], durability).await?;
        meter.add(started.elapsed());
        assert_eq!(written, APPEND_BYTES);
    }
    Ok(meter.done())
}

fn append_monoio(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let file = monoio::fs::File::from_std(target.open(form, OFlags::empty())?.into())?;
        let data = data_static();
        let mut meter = Meter::new(count);
        while let Some(i) = meter.next() {
            let started = Instant::now();
            let (written, _) = file.write_at(data, position(i)).await;
            if form == Form::WriteSync {
                file.sync_data().await?;
            }
            meter.add(started.elapsed());
            assert_eq!(written?, APPEND_BYTES);
        }
        Ok(meter.done())
    })
}

fn append_glommio(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    glommio_executor()?.run(async {
        let mut options = glommio::io::OpenOptions::new();
        let dsync = if form == Form::Dsync { OFlags::DSYNC.bits() as i32 } else { 0 };
        let file = options.read(true).write(true).custom_flags(dsync).dma_open(&target.path).await?;
        let mut data = file.alloc_dma_buffer(APPEND_BYTES);
        data.as_bytes_mut().fill(0xa5);
        let data = Rc::new(data);
        let mut meter = Meter::new(count);
        while let Some(i) = meter.next() {
            let started = Instant::now();
            let written = file.write_rc_at(data.clone(), position(i)).await?;
            if form == Form::WriteSync {
                file.fdatasync().await?;
            }
            meter.add(started.elapsed());
            assert_eq!(written, APPEND_BYTES);
        }
        let sample = meter.done();
        file.close().await?;
        Ok(sample)
    })
}

/// With little registered memory: its default of 10 MiB is more than the usual limit of 8 MiB (ulimit -l).
fn glommio_executor() -> io::Result<glommio::LocalExecutor> {
    let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(1 << 20);
    builder.make().map_err(|error| io::Error::other(error.to_string()))
}

fn append_tokio_uring(target: &Target, form: Form, count: usize) -> io::Result<Sample> {
    tokio_uring::start(async {
        let file = tokio_uring::fs::File::from_std(target.open(form, OFlags::empty())?.into());
        let data = data_static();
        let mut meter = Meter::new(count);
        while let Some(i) = meter.next() {
            let started = Instant::now();
            let (written, _) = file.write_at(data, position(i)).submit().await;
            if form == Form::WriteSync {
                file.sync_data().await?;
            }
            meter.add(started.elapsed());
            assert_eq!(written?, APPEND_BYTES);
        }
        Ok(meter.done())
    })
}

/// A blocking client against `echo` on the server's core; the CPU is the server thread's.
fn measure_echo(echo: fn(Sender<SocketAddr>) -> io::Result<()>, count: usize) -> io::Result<Sample> {
    let (address, addresses) = channel();
    let server = std::thread::spawn(move || {
        pin(0);
        let before = thread_cpu();
        echo(address).map(|()| thread_cpu().saturating_sub(before))
    });
    let client = std::thread::spawn(move || {
        pin(1);
        // The sender is gone if the server could not start; its error says why.
        let Ok(address) = addresses.recv() else { return Ok(Vec::new()) };
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut message = [7; ECHO_BYTES];
        let mut meter = Meter::new(count);
        while meter.next().is_some() {
            let started = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            meter.add(started.elapsed());
        }
        Ok::<_, io::Error>(meter.latencies)
    });
    let latencies = client.join().unwrap();
    let cpu = server.join().unwrap()?;
    Ok(Sample { latencies: latencies?, cpu })
}

fn echo_blocking(address: Sender<SocketAddr>) -> io::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    address.send(listener.local_addr()?).unwrap();
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut message = [0; ECHO_BYTES];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message)?;
    }
    Ok(())
}

fn echo_tokio(address: Sender<SocketAddr>) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    on_tokio(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        address.send(listener.local_addr()?).unwrap();
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut message = [0; ECHO_BYTES];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(&message).await?;
        }
        Ok(())
    })
}

fn echo_monoio(address: Sender<SocketAddr>) -> io::Result<()> {
    use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let listener = monoio::net::TcpListener::bind("127.0.0.1:0")?;
        address.send(listener.local_addr()?).unwrap();
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut message = vec![0; ECHO_BYTES];
        loop {
            let (read, buffer) = stream.read_exact(message).await;
            if read.is_err() {
                return Ok(());
            }
            let (written, buffer) = stream.write_all(buffer).await;
            written?;
            message = buffer;
        }
    })
}

fn echo_glommio(address: Sender<SocketAddr>) -> io::Result<()> {
    use futures_util::io::{AsyncReadExt, AsyncWriteExt};
    glommio_executor()?.run(async {
        let listener = glommio::net::TcpListener::bind("127.0.0.1:0")?;
        address.send(listener.local_addr()?).unwrap();
        let mut stream = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut message = [0; ECHO_BYTES];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(&message).await?;
        }
        Ok(())
    })
}

fn echo_tokio_uring(address: Sender<SocketAddr>) -> io::Result<()> {
    use tokio_uring::buf::BoundedBuf;
    tokio_uring::start(async {
        let listener = tokio_uring::net::TcpListener::bind("127.0.0.1:0".parse().unwrap())?;
        address.send(listener.local_addr()?).unwrap();
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut message = vec![0; ECHO_BYTES];
        loop {
            let mut filled = 0;
            while filled < ECHO_BYTES {
                let (read, slice) = stream.read(message.slice(filled..)).await;
                message = slice.into_inner();
                match read {
                    Ok(0) | Err(_) => return Ok(()),
                    Ok(count) => filled += count,
                }
            }
            let (written, buffer) = stream.write_all(message).await;
            written?;
            message = buffer;
        }
    })
}

/// Runs `work` on a fresh thread on the server's core.
fn on_server_core<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        pin(0);
        work()
    });
    thread.join().unwrap()
}

/// Onto a core, where there is one of that number; a machine with one core measures on that.
fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// CPU that all threads of this process have used, kernel workers of rings included.
fn process_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| scheduled(&task.unwrap().path().join("schedstat"))).sum()
}

fn thread_cpu() -> Duration {
    scheduled(Path::new("/proc/thread-self/schedstat"))
}

/// The first number is nanoseconds on a CPU (kernel documentation, scheduler/sched-stats).
fn scheduled(path: &Path) -> Duration {
    // A thread that ended in between counts as nothing.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, Linux {}", kernel.trim())
}
