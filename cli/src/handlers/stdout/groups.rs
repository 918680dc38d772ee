//! Writes the lines that wait in groups, one write and one flush for each: [`LineGroups`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use onceward::{Cancellation, Message};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The pause before a retry on a full pipe that is non-blocking.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(10);

/// A group is not extended beyond so many bytes.
const GROUP_BYTES: usize = 256 << 10;

/// The lines that wait, and where they are written to. What comes in while a group is being written forms the next one.
pub(super) struct LineGroups<W: ?Sized> {
    waiting: Mutex<Waiting>,
    out: Mutex<LineWriter<W>>,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<PendingLine>,
    /// A task writes, and looks for more before it ends.
    is_written: bool,
}

/// A payload on its way to the output.
struct PendingLine {
    message: Message,
    cancellation: Cancellation,
    written: oneshot::Sender<io::Result<()>>,
}

impl PendingLine {
    /// Its run was asked to stop or has been dropped.
    fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled() || self.written.is_closed()
    }

    fn answer(self, result: io::Result<()>) {
        // A run that was dropped has no use for the answer.
        let _ = self.written.send(result);
    }
}

impl<W: Write + Send> LineGroups<W> {
    pub(super) fn to(out: W) -> Self {
        Self { waiting: Mutex::default(), out: Mutex::new(LineWriter { torn: false, to: out }) }
    }
}

impl<W: Write + Send + ?Sized + 'static> LineGroups<W> {
    /// Writes the payload and a line feed, and flushes. A line that has begun is completed, whatever happens to the future.
    pub(super) async fn write(self: &Arc<Self>, message: Message) -> io::Result<()> {
        let (written, answer) = oneshot::channel();
        let cancellation = message.cancellation();
        let is_first = {
            let mut waiting = self.waiting.lock();
            waiting.lines.push_back(PendingLine { message, cancellation, written });
            !std::mem::replace(&mut waiting.is_written, true)
        };
        if is_first {
            let task = GroupTask { lines: Arc::clone(self), is_over: false };
            // A slow reader blocks this thread, not one of the runtime.
            tokio::task::spawn_blocking(move || task.write_all());
        }
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the task that writes has ended")))
    }

    /// The next lines, about [`GROUP_BYTES`] of them.
    fn next_group(&self) -> VecDeque<PendingLine> {
        let mut waiting = self.waiting.lock();
        let mut bytes = 0;
        let longer = |line: &PendingLine| {
            bytes += line.message.payload().len() + 1;
            bytes > GROUP_BYTES
        };
        let count = waiting.lines.iter().position(longer).unwrap_or(waiting.lines.len());
        let count = count.max(1).min(waiting.lines.len());
        waiting.is_written = count > 0;
        waiting.lines.drain(..count).collect()
    }
}

/// The right to write. Given up with the task that has it: lines that wait then are not written.
struct GroupTask<W: ?Sized> {
    lines: Arc<LineGroups<W>>,
    /// Nothing waits, and the next line starts another task.
    is_over: bool,
}

impl<W: Write + Send + ?Sized + 'static> GroupTask<W> {
    fn write_all(mut self) {
        let mut out = self.lines.out.lock();
        loop {
            let group = self.lines.next_group();
            if group.is_empty() {
                self.is_over = true;
                return;
            }
            out.write_group(group);
        }
    }
}

impl<W: ?Sized> Drop for GroupTask<W> {
    fn drop(&mut self) {
        if !self.is_over {
            *self.lines.waiting.lock() = Waiting::default();
        }
    }
}

struct LineWriter<W: ?Sized> {
    /// The last line was truncated.
    torn: bool,
    to: W,
}

impl<W: Write + ?Sized> LineWriter<W> {
    /// Writes and answers all lines of a group. An error is that of the line which it has truncated or kept from beginning;
    /// those behind it are tried by themselves.
    fn write_group(&mut self, mut group: VecDeque<PendingLine>) {
        while !group.is_empty() {
            let mut left = VecDeque::with_capacity(group.len());
            for line in group.drain(..) {
                if line.is_cancelled() {
                    line.answer(Err(io::Error::other("the run was cancelled while others were writing")));
                } else {
                    left.push_back(line);
                }
            }
            let (count, error) = self.write_lines(&left);
            group = left.split_off(count);
            self.flush(left);
            if let Some(error) = error
                && let Some(line) = group.pop_front()
            {
                line.answer(Err(error));
            }
        }
    }

    /// LineGroups are done when they are flushed.
    fn flush(&mut self, lines: VecDeque<PendingLine>) {
        if lines.is_empty() {
            return;
        }
        let flushed = self.to.flush();
        for line in lines {
            line.answer(match &flushed {
                Ok(()) => Ok(()),
                Err(cause) => Err(again(cause)),
            });
        }
    }

    /// Writes lines until one cannot be written; how many are, and why the next one is not. Without a reason: one of those left
    /// is cancelled, and none of them has begun.
    fn write_lines(&mut self, lines: &VecDeque<PendingLine>) -> (usize, Option<io::Error>) {
        if self.torn
            && !lines.is_empty()
            && let Err(cause) = self.end_torn_line(lines)
        {
            return (0, Some(cause));
        }
        let mut ends = Vec::with_capacity(lines.len());
        let mut bytes = Vec::new();
        for line in lines {
            bytes.extend_from_slice(line.message.payload());
            bytes.push(b'\n');
            ends.push(bytes.len());
        }
        let mut written = 0;
        while written < bytes.len() {
            let result = self.to.write(&bytes[written..]);
            let count = ends.partition_point(|end| *end <= written);
            match result {
                Ok(0) => return (count, Some(io::ErrorKind::WriteZero.into())),
                Ok(more) => {
                    written += more;
                    self.torn = ends.binary_search(&written).is_err();
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                // A line that has begun is completed.
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    if !self.torn && lines.iter().skip(count).any(PendingLine::is_cancelled) {
                        return (count, None);
                    }
                    std::thread::sleep(FULL_PIPE_PAUSE);
                }
                Err(cause) => return (count, Some(cause)),
            }
        }
        (lines.len(), None)
    }

    /// The next line begins on a new one.
    fn end_torn_line(&mut self, lines: &VecDeque<PendingLine>) -> io::Result<()> {
        loop {
            match self.to.write(b"\n") {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {
                    self.torn = false;
                    return Ok(());
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    if lines.iter().all(PendingLine::is_cancelled) {
                        return Err(cause);
                    }
                    std::thread::sleep(FULL_PIPE_PAUSE);
                }
                Err(cause) => return Err(cause),
            }
        }
    }
}

/// The same error once more, which does not clone.
fn again(cause: &io::Error) -> io::Error {
    match cause.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(cause.kind(), cause.to_string()),
    }
}
