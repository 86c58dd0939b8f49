//! The keys of the configuration: how each one's text is read, and how it is shown.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, time::Duration};

use super::{Choice, Config, DurableForm, LogFormat};

/// One key. Flags, environment and file all give text, so that a value is read in one way only.
pub(super) struct Key {
    /// As in the file; `RINGLOG_` and capitals make the variable, `--` and hyphens the flag.
    pub(super) name: &'static str,
    /// Puts the value that a text stands for into the configuration.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    /// The value as TOML.
    pub(super) show: fn(&Config) -> toml::Value,
}

macro_rules! key {
    ($name:ident, $read:expr, $show:expr) => {
        Key {
            name: stringify!($name),
            set: |config, text| {
                config.$name = $read(text)?;
                Ok(())
            },
            show: |config| toml::Value::from($show(&config.$name)),
        }
    };
}

/// All keys, in the order in which they are shown.
pub(super) const KEYS: &[Key] = &[
    key!(data, path, |value: &PathBuf| value.display().to_string()),
    key!(grpc, address, SocketAddr::to_string),
    key!(http, address, SocketAddr::to_string),
    key!(peer, address, SocketAddr::to_string),
    key!(advertise, text, String::clone),
    key!(http_hosts, list, |value: &Vec<String>| value.join(",")),
    key!(join, list, |value: &Vec<String>| value.join(",")),
    key!(join_token, text, String::clone),
    key!(peer_ca, path_or_none, |value: &PathBuf| value.display().to_string()),
    key!(peer_cert, path_or_none, |value: &PathBuf| value.display().to_string()),
    key!(peer_key, path_or_none, |value: &PathBuf| value.display().to_string()),
    key!(replication_factor, replicas, |value: &u32| i64::from(*value)),
    key!(reactors, reactors, |value: &usize| whole(*value)),
    key!(pin, truth, |value: &bool| *value),
    key!(insecure, truth, |value: &bool| *value),
    key!(auto_create, truth_or_auto, |value: &Option<bool>| match value {
        None => toml::Value::from("auto"),
        Some(value) => toml::Value::from(*value),
    }),
    key!(segment_bytes, bytes, |value: &u64| whole(*value)),
    key!(retention_bytes, bytes, |value: &u64| whole(*value)),
    key!(retention_age_ms, milliseconds, |value: &u64| whole(*value)),
    key!(message_bytes_max, bytes_in_memory, |value: &usize| whole(*value)),
    key!(record_bytes_max, bytes_in_memory, |value: &usize| whole(*value)),
    key!(tail_bytes, bytes_in_memory, |value: &usize| whole(*value)),
    key!(memory_bytes, bytes_in_memory, |value: &usize| whole(*value)),
    key!(io_uring, choice, |value: &Choice| match value {
        Choice::Auto => "auto",
        Choice::Off => "off",
    }),
    key!(direct_io, choice, |value: &Choice| match value {
        Choice::Auto => "auto",
        Choice::Off => "off",
    }),
    key!(durable_form, durable_form, |value: &DurableForm| match value {
        DurableForm::Auto => "auto",
        DurableForm::Dsync => "dsync",
        DurableForm::Linked => "linked",
    }),
    key!(shutdown_grace_ms, milliseconds, |value: &u64| whole(*value)),
    key!(log_format, log_format, |value: &LogFormat| match value {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }),
    key!(log_filter, text, String::clone),
];

/// TOML has no number above `i64::MAX`; nor has any of our limits.
fn whole(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Texts with commas between them.
fn list(text: &str) -> Result<Vec<String>, String> {
    Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
}

fn path_or_none(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

fn replicas(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a number of replicas is expected, such as 3".to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path is expected".to_owned()) } else { Ok(text.into()) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = |_| "an IP address and a port are expected, such as 127.0.0.1:7400 or [::]:7400".to_owned();
    // A name that everybody has, and that a SocketAddr does not know.
    text.replacen("localhost:", "127.0.0.1:", 1).parse().map_err(expected)
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "true or false is expected".to_owned())
}

fn truth_or_auto(text: &str) -> Result<Option<bool>, String> {
    if text == "auto" {
        return Ok(None);
    }
    truth(text).map(Some).map_err(|_| "true, false or auto is expected".to_owned())
}

fn reactors(text: &str) -> Result<usize, String> {
    if text == "auto" {
        return Ok(0);
    }
    text.parse().map_err(|_| "a number of threads is expected, or auto for one per core".to_owned())
}

/// A number of bytes: plain, or with a binary (`MiB`) or decimal (`MB`) unit.
///
/// # Errors
/// A sentence that says what is expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "a number of bytes is expected, such as 1048576, 1MiB or 1MB".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit: u64 = match text[digits..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(expected()),
    };
    number.checked_mul(unit).ok_or_else(|| format!("{text} is more bytes than 64 bits can count"))
}

fn bytes_in_memory(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).map_err(|_| "it is more than this machine can address".to_owned())
}

/// Milliseconds: plain, or a duration with units such as `7d` or `1h 30m`.
///
/// # Errors
/// A sentence that says what is expected.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let duration: Result<Duration, _> = humantime::parse_duration(text);
    duration
        .ok()
        .and_then(|duration| u64::try_from(duration.as_millis()).ok())
        .ok_or_else(|| "a number of milliseconds is expected, or a duration such as 10s or 7d".to_owned())
}

fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Result<T, String> {
    let found = values.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("{} is expected", join(values.iter().map(|(name, _)| name))))
}

fn join<'a, N: Display + 'a>(names: impl Iterator<Item = &'a N>) -> String {
    names.map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

fn choice(text: &str) -> Result<Choice, String> {
    one_of(text, &[("auto", Choice::Auto), ("off", Choice::Off)])
}

fn durable_form(text: &str) -> Result<DurableForm, String> {
    one_of(text, &[("auto", DurableForm::Auto), ("dsync", DurableForm::Dsync), ("linked", DurableForm::Linked)])
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    one_of(text, &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and durations as people write them.
    #[test]
    fn human_units() {
        for (text, value) in [("0", 0), ("4096", 4096), ("256MiB", 256 << 20), ("1 GiB", 1 << 30), ("2MB", 2_000_000)] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "1 parsec", "99999999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for (text, value) in [("0", 0), ("1500", 1500), ("10s", 10_000), ("7d", 604_800_000), ("1h 30m", 5_400_000)] {
            assert_eq!(milliseconds(text), Ok(value), "{text}");
        }
        assert!(milliseconds("soon").is_err());
    }

    /// What is shown of a configuration reads back as the same one, for every key.
    #[test]
    fn shown_values_read_back() {
        let mut changed = Config::default();
        for (name, text) in [("auto_create", "false"), ("io_uring", "off"), ("log_format", "json"), ("reactors", "2")] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            (key.set)(&mut changed, text).unwrap();
        }
        for config in [Config::default(), changed] {
            let mut copy = Config { data: "elsewhere".into(), ..Config::default() };
            for key in KEYS {
                let shown = (key.show)(&config);
                let text = shown.as_str().map_or_else(|| shown.to_string(), str::to_owned);
                (key.set)(&mut copy, &text).unwrap();
            }
            assert_eq!(copy, config);
        }
    }

    /// Every field of the configuration has its key.
    #[test]
    fn no_field_is_forgotten() {
        let fields = toml::Table::try_from(Config { auto_create: Some(true), ..Config::default() }).unwrap();
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        assert_eq!(names, fields.keys().collect::<Vec<_>>());
    }
}
