//! Builds that print more than a stream keeps, and a Redis that is away.

use std::time::Duration;

use proptest::prelude::*;

use super::printing::LAST;
use super::*;
use crate::event::Status;

const LIMITS: Limits = Limits { step_bytes: 64 << 10, build_bytes: 1 << 20 };

fn pool(max_bytes: usize) -> Arc<Pool> {
    Arc::new(Pool::new(max_bytes, 1))
}

fn step(name: &str) -> Step {
    Step { target: Some("web".into()), name: name.into() }
}

fn buffer(pool: &Arc<Pool>) -> Buffer {
    let mut buffer = Buffer::new(LIMITS, Arc::clone(pool));
    buffer.begin(&LogRecord::Attempt { jid: "j".into(), number: 1, removed_bytes: 0 }, 0);
    buffer
}

fn print(buffer: &mut Buffer, step: &Step, line: impl AsRef<str>) {
    buffer.take_in(&Event::StepOutput { step: step.clone(), lines: line.as_ref().into() });
}

fn end_step(buffer: &mut Buffer, step: &Step) {
    let took = std::time::Duration::ZERO;
    buffer.take_in(&Event::StepEnded { step: step.clone(), is_cached: false, took, error: None });
}

fn end(buffer: &mut Buffer) {
    buffer.take_in(&Event::Ended {
        status: Status::Succeeded,
        reason: None,
        message: None,
        is_over: true,
        log_url: None,
    });
}

/// Everything that can be sent now, as Redis takes it.
fn sent(buffer: &mut Buffer) -> Vec<LogRecord> {
    let mut records = Vec::new();
    while !buffer.is_empty() {
        let entries = buffer.fill(256 << 10).clone();
        for entry in &entries {
            records.extend(serde_json::from_str::<Vec<LogRecord>>(&entry.records).expect("records"));
        }
        buffer.acknowledge(entries.back().expect("an entry").number);
    }
    records
}

/// Lines, and marks as `…N`.
fn output(records: &[LogRecord]) -> Vec<String> {
    let output = records.iter().flat_map(|record| match record {
        LogRecord::Output { lines, .. } => lines.clone(),
        LogRecord::Missing { lines, .. } => vec![format!("…{lines}")],
        _ => Vec::new(),
    });
    output.collect()
}

#[test]
fn a_long_step_keeps_its_first_and_last_lines_with_a_mark_between() {
    let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
    let mut buffer = buffer(&pool);
    (0..100_000).for_each(|n| print(&mut buffer, &make, format!("line {n}")));
    end_step(&mut buffer, &make);
    let output = output(&sent(&mut buffer));
    let mark = output.iter().position(|line| line.starts_with('…')).expect("a mark");
    assert_eq!((output[0].as_str(), output.last().map(String::as_str)), ("line 0", Some("line 99999")));
    assert_eq!(output[mark], format!("…{}", 100_000 - (output.len() - 1)));
    assert!(mark > 1000 && output.len() - mark > 400, "{mark} {}", output.len());
    assert_eq!(pool.used.load(Ordering::Relaxed), 0);
}

#[test]
fn first_lines_are_sent_before_the_step_ends() {
    let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
    let mut buffer = buffer(&pool);
    for n in 0..10 {
        print(&mut buffer, &make, n.to_string());
        assert_eq!(output(&sent(&mut buffer)), [n.to_string()]);
    }
}

/// The `progress` records: their lines and their last line.
fn progress(records: &[LogRecord]) -> Vec<(u64, String)> {
    let progress = records.iter().filter_map(|record| match record {
        LogRecord::Progress { lines, last, .. } => Some((*lines, last.clone())),
        _ => None,
    });
    progress.collect()
}

#[test]
fn a_step_whose_last_lines_wait_shows_its_progress_now_and_then() {
    let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
    let mut buffer = buffer(&pool);
    let start = Instant::now();
    let (mut records, mut n_lines, mut told_at) = (Vec::new(), 0, Vec::new());
    // A line in each tenth of a second, for two hours.
    for n in 0..72_000_u32 {
        print(&mut buffer, &make, format!("line {n}"));
        let now = start + Duration::from_millis(100) * n;
        buffer.tell_progress(now);
        let new = sent(&mut buffer);
        if !progress(&new).is_empty() {
            told_at.push(n / 10);
        }
        n_lines += output(&new).len();
        records.extend(new);
    }
    let told = progress(&records);
    assert!(told.iter().all(|(lines, last)| *last == format!("line {}", n_lines as u64 + lines - 1)), "{told:?}");
    let pauses: Vec<u32> = told_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] == 3 && pauses.iter().all(|pause| *pause >= 3) && told.len() > 15, "{pauses:?}");
    end_step(&mut buffer, &make);
    records.extend(sent(&mut buffer));
    let output = output(&records);
    let mut lines: Vec<&String> = output.iter().filter(|line| !line.starts_with('…')).collect();
    let n_shown = lines.len();
    lines.dedup();
    assert_eq!((lines.len(), lines[n_shown - 1].as_str()), (n_shown, "line 71999"), "each line comes once");
    assert_eq!(pool.used.load(Ordering::Relaxed), 0);
}

fn has_untold_progress(buffer: &Buffer) -> bool {
    buffer.steps.values().any(|printing| printing.progress.is_untold())
}

#[test]
fn progress_is_told_once_and_never_after_the_end_of_a_step() {
    let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
    let mut buffer = buffer(&pool);
    let start = Instant::now();
    print(&mut buffer, &make, "short");
    assert!(!has_untold_progress(&buffer), "its lines are there");
    (0..20_000).for_each(|n| print(&mut buffer, &make, n.to_string()));
    assert!(has_untold_progress(&buffer));
    for second in [0, 1, 10, 11] {
        buffer.tell_progress(start + Duration::from_secs(second));
    }
    assert_eq!(progress(&sent(&mut buffer)).len(), 1);
    print(&mut buffer, &make, "x".repeat(300));
    buffer.tell_progress(start + Duration::from_secs(20));
    assert_eq!(progress(&sent(&mut buffer))[0].1, "x".repeat(LAST));
    print(&mut buffer, &make, "last");
    end_step(&mut buffer, &make);
    buffer.tell_progress(start + Duration::from_secs(60));
    assert!(progress(&sent(&mut buffer)).is_empty() && !has_untold_progress(&buffer));
}

#[test]
fn steps_of_a_batch_keep_their_lines_in_order() {
    let (pool, steps) = (pool(8 << 20), [step("[1/2] RUN a"), step("[1/2] RUN b")]);
    let mut buffer = buffer(&pool);
    (0..100).for_each(|n| print(&mut buffer, &steps[n % 2], n.to_string()));
    let records = sent(&mut buffer);
    let lines = |name: &str| -> Vec<String> {
        let of_step = records.iter().filter(|record| matches!(record, LogRecord::Output { of, .. } if of.step == name));
        output(&of_step.cloned().collect::<Vec<_>>())
    };
    let expected = |first| (first..100).step_by(2).map(|n: usize| n.to_string()).collect::<Vec<_>>();
    assert_eq!((lines("[1/2] RUN a"), lines("[1/2] RUN b")), (expected(0), expected(1)));
    assert_eq!(records.len(), 3, "one record for each step, and the attempt's");
}

#[test]
fn the_stream_of_a_build_stays_within_its_bound_and_ends_with_its_end() {
    let pool = pool(8 << 20);
    let mut buffer = buffer(&pool);
    let start = Instant::now();
    for n in 0..600 {
        let make = step(&format!("[{n}/600] RUN make {}", "\"".repeat(900)));
        buffer.take_in(&Event::StepStarted(make.clone()));
        // One line in each batch is the form that takes the most bytes.
        for line in 0..20 {
            print(&mut buffer, &make, format!("\\\t\"{line}\""));
            buffer.fill(1 << 20);
            let last = buffer.n_entries;
            buffer.acknowledge(last);
        }
        (0..150).for_each(|_| print(&mut buffer, &make, "x".repeat(100)));
        (0..30).for_each(|second| {
            print(&mut buffer, &make, "\"".repeat(100));
            buffer.tell_progress(start + Duration::from_secs(n * 90 + second * 3));
        });
        end_step(&mut buffer, &make);
    }
    end(&mut buffer);
    let records = sent(&mut buffer);
    assert!(matches!(records.last(), Some(LogRecord::End { .. })), "{:?}", records.last());
    assert!(records.iter().any(|record| matches!(record, LogRecord::LeftOut { .. })));
    assert!(buffer.total_bytes <= LIMITS.build_bytes, "{}", buffer.total_bytes);
    assert!(buffer.total_bytes > LIMITS.build_bytes / 2, "{}", buffer.total_bytes);
}

#[test]
fn what_redis_does_not_take_is_bounded_and_counted() {
    let (pool, make) = (pool(128 << 10), step("[2/2] RUN make"));
    let mut buffer = buffer(&pool);
    let n_lines = 50_000;
    for n in 0..n_lines {
        print(&mut buffer, &make, format!("line {n}"));
        buffer.take_in(&Event::Notice("a notice".into()));
        buffer.fill(256 << 10);
        assert!(pool.used.load(Ordering::Relaxed) <= (128 << 10) + bounds::LOG_ENTRY);
    }
    end_step(&mut buffer, &make);
    end(&mut buffer);
    let records = sent(&mut buffer);
    let (mut n_there, mut n_missing, mut n_notices) = (0, 0, 0);
    for record in &records {
        match record {
            LogRecord::Output { lines, .. } => n_there += lines.len() as u64,
            LogRecord::Missing { lines, .. } => n_missing += lines,
            LogRecord::LeftOut { records, lines } => {
                n_notices += records;
                n_missing += lines;
            }
            LogRecord::Notice { .. } | LogRecord::StepEnd { .. } => n_notices += 1,
            _ => {}
        }
    }
    assert_eq!(n_there + n_missing, n_lines, "every line is there or counted");
    assert_eq!(n_notices, n_lines + 1, "every notice and the step's end is there or counted");
    assert!(matches!(records.last(), Some(LogRecord::End { .. })));
    assert_eq!(pool.used.load(Ordering::Relaxed), 0);
}

#[test]
fn a_build_that_fills_the_pool_leaves_the_others_their_share() {
    let pool = Arc::new(Pool::new(256 << 10, 4));
    let (mut greedy, mut modest) = (buffer(&pool), buffer(&pool));
    let (make, test) = (step("RUN make"), step("RUN test"));
    (0..10_000).for_each(|n| print(&mut greedy, &make, n.to_string()));
    (0..100).for_each(|n| print(&mut modest, &test, n.to_string()));
    assert_eq!(output(&sent(&mut modest)).len(), 100);
}

#[test]
fn a_second_attempt_has_the_room_that_the_first_left() {
    let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
    let mut buffer = Buffer::new(LIMITS, Arc::clone(&pool));
    assert!(buffer.is_too_much(LIMITS.build_bytes / 2 + 1) && !buffer.is_too_much(LIMITS.build_bytes / 2));
    buffer.begin(&LogRecord::Attempt { jid: "j".into(), number: 2, removed_bytes: 0 }, LIMITS.build_bytes / 2);
    for _ in 0..100 {
        (0..10_000).for_each(|n| print(&mut buffer, &make, n.to_string()));
        end_step(&mut buffer, &make);
        sent(&mut buffer);
    }
    end(&mut buffer);
    sent(&mut buffer);
    assert!(buffer.total_bytes <= LIMITS.build_bytes, "{}", buffer.total_bytes);
}

proptest! {
    #[test]
    fn every_line_is_there_once_and_in_order_wherever_the_batches_end(
        lines in prop::collection::vec("[ -~\t\"\\\\é␀]{0,40}", 1..60),
        cuts in prop::collection::vec(any::<bool>(), 60),
    ) {
        let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
        let mut buffer = buffer(&pool);
        let mut records = Vec::new();
        for (line, is_cut) in lines.iter().zip(cuts) {
            print(&mut buffer, &make, line.clone());
            if is_cut {
                records.extend(sent(&mut buffer));
            }
        }
        end_step(&mut buffer, &make);
        records.extend(sent(&mut buffer));
        prop_assert_eq!(output(&records), lines);
        prop_assert_eq!(pool.used.load(Ordering::Relaxed), 0);
    }
}
