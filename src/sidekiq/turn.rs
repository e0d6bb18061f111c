//! A turn: settles finished jobs and fetches new ones in one script, `turn.lua`.
//!
//! Settling and fetching share a round trip, so a busy worker needs one round trip per job. The script may be sent again with
//! the same tokens until Redis answers.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use redis::{FromRedisValue, Value, from_redis_value};

use super::inflight::{Token, UnitOfWork};
use super::settlement::{Effect, Settled, Settlement};
use super::tenant::{Candidate, Claim};
use super::{Identity, keys};
use crate::bounds;
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError, Script, is_forbidden};
use crate::settings::Jobs;

static TURN: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("claims.lua"), include_str!("turn.lua"))));

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
    /// How the slots are shared between tenants.
    pub sharing: &'a Sharing,
}

/// Jobs for some of the free slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// How many.
    pub n_slots: usize,
    /// Queues to fetch from, the first one first. Without queues, the turn only returns what the slots hold already.
    pub queues: Vec<String>,
}

/// How a turn shares slots between tenants. The default takes jobs in the order of their lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sharing {
    /// When a list is contended. The turn takes nothing from such a list and returns its window.
    pub contended: Contended,
    /// The most texts of a window.
    pub window: usize,
    /// The most bytes of one.
    pub window_bytes: usize,
    /// Tenants whose virtual times come with a window.
    pub tenants: Vec<String>,
    /// Counters that come with a window.
    pub counters: Vec<String>,
    /// Claims of jobs that began without one.
    pub begun: Vec<(Token, Claim)>,
    /// What may be taken from lists whose windows this worker has seen.
    pub decided: Vec<Decision>,
    /// What a job is charged when it begins, in seconds.
    pub charge_s: f64,
}

/// When a list is contended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contended {
    /// Never.
    #[default]
    Never,
    /// When it has more jobs than there are free slots for it.
    WithoutRoom,
    /// When it has jobs: limits count for each of them.
    Always,
}

impl Sharing {
    /// Whether the turn returns a window of each list that it takes from.
    pub fn asks_all_windows(&self) -> bool {
        self.decided.iter().all(|decision| decision.asks_window)
    }
}

/// What may be taken from a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The queue.
    pub queue: String,
    /// In order of preference.
    pub candidates: Vec<Arc<Candidate>>,
    /// Whether the turn returns another window.
    pub asks_window: bool,
}

/// The head of a contended list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The queue.
    pub queue: String,
    /// How many jobs wait in it.
    pub n_waiting: usize,
    /// The texts of the next ones, the oldest first.
    pub near: Vec<Arc<[u8]>>,
    /// Texts far behind, which the scout found.
    pub far: Vec<Arc<[u8]>>,
}

/// The answer to a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// One for each settlement, in order.
    pub settled: Vec<Settled>,
    /// The keys of queues that were passed over, each with the reason.
    pub passed_over: Vec<String>,
    /// How many processes may wait for the same push as this one; 0 when it got all that it asked for.
    pub n_idlers: u32,
    /// Queue and length of texts that are too long for a worker. They are in the dead set now.
    pub oversized: Vec<String>,
    /// The heads of contended lists.
    pub windows: Vec<Window>,
    /// With windows: the clock, and the virtual times and counters that the turn asked for, in order.
    pub known: Option<Known>,
    /// What was fetched.
    pub fetched: Fetched,
}

/// How tenants stand in Redis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The virtual time of the clock.
    pub clock: f64,
    /// Of the tenants that the turn asked for.
    pub times: Vec<f64>,
    /// Of the counters that it asked for.
    pub counts: Vec<u32>,
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
        let none = Sharing::default();
        let part = Turn { settlements: &[], slots: &[], fetch_requests: &[], sharing: &none, ..*self };
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
        let mut sharing = self.sharing.clone();
        let queues: BTreeSet<&String> = self.fetch_requests.iter().flat_map(|request| &request.queues).collect();
        for queue in queues {
            let probe = FetchRequest { n_slots: 0, queues: vec![queue.clone()] };
            match send(Turn { fetch_requests: &[probe], ..part }).await {
                Err(error) if is_forbidden(&error) => {
                    fetch_requests.iter_mut().for_each(|request| request.queues.retain(|other| other != queue));
                    sharing.decided.retain(|decision| decision.queue != *queue);
                    passed_over.push(format!("{}: {error}", keys::queue(queue)));
                }
                reply => drop(reply?),
            }
        }
        let fetch =
            send(Turn { slots: self.slots, fetch_requests: &fetch_requests, sharing: &sharing, ..part }).await?;
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
        let (settled, fetched, passed_over, n_idlers, oversized, windows, known): Answer =
            redis.script(&script).await?;
        Ok(Reply {
            windows: windows.into_iter().map(Window::of).collect(),
            known: known.map(|numbers| self.read_known(&numbers)),
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
        arguments.sharing(self.sharing, &mut keys);
        self.slots.iter().for_each(|token| arguments.text(token.as_str()));
        (keys.0, arguments.texts)
    }

    fn read_known(&self, numbers: &[String]) -> Known {
        let mut numbers = numbers.iter().map(|number| number.parse::<f64>().unwrap_or(0.0));
        Known {
            clock: numbers.next().unwrap_or(0.0),
            times: numbers.by_ref().take(self.sharing.tenants.len()).collect(),
            // Redis counts below zero only where it lost data.
            counts: numbers.map(|number| number.max(0.0) as u32).collect(),
        }
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

impl Window {
    fn of((list, n_waiting, near, far): (String, usize, Vec<Vec<u8>>, Vec<Vec<u8>>)) -> Self {
        let [near, far] = [near, far].map(|texts| texts.into_iter().map(Arc::from).collect());
        Self { queue: keys::queue_of(&list).to_owned(), n_waiting, near, far }
    }
}

/// What the script returns: settlements, slots, passed over, idlers, oversized, windows, known.
type Answer = (
    Vec<Value>,
    Value,
    Option<String>,
    u32,
    Vec<String>,
    Vec<(String, usize, Vec<Vec<u8>>, Vec<Vec<u8>>)>,
    Option<Vec<String>>,
);

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

    fn sharing(&mut self, sharing: &Sharing, keys: &mut Keys) {
        self.number(sharing.contended as u8);
        self.number(sharing.window);
        self.number(sharing.window_bytes);
        for names in [&sharing.tenants, &sharing.counters] {
            self.number(names.len());
            names.iter().for_each(|name| self.text(name));
        }
        self.number(sharing.begun.len());
        for (token, claim) in &sharing.begun {
            self.text(token.as_str());
            self.claim(claim, sharing.charge_s);
        }
        self.number(sharing.decided.len());
        for decision in &sharing.decided {
            self.number(keys.queue(&decision.queue));
            self.number(u8::from(decision.asks_window));
            self.number(decision.candidates.len());
            for candidate in &decision.candidates {
                self.texts.push(candidate.text.to_vec());
                self.claim(&candidate.claim, sharing.charge_s);
            }
        }
    }

    fn claim(&mut self, claim: &Claim, charge_s: f64) {
        self.text(&claim.tenant);
        self.number(claim.weight);
        self.text(&format!("{charge_s:.6}"));
        self.number(claim.counters.len());
        for counter in &claim.counters {
            self.text(&counter.name);
            self.text(&counter.limit.map_or(String::new(), |limit| limit.to_string()));
        }
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
                Effect::Share { key, result } => self.effect("share", key, result.as_bytes()),
            }
        }
    }

    fn effect(&mut self, kind: &str, target: impl ToString, text: &[u8]) {
        self.text(kind);
        self.number(target);
        self.texts.push(text.to_vec());
    }
}
