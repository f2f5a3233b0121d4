//! The subcommands for channels.

use chat_client::{Client, Content, ConversationId, ConversationKind, GroupInvitation};
use clap::Subcommand;

use crate::Arguments;
use crate::commands::{ready, retry, shown};
use crate::groups::{find_among, shown_name, stored};
use crate::output::{Failure, line};
use crate::text;

/// Maximum number of posts that one request reads.
const PAGE: usize = 200;

#[derive(Subcommand, Debug)]
pub(crate) enum ChannelCommand {
    /// List the channels that this device reads or writes.
    List,
    /// Found a channel. Prints its id, then its link, with which any number of users subscribe.
    Create {
        /// The name of the channel.
        name: String,
    },
    /// Send a text to the readers of a channel.
    Post {
        /// The name or the id of the channel.
        channel: String,
        /// The text.
        text: String,
    },
    /// Read a channel from now on. Prints its id.
    Subscribe {
        /// The link of the channel.
        link: String,
    },
    /// Stop to read a channel.
    Unsubscribe {
        /// The name or the id of the channel.
        channel: String,
    },
    /// Print the newest posts, also those from before this device subscribed.
    History {
        /// The name or the id of the channel.
        channel: String,
        /// Maximum number of posts.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Replace the key, so that readers need the new link. Prints the link. Bans alone do not take the key from a user.
    RenewKey {
        /// The name or the id of the channel.
        channel: String,
    },
}

pub(crate) async fn run(arguments: &Arguments, command: &ChannelCommand) -> Result<(), Failure> {
    let client = arguments.open().await?;
    ready(&client).await?;
    let done = execute(&client, command).await;
    client.close().await;
    done
}

async fn execute(client: &Client, command: &ChannelCommand) -> Result<(), Failure> {
    match command {
        ChannelCommand::List => {
            for known in client.conversations().await.map_err(text)? {
                if known.id.is_channel() {
                    line(format!("{} {}", known.id.to_hex(), shown_name(known.name.as_deref())))?;
                }
            }
            Ok(())
        }
        ChannelCommand::Create { name } => {
            let channel = client.create_channel(name).await.map_err(text)?;
            client.drained().await.map_err(text)?;
            line(channel.to_hex())?;
            print_link(client, channel, "the server refused the channel: it may have channels disabled").await
        }
        ChannelCommand::Post { channel, text: content } => {
            let channel = find(client, channel).await?;
            stored(client.send(channel, content.as_str()).await.map_err(text)?).await
        }
        ChannelCommand::Subscribe { link } => {
            let invitation: GroupInvitation = link.parse().map_err(text)?;
            retry(|| client.subscribe(&invitation)).await?;
            line(invitation.group().to_hex())
        }
        ChannelCommand::Unsubscribe { channel } => {
            let channel = find(client, channel).await?;
            Ok(retry(|| client.unsubscribe(channel)).await?)
        }
        ChannelCommand::History { channel, limit } => {
            let channel = find(client, channel).await?;
            let mut messages = client.history(channel, None, *limit).await.map_err(text)?;
            while messages.len() < *limit {
                let missing = (*limit - messages.len()).min(PAGE);
                if retry(|| client.load_history(channel, missing)).await? == 0 {
                    break;
                }
                messages = client.history(channel, None, *limit).await.map_err(text)?;
            }
            let posts = messages.iter().rev();
            posts
                .filter(|post| !matches!(post.content(), Content::GroupChanged { .. }))
                .try_for_each(|post| line(format!("{} {}: {}", post.seq, post.sender, shown(post.content()))))
        }
        ChannelCommand::RenewKey { channel } => {
            let channel = find(client, channel).await?;
            stored(client.renew_channel_key(channel).await.map_err(text)?).await?;
            client.drained().await.map_err(text)?;
            print_link(client, channel, "this device does not know the link").await
        }
    }
}

async fn print_link(client: &Client, channel: ConversationId, without: &str) -> Result<(), Failure> {
    let link = client.group(channel).await.ok().and_then(|known| known.link?.invitation);
    link.map_or_else(|| Err(without.to_owned().into()), line)
}

/// Returns the channel with this name or id.
async fn find(client: &Client, channel: &str) -> Result<ConversationId, Failure> {
    find_among(client, channel, "channel", |kind| kind == ConversationKind::Channel).await
}
