//! `world-github` as the quick start runs it.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use world::wait_for;

#[tokio::test]
async fn a_repository_made_later_is_cloned_with_a_minted_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut server = Command::new(env!("CARGO_BIN_EXE_world-github"));
    server.args(["--app-id", "7", "--installation-id", "8"]);
    for (flag, name) in [("--root", "root"), ("--private-key", "key.pem"), ("--ports-file", "ports")] {
        server.arg(flag).arg(path(name));
    }
    let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the ports file", || path("ports").exists()).await;
    let ports = std::fs::read_to_string(path("ports")).unwrap();
    let url = |name: &str| ports.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert_eq!(path("key.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let bare = path("root/acme/voting-app.git");
    let sh = "git init -q --bare $0 && tree=$(git -C $0 mktree </dev/null) && \
        git -C $0 -c user.name=a -c user.email=a@b update-ref HEAD \
        $(git -C $0 -c user.name=a -c user.email=a@b commit-tree -m x $tree)";
    assert!(Command::new("sh").args(["-c", sh]).arg(&bare).status().unwrap().success());

    let key = EncodingKey::from_rsa_pem(&std::fs::read(path("key.pem")).unwrap()).unwrap();
    let now_s = jiff::Timestamp::now().as_second();
    let jwt = encode(&Header::new(Algorithm::RS256), &json!({"iat": now_s, "exp": now_s + 60, "iss": 7}), &key);
    let client = reqwest::Client::builder().user_agent("world-test").build().unwrap();
    let request = client.post(format!("{}/app/installations/8/access_tokens", url("GITHUB_API=")));
    let request = request.bearer_auth(jwt.unwrap()).json(&json!({"repositories": ["voting-app"]}));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let token = answer["token"].as_str().unwrap();
    let remote = url("GIT_HOST=").replace("//", &format!("//x-access-token:{token}@")) + "/acme/voting-app.git";
    let cloned = Command::new("git").args(["clone", "-q", &remote]).arg(path("clone")).status().unwrap();
    assert!(cloned.success());

    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success() && !path("ports").exists());
    let log = std::io::read_to_string(server.stderr.take().unwrap()).unwrap();
    assert!(log.contains("JWT verified") && log.contains("token minted for") && !log.contains(token), "{log}");
}
