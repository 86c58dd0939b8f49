//! The `ringlog` binary: everything is in the library, so that tests and benches reach it too.

/// See Cargo.toml for why.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ringlog::cli::main()
}
