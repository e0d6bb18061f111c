//! The resolver endpoint as a worker sees it.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use world::{Answer, Rails, hex};

async fn resolve(rails: &Rails, id: &str, secret: &str, at: Timestamp) -> Response {
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap();
    let url = rails.url_pattern().replace("{0}", id);
    let path = url.split_once(&rails.port().to_string()).unwrap().1;
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("GET\n{path}\n{date}").as_bytes());
    let signature = format!("v1={}", hex(&mac.finalize().into_bytes()));
    let client = Client::builder().redirect(Policy::none()).build().unwrap();
    let request = client.get(&url).header("date", date).header("x-sidebake-signature", signature);
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_signed_request_gets_the_tests_answer() {
    let rails = Rails::start("s3cret");
    let now = Timestamp::now();
    rails.answer(4711, Answer::Object(json!({"build_id": 4711})));
    rails.answer(410, Answer::Status(410));
    rails.answer(302, Answer::Redirect("http://192.0.2.1/".into()));
    rails.answer(1, Answer::Padded(json!({}), 1 << 20));
    let object: Value = resolve(&rails, "4711?v=1", "s3cret", now).await.json().await.unwrap();
    assert_eq!(object["build_id"], 4711);
    for status in [410, 302, 404] {
        assert_eq!(resolve(&rails, &status.to_string(), "s3cret", now).await.status(), status);
    }
    assert!(resolve(&rails, "1", "s3cret", now).await.bytes().await.unwrap().len() > 1 << 20);
    assert_eq!(rails.requests()[0].path, "/builds/4711?v=1");
}

#[tokio::test]
async fn a_wrong_secret_or_an_old_date_is_refused() {
    let rails = Rails::start("s3cret");
    rails.answer(1, Answer::Object(json!({})));
    let now = Timestamp::now();
    assert_eq!(resolve(&rails, "1", "other", now).await.status(), 401);
    let old = now - jiff::SignedDuration::from_secs(301);
    assert_eq!(resolve(&rails, "1", "s3cret", old).await.status(), 401);
    assert!(rails.requests().iter().all(|request| !request.is_authentic));
}
