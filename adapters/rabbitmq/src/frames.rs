//! Sends settlements in the order in which they were decided on: [`send`].

use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};

use crate::window::Frame;

/// Queues the frames, all at once and in order, then waits until they are written. False: the channel is closed.
///
/// # Cancel safety
/// All frames are queued by the first poll; a dropped call only does not hear how it ended.
pub(crate) async fn send(channel: &Channel, frames: &[Frame]) -> bool {
    let mut sent: Vec<Pin<Box<MaybeDone<_>>>> =
        frames.iter().map(|frame| Box::pin(maybe_done(tell(channel, *frame)))).collect();
    for sending in &mut sent {
        let _ = futures_util::poll!(sending);
    }
    let mut open = true;
    for mut sending in sent {
        sending.as_mut().await;
        if let Some(Err(error)) = sending.as_mut().take_output() {
            tracing::debug!(%error, "a settlement did not reach the broker; the message is redelivered");
            open = false;
        }
    }
    open
}

async fn tell(channel: &Channel, frame: Frame) -> lapin::Result<()> {
    match frame {
        Frame::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Frame::Requeue { tag } => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
        Frame::Reject { tag } => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
    }
}
