//! The lines of a process as answers to its requests.

use std::io;

use super::{ServiceEnd, WorkerService};
use crate::handlers::gather::Asked;
use crate::handlers::json::RequestState;
use crate::handlers::worker::lines::OutputLine;
use crate::handlers::worker::replies::replies;
use crate::handlers::worker::service::ProcessLife;

impl WorkerService {
    pub(super) async fn read(&mut self, line: io::Result<OutputLine>) -> Option<ServiceEnd> {
        let line = match line {
            Ok(OutputLine::Whole(line)) => line,
            Ok(OutputLine::TooLong) => {
                let limit = self.parts.options.line_limit();
                let what = format!("wrote a line of more than {limit} bytes");
                return Some(self.broken(Vec::new(), &what).await);
            }
            Ok(OutputLine::End) if self.open.is_stopping() => return Some(self.stopped().await),
            Ok(OutputLine::End) => return Some(self.died("closed its standard output").await),
            Err(_) => return Some(self.died("broke its pipe").await),
        };
        let (open, last) = (&self.open.0, self.last_id);
        let state = |id: u64| match id {
            id if open.contains_key(&id) => RequestState::Open,
            id if id <= last => RequestState::Past,
            _ => RequestState::Unknown,
        };
        let replies = replies(&line, self.parts.options.batch > 1, !open.is_empty(), state);
        if replies.is_stray {
            self.process.stray(&line);
        }
        if replies.is_ready {
            self.is_ready = true;
            self.parts.life.send_replace(ProcessLife::Warm);
            self.write_next();
        }
        let lines: Vec<_> = match replies.is_array {
            true => replies.answers.iter().filter_map(|(id, _)| open_bytes(self, *id)).collect(),
            false => Vec::new(),
        };
        for (id, answer) in replies.answers {
            if let Some(end) = self.answer(id, answer).await {
                return Some(end);
            }
        }
        if let Some((by, what)) = replies.wrong {
            let what = format!(
                "wrote a line that {what}; standard output is for answers only, diagnostics belong on standard error"
            );
            return Some(self.broken(by.into_iter().collect(), &what).await);
        }
        let left_out: Vec<_> = lines.iter().flat_map(|bytes| self.open.on_line_at(bytes)).collect();
        if !left_out.is_empty() {
            return Some(self.broken(left_out, "left this message out of its array of answers").await);
        }
        None
    }

    async fn answer(&mut self, id: u64, answer: Asked) -> Option<ServiceEnd> {
        // Two answers in one array.
        let request = self.open.0.get(&id)?;
        if request.bytes.end > self.process.written() {
            return Some(self.broken(vec![id], "answered before it had read the request").await);
        }
        let request = self.open.0.remove(&id)?;
        self.has_read();
        self.parts.owner.answered();
        self.process.hear();
        self.parts.suspects.remove(request.run.mark);
        if !self.is_retired || !self.is_idle() {
            request.run.end(answer);
            return None;
        }
        // The run ends after its process.
        self.process.kill().await;
        request.run.end(answer);
        Some(ServiceEnd)
    }

    /// It has begun to read: from now on the time of all requests counts.
    pub(super) fn has_read(&mut self) {
        if !self.reads {
            self.reads = true;
            self.parts.life.send_replace(ProcessLife::Warm);
            self.open.begin(tokio::time::Instant::now());
        }
    }
}

fn open_bytes(service: &WorkerService, id: u64) -> Option<std::ops::Range<u64>> {
    service.open.0.get(&id).map(|request| request.bytes.clone())
}
