//! Configuration of cluster nodes on separate machines (network namespaces). The nodes listen on the network,
//! so they use TLS certificates, and users need a token to register.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::faults::Script;
use crate::server::Machine;

/// The machines of a cluster's nodes, and the files that the nodes need there.
#[derive(Debug)]
pub struct Deployment {
    dir: PathBuf,
    /// Set only if each node runs on its own machine.
    script: Option<Script>,
}

/// Number of the first gateway's machine. Machines with lower numbers run the services.
pub const FIRST_GATEWAY: u64 = 7;
/// Number of the first router's machine.
pub const FIRST_ROUTER: u64 = 10;
/// Number of the machine for an additional router.
pub const ANOTHER_ROUTER: u64 = 12;
/// Client port of a node on its own machine.
const PORT: u16 = 7777;

impl Deployment {
    /// Creates a deployment. If the nodes run on their own machines, writes a certificate, its key and a
    /// token secret to `dir`.
    pub fn new(dir: &Path, script: Option<&Script>) -> Self {
        let script = script.filter(|script| script.namespaces.is_some()).cloned();
        let deployment = Self { dir: dir.to_owned(), script };
        if deployment.script.is_some() {
            deployment.make_secrets();
        }
        deployment
    }

    /// Writes one certificate for all nodes. It names the addresses that clients dial, and `chat-node`, the
    /// name that the node link verifies.
    fn make_secrets(&self) {
        let addresses = (FIRST_GATEWAY..=ANOTHER_ROUTER).map(|number| self.machine(number).address);
        let names: Vec<String> = addresses.chain(["chat-node".to_owned()]).collect();
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).unwrap();
        for (name, text) in [
            ("ca.pem", cert.pem()),
            ("key.pem", signing_key.serialize_pem()),
            ("secret", hex::encode(secret)),
        ] {
            std::fs::write(self.dir.join(name), text).unwrap();
        }
    }

    /// Returns the machine with this number, or this machine if there are no others.
    pub fn machine(&self, number: u64) -> Machine {
        let Some(script) = &self.script else { return Machine::this() };
        let namespace = script.namespaces.as_ref().map(|prefix| format!("{prefix}{number}"));
        Machine { address: format!("{}.{number}", script.net), namespace, port: Some(PORT) }
    }

    /// Writes the settings of a node to a file: `common`, and those of its machine. Returns the path of the
    /// file.
    pub fn settings(&self, name: &str, machine: &Machine, common: &str) -> PathBuf {
        let mut text = format!("{common}node_link_listen = \"{}:0\"\n", machine.address);
        if self.script.is_some() {
            let file = |name: &str| self.dir.join(name);
            let (cert, key, secret) = (file("ca.pem"), file("key.pem"), file("secret"));
            write!(
                text,
                "allow_public_admin = true\nauthorities = [\"{}:{PORT}\"]\nsecret_file = {secret:?}\ntls_cert = {cert:?}\ntls_key = {key:?}\n\
                 [node_link_tls]\ncert = {cert:?}\nkey = {key:?}\nca = {cert:?}\n",
                machine.address
            )
            .unwrap();
        } else {
            text.push_str("open_registration = true\n");
        }
        let path = self.dir.join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Returns whether registration requires a token.
    pub fn asks_for_tokens(&self) -> bool {
        self.script.is_some()
    }
}
