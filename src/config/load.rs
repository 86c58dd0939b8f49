//! Puts a configuration together: defaults, then a TOML file, then `RINGLOG_*` variables, then flags.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use super::{
    Config,
    keys::{KEYS, Key},
};

/// Variables that belong to client commands, or name the file.
const OTHER_VARIABLES: &[&str] = &["CONFIG", "SERVER", "TIMEOUT"];

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// This environment variable.
    Variable(String),
    /// This flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {cause}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The operating system's words.
        cause: String,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {cause}", .path.display())]
    NotToml {
        /// Which.
        path: PathBuf,
        /// Where and what.
        cause: String,
    },
    /// Nobody knows this key.
    #[error("unknown key `{key}` ({origin}){}", did_you_mean(.guess))]
    UnknownKey {
        /// As it was written.
        key: String,
        /// Where.
        origin: Origin,
        /// A known one that looks like it.
        guess: Option<String>,
    },
    /// A value that its key does not take.
    #[error("`{key}` cannot be \"{value}\" ({origin}): {expected}")]
    BadValue {
        /// Which key.
        key: String,
        /// As it was written.
        value: String,
        /// Where.
        origin: Origin,
        /// What would do.
        expected: String,
    },
    /// Values that cannot work.
    #[error("`{key}` ({origin}): {what}")]
    Invalid {
        /// Which key.
        key: &'static str,
        /// Where its value came from.
        origin: Origin,
        /// Why, and what to do.
        what: String,
    },
}

fn did_you_mean(guess: &Option<String>) -> String {
    guess.as_ref().map_or_else(
        || "; `ringlog config check` lists the known ones".to_owned(),
        |guess| format!("; did you mean `{guess}`?"),
    )
}

/// A checked configuration, and where each value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Reads and checks. `flags` are pairs of key and text; `variables` are all of the environment, of which only
    /// those that begin with `RINGLOG_` count.
    ///
    /// # Errors
    /// `ConfigError`, at the first thing that is wrong.
    pub fn new(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &[(&'static str, String)],
    ) -> Result<Loaded, ConfigError> {
        let mut loaded = Loaded { config: Config::default(), origins: BTreeMap::new() };
        if let Some(path) = file {
            loaded.add_file(path)?;
        }
        // Sorted, so that of several wrong ones always the same is reported.
        for (name, value) in BTreeMap::from_iter(variables) {
            loaded.add_variable(&name, &value)?;
        }
        for (key, value) in flags {
            let origin = Origin::Flag(format!("--{}", key.replace('_', "-")));
            loaded.set(key, value, origin)?;
        }
        loaded.config.check().map_err(|(key, what)| {
            let origin = loaded.origin(key);
            ConfigError::Invalid { key, origin, what }
        })?;
        Ok(loaded)
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The effective configuration as a TOML file; a comment on each line says where its value came from.
    pub fn to_toml(&self) -> String {
        let lines: Vec<_> = KEYS
            .iter()
            .map(|key| (format!("{} = {}", key.name, (key.show)(&self.config)), self.origin(key.name)))
            .collect();
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect()
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let unreadable = |cause: String| ConfigError::Unreadable { path: path.to_owned(), cause };
        let bytes = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(unreadable(format!("it has {bytes} bytes, the limit is {FILE_BYTES_MAX}")));
        }
        let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::NotToml {
            path: path.to_owned(),
            cause: error.to_string().trim_end().to_owned(),
        })?;
        for (key, value) in table {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.set(&key, &value, Origin::File(path.to_owned()))?;
        }
        Ok(())
    }

    fn add_variable(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix("RINGLOG_") else { return Ok(()) };
        if OTHER_VARIABLES.contains(&rest) || is_service_link(rest) {
            return Ok(());
        }
        let origin = Origin::Variable(name.to_owned());
        let key = rest.to_ascii_lowercase();
        self.set(&key, value, origin).map_err(|error| match error {
            ConfigError::UnknownKey { origin, guess, .. } => ConfigError::UnknownKey {
                key: name.to_owned(),
                origin,
                guess: guess.map(|guess| format!("RINGLOG_{}", guess.to_ascii_uppercase())),
            },
            other => other,
        })
    }

    fn set(&mut self, name: &str, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(ConfigError::UnknownKey { key: name.to_owned(), origin, guess: closest(name) });
        };
        (key.set)(&mut self.config, value).map_err(|expected| ConfigError::BadValue {
            key: name.to_owned(),
            value: value.to_owned(),
            origin: origin.clone(),
            expected,
        })?;
        self.origins.insert(key.name, origin);
        Ok(())
    }
}

/// Kubernetes gives every pod variables about each service, and one named `ringlog` is likely: they look like
/// `RINGLOG_SERVICE_HOST` and `RINGLOG_PORT_7400_TCP_ADDR`, and say nothing to us.
fn is_service_link(rest: &str) -> bool {
    let rest = format!("_{rest}_");
    rest.contains("_SERVICE_HOST_") || rest.contains("_SERVICE_PORT_") || rest.contains("_PORT_")
}

/// The key that a mistyped one most likely means.
fn closest(name: &str) -> Option<String> {
    let distances = KEYS.iter().map(|Key { name: known, .. }| (distance(name, known), *known));
    let (distance, known) = distances.min()?;
    (distance <= 1 + name.len() / 4).then(|| known.to_owned())
}

/// Levenshtein's distance: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
        file
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn error(text: &str, pairs: &[(&str, &str)], flags: &[(&'static str, String)]) -> String {
        let file = file(text);
        let error = Loaded::new(Some(file.path()), variables(pairs), flags).unwrap_err().to_string();
        error.replace(file.path().to_str().unwrap(), "FILE")
    }

    /// Flags over environment over file over defaults, key by key.
    #[test]
    fn precedence() {
        let file = file("reactors = 1\npin = false\nsegment_bytes = \"8MiB\"\nlog_filter = \"debug\"\n");
        let environment = variables(&[("RINGLOG_REACTORS", "2"), ("RINGLOG_PIN", "true"), ("PATH", "/bin")]);
        let loaded = Loaded::new(Some(file.path()), environment, &[("reactors", "3".to_owned())]).unwrap();
        let expected = Config { reactors: 3, segment_bytes: 8 << 20, log_filter: "debug".into(), ..Config::default() };
        assert_eq!(loaded.config, expected);
        assert_eq!(loaded.origin("reactors"), Origin::Flag("--reactors".into()));
        assert_eq!(loaded.origin("pin"), Origin::Variable("RINGLOG_PIN".into()));
        assert_eq!(loaded.origin("segment_bytes"), Origin::File(file.path().into()));
        assert_eq!(loaded.origin("data"), Origin::Default);
    }

    /// What `config check` prints is a file that says the same.
    #[test]
    fn printed_form_loads() {
        let flags = [("grpc", "127.0.0.1:9000".to_owned()), ("retention_age_ms", "7d".to_owned())];
        let loaded = Loaded::new(None, [], &flags).unwrap();
        let printed = loaded.to_toml();
        assert!(printed.contains("retention_age_ms = 604800000"), "{printed}");
        assert!(printed.contains("# flag --grpc\n"), "{printed}");
        let file = file(&printed);
        assert_eq!(Loaded::new(Some(file.path()), [], &[]).unwrap().config, loaded.config);
    }

    /// A mistyped key is an error that names file and key and guesses what was meant.
    #[test]
    fn unknown_keys() {
        assert_eq!(error("reactor = 2", &[], &[]), "unknown key `reactor` (FILE); did you mean `reactors`?");
        assert_eq!(
            error("", &[("RINGLOG_SEGMENT_BYTE", "1")], &[]),
            "unknown key `RINGLOG_SEGMENT_BYTE` (environment variable RINGLOG_SEGMENT_BYTE); did you mean \
             `RINGLOG_SEGMENT_BYTES`?"
        );
        assert!(error("[server]\nport = 1", &[], &[]).starts_with("unknown key `server` (FILE)"));
        assert!(error("nonsense here", &[], &[]).contains("FILE is not valid TOML"));
    }

    /// Variables of client commands, and those that Kubernetes makes of a service's name, are left alone.
    #[test]
    fn other_peoples_variables() {
        let environment = variables(&[
            ("RINGLOG_SERVER", "host:1"),
            ("RINGLOG_CONFIG", "/etc/ringlog.toml"),
            ("RINGLOG_SERVICE_HOST", "10.0.0.1"),
            ("RINGLOG_SERVICE_PORT_GRPC", "7400"),
            ("RINGLOG_PORT", "tcp://10.0.0.1:7400"),
            ("RINGLOG_PORT_7400_TCP_ADDR", "10.0.0.1"),
            ("RINGLOG_HEADLESS_SERVICE_HOST", "10.0.0.1"),
        ]);
        assert_eq!(Loaded::new(None, environment, &[]).unwrap().config, Config::default());
    }

    /// A wrong value says what would do.
    #[test]
    fn bad_values() {
        assert_eq!(error("pin = 3", &[], &[]), "`pin` cannot be \"3\" (FILE): true or false is expected");
        assert!(error("", &[("RINGLOG_IO_URING", "yes")], &[]).ends_with("auto or off is expected"));
        assert!(error("", &[], &[("grpc", "nowhere".into())]).contains("flag --grpc"));
        let missing = Loaded::new(Some(Path::new("/nowhere/ringlog.toml")), [], &[]).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/ringlog.toml cannot be read"));
    }

    /// Values that cannot work together are refused with the reason.
    #[test]
    fn checks() {
        for (text, part) in [
            ("segment_bytes = 2000000", "multiple of 4096"),
            ("segment_bytes = \"3GiB\"", "at most"),
            ("http = \"127.0.0.1:7400\"", "same address"),
            ("grpc = \"0.0.0.0:7400\"", "--insecure"),
            ("http = \"[::]:7401\"", "--insecure"),
            ("reactors = 5000", "at most 1024"),
            ("message_bytes_max = \"8MiB\"", "at most 4194304"),
            ("record_bytes_max = 0", "at least"),
            ("message_bytes_max = 100000", "record_bytes_max"),
            ("shutdown_grace_ms = \"1d\"", "at most"),
            ("log_filter = \"ringlog=loud=1\"", "log_filter"),
            ("http_hosts = \"a,http://b\"", "without scheme"),
            ("http_hosts = \"b:80\"", "without scheme"),
        ] {
            let error = error(text, &[], &[]);
            assert!(error.contains(part), "{text}: {error}");
        }
        let open = file("grpc = \"0.0.0.0:7400\"\nhttp = \"0.0.0.0:7401\"\ninsecure = true\n");
        assert!(Loaded::new(Some(open.path()), [], &[]).is_ok());
    }

    /// Distances as in the textbook.
    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(closest("zzzzzz"), None);
    }

    /// Files of any bytes (`crate::fuzz`): what is accepted prints as a file that says the same.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a configuration file")]
    fn fuzz() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let decode = |bytes: &[u8]| {
            fs::write(scratch.path(), bytes).unwrap();
            Loaded::new(Some(scratch.path()), [], &[]).ok().map(|loaded| loaded.config)
        };
        let corpus = [
            Loaded::new(None, [], &[]).unwrap().to_toml(),
            "reactors = 1\npin = false\nsegment_bytes = \"8MiB\"\nretention_age_ms = \"7d\"\n".to_owned(),
        ];
        crate::fuzz::Target::new("config::load::tests::fuzz", corpus, decode)
            .encode(|config| Loaded { config: config.clone(), origins: BTreeMap::new() }.to_toml().into_bytes())
            .words(&[
                "= ",
                "\"",
                "[",
                "]",
                "#",
                "\n",
                "MiB",
                "d",
                "-1",
                "true",
                "1e9",
                "\\u0000",
                "18446744073709551616",
            ])
            .memory(1 << 20)
            .run();
    }
}
