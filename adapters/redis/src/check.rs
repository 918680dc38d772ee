//! The start check: is this server fit to keep keys, and how much can it promise?

use std::collections::HashMap;
use std::time::Duration;

use onceward::store::{
    Advice, AdviceLevel, Claim, ClaimRequest, CompleteRequest, Completion, Entropy, OwnerToken,
};
use onceward::{Error, ErrorKind, KEY_FORMAT, Key, Scope};
use redis::Value;

use crate::command::codec::Writer;
use crate::command::{Ask, Inspect};
use crate::error::garbled;
use crate::executor::Caller;
use crate::network::connection::Link;
use crate::scan::send_to;

const OPERATION: &str = "check Redis";

/// The version of records and key names that this version reads and writes, and that of key hashes.
fn format() -> String {
    format!("records 1, keys {KEY_FORMAT}")
}

impl Caller {
    pub(crate) async fn check(&self) -> Result<Vec<Advice>, Error> {
        let mut advice = Vec::new();
        for (node, link) in self.network.all(OPERATION).await? {
            let info = info(&link).await?;
            let place = node.map_or_else(String::new, |node| format!("{node}: "));
            self.judge(&info, &place, &mut advice)?;
            judge_persistence(&info, &place, &link, &mut advice).await;
            judge_rights(&place, &link, &mut advice).await;
        }
        self.agree_on_format().await?;
        self.probe().await?;
        Ok(advice)
    }

    /// Records the format's version if there is none, and refuses another one.
    pub(crate) async fn agree_on_format(&self) -> Result<(), Error> {
        const OPERATION: &str = "read the format of the keys in Redis";
        let key = self.space.format();
        let mine = format();
        let mut get = redis::cmd("GET");
        let mut found = self.command(OPERATION, get.arg(&key), &key).await?;
        if found == Value::Nil {
            self.command(OPERATION, redis::cmd("SET").arg(&key).arg(&mine).arg("NX"), &key).await?;
            found = self.command(OPERATION, &get, &key).await?;
        }
        let found: Option<String> = redis::from_redis_value(found).map_err(|_| garbled(OPERATION))?;
        match found {
            Some(found) if found == mine => Ok(()),
            found => Err(Error::new(
                ErrorKind::Config,
                OPERATION,
                format!(
                    "they are written as \"{}\", this version reads \"{mine}\"; use the version that wrote them, or another prefix",
                    found.unwrap_or_default().escape_default()
                ),
            )),
        }
    }

    /// What must be so, and what is worth saying about the rest.
    fn judge(
        &self,
        info: &HashMap<String, String>,
        place: &str,
        advice: &mut Vec<Advice>,
    ) -> Result<(), Error> {
        let of = |name: &str| info.get(name).map_or("", String::as_str);
        let number = |name: &str| of(name).parse::<u64>().unwrap_or(0);
        let refuse = |kind, what: String| Err(Error::new(kind, OPERATION, format!("{place}{what}")));

        let version = of("redis_version");
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if (major, minor) < (6, 2) {
            return refuse(
                ErrorKind::Config,
                format!("the server speaks as Redis {version}, 6.2 or later is needed; update it"),
            );
        }
        let policy = of("maxmemory_policy");
        if policy != "noeviction" {
            return refuse(
                ErrorKind::Config,
                format!(
                    "maxmemory-policy is {policy}, with which the server silently drops claims and completions when its memory is used up; \
                     set maxmemory-policy noeviction, or use a server of its own"
                ),
            );
        }
        if of("role") != "master" {
            return refuse(
                ErrorKind::Unavailable,
                "the server is a replica; name the primary, or the Sentinels that know it".to_owned(),
            );
        }
        let in_cluster = of("cluster_enabled") == "1";
        if in_cluster && !self.network.is_cluster() {
            return refuse(
                ErrorKind::Config,
                "the server is part of a cluster; set topology = \"cluster\" (RedisConfig::cluster in Rust)"
                    .to_owned(),
            );
        }
        let name = if of("valkey_version").is_empty() { "Redis" } else { "Valkey" };
        let own_version = if name == "Redis" { version } else { of("valkey_version") };
        advice.push(Advice::new(AdviceLevel::Ok, format!("{place}{name} {own_version}, noeviction")));

        if number("evicted_keys") > 0 {
            advice.push(Advice::new(
                AdviceLevel::Warning,
                format!(
                    "{place}the server has evicted {} keys since its start, under another policy; claims may have been among them",
                    of("evicted_keys")
                ),
            ));
        }
        self.judge_replicas(number("connected_slaves"), in_cluster, place, advice);
        Ok(())
    }

    fn judge_replicas(&self, replicas: u64, in_cluster: bool, place: &str, advice: &mut Vec<Advice>) {
        let wanted = u64::from(self.settings.wait_replicas);
        if wanted > replicas {
            advice.push(Advice::new(
                AdviceLevel::Warning,
                format!(
                    "{place}{replicas} replicas are connected, wait_replicas is {wanted}: nothing is claimed until there are enough"
                ),
            ));
        } else if wanted > 0 {
            advice.push(Advice::new(
                AdviceLevel::Ok,
                format!(
                    "{place}{replicas} replicas; claims and completions wait for {wanted}. A failover to one that lags can still lose some"
                ),
            ));
        } else if replicas > 0 || in_cluster || self.has_sentinels {
            advice.push(Advice::new(
                AdviceLevel::Warning,
                format!(
                    "{place}{replicas} replicas, asynchronous: a failover loses the last claims and completions, and their handlers may run again; wait_replicas narrows that"
                ),
            ));
        } else {
            advice.push(Advice::new(AdviceLevel::Ok, format!("{place}no replicas: no failover")));
        }
    }

    /// Claims, looks at and completes a key that lives for a second: all rights on keys and in scripts that work needs.
    async fn probe(&self) -> Result<(), Error> {
        let scope = Scope::parse("onceward-check")?;
        let mut entropy = Entropy::system();
        let token = |entropy: &mut Entropy| entropy.token();
        let key = Key::from_bytes(*token(&mut entropy).as_bytes());
        let owner: OwnerToken = token(&mut entropy);
        let second = Duration::from_secs(1);
        let mut head = Writer::default();
        head.duration(second);
        head.duration(second);
        head.u32(1);
        let request = ClaimRequest { key, owner, fingerprint: None, generation: 0 };
        let Claim::Claimed(claimed) = one(self.ask(&scope, head.as_bytes(), &[request]).await)? else {
            return Err(garbled(OPERATION));
        };
        one(self.ask(&scope, &[], &[Inspect(key)]).await)?;
        let request = CompleteRequest::new(claimed.lease, second);
        match one(self.ask(&scope, &[], &[request]).await)? {
            Completion::Completed => Ok(()),
            _ => Err(garbled(<CompleteRequest as Ask>::OPERATION)),
        }
    }
}

async fn info(link: &Link) -> Result<HashMap<String, String>, Error> {
    let reply = send_to(OPERATION, link, redis::cmd("INFO")).await?;
    let text: String = redis::from_redis_value(reply).map_err(|_| garbled(OPERATION))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
        .collect())
}

async fn judge_persistence(
    info: &HashMap<String, String>,
    place: &str,
    link: &Link,
    advice: &mut Vec<Advice>,
) {
    // Hosted servers often forbid CONFIG, and the minimal ACL leaves it out: then less can be said.
    let setting = async |name: &str| {
        let command = redis::cmd("CONFIG").arg("GET").arg(name).clone();
        let reply = send_to(OPERATION, link, command).await.ok()?;
        let pairs: HashMap<String, String> = redis::from_redis_value(reply).ok()?;
        pairs.get(name).cloned()
    };
    let (level, text) = if info.get("aof_enabled").is_some_and(|value| value == "1") {
        match setting("appendfsync").await.as_deref() {
                Some("always") => (AdviceLevel::Ok, "append-only file, synced with every write".to_owned()),
                Some("no") => (
                    AdviceLevel::Warning,
                    "append-only file, synced when the system likes: a power failure loses up to half a minute; set appendfsync everysec".to_owned(),
                ),
                _ => (
                    AdviceLevel::Ok,
                    "append-only file: a crash of the server loses nothing, a power failure up to a second".to_owned(),
                ),
            }
    } else {
        let lost = match setting("save").await.as_deref() {
            Some("") => "all keys",
            _ => "all keys since the last snapshot",
        };
        (
            AdviceLevel::Warning,
            format!(
                "no append-only file: a crash or restart loses {lost}, and duplicates run again; set appendonly yes"
            ),
        )
    };
    advice.push(Advice::new(level, format!("{place}{text}")));
}

/// Rights that only tools need.
async fn judge_rights(place: &str, link: &Link, advice: &mut Vec<Advice>) {
    let mut scan = redis::cmd("SCAN");
    scan.arg(0).arg("COUNT").arg(1);
    if let Err(error) = send_to(OPERATION, link, scan).await
        && error.kind() == ErrorKind::Denied
    {
        advice.push(Advice::new(
            AdviceLevel::Warning,
            format!(
                "{place}the user may not use SCAN: lists and statistics of keys are refused; the rest works"
            ),
        ));
    }
}

fn one<T>(mut answers: Vec<Result<T, Error>>) -> Result<T, Error> {
    answers.pop().unwrap_or_else(|| Err(garbled(OPERATION)))
}
