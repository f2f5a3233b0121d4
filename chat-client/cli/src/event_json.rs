//! Events as `chat --json` writes them. `docs/cli.md` is the contract.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chat_client::{
    Contact, Content, ErrorKind, Event, EventRecord, Group, GroupAction, GroupJoinLink, GroupPolicy,
    MemberReceipt, Message, MessageChange, Presence, Role,
};
use serde_json::{Value, json};

/// Returns the line of an event.
pub(crate) fn line(record: &EventRecord) -> String {
    let mut value = value(&record.event);
    if let (Some(number), Some(object)) = (record.number, value.as_object_mut()) {
        object.insert("n".into(), number.into());
    }
    value.to_string()
}

/// Returns the line of an error, which is not durable.
pub(crate) fn error(reason: &str, message: &str) -> String {
    json!({"event": "error", "reason": reason, "message": message}).to_string()
}

fn value(event: &Event) -> Value {
    match event {
        Event::Queued { message, idempotency_key } => with_key(
            json!({"event": "queued", "message_id": message.to_uuid_string()}),
            idempotency_key.as_deref(),
        ),
        Event::Stored { message, idempotency_key, conversation, seq } => with_key(
            json!({
                "event": "stored", "message_id": message.to_uuid_string(),
                "conversation": conversation.to_hex(), "seq": seq
            }),
            idempotency_key.as_deref(),
        ),
        Event::Refused { message, idempotency_key, reason } => with_key(
            json!({"event": "refused", "message_id": message.to_uuid_string(), "reason": reason.name()}),
            idempotency_key.as_deref(),
        ),
        Event::Message(message) => match message.content() {
            Content::Text(_) if message.is_request => {
                let mut value = of_message("message", message);
                value["request"] = true.into();
                value
            }
            Content::Text(_) => of_message("message", message),
            Content::GroupChanged { profile: Some(profile), .. } => json!({
                "event": "group_profile", "from": message.sender.to_string(),
                "conversation": message.conversation.to_hex(), "seq": message.seq, "name": profile.name,
                "description": profile.description, "picture": profile.picture
            }),
            Content::Invitation(invitation) => {
                let is_link = message.conversation == invitation.group();
                json!({
                    "event": if is_link { "group_link" } else { "group_invitation" },
                    "from": message.sender.to_string(), "conversation": message.conversation.to_hex(),
                    "seq": message.seq, "group": invitation.group().to_hex(), "name": invitation.name(),
                    "invitation": invitation.to_string()
                })
            }
            Content::DisappearingTimer(after) => json!({
                "event": "disappearing_timer", "from": message.sender.to_string(),
                "conversation": message.conversation.to_hex(), "message_id": message.id.to_uuid_string(),
                "seq": message.seq, "disappear_after": ms_of(*after)
            }),
            _ => json!({
                "event": "undecryptable", "from": message.sender.to_string(),
                "conversation": message.conversation.to_hex(), "message_id": message.id.to_uuid_string(),
                "seq": message.seq, "reason": unreadable_reason(message.content())
            }),
        },
        Event::Recovered(message) => of_message("recovered", message),
        Event::MessageChanged { seq, user, message, change } => {
            let mut value = json!({
                "event": "message_changed", "conversation": message.conversation.to_hex(), "seq": seq,
                "user": user.to_string(), "author_id": message.user.to_hex(),
                "message_id": message.id.to_uuid_string()
            });
            match change {
                MessageChange::Edited => value["change"] = "edited".into(),
                MessageChange::Deleted => value["change"] = "deleted".into(),
                MessageChange::Reacted { emoji, removed } => {
                    value["change"] = if *removed { "unreacted" } else { "reacted" }.into();
                    value["emoji"] = emoji.as_str().into();
                }
                _ => value["change"] = "unknown".into(),
            }
            value
        }
        Event::MessageDisappeared { message, seq } => json!({
            "event": "message_disappeared", "conversation": message.conversation.to_hex(), "seq": seq,
            "author_id": message.user.to_hex(), "message_id": message.id.to_uuid_string()
        }),
        Event::Delivered { conversation, user, seq } => {
            json!({"event": "delivered", "conversation": conversation.to_hex(), "user": user.to_string(), "seq": seq})
        }
        Event::Read { conversation, user, seq } => {
            json!({"event": "read", "conversation": conversation.to_hex(), "user": user.to_string(), "seq": seq})
        }
        Event::Gap { conversation, from_seq, to_seq, reason } => json!({
            "event": "gap", "conversation": conversation.to_hex(), "from_seq": from_seq, "to_seq": to_seq,
            "reason": reason.name()
        }),
        Event::Integrity { conversation, user, device, violation } => {
            let (expected, received) = violation.numbers();
            json!({
                "event": "integrity", "conversation": conversation.to_hex(),
                "from": user.as_ref().map(ToString::to_string), "device": device.map(chat_client::DeviceId::get),
                "violation": violation.name(), "expected": expected, "received": received
            })
        }
        Event::GroupChanged { group, seq, user, action } => {
            let users: Vec<String> = action.users().iter().map(|user| user.to_hex()).collect();
            let mut value = json!({
                "event": "group_changed", "conversation": group.to_hex(), "seq": seq, "user": user.to_string(),
                "action": action_name(action), "user_ids": users
            });
            if let GroupAction::SetRole(_, role) = action {
                value["role"] = role_name(*role).into();
            }
            value
        }
        Event::ServerRestored { conversation, after_seq } => {
            json!({"event": "server_restored", "conversation": conversation.to_hex(), "after_seq": after_seq})
        }
        Event::IdentityChanged { user } => json!({"event": "identity_changed", "user": user.to_string()}),
        Event::DeviceAdded { user, device } => {
            json!({"event": "device_added", "user": user.to_string(), "device": device.get()})
        }
        Event::Connected => json!({"event": "connected"}),
        Event::Disconnected => json!({"event": "disconnected"}),
        Event::CaughtUp => json!({"event": "caught_up"}),
        Event::GroupReceipt { group, user, delivered_seq, read_seq } => json!({
            "event": "group_receipt", "conversation": group.to_hex(), "user": user.to_string(),
            "delivered_seq": delivered_seq, "read_seq": read_seq
        }),
        Event::Typing { conversation, user } => {
            json!({"event": "typing", "conversation": conversation.to_hex(), "user": user.to_string()})
        }
        Event::Presence { user, presence } => {
            let last_seen_ms = match presence {
                Presence::Offline { last_seen: Some(at) } => Some(ms_since_1970(*at)),
                _ => None,
            };
            json!({
                "event": "presence", "user": user.to_string(), "online": *presence == Presence::Online,
                "last_seen_ms": last_seen_ms
            })
        }
        Event::PresenceAudienceChanged { audience } => {
            json!({"event": "presence_audience", "audience": audience})
        }
        Event::TokenExpiring { expires_in } => {
            json!({"event": "token_expiring", "expires_in_ms": u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX)})
        }
        Event::RelationChanged { user, relation } => {
            json!({"event": "relation_changed", "user": user.to_string(), "relation": relation.name()})
        }
        Event::DeviceExcluded { user, device } => {
            json!({"event": "device_excluded", "user": user.to_string(), "device": device.get()})
        }
        Event::Slow => json!({"event": "slow"}),
        Event::ClockWrong { ahead_ms } => json!({"event": "clock_wrong", "ahead_ms": ahead_ms}),
        Event::SessionDegraded { user, device } => {
            json!({"event": "session_degraded", "user": user.to_string(), "device": device.get()})
        }
        Event::Throttled { retry_after } => {
            json!({"event": "throttled", "retry_after_ms": u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX)})
        }
        event => match problem(event) {
            Some((reason, message)) => json!({"event": "error", "reason": reason, "message": message}),
            None => json!({"event": "unsupported"}),
        },
    }
}

/// Returns the reason and the text of an event that reports a problem.
pub(crate) fn problem(event: &Event) -> Option<(&'static str, String)> {
    Some(match event {
        Event::TokenRequired => {
            ("unauthorized", "the token expired or this device was unlinked: log in again".into())
        }
        Event::UpdateRequired => ("version", "the server does not support this protocol version".into()),
        Event::Superseded => (
            "superseded",
            "another copy of this profile is in use, or it was restored twice within a day".into(),
        ),
        Event::ConnectionFailed { kind: ErrorKind::Denied | ErrorKind::Invalid, message } => {
            ("connect", message.clone())
        }
        Event::DeviceListHidden { user } => {
            ("list_hidden", format!("the server hides a later device list of {user} from this device"))
        }
        Event::PrekeysRejected => (
            "bundle_refused",
            "the server sent prekeys that their device did not sign, or that are unsafe".into(),
        ),
        _ => return None,
    })
}

/// Returns the reason why a message has no text.
pub(crate) fn unreadable_reason(content: &Content) -> &'static str {
    match content {
        Content::Unreadable(why) => why.name(),
        Content::Cleared => "cleared",
        Content::Deleted => "deleted",
        _ => "unsupported",
    }
}

fn with_key(mut value: Value, key: Option<&str>) -> Value {
    if let (Some(key), Some(object)) = (key, value.as_object_mut()) {
        object.insert("ref".into(), key.into());
    }
    value
}

fn of_message(event: &str, message: &Message) -> Value {
    let value = json!({
        "event": event, "from": message.sender.to_string(), "device": message.device.get(),
        "conversation": message.conversation.to_hex(), "message_id": message.id.to_uuid_string(),
        "seq": message.seq, "text": message.text()
    });
    with_details(value, message)
}

/// Returns a time in milliseconds; 0 for none.
fn ms_of(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Adds the fields that only some messages have.
fn with_details(mut value: Value, message: &Message) -> Value {
    if let Some(to) = &message.reply_to {
        value["reply_to"] = json!({"from": to.user.to_hex(), "message_id": to.id.to_uuid_string()});
    }
    if !message.mentions.is_empty() {
        value["mention_ids"] = message.mentions.iter().map(|user| user.to_hex()).collect::<Vec<_>>().into();
    }
    if message.is_forwarded {
        value["forwarded"] = true.into();
    }
    if message.is_edited {
        value["edited"] = true.into();
    }
    if matches!(message.content(), Content::Deleted) {
        value["deleted"] = true.into();
    }
    if message.disappears_after.is_some() {
        value["disappears_after"] = ms_of(message.disappears_after).into();
    }
    if let Content::GroupChanged { action, users, profile } = message.content() {
        let users: Vec<String> = users.iter().map(ToString::to_string).collect();
        value["group_change"] = json!({
            "action": action_name(action), "users": users, "name": profile.as_ref().map(|profile| &profile.name)
        });
    }
    if let Content::DisappearingTimer(after) = message.content() {
        value["disappear_after"] = ms_of(*after).into();
    }
    if !message.reactions.is_empty() {
        let reactions = message.reactions.iter();
        let reactions = reactions.map(|one| json!({"user": one.user.to_string(), "emoji": one.emoji}));
        value["reactions"] = reactions.collect::<Vec<_>>().into();
    }
    value
}

/// Returns a time in milliseconds since 1970.
fn ms_since_1970(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Returns an entry of the list of contacts.
pub(crate) fn of_contact(contact: &Contact) -> Value {
    json!({"user": contact.user.to_string(), "relation": contact.relation.name()})
}

/// Returns a message of the history.
pub(crate) fn of_history(message: &Message) -> Value {
    let value = json!({
        "from": message.sender.to_string(), "device": message.device.get(), "seq": message.seq,
        "message_id": message.id.to_uuid_string(), "text": message.text(),
        "sent_at": ms_since_1970(message.sent_at)
    });
    with_details(value, message)
}

/// Returns the name of a role.
pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
        _ => "unknown",
    }
}

/// Returns a group as `chat --json` writes it.
pub(crate) fn of_group(group: &Group) -> Value {
    let members = group
        .members
        .iter()
        .map(|member| json!({"user": member.user.to_string(), "role": role_name(member.role)}));
    let pending = group.pending.iter().map(|pending| {
        let invited_by = pending.invited_by.as_ref().map(ToString::to_string);
        json!({"user": pending.user.to_string(), "invited_by": invited_by})
    });
    let profile = group.profile.as_ref();
    json!({
        "event": "group", "conversation": group.id.to_hex(), "name": group.name(),
        "description": profile.map(|profile| &profile.description[..]).unwrap_or_default(),
        "picture": profile.and_then(|profile| profile.picture.as_ref()),
        "members": members.collect::<Vec<_>>(), "role": group.own_role.map(role_name),
        "pending": pending.collect::<Vec<_>>(), "link": group.link.as_ref().map(of_link),
        "policy": of_policy(group.policy)
    })
}

/// Returns the progress of a message at a member of its group.
pub(crate) fn of_receipt(receipt: &MemberReceipt) -> Value {
    json!({"user": receipt.user.to_string(), "delivered": receipt.delivered, "read": receipt.read})
}

fn of_link(link: &GroupJoinLink) -> Value {
    let invitation = link.invitation.as_ref().map(ToString::to_string);
    json!({"invitation": invitation, "needs_approval": link.needs_approval})
}

fn of_policy(policy: GroupPolicy) -> Value {
    json!({"send": role_name(policy.send), "add": role_name(policy.add), "edit": role_name(policy.edit)})
}

/// Returns the name of an action.
pub(crate) const fn action_name(action: &GroupAction) -> &'static str {
    match action {
        GroupAction::Create { .. } => "create",
        GroupAction::Add(_) => "add",
        GroupAction::Remove { ban: false, .. } => "remove",
        GroupAction::Remove { ban: true, .. } => "ban",
        GroupAction::Leave => "leave",
        GroupAction::SetRole(..) => "set_role",
        GroupAction::SetPolicy(_) => "set_policy",
        GroupAction::Unban(_) => "unban",
        GroupAction::Edit => "edit",
        GroupAction::Invite(_) => "invite",
        GroupAction::Join(_) => "join",
        GroupAction::SetLink(Some(_)) => "set_link",
        GroupAction::SetLink(None) => "remove_link",
        _ => "unknown",
    }
}
