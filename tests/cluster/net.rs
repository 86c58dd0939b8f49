//! Network namespaces on a bridge, one per node, and packets that do not arrive: what loopback cannot show. Needs root,
//! `ip` (iproute2) and `nft` (nftables); `.ci/run` installs them.
//!
//! The bridge has a namespace of its own. On the machine's side Docker may drop what a bridge passes on: its firewall rules
//! apply to bridges, too (`net.bridge.bridge-nf-call-iptables`), and refuse to forward.

use std::process::{Command, Stdio};

/// Namespaces of some nodes, connected with each other and with us. They go when it is dropped.
pub struct Net {
    name: String,
    /// Third byte of the addresses: 10.213.x.0/24.
    subnet: u8,
    count: usize,
}

/// Runs a command that must succeed; gives what it said if it did not.
fn run(line: &str, input: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be run ({error}): install iproute2 and nftables", words[0]));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Net {
    /// That many namespaces; `None`, with a loud message, when the kernel refuses to make one.
    pub fn new(count: usize) -> Option<Net> {
        let probe = format!("rlprobe{}", std::process::id());
        if let Err(error) = run(&format!("ip netns add {probe}"), "") {
            eprintln!(
                "\n!!! SKIPPED: the kernel refuses network namespaces ({error}).\n!!! Partitions are NOT tested here. \
                 Run the tests as root, on a machine or in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN.\n"
            );
            return None;
        }
        run(&format!("ip netns del {probe}"), "").unwrap();
        for _ in 0..100 {
            let subnet = fastrand::u8(1..255);
            let net = Net { name: format!("rl{subnet}"), subnet, count };
            // The name of the bridge's namespace is the lock on the subnet.
            if run(&format!("ip netns add {}", net.switch()), "").is_ok() {
                net.build().unwrap_or_else(|error| panic!("the network cannot be built: {error}"));
                return Some(net);
            }
            // Somebody else's: it is not ours to remove.
            std::mem::forget(net);
        }
        panic!("no free subnet");
    }

    fn build(&self) -> Result<(), String> {
        let (name, switch) = (&self.name, self.switch());
        run(&format!("ip -n {switch} link add bridge type bridge"), "")?;
        run(&format!("ip -n {switch} link set bridge up"), "")?;
        run(&format!("ip link add {name} type veth peer name client netns {switch}"), "")?;
        run(&format!("ip -n {switch} link set client master bridge up"), "")?;
        run(&format!("ip addr add {}/24 dev {name}", self.client()), "")?;
        run(&format!("ip link set {name} up"), "")?;
        for node in 0..self.count {
            let (space, link) = (self.space(node), format!("node{node}"));
            run(&format!("ip netns add {space}"), "")?;
            run(&format!("ip -n {switch} link add {link} type veth peer name eth0 netns {space}"), "")?;
            run(&format!("ip -n {switch} link set {link} master bridge up"), "")?;
            run(&format!("ip -n {space} addr add {}/24 dev eth0", self.host(node)), "")?;
            run(&format!("ip -n {space} link set eth0 up"), "")?;
            run(&format!("ip -n {space} link set lo up"), "")?;
            let table = "table inet cut {\nchain input {\ntype filter hook input priority 0; policy accept;\n}\n}\n";
            run(&format!("ip netns exec {space} nft -f -"), table)?;
        }
        Ok(())
    }

    /// The namespace of the bridge.
    fn switch(&self) -> String {
        format!("{}-sw", self.name)
    }

    fn space(&self, node: usize) -> String {
        format!("{}-n{node}", self.name)
    }

    /// Address of a node.
    pub fn host(&self, node: usize) -> String {
        format!("10.213.{}.{}", self.subnet, node + 1)
    }

    /// Our own address, as the nodes see it.
    pub fn client(&self) -> String {
        format!("10.213.{}.254", self.subnet)
    }

    /// What runs a command in a node's namespace.
    pub fn prefix(&self, node: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(node)].map(str::to_owned).to_vec()
    }

    /// From now on nothing that `from` sends to node `to` arrives; the other direction is not touched.
    pub fn cut(&self, from: &str, to: usize) {
        let rule = format!("ip netns exec {} nft add rule inet cut input ip saddr {from} drop", self.space(to));
        run(&rule, "").unwrap();
    }

    /// Cuts both directions between two nodes.
    pub fn part(&self, one: usize, other: usize) {
        self.cut(&self.host(one), other);
        self.cut(&self.host(other), one);
    }

    /// Everything arrives again.
    pub fn heal(&self) {
        for node in 0..self.count {
            run(&format!("ip netns exec {} nft flush chain inet cut input", self.space(node)), "").unwrap();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in 0..self.count {
            // Both ends of a pair go with the namespace of one.
            drop(run(&format!("ip netns del {}", self.space(node)), ""));
        }
        drop(run(&format!("ip link del {}", self.name), ""));
        drop(run(&format!("ip netns del {}", self.switch()), ""));
    }
}
