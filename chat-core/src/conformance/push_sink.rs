use std::sync::Arc;

use super::{Case, Outcome, failed, list_cases};
use crate::backend::PushSink;
use crate::model::id::{DeviceAddress, DeviceId, InstallationId, UserId};

type Sink = Arc<dyn PushSink>;

/// Returns the conformance cases of [`PushSink`]. The contract is small: the sink accepts any list of
/// devices, and its caller never waits for a device.
pub fn push_sink() -> Vec<Case<dyn PushSink>> {
    list_cases![wakes_nobody, wakes_many_at_once, wakes_the_same_again]
}

fn devices(count: u8) -> Vec<DeviceAddress> {
    let device = |n| DeviceAddress {
        user: UserId::from_bytes([n; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([n; 16]),
    };
    (1..=count).map(device).collect()
}

async fn wakes_nobody(sink: Sink) -> Outcome {
    sink.wake(&[]).await.map_err(failed)
}

async fn wakes_many_at_once(sink: Sink) -> Outcome {
    sink.wake(&devices(255)).await.map_err(failed)
}

async fn wakes_the_same_again(sink: Sink) -> Outcome {
    for _ in 0..100 {
        sink.wake(&devices(1)).await.map_err(failed)?;
    }
    Ok(())
}
