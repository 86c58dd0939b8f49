//! `ringlog serve` and `ringlog config check`: flags become a configuration.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Subcommand;

use super::Failure;
use crate::{config::Loaded, server};

/// Flags are text here; the configuration reads and checks them like the other sources.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// TOML file with settings; `ringlog config check` prints one
    #[arg(long, env = "RINGLOG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory [default: ringlog-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// gRPC listener [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    grpc: Option<String>,
    /// HTTP listener [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Listener for other nodes, UDP: this port and the following ones, one per reactor; port 0: any free
    /// ones [default: 127.0.0.1:7500]
    #[arg(long, value_name = "ADDR")]
    peer: Option<String>,
    /// Host name or IP address that other nodes and clients are told [default: what the listeners are bound to]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Names and addresses, with commas between them, under which HTTP answers beside localhost, its own address and
    /// --advertise: those of a service or a proxy before this node
    #[arg(long, value_name = "HOST,...")]
    http_hosts: Option<String>,
    /// Join the cluster of one of these nodes (their --peer addresses, with commas between them); a data
    /// directory that has joined already does not need it
    #[arg(long, value_name = "ADDR,...")]
    join: Option<String>,
    /// What lets it join; `ringlog cluster token` on a member makes one
    #[arg(long, value_name = "TOKEN")]
    join_token: Option<String>,
    /// CA certificate of the cluster, PEM [default: <data>/tls/ca.crt]
    #[arg(long, value_name = "FILE")]
    peer_ca: Option<String>,
    /// This node's certificate for other nodes, PEM [default: <data>/tls/node.crt]
    #[arg(long, value_name = "FILE")]
    peer_cert: Option<String>,
    /// Its key, PEM [default: <data>/tls/node.key]
    #[arg(long, value_name = "FILE")]
    peer_key: Option<String>,
    /// Replicas of a new topic's shards, fewer while the cluster is smaller [default: 3]
    #[arg(long, value_name = "N")]
    replication_factor: Option<String>,
    /// Reactors, each a pinned thread [default: one per core]
    #[arg(long, value_name = "N")]
    reactors: Option<String>,
    /// Do not pin reactors to cores
    #[arg(long)]
    no_pin: bool,
    /// Allow plaintext on addresses other than loopback
    #[arg(long)]
    insecure: bool,
    /// Make unknown topics on first produce [default: only while gRPC listens on loopback]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    auto_create: Option<String>,
    /// Largest segment file [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<String>,
    /// Keep at most that much per shard, 0: everything [default: 0]
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<String>,
    /// Keep records that long, such as 7d, 0: forever [default: 0]
    #[arg(long, value_name = "TIME")]
    retention_age_ms: Option<String>,
    /// Largest gRPC message [default: 4MiB]
    #[arg(long, value_name = "BYTES")]
    message_bytes_max: Option<String>,
    /// Largest record [default: 1MiB]
    #[arg(long, value_name = "BYTES")]
    record_bytes_max: Option<String>,
    /// Recent entries kept in memory by each reactor [default: 16MiB]
    #[arg(long, value_name = "BYTES")]
    tail_bytes: Option<String>,
    /// Memory of each reactor for what is on its way: requests, entries that are not flushed, frames of peers; beyond it
    /// clients are told to come back [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    memory_bytes: Option<String>,
    /// Use a storage thread instead of io_uring
    #[arg(long)]
    no_io_uring: bool,
    /// Append through the page cache
    #[arg(long)]
    no_direct_io: bool,
    /// How an append is made durable: auto (as the device is), dsync or linked [default: auto]
    #[arg(long, value_name = "FORM")]
    durable_form: Option<String>,
    /// How long a shutdown waits for calls in flight [default: 10s]
    #[arg(long, value_name = "TIME")]
    shutdown_grace_ms: Option<String>,
    /// Log lines: auto (text on a terminal, else JSON), text or json
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
    /// What is logged, such as info or ringlog=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

/// `ringlog config`.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration that `serve` would use with the same flags, and print it
    Check(Box<ServeArgs>),
}

impl ServeArgs {
    fn load(&self) -> Result<Loaded, Failure> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        Loaded::new(self.config.as_deref(), variables, &self.flags())
            .map_err(|error| Failure::Message(error.to_string()))
    }

    fn flags(&self) -> Vec<(&'static str, String)> {
        let switch = |set: bool, text: &str| set.then(|| text.to_owned());
        let flags = [
            ("data", self.data.clone()),
            ("grpc", self.grpc.clone()),
            ("http", self.http.clone()),
            ("peer", self.peer.clone()),
            ("advertise", self.advertise.clone()),
            ("http_hosts", self.http_hosts.clone()),
            ("join", self.join.clone()),
            ("join_token", self.join_token.clone()),
            ("peer_ca", self.peer_ca.clone()),
            ("peer_cert", self.peer_cert.clone()),
            ("peer_key", self.peer_key.clone()),
            ("replication_factor", self.replication_factor.clone()),
            ("reactors", self.reactors.clone()),
            ("pin", switch(self.no_pin, "false")),
            ("insecure", switch(self.insecure, "true")),
            ("auto_create", self.auto_create.clone()),
            ("segment_bytes", self.segment_bytes.clone()),
            ("retention_bytes", self.retention_bytes.clone()),
            ("retention_age_ms", self.retention_age_ms.clone()),
            ("message_bytes_max", self.message_bytes_max.clone()),
            ("record_bytes_max", self.record_bytes_max.clone()),
            ("tail_bytes", self.tail_bytes.clone()),
            ("memory_bytes", self.memory_bytes.clone()),
            ("io_uring", switch(self.no_io_uring, "off")),
            ("direct_io", switch(self.no_direct_io, "off")),
            ("durable_form", self.durable_form.clone()),
            ("shutdown_grace_ms", self.shutdown_grace_ms.clone()),
            ("log_format", self.log_format.clone()),
            ("log_filter", self.log_filter.clone()),
        ];
        flags.into_iter().filter_map(|(key, text)| Some((key, text?))).collect()
    }
}

/// Runs a node.
pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let loaded = args.load()?;
    Ok(server::run(loaded.config)?)
}

/// Prints the effective configuration.
pub(super) fn config(args: ConfigArgs) -> Result<(), Failure> {
    let ConfigCommand::Check(args) = args.command;
    let loaded = args.load()?;
    io::stdout().write_all(loaded.to_toml().as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Choice, Config};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// Every flag reaches its key, switches and units included.
    #[test]
    fn flags_reach_the_configuration() {
        let line = "serve --data d --grpc localhost:1 --http 127.0.0.1:2 --peer 127.0.0.1:3 --advertise host \
                    --http-hosts lb.example,10.0.0.9 --join a:1,b:2 --join-token secret --peer-ca ca --peer-cert cert --peer-key key \
                    --replication-factor 5 --reactors 3 --no-pin --insecure --auto-create \
                    --segment-bytes 8MiB --retention-bytes 1GiB --retention-age-ms 1s --message-bytes-max 2MiB \
                    --record-bytes-max 64KiB --tail-bytes 1MiB --memory-bytes 1GiB --no-io-uring --no-direct-io \
                    --durable-form linked --shutdown-grace-ms 1s --log-format json --log-filter debug";
        let flags = Line::try_parse_from(line.split_whitespace()).unwrap().args.flags();
        let config = Loaded::new(None, [], &flags).unwrap().config;
        let expected = Config {
            data: "d".into(),
            grpc: ([127, 0, 0, 1], 1).into(),
            http: ([127, 0, 0, 1], 2).into(),
            peer: ([127, 0, 0, 1], 3).into(),
            advertise: "host".into(),
            http_hosts: vec!["lb.example".into(), "10.0.0.9".into()],
            join: vec!["a:1".into(), "b:2".into()],
            join_token: "secret".into(),
            peer_ca: "ca".into(),
            peer_cert: "cert".into(),
            peer_key: "key".into(),
            replication_factor: 5,
            reactors: 3,
            pin: false,
            insecure: true,
            auto_create: Some(true),
            segment_bytes: 8 << 20,
            retention_bytes: 1 << 30,
            retention_age_ms: 1_000,
            message_bytes_max: 2 << 20,
            record_bytes_max: 64 << 10,
            tail_bytes: 1 << 20,
            memory_bytes: 1 << 30,
            io_uring: Choice::Off,
            direct_io: Choice::Off,
            durable_form: crate::config::DurableForm::Linked,
            shutdown_grace_ms: 1_000,
            log_format: crate::config::LogFormat::Json,
            log_filter: "debug".into(),
        };
        assert_eq!(config, expected);
    }
}
