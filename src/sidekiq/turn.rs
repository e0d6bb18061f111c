//! The one step in which jobs change hands: `turn.lua`, its arguments and its answer.
//!
//! Settling and fetching share a round trip, so a busy worker needs one per job. The script may be sent again with the
//! same tokens until it is answered.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use redis::{FromRedisValue, Value, from_redis_value};

use super::Identity;
use crate::bounds;
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError, Script, is_forbidden};
use crate::settings::Jobs;

static TURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("turn.lua")));

/// What follows a token in the in-flight hash while its job does not run: it has not begun, or its result was refused.
const IDLE: &str = ":idle";

/// The fence, together with the job's text: proves that an entry in flight is still the one that was fetched. Used once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    text: String,
    /// The capsule whose slot it fills, by its place.
    pub capsule: usize,
}

impl Token {
    /// The `n`th token of a process; later ones sort after earlier ones.
    pub fn nth(n: u64, capsule: usize) -> Self {
        // Only some processes have capsules, and every entry in flight has a token.
        let text = if capsule == 0 { format!("{n:012x}") } else { format!("{n:012x}.{capsule}") };
        Self { text, capsule }
    }

    /// Of a field of the in-flight hash; whether its job runs is not part of it.
    pub(super) fn of_field(field: &str) -> Self {
        let text = field.strip_suffix(IDLE).unwrap_or(field);
        let capsule = text.split_once('.').and_then(|(_, capsule)| capsule.parse().ok());
        Self { text: text.to_owned(), capsule: capsule.unwrap_or(0) }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A job in custody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitOfWork {
    /// Proves, with the text, that it is owned.
    pub token: Token,
    /// The queue it was fetched from.
    pub queue: String,
    /// Its text as it was fetched. Everything that holds the job shares it.
    pub text: Arc<[u8]>,
    /// How often it was recovered from a dead worker within three days.
    pub n_recoveries: u32,
    /// How often of that it was the only job that had begun: what it crashed, it crashed alone.
    pub n_crashes: u32,
    /// How often a worker that had to stop killed it within three days.
    pub n_interruptions: u32,
    /// Whether Redis has it on record as one that has not begun, as it does with each job that was recovered before.
    pub is_idle: bool,
}

impl UnitOfWork {
    /// A job to which nothing has happened, under the `n`th token.
    #[cfg(test)]
    pub(super) fn fetched(n: u64, text: &[u8]) -> Self {
        Self {
            token: Token::nth(n, 0),
            queue: "default".into(),
            text: text.into(),
            n_recoveries: 0,
            n_crashes: 0,
            n_interruptions: 0,
            is_idle: false,
        }
    }

    /// Whether it is to go to the dead set, and not to run again.
    pub fn is_poison(&self) -> bool {
        self.n_crashes as usize > bounds::CRASHES
    }

    /// Whether it may be what crashes its workers, so that it runs apart from others.
    pub fn is_suspect(&self) -> bool {
        self.n_recoveries as usize > bounds::RECOVERIES && !self.is_poison()
    }
}

/// The end of a unit of work, and everything that follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// Whose end.
    pub token: Token,
    /// The queue that the unit came from.
    pub queue: String,
    /// The unit's text: under the same token another job may have been put, by a Redis that forgot.
    pub text: Arc<[u8]>,
    /// Whether the attempt counts as processed.
    pub is_processed: bool,
    /// Whether it counts as failed.
    pub is_failed: bool,
    /// What happens in the same step.
    pub effects: Vec<Effect>,
}

impl Settlement {
    /// Of a unit that counts in no statistic, and from which nothing follows yet.
    pub fn of(unit: &UnitOfWork) -> Self {
        let (token, queue, text) = (unit.token.clone(), unit.queue.clone(), unit.text.clone());
        Self { token, queue, text, is_processed: false, is_failed: false, effects: Vec::new() }
    }

    /// Of a unit that goes back to the head of its queue, as if it had never been fetched.
    pub fn requeue(unit: &UnitOfWork) -> Self {
        Self::of(unit).requeued()
    }

    /// The same unit back at the head of its queue, whatever was to follow from its end.
    pub(super) fn requeued(self) -> Self {
        let effects = vec![Effect::Requeue { queue: self.queue.clone(), is_interrupted: false }];
        Self { is_processed: false, is_failed: false, effects, ..self }
    }

    /// Bytes of the texts in it.
    pub fn size(&self) -> usize {
        let sizes = self.effects.iter().map(|effect| match effect {
            Effect::Push { text, .. } | Effect::Retry { text, .. } => text.len(),
            Effect::Dead { text } => text.len(),
            Effect::Requeue { .. } | Effect::Unlink { .. } => 0,
        });
        self.text.len() + sizes.sum::<usize>()
    }

    /// Whether the unit goes back to the head of its queue.
    pub fn is_requeue(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Requeue { .. }))
    }

    /// Whether it does so because it was killed: by a stop, or since the fence refused it.
    pub fn is_interrupted(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Requeue { is_interrupted: true, .. }))
    }
}

/// One thing that follows from the end of a unit of work.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A new job on a queue.
    Push {
        /// Name without prefix.
        queue: String,
        /// The job's text.
        text: String,
    },
    /// The unit's own text, back at the head of the queue it came from.
    Requeue {
        /// That queue.
        queue: String,
        /// Whether it was killed on the way, which is counted.
        is_interrupted: bool,
    },
    /// Into the retry set.
    Retry {
        /// When it is due.
        at: Epoch,
        /// The job's text.
        text: String,
    },
    /// Into the dead set.
    Dead {
        /// The job's text, or the bytes that are no job.
        text: Vec<u8>,
    },
    /// A key that goes with the job.
    Unlink {
        /// Its name.
        key: String,
    },
}

/// What became of a settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It happened.
    Done,
    /// Token and text were not owned any more: nothing happened.
    Fenced,
    /// What Redis says, with the keys that it may mean: nothing happened.
    Refused(String),
}

/// The answer to a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// One for each settlement, in order.
    pub settled: Vec<Settled>,
    /// The keys of queues that were passed over, each with the reason.
    pub passed_over: Vec<String>,
    /// How many processes may be waiting for the same push as this one; 0 when it got all it asked for.
    pub n_idlers: u32,
    /// Queue and length of texts that are too long for a worker: they are in the dead set.
    pub oversized: Vec<String>,
    /// What was fetched.
    pub fetched: Fetched,
}

/// What came of the free slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// These jobs; none when the queues are empty.
    Units(Vec<UnitOfWork>),
    /// Nothing: this process has no lease, or another one than it knows of, and others may take it for dead.
    NoLease,
    /// Nothing: Redis is at its memory limit.
    Full,
}

/// What a turn asks.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Of the lease that this process knows of; empty when it knows of none.
    pub incarnation: &'a str,
    /// Grows from turn to turn; a turn that is sent again keeps its number.
    pub number: u64,
    /// What has finished.
    pub settlements: &'a [Settlement],
    /// One token for each free slot.
    pub slots: &'a [Token],
    /// What is asked for them, in the order of `slots`.
    pub fetch_requests: &'a [FetchRequest],
    /// Bytes of texts that may be fetched, up to [`bounds::JOBS`].
    pub max_bytes: usize,
}

/// Jobs for some of the free slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// How many.
    pub n_slots: usize,
    /// Queues to fetch from, the first one first. With none, the turn only says what the slots hold already.
    pub queues: Vec<String>,
}

impl Turn<'_> {
    /// Sends the turn once; in parts where this user may not touch all of its keys, so that one key holds up nothing else.
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
                Err(error) if is_forbidden(&error) => {
                    settled.push(Settled::Refused(error.to_string()));
                }
                reply => settled.extend(reply?.settled),
            }
        }
        let (mut fetch_requests, mut passed_over) = (self.fetch_requests.to_vec(), Vec::new());
        let queues: BTreeSet<&String> =
            self.fetch_requests.iter().flat_map(|fetch_request| &fetch_request.queues).collect();
        for queue in queues {
            let fetch_request = FetchRequest { n_slots: 0, queues: vec![queue.clone()] };
            match send(Turn { fetch_requests: &[fetch_request], ..part }).await {
                Err(error) if is_forbidden(&error) => {
                    fetch_requests
                        .iter_mut()
                        .for_each(|fetch_request| fetch_request.queues.retain(|other| other != queue));
                    passed_over.push(format!("queue:{queue}: {error}"));
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
        let mut keys = Keys::fixed(identity);
        let mut arguments = Arguments::default();
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
        for fetch_request in self.fetch_requests {
            arguments.number(fetch_request.n_slots);
            let places: Vec<String> = fetch_request.queues.iter().map(|queue| keys.queue(queue).to_string()).collect();
            arguments.text(&places.join(" "));
        }
        self.slots.iter().for_each(|token| arguments.text(&token.text));
        let mut script = TURN.prepare_invoke();
        keys.0.iter().for_each(|key| {
            script.key(key);
        });
        // Texts are large, and each is in this many places once less.
        arguments.texts.into_iter().for_each(|argument| {
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

/// Whether a field of the in-flight hash is that of a job that does not run.
pub(super) fn is_idle(field: &str) -> bool {
    field.ends_with(IDLE)
}

/// Queue and text of an entry of an in-flight hash, which are parted by a line feed.
pub(super) fn read_entry(entry: &[u8]) -> Option<(&str, &[u8])> {
    let end = entry.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&entry[..end]).ok()?, &entry[end + 1..]))
}

fn read_settled(value: Value) -> Result<Settled, RedisError> {
    Ok(match value {
        Value::Int(1) => Settled::Done,
        Value::Int(_) => Settled::Fenced,
        word => Settled::Refused(String::from_redis_value(word)?),
    })
}

/// The key of a queue's list.
fn list(queue: &str) -> String {
    format!("queue:{queue}")
}

/// The keys of a turn: the fixed ones, then the lists to fetch from.
struct Keys(Vec<String>);

impl Keys {
    fn fixed(identity: &Identity) -> Self {
        Self(vec![
            identity.inflight_key(),
            identity.lease_key(),
            "queues".into(),
            "retry".into(),
            "dead".into(),
            "sidebake:recoveries".into(),
            "sidebake:interruptions".into(),
            "sidebake:owners".into(),
            "paused".into(),
            "sidebake:apart".into(),
        ])
    }

    /// The place of a queue's list, from 1 as Lua counts.
    fn queue(&mut self, name: &str) -> usize {
        let key = list(name);
        let place = self.0.iter().position(|other| *other == key);
        place.unwrap_or_else(|| {
            self.0.push(key);
            self.0.len() - 1
        }) + 1
    }
}

#[derive(Default)]
struct Arguments {
    texts: Vec<Vec<u8>>,
    n_dead: u32,
}

impl Arguments {
    fn number(&mut self, number: impl ToString) {
        self.text(&number.to_string());
    }

    fn text(&mut self, text: &str) {
        self.texts.push(text.as_bytes().to_vec());
    }

    fn settlement(&mut self, settlement: &Settlement, now: Epoch) {
        self.text(&settlement.token.text);
        self.texts.push(settlement.text.to_vec());
        self.number(u8::from(settlement.is_processed));
        self.number(u8::from(settlement.is_failed));
        self.number(settlement.effects.len());
        for effect in &settlement.effects {
            match effect {
                Effect::Push { queue, text } => self.effect("push", list(queue), text.as_bytes()),
                Effect::Requeue { queue, is_interrupted: false } => self.effect("head", list(queue), b""),
                Effect::Requeue { queue, is_interrupted: true } => self.effect("interrupted", list(queue), b""),
                Effect::Retry { at, text } => self.effect("retry", at.as_secs_f64(), text.as_bytes()),
                Effect::Dead { text } => {
                    // Sidekiq finds an entry by its score and its jid, and drops the rest where both are the same.
                    let score = now.as_secs_f64() + f64::from(self.n_dead) * 1e-6;
                    self.n_dead += 1;
                    self.effect("dead", score, text);
                }
                Effect::Unlink { key } => self.effect("unlink", "", key.as_bytes()),
            }
        }
    }

    fn effect(&mut self, kind: &str, place: impl ToString, text: &[u8]) {
        self.text(kind);
        self.number(place);
        self.texts.push(text.to_vec());
    }
}
