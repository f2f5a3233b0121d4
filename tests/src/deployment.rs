//! Nodes of a cluster as somebody deploys them on machines of their own: they listen to the network, so they
//! show certificates, and users show tokens.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::faults::Script;
use crate::server::Machine;

/// Where the nodes of a cluster run, and what they need there.
#[derive(Debug)]
pub struct Deployment {
    dir: PathBuf,
    /// Names the machines, where there are any.
    script: Option<Script>,
}

/// The machine of the first gateway: those before it are the services'.
pub const FIRST_GATEWAY: u64 = 7;
/// The machine of the first router.
pub const FIRST_ROUTER: u64 = 10;
/// The machine of one more router.
pub const ANOTHER_ROUTER: u64 = 12;
/// Where nodes listen on a machine that is theirs alone.
const PORT: u16 = 7777;

impl Deployment {
    /// Makes what machines of their own need in this directory, if there are any.
    pub fn new(dir: &Path, script: Option<&Script>) -> Self {
        let script = script.filter(|script| script.namespaces.is_some()).cloned();
        let deployment = Self { dir: dir.to_owned(), script };
        if deployment.script.is_some() {
            deployment.make_secrets();
        }
        deployment
    }

    /// One certificate for all: for clients, who know the addresses, and for the link, which knows a name.
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

    /// The machine of this number, or this one.
    pub fn machine(&self, number: u64) -> Machine {
        let Some(script) = &self.script else { return Machine::this() };
        let namespace = script.namespaces.as_ref().map(|prefix| format!("{prefix}{number}"));
        Machine { address: format!("{}.{number}", script.net), namespace, port: Some(PORT) }
    }

    /// The settings of a node there beside those of all, in a file of its own.
    pub fn settings(&self, name: &str, machine: &Machine, common: &str) -> PathBuf {
        let mut text = format!("{common}node_link_listen = \"{}:0\"\n", machine.address);
        if self.script.is_some() {
            let file = |name: &str| self.dir.join(name);
            let (cert, key, secret) = (file("ca.pem"), file("key.pem"), file("secret"));
            write!(
                text,
                "authorities = [\"{}:{PORT}\"]\nsecret_file = {secret:?}\ntls_cert = {cert:?}\ntls_key = {key:?}\n\
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

    /// Whether nobody registers without a token.
    pub fn asks_for_tokens(&self) -> bool {
        self.script.is_some()
    }
}
