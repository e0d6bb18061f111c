//! The poller on large sets.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use sidebake::bounds;
use sidebake::clock::Epoch;
use sidebake::settings::Jobs;
use sidebake::sidekiq::poller::enqueue_due;

use crate::harness::{Harness, client};

/// Adds `n` jobs of another class to the retry set, all due.
async fn add_others(server: &world::Redis, n: usize) {
    let mut connection = server.connection().await;
    let numbers: Vec<usize> = (0..n).collect();
    for numbers in numbers.chunks(1000) {
        let mut add = redis::cmd("ZADD");
        add.arg("retry");
        for number in numbers {
            add.arg(1).arg(format!(r#"{{"class":"MailJob","queue":"mails","jid":"{number:024x}"}}"#));
        }
        add.exec_async(&mut connection).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_does_not_move_all_due_jobs_first() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let mut add = redis::cmd("ZADD");
    add.arg("retry");
    for n in 0..30_000 {
        add.arg(1).arg(format!(r#"{{"class":"BuildJob","queue":"elsewhere","jid":"{n:024x}"}}"#));
    }
    add.exec_async(&mut connection).await.unwrap();
    let mut worker = harness.worker("jobs.poll_interval = \"100ms\"");
    let n_moved = async || harness.redis.queue("elsewhere").await.len();
    harness.until("the first job moves", async || n_moved().await > 0).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    let n_left = harness.redis.sorted_set("retry").await.len();
    assert!(n_left > 0, "the poller moved all jobs before it stopped");
    assert_eq!(n_left + n_moved().await, 30_000);
}

/// The commands that Redis runs meanwhile, those of scripts included.
async fn commands_of(server: &world::Redis, work: impl Future<Output = ()>) -> Vec<String> {
    let mut monitor = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    monitor.write_all(b"MONITOR\r\n").unwrap();
    let mut lines = BufReader::new(monitor).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("+OK"));
    work.await;
    redis::cmd("ECHO").arg("the end").exec_async(&mut server.connection().await).await.unwrap();
    lines.take_while(|line| !line.contains("\"the end\"")).collect()
}

/// Redis finds a rank in logarithmic time. It would pass every member on the way to a LIMIT.
#[tokio::test]
async fn pages_of_foreign_due_jobs_are_found_by_their_rank() {
    let server = world::Redis::start();
    add_others(&server, 5_000).await;
    let commands = commands_of(&server, async {
        let moved =
            enqueue_due(&client(&server.url()), &Jobs::default(), "retry", 0, usize::MAX, Epoch::now()).await.unwrap();
        assert_eq!(moved.n_moved, 0);
    })
    .await;
    let pages: Vec<&String> = commands.iter().filter(|command| command.contains("\"ZRANGE\" \"retry\"")).collect();
    assert!(pages.len() > 5, "{commands:#?}");
    assert!(pages.iter().all(|page| !page.contains("\"BYSCORE\"") && !page.contains("\"LIMIT\"")), "{pages:#?}");
}

#[tokio::test]
async fn a_due_job_behind_foreign_jobs_of_the_same_time_is_moved() {
    let server = world::Redis::start();
    add_others(&server, 1_200).await;
    let mut connection = server.connection().await;
    for (jid, score) in [("a", "-inf"), ("b", "1"), ("c", "2"), ("d", "4e9")] {
        let job = format!(r#"{{"class":"BuildJob","queue":"default","jid":"{jid}"}}"#);
        redis::cmd("ZADD").arg(&["retry", score, &job]).exec_async(&mut connection).await.unwrap();
    }
    let moved =
        enqueue_due(&client(&server.url()), &Jobs::default(), "retry", 0, usize::MAX, Epoch::now()).await.unwrap();
    let queue = server.queue("default").await;
    assert_eq!((moved.n_moved, queue.len()), (3, 3), "{queue:?}");
    assert_eq!(server.sorted_set("retry").await.len(), 1_201, "only jobs of others and the job that is not due stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_that_due_jobs_cannot_be_moved_is_logged_once() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["queue:odd", "x"]).exec_async(&mut connection).await.unwrap();
    for jid in ["a", "b"] {
        let job = format!(r#"{{"class":"BuildJob","queue":"odd","jid":"{jid}"}}"#);
        redis::cmd("ZADD").arg(&["retry", "1", &job]).exec_async(&mut connection).await.unwrap();
    }
    let worker = harness.worker("jobs.poll_interval = \"100ms\"");
    let n_failed = async || {
        let stats: String =
            redis::cmd("INFO").arg("errorstats").query_async(&mut harness.redis.connection().await).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("errorstat_WRONGTYPE:count="));
        line.map_or(0, |count| count.parse::<usize>().unwrap())
    };
    harness.until("the poller tries several times", async || n_failed().await >= 8).await;
    assert_eq!(worker.logged("due_jobs_stuck").len(), 1, "{}", worker.log());
    assert_eq!(harness.redis.sorted_set("retry").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_jobs_are_moved_and_cancelled_ones_are_found() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    // Three replies are not enough for either.
    let args = "x".repeat(bounds::PAGE / 3);
    for n in 0..10 {
        let job =
            |jid: String| format!(r#"{{"class":"BuildJob","queue":"elsewhere","args":["{args}"],"jid":"{jid}"}}"#);
        redis::cmd("ZADD").arg(&["retry", "1", &job(format!("due{n}"))]).exec_async(&mut connection).await.unwrap();
        redis::cmd("ZADD").arg(&["retry", "4e9", &job(format!("late{n}"))]).exec_async(&mut connection).await.unwrap();
    }
    let now = Epoch::now();
    let moved =
        enqueue_due(&client(&harness.redis.url()), &Jobs::default(), "retry", 0, usize::MAX, now).await.unwrap();
    assert_eq!((moved.n_moved, harness.redis.queue("elsewhere").await.len()), (10, 10));

    for n in 0..10 {
        let mark = [&format!("it-late{n}"), "cancelled", "1"];
        redis::cmd("HSET").arg(&mark).exec_async(&mut connection).await.unwrap();
    }
    let _worker = harness.worker("jobs.poll_interval = \"100ms\"");
    let n_moved = async || harness.redis.queue("elsewhere").await.len();
    harness.until("all cancelled jobs are moved", async || n_moved().await == 20).await;
}

#[tokio::test]
async fn a_page_has_no_more_members_than_fit_and_continues_where_it_ended() {
    let server = world::Redis::start();
    let mut connection = server.connection().await;
    let texts: Vec<String> = (0..7).map(|n| format!("{n}{}", "x".repeat(99))).collect();
    for (n, text) in texts.iter().enumerate() {
        redis::cmd("ZADD").arg("retry").arg(n).arg(text).exec_async(&mut connection).await.unwrap();
    }
    let page = redis::Script::new(include_str!("../../src/sidekiq/page.lua"));
    for (by, max_bytes, sizes) in [("rank", 250, vec![2, 2]), ("scan", 250, vec![2, 2, 2, 1]), ("rank", 1, vec![1; 4])]
    {
        let (mut seen, mut replies) = (Vec::new(), Vec::new());
        loop {
            let mut call = page.key("retry");
            call.arg(by).arg(0).arg(100).arg(seen.len()).arg(max_bytes).arg(3).arg(1);
            type Reply = (u64, bool, usize, usize, usize, usize, Vec<(String, f64)>);
            let (cursor, is_last, n_due, n_old, n_read, size_bytes, members): Reply =
                call.invoke_async(&mut connection).await.unwrap();
            assert_eq!((cursor, n_due, n_old, n_read, size_bytes), (0, 4, 2, members.len(), 700));
            replies.push(members.len());
            seen.extend(members.into_iter().map(|(text, _)| text));
            if is_last {
                break;
            }
        }
        seen.sort();
        // By rank, reading ends at the last due member.
        let n_members = if by == "rank" { 4 } else { 7 };
        assert_eq!((replies, seen.as_slice()), (sizes, &texts[..n_members]), "by {by}, {max_bytes} bytes");
    }
}

/// What Redis has sent to all clients.
async fn n_bytes_sent(server: &world::Redis) -> usize {
    let stats: String = redis::cmd("INFO").arg("stats").query_async(&mut server.connection().await).await.unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    line.unwrap().parse().unwrap()
}

/// A job as Ruby's client puts it into a set, with more fields.
fn of_ruby(jid: &str, more: &str) -> String {
    format!(
        r#"{{"retry":true,"queue":"mails","class":"MailJob","args":[],"jid":"{jid}","created_at":1795491695123{more}}}"#
    )
}

async fn add(server: &world::Redis, set: &str, score: f64, member: &str) {
    redis::cmd("ZADD").arg(set).arg(score).arg(member).exec_async(&mut server.connection().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn due_jobs_that_are_left_to_ruby_are_read_once() {
    for poll_others in ["none", "plain"] {
        let harness = Harness::start();
        let mut connection = harness.redis.connection().await;
        let numbers: Vec<usize> = (0..20_000).collect();
        for numbers in numbers.chunks(1000) {
            let mut add = redis::cmd("ZADD");
            add.arg("retry");
            for n in numbers {
                add.arg(1).arg(of_ruby(&format!("{n:024x}"), r#","lock":"until_executed""#));
            }
            add.exec_async(&mut connection).await.unwrap();
        }
        let _worker = harness.worker(&format!("jobs.poll_interval = \"100ms\"\njobs.poll_others = \"{poll_others}\""));
        // A job of this worker moves at once. Then the others are read, for the only time.
        let own = r#"{"class":"BuildJob","queue":"elsewhere","jid":"own"}"#;
        add(&harness.redis, "retry", 2.0, own).await;
        harness.until("the first look", async || harness.redis.queue("elsewhere").await.len() == 1).await;
        let is_quiet = async || {
            let before = n_bytes_sent(&harness.redis).await;
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            n_bytes_sent(&harness.redis).await - before < 25_000
        };
        harness.until("the others have been read", is_quiet).await;
        // Some twenty polls.
        let before = n_bytes_sent(&harness.redis).await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let n_bytes = n_bytes_sent(&harness.redis).await - before;
        assert!(n_bytes < 100_000, "{poll_others}: {n_bytes} bytes in two seconds");
        assert_eq!(harness.redis.sorted_set("retry").await.len(), 20_000);
        // New ones are found, in front of the others too.
        for (n, score) in [(2, 0.5), (3, 3.0)] {
            add(&harness.redis, "retry", score, &own.replace("own", &format!("own{n}"))).await;
            harness.until("a new job moves", async || harness.redis.queue("elsewhere").await.len() == n).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn due_jobs_of_rails_move_beside_many_listed_processes() {
    let harness = Harness::start();
    harness.list_ruby_processes(60).await;
    let plain = of_ruby("plain", r#","retry_count":0,"failed_at":1795491696123,"error_message":"x","error_class":"X""#);
    let locked = of_ruby("locked", r#","lock":"until_executed""#);
    for (set, member) in [("retry", &plain), ("schedule", &of_ruby("scheduled", "")), ("retry", &locked)] {
        add(&harness.redis, set, 1.0, member).await;
    }
    let _workers = [(); 3].map(|()| harness.worker("jobs.poll_interval = \"500ms\""));
    harness.until("two jobs move", async || harness.redis.queue("mails").await.len() == 2).await;
    assert_eq!(harness.redis.sorted_set("retry").await, [(locked, 1.0)], "a lock needs Ruby's client middleware");
    let moved = harness.redis.queue("mails").await;
    let moved = moved.iter().find(|job| job.contains("plain")).unwrap();
    let (kept, added) = moved.split_once(r#","enqueued_at":"#).unwrap();
    assert_eq!(format!("{kept}}}"), plain);
    assert!(added.trim_end_matches('}').parse::<u64>().unwrap() > 1_795_491_695_123);
    assert!(harness.redis.smembers("queues").await.contains(&"mails".to_owned()));
    // One worker polls for all, as often as the settings say.
    assert_eq!(harness.redis.keys("sidebake:poller:*").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_polls_when_the_one_that_polled_dies() {
    let harness = Harness::start();
    let mut workers = [(); 2].map(|()| harness.worker("jobs.poll_interval = \"200ms\""));
    harness.until("one polls", async || !harness.redis.keys("sidebake:poller:*").await.is_empty()).await;
    let key = harness.redis.keys("sidebake:poller:*").await.remove(0);
    let holder = harness.redis.get(&key).await.unwrap();
    let is_holder = |worker: &world::Worker| holder.contains(&format!(":{}:", worker.pid()));
    let dying = workers.iter_mut().find(|worker| is_holder(worker)).unwrap();
    dying.signal("KILL");
    dying.ended().await;
    harness
        .until("the other one polls", async || harness.redis.get(&key).await.is_some_and(|other| other != holder))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_move_a_job_lets_another_one_poll() {
    let harness = Harness::start();
    let narrow = ["SETUSER", "narrow", "on", ">pw", "+@all", "~queue:default", "~queues", "~[^q]*"];
    redis::cmd("ACL").arg(&narrow).exec_async(&mut harness.redis.connection().await).await.unwrap();
    let url = harness.redis.url().replace("redis://", "redis://narrow:pw@");
    let interval = "jobs.poll_interval = \"200ms\"";
    let narrow = harness.worker_with_variables(&harness.config(interval), &[], &[("SIDEBAKE__REDIS__URL", url)]);
    harness.until("it polls", async || !harness.redis.keys("sidebake:poller:*").await.is_empty()).await;
    let job = r#"{"class":"BuildJob","queue":"elsewhere","jid":"a"}"#;
    add(&harness.redis, "retry", 1.0, job).await;
    world::wait_for("the refusal", || !narrow.logged("due_jobs_stuck").is_empty()).await;
    let _able = harness.worker(interval);
    harness.until("the job moves", async || harness.redis.queue("elsewhere").await.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_does_not_wait_for_many_due_jobs_of_rails() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let n_others = 3 * bounds::OTHERS_DUE + 7;
    let mut add_all = redis::cmd("ZADD");
    add_all.arg("retry");
    for n in 0..n_others {
        let more = if n % 2 == 0 { "" } else { r#","lock":"x""# };
        add_all.arg(1.0 + n as f64).arg(of_ruby(&format!("{n:024x}"), more));
    }
    add_all.arg(1e9).arg(r#"{"class":"BuildJob","queue":"elsewhere","jid":"own"}"#);
    add_all.exec_async(&mut connection).await.unwrap();
    let commands = commands_of(&harness.redis, async {
        // The first poll comes soon, and the second one would come too late.
        let _worker = harness.worker("jobs.poll_interval = \"3s\"");
        let n_moved = async || harness.redis.queue("mails").await.len();
        harness.until("all plain jobs move", async || n_moved().await == n_others.div_ceil(2)).await;
    })
    .await;
    let pushes: Vec<&String> =
        commands.iter().filter(|command| command.contains("lua") && command.contains("PUSH\"")).collect();
    assert!(pushes[0].contains("queue:elsewhere"), "{}", pushes[0]);
    assert_eq!(harness.redis.sorted_set("retry").await.len(), n_others / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_how_late_jobs_of_rails_are_beside_workers() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    for (n, info) in ["{}", r#"{"version":"8.1.7"}"#].into_iter().enumerate() {
        let identity = format!("rails:{n}:abcdef");
        let mut beat = redis::pipe();
        beat.cmd("SADD").arg(&["processes", &identity]).cmd("HSET").arg(&[&identity, "info", info]);
        beat.exec_async(&mut connection).await.unwrap();
    }
    redis::cmd("SADD").arg(&["processes", "gone:1:abcdef"]).exec_async(&mut connection).await.unwrap();
    let none = "jobs.poll_others = \"none\"";
    let _workers = [(); 2].map(|()| harness.worker(none));
    let is_worker = |identity: &String| !identity.starts_with("rails:") && !identity.starts_with("gone:");
    let n_listed = async || harness.redis.smembers("processes").await.into_iter().filter(is_worker).count();
    harness.until("the workers are listed", async || n_listed().await == 2).await;
    for (settings, health, detail) in [
        (none, "yellow", "2 Ruby processes beside 2 workers look every 10 s, not 5 s: set jobs.poll_others"),
        ("", "green", "2 Ruby processes beside 2 workers look every 10 s, and workers move plain jobs every 5 s"),
    ] {
        let output = harness.run(&["doctor", "--json"], settings);
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let found = findings.iter().find(|finding| finding["name"] == "due jobs of Rails").unwrap();
        assert!(found["health"] == health && found["detail"].as_str().unwrap().starts_with(detail), "{found:#}");
    }
}
