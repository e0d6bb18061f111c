//! The script by itself: what it answers to turns that come late, to a server that refuses, and to keys of a wrong type.

use sidebake::clock::Epoch;
use sidebake::event::{Event, Phase};
use sidebake::redis::{Redis, RedisError};
use sidebake::settings::Jobs;
use sidebake::sidekiq::custody::Running;
use sidebake::sidekiq::turn::{Demand, Effect, Fetched, Fingerprint, Reply, Settled, Settlement, Token, Turn};
use sidebake::sidekiq::{Identity, iteration};

use crate::afternoon::client;

const TEXT: &[u8] = b"{\"class\":\"BuildJob\"}";

/// A process without its tasks: a test takes its turns by hand.
struct Hand {
    server: world::Redis,
    redis: Redis,
    identity: Identity,
}

impl Hand {
    /// It has a lease; `user` is put before the server's address.
    async fn with(user: &str) -> Self {
        let server = world::Redis::start();
        let redis = client(&server.url().replace("redis://", &format!("redis://{user}")));
        let hand = Self { server, redis, identity: Identity::new("host".into()) };
        hand.run(&["SET", &format!("sidebake:lease:{}", hand.identity), "0"]).await;
        hand
    }

    async fn run(&self, command: &[&str]) {
        let mut connection = self.server.connection().await;
        redis::cmd(command[0]).arg(&command[1..]).exec_async(&mut connection).await.unwrap();
    }

    /// A turn with one free slot.
    async fn fetch(&self, number: u64, token: u64) -> Result<Reply, RedisError> {
        self.turn(number, &[], &[Token::nth(token, 0)]).await
    }

    async fn settle(&self, number: u64, token: u64, effects: Vec<Effect>) -> Result<Reply, RedisError> {
        let fingerprint = Fingerprint::of(TEXT);
        let end =
            Settlement { token: Token::nth(token, 0), fingerprint, is_processed: true, is_failed: false, effects };
        self.turn(number, &[end], &[]).await
    }

    async fn turn(&self, number: u64, settlements: &[Settlement], slots: &[Token]) -> Result<Reply, RedisError> {
        let demand = Demand { n_slots: slots.len(), queues: vec!["default".to_owned()] };
        self.turn_with(number, settlements, slots, &[demand]).await
    }

    async fn turn_with(
        &self,
        number: u64,
        settlements: &[Settlement],
        slots: &[Token],
        demands: &[Demand],
    ) -> Result<Reply, RedisError> {
        let turn = Turn { number, settlements, slots, demands };
        turn.send(&self.redis, &self.identity, &Jobs::default(), Epoch::now()).await
    }

    async fn push(&self) {
        self.run(&["LPUSH", "queue:default", std::str::from_utf8(TEXT).unwrap()]).await;
    }

    async fn n_queued(&self) -> usize {
        self.server.queue("default").await.len()
    }

    async fn n_inflight(&self) -> usize {
        self.server.hgetall(&format!("sidebake:inflight:{}", self.identity)).await.len()
    }
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
    assert_eq!(hand.n_queued().await, 1, "the job is still where it was");
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()), "the same turn may be sent again");
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()), "and is answered the same");
    assert_eq!((hand.n_queued().await, hand.n_inflight().await), (0, 1));
}

#[tokio::test]
async fn a_turn_that_a_full_redis_settled_is_later_as_well() {
    let hand = Hand::with("").await;
    hand.push().await;
    assert!(is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    hand.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(hand.settle(2, 1, Vec::new()).await.unwrap().settled, [Settled::Done]);
    assert_eq!(hand.fetch(3, 2).await.unwrap().fetched, Fetched::Full);
    hand.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    hand.push().await;
    assert!(is_stale(hand.fetch(1, 1).await), "it would fill a token that was settled");
    assert_eq!(hand.n_queued().await, 1);
}

#[tokio::test]
async fn a_full_redis_takes_every_kind_of_result() {
    let hand = Hand::with("").await;
    let (queue, text) = ("default".to_owned(), "{}".to_owned());
    let effects = [
        Effect::Push { queue: "callbacks".into(), text: text.clone() },
        Effect::PutBack { queue: queue.clone(), is_interrupted: false },
        Effect::PutBack { queue, is_interrupted: true },
        Effect::Retry { at: Epoch::now(), text },
        Effect::Bury { text: TEXT.to_vec() },
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
async fn what_cannot_be_done_leaves_the_job_in_flight() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&["ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-zadd"]).await;
    hand.push().await;
    assert!(is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    let refused = hand.settle(2, 1, vec![Effect::Bury { text: TEXT.to_vec() }]).await.unwrap();
    assert!(matches!(&refused.settled[..], [Settled::Refused(_)]), "{refused:?}");
    assert_eq!(hand.n_inflight().await, 1);
    assert_eq!(hand.server.get("stat:processed").await, None);

    hand.run(&["ACL", "SETUSER", "narrow", "+zadd"]).await;
    let taken = hand.settle(3, 1, vec![Effect::Bury { text: TEXT.to_vec() }]).await.unwrap();
    assert_eq!(taken.settled, [Settled::Done]);
    assert_eq!((hand.n_inflight().await, hand.server.sorted_set("dead").await.len()), (0, 1));
}

/// The keys of a worker, without those of the queues that are tried.
const NARROW: [&str; 8] =
    ["~sidebake:*", "~queues", "~retry", "~dead", "~stat:*", "~paused", "~queue:default", "~queue:callbacks"];

#[tokio::test]
async fn a_key_outside_of_the_acl_holds_up_what_needs_it_and_nothing_else() {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&[&["ACL", "SETUSER", "narrow", "on", ">secret", "+@all"], &NARROW[..]].concat()).await;
    let slots: Vec<Token> = (1..=3).map(|n| Token::nth(n, 0)).collect();
    for _ in 0..3 {
        hand.push().await;
    }
    assert!(matches!(hand.turn(1, &[], &slots[..2]).await.unwrap().fetched, Fetched::Units(units) if units.len() == 2));

    let end = |token: u64, queue: &str| Settlement {
        token: Token::nth(token, 0),
        fingerprint: Fingerprint::of(TEXT),
        is_processed: true,
        is_failed: false,
        effects: vec![Effect::Push { queue: queue.into(), text: "{}".into() }],
    };
    let ends = [end(1, "forbidden"), end(2, "callbacks")];
    let demand = Demand { n_slots: 1, queues: ["elsewhere", "nowhere", "default"].map(str::to_owned).to_vec() };
    let reply = hand.turn_with(2, &ends, &slots[2..], &[demand]).await.unwrap();
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
async fn keys_beside_the_point_may_have_any_type() {
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

/// The queues of what was fetched, in the order of the slots.
fn queues(reply: Reply) -> Vec<String> {
    let Fetched::Units(units) = reply.fetched else { panic!("{reply:?}") };
    units.into_iter().map(|unit| unit.queue).collect()
}

#[tokio::test]
async fn each_slot_is_filled_from_the_queues_that_are_asked_for_it() {
    let hand = Hand::with("").await;
    for queue in ["queue:a", "queue:b"] {
        for n in 0..3 {
            hand.run(&["LPUSH", queue, &n.to_string()]).await;
        }
    }
    let slots: Vec<Token> = (1..=6).map(|n| Token::nth(n, 0)).collect();
    let demand = |n_slots, queues: [&str; 2]| Demand { n_slots, queues: queues.map(str::to_owned).to_vec() };
    let demands = [demand(2, ["b", "a"]), demand(4, ["a", "b"])];
    let reply = hand.turn_with(1, &[], &slots, &demands).await.unwrap();
    assert_eq!(queues(reply), ["b", "b", "a", "a", "a", "b"]);
    let again = hand.turn_with(1, &[], &slots, &demands).await.unwrap();
    assert_eq!(queues(again), ["b", "b", "a", "a", "a", "b"], "what was lost is answered again");
    assert_eq!(hand.n_inflight().await, 6);
}

#[tokio::test]
async fn a_turn_that_is_sent_again_fills_what_was_left_from_the_right_queues() {
    let hand = Hand::with("").await;
    hand.run(&["LPUSH", "queue:b", "1"]).await;
    let slots = [Token::nth(1, 0), Token::nth(2, 1), Token::nth(3, 2)];
    let demands = ["a", "b", "c"].map(|queue| Demand { n_slots: 1, queues: vec![queue.to_owned()] });
    assert_eq!(queues(hand.turn_with(1, &[], &slots, &demands).await.unwrap()), ["b"]);
    for queue in ["queue:a", "queue:b", "queue:c"] {
        hand.run(&["LPUSH", queue, "2"]).await;
    }
    assert_eq!(queues(hand.turn_with(1, &[], &slots, &demands).await.unwrap()), ["a", "b", "c"]);
    assert_eq!(hand.server.queue("b").await, ["2"]);
}

#[tokio::test]
async fn a_queue_that_is_paused_is_left_alone() {
    let hand = Hand::with("").await;
    hand.run(&["SADD", "paused", "default"]).await;
    hand.push().await;
    assert!(!is_one_unit(&hand.fetch(1, 1).await.unwrap()));
    hand.run(&["SREM", "paused", "default"]).await;
    assert!(is_one_unit(&hand.fetch(2, 1).await.unwrap()));
}

#[tokio::test]
async fn a_worker_that_has_lost_a_job_shows_nothing_of_it() {
    let hand = Hand::with("").await;
    hand.push().await;
    let Fetched::Units(mut units) = hand.fetch(1, 1).await.unwrap().fetched else { panic!("nothing was fetched") };
    let running = Running {
        unit: units.remove(0),
        since: Epoch::now(),
        taken: Default::default(),
        iteration: Default::default(),
    };
    running.iteration.begin("j", 1);
    for (phase, is_shown) in [(Phase::Fetch, true), (Phase::Bake, false)] {
        running.iteration.progress.follow(&Event::PhaseStarted(phase));
        iteration::look(&hand.redis, &hand.identity, std::slice::from_ref(&running)).await.unwrap();
        assert_eq!(hand.server.hgetall("it-j").await.is_empty(), !is_shown);
        hand.run(&["DEL", "it-j", &format!("sidebake:inflight:{}", hand.identity)]).await;
    }
}
