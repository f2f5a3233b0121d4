use std::sync::Arc;
use std::task::Poll;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::{Command, Operation, Record, Router, Rules};
use crate::model::envelope::SendPosition;
use crate::model::error::ErrorKind;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, UserId};

type Log = Arc<dyn Router>;

/// Returns the conformance cases of [`Router`].
pub fn router() -> Vec<Case<dyn Router>> {
    list_cases![
        fifo_per_conversation,
        one_shard_per_conversation,
        redelivers_until_commit,
        an_ownership_epoch_has_no_gaps,
        a_full_queue_refuses,
        a_closed_router_says_so,
    ]
}

fn command(conversation: u8, n: u64) -> Command {
    let user = UserId::from_bytes([1; 16]);
    let installation = InstallationId::from_bytes([1; 16]);
    Command::new(
        DeviceAddress { user, device: DeviceId::PRIMARY, installation },
        Operation::Skip(SendPosition {
            conversation: ConversationId::own(UserId::from_bytes([conversation; 16])),
            message_id: MessageId::from_bytes([7; 16]),
            client_seq: n,
            prev: MessageId::NIL,
            incarnation: 0,
            generation: 0,
        }),
        Vec::new(),
        Rules::CURRENT,
    )
}

fn client_seq(record: &Record) -> u64 {
    record.command.number().map_or(0, |number| number.client_seq)
}

/// Takes batches of a shard until at least `count` records have arrived. Returns the conversation and
/// `client_seq` of each.
async fn drain(log: &Log, shard: usize, count: usize) -> Result<Vec<(ConversationId, u64)>, String> {
    let mut taken = Vec::new();
    while taken.len() < count {
        for record in log.next(shard).await.map_err(failed)?.records {
            taken.push((record.command.conversation(), client_seq(&record)));
        }
    }
    Ok(taken)
}

async fn shard_of(log: &Log, conversation: u8) -> Result<usize, String> {
    log.append(command(conversation, 1_000_000)).await.map_err(failed)?;
    let mut nexts: Vec<_> = (0..log.shards()).map(|shard| log.next(shard)).collect();
    std::future::poll_fn(|context| {
        for (shard, next) in nexts.iter_mut().enumerate() {
            if let Poll::Ready(records) = next.as_mut().poll(context) {
                return Poll::Ready(records.map(|_| shard).map_err(failed));
            }
        }
        Poll::Pending
    })
    .await
}

async fn fifo_per_conversation(log: Log) -> Outcome {
    let shard = shard_of(&log, 1).await?;
    for n in 1..=100 {
        log.append(command(1, n)).await.map_err(failed)?;
    }
    let at_once = futures_util::future::join_all((101..=200).map(|n| log.append(command(1, n)))).await;
    at_once.into_iter().collect::<crate::Result<()>>().map_err(failed)?;
    let taken = drain(&log, shard, 200).await?;
    equal(taken.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (1..=200).collect(), "the order")
}

async fn one_shard_per_conversation(log: Log) -> Outcome {
    for conversation in 1..=8 {
        let first = shard_of(&log, conversation).await?;
        equal(shard_of(&log, conversation).await?, first, "the shard")?;
    }
    Ok(())
}

async fn redelivers_until_commit(log: Log) -> Outcome {
    let shard = shard_of(&log, 1).await?;
    for n in 1..=3 {
        log.append(command(1, n)).await.map_err(failed)?;
    }
    let mut seen = 0;
    let mut position = None;
    while seen < 3 {
        let records = log.next(shard).await.map_err(failed)?.records;
        seen += records.len();
        for record in records {
            if client_seq(&record) == 2 {
                position = Some(record.position);
            }
        }
    }
    log.commit(shard, position.ok_or("the second record did not arrive")?).await.map_err(failed)?;
    log.rewind(shard).await.map_err(failed)?;
    equal(drain(&log, shard, 1).await?.first().map(|(_, n)| *n), Some(3), "the first record after the rewind")
}

async fn an_ownership_epoch_has_no_gaps(log: Log) -> Outcome {
    let shard = shard_of(&log, 1).await?;
    let mut taken = Vec::new();
    let mut ownership_epoch = None;
    for n in 1..=50 {
        log.append(command(1, n)).await.map_err(failed)?;
        while taken.len() < n as usize {
            let more = log.next(shard).await.map_err(failed)?;
            equal(
                *ownership_epoch.get_or_insert(more.ownership_epoch),
                more.ownership_epoch,
                "the ownership epoch of a sole owner",
            )?;
            taken.extend(more.records.iter().map(|record| record.position));
        }
        if n % 10 == 0 {
            log.commit(shard, *taken.last().ok_or("no record was taken")?).await.map_err(failed)?;
        }
    }
    let rising = taken.windows(2).all(|pair| pair[0].generation == pair[1].generation && pair[0] < pair[1]);
    equal(rising, true, "positions rise")
}

async fn a_full_queue_refuses(log: Log) -> Outcome {
    // The appends run concurrently: one router bounds the records that are not taken yet, another one
    // the records that it has not written yet.
    let appends = (1..=100_000).map(|n| log.append(command(1, n)));
    let outcomes = futures_util::future::join_all(appends).await;
    let refused = outcomes.into_iter().find_map(Result::err).ok_or("100,000 appends were accepted")?;
    equal(refused.kind(), ErrorKind::Throttled, "the error of a full queue")
}

async fn a_closed_router_says_so(log: Log) -> Outcome {
    let shard = shard_of(&log, 1).await?;
    let mut waiting = log.next(shard);
    // The case polls the call before and after the close, so the suite's executor need not support wake-ups.
    let came = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_ready())).await;
    equal(came, false, "a record without an append")?;
    log.close().await;
    equal(waiting.await.map_err(|error| error.kind()).err(), Some(ErrorKind::Closed), "the pending call")?;
    let later = log.next(shard).await;
    equal(later.map_err(|error| error.kind()).err(), Some(ErrorKind::Closed), "a later call")
}
