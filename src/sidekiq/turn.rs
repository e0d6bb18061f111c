//! A turn: settles finished jobs and fetches new ones in one script, `turn.lua`.
//!
//! Settling and fetching share a round trip, so a busy worker needs one round trip per job. The script may be sent again with
//! the same tokens until Redis answers.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use redis::{FromRedisValue, Value, from_redis_value};

use super::inflight::{Token, UnitOfWork};
use super::settlement::{Effect, Settled, Settlement};
use super::{Identity, keys};
use crate::bounds;
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError, Script, is_forbidden};
use crate::settings::Jobs;

static TURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("turn.lua")));

/// What a turn asks.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The incarnation of the lease, as far as this process knows; empty without a lease.
    pub incarnation: &'a str,
    /// Grows from turn to turn. A turn that is sent again keeps its number.
    pub number: u64,
    /// What has finished.
    pub settlements: &'a [&'a Settlement],
    /// One token for each free slot.
    pub slots: &'a [Token],
    /// What the turn asks for the slots, in the order of `slots`.
    pub fetch_requests: &'a [FetchRequest],
    /// The most bytes of texts to fetch, up to [`bounds::JOBS`].
    pub max_bytes: usize,
}

/// Jobs for some of the free slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// How many.
    pub n_slots: usize,
    /// Queues to fetch from, the first one first. Without queues, the turn only returns what the slots hold already.
    pub queues: Vec<String>,
}

/// The answer to a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// One for each settlement, in order.
    pub settled: Vec<Settled>,
    /// The keys of queues that were passed over, each with the reason.
    pub passed_over: Vec<String>,
    /// How many processes may wait for the same push as this one; 0 when it got all that it asked for.
    pub n_idlers: u32,
    /// Queue and length of texts that are too long for a worker. They are in the dead set now.
    pub oversized: Vec<String>,
    /// What was fetched.
    pub fetched: Fetched,
}

/// What the free slots got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// These jobs; none when the queues are empty.
    Units(Vec<UnitOfWork>),
    /// Nothing: this process has no lease, or another one than it knows. Other workers may count it as dead.
    NoLease,
    /// Nothing: Redis is at its memory limit.
    Full,
}

impl Turn<'_> {
    /// Sends the turn once.
    ///
    /// An ACL that forbids one key refuses the whole script. Then the turn is sent in parts, so that a forbidden key holds up
    /// only what needs it.
    pub async fn send(&self, redis: &Redis, identity: &Identity, jobs: &Jobs, now: Epoch) -> Result<Reply, RedisError> {
        let send = async |turn: Turn<'_>| turn.send_whole(redis, identity, jobs, now).await;
        match send(*self).await {
            Err(error) if is_forbidden(&error) => {}
            reply => return reply,
        }
        let part = Turn { settlements: &[], slots: &[], fetch_requests: &[], ..*self };
        // Without the keys that every turn has, nothing can be done.
        send(part).await?;
        let mut settled = Vec::new();
        for settlement in self.settlements {
            match send(Turn { settlements: std::slice::from_ref(settlement), ..part }).await {
                Err(error) if is_forbidden(&error) => settled.push(Settled::Refused(error.to_string())),
                reply => settled.extend(reply?.settled),
            }
        }
        let (mut fetch_requests, mut passed_over) = (self.fetch_requests.to_vec(), Vec::new());
        let queues: BTreeSet<&String> = self.fetch_requests.iter().flat_map(|request| &request.queues).collect();
        for queue in queues {
            let probe = FetchRequest { n_slots: 0, queues: vec![queue.clone()] };
            match send(Turn { fetch_requests: &[probe], ..part }).await {
                Err(error) if is_forbidden(&error) => {
                    fetch_requests.iter_mut().for_each(|request| request.queues.retain(|other| other != queue));
                    passed_over.push(format!("{}: {error}", keys::queue(queue)));
                }
                reply => drop(reply?),
            }
        }
        let fetch = send(Turn { slots: self.slots, fetch_requests: &fetch_requests, ..part }).await?;
        passed_over.extend(fetch.passed_over);
        Ok(Reply { settled, passed_over, ..fetch })
    }

    async fn send_whole(
        &self,
        redis: &Redis,
        identity: &Identity,
        jobs: &Jobs,
        now: Epoch,
    ) -> Result<Reply, RedisError> {
        let (keys, arguments) = self.encode(identity, jobs, now);
        let mut script = TURN.prepare_invoke();
        keys.into_iter().for_each(|key| {
            script.key(key);
        });
        // Moves the texts, which are large.
        arguments.into_iter().for_each(|argument| {
            script.arg(argument);
        });
        let (settled, fetched, passed_over, n_idlers, oversized): (
            Vec<Value>,
            Value,
            Option<String>,
            u32,
            Vec<String>,
        ) = redis.script(&script).await?;
        Ok(Reply {
            passed_over: passed_over.into_iter().collect(),
            n_idlers,
            oversized,
            settled: settled.into_iter().map(read_settled).collect::<Result<_, _>>()?,
            fetched: self.read_fetched(fetched)?,
        })
    }

    /// KEYS and ARGV of the script.
    fn encode(&self, identity: &Identity, jobs: &Jobs, now: Epoch) -> (Vec<String>, Vec<Vec<u8>>) {
        let mut keys = Keys::fixed(identity);
        let mut arguments = Argv::default();
        arguments.number(now.as_secs_f64());
        arguments.number(now.as_secs_f64() - jobs.dead_timeout.as_secs_f64());
        arguments.number(jobs.dead_max_jobs);
        arguments.text(&now.day());
        arguments.text(self.incarnation);
        arguments.number(self.number);
        arguments.number(bounds::RECOVERIES);
        arguments.number(bounds::CRASHES);
        arguments.number(self.max_bytes);
        arguments.number(bounds::JOB);
        arguments.number(self.settlements.len());
        for settlement in self.settlements {
            arguments.settlement(settlement, now);
        }
        arguments.number(self.fetch_requests.len());
        for request in self.fetch_requests {
            arguments.number(request.n_slots);
            let indices: Vec<String> = request.queues.iter().map(|queue| keys.queue(queue).to_string()).collect();
            arguments.text(&indices.join(" "));
        }
        self.slots.iter().for_each(|token| arguments.text(token.as_str()));
        (keys.0, arguments.texts)
    }

    fn read_fetched(&self, fetched: Value) -> Result<Fetched, RedisError> {
        let slots = match fetched {
            Value::Array(slots) => slots,
            word if String::from_redis_value_ref(&word)? == "full" => return Ok(Fetched::Full),
            _ => return Ok(Fetched::NoLease),
        };
        let filled = self.slots.iter().zip(slots).filter(|(_, slot)| *slot != Value::Nil);
        let units = filled.map(|(token, slot)| {
            let slot: (String, Vec<u8>, u32, u32, u32, bool) = from_redis_value(slot)?;
            let (queue, text, n_recoveries, n_crashes, n_interruptions, is_idle) = slot;
            let (token, text) = (token.clone(), text.into());
            Ok(UnitOfWork { token, queue, text, n_recoveries, n_crashes, n_interruptions, is_idle })
        });
        units.collect::<Result<_, RedisError>>().map(Fetched::Units)
    }
}

fn read_settled(value: Value) -> Result<Settled, RedisError> {
    Ok(match value {
        Value::Int(1) => Settled::Done,
        Value::Int(_) => Settled::Fenced,
        word => Settled::Refused(String::from_redis_value(word)?),
    })
}

/// KEYS: the fixed ones, then the lists to fetch from.
struct Keys(Vec<String>);

impl Keys {
    fn fixed(identity: &Identity) -> Self {
        let own = [keys::inflight(identity), keys::lease(identity)];
        let shared = [
            keys::QUEUES,
            keys::RETRY,
            keys::DEAD,
            keys::RECOVERIES,
            keys::INTERRUPTIONS,
            keys::OWNERS,
            keys::PAUSED,
            keys::APART,
        ];
        Self(own.into_iter().chain(shared.map(str::to_owned)).collect())
    }

    /// The index of a queue's list; Lua counts from 1.
    fn queue(&mut self, name: &str) -> usize {
        let key = keys::queue(name);
        let index = self.0.iter().position(|other| *other == key);
        index.unwrap_or_else(|| {
            self.0.push(key);
            self.0.len() - 1
        }) + 1
    }
}

/// ARGV.
#[derive(Default)]
struct Argv {
    texts: Vec<Vec<u8>>,
    n_dead: u32,
}

impl Argv {
    fn number(&mut self, number: impl ToString) {
        self.text(&number.to_string());
    }

    fn text(&mut self, text: &str) {
        self.texts.push(text.as_bytes().to_vec());
    }

    fn settlement(&mut self, settlement: &Settlement, now: Epoch) {
        self.text(settlement.token.as_str());
        self.texts.push(settlement.text.to_vec());
        self.number(u8::from(settlement.is_processed));
        self.number(u8::from(settlement.is_failed));
        self.number(settlement.effects.len());
        for effect in &settlement.effects {
            match effect {
                Effect::Push { queue, text } => self.effect("push", keys::queue(queue), text.as_bytes()),
                Effect::Requeue { queue, is_interrupted: false } => self.effect("head", keys::queue(queue), b""),
                Effect::Requeue { queue, is_interrupted: true } => self.effect("interrupted", keys::queue(queue), b""),
                Effect::Retry { at, text } => self.effect("retry", at.as_secs_f64(), text.as_bytes()),
                Effect::Dead { text } => {
                    // Sidekiq finds an entry by its score and its jid. It would remove all entries that have both in common.
                    let score = now.as_secs_f64() + f64::from(self.n_dead) * 1e-6;
                    self.n_dead += 1;
                    self.effect("dead", score, text);
                }
                Effect::Unlink { key } => self.effect("unlink", "", key.as_bytes()),
            }
        }
    }

    fn effect(&mut self, kind: &str, target: impl ToString, text: &[u8]) {
        self.text(kind);
        self.number(target);
        self.texts.push(text.to_vec());
    }
}
