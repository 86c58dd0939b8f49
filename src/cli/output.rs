//! Tables for people.

use std::io::{self, Write};

/// Writes rows under their headings, columns aligned. Numbers are what the caller made text of.
pub(super) fn table(out: &mut impl Write, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut headings.iter().copied())?;
    for row in rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

/// Bytes for people: three digits and a binary unit.
pub(super) fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A time for people, UTC.
pub(super) fn human_time(timestamp_us: i64) -> String {
    let since_epoch = std::time::Duration::from_micros(timestamp_us.unsigned_abs());
    let time = if timestamp_us < 0 {
        std::time::UNIX_EPOCH.checked_sub(since_epoch)
    } else {
        std::time::UNIX_EPOCH.checked_add(since_epoch)
    };
    // humantime knows the years 1970 to 9999.
    let latest = std::time::Duration::from_secs(253_402_300_799);
    match time {
        Some(time) if timestamp_us >= 0 && since_epoch <= latest => humantime::format_rfc3339_micros(time).to_string(),
        Some(_) | None => format!("{timestamp_us} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns are as wide as their widest cell, and lines have no spaces at the end.
    #[test]
    fn aligned() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["longer".to_owned(), String::new()]];
        table(&mut out, &["NAME", "SHARDS"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME    SHARDS\na       10\nlonger\n");
    }

    /// Hostile timestamps are shown as numbers.
    #[test]
    fn times() {
        assert_eq!(human_time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(human_time(-1), "-1 µs");
        assert_eq!(human_time(i64::MAX), format!("{} µs", i64::MAX));
        assert_eq!(human_time(i64::MIN), format!("{} µs", i64::MIN));
    }
}
