//! `ringlog check-history`: judges a history of what clients did and were told, wherever it was written: by tests, by the
//! simulator, or by programs against a cluster in use. It asks no server.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{Failure, verdict};
use crate::sim::checker::{
    self, History, Report,
    json::{FORMAT, read},
};

/// `ringlog check-history`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FORMAT)]
pub(super) struct CheckHistoryArgs {
    /// JSON lines (--help describes them); `-`: stdin
    ///
    /// Exit code 0: every promise is kept. 1: there are findings, one on each line of the output. 2: the file cannot be
    /// read; the line and the reason are said.
    file: PathBuf,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn check_history(args: &CheckHistoryArgs) -> Result<(), Failure> {
    let history = load(&args.file)?;
    let report = checker::check(&history);
    let mut out = io::stdout().lock();
    let ok = report.is_clean();
    let printed =
        if args.json { writeln!(out, "{}", json!({ "ok": ok, "report": report })) } else { print(&mut out, &report) };
    verdict(ok, printed.and_then(|()| out.flush()).map_err(Failure::from))
}

#[allow(clippy::disallowed_methods, reason = "an offline command")]
fn load(path: &Path) -> Result<History, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| Failure::Unreadable(format!("{}: {error}", path.display()));
    let history = if path == Path::new("-") {
        read(io::stdin().lock())
    } else {
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        read(BufReader::new(file))
    };
    let history = history.map_err(|error| unreadable(&error))?;
    // Whoever wanted to write one has failed: that is no good news.
    if history.is_empty() { Err(unreadable(&"line 1: there is no event in it")) } else { Ok(history) }
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let Report { events, shards, acked_records, .. } = report;
    let verdict = if report.is_clean() { "every promise is kept" } else { "promises are broken" };
    writeln!(out, "{verdict}: {events} events, {shards} shards, {acked_records} acknowledged records")?;
    for (kind, count) in &report.counts {
        let shown = report.findings.iter().filter(|finding| finding.anomaly.kind() == *kind).count();
        match *count - shown as u64 {
            0 => writeln!(out, "{kind}: {count}")?,
            rest => writeln!(out, "{kind}: {count}, of which {rest} are not shown")?,
        }
    }
    Ok(())
}
