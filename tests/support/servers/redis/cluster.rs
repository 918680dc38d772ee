//! [`RedisCluster`]: slots that move, nodes that die.

use super::{Redis, START_LIMIT};
use crate::ports::free_port;
use crate::process::wait_until;

/// A cluster of primaries without replicas, the slots shared out evenly.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts `count` nodes (at least 3) and joins them (about 5 s).
    ///
    /// # Panics
    /// Redis is not installed or older than 7.0, or the cluster does not come up.
    #[must_use]
    pub fn start(count: usize) -> Self {
        let nodes: Vec<Redis> = (0..count)
            .map(|_| {
                let bus = free_port().expect("there is a free port").to_string();
                Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
            })
            .collect();
        let addresses: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
        let mut arguments = vec!["--cluster", "create"];
        arguments.extend(addresses.iter().map(String::as_str));
        arguments.extend(["--cluster-replicas", "0", "--cluster-yes"]);
        let said = nodes[0].cli(&arguments);
        let cluster = Self { nodes };
        let up = wait_until(START_LIMIT, || {
            cluster.nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        assert!(up, "the cluster does not come up: {said}");
        cluster
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The nodes, to be killed and restarted.
    pub fn nodes_mut(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }

    /// The URLs of all nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// The node that holds `slot`, by its place among [`nodes`](Self::nodes).
    ///
    /// # Panics
    /// No node holds it alone.
    #[must_use]
    pub fn owner_of(&self, slot: u16) -> usize {
        let range = |word: &str| -> Option<(u16, u16)> {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let holds = |node: &Redis| {
            node.cli(&["CLUSTER", "NODES"])
                .lines()
                .filter(|line| line.contains("myself"))
                .flat_map(|line| line.split_whitespace().skip(8))
                .filter_map(range)
                .any(|(first, last)| (first..=last).contains(&slot))
        };
        self.nodes.iter().position(holds).expect("a node holds the slot")
    }

    /// The slots that have keys.
    #[must_use]
    pub fn used_slots(&self) -> Vec<u16> {
        let script = "local used = {} \
                      for slot = 0, 16383 do \
                      if redis.call('CLUSTER', 'COUNTKEYSINSLOT', slot) > 0 then table.insert(used, slot) end end \
                      return table.concat(used, ' ')";
        let said = self.nodes.iter().map(|node| node.cli(&["EVAL", script, "0"]));
        said.flat_map(|said| {
            said.split_whitespace()
                .map(|slot| slot.trim_matches('"').parse().expect("a slot is a number"))
                .collect::<Vec<_>>()
        })
        .collect()
    }

    /// The cluster's name of a node.
    fn id(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"]).trim().to_owned()
    }

    /// Begins to move `slot` from one node to another: from now on new keys go to the other one.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, from_id, to_id) = (slot.to_string(), self.id(from), self.id(to));
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    }

    /// Moves up to `count` keys of `slot` and returns how many there were.
    #[must_use]
    pub fn move_keys(&self, slot: u16, from: usize, to: usize, count: usize) -> usize {
        // Binary keys cannot pass through a shell's hands; a script on the node sees them as they are.
        let script = "local keys = redis.call('CLUSTER', 'GETKEYSINSLOT', ARGV[1], ARGV[2]) \
                      if #keys > 0 then redis.call('MIGRATE', '127.0.0.1', ARGV[3], '', 0, 5000, 'KEYS', unpack(keys)) end \
                      return #keys";
        let port = self.nodes[to].port().to_string();
        let said = self.nodes[from].cli(&["EVAL", script, "0", &slot.to_string(), &count.to_string(), &port]);
        said.trim().trim_start_matches("(integer) ").parse().unwrap_or_else(|_| panic!("MIGRATE said {said}"))
    }

    /// Moves all of `slot` to the next node, key by key, so that its users meet it half moved.
    ///
    /// # Panics
    /// It does not move.
    pub fn move_slowly(&self, slot: u16) {
        let from = self.owner_of(slot);
        let to = (from + 1) % self.nodes.len();
        self.begin_move(slot, from, to);
        for _ in 0..10_000 {
            if self.move_keys(slot, from, to, 1) == 0 {
                break;
            }
        }
        self.end_move(slot, to);
        assert_eq!(self.owner_of(slot), to);
    }

    /// Ends the move: the slot is the other node's.
    pub fn end_move(&self, slot: u16, to: usize) {
        let (slot, to_id) = (slot.to_string(), self.id(to));
        for node in std::iter::once(&self.nodes[to]).chain(&self.nodes) {
            node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }
}
