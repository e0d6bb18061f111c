//! The script of a turn: late turns, refusals by Redis, and keys with a wrong type.

use sidebake::bounds;
use sidebake::clock::Epoch;
use sidebake::event::{Event, Phase};
use sidebake::journal::Listener;
use sidebake::redis::{Redis, RedisError};
use sidebake::settings::Jobs;
use sidebake::sidekiq::fence::{announce, holds};
use sidebake::sidekiq::inflight::{Token, UnitOfWork};
use sidebake::sidekiq::running::Running;
use sidebake::sidekiq::settlement::{Effect, Settled, Settlement};
use sidebake::sidekiq::turn::{FetchRequest, Fetched, Reply, Sharing, Turn};
use sidebake::sidekiq::{Identity, iteration};

use crate::harness::client;

pub(crate) const TEXT: &str = r#"{"class":"BuildJob","jid":"j"}"#;

/// The incarnation of each hand's lease.
pub(crate) const LEASE: &str = "1ea5e";

/// A process without its tasks. The test sends its turns.
pub(crate) struct Hand {
    pub server: world::Redis,
    pub redis: Redis,
    pub identity: Identity,
}

impl Hand {
    /// A process with a lease. `user` precedes the server's address in the URL.
    pub async fn with(user: &str) -> Self {
        let server = world::Redis::start();
        let redis = client(&server.url().replace("redis://", &format!("redis://{user}")));
        let hand = Self { server, redis, identity: Identity::new("host".into()) };
        hand.run(&["SET", &format!("sidebake:lease:{}", hand.identity), &format!("{LEASE} 0")]).await;
        hand
    }

    pub async fn run(&self, command: &[&str]) {
        let mut connection = self.server.connection().await;
        redis::cmd(command[0]).arg(&command[1..]).exec_async(&mut connection).await.unwrap();
    }

    /// A turn with one free slot.
    pub async fn fetch(&self, number: u64, token: u64) -> Result<Reply, RedisError> {
        self.turn(number, &[], &[Token::nth(token, 0)]).await
    }

    pub async fn settle(&self, number: u64, token: u64, effects: Vec<Effect>) -> Result<Reply, RedisError> {
        self.turn(number, &[end(token, effects)], &[]).await
    }

    pub async fn turn(&self, number: u64, settlements: &[Settlement], slots: &[Token]) -> Result<Reply, RedisError> {
        let fetch_request = FetchRequest { n_slots: slots.len(), queues: vec!["default".to_owned()] };
        self.turn_with(number, settlements, slots, &[fetch_request]).await
    }

    async fn turn_with(
        &self,
        number: u64,
        settlements: &[Settlement],
        slots: &[Token],
        fetch_requests: &[FetchRequest],
    ) -> Result<Reply, RedisError> {
        let settlements: Vec<&Settlement> = settlements.iter().collect();
        let (settlements, max_bytes) = (&settlements[..], bounds::JOBS);
        let sharing = &Sharing::default();
        let turn = Turn { incarnation: LEASE, number, settlements, slots, fetch_requests, max_bytes, sharing };
        turn.send(&self.redis, &self.identity, &Jobs::default(), Epoch::now()).await
    }

    pub async fn push(&self) {
        self.run(&["LPUSH", "queue:default", TEXT]).await;
    }

    pub fn inflight(&self) -> String {
        format!("sidebake:inflight:{}", self.identity)
    }

    async fn n_queued(&self) -> usize {
        self.server.queue("default").await.len()
    }

    async fn n_inflight(&self) -> usize {
        self.server.hgetall(&self.inflight()).await.len()
    }
}

/// The job as fetched under a token.
pub(crate) fn unit(token: u64) -> UnitOfWork {
    UnitOfWork {
        token: Token::nth(token, 0),
        queue: "default".into(),
        text: TEXT.as_bytes().into(),
        n_recoveries: 0,
        n_crashes: 0,
        n_interruptions: 0,
        is_idle: false,
    }
}

pub(crate) fn end(token: u64, effects: Vec<Effect>) -> Settlement {
    Settlement { is_processed: true, effects, ..Settlement::of(&unit(token)) }
}

fn units(reply: Reply) -> Vec<UnitOfWork> {
    let Fetched::Units(units) = reply.fetched else { panic!("{reply:?}") };
    units
}

fn is_one_unit(reply: &Reply) -> bool {
    matches!(&reply.fetched, Fetched::Units(units) if units.len() == 1)
}

fn is_stale(reply: Result<Reply, RedisError>) -> bool {
    reply.is_err_and(|error| error.to_string().to_uppercase().contains("STALE"))
}

#[tokio::test]
async fn a_turn_that_arrives_after_a_later_one_does_nothing() {
    let hand = Hand::with("").await;
    hand.fetch(2, 1).await.unwrap();
    hand.push().await;
    assert!(is_stale(hand.fetch(1, 1).await));
    assert_eq!(hand.n_queued().await, 1, "the job stays on its queue");
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()), "the worker may resend a turn");
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()), "a resent turn gets the same reply");
    assert_eq!((hand.n_queued().await, hand.n_inflight().await), (0, 1));
}

#[tokio::test]
async fn a_turn_that_a_full_redis_settled_counts_as_taken() {
    let hand = Hand::with("").await;
    hand.push().await;
    assert!(is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    hand.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(hand.settle(2, 1, Vec::new()).await.unwrap().settled, [Settled::Done]);
    assert_eq!(hand.fetch(3, 2).await.unwrap().fetched, Fetched::Full);
    hand.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    hand.push().await;
    assert!(is_stale(hand.fetch(1, 1).await), "the turn would fill a settled token");
    assert_eq!(hand.n_queued().await, 1);
}

#[tokio::test]
async fn a_full_redis_takes_every_kind_of_result() {
    let hand = Hand::with("").await;
    let (queue, text) = ("default".to_owned(), "{}".to_owned());
    let effects = [
        Effect::Push { queue: "callbacks".into(), text: text.clone() },
        Effect::Requeue { queue: queue.clone(), is_interrupted: false },
        Effect::Requeue { queue, is_interrupted: true },
        Effect::Retry { at: Epoch::now(), text },
        Effect::Dead { text: TEXT.into() },
        Effect::Unlink { key: "it-j".into() },
    ];
    for _ in &effects {
        hand.push().await;
    }
    let slots: Vec<Token> = (1..=6).map(|n| Token::nth(n, 0)).collect();
    hand.turn(1, &[], &slots).await.unwrap();
    assert_eq!(hand.n_inflight().await, 6);
    hand.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for (n, effect) in (1..).zip(effects) {
        assert_eq!(hand.settle(n + 1, n, vec![effect]).await.unwrap().settled, [Settled::Done]);
    }
    assert_eq!((hand.n_inflight().await, hand.n_queued().await), (0, 2));
    assert_eq!(hand.server.queue("callbacks").await.len(), 1);
    assert_eq!(hand.server.hgetall("sidebake:interruptions").await.len(), 1);
    for set in ["retry", "dead"] {
        assert_eq!(hand.server.sorted_set(set).await.len(), 1);
    }
}

#[tokio::test]
async fn an_effect_that_redis_refuses_leaves_the_job_in_flight() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&["ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-zadd"]).await;
    hand.push().await;
    assert!(is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    let refused = hand.settle(2, 1, vec![Effect::Dead { text: TEXT.into() }]).await.unwrap();
    assert!(matches!(&refused.settled[..], [Settled::Refused(_)]), "{refused:?}");
    assert_eq!(hand.n_inflight().await, 1);
    assert_eq!(hand.server.get("stat:processed").await, None);

    hand.run(&["ACL", "SETUSER", "narrow", "+zadd"]).await;
    let taken = hand.settle(3, 1, vec![Effect::Dead { text: TEXT.into() }]).await.unwrap();
    assert_eq!(taken.settled, [Settled::Done]);
    assert_eq!((hand.n_inflight().await, hand.server.sorted_set("dead").await.len()), (0, 1));
}

/// The keys of a worker, without the queues that the test forbids.
const NARROW: [&str; 8] =
    ["~sidebake:*", "~queues", "~retry", "~dead", "~stat:*", "~paused", "~queue:default", "~queue:callbacks"];

#[tokio::test]
async fn a_key_that_the_acl_forbids_holds_up_only_what_needs_it() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&[&["ACL", "SETUSER", "narrow", "on", ">secret", "+@all"], &NARROW[..]].concat()).await;
    let slots: Vec<Token> = (1..=3).map(|n| Token::nth(n, 0)).collect();
    for _ in 0..3 {
        hand.push().await;
    }
    assert!(matches!(hand.turn(1, &[], &slots[..2]).await.unwrap().fetched, Fetched::Units(units) if units.len() == 2));

    let ends = ["forbidden", "callbacks"].map(|queue| Effect::Push { queue: queue.into(), text: "{}".into() });
    let ends: Vec<Settlement> = (1..).zip(ends).map(|(token, push)| end(token, vec![push])).collect();
    let fetch_request =
        FetchRequest { n_slots: 1, queues: ["elsewhere", "nowhere", "default"].map(str::to_owned).to_vec() };
    let reply = hand.turn_with(2, &ends, &slots[2..], &[fetch_request]).await.unwrap();
    let [Settled::Refused(why), Settled::Done] = &reply.settled[..] else { panic!("{reply:?}") };
    assert!(why.contains("queue:forbidden") && !why.contains("queue:callbacks"), "{why}");
    assert!(is_one_unit(&reply), "{reply:?}");
    let [first, second] = &reply.passed_over[..] else { panic!("{reply:?}") };
    assert!(first.contains("queue:elsewhere") && second.contains("queue:nowhere"), "{first} {second}");
    assert_eq!((hand.n_inflight().await, hand.n_queued().await), (2, 0));
    assert_eq!(hand.server.get("stat:processed").await.as_deref(), Some("1"));

    hand.run(&["ACL", "SETUSER", "narrow", "~queue:forbidden"]).await;
    assert_eq!(hand.turn(3, &ends[..1], &[]).await.unwrap().settled, [Settled::Done]);
    assert_eq!(hand.server.queue("forbidden").await.len(), 1);
}

#[tokio::test]
async fn a_turn_without_the_keys_that_every_turn_has_is_an_error() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&[&["ACL", "SETUSER", "narrow", "on", ">secret", "+@all"], &NARROW[1..]].concat()).await;
    assert_eq!(hand.fetch(1, 1).await.unwrap_err().code(), Some("NOPERM"));
}

#[tokio::test]
async fn secondary_keys_may_have_any_type() {
    let hand = Hand::with("").await;
    for key in ["paused", "sidebake:owners", "sidebake:recoveries", "sidebake:interruptions", "stat:processed"] {
        hand.run(&["LPUSH", key, "x"]).await;
    }
    hand.push().await;
    let slots = [Token::nth(1, 0), Token::nth(2, 0)];
    let reply = hand.turn(1, &[], &slots).await.unwrap();
    assert!(is_one_unit(&reply) && reply.n_idlers == 0, "{reply:?}");
    let push = Effect::Push { queue: "callbacks".into(), text: "{}".into() };
    assert_eq!(hand.settle(2, 1, vec![push]).await.unwrap().settled, [Settled::Done]);
    assert_eq!(hand.server.queue("callbacks").await.len(), 1);
}

#[tokio::test]
async fn a_replica_is_not_taken_for_a_full_redis() {
    let hand = Hand::with("").await;
    hand.run(&["REPLICAOF", "127.0.0.1", &world::free_port().to_string()]).await;
    let error = hand.fetch(1, 1).await.unwrap_err();
    assert!(error.to_string().contains("read only replica"), "{error}");
}

/// The queues of the fetched jobs, in the order of the slots.
fn queues(reply: Reply) -> Vec<String> {
    units(reply).into_iter().map(|unit| unit.queue).collect()
}

#[tokio::test]
async fn each_slot_is_filled_from_the_queues_of_its_fetch_request() {
    let hand = Hand::with("").await;
    for queue in ["queue:a", "queue:b"] {
        for n in 0..3 {
            hand.run(&["LPUSH", queue, &n.to_string()]).await;
        }
    }
    let slots: Vec<Token> = (1..=6).map(|n| Token::nth(n, 0)).collect();
    let fetch_request =
        |n_slots, queues: [&str; 2]| FetchRequest { n_slots, queues: queues.map(str::to_owned).to_vec() };
    let fetch_requests = [fetch_request(2, ["b", "a"]), fetch_request(4, ["a", "b"])];
    let reply = hand.turn_with(1, &[], &slots, &fetch_requests).await.unwrap();
    assert_eq!(queues(reply), ["b", "b", "a", "a", "a", "b"]);
    let again = hand.turn_with(1, &[], &slots, &fetch_requests).await.unwrap();
    assert_eq!(queues(again), ["b", "b", "a", "a", "a", "b"], "a resent turn gets the lost reply");
    assert_eq!(hand.n_inflight().await, 6);
}

#[tokio::test]
async fn a_resent_turn_fills_the_remaining_slots_from_the_right_queues() {
    let hand = Hand::with("").await;
    hand.run(&["LPUSH", "queue:b", "1"]).await;
    let slots = [Token::nth(1, 0), Token::nth(2, 1), Token::nth(3, 2)];
    let fetch_requests = ["a", "b", "c"].map(|queue| FetchRequest { n_slots: 1, queues: vec![queue.to_owned()] });
    assert_eq!(queues(hand.turn_with(1, &[], &slots, &fetch_requests).await.unwrap()), ["b"]);
    for queue in ["queue:a", "queue:b", "queue:c"] {
        hand.run(&["LPUSH", queue, "2"]).await;
    }
    assert_eq!(queues(hand.turn_with(1, &[], &slots, &fetch_requests).await.unwrap()), ["a", "b", "c"]);
    assert_eq!(hand.server.queue("b").await, ["2"]);
}

#[tokio::test]
async fn a_paused_queue_is_not_fetched_from() {
    let hand = Hand::with("").await;
    hand.run(&["SADD", "paused", "default"]).await;
    hand.push().await;
    assert!(!is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    hand.run(&["SREM", "paused", "default"]).await;
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()));
}

#[tokio::test]
async fn a_worker_that_lost_a_job_writes_no_progress_of_it() {
    let hand = Hand::with("").await;
    hand.push().await;
    let running = Running::new(units(hand.fetch(1, 1).await.unwrap()).remove(0), Epoch::now());
    running.iteration.begin("j", 1);
    for (phase, is_shown) in [(Phase::Fetch, true), (Phase::Bake, false)] {
        running.iteration.progress.on_event(&Event::PhaseStarted(phase));
        iteration::sync(&hand.redis, &hand.identity, std::slice::from_ref(&running)).await.unwrap();
        assert_eq!(hand.server.hgetall("it-j").await.is_empty(), !is_shown);
        hand.run(&["DEL", "it-j", &hand.inflight()]).await;
    }
}

/// Another job replaces the job that was fetched under the first token.
async fn with_another_text_under_the_token() -> (Hand, String) {
    let (hand, other) = (Hand::with("").await, TEXT.replace("j", "k"));
    hand.push().await;
    assert!(is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    hand.run(&["HSET", &hand.inflight(), "000000000001", &format!("default\n{other}")]).await;
    (hand, other)
}

#[tokio::test]
async fn another_job_under_the_same_token_is_not_settled() {
    let (hand, other) = with_another_text_under_the_token().await;
    let retry = Effect::Retry { at: Epoch::now(), text: TEXT.into() };
    let requeue = Effect::Requeue { queue: "default".into(), is_interrupted: false };
    for effects in [vec![], vec![retry], vec![requeue]] {
        assert_eq!(hand.settle(2, 1, effects).await.unwrap().settled, [Settled::Fenced]);
    }
    let entry = hand.server.hgetall(&hand.inflight()).await.remove("000000000001");
    assert_eq!(entry, Some(format!("default\n{other}")));
    assert_eq!((hand.n_queued().await, hand.server.sorted_set("retry").await.len()), (0, 0));
}

#[tokio::test]
async fn a_worker_that_lost_a_job_sends_no_callback_writes_no_progress_and_starts_no_solve() {
    let (hand, _) = with_another_text_under_the_token().await;
    let (redis, identity) = (&hand.redis, &hand.identity);
    assert!(!holds(redis, identity, &unit(1)).await.unwrap());
    assert!(!announce(redis, identity, &unit(1), "callbacks", "{}").await.unwrap());
    let running = Running::new(unit(1), Epoch::now());
    running.iteration.begin("j", 1);
    running.iteration.progress.on_event(&Event::PhaseStarted(Phase::Fetch));
    iteration::sync(redis, identity, &[running]).await.unwrap();
    assert_eq!(hand.server.keys("*").await, [hand.inflight(), format!("sidebake:lease:{identity}")]);

    hand.run(&["HSET", &hand.inflight(), "000000000001", &format!("default\n{TEXT}")]).await;
    assert!(holds(redis, identity, &unit(1)).await.unwrap());
    assert!(announce(redis, identity, &unit(1), "callbacks", "{}").await.unwrap());
    assert_eq!(hand.server.queue("callbacks").await, ["{}"]);
}

#[tokio::test]
async fn the_same_text_twice_is_two_entries_in_one_turn_and_in_two() {
    let hand = Hand::with("").await;
    let slots: Vec<Token> = (1..=6).map(|n| Token::nth(n, 0)).collect();
    for _ in &slots {
        hand.push().await;
    }
    hand.turn(1, &[], &slots).await.unwrap();
    let at = Epoch::now();
    let effect = |token| match token % 2 {
        0 => Effect::Retry { at, text: TEXT.into() },
        _ => Effect::Dead { text: TEXT.into() },
    };
    let ends: Vec<Settlement> = (1..=4).map(|token| end(token, vec![effect(token)])).collect();
    hand.turn(2, &ends, &[]).await.unwrap();
    let ends: Vec<Settlement> = (5..=6).map(|token| end(token, vec![effect(token)])).collect();
    hand.turn(3, &ends, &[]).await.unwrap();
    for set in ["retry", "dead"] {
        let members = hand.server.sorted_set(set).await;
        assert_eq!(members.len(), 3, "{members:?}");
        // Sidekiq finds a dead job by its score and jid.
        let scores: std::collections::BTreeSet<u64> = members.iter().map(|(_, score)| score.to_bits()).collect();
        assert!(set == "retry" || scores.len() == 3, "{members:?}");
        assert!(members.iter().all(|(member, _)| member.trim_end() == TEXT), "{members:?}");
    }
}

/// Records that the job was recovered, with this many crashes while alone, or in the form of an earlier version without
/// them.
async fn has_history(hand: &Hand, text: &str, n_recoveries: u32, n_crashes: Option<u32>) {
    let now = Epoch::now().as_millis() / 1000;
    let value = n_crashes.map_or(format!("{n_recoveries} {now}"), |alone| format!("{n_recoveries} {alone} {now}"));
    let note = "redis.call('HSET', 'sidebake:recoveries', redis.sha1hex(ARGV[1]), ARGV[2])";
    hand.run(&["EVAL", note, "0", text, &value]).await;
}

#[tokio::test]
async fn a_suspect_ends_the_fetch_and_recovered_jobs_are_idle() {
    let hand = Hand::with("").await;
    let texts = ["a", "b", "c", "d"].map(|jid| TEXT.replace("j", jid));
    for text in &texts {
        hand.run(&["LPUSH", "queue:default", text]).await;
    }
    has_history(&hand, &texts[1], 1, Some(1)).await;
    has_history(&hand, &texts[2], 2, None).await;
    let slots: Vec<Token> = (1..=4).map(|n| Token::nth(n, 0)).collect();
    for _ in 0..2 {
        let units = units(hand.turn(1, &[], &slots).await.unwrap());
        let seen: Vec<_> = units.iter().map(|unit| (unit.n_recoveries, unit.n_crashes, unit.is_idle)).collect();
        assert_eq!(seen, [(0, 0, false), (1, 1, true), (2, 0, true)], "a resent turn gets the same jobs");
        assert!(units[2].is_suspect() && !units[1].is_suspect());
    }
    assert_eq!(hand.server.queue("default").await, [texts[3].clone()]);
    let mut fields: Vec<String> = hand.server.hgetall(&hand.inflight()).await.into_keys().collect();
    fields.sort();
    assert_eq!(fields, ["000000000001", "000000000002:idle", "000000000003:idle"]);
}

/// Renews this process's lease, as the worker's thread does.
async fn renew(hand: &Hand, new: &str, is_stopping: &str) -> String {
    let script = redis::Script::new(include_str!("../../src/sidekiq/renew.lua"));
    let mut call = script.key(format!("sidebake:lease:{}", hand.identity));
    call.key("sidebake:owners").key("sidebake:suspects");
    call.arg(hand.identity.to_string()).arg(30_000).arg(new).arg(is_stopping);
    call.invoke_async(&mut hand.server.connection().await).await.unwrap()
}

#[tokio::test]
async fn a_late_renewal_makes_no_lease_and_a_late_lease_lets_no_earlier_turn_fetch() {
    let hand = Hand::with("").await;
    hand.fetch(7, 1).await.unwrap();
    assert_eq!(renew(&hand, "", "0").await, LEASE);
    assert_eq!(renew(&hand, "bbbb", "0").await, LEASE, "an existing lease is kept");
    hand.run(&["DEL", &format!("sidebake:lease:{}", hand.identity)]).await;
    hand.push().await;
    assert_eq!(renew(&hand, "", "0").await, "");
    assert!(hand.server.keys("sidebake:lease:*").await.is_empty());
    for made in ["", "bbbb"] {
        renew(&hand, made, "0").await;
        for number in [1, 7, 100] {
            assert_eq!(hand.fetch(number, 1).await.unwrap().fetched, Fetched::NoLease);
        }
    }
    assert_eq!((hand.n_queued().await, hand.n_inflight().await), (1, 0));
    assert_eq!(hand.server.get(&format!("sidebake:lease:{}", hand.identity)).await.as_deref(), Some("bbbb 0"));
}

/// A turn that requests jobs of `default` for this many slots and bytes.
async fn ask(hand: &Hand, identity: &Identity, number: u64, n_slots: u64, max_bytes: usize, now: Epoch) -> Reply {
    let slots: Vec<Token> = (0..n_slots).map(|n| Token::nth(10 * number + n, 0)).collect();
    let fetch_requests = [FetchRequest { n_slots: slots.len(), queues: vec!["default".to_owned()] }];
    let turn = Turn {
        incarnation: LEASE,
        number,
        settlements: &[],
        slots: &slots,
        fetch_requests: &fetch_requests,
        max_bytes,
        sharing: &Sharing::default(),
    };
    turn.send(&hand.redis, identity, &Jobs::default(), now).await.unwrap()
}

async fn fetch_bytes(hand: &Hand, number: u64, n_slots: u64, max_bytes: usize) -> Reply {
    ask(hand, &hand.identity, number, n_slots, max_bytes, Epoch::now()).await
}

#[tokio::test]
async fn texts_are_fetched_in_order_up_to_the_limit_of_bytes() {
    let hand = Hand::with("").await;
    let texts = ["a", "b", "c", "d"].map(|jid| TEXT.replace("j", jid));
    for text in &texts {
        hand.run(&["LPUSH", "queue:default", text]).await;
    }
    let n_bytes = texts[0].len();
    for (number, max_bytes, n_fetched) in [(1, n_bytes - 1, 0), (2, 2 * n_bytes + 1, 2), (3, bounds::JOBS, 2)] {
        let units = units(fetch_bytes(&hand, number, 4, max_bytes).await);
        assert_eq!(units.len(), n_fetched, "{max_bytes} bytes: {units:?}");
    }
    assert_eq!((hand.n_queued().await, hand.n_inflight().await), (0, 4));
}

#[tokio::test]
async fn an_oversized_job_moves_to_the_dead_set_and_hides_no_other() {
    let hand = Hand::with("").await;
    let long = format!(r#"{{"class":"BuildJob","args":["{}"]}}"#, "x".repeat(bounds::JOB));
    for text in [&*long, TEXT, &long, &long, TEXT] {
        hand.run(&["LPUSH", "queue:default", text]).await;
    }
    let reply = fetch_bytes(&hand, 1, 3, bounds::JOBS).await;
    assert_eq!(reply.oversized, vec![format!("default: {} bytes", dead_texts(&hand).await[0].len()); 3]);
    assert_eq!((units(reply).len(), hand.n_queued().await), (2, 0));
    for entry in dead_texts(&hand).await {
        let entry: serde_json::Value = serde_json::from_str(entry.trim_end()).unwrap();
        assert_eq!((&entry["class"], &entry["queue"]), (&"Sidebake::Malformed".into(), &"default".into()));
        assert!(entry["args"][0] == *long && entry["failed_at"].is_f64(), "the entry keeps the whole job");
        assert!(entry["jid"].as_str().is_some_and(|jid| jid.len() == 24));
    }
    // A job that returns from there is not wrapped again.
    let entry = dead_texts(&hand).await.remove(0);
    hand.run(&["DEL", "dead"]).await;
    hand.run(&["LPUSH", "queue:default", &entry]).await;
    assert_eq!(fetch_bytes(&hand, 2, 1, bounds::JOBS).await.oversized.len(), 1);
    assert!(dead_texts(&hand).await == [entry]);
}

async fn dead_texts(hand: &Hand) -> Vec<String> {
    hand.server.sorted_set("dead").await.into_iter().map(|(text, _)| text).collect()
}

#[tokio::test]
async fn an_oversized_job_that_cannot_be_moved_stays_in_its_queue() {
    let hand = Hand::with("").await;
    hand.run(&["SET", "dead", "x"]).await;
    for text in ["x".repeat(bounds::JOB + 1), TEXT.to_owned()] {
        hand.run(&["LPUSH", "queue:default", &text]).await;
    }
    let reply = fetch_bytes(&hand, 1, 2, bounds::JOBS).await;
    assert!(reply.passed_over[0].starts_with("dead: WRONGTYPE"), "{:?}", reply.passed_over);
    assert_eq!((units(reply).len(), hand.n_queued().await), (0, 2));
}

#[tokio::test]
async fn an_idle_job_keeps_its_token_when_its_history_has_expired() {
    let hand = Hand::with("").await;
    let entry = format!("default\n{TEXT}");
    hand.run(&["HSET", &hand.inflight(), "000000000001:idle", &entry]).await;
    hand.push().await;
    let units = units(hand.fetch(1, 1).await.unwrap());
    assert_eq!((units.len(), units[0].is_idle), (1, true));
    assert_eq!((hand.n_queued().await, hand.n_inflight().await), (1, 1), "the other job waits");
}

/// The texts that another process of the fleet fetches for four slots.
async fn fetch_as(hand: &Hand, identity: &Identity, number: u64, now: Epoch) -> Vec<String> {
    let reply = ask(hand, identity, number, 4, bounds::JOBS, now).await;
    units(reply).iter().map(|unit| String::from_utf8_lossy(&unit.text).into_owned()).collect()
}

/// A process of the fleet, with a lease.
async fn join(hand: &Hand, host: &str) -> Identity {
    let identity = Identity::new(host.into());
    hand.run(&["SET", &format!("sidebake:lease:{identity}"), &format!("{LEASE} 0")]).await;
    hand.run(&["SADD", "sidebake:owners", &identity.to_string()]).await;
    identity
}

async fn holders(hand: &Hand) -> Vec<String> {
    redis::cmd("SMEMBERS").arg("sidebake:apart").query_async(&mut hand.server.connection().await).await.unwrap()
}

#[tokio::test]
async fn one_process_in_four_has_a_suspect_and_others_skip_it() {
    let hand = Hand::with("").await;
    let texts = ["a", "b", "c", "d", "e"].map(|jid| TEXT.replace("j", jid));
    let [suspect, healthy, other_suspect, healthy_too, last_suspect] = &texts;
    for text in &texts {
        hand.run(&["LPUSH", "queue:default", text]).await;
    }
    for text in [suspect, other_suspect, last_suspect] {
        has_history(&hand, text, 2, Some(1)).await;
    }
    let (first, second) = (join(&hand, "first").await, join(&hand, "second").await);
    let now = Epoch::now();
    assert_eq!(fetch_as(&hand, &first, 1, now).await, std::slice::from_ref(suspect));
    assert_eq!(fetch_as(&hand, &second, 1, now).await, [healthy.clone(), healthy_too.clone()]);
    assert_eq!(hand.server.queue("default").await, [other_suspect.clone(), last_suspect.clone()]);
    assert_eq!(holders(&hand).await, [first.to_string()]);

    // A dead process holds nothing.
    hand.run(&["DEL", &format!("sidebake:lease:{first}")]).await;
    assert_eq!(fetch_as(&hand, &second, 2, now).await, std::slice::from_ref(other_suspect));
    assert_eq!(holders(&hand).await, [second.to_string()]);
    // A process that requests jobs again holds nothing either.
    assert_eq!(fetch_as(&hand, &second, 3, now).await, std::slice::from_ref(last_suspect));

    // Of eight processes, two may have one.
    for text in [suspect, other_suspect, last_suspect] {
        hand.run(&["LPUSH", "queue:default", text]).await;
    }
    let mut n_fetched = Vec::new();
    let mut fleet = Vec::new();
    for n in 0..7 {
        fleet.push(join(&hand, &format!("more{n}")).await);
    }
    for identity in &fleet[..3] {
        n_fetched.push(fetch_as(&hand, identity, 1, now).await.len());
    }
    assert_eq!(n_fetched, [1, 0, 0], "the count includes the second process");
}

#[tokio::test]
async fn a_process_whose_clock_is_days_ahead_reads_the_history_of_a_job() {
    let hand = Hand::with("").await;
    hand.push().await;
    has_history(&hand, TEXT, 7, Some(3)).await;
    let ahead = Epoch::now().plus(std::time::Duration::from_secs(4 * 24 * 3600));
    let units = units(ask(&hand, &hand.identity, 1, 1, bounds::JOBS, ahead).await);
    assert!(units[0].is_poison(), "{units:?}");
}

#[tokio::test]
async fn an_oversized_job_behind_a_suspect_that_cannot_be_removed_is_not_doubled() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&["ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-lrem"]).await;
    let (other, now) = (join(&hand, "other").await, Epoch::now());
    hand.run(&["SADD", "sidebake:apart", &other.to_string()]).await;
    has_history(&hand, TEXT, 2, Some(1)).await;
    hand.push().await;
    hand.run(&["LPUSH", "queue:default", &"x".repeat(bounds::JOB + 1)]).await;
    for number in [1, 2] {
        let reply = ask(&hand, &hand.identity, number, 2, bounds::JOBS, now).await;
        assert!(reply.passed_over[0].starts_with("queue:default: "), "{:?}", reply.passed_over);
        assert_eq!((hand.n_queued().await, dead_texts(&hand).await.len()), (2, 0));
    }
    hand.run(&["ACL", "SETUSER", "narrow", "+lrem"]).await;
    ask(&hand, &hand.identity, 3, 2, bounds::JOBS, now).await;
    assert_eq!((hand.n_queued().await, dead_texts(&hand).await.len()), (1, 1));
}
