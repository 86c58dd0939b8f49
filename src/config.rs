//! What an operator sets: flags over `RINGLOG_*` environment over a TOML file over defaults. Read
//! once, checked, then immutable.
//!
//! A key has one name everywhere: `segment_bytes` in the file, `RINGLOG_SEGMENT_BYTES` in the environment,
//! `--segment-bytes` as a flag. Unknown ones are errors. Sizes and durations take units (`256MiB`, `7d`).

mod keys;
mod load;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

pub use self::{
    keys::{bytes, milliseconds},
    load::{ConfigError, Loaded, Origin},
};

use crate::limits;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether to use something that the machine may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Use it where it works; say so where it does not.
    Auto,
    /// Never.
    Off,
}

/// How an append is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableForm {
    /// As the device is: `Dsync` where it needs no flush for it, else `Linked`.
    Auto,
    /// One write with RWF_DSYNC.
    Dsync,
    /// A write linked to an fdatasync.
    Linked,
}

/// The effective configuration of a node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Data directory.
    pub data: PathBuf,
    /// gRPC listener.
    pub grpc: SocketAddr,
    /// HTTP listener.
    pub http: SocketAddr,
    /// UDP listener for other nodes: this port and the following ones, one per reactor; port 0: any free ones.
    pub peer: SocketAddr,
    /// What other nodes and clients are told instead of the listeners' addresses: `host` or an IP address; empty: the
    /// listeners' own, and this machine's host name for those that listen on all addresses.
    pub advertise: String,
    /// Names and addresses, without ports, under which HTTP answers beside this node's own (see `frontend/http/guard`).
    pub http_hosts: Vec<String>,
    /// A new node joins the cluster that one of these belongs to (`host:port` of their peer listeners); empty: it begins one.
    pub join: Vec<String>,
    /// Lets it; made by `ringlog cluster token`.
    pub join_token: String,
    /// PEM file of the cluster's CA certificate; empty: `<data>/tls/ca.crt`.
    pub peer_ca: PathBuf,
    /// PEM file of this node's certificate, which names cluster and node; empty: `<data>/tls/node.crt`.
    pub peer_cert: PathBuf,
    /// PEM file of its key; empty: `<data>/tls/node.key`.
    pub peer_key: PathBuf,
    /// Default number of replicas of a new topic.
    pub replication_factor: u32,
    /// Reactors; 0: one per available core.
    pub reactors: usize,
    /// Whether reactors are pinned to cores.
    pub pin: bool,
    /// Allow plaintext on addresses other than loopback.
    pub insecure: bool,
    /// Make unknown topics on first produce; unset: only while the gRPC listener is loopback.
    pub auto_create: Option<bool>,
    /// Default largest segment file.
    pub segment_bytes: u64,
    /// Default retention, bytes per shard; 0: none.
    pub retention_bytes: u64,
    /// Default retention, ms; 0: none.
    pub retention_age_ms: u64,
    /// Largest message.
    pub message_bytes_max: usize,
    /// Largest record.
    pub record_bytes_max: usize,
    /// Recent entries kept in memory by each reactor.
    pub tail_bytes: usize,
    /// Memory of each reactor for what is on its way: requests, entries that are not flushed, frames of peers, answers.
    pub memory_bytes: usize,
    /// io_uring for storage.
    pub io_uring: Choice,
    /// O_DIRECT for appends.
    pub direct_io: Choice,
    /// How an append is made durable.
    pub durable_form: DurableForm,
    /// How long a shutdown waits for calls in flight, ms.
    pub shutdown_grace_ms: u64,
    /// Log lines' form.
    pub log_format: LogFormat,
    /// tracing filter directives.
    pub log_filter: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data: "ringlog-data".into(),
            grpc: ([127, 0, 0, 1], 7400).into(),
            http: ([127, 0, 0, 1], 7401).into(),
            peer: ([127, 0, 0, 1], 7500).into(),
            advertise: String::new(),
            http_hosts: Vec::new(),
            join: Vec::new(),
            join_token: String::new(),
            peer_ca: PathBuf::new(),
            peer_cert: PathBuf::new(),
            peer_key: PathBuf::new(),
            replication_factor: limits::REPLICATION_FACTOR_DEFAULT,
            reactors: 0,
            pin: true,
            insecure: false,
            auto_create: None,
            segment_bytes: limits::SEGMENT_BYTES_DEFAULT,
            retention_bytes: 0,
            retention_age_ms: 0,
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            record_bytes_max: limits::RECORD_BYTES_MAX,
            tail_bytes: limits::TAIL_BYTES_MAX,
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            io_uring: Choice::Auto,
            direct_io: Choice::Auto,
            durable_form: DurableForm::Auto,
            shutdown_grace_ms: 10_000,
            log_format: LogFormat::Auto,
            log_filter: "info".into(),
        }
    }
}

/// Smallest largest message: below it even a topic's name and a small batch would not fit.
const MESSAGE_BYTES_FLOOR: usize = 64 << 10;

/// Smallest largest record.
const RECORD_BYTES_FLOOR: usize = 1 << 10;

/// Longest grace of a shutdown: service managers have killed us long before.
const SHUTDOWN_GRACE_MS_MAX: u64 = 600_000;

/// Most memory for recent entries of one reactor.
const TAIL_BYTES_LIMIT: usize = 64 << 30;

/// Most memory for what is on its way in one reactor.
const MEMORY_BYTES_LIMIT: usize = 64 << 30;

impl Config {
    /// Whether all values can work, alone and together.
    ///
    /// # Errors
    /// The key that cannot, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        self.check_addresses()?;
        if let Some(host) = self.http_hosts.iter().find(|host| !is_host(host)) {
            return Err((
                "http_hosts",
                format!("{host:?} is not a host name or an IP address, without scheme and port"),
            ));
        }
        if self.data.as_os_str().is_empty() {
            return Err(("data", "a data directory is needed".to_owned()));
        }
        range("reactors", self.reactors as u64, 0, limits::REACTORS_MAX as u64)?;
        range("replication_factor", self.replication_factor.into(), 1, limits::REPLICATION_FACTOR_MAX.into())?;
        range("segment_bytes", self.segment_bytes, limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_LIMIT)?;
        if !self.segment_bytes.is_multiple_of(limits::BLOCK_BYTES as u64) {
            let what = format!("{} bytes are not a multiple of {}", self.segment_bytes, limits::BLOCK_BYTES);
            return Err(("segment_bytes", what));
        }
        let (message, record) = (self.message_bytes_max, self.record_bytes_max);
        range("message_bytes_max", message as u64, MESSAGE_BYTES_FLOOR as u64, limits::MESSAGE_BYTES_MAX as u64)?;
        range("record_bytes_max", record as u64, RECORD_BYTES_FLOOR as u64, limits::RECORD_BYTES_MAX as u64)?;
        if record >= message {
            let what =
                format!("{message} bytes hold no record of record_bytes_max, {record} bytes; lower that one too");
            return Err(("message_bytes_max", what));
        }
        range("tail_bytes", self.tail_bytes as u64, 0, TAIL_BYTES_LIMIT as u64)?;
        range("memory_bytes", self.memory_bytes as u64, limits::MEMORY_BYTES_MIN as u64, MEMORY_BYTES_LIMIT as u64)?;
        range("shutdown_grace_ms", self.shutdown_grace_ms, 0, SHUTDOWN_GRACE_MS_MAX)?;
        tracing_subscriber::EnvFilter::try_new(&self.log_filter)
            .map_err(|error| ("log_filter", format!("log_filter is not a tracing filter such as \"info\": {error}")))?;
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), (&'static str, String)> {
        let (grpc, http) = (self.grpc.ip(), self.http.ip());
        let overlap = grpc == http || grpc.is_unspecified() || http.is_unspecified();
        if overlap && self.grpc.port() == self.http.port() && self.grpc.port() != 0 {
            let what = format!("gRPC and HTTP cannot both listen on the same address, {}", self.http);
            return Err(("http", what));
        }
        for (key, address) in [("grpc", self.grpc), ("http", self.http)] {
            if !address.ip().is_loopback() && !self.insecure {
                let what = format!(
                    "{address} is not loopback, and without TLS anybody who reaches it can read and write; listen on \
                     127.0.0.1, or allow it with --insecure"
                );
                return Err((key, what));
            }
        }
        Ok(())
    }
}

fn is_host(text: &str) -> bool {
    let is_name =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    text.parse::<IpAddr>().is_ok() || is_name(text) && !text.is_empty()
}

/// A host and a port, of `host:port` (an IPv6 address in brackets); `None`: it is something else.
pub fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

fn range(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), (&'static str, String)> {
    if value < least {
        return Err((key, format!("{value} is too little, it must be at least {least}")));
    }
    if value > most {
        return Err((key, format!("{value} is too much, it can be at most {most}")));
    }
    Ok(())
}
