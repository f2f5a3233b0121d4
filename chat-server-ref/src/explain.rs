//! What happened to a message: one node's account of it, and all of them together.

use std::time::Duration;

use chat_core::delivery::{Explanation, Stage, TraceEvent, Whereabouts};
use chat_core::{InstallationId, MessageId};
use serde::{Deserialize, Serialize};

/// How long a node may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One node's account, as it goes over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct Said {
    /// What it did, in order.
    pub events: Vec<SaidEvent>,
    /// What the store says.
    pub whereabouts: SaidWhereabouts,
}

/// A event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct SaidEvent {
    /// The node's clock, in microseconds.
    pub at_us: u64,
    /// What happened, in words.
    pub what: String,
}

/// Where the message is; the later of two answers says more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums)]
pub enum SaidWhereabouts {
    /// The node does not remember where to look.
    Unknown,
    /// It is not stored.
    NotStored,
    /// It is stored.
    Stored {
        /// The conversation.
        conversation: String,
        /// The place in it.
        seq: u64,
        /// The devices that have a row for it, shortened, and whether each acknowledged it.
        devices: Vec<(String, bool)>,
    },
}

/// Reads a message id: 32 hexadecimal digits, with or without the dashes of a UUID.
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
                "stored at seq {seq}, from record {}:{}, planned for {rows} devices",
                position.generation, position.offset
            )
        }
        Stage::Repeated { seq } => format!("stored before, at seq {seq}: answered again"),
        Stage::Refused { reason } => format!("refused: {reason}"),
        Stage::Routed { gateway, devices } => format!("routed to gateway {}: {devices} devices", gateway.0),
        Stage::Pushed { devices } => format!("pushed: {devices} devices are not connected"),
        Stage::Delivered { device, .. } => format!("delivered to device {}", short(device)),
        other => format!("{other:?}"),
    }
}

impl Said {
    /// What a node answers.
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
    let failed = |error: ureq::Error| format!("{node} does not say: {error}");
    let mut answer = agent.get(format!("http://{node}/explain/{}", id.to_hex())).call().map_err(failed)?;
    let text = answer.body_mut().read_to_string().map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| format!("{node} says something else: {error}"))
}

/// Asks nodes what happened to a message; gives what they say in the order of their clocks.
///
/// # Errors
/// What is no message id; that no node answered, or none knows it.
pub fn explain(message_id: &str, nodes: &[String]) -> Result<Vec<String>, String> {
    let id = parse_id(message_id).ok_or("a message id has 32 hexadecimal digits")?;
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
        return Err("none of these nodes remembers it: it is older than what they keep in memory, or went \
                    through others"
            .to_owned());
    }
    events.sort();
    let start = events.first().map_or(0, |event| event.0);
    let at = |at_us: u64| format!("{:>+10.3} ms", (at_us - start) as f64 / 1000.0);
    lines.extend(events.iter().map(|(at_us, node, what)| format!("{}  {node}  {what}", at(*at_us))));
    match whereabouts {
        SaidWhereabouts::Unknown => {
            lines.push("none of these nodes remembers where it would be stored".to_owned())
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
