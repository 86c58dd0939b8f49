//! Clusters of real processes: used, broken, and checked. One program, as each test program takes its time to link.

#![allow(clippy::disallowed_methods, reason = "tests use real processes, files and sockets")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod basics;
mod checker;
mod checker_tests;
mod faults;
mod harness;
mod identity;
mod net;
mod partitions;
mod workload;
