//! Which requests are let in at all: those that a web page cannot have a browser send.
//!
//! - **Host.** A page whose name was made to lead here (DNS rebinding) is of one origin with us for its browser, and could
//!   read and write everything; but its requests carry its own name. Only names of this node are answered: loopback, the
//!   address that the connection was made to, what is advertised, and `http_hosts`. The port is not looked at: a forwarded
//!   one differs. A request without a host, as HTTP/1.0 allows, comes from no browser.
//! - **Health.** `/livez` and `/readyz` are answered under any *address*, too: a load balancer asks under its own, and a name
//!   is what rebinding needs. A kubelet asks under the pod's address, which is the one that the connection was made to.
//! - **Changes.** Everything but GET and HEAD needs `content-type: application/json`, with a body or without: a form cannot
//!   send it, and a script may only after we have allowed it (a preflight, which nobody answers here). An `Origin` other
//!   than the node itself is refused all the same.

use std::{collections::BTreeSet, net::IpAddr};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, Method, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, memory, socket::Accepted};
use crate::{
    frontend::{CallError, Code},
    reactor::node::Node,
};

/// Pages that are answered under any address.
const HEALTH: [&str; 2] = ["/livez", "/readyz"];

/// The names and addresses of this node.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// In lower case, without a dot at the end.
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Hosts {
    /// Those of `node`, as configured, advertised and listened on.
    pub(super) fn of(node: &Node) -> Hosts {
        let mut hosts = Hosts::default();
        hosts.names.insert("localhost".to_owned());
        let (config, advertised) = (&node.config, &node.advertised);
        for host in &config.http_hosts {
            hosts.add(host);
        }
        for host in [&advertised.peer_host, &advertised.grpc, &advertised.http] {
            hosts.add(host_of(host));
        }
        let listening = [node.addresses.0.ip(), node.addresses.1.ip()];
        hosts.addresses.extend(listening.iter().filter(|ip| !ip.is_unspecified()).map(IpAddr::to_canonical));
        hosts
    }

    fn add(&mut self, host: &str) {
        match address(host) {
            Some(address) => drop(self.addresses.insert(address)),
            None => drop(self.names.insert(name(host))),
        }
    }

    /// Whether a request under that host is for this node; `local`: where its connection was made to.
    fn has(&self, host: &str, local: IpAddr) -> bool {
        match address(host) {
            Some(address) => {
                address.is_loopback() || address == local.to_canonical() || self.addresses.contains(&address)
            }
            None => self.names.contains(&name(host)),
        }
    }
}

/// Answers a request, or refuses it. Its connection keeps its place while it is worked on, and what the answer holds is counted.
pub(super) async fn answer(
    State(api): State<Api>,
    ConnectInfo(Accepted { local, connection }): ConnectInfo<Accepted>,
    request: Request,
    next: Next,
) -> Response {
    connection.begin();
    let is_health = HEALTH.contains(&request.uri().path());
    let checked = checked(&api.hosts, local, request.method(), request.uri(), request.headers());
    let mut response = match checked {
        Err(refused) => refused.into_response(),
        Ok(()) if connection.is_reserved() && !is_health => too_many().into_response(),
        Ok(()) => next.run(request).await,
    };
    if !is_health {
        let counted = memory::counted(response, api.memory.hold(connection.clone())).await;
        response = counted.unwrap_or_else(IntoResponse::into_response);
    }
    if connection.is_to_close() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    connection.done();
    response
}

/// There is no place for this request.
pub(super) fn too_many() -> CallError {
    let message = "requests are being answered on as many connections as there may be; retry after a moment";
    CallError::retry(Code::ResourceExhausted, "HTTP_BUSY", message)
}

fn checked(hosts: &Hosts, local: IpAddr, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), CallError> {
    let authority = authority(uri, headers)?;
    if let Some(authority) = authority {
        let host = host_of(authority);
        let is_health = HEALTH.contains(&uri.path()) && address(host).is_some();
        if !is_health && !hosts.has(host, local) {
            let message = format!(
                "{host:?} is not a name of this node; if clients are to reach it under this one, add it to http_hosts"
            );
            return Err(CallError::new(Code::PermissionDenied, "HOST_UNKNOWN", message));
        }
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(());
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        // We serve plaintext, so our own pages' origin is `http://` and what the browser called us.
        let own = authority.map(|authority| format!("http://{authority}"));
        if !own.is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(origin.as_bytes())) {
            let message = format!("a page of {origin:?} may change nothing here");
            return Err(CallError::new(Code::PermissionDenied, "ORIGIN_FOREIGN", message));
        }
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "a request that changes something needs the header content-type: application/json, also with an \
                       empty body";
        return Err(CallError::invalid("NOT_JSON", message));
    }
    Ok(())
}

/// Whom the request is for: of an absolute target if it has one, else the header (RFC 9112, section 3.2.2).
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, CallError> {
    let invalid = || CallError::invalid("HOST_INVALID", "the header host is not one host, with or without a port");
    let mut given = headers.get_all(header::HOST).iter();
    let host = given.next().map(|host| host.to_str().map_err(|_| invalid())).transpose()?;
    if given.next().is_some() || host.is_some_and(|host| host.parse::<Authority>().is_err() || host.contains('@')) {
        return Err(invalid());
    }
    Ok(uri.authority().map(Authority::as_str).or(host))
}

/// `host` of `host` or `host:port`; an IPv6 address keeps its brackets.
fn host_of(authority: &str) -> &str {
    let port_at = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
    port_at.map_or(authority, |at| &authority[..at])
}

/// An address in its one form: an IPv4 one that is written as an IPv6 one is the IPv4 one.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn answer(method: Method, uri: &str, headers: &[(header::HeaderName, &str)]) -> Result<(), &'static str> {
        let mut hosts = Hosts::default();
        for host in ["localhost", "node.example", "10.0.0.9", "[fd00::9]"] {
            hosts.add(host);
        }
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let local = Ipv4Addr::new(10, 1, 2, 3).into();
        checked(&hosts, local, &method, &uri.parse().unwrap(), &headers).map_err(|error| error.reason)
    }

    /// Names and addresses in all forms: ours, and those that look like ours.
    #[test]
    fn hosts() {
        let get = |host: &str| answer(Method::GET, "/v1/topics", &[(header::HOST, host)]);
        let ours =
            ["localhost", "LocalHost.:1", "node.example:80", "10.0.0.9", "10.1.2.3:7401", "[fd00::9]:1", "[::1]"];
        for host in ours.into_iter().chain(["127.0.0.1", "127.255.0.1:9", "[::ffff:10.1.2.3]", "[::ffff:127.0.0.1]:5"])
        {
            assert_eq!(get(host), Ok(()), "{host}");
        }
        let foreign = ["evil.example", "node.example.evil", "xnode.example", "localhost.evil", "10.0.0.8", "0.0.0.0"];
        for host in foreign.into_iter().chain(["127.0.0.1.evil", "[fd00::8]", "2130706433", "a.localhost"]) {
            assert_eq!(get(host), Err("HOST_UNKNOWN"), "{host}");
        }
        for host in ["", "me@localhost", "localhost/x", "localhost, evil"] {
            assert_eq!(get(host), Err("HOST_INVALID"), "{host}");
        }
        let mut twice = HeaderMap::new();
        twice.insert(header::HOST, HeaderValue::from_static("localhost"));
        twice.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(authority(&Uri::from_static("/"), &twice).is_err());
        assert_eq!(answer(Method::GET, "/v1/topics", &[]), Ok(()), "HTTP/1.0, no browser");
        assert_eq!(answer(Method::GET, "http://evil.example/v1", &[(header::HOST, "localhost")]), Err("HOST_UNKNOWN"));
    }

    /// Health is answered under any address, and under no foreign name.
    #[test]
    fn health() {
        for path in HEALTH {
            assert_eq!(answer(Method::GET, path, &[(header::HOST, "203.0.113.7:80")]), Ok(()));
            assert_eq!(answer(Method::GET, path, &[(header::HOST, "evil.example")]), Err("HOST_UNKNOWN"));
        }
        assert_eq!(answer(Method::GET, "/metrics", &[(header::HOST, "203.0.113.7")]), Err("HOST_UNKNOWN"));
    }

    /// What changes something needs the content type, and no other origin than the node itself.
    #[test]
    fn changes() {
        let json = (header::CONTENT_TYPE, "application/json; charset=utf-8");
        let host = (header::HOST, "node.example:7401");
        let origin = |origin| (header::ORIGIN, origin);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let answer = |headers: &[_]| answer(method.clone(), "/v1/topics/t", headers);
            assert_eq!(answer(&[host.clone(), json.clone()]), Ok(()));
            assert_eq!(answer(std::slice::from_ref(&host)), Err("NOT_JSON"));
            assert_eq!(answer(&[host.clone(), (header::CONTENT_TYPE, "text/plain")]), Err("NOT_JSON"));
            assert_eq!(answer(&[host.clone(), json.clone(), origin("http://node.example:7401")]), Ok(()));
            for foreign in ["http://node.example", "https://node.example:7401", "null", "http://evil.example", ""] {
                assert_eq!(answer(&[host.clone(), json.clone(), origin(foreign)]), Err("ORIGIN_FOREIGN"), "{foreign}");
            }
        }
        let get = [host, origin("http://evil.example")];
        assert_eq!(answer(Method::GET, "/v1/topics", &get), Ok(()), "its browser keeps the answer from it");
    }
}
