//! The history of a message: the report of one node, and the merged reports of several nodes.

use std::time::Duration;

use chat_core::delivery::{Explanation, Stage, TraceEvent, Whereabouts};
use chat_core::{InstallationId, MessageId};
use serde::{Deserialize, Serialize};

/// Time limit for a node to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One node's report on a message, as sent over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct Said {
    /// Events on this node, in order.
    pub events: Vec<SaidEvent>,
    /// Location of the message according to the store.
    pub whereabouts: SaidWhereabouts,
}

/// An event in a node's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct SaidEvent {
    /// Time by the node's clock, in microseconds.
    pub at_us: u64,
    /// Description of the event.
    pub what: String,
}

/// Location of a message. If the answers of nodes differ, the greatest one has the most information.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums)]
pub enum SaidWhereabouts {
    /// The node does not remember the message, so it cannot look it up.
    Unknown,
    NotStored,
    Stored {
        /// Conversation id in hexadecimal.
        conversation: String,
        seq: u64,
        /// Shortened ids of the devices that have a row for it, and whether each device acknowledged it.
        devices: Vec<(String, bool)>,
    },
}

/// Parses a message id: 32 hexadecimal digits, with or without the dashes of a UUID.
pub fn parse_id(text: &str) -> Option<MessageId> {
    MessageId::from_hex(&text.replace('-', "")).ok()
}

fn short(device: InstallationId) -> String {
    device.to_hex().chars().take(8).collect()
}

fn words(stage: Stage) -> String {
    match stage {
        Stage::Accepted { conversation, sender } => {
            format!("accepted from device {} for conversation {}", short(sender), conversation.to_hex())
        }
        Stage::Logged => "in the log".to_owned(),
        Stage::Stored { seq, position, rows, .. } => {
            format!(
                "stored at seq {seq}, from record {}:{}, with rows for {rows} devices",
                position.generation, position.offset
            )
        }
        Stage::Repeated { seq } => format!("already stored at seq {seq}: answered again"),
        Stage::Refused { reason } => format!("refused: {reason}"),
        Stage::Routed { gateway, devices } => format!("routed to gateway {}: {devices} devices", gateway.0),
        Stage::Pushed { devices } => format!("pushed: {devices} devices that are not connected"),
        Stage::Delivered { device, .. } => format!("delivered to device {}", short(device)),
        other => format!("{other:?}"),
    }
}

impl Said {
    /// Creates the report from the engine's explanation.
    pub fn new(explanation: Explanation) -> Self {
        let event = |event: TraceEvent| SaidEvent { at_us: event.at_us, what: words(event.stage) };
        let whereabouts = match explanation.whereabouts {
            Whereabouts::Unknown => SaidWhereabouts::Unknown,
            Whereabouts::NotStored => SaidWhereabouts::NotStored,
            Whereabouts::Stored { conversation, seq, devices } => SaidWhereabouts::Stored {
                conversation: conversation.to_hex(),
                seq,
                devices: devices.into_iter().map(|(device, acked)| (short(device), acked)).collect(),
            },
        };
        Self { events: explanation.events.into_iter().map(event).collect(), whereabouts }
    }
}

fn ask(node: &str, id: MessageId) -> Result<Said, String> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).build().into();
    let failed = |error: ureq::Error| format!("failed to query {node}: {error}");
    let mut answer = agent.get(format!("http://{node}/explain/{}", id.to_hex())).call().map_err(failed)?;
    let text = answer.body_mut().read_to_string().map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| format!("failed to read the answer of {node}: {error}"))
}

/// Requests the history of a message from nodes. Returns its lines in the order of the nodes' clocks.
///
/// # Errors
/// If the message id is invalid, no node answers, or no node remembers the message.
pub fn explain(message_id: &str, nodes: &[String]) -> Result<Vec<String>, String> {
    let id = parse_id(message_id).ok_or("a message id must have 32 hexadecimal digits")?;
    let (mut events, mut lines, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for node in nodes {
        match ask(node, id) {
            Ok(said) => {
                events.extend(said.events.into_iter().map(|event| (event.at_us, node, event.what)));
                answers.push(said.whereabouts);
            }
            Err(error) => lines.push(error),
        }
    }
    let Some(whereabouts) = answers.into_iter().max() else { return Err(lines.join("; ")) };
    if events.is_empty() {
        return Err("none of these nodes remembers it: it is older than the history in their memory, or \
                    other nodes processed it"
            .to_owned());
    }
    events.sort();
    let start = events.first().map_or(0, |event| event.0);
    let at = |at_us: u64| format!("{:>+10.3} ms", (at_us - start) as f64 / 1000.0);
    lines.extend(events.iter().map(|(at_us, node, what)| format!("{}  {node}  {what}", at(*at_us))));
    match whereabouts {
        SaidWhereabouts::Unknown => {
            lines.push("storage unknown: none of these nodes remembers its conversation".to_owned())
        }
        SaidWhereabouts::NotStored => lines.push("not stored".to_owned()),
        SaidWhereabouts::Stored { conversation, seq, devices } => {
            lines.push(format!("stored in conversation {conversation} at seq {seq}"));
            lines.extend(devices.into_iter().map(|(device, acked)| {
                format!("{} device {device}", if acked { "acknowledged by" } else { "waits for" })
            }));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_with_and_without_dashes() {
        let id = MessageId::new(1, [7; 10]);
        assert_eq!(parse_id(&id.to_hex()), Some(id));
        assert_eq!(parse_id(&id.to_uuid_string()), Some(id));
        assert_eq!(parse_id("no"), None);
    }
}
