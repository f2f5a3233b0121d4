//! Durability of a store whose data lies in a directory: it is reopened, and a process that writes to it is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::talk::Talk;
use super::{Outcome, equal, failed};
use crate::backend::{Commit, CommitOutcome, CursorFilter, MessageStore, PageLimit, SenderFilter};
use crate::model::envelope::{AckUpTo, Durability, InboxPosition};
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, UserId};

/// Names the directory to the process that is killed.
const CHILD: &str = "CHAT_CONFORMANCE_CHILD";
/// Commits that the process must have acknowledged before it is killed.
const COMMITS: u64 = 25;

fn talk() -> Talk {
    let user = |n: u8| UserId::from_bytes([n; 16]);
    let device = |n: u8| DeviceAddress {
        user: user(n),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([n; 16]),
    };
    Talk {
        id: ConversationId::direct(user(1), user(2)),
        members: [1, 2].map(|n| (user(n), vec![device(n)])).to_vec(),
        state: Default::default(),
        time_us: 1000,
        records: 0,
    }
}

const BOB: InstallationId = InstallationId::from_bytes([2; 16]);

async fn commit(store: &dyn MessageStore, commit: Commit) -> Outcome {
    let outcome = store.commit(vec![commit]).await.pop().ok_or("no outcome")?;
    match outcome.map_err(failed)? {
        CommitOutcome::Durable(commit) => store.make_visible(vec![*commit]).await.map_err(failed),
        CommitOutcome::Visible => Ok(()),
    }
}

/// Commits, acks and generations are there after the store was closed and opened again, and so is its epoch.
pub(super) async fn reopened_store_is_the_same<S, F, Fut>(open: F, dir: PathBuf) -> Outcome
where
    S: MessageStore,
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<S>>,
{
    let store = open(dir.clone()).await;
    let (identity, mut talk) = (store.identity(), talk());
    equal(identity.durability, Durability::Fsync, "the durability of a store with a directory")?;
    for sender in 0..5 {
        commit(&*store, talk.next(sender, 100)?).await?;
    }
    store.ack(BOB, 9, &[AckUpTo { conversation: talk.id, seq: 2 }]).await.map_err(failed)?;
    store.expire(1000 + 35, 100).await.map_err(failed)?;
    let before = contents(&*store, &talk).await?;
    drop(store);
    let store = open(dir).await;
    equal(store.identity().epoch, identity.epoch, "the epoch after the store was reopened")?;
    equal(contents(&*store, &talk).await?, before, "the content after the store was reopened")?;
    commit(&*store, talk.next(0, 100)?).await?;
    equal(
        store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?,
        Some(talk.state),
        "the state after another commit",
    )
}

async fn contents(store: &dyn MessageStore, talk: &Talk) -> Result<String, String> {
    let inbox = store.inbox(BOB, InboxPosition::START, PageLimit::MAX).await.map_err(failed)?;
    let history = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    let (state, device) =
        (store.state(talk.id, SenderFilter::All, None).await, store.device(BOB, CursorFilter::All).await);
    let generation = store.generation(BOB).await.map_err(failed)?;
    Ok(format!("{inbox:?} {history:?} {state:?} {device:?} {generation}"))
}

/// Returns the directory if this process is the one to be killed.
pub(super) fn child_directory() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Commits messages and prints the seq of each once it is acknowledged.
#[allow(clippy::print_stdout)]
pub(super) async fn write_until_killed<S, F, Fut>(open: F, dir: PathBuf)
where
    S: MessageStore,
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<S>>,
{
    let (store, mut talk) = (open(dir).await, talk());
    for sender in 0..100_000 {
        let Ok(next) = talk.next(sender, 100) else { break };
        if commit(&*store, next).await.is_err() {
            break;
        }
        println!("{}", talk.state.head.seq);
        let _ = std::io::stdout().flush();
    }
    std::process::exit(0);
}

/// Every commit that a process acknowledged before SIGKILL is there afterwards.
pub(super) async fn acknowledged_commits_survive_sigkill<S, F, Fut>(open: F, dir: PathBuf) -> Outcome
where
    S: MessageStore,
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<S>>,
{
    let io = |error: std::io::Error| format!("the process to kill: {error}");
    let mut child = Command::new(std::env::current_exe().map_err(io)?)
        .env(CHILD, &dir)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io)?;
    let output = child.stdout.take().ok_or("the process to kill has no output")?;
    let mut acknowledged = 0;
    for line in BufReader::new(output).lines() {
        acknowledged = line.map_err(io)?.parse().map_err(|_| "the process to kill printed no seq")?;
        if acknowledged == COMMITS {
            child.kill().map_err(io)?;
        }
    }
    child.wait().map_err(io)?;
    if acknowledged < COMMITS {
        return Err(format!("the process ended by itself after {acknowledged} commits"));
    }
    let (store, talk) = (open(dir).await, talk());
    let head =
        store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?.unwrap_or_default().head.seq;
    if head < acknowledged {
        return Err(format!("{acknowledged} commits were acknowledged, and the head is {head}"));
    }
    let mut seqs = Vec::new();
    let mut after = InboxPosition::START;
    loop {
        let page = store.inbox(BOB, after, PageLimit::MAX).await.map_err(failed)?;
        seqs.extend(page.iter().map(|row| row.seq));
        match page.last() {
            Some(last) if PageLimit::MAX.is_reached(&page) => after = last.position(),
            _ => break,
        }
    }
    equal(seqs, (1..=head).collect(), "the inbox after SIGKILL")
}
