//! A reactor's thread: pinned to one core, with a single-threaded runtime for sockets, timers and
//! tasks. Also the ops thread's, which is not pinned.

use std::{future::Future, io, thread::JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::env::runtime::block_on;

/// Cores that this process may run on, ascending; at least one.
pub fn available_cores() -> Vec<usize> {
    let cores: Vec<usize> = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
        // Only a kernel with more cores than the set holds refuses.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    };
    if cores.is_empty() { vec![0] } else { cores }
}

/// Starts a thread named `name`, pinned to `core` if one is given, that runs `main` to its end.
/// `main` is called on the thread itself, inside its runtime, so that it can make what must not leave it.
/// A core that cannot be had is a warning: the reactor works anywhere.
///
/// # Errors
/// When the thread cannot be made. When its runtime cannot, the thread panics with the reason.
pub fn start<F: Future<Output = ()>>(
    name: String,
    core: Option<usize>,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let body = move || {
        if let Some(core) = core {
            let mut set = CpuSet::new();
            set.set(core);
            if let Err(error) = sched_setaffinity(None, &set) {
                tracing::warn!(core, %error, "thread could not be pinned; it runs on any core");
            }
        }
        block_on(async move { main().await });
    };
    std::thread::Builder::new().name(name).spawn(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread runs on the core it was pinned to, with local tasks at hand.
    #[test]
    fn pinned_with_local_tasks() {
        let core = *available_cores().last().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let main = move || async move {
            #[allow(clippy::disallowed_methods, reason = "shows that local tasks can be spawned")]
            let task = tokio::task::spawn_local(async { available_cores() });
            send.send(task.await.unwrap()).unwrap();
        };
        start("pinned".into(), Some(core), main).unwrap().join().unwrap();
        assert_eq!(receive.recv().unwrap(), [core]);
    }
}
