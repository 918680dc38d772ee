//! Measures how fast lines are read, delivered and settled: the adapter alone, without a pipeline.
//!
//! ```sh
//! cargo run --release -p onceward-file --example read_speed -- 2000000
//! ```
#![allow(clippy::print_stdout)]

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Instant;

use onceward::adapter::Consumer;
use onceward::{MemoryStore, Scope};
use onceward_file::{FileConfig, FileConsumer, Format};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |count| count.parse())?;
    let directory = tempfile::tempdir()?;
    for format in [Format::Raw, Format::Envelope] {
        let path = directory.path().join(format!("{format:?}"));
        let mut file = BufWriter::new(std::fs::File::create(&path)?);
        for number in 0..count {
            writeln!(
                file,
                r#"{{"id":"{number}","headers":{{"kind":"order"}},"payload":{{"n":{number},"text":"{}"}}}}"#,
                "x".repeat(180)
            )?;
        }
        file.flush()?;
        let bytes = std::fs::metadata(&path)?.len();

        let mut config = FileConfig::new(&path);
        config.format = format;
        let started = Instant::now();
        let mut consumer =
            FileConsumer::open(config, Scope::parse("speed")?, Arc::new(MemoryStore::new())).await?;
        let acker = consumer.acker();
        let (sender, mut batches) = tokio::sync::mpsc::unbounded_channel::<Vec<_>>();
        let settler = tokio::spawn(async move {
            let mut settled = 0;
            while settled < count {
                let Some(batch) = batches.recv().await else { break };
                settled += acker.settle(&batch).await.len();
            }
        });
        while let Some(batch) = consumer.receive().await? {
            let acks = batch.iter().map(|delivery| (delivery.tag, onceward::adapter::Settlement::Ack));
            sender.send(acks.collect())?;
        }
        settler.await?;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{format:?}: {count} lines of {} bytes in {seconds:.2} s: {:.0} lines/s, {:.0} MB/s",
            bytes / count as u64,
            count as f64 / seconds,
            bytes as f64 / seconds / 1e6
        );
    }
    Ok(())
}
