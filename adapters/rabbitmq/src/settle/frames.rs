//! Sends settlement frames in the order in which they were decided: [`send_frames`].

use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};

use crate::settle::ack_window::SettleFrame;

/// Queues all frames at once and in order, then waits until they are written. Returns false if the channel is closed.
///
/// # Cancel safety
/// The first poll queues all frames; a dropped call only misses the result.
pub(crate) async fn send_frames(channel: &Channel, frames: &[SettleFrame]) -> bool {
    let mut sent: Vec<Pin<Box<MaybeDone<_>>>> =
        frames.iter().map(|frame| Box::pin(maybe_done(send_frame(channel, *frame)))).collect();
    for sending in &mut sent {
        let _ = futures_util::poll!(sending);
    }
    let mut open = true;
    for mut sending in sent {
        sending.as_mut().await;
        if let Some(Err(error)) = sending.as_mut().take_output() {
            tracing::debug!(%error, "settlement not sent; the message will be redelivered");
            open = false;
        }
    }
    open
}

async fn send_frame(channel: &Channel, frame: SettleFrame) -> lapin::Result<()> {
    match frame {
        SettleFrame::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        SettleFrame::Requeue { tag } => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
        SettleFrame::Reject { tag } => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
    }
}
