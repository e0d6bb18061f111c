//! The API as a client sees it: valid JWTs, token requests, recorded calls and faults.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use world::{App, GitHub, repository_id};

fn jwt(app: &App, claims: &Value) -> String {
    let key = EncodingKey::from_rsa_pem(app.private_key_pem().as_bytes()).unwrap();
    encode(&Header::new(Algorithm::RS256), claims, &key).unwrap()
}

fn good_jwt(app: &App) -> String {
    let now_s = Timestamp::now().as_second();
    jwt(app, &json!({"iat": now_s - 60, "exp": now_s + 540, "iss": app.client_id}))
}

async fn ask(method: Method, github: &GitHub, path: &str, bearer: &str, body: &Value) -> Response {
    let client = Client::builder().user_agent("world-test").build().unwrap();
    let request = client.request(method, format!("{}{path}", github.url())).bearer_auth(bearer);
    request.json(body).send().await.unwrap()
}

async fn mint(github: &GitHub, id: u64, body: Value) -> (u16, Value) {
    let path = format!("/app/installations/{id}/access_tokens");
    let response = ask(Method::POST, github, &path, &good_jwt(github.app()), &body).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn only_a_fresh_jwt_signed_by_the_app_passes() {
    let github = GitHub::start();
    let app = github.app();
    let now_s = Timestamp::now().as_second();
    let cases = [
        (200, jwt(app, &json!({"iat": now_s - 60, "exp": now_s + 540, "iss": "12345"}))),
        (200, jwt(app, &json!({"iat": now_s - 60, "exp": now_s + 540, "iss": 12345}))),
        (200, good_jwt(app)),
        (401, jwt(app, &json!({"iat": now_s - 60, "exp": now_s + 541, "iss": 12345}))),
        (401, jwt(app, &json!({"iat": now_s + 60, "exp": now_s + 540, "iss": 12345}))),
        (401, jwt(app, &json!({"iat": now_s - 600, "exp": now_s - 1, "iss": 12345}))),
        (401, jwt(app, &json!({"iat": now_s - 60, "exp": now_s + 540, "iss": 54321}))),
        (401, jwt(&App::generate(12345), &json!({"iat": now_s - 60, "exp": now_s + 540, "iss": 12345}))),
        (401, "not.a.jwt".into()),
    ];
    for (status, jwt) in cases {
        let response = ask(Method::GET, &github, "/app", &jwt, &json!({})).await;
        assert_eq!(response.status(), status, "{jwt}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["message"].is_string(), status == 401, "{body}");
    }
}

#[tokio::test]
async fn the_pkcs1_form_of_the_key_signs_too() {
    let app = App::generate(1);
    let key = EncodingKey::from_rsa_pem(app.private_key_pkcs1_pem().as_bytes()).unwrap();
    let claims = json!({"iat": 1, "exp": 2, "iss": 1});
    assert_eq!(encode(&Header::new(Algorithm::RS256), &claims, &key).unwrap(), jwt(&app, &claims));
}

#[tokio::test]
async fn a_wrong_clock_refuses_and_reports_its_date() {
    let github = GitHub::start();
    github.set_clock_offset_s(-3600);
    let response = ask(Method::GET, &github, "/app", &good_jwt(github.app()), &json!({})).await;
    assert_eq!(response.status(), 401);
    let date = jiff::fmt::rfc2822::parse(response.headers()["date"].to_str().unwrap()).unwrap();
    let off_s = Timestamp::now().as_second() - date.timestamp().as_second();
    assert!((3599..=3602).contains(&off_s), "{off_s}");
}

#[tokio::test]
async fn a_token_is_narrowed_to_the_request() {
    let github = GitHub::start();
    let id = github.install("acme", &["voting-app", "other"]);
    let body = json!({"repositories": ["voting-app"], "permissions": {"contents": "read"}});
    let (status, answer) = mint(&github, id, body).await;
    assert_eq!(status, 201, "{answer}");
    let token = answer["token"].as_str().unwrap();
    assert!(token.starts_with("ghs_12345_") && token.matches('.').count() == 2, "{token}");
    assert!((500..560).contains(&token.len()), "{}", token.len());
    assert_eq!(answer["permissions"], json!({"contents": "read", "metadata": "read"}));
    let repository_id = repository_id("acme/voting-app");
    let voting_app = json!({"id": repository_id, "name": "voting-app", "full_name": "acme/voting-app"});
    assert_eq!(answer["repositories"], json!([voting_app]));
    let grant = github.tokens().grant(token).unwrap();
    assert!(grant.reach.covers("ACME/Voting-App") && !grant.reach.covers("acme/other"));

    let (status, by_id) = mint(&github, id, json!({"repository_ids": [repository_id]})).await;
    assert_eq!((status, &by_id["repositories"]), (201, &json!([voting_app])));
}

#[tokio::test]
async fn a_token_request_is_refused_with_githubs_statuses() {
    let github = GitHub::start();
    let id = github.install("acme", &["voting-app"]);
    assert_eq!(mint(&github, id, json!({"repositories": ["secret"]})).await.0, 422);
    assert_eq!(mint(&github, id, json!({"repository_ids": [1]})).await.0, 422);
    assert_eq!(mint(&github, id, json!({"permissions": {"contents": "write"}})).await.0, 422);
    assert_eq!(mint(&github, id + 1, json!({})).await.0, 404);
    github.suspend(id, true);
    assert_eq!(mint(&github, id, json!({})).await.0, 403);
}

#[tokio::test]
async fn the_installation_of_a_repository_is_found_until_it_is_gone() {
    let github = GitHub::start();
    let id = github.install("acme", &["voting-app"]);
    let path = "/repos/acme/voting-app/installation";
    let response = ask(Method::GET, &github, path, &good_jwt(github.app()), &json!({})).await;
    assert_eq!(response.json::<Value>().await.unwrap()["id"], id);
    github.uninstall(id);
    let response = ask(Method::GET, &github, path, &good_jwt(github.app()), &json!({})).await;
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let github = GitHub::start();
    let token = github.tokens().issue(&["acme/voting-app"]);
    for status in [204, 401] {
        let response = ask(Method::DELETE, &github, "/installation/token", &token, &json!({})).await;
        assert_eq!(response.status(), status);
    }
}

#[tokio::test]
async fn a_commit_is_shown_to_a_token_of_its_repository() {
    let github = GitHub::start();
    let host = world::GitHost::start(github.tokens());
    github.serve_commits_from(host.root());
    let sha = host.repository("acme/voting-app").commit(&[("a", "1")]);
    let token = github.tokens().issue(&["acme/voting-app"]);
    let commits = "/repos/acme/voting-app/commits";
    let response = ask(Method::GET, &github, &format!("{commits}/{sha}"), &token, &json!({})).await;
    assert_eq!(response.json::<Value>().await.unwrap()["sha"], sha);
    let missing = format!("{commits}/{}", "0".repeat(40));
    for (status, path, token) in [
        (422, missing.as_str(), &token),
        (404, "/repos/acme/other/commits/main", &token),
        (404, &format!("{commits}/{sha}"), &github.tokens().issue(&["acme/other"])),
    ] {
        assert_eq!(ask(Method::GET, &github, path, token, &json!({})).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_client_without_a_name_is_forbidden_and_every_call_is_recorded() {
    let github = GitHub::start();
    github.faults().fail_next("/app", 1, 502, &[("retry-after", "7")], "bad gateway");
    let response = ask(Method::GET, &github, "/app?x=1", "none", &json!({"k": "v"})).await;
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (502, &"7".parse().unwrap()));
    let nameless = Client::new().get(format!("{}/app", github.url())).send().await.unwrap();
    assert_eq!(nameless.status(), 403);
    let calls = github.calls();
    assert_eq!((calls[0].method.as_str(), calls[0].path.as_str()), ("GET", "/app?x=1"));
    assert_eq!((calls[0].body.as_str(), calls[0].user_agent.as_deref()), (r#"{"k":"v"}"#, Some("world-test")));
    assert_eq!(calls[1].user_agent, None);
}
