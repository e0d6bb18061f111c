//! Streams with secrets in them.

use proptest::prelude::*;

use super::*;

/// Every line that a step shows when it prints these chunks.
fn shown_of(secrets: &[&str], chunks: &[&[u8]]) -> Vec<String> {
    let mut progress = progress_with(&["t"], secrets);
    said(&mut progress, &vertex("v", "[1/1] RUN x", false));
    let mut events: Vec<Event> = chunks.iter().flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
    events.extend(said(&mut progress, &vertex("v", "[1/1] RUN x", true)));
    lines(&events).into_iter().map(str::to_owned).collect()
}

const SECRETS: [&str; 2] =
    ["hunter2+of/the é build", "-----BEGIN KEY-----\nabcdefgh12345678\nijklmnop=\n-----END KEY-----"];

/// A text with the secrets in several forms.
fn telling() -> String {
    let base64 = BASE64_STANDARD.encode(format!("x{}y", SECRETS[0]));
    let json = serde_json::to_string(SECRETS[1]).expect("a text");
    let indented = SECRETS[1].replace('\n', "\n  #12 | ");
    format!("a {} b\n{base64}\r\n\x1b[31m{json}\x1b[0m\n{indented}\nhunter2%2Bof%2Fthe%20%C3%A9%20build", SECRETS[0])
}

#[test]
fn a_secret_is_masked_wherever_a_chunk_ends() {
    let text = telling();
    let whole = shown_of(&SECRETS, &[text.as_bytes()]);
    let all = whole.join("\n");
    assert_eq!(all.matches("***").count(), 1 + 1 + 4 + 4 + 1, "{all}");
    for secret in SECRETS {
        for part in secret.as_bytes().windows(8).map(|part| String::from_utf8_lossy(part).into_owned()) {
            assert!(!all.contains(&part), "{part:?} is in {all}");
        }
    }
    for at in 0..=text.len() {
        let (before, after) = text.as_bytes().split_at(at);
        assert_eq!(shown_of(&SECRETS, &[before, after]), whole, "split at {at}");
    }
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    assert_eq!(shown_of(&SECRETS, &bytes), whole);
}

#[test]
fn the_last_line_of_a_step_needs_no_end() {
    let mut progress = progress_with(&["t"], &["hunter2"]);
    said(&mut progress, &vertex("v", "[1/1] RUN x", false));
    assert_eq!(lines(&said(&mut progress, &log("v", b"one\ntwo"))), ["one"]);
    assert_eq!(lines(&said(&mut progress, &log("v", b" and"))), Vec::<&str>::new());
    // The end of a step stands before what it printed last.
    let mut end = vertex("v", "[1/1] RUN x", true);
    end["logs"] = log("v", b" hunt")["logs"].take();
    let events = said(&mut progress, &end);
    assert_eq!(lines(&events), ["two and hunt"]);
    assert!(matches!(events.last(), Some(Event::StepEnded { .. })), "{events:?}");
    // One that is killed never ends.
    said(&mut progress, &log("w", b"and hunter2"));
    let mut events = Vec::new();
    progress.finish(&mut |event| events.push(event));
    assert_eq!(lines(&events), ["and ***"]);
}

#[test]
fn a_secret_across_the_cut_of_a_long_line_is_masked() {
    let secret = "s3cret-of-the-build";
    for at in [8170, 8180, 8190, 8192, 65_530, 65_536] {
        for size in [1000, 4096, 100_000] {
            let line = format!("{}{secret}{}\n", ".".repeat(at), "=".repeat(12_000));
            let mut progress = progress_with(&["t"], &[secret]);
            let chunks = line.as_bytes().chunks(size);
            let events: Vec<Event> = chunks.flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
            let shown = lines(&events).concat();
            assert!(!secret.as_bytes().windows(4).any(|part| shown.contains(std::str::from_utf8(part).expect("text"))));
            assert!(at > bounds::OUTPUT_LINE - 20 || shown.contains("***="), "at {at}, by {size}");
        }
    }
}

proptest! {

    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_of_any_size_show_the_same(cuts in prop::collection::vec(0_usize..300, 0..12)) {
        let text = telling();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(shown_of(&SECRETS, &chunks), shown_of(&SECRETS, &[text.as_bytes()]));
    }

    #[test]
    fn no_part_of_a_secret_is_shown_wherever_it_is_and_however_it_arrives(
        secret in "[jkqvxz]{4,40}",
        at in prop_oneof![0_usize..100, 8150_usize..8200, 65_450_usize..65_600],
        size in prop_oneof![1_usize..60, 1000_usize..20_000],
        has_end in any::<bool>(),
    ) {
        let line = format!("{}{secret}{}{}", ".".repeat(at), "=".repeat(200), if has_end { "\n" } else { "" });
        let mut progress = progress_with(&["t"], &[&secret]);
        // Small pieces only around the secret.
        let (before, rest) = line.as_bytes().split_at(at.saturating_sub(30));
        let chunks = before.chunks(20_000).chain(rest.chunks(size));
        let mut events: Vec<Event> = chunks.flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
        progress.finish(&mut |event| events.push(event));
        let shown = lines(&events).concat();
        let part = secret.as_bytes().windows(4).find(|part| shown.contains(std::str::from_utf8(part).expect("text")));
        prop_assert_eq!(part, None);
        prop_assert!(at > bounds::OUTPUT_LINE - 40 || shown.contains("***="));
    }
}

#[test]
fn names_and_errors_are_masked_before_they_are_cut() {
    let (secret, name) = ("s3cret-of-the-build", "x".repeat(bounds::STEP_NAME - 40));
    let mut report = vertex("v", &format!("[1/1] RUN {name}{secret}{name}"), true);
    report["vertexes"][0]["error"] = json!(format!("process \"{}{secret}{}\"", "x".repeat(3030), "y".repeat(3000)));
    let mut progress = progress_with(&["t"], &[secret]);
    let told = format!("{:?}", said(&mut progress, &report));
    assert!(!told.contains("s3c") && !told.contains("build"), "{told}");
    assert!(progress.failed().next().and_then(Vertex::own_error).is_some_and(|said| said.judged().contains("process")));
}
