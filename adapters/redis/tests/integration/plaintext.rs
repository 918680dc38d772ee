//! The rule for logins also applies to addresses found at run time: a Sentinel and a cluster that name another host.
use std::sync::{Arc, Mutex};

use onceward::{ErrorKind, Store};
use onceward_redis::{RedisConfig, RedisStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

const PASSWORD: &str = "hunter2canary";

/// A server that names 192.0.2.1 as the primary and as the owner of all slots, and the commands that it received.
async fn liar() -> (u16, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let telling = Arc::clone(&telling);
            tokio::spawn(async move { while_open(stream, &telling).await });
        }
    });
    (port, told)
}

async fn while_open(stream: TcpStream, told: &Mutex<Vec<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let command = command(&mut stream).await?;
        let first = command.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
        told.lock().unwrap().push(command);
        let answer = match &*first {
            "SENTINEL" => "*2\r\n$9\r\n192.0.2.1\r\n$4\r\n6379\r\n",
            "ROLE" => "*2\r\n$8\r\nsentinel\r\n*0\r\n",
            "CLUSTER" => "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n192.0.2.1\r\n:6379\r\n",
            _ => "+OK\r\n",
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// The next command; `None` at the end of the connection.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = number(stream, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream, '$').await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
    }
    Some(words)
}

async fn number(stream: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    line.trim_end().strip_prefix(kind)?.parse().ok().filter(|number| *number < 1024)
}

#[tokio::test]
async fn a_primary_that_a_sentinel_names_on_another_host_gets_no_login_without_tls() {
    let (port, told) = liar().await;
    let sentinel = format!("redis://127.0.0.1:{port}");
    let mut config = RedisConfig::sentinel([sentinel], "orders");
    config.endpoint.password = Some(PASSWORD.to_owned());
    let error = RedisStore::open(config).unwrap().check().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("allow_plaintext"), "{error:?}");
    let told = told.lock().unwrap();
    assert!(told.iter().any(|command| command[0].eq_ignore_ascii_case("SENTINEL")), "{told:?}");
    assert!(!told.iter().flatten().any(|word| word.contains(PASSWORD)), "{told:?}");
}

#[tokio::test]
async fn a_node_that_a_cluster_names_on_another_host_gets_no_login_without_tls() {
    let (port, told) = liar().await;
    let node = format!("redis://:{PASSWORD}@127.0.0.1:{port}");
    let store = RedisStore::open(RedisConfig::cluster([node])).unwrap();
    let error = store.check().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("allow_plaintext"), "{error:?}");
    assert!(told.lock().unwrap().iter().any(|command| command[0].eq_ignore_ascii_case("CLUSTER")));
}
