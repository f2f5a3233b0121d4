use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::Transport;
use crate::model::close_reason::CloseReason;
use crate::model::limits::MAX_FRAME;

/// The two connected ends of a transport under test.
#[derive(Debug)]
pub struct TransportPair(Mutex<Option<Ends>>);

type End = Box<dyn Transport>;
type Ends = (End, End);

impl TransportPair {
    /// Creates a pair of these ends. The case that runs on the pair takes them.
    pub fn new(one: End, other: End) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some((one, other)))))
    }

    fn ends(&self) -> Result<Ends, String> {
        self.0.lock().take().ok_or_else(|| "the ends of the pair were already taken".to_owned())
    }
}

/// Returns the conformance cases of [`Transport`].
pub fn transport() -> Vec<Case<TransportPair>> {
    list_cases![
        frames_arrive_whole_and_in_order,
        both_ways,
        an_empty_frame_and_the_largest,
        a_close_ends_the_other_end,
        sending_after_the_end_fails,
    ]
}

async fn receive(end: &mut End) -> Result<Bytes, String> {
    end.recv().await.map_err(failed)?.ok_or_else(|| "the other end closed".to_owned())
}

/// Runs two futures concurrently and returns both outputs.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut left, mut right) = (None, None);
    std::future::poll_fn(move |context| {
        if left.is_none() {
            left = ready(a.as_mut().poll(context));
        }
        if right.is_none() {
            right = ready(b.as_mut().poll(context));
        }
        match (left.take(), right.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            some => {
                (left, right) = some;
                Poll::Pending
            }
        }
    })
    .await
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

async fn frames_arrive_whole_and_in_order(pair: Arc<TransportPair>) -> Outcome {
    let (mut one, mut other) = pair.ends()?;
    for batch in 0..4_u8 {
        let frames: Vec<Bytes> = (0..8).map(|n| vec![batch * 8 + n; 100 * usize::from(n)].into()).collect();
        one.send(frames.clone()).await.map_err(failed)?;
        for frame in frames {
            equal(receive(&mut other).await?, frame, "a frame")?;
        }
    }
    Ok(())
}

async fn both_ways(pair: Arc<TransportPair>) -> Outcome {
    let (mut one, mut other) = pair.ends()?;
    one.send(vec![Bytes::from_static(b"there")]).await.map_err(failed)?;
    other.send(vec![Bytes::from_static(b"back")]).await.map_err(failed)?;
    equal(receive(&mut one).await?, Bytes::from_static(b"back"), "back")?;
    equal(receive(&mut other).await?, Bytes::from_static(b"there"), "there")
}

async fn an_empty_frame_and_the_largest(pair: Arc<TransportPair>) -> Outcome {
    let (mut one, mut other) = pair.ends()?;
    let largest = Bytes::from(vec![0xa5; MAX_FRAME]);
    one.send(vec![Bytes::new()]).await.map_err(failed)?;
    equal(receive(&mut other).await?, Bytes::new(), "the empty frame")?;
    // The pair may buffer less than the largest frame, so the other end reads while the frame is sent.
    let sent = largest.clone();
    let (sent, got) = both(one.send(vec![sent]), other.recv()).await;
    sent.map_err(failed)?;
    equal(got.map_err(failed)?, Some(largest), "the largest frame")
}

async fn a_close_ends_the_other_end(pair: Arc<TransportPair>) -> Outcome {
    let (mut one, mut other) = pair.ends()?;
    one.send(vec![Bytes::from_static(b"last")]).await.map_err(failed)?;
    let ((), last) = both(one.close(CloseReason::Draining.code()), async {
        let last = other.recv().await;
        (last, other.recv().await)
    })
    .await;
    equal(last.0.map_err(failed)?, Some(Bytes::from_static(b"last")), "the frame sent before the close")?;
    equal(matches!(last.1, Ok(Some(_))), false, "a frame after the close")
}

async fn sending_after_the_end_fails(pair: Arc<TransportPair>) -> Outcome {
    let (mut one, other) = pair.ends()?;
    drop(other);
    // A buffer may accept some frames after the end, but only a bounded number.
    for _ in 0..1000 {
        if one.send(vec![Bytes::from(vec![0; 10_000])]).await.is_err() {
            return Ok(());
        }
    }
    Err("sending 10 MB to a closed end did not fail".into())
}
