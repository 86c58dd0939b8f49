//! The methods that are served: their paths, and how often each ended with which status.

use std::cell::RefCell;

use crate::frontend::Code;
use crate::limits;

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Produce,
    ProduceStream,
    Consume,
    ConsumeStream,
    GetServers,
    WatchServers,
    CreateTopic,
    ListTopics,
    DescribeTopic,
    DeleteTopic,
    TrimTopic,
    DescribeCluster,
    CreateJoinToken,
    DrainNode,
    RemoveNode,
    Rebalance,
    TransferLeader,
    HealthCheck,
    HealthWatch,
    Reflect,
    ReflectAlpha,
    /// None of ours; a client's name for it never becomes a metric's label.
    Unknown,
}

/// In the order of `Method`, the busiest first.
const PATHS: [(Method, &str); 22] = [
    (Method::Produce, "/ringlog.v1.Log/Produce"),
    (Method::ProduceStream, "/ringlog.v1.Log/ProduceStream"),
    (Method::Consume, "/ringlog.v1.Log/Consume"),
    (Method::ConsumeStream, "/ringlog.v1.Log/ConsumeStream"),
    (Method::GetServers, "/ringlog.v1.Log/GetServers"),
    (Method::WatchServers, "/ringlog.v1.Log/WatchServers"),
    (Method::CreateTopic, "/ringlog.v1.Admin/CreateTopic"),
    (Method::ListTopics, "/ringlog.v1.Admin/ListTopics"),
    (Method::DescribeTopic, "/ringlog.v1.Admin/DescribeTopic"),
    (Method::DeleteTopic, "/ringlog.v1.Admin/DeleteTopic"),
    (Method::TrimTopic, "/ringlog.v1.Admin/TrimTopic"),
    (Method::DescribeCluster, "/ringlog.v1.Admin/DescribeCluster"),
    (Method::CreateJoinToken, "/ringlog.v1.Admin/CreateJoinToken"),
    (Method::DrainNode, "/ringlog.v1.Admin/DrainNode"),
    (Method::RemoveNode, "/ringlog.v1.Admin/RemoveNode"),
    (Method::Rebalance, "/ringlog.v1.Admin/Rebalance"),
    (Method::TransferLeader, "/ringlog.v1.Admin/TransferLeader"),
    (Method::HealthCheck, "/grpc.health.v1.Health/Check"),
    (Method::HealthWatch, "/grpc.health.v1.Health/Watch"),
    (Method::Reflect, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    (Method::ReflectAlpha, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    (Method::Unknown, "unknown"),
];

/// Status codes are 0 to 16.
const CODES: usize = Code::Unauthenticated as usize + 1;

impl Method {
    /// The method of a request's path; `Unknown` for any other path.
    pub(super) fn from_path(path: &str) -> Method {
        let known = PATHS.iter().find(|(method, known)| *known == path && *method != Method::Unknown);
        known.map_or(Method::Unknown, |(method, _)| *method)
    }

    /// Largest message of its requests, where `most` is that of any.
    pub(super) fn message_bytes_max(self, most: usize) -> usize {
        match self {
            Method::GetServers | Method::WatchServers => most.min(limits::SERVERS_REQUEST_BYTES_MAX),
            _ => most,
        }
    }

    /// Counts one call of it, in `ringlog_grpc_requests_total{method, code}`.
    pub(super) fn count(self, code: Code) {
        thread_local! {
            /// Handles by method and code: looking one up costs more than counting.
            static COUNTERS: RefCell<Vec<Option<metrics::Counter>>> =
                RefCell::new(vec![None; PATHS.len() * CODES]);
        }
        COUNTERS.with_borrow_mut(|counters| {
            counters[self as usize * CODES + code as usize]
                .get_or_insert_with(|| {
                    let method = PATHS[self as usize].1.trim_start_matches('/');
                    metrics::counter!("ringlog_grpc_requests_total", "method" => method, "code" => code.name())
                })
                .increment(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that name topics are no larger than that takes.
    #[test]
    fn requests_that_name_topics() {
        let topics = vec!["n".repeat(limits::TOPIC_NAME_BYTES_MAX); limits::SERVERS_TOPICS_MAX];
        let largest = prost::Message::encoded_len(&crate::proto::ringlog::v1::GetServersRequest { topics });
        let most = limits::MESSAGE_BYTES_MAX;
        for method in [Method::GetServers, Method::WatchServers] {
            assert_eq!((method.message_bytes_max(most), method.message_bytes_max(9)), (largest, 9));
        }
        assert_eq!(Method::ProduceStream.message_bytes_max(most), most);
    }

    /// Every method has its path at its own place in the table, and that path leads to it.
    #[test]
    fn paths_and_methods_agree() {
        for (number, (method, path)) in PATHS.iter().enumerate() {
            assert_eq!(*method as usize, number);
            assert_eq!(Method::from_path(path), *method);
        }
        for path in ["", "/", "unknown", "/ringlog.v1.Log", "/ringlog.v1.Log/Produce/", "/ringlog.v1.Log/produce"] {
            assert_eq!(Method::from_path(path), Method::Unknown, "{path}");
        }
    }
}
