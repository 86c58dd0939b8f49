//! What an operator sets: flags over `RINGLOG_*` environment over a TOML file over defaults. Read
//! once, checked, then immutable. TO BE WRITTEN (loading)

use std::{net::SocketAddr, path::PathBuf};

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
            io_uring: Choice::Auto,
            direct_io: Choice::Auto,
            durable_form: DurableForm::Dsync,
            shutdown_grace_ms: 10_000,
            log_format: LogFormat::Auto,
            log_filter: "info".into(),
        }
    }
}
