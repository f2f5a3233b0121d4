//! The subcommands for groups.

use chat_client::{
    Client, Conversation, ConversationId, ConversationKind, GroupAction, GroupInvitation, GroupJoinLink,
    GroupPolicy, Role, Ticket, UserId,
};
use clap::Subcommand;
use serde::Deserialize;

use crate::commands::{ready, retry};
use crate::event_json::role_name;
use crate::output::{Failure, line, printable};
use crate::{Arguments, text};

#[derive(Subcommand, Debug)]
pub(crate) enum GroupCommand {
    /// List the groups of this account.
    List,
    /// Found a group. Prints its id. Users that never wrote to you are invited.
    Create {
        /// The name of the group.
        name: String,
        /// The handles of the members.
        users: Vec<String>,
    },
    /// Print the members and roles of a group.
    Show {
        /// The name or the id of the group.
        group: String,
    },
    /// Send a text to a group.
    Send {
        /// The name or the id of the group.
        group: String,
        /// The text.
        text: String,
    },
    /// Add users. Those that never wrote to you are invited.
    Add {
        /// The name or the id of the group.
        group: String,
        /// The handles of the users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Remove members.
    Remove {
        /// The name or the id of the group.
        group: String,
        /// The handles of the members.
        #[arg(required = true)]
        users: Vec<String>,
        /// They cannot be added again.
        #[arg(long)]
        ban: bool,
    },
    /// Change the role of a member.
    Role {
        /// The name or the id of the group.
        group: String,
        /// The handle of the member.
        user: String,
        /// The new role.
        role: GroupRole,
    },
    /// Change name, description or picture of a group.
    Edit {
        /// The name or the id of the group.
        group: String,
        #[command(flatten)]
        edit: ProfileEdit,
    },
    /// Invite users: each is a member once it joins.
    Invite {
        /// The name or the id of the group.
        group: String,
        /// The handles of the users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Join a group, with a link, or with the id of a group that you were invited to.
    Join {
        /// The link of the group, or its id.
        invitation: String,
    },
    /// Leave a group, or decline an invitation to it.
    Leave {
        /// The name or the id of the group.
        group: String,
    },
    /// Print the link of a group. Makes one if there is none.
    Link {
        /// The name or the id of the group.
        group: String,
        /// Make a new link, so that the old one is not valid any more.
        #[arg(long)]
        new: bool,
        /// Make a new link with which users only ask to join: an admin adds each of them.
        #[arg(long)]
        approval: bool,
        /// Remove the link.
        #[arg(long, conflicts_with_all = ["new", "approval"])]
        remove: bool,
    },
    /// Let banned users join again.
    Unban {
        /// The name or the id of the group.
        group: String,
        /// The handles of the users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Change what roles may do. Without options it prints the policy.
    Policy {
        /// The name or the id of the group.
        group: String,
        /// The lowest role that sends messages.
        #[arg(long)]
        send: Option<GroupRole>,
        /// The lowest role that adds members.
        #[arg(long)]
        add: Option<GroupRole>,
        /// The lowest role that changes the name.
        #[arg(long)]
        edit: Option<GroupRole>,
    },
}

/// A role, as the command line and `chat --json` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GroupRole {
    Member,
    Admin,
    Owner,
}

impl GroupRole {
    pub(crate) const fn role(self) -> Role {
        match self {
            Self::Member => Role::Member,
            Self::Admin => Role::Admin,
            Self::Owner => Role::Owner,
        }
    }
}

/// A policy, as `chat --json` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Policy {
    send: GroupRole,
    add: GroupRole,
    edit: GroupRole,
}

impl Policy {
    pub(crate) const fn policy(self) -> GroupPolicy {
        GroupPolicy { send: self.send.role(), add: self.add.role(), edit: self.edit.role() }
    }
}

/// The parts of a profile that change. An empty text removes a description or a picture.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ProfileEdit {
    /// The new name.
    #[arg(long)]
    #[serde(default)]
    name: Option<String>,
    /// The new description.
    #[arg(long)]
    #[serde(default)]
    description: Option<String>,
    /// A reference to the new picture.
    #[arg(long)]
    #[serde(default)]
    picture: Option<String>,
}

impl ProfileEdit {
    pub(crate) async fn apply(&self, client: &Client, group: ConversationId) -> chat_client::Result<Ticket> {
        let mut profile = client.group(group).await?.profile.unwrap_or_default();
        let ProfileEdit { name, description, picture } = self.clone();
        profile.name = name.unwrap_or(profile.name);
        profile.description = description.unwrap_or(profile.description);
        profile.picture = picture.or(profile.picture).filter(|picture| !picture.is_empty());
        client.edit_group(group, profile).await
    }
}

pub(crate) async fn run(arguments: &Arguments, command: &GroupCommand) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    let done = execute(&client, command).await;
    client.close().await;
    done
}

async fn execute(client: &Client, command: &GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::List => {
            for known in groups(client).await? {
                line(format!("{} {}", known.id.to_hex(), shown_name(known.name.as_deref())))?;
            }
            Ok(())
        }
        GroupCommand::Create { name, users } => {
            let members = resolve(client, users).await?;
            let group = client.create_group(name, &members).await.map_err(text)?;
            client.drained().await.map_err(text)?;
            // A refused founding leaves no group.
            client
                .group(group)
                .await
                .map_err(|_| "the server refused the group: it may have groups disabled".to_owned())?;
            line(group.to_hex())
        }
        GroupCommand::Show { group } => {
            let group = client.group(find(client, group).await?).await.map_err(text)?;
            line(shown_name(group.name()))?;
            if let Some(profile) = &group.profile {
                let parts = [Some(&profile.description), profile.picture.as_ref()];
                let mut shown = parts.into_iter().flatten().filter(|part| !part.is_empty());
                shown.try_for_each(|part| line(printable(part)))?;
            }
            for member in &group.members {
                line(format!("{} {}", member.user, role_name(member.role)))?;
            }
            for pending in &group.pending {
                line(match &pending.invited_by {
                    Some(by) => format!("{} invited by {by}", pending.user),
                    None => format!("{} asks to join", pending.user),
                })?;
            }
            group.link.iter().try_for_each(show_link)
        }
        GroupCommand::Send { group, text: content } => {
            let group = find(client, group).await?;
            stored(client.send(group, content.as_str()).await.map_err(text)?).await
        }
        GroupCommand::Add { group, users } => {
            let add = GroupAction::Add(resolve(client, users).await?);
            change(client, group, add).await
        }
        GroupCommand::Remove { group, users, ban } => {
            let remove = GroupAction::Remove { users: resolve(client, users).await?, ban: *ban };
            change(client, group, remove).await
        }
        GroupCommand::Role { group, user, role } => {
            let user = retry(|| client.resolve(user)).await?;
            change(client, group, GroupAction::SetRole(user, role.role())).await
        }
        GroupCommand::Edit { group, edit } => {
            let group = find(client, group).await?;
            stored(edit.apply(client, group).await.map_err(text)?).await
        }
        GroupCommand::Leave { group } => change(client, group, GroupAction::Leave).await,
        GroupCommand::Invite { group, users } => {
            let invite = GroupAction::Invite(resolve(client, users).await?);
            change(client, group, invite).await
        }
        GroupCommand::Join { invitation } => join(client, invitation).await,
        GroupCommand::Link { group, remove: true, .. } => {
            change(client, group, GroupAction::SetLink(None)).await
        }
        GroupCommand::Link { group, new, approval, .. } => {
            let id = find(client, group).await?;
            let known = client.group(id).await.map_err(text)?.link.filter(|_| !new && !approval);
            if let Some(link) = known {
                return show_link(&link);
            }
            let (link, ticket) = client.create_group_link(id, *approval).await.map_err(text)?;
            stored(ticket).await?;
            line(link)
        }
        GroupCommand::Unban { group, users } => {
            let unban = GroupAction::Unban(resolve(client, users).await?);
            change(client, group, unban).await
        }
        GroupCommand::Policy { group, send, add, edit } => {
            let id = find(client, group).await?;
            let mut policy = client.group(id).await.map_err(text)?.policy;
            if send.or(*add).or(*edit).is_none() {
                let names = [policy.send, policy.add, policy.edit].map(role_name);
                return line(format!("send {}, add {}, edit {}", names[0], names[1], names[2]));
            }
            policy.send = send.map_or(policy.send, GroupRole::role);
            policy.add = add.map_or(policy.add, GroupRole::role);
            policy.edit = edit.map_or(policy.edit, GroupRole::role);
            change(client, group, GroupAction::SetPolicy(policy)).await
        }
    }
}

async fn change(client: &Client, group: &str, action: GroupAction) -> Result<(), Failure> {
    let group = find(client, group).await?;
    stored(client.change_group(group, action).await.map_err(text)?).await?;
    // Invitations are messages of their own.
    client.drained().await.map_err(text)?;
    Ok(())
}

async fn join(client: &Client, invitation: &str) -> Result<(), Failure> {
    let invitation = match ConversationId::from_hex(invitation) {
        Ok(group) => GroupInvitation::new(group, None, None).map_err(text)?,
        Err(_) => invitation.parse().map_err(text)?,
    };
    stored(client.join_group(&invitation).await.map_err(text)?).await?;
    let group = client.group(invitation.group()).await.map_err(text)?;
    if group.own_role.is_none() {
        return line("an admin has to approve that you join");
    }
    line(group.id.to_hex())
}

fn show_link(link: &GroupJoinLink) -> Result<(), Failure> {
    match &link.invitation {
        Some(invitation) => line(invitation),
        None => line("[this device does not know the link: an admin can make a new one]"),
    }
}

pub(crate) async fn stored(ticket: Ticket) -> Result<(), Failure> {
    ticket.stored().await.map_err(text)?;
    Ok(())
}

async fn resolve(client: &Client, users: &[String]) -> Result<Vec<UserId>, Failure> {
    let mut found = Vec::with_capacity(users.len());
    for user in users {
        found.push(retry(|| client.resolve(user)).await?);
    }
    Ok(found)
}

async fn groups(client: &Client) -> Result<Vec<Conversation>, Failure> {
    let mut known = client.conversations().await.map_err(text)?;
    known.retain(|one| one.id.kind() == Ok(ConversationKind::Group));
    Ok(known)
}

/// Returns the group or channel with this name or id.
async fn find(client: &Client, group: &str) -> Result<ConversationId, Failure> {
    find_among(client, group, "group or channel", ConversationKind::has_roster).await
}

/// Returns the conversation with this name or id, among those of wanted kinds.
pub(crate) async fn find_among(
    client: &Client,
    name: &str,
    kind_name: &str,
    is_wanted: impl Fn(ConversationKind) -> bool,
) -> Result<ConversationId, Failure> {
    if let Ok(id) = ConversationId::from_hex(name) {
        return Ok(id);
    }
    let mut found = client.conversations().await.map_err(text)?;
    found.retain(|one| one.id.kind().is_ok_and(&is_wanted) && one.name.as_deref() == Some(name));
    match &found[..] {
        [one] => Ok(one.id),
        [] => Err(format!("there is no {kind_name} {name}").into()),
        _ => Err(format!("several conversations have the name {name}: pass the id").into()),
    }
}

pub(crate) fn shown_name(name: Option<&str>) -> String {
    name.map_or_else(|| "[no name yet]".to_owned(), printable)
}
