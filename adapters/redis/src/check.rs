//! Start check: whether the servers are suitable for keys, and what they guarantee.

use std::collections::HashMap;
use std::time::Duration;

use onceward::store::{Advice, Claim, ClaimRequest, CompleteRequest, Completion, Entropy, OwnerToken};
use onceward::{Error, ErrorKind, Key, Scope};

use crate::command::ScriptCommand;
use crate::command::codec::ArgumentWriter;
use crate::command::operator::Forget;
use crate::config::RedisLayout;
use crate::error::invalid_reply;
use crate::executor::ScriptExecutor;
use crate::executor::format::KeysFormat;
use crate::network::server::RedisServer;
use crate::record::ReadRecord;
use crate::scan::send_to;

const OPERATION: &str = "check Redis";

impl ScriptExecutor {
    /// Checks all servers, and claims and completes a key.
    ///
    /// # Errors
    /// A server is unsuitable, cannot be reached, or denies a permission that is required.
    pub(crate) async fn check(&self) -> Result<Vec<Advice>, Error> {
        let mut advice = Vec::new();
        for (node, server) in self.network.all(OPERATION).await? {
            let info = info(&server).await?;
            let prefix = node.map_or_else(String::new, |node| format!("{node}: "));
            self.check_server(&info, &prefix, &mut advice)?;
            check_persistence(&info, &prefix, &server, &mut advice).await;
            if self.options.layout == RedisLayout::Compact {
                check_slices(&prefix, &server, &mut advice).await;
            }
            check_permissions(&prefix, &server, &mut advice).await;
        }
        let format = self.check_format().await?;
        if self.options.layout == RedisLayout::Compact && format == KeysFormat::Plain {
            advice.push(Advice::ok(
                "the first completions are going to record that compact records may be there: versions that do not know them no longer start"
                    .to_owned(),
            ));
        }
        self.probe().await?;
        Ok(advice)
    }

    /// Refuses what is unsuitable about a server, and describes the rest.
    fn check_server(
        &self,
        info: &HashMap<String, String>,
        prefix: &str,
        advice: &mut Vec<Advice>,
    ) -> Result<(), Error> {
        let value = |name: &str| info.get(name).map_or("", String::as_str);
        let number = |name: &str| value(name).parse::<u64>().unwrap_or(0);
        let refuse = |kind, what: String| Err(Error::new(kind, OPERATION, format!("{prefix}{what}")));

        let version = value("redis_version");
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if (major, minor) < (6, 2) {
            return refuse(
                ErrorKind::Config,
                format!("the server reports Redis {version}, 6.2 or later is required; update it"),
            );
        }
        let policy = value("maxmemory_policy");
        if policy != "noeviction" {
            return refuse(
                ErrorKind::Config,
                format!(
                    "maxmemory-policy is {policy}: the server silently drops claims and completions when it runs out of memory; \
                     set maxmemory-policy noeviction, or use a dedicated server"
                ),
            );
        }
        if value("role") != "master" {
            return refuse(
                ErrorKind::Unavailable,
                "the server is a replica; configure the primary, or the Sentinels that know it".to_owned(),
            );
        }
        let in_cluster = value("cluster_enabled") == "1";
        if in_cluster && !self.network.is_cluster() {
            return refuse(
                ErrorKind::Config,
                "the server is part of a cluster; set topology = \"cluster\" (RedisConfig::cluster in Rust)"
                    .to_owned(),
            );
        }
        let name = if value("valkey_version").is_empty() { "Redis" } else { "Valkey" };
        let own_version = if name == "Redis" { version } else { value("valkey_version") };
        advice.push(Advice::ok(format!("{prefix}{name} {own_version}, noeviction")));

        if number("evicted_keys") > 0 {
            advice.push(Advice::warning("redis-evicted-keys", format!(
                    "{prefix}the server has evicted {} keys since its start, under another policy; they may include claims",
                    value("evicted_keys")
                ),
            ));
        }
        self.check_replicas(number("connected_slaves"), in_cluster, prefix, advice);
        Ok(())
    }

    fn check_replicas(&self, replicas: u64, in_cluster: bool, prefix: &str, advice: &mut Vec<Advice>) {
        let wanted = u64::from(self.options.wait_replicas);
        if wanted > replicas {
            advice.push(Advice::warning("redis-too-few-replicas", format!(
                    "{prefix}{replicas} replicas are connected, wait_replicas is {wanted}: nothing is claimed until enough are connected"
                ),
            ));
        } else if wanted > 0 {
            advice.push(Advice::ok(format!(
                    "{prefix}{replicas} replicas; claims and completions wait for {wanted}. A failover to a lagging replica can still lose some"
                ),
            ));
        } else if replicas > 0 || in_cluster || self.network.has_sentinels() {
            advice.push(Advice::warning("redis-asynchronous-replicas", format!(
                    "{prefix}{replicas} replicas, asynchronous: a failover loses the last claims and completions, and their handlers may run again; wait_replicas narrows that"
                ),
            ));
        } else {
            advice.push(Advice::ok(format!("{prefix}no replicas: no failover")));
        }
    }

    /// Claims, reads and completes a key with a TTL of a second, and forgets it if it is compact, which needs all permissions of a
    /// worker. It does not raise the format: other processes have no use for that key.
    async fn probe(&self) -> Result<(), Error> {
        let scope = Scope::parse("onceward-check")?;
        let mut entropy = Entropy::system();
        let key = Key::from_bytes(*entropy.token().as_bytes());
        let owner: OwnerToken = entropy.token();
        let second = Duration::from_secs(1);
        let mut head = ArgumentWriter::default();
        head.duration(second);
        head.duration(second);
        head.u32(1);
        let request = ClaimRequest { key, owner, fingerprint: None, generation: 0 };
        let Claim::Claimed(claimed) = only(self.execute(&scope, head.as_bytes(), &[request]).await)? else {
            return Err(invalid_reply(OPERATION));
        };
        only(self.execute(&scope, &[], &[ReadRecord(key)]).await)?;
        let request = CompleteRequest::new(claimed.lease, second);
        if only(self.execute(&scope, &[], &[request]).await)? != Completion::Completed {
            return Err(invalid_reply(<CompleteRequest as ScriptCommand>::OPERATION));
        }
        if self.options.layout == RedisLayout::Compact {
            only(self.execute(&scope, &[], &[Forget(key)]).await)?;
        }
        Ok(())
    }
}

/// The fields of `INFO`.
async fn info(server: &RedisServer) -> Result<HashMap<String, String>, Error> {
    let reply = send_to(OPERATION, server, redis::cmd("INFO")).await?;
    let text: String = redis::from_redis_value(reply).map_err(|_| invalid_reply(OPERATION))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
        .collect())
}

/// A setting of the server. Hosted servers often forbid CONFIG, and the minimal ACL omits it: then the description is less
/// precise.
async fn setting(server: &RedisServer, name: &str) -> Option<String> {
    let command = redis::cmd("CONFIG").arg("GET").arg(name).clone();
    let reply = send_to(OPERATION, server, command).await.ok()?;
    let pairs: HashMap<String, String> = redis::from_redis_value(reply).ok()?;
    pairs.get(name).cloned()
}

/// Warns of settings under which slices of compact records are not compact. Redis 7 knows their names of before, too.
async fn check_slices(prefix: &str, server: &RedisServer, advice: &mut Vec<Advice>) {
    for (name, least) in [("hash-max-ziplist-entries", 128), ("hash-max-ziplist-value", 8)] {
        let Some(set) = setting(server, name).await.and_then(|value| value.parse::<u64>().ok()) else {
            continue;
        };
        if set < least {
            advice.push(Advice::warning(
                "redis-large-slices",
                format!(
                    "{prefix}{name} is {set}: a key of the compact layout takes five times the memory; set it to {least} or more"
                ),
            ));
        }
    }
}

/// Describes what a crash of the server loses.
async fn check_persistence(
    info: &HashMap<String, String>,
    prefix: &str,
    server: &RedisServer,
    advice: &mut Vec<Advice>,
) {
    let setting = async |name| setting(server, name).await;
    let found = if info.get("aof_enabled").is_some_and(|value| value == "1") {
        match setting("appendfsync").await.as_deref() {
            Some("always") => Advice::ok(format!("{prefix}append-only file, synced at every write")),
            Some("no") => Advice::warning(
                "redis-fsync-by-system",
                format!(
                    "{prefix}append-only file, synced by the operating system: a power failure loses up to half a minute; set \
                     appendfsync everysec"
                ),
            ),
            _ => Advice::ok(format!(
                "{prefix}append-only file: a crash of the server loses nothing, a power failure up to a second"
            )),
        }
    } else {
        let lost = match setting("save").await.as_deref() {
            Some("") => "all keys",
            _ => "all keys since the last snapshot",
        };
        Advice::warning(
            "redis-no-append-only-file",
            format!(
                "{prefix}no append-only file: a crash or restart loses {lost}, and duplicates run again; set appendonly yes"
            ),
        )
    };
    advice.push(found);
}

/// Describes missing permissions that only tools need.
async fn check_permissions(prefix: &str, server: &RedisServer, advice: &mut Vec<Advice>) {
    let mut scan = redis::cmd("SCAN");
    scan.arg(0).arg("COUNT").arg(1);
    if let Err(error) = send_to(OPERATION, server, scan).await
        && error.kind() == ErrorKind::Denied
    {
        advice.push(Advice::warning("redis-no-scan", format!(
                "{prefix}the user may not use SCAN: lists and statistics of keys are refused; everything else works"
            ),
        ));
    }
}

/// The result of a batch of one item.
fn only<T>(mut results: Vec<Result<T, Error>>) -> Result<T, Error> {
    results.pop().unwrap_or_else(|| Err(invalid_reply(OPERATION)))
}
