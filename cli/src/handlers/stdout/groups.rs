//! Writes the lines that wait in groups, one write and one flush for each: [`LineGroups`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use onceward::{Cancellation, Message};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::room::Room;

/// The pause before a retry on a full pipe that is non-blocking.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(10);

/// A group is not extended beyond so many bytes.
const GROUP_BYTES: usize = 256 << 10;

/// The most groups that a run writes itself before it leaves the others to a thread.
const GROUPS_AT_ONCE: usize = 4;

/// The lines that wait, and where they are written to. What comes in while a group is being written forms the next one.
pub(super) struct LineGroups<W: ?Sized> {
    waiting: Mutex<Waiting>,
    /// How much can be written at once; `None` if that is not known.
    room: Option<Room>,
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
    pub(super) fn to(out: W, room: Option<Room>) -> Self {
        Self { waiting: Mutex::default(), room, out: Mutex::new(LineWriter { torn: false, to: out }) }
    }
}

impl<W: Write + Send + ?Sized + 'static> LineGroups<W> {
    /// Writes the payload and a line feed, and flushes. A line that has begun is completed, whatever happens to the future.
    pub(super) async fn write(self: &Arc<Self>, message: Message) -> io::Result<()> {
        let (written, mut answer) = oneshot::channel();
        let cancellation = message.cancellation();
        let is_first = {
            let mut waiting = self.waiting.lock();
            waiting.lines.push_back(PendingLine { message, cancellation, written });
            !std::mem::replace(&mut waiting.is_written, true)
        };
        if is_first {
            let task = GroupTask { lines: Arc::clone(self), is_over: false };
            match self.room {
                Some(room) => answer = write_soon(task, room, answer).await,
                None => write_on_a_thread(task),
            }
        }
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the task that writes has ended")))
    }

    /// The next lines, at most `limit` bytes of them. `None` if none waits: the next one starts another task.
    fn next_group(&self, limit: usize) -> Option<VecDeque<PendingLine>> {
        let mut waiting = self.waiting.lock();
        waiting.is_written = !waiting.lines.is_empty();
        let mut bytes = 0;
        let longer = |line: &PendingLine| {
            bytes += line.message.payload().len() + 1;
            bytes > limit
        };
        let count = waiting.lines.iter().position(longer).unwrap_or(waiting.lines.len());
        waiting.is_written.then(|| waiting.lines.drain(..count).collect())
    }

    /// The first line that waits, whatever its size.
    fn next_line(&self) -> VecDeque<PendingLine> {
        self.waiting.lock().lines.pop_front().into_iter().collect()
    }
}

/// Writes on a thread: a slow reader blocks that, not one of the runtime.
fn write_on_a_thread<W: Write + Send + ?Sized + 'static>(task: GroupTask<W>) {
    tokio::task::spawn_blocking(move || task.write_all());
}

/// Writes here what has room, and the rest on a thread. A thread for each group costs more than the group, where each has few lines.
/// Returns `answer`, which is that of the run that writes.
async fn write_soon<W: Write + Send + ?Sized + 'static>(
    task: GroupTask<W>,
    room: Room,
    answer: Answer,
) -> Answer {
    let mut turn = WriteTurn(Some(task));
    // Dropped before the turn: a thread that writes then finds the line of this run cancelled.
    let answer = answer;
    // Runs that are ready as well add their lines.
    tokio::task::yield_now().await;
    if let Some(left) = turn.0.take().and_then(|task| task.write_what_has_room(room)) {
        write_on_a_thread(left);
    }
    answer
}

/// Where a run gets to know that its line is written.
type Answer = oneshot::Receiver<io::Result<()>>;

/// A run that is about to write. If it is dropped before, a thread writes.
struct WriteTurn<W: Write + Send + ?Sized + 'static>(Option<GroupTask<W>>);

impl<W: Write + Send + ?Sized + 'static> Drop for WriteTurn<W> {
    fn drop(&mut self) {
        if let (Some(task), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || task.write_all());
        }
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
        while let Some(group) = self.lines.next_group(GROUP_BYTES) {
            // A line may be longer than a group.
            out.write_group(if group.is_empty() { self.lines.next_line() } else { group });
        }
        self.is_over = true;
    }

    /// Writes groups that do not wait for the reader; itself if lines are left.
    fn write_what_has_room(mut self, room: Room) -> Option<Self> {
        for _ in 0..GROUPS_AT_ONCE {
            let Some(group) = self.lines.next_group(room.bytes()) else {
                self.is_over = true;
                return None;
            };
            if group.is_empty() {
                break;
            }
            self.lines.out.lock().write_group(group);
        }
        Some(self)
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
