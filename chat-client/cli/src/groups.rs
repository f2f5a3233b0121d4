//! The subcommands for groups.

use chat_client::{
    Client, Conversation, ConversationId, ConversationKind, GroupAction, Role, Ticket, UserId,
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
    /// Found a group. Prints its id.
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
    /// Add users.
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
    /// Change the name of a group.
    Rename {
        /// The name or the id of the group.
        group: String,
        /// The new name.
        name: String,
    },
    /// Leave a group.
    Leave {
        /// The name or the id of the group.
        group: String,
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
            line(shown_name(group.name.as_deref()))?;
            for member in &group.members {
                line(format!("{} {}", member.user, role_name(member.role)))?;
            }
            Ok(())
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
        GroupCommand::Rename { group, name } => {
            let group = find(client, group).await?;
            stored(client.rename_group(group, name).await.map_err(text)?).await
        }
        GroupCommand::Leave { group } => change(client, group, GroupAction::Leave).await,
    }
}

async fn change(client: &Client, group: &str, action: GroupAction) -> Result<(), Failure> {
    let group = find(client, group).await?;
    stored(client.change_group(group, action).await.map_err(text)?).await
}

async fn stored(ticket: Ticket) -> Result<(), Failure> {
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

/// Returns the group with this name or id.
async fn find(client: &Client, group: &str) -> Result<ConversationId, Failure> {
    if let Ok(id) = ConversationId::from_hex(group) {
        return Ok(id);
    }
    let mut found = groups(client).await?;
    found.retain(|one| one.name.as_deref() == Some(group));
    match &found[..] {
        [one] => Ok(one.id),
        [] => Err(format!("there is no group {group}").into()),
        _ => Err(format!("several groups have the name {group}: pass the id").into()),
    }
}

fn shown_name(name: Option<&str>) -> String {
    name.map_or_else(|| "[no name yet]".to_owned(), printable)
}
