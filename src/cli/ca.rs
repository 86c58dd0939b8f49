//! `ringlog ca`: a cluster's own certificates, for operators who keep the CA's key off the nodes.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Subcommand;

use super::Failure;
use crate::{
    ids::NodeId,
    tls::{Authority, CA_VALIDITY, NODE_VALIDITY, is_cluster_id, new_cluster_id},
};

/// `ringlog ca`.
#[derive(Debug, clap::Args)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a cluster's CA: ca.crt for every node, and ca.key, to be kept secret
    Init {
        /// Directory to put ca.crt and ca.key into
        #[arg(long, value_name = "DIR", default_value = "ringlog-ca")]
        out: PathBuf,
        /// Cluster that the CA is for, 32 hexadecimal digits [default: a new one]
        #[arg(long, value_name = "HEX", value_parser = cluster_id)]
        cluster_id: Option<String>,
        /// Replace files that are there: nodes with certificates of the old CA are refused from then on
        #[arg(long)]
        force: bool,
    },
    /// Make a node's certificate: node.crt and node.key, and a copy of ca.crt
    Issue {
        /// Number of the node
        #[arg(long, value_name = "N")]
        node: u64,
        /// Directory with ca.crt and ca.key
        #[arg(long, value_name = "DIR", default_value = "ringlog-ca")]
        ca: PathBuf,
        /// Directory to put the files into, such as the node's <data>/tls [default: node-N]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Days until the certificate expires
        #[arg(long, value_name = "N", default_value_t = NODE_VALIDITY.as_secs() / DAY_SECONDS,
              value_parser = clap::value_parser!(u64).range(1..=CA_VALIDITY.as_secs() / DAY_SECONDS))]
        days: u64,
        /// Replace files that are there
        #[arg(long)]
        force: bool,
    },
}

const DAY_SECONDS: u64 = 86_400;

fn cluster_id(text: &str) -> Result<String, String> {
    let text = text.to_lowercase();
    if is_cluster_id(&text) { Ok(text) } else { Err("32 hexadecimal digits are expected".to_owned()) }
}

/// Runs the command.
pub(super) fn ca(args: CaArgs) -> Result<(), Failure> {
    #[allow(clippy::disallowed_methods, reason = "a command has no other clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let said = run(args.command, now.as_micros() as i64)?;
    io::stdout().write_all(said.as_bytes())?;
    Ok(())
}

/// What is done, and the lines to print.
fn run(command: CaCommand, now_us: i64) -> Result<String, String> {
    match command {
        CaCommand::Init { out, cluster_id, force } => init(&out, cluster_id, force, now_us),
        CaCommand::Issue { node, ca, out, days, force } => {
            let out = out.unwrap_or_else(|| format!("node-{node}").into());
            issue(NodeId(node), &ca, &out, Duration::from_secs(days * DAY_SECONDS), force, now_us)
        }
    }
}

fn init(out: &Path, cluster_id: Option<String>, force: bool, now_us: i64) -> Result<String, String> {
    let cluster_id = match cluster_id {
        Some(cluster_id) => cluster_id,
        None => new_cluster_id().map_err(|error| error.to_string())?,
    };
    let made = Authority::make(&cluster_id, now_us).map_err(|error| error.to_string())?;
    let authority = Authority::from_pem(&made.certificate, &made.key).map_err(|error| error.to_string())?;
    // The key first: without it the certificate is of no use.
    write(out, &[("ca.key", &made.key, SECRET), ("ca.crt", &made.certificate, PUBLIC)], force)?;
    Ok(format!(
        "CA of cluster {cluster_id} in {}\nfingerprint {}\nkeep ca.key secret: whoever has it can be any node\n",
        out.display(),
        authority.fingerprint()
    ))
}

fn issue(node: NodeId, ca: &Path, out: &Path, validity: Duration, force: bool, now_us: i64) -> Result<String, String> {
    if node.0 == 0 {
        return Err("nodes are numbered from 1".to_owned());
    }
    let (certificate, key) = (read(ca, "ca.crt")?, read(ca, "ca.key")?);
    let in_ca = |error| format!("{}: {error}", ca.display());
    let authority = Authority::from_pem(&certificate, &key).map_err(in_ca)?;
    let issued = authority.issue(node, validity, now_us).map_err(in_ca)?;
    let mut files = vec![("node.key", &issued.key, SECRET), ("node.crt", &issued.certificate, PUBLIC)];
    // The very same file needs no permission to be replaced.
    if read(out, "ca.crt").is_ok_and(|present| present == certificate) {
        write(out, &files, force)?;
    } else {
        files.push(("ca.crt", &certificate, PUBLIC));
        write(out, &files, force)?;
    }
    let end = UNIX_EPOCH + Duration::from_micros(now_us.max(0) as u64) + validity;
    Ok(format!(
        "certificate of node {node} of cluster {} in {}\nvalid until {}\n",
        authority.cluster(),
        out.display(),
        humantime::format_rfc3339_seconds(end)
    ))
}

/// Everybody may read it.
const PUBLIC: u32 = 0o644;

/// Its owner may read it.
const SECRET: u32 = 0o600;

#[allow(clippy::disallowed_methods, reason = "an offline command")]
fn read(dir: &Path, name: &str) -> Result<String, String> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{} does not exist; make a CA with `ringlog ca init`, or say where it is", path.display())
        }
        _ => format!("{} could not be read: {error}", path.display()),
    })
}

/// Writes all files, or none when one is there already. Each appears whole, with its mode from the first moment on.
#[allow(clippy::disallowed_methods, reason = "an offline command")]
fn write(dir: &Path, files: &[(&str, &String, u32)], force: bool) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("{} could not be written: {error}", path.display());
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (name, ..) in files {
        let path = dir.join(name);
        if !force && path.exists() {
            return Err(format!("{} is there already, and nothing was changed; --force replaces it", path.display()));
        }
    }
    for (name, content, mode) in files {
        let (path, draft) = (dir.join(name), dir.join(format!("{name}.tmp")));
        // A draft that a crash has left behind may be readable for others.
        drop(fs::remove_file(&draft));
        let written = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&draft).and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        });
        written.map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests of files")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::tls::{CredentialFiles, Credentials};

    /// 2026-01-02T03:04:05Z.
    const NOW_US: i64 = 1_767_323_045_000_000;

    const CLUSTER: &str = "00112233445566778899aabbccddeeff";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CaArgs,
    }

    fn ca(line: &str) -> Result<String, String> {
        let line = Line::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        run(line.args.command, NOW_US)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Two nodes of one cluster, as the README has it; their files are good, and only the keys are secret.
    #[test]
    fn init_and_issue() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let said = ca(&format!("ca init --out {at}/ca --cluster-id {}", CLUSTER.to_uppercase())).unwrap();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(&*format!("CA of cluster {CLUSTER} in {at}/ca")));
        let fingerprint = lines.next().unwrap().strip_prefix("fingerprint ").unwrap().to_owned();
        assert_eq!(lines.next(), Some("keep ca.key secret: whoever has it can be any node"));
        for node in [1, 2] {
            let said = ca(&format!("ca issue --node {node} --ca {at}/ca --out {at}/{node}/tls --days 30")).unwrap();
            let expected = format!(
                "certificate of node {node} of cluster {CLUSTER} in {at}/{node}/tls\nvalid until 2026-02-01T03:04:05Z\n"
            );
            assert_eq!(said, expected);
            let tls = dir.path().join(format!("{node}/tls"));
            let files = CredentialFiles {
                authority: tls.join("ca.crt"),
                certificate: tls.join("node.crt"),
                key: tls.join("node.key"),
            };
            let credentials = Credentials::load(&files, NOW_US).unwrap();
            credentials.must_be_of(NodeId(node), CLUSTER).unwrap();
            assert_eq!(credentials.fingerprint().to_string(), fingerprint);
            assert_eq!((mode(&files.key), mode(&files.certificate) & 0o600), (0o600, 0o600));
            assert_eq!(fs::read_dir(&tls).unwrap().count(), 3);
        }
        assert_eq!(mode(&dir.path().join("ca/ca.key")), 0o600);
    }

    /// Nothing is replaced unless it is said, and then everything; a cluster id is made where none is given.
    #[test]
    fn replace() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        ca(&format!("ca init --out {at}")).unwrap();
        let key = fs::read_to_string(dir.path().join("ca.key")).unwrap();
        let refused = ca(&format!("ca init --out {at}")).unwrap_err();
        assert_eq!(refused, format!("{at}/ca.key is there already, and nothing was changed; --force replaces it"));
        assert_eq!(fs::read_to_string(dir.path().join("ca.key")).unwrap(), key);
        // Beside the CA itself: its certificate stays as it is.
        ca(&format!("ca issue --node 1 --ca {at} --out {at}")).unwrap();
        let first = fs::read_to_string(dir.path().join("node.crt")).unwrap();
        let refused = ca(&format!("ca issue --node 1 --ca {at} --out {at}")).unwrap_err();
        assert!(refused.starts_with(&format!("{at}/node.key is there already")), "{refused}");
        ca(&format!("ca issue --node 1 --ca {at} --out {at} --force")).unwrap();
        assert_ne!(fs::read_to_string(dir.path().join("node.crt")).unwrap(), first);
        ca(&format!("ca init --out {at} --force")).unwrap();
        assert_ne!(fs::read_to_string(dir.path().join("ca.key")).unwrap(), key);
        // The node's CA certificate is another one now.
        let refused = ca(&format!("ca issue --node 2 --ca {at} --out {at}/two")).and_then(|_| {
            ca(&format!("ca init --out {at} --force"))?;
            ca(&format!("ca issue --node 2 --ca {at} --out {at}/two"))
        });
        assert!(refused.unwrap_err().starts_with(&format!("{at}/two/node.key is there already")));
    }

    /// Wrong usage and missing files are said.
    #[test]
    fn mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        for (line, expected) in [
            (format!("ca init --out {at} --cluster-id 12"), "32 hexadecimal digits are expected"),
            (format!("ca issue --node 1 --ca {at}"), "ca.crt does not exist; make a CA with `ringlog ca init`"),
            (format!("ca issue --node 0 --ca {at}"), "nodes are numbered from 1"),
            (format!("ca issue --node 1 --ca {at} --days 0"), "0 is not in 1..=3650"),
            (format!("ca issue --ca {at}"), "--node <N>"),
        ] {
            let error = ca(&line).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("ca.crt"), "hello").unwrap();
        fs::write(dir.path().join("ca.key"), "hello").unwrap();
        let error = ca(&format!("ca issue --node 1 --ca {at} --out {at}/one")).unwrap_err();
        assert!(error.starts_with(&format!("{at}: the CA certificate is not PEM: ")), "{error}");
        assert!(!dir.path().join("one").exists());
    }
}
