//! Streams that no BuildKit would write.

use super::*;
use crate::text;

#[test]
fn whatever_is_printed_and_however_steps_are_called_what_is_kept_is_bounded() {
    let name = format!("[1/1] RUN true >/dev/null {}", "word ".repeat(12_000));
    let mut progress = progress_with(&["a", "b"], &[]);
    for n in 0..bounds::VERTICES + 2000 {
        let mut report = vertex(&n.to_string(), if n % 100 == 0 { &name } else { &name[..2000] }, false);
        report["vertexes"][0]["error"] = json!(format!("process \"{}\" exit code: 1", &name[..500]));
        progress.line(report.to_string().as_bytes(), &mut |_| {});
    }
    let (newlines, mut n_lines) = (log("0", &vec![b'\n'; 100_000]).to_string(), 0);
    for _ in 0..10 {
        progress.line(newlines.as_bytes(), &mut |event| n_lines += lines(&[event]).len());
    }
    assert_eq!(n_lines, 1_000_000);
    let names: usize = progress.vertices.iter().map(|vertex| vertex.name.len()).sum();
    let errors: usize = progress.vertices.iter().filter_map(Vertex::own_error).map(Said::size).sum();
    assert!(names <= bounds::STEP_NAMES + bounds::VERTICES * SHORT_NAME, "{names} bytes of names");
    assert!(errors <= bounds::ERRORS && errors > bounds::ERRORS / 2, "{errors} bytes of errors");
    assert_eq!((progress.vertices.len(), progress.failed().count()), (bounds::VERTICES, bounds::VERTICES));
    let mut notices = Vec::new();
    progress.finish(&mut |event| notices.push(event));
    assert!(
        matches!(&notices[..], [Event::Notice(text)] if text.contains("2000 reports were left out")),
        "{notices:?}"
    );
}

#[test]
fn a_step_takes_little_beside_its_texts() {
    // Its record and its place by digest, each with room to grow; the digest; two bytes for each of a hundred targets.
    assert!(2 * (size_of::<Vertex>() + size_of::<(Box<str>, u32)>()) + MAX_DIGEST + 200 <= 768);
}

#[test]
fn a_stream_of_nothing_but_new_things_is_bounded() {
    let mut progress = progress_with(&["web"], &[]);
    for n in 0..20_000 {
        let status = json!({"statuses": [{"vertex": format!("{}{n}", "d".repeat(n % 300)), "completed": "2026-11-24T04:05:56Z",
            "id": format!("pushing manifest for registry.example.test/shop/web:dev@sha256:{n}")}]});
        said(&mut progress, &status);
    }
    let pushes: usize = progress.vertices.iter().map(|vertex| vertex.pushed.len()).sum();
    assert!(pushes == bounds::PUSHES && progress.vertices.len() <= bounds::VERTICES);
    assert!(progress.by_digest.keys().all(|digest| digest.len() <= MAX_DIGEST));
}

#[test]
fn a_line_that_was_cut_is_counted_and_its_rest_is_no_text() {
    let mut progress = progress_with(&["t"], &[]);
    let mut line = vertex("v", "[1/1] RUN x", false).to_string().into_bytes();
    line.resize(bounds::LINE, b'x');
    let mut events = Vec::new();
    progress.line(&line, &mut |event| events.push(event));
    progress.finish(&mut |event| events.push(event));
    assert!(matches!(&events[..], [Event::Notice(text)] if text.contains("longer than 4194304 bytes")), "{events:?}");
    assert_eq!(progress.said().lines().count(), 0);
}

#[test]
fn every_event_is_plain_text() {
    let mut progress = progress_with(&["t"], &[]);
    let mut report = vertex("v", "[1/1] RUN \u{1b}[31mx\0\u{202e}", true);
    report["vertexes"][0]["error"] = json!("process \"\u{1b}[2J\0\"");
    report["logs"] = log("v", b"\x1b[1mbold\x07\x9b\n")["logs"].take();
    let told = said(&mut progress, &report);
    let mut n_texts = 0;
    let mut assert_plain = |shown: &str| {
        n_texts += 1;
        assert_eq!(text::plain(shown), shown);
    };
    for event in &told {
        match event {
            Event::StepStarted(step) => assert_plain(&step.name),
            Event::StepOutput { lines, .. } => lines.iter().for_each(&mut assert_plain),
            Event::StepEnded { error, .. } => assert_plain(error.as_ref().expect("an error")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(n_texts, 3);
}
