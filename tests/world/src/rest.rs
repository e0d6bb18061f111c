//! The endpoints of GitHub's REST API that a worker uses, and their rules for refusing.
//!
//! Statuses and messages follow `git-and-github.md` §10. Other paths answer 404, as at GitHub.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::github::{Call, Installation, Shared, repository_id};
use crate::repository::{git, is_public};
use crate::tokens::{Grant, Reach};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/app", get(app))
        .route("/app/installations/{id}", get(installation_by_id))
        .route("/app/installations/{id}/access_tokens", post(mint))
        .route("/installation/token", delete(revoke))
        .route("/repos/{owner}/{repo}", get(repository_by_name))
        .route("/repos/{owner}/{repo}/installation", get(installation_of))
        .route("/repositories/{id}/installation", get(installation_of_number))
        .route("/repos/{owner}/{repo}/commits/{*revision}", get(commit))
        .route("/repos/{owner}/{repo}/git/ref/{*name}", get(reference))
        .route("/repos/{owner}/{repo}/git/tags/{sha}", get(tag))
        .route("/repos/{owner}/{repo}/compare/{*range}", get(compare))
        .fallback(async || NOT_FOUND)
        .layer(from_fn_with_state(shared.clone(), front_door))
        .with_state(shared)
}

/// Records every request, applies faults, checks the mandatory headers, and adds the headers of every answer.
async fn front_door(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    shared.state.lock().unwrap().calls.push(call(&head.method, &head.uri.to_string(), &body, &head.headers));
    let mut response = if let Some(response) = shared.faults.strike(head.uri.path()).await {
        response
    } else if let Some(refusal) = refuse_headers(&head.headers) {
        refusal.into_response()
    } else {
        next.run(Request::from_parts(head, Body::from(body))).await
    };
    let headers = response.headers_mut();
    headers.insert(header::DATE, http_date(shared.now_s()).parse().unwrap());
    headers.entry("x-ratelimit-limit").or_insert(5000.into());
    headers.entry("x-ratelimit-remaining").or_insert(4999.into());
    response
}

fn refuse_headers(headers: &HeaderMap) -> Option<Refusal> {
    if !headers.contains_key(header::USER_AGENT) {
        let message =
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
        return Some(Refusal(403, message));
    }
    let version = headers.get("x-github-api-version")?;
    let is_supported = version == "2022-11-28" || version == "2026-03-10";
    (!is_supported).then_some(Refusal(400, "The specified API version is not supported"))
}

fn authenticate_app(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let jwt = credentials(headers).unwrap_or("");
    let judgement = shared.app.verify(jwt, shared.now_s());
    shared.log(|| format!("JWT {}", judgement.err().unwrap_or("verified")));
    judgement.map_err(|message| Refusal(401, message))
}

/// The installation token in the header, with its grant.
fn authenticate_token(shared: &Shared, headers: &HeaderMap) -> Result<(String, Grant), Refusal> {
    let token = credentials(headers).ok_or(Refusal(401, "Requires authentication"))?;
    let grant = shared.tokens.grant(token).filter(Grant::is_valid);
    let grant = grant.ok_or(Refusal(401, "Bad credentials"))?;
    Ok((token.to_owned(), grant))
}

async fn app(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    authenticate_app(&shared, &headers)?;
    Ok(Json(json!({
        "id": shared.app.id, "client_id": shared.app.client_id, "slug": "sidebake", "name": "sidebake",
    })))
}

async fn installation_by_id(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    authenticate_app(&shared, &headers)?;
    let state = shared.state.lock().unwrap();
    let installation = state.installations.get(&id).ok_or(NOT_FOUND)?;
    Ok(Json(describe(id, installation, shared.app.id)))
}

async fn installation_of(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authenticate_app(&shared, &headers)?;
    let full_name = format!("{owner}/{repo}");
    let moved = shared.state.lock().unwrap().moved.get(&full_name.to_ascii_lowercase()).cloned();
    if let Some(present) = moved {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let location = format!("http://{host}/repositories/{}/installation", repository_id(&present));
        let body = json!({"message": "Moved Permanently", "url": location});
        return Ok((StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)], Json(body)).into_response());
    }
    find_installation(&shared, |reach| reach.covers(&full_name)).map(IntoResponse::into_response)
}

async fn installation_of_number(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    authenticate_app(&shared, &headers)?;
    find_installation(&shared, |reach| reach.full_names().iter().any(|name| repository_id(name) == id))
}

fn find_installation(shared: &Shared, covers: impl Fn(&Reach) -> bool) -> Result<Json<Value>, Refusal> {
    let state = shared.state.lock().unwrap();
    let mut installations = state.installations.iter();
    let (id, installation) = installations.find(|(_, installation)| covers(&installation.reach)).ok_or(NOT_FOUND)?;
    Ok(Json(describe(*id, installation, shared.app.id)))
}

fn describe(id: u64, installation: &Installation, app_id: u64) -> Value {
    let suspended_at = installation.is_suspended.then_some("2026-01-01T00:00:00Z");
    json!({
        "id": id, "app_id": app_id, "account": {"login": installation.account, "type": "Organization"},
        "repository_selection": selection(&installation.reach), "permissions": installation.permissions,
        "suspended_at": suspended_at,
    })
}

fn selection(reach: &Reach) -> &'static str {
    if matches!(reach, Reach::Under(_)) { "all" } else { "selected" }
}

async fn mint(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    authenticate_app(&shared, &headers)?;
    let body: Value = match body.is_empty() {
        true => json!({}),
        false => serde_json::from_slice(&body).map_err(|_| Refusal(400, "Problems parsing JSON"))?,
    };
    let (grant, is_narrowed) = decide(&shared, id, &body)?;
    shared.log(|| format!("token minted for {:?}, {:?}", grant.reach, grant.permissions));
    let token = shared.tokens.mint(shared.app.id, grant.clone());
    let offset_s = shared.state.lock().unwrap().clock_offset_s;
    Ok((StatusCode::CREATED, Json(token_answer(&token, &grant, offset_s, is_narrowed))))
}

/// The new token's grant, and whether the body names repositories.
fn decide(shared: &Shared, id: u64, body: &Value) -> Result<(Grant, bool), Refusal> {
    let state = shared.state.lock().unwrap();
    let installation = state.installations.get(&id).ok_or(NOT_FOUND)?;
    if installation.is_suspended {
        return Err(Refusal(403, "This installation has been suspended"));
    }
    let (reach, is_narrowed) = narrow(body, installation)?;
    let grant = Grant {
        installation_id: id,
        reach,
        permissions: permit(&body["permissions"], &installation.permissions)?,
        expires_at: Timestamp::now() + state.token_lifetime,
        is_revoked: false,
    };
    Ok((grant, is_narrowed))
}

fn token_answer(token: &str, grant: &Grant, offset_s: i64, is_narrowed: bool) -> Value {
    let mut answer = json!({
        "token": token,
        // GitHub writes whole seconds by its own clock.
        "expires_at": Timestamp::from_second(grant.expires_at.as_second() + offset_s).unwrap().to_string(),
        "permissions": grant.permissions, "repository_selection": selection(&grant.reach),
    });
    if let (true, Reach::Only(names)) = (is_narrowed, &grant.reach) {
        answer["repositories"] = names.iter().map(|name| repository(name)).collect();
    }
    answer
}

fn repository(full_name: &str) -> Value {
    let name = full_name.split_once('/').unwrap().1;
    json!({"id": repository_id(full_name), "name": name, "full_name": full_name})
}

/// The repositories that the body names, and whether it names any.
fn narrow(body: &Value, installation: &Installation) -> Result<(Reach, bool), Refusal> {
    const FOREIGN: Refusal = Refusal(
        422,
        "There is at least one repository that does not exist or is not accessible to the parent installation.",
    );
    let known = installation.reach.full_names();
    let find = |is_asked: &dyn Fn(&str) -> bool| known.iter().find(|full_name| is_asked(full_name)).cloned();
    let asked: Option<Vec<String>> = if let Some(names) = body["repositories"].as_array() {
        let named = |asked: &Value| find(&|full_name| full_name.split_once('/').is_some_and(|(_, name)| asked == name));
        names.iter().map(named).collect()
    } else if let Some(ids) = body["repository_ids"].as_array() {
        let numbered = |asked: &Value| find(&|full_name| *asked == repository_id(full_name));
        ids.iter().map(numbered).collect()
    } else {
        return Ok((installation.reach.clone(), false));
    };
    Ok((Reach::Only(asked.ok_or(FOREIGN)?), true))
}

fn permit(asked: &Value, granted: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    const TOO_MUCH: Refusal = Refusal(422, "The permissions requested are not granted to this installation.");
    let Some(asked) = asked.as_object() else {
        return Ok(granted.clone());
    };
    let rank = |level: &str| ["read", "write", "admin"].iter().position(|known| *known == level);
    let mut permissions: BTreeMap<String, String> = [("metadata".into(), "read".into())].into();
    for (name, level) in asked {
        let level = level.as_str().filter(|level| rank(level).is_some()).ok_or(TOO_MUCH)?;
        if granted.get(name).is_none_or(|granted| rank(granted) < rank(level)) {
            return Err(TOO_MUCH);
        }
        permissions.insert(name.clone(), level.into());
    }
    Ok(permissions)
}

async fn revoke(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<StatusCode, Refusal> {
    let (token, _) = authenticate_token(&shared, &headers)?;
    shared.tokens.revoke(&token);
    Ok(StatusCode::NO_CONTENT)
}

async fn repository_by_name(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let (_, grant) = authenticate_token(&shared, &headers)?;
    let full_name = format!("{owner}/{repo}");
    let dir = shared.directory_of(&full_name)?;
    let is_private = !is_public(&dir);
    if is_private && !grant.reach.covers(&full_name) {
        return Err(NOT_FOUND);
    }
    let mut answer = repository(&full_name);
    answer["private"] = json!(is_private);
    Ok(Json(answer))
}

async fn commit(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let dir = readable(&shared, &headers, &owner, &repo)?;
    let (sha, tree, parents) = commit_ids(&dir, &revision).ok_or(Refusal(422, "No commit found for SHA"))?;
    if headers.get(header::ACCEPT).is_some_and(|form| form == "application/vnd.github.sha") {
        return Ok(sha.into_response());
    }
    let parents: Vec<Value> = parents.iter().map(|sha| json!({"sha": sha})).collect();
    Ok(Json(json!({"sha": sha, "commit": {"tree": {"sha": tree}}, "parents": parents})).into_response())
}

/// The reference with exactly this name below `refs/`, with its target. Unlike `commits`, it resolves nothing.
async fn reference(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let dir = readable(&shared, &headers, &owner, &repo)?;
    let name = format!("refs/{name}");
    let sha = output(&dir, &["show-ref", "--verify", "--hash", "--", &name]).ok_or(NOT_FOUND)?;
    let kind = output(&dir, &["cat-file", "-t", &sha]).ok_or(NOT_FOUND)?;
    Ok(Json(json!({"ref": name, "object": {"type": kind, "sha": sha}})))
}

/// The target of the annotated tag with this id.
async fn tag(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo, sha)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let dir = readable(&shared, &headers, &owner, &repo)?;
    let tag = output(&dir, &["cat-file", "tag", &sha]).ok_or(NOT_FOUND)?;
    let header = |name: &str| tag.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    Ok(Json(json!({
        "sha": sha, "tag": header("tag "), "object": {"type": header("type "), "sha": header("object ")},
    })))
}

/// The trimmed output of git, or none when it fails.
fn output(dir: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let output = git(dir).args(arguments).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// How to reach the second of `BASE...HEAD` from the first. Omits the commits themselves.
async fn compare(
    State(shared): State<Arc<Shared>>,
    Path((owner, repo, range)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let dir = readable(&shared, &headers, &owner, &repo)?;
    let (base, head) = range.split_once("...").ok_or(NOT_FOUND)?;
    let ids = [base, head].map(|revision| commit_ids(&dir, revision).map(|(sha, ..)| sha));
    let [Some(base), Some(head)] = ids else { return Err(NOT_FOUND) };
    let mut merge_base = git(&dir);
    if !merge_base.args(["merge-base", &base, &head]).output().unwrap().status.success() {
        return Err(Refusal(404, "No common ancestor"));
    }
    let mut count = git(&dir);
    count.args(["rev-list", "--left-right", "--count", &format!("{base}...{head}")]);
    let counts = String::from_utf8(count.output().unwrap().stdout).unwrap();
    let mut counts = counts.split_whitespace().map(|number| number.parse::<u32>().unwrap());
    let (behind_by, ahead_by) = (counts.next().unwrap(), counts.next().unwrap());
    let status = match (ahead_by, behind_by) {
        (0, 0) => "identical",
        (_, 0) => "ahead",
        (0, _) => "behind",
        _ => "diverged",
    };
    Ok(Json(json!({"status": status, "ahead_by": ahead_by, "behind_by": behind_by})))
}

/// The repository, if the token in the headers may read it.
fn readable(shared: &Shared, headers: &HeaderMap, owner: &str, repo: &str) -> Result<PathBuf, Refusal> {
    let (_, grant) = authenticate_token(shared, headers)?;
    let full_name = format!("{owner}/{repo}");
    let dir = shared.directory_of(&full_name)?;
    if !grant.reach.covers(&full_name) && !is_public(&dir) {
        return Err(NOT_FOUND);
    }
    if !grant.permissions.contains_key("contents") {
        return Err(Refusal(403, "Resource not accessible by integration"));
    }
    Ok(dir)
}

/// The commit that `revision` names, its tree and its parents.
fn commit_ids(dir: &std::path::Path, revision: &str) -> Option<(String, String, Vec<String>)> {
    let mut show = git(dir);
    show.args(["show", "--no-patch", "--format=%H %T %P", "--end-of-options"]).arg(format!("{revision}^{{commit}}"));
    let text = String::from_utf8(show.output().unwrap().stdout).ok()?;
    let mut ids = text.split_whitespace().map(str::to_owned);
    Some((ids.next()?, ids.next()?, ids.collect()))
}

impl Shared {
    /// The bare repository of `owner/name`.
    fn directory_of(&self, full_name: &str) -> Result<PathBuf, Refusal> {
        let root = self.state.lock().unwrap().repositories_root.clone().ok_or(NOT_FOUND)?;
        Some(root.join(format!("{full_name}.git"))).filter(|dir| dir.is_dir()).ok_or(NOT_FOUND)
    }
}

/// GitHub's error body with a status.
struct Refusal(u16, &'static str);

const NOT_FOUND: Refusal = Refusal(404, "Not Found");

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({
            "message": self.1, "documentation_url": "https://docs.github.com/rest", "status": self.0.to_string(),
        });
        (StatusCode::from_u16(self.0).unwrap(), Json(body)).into_response()
    }
}

fn credentials(headers: &HeaderMap) -> Option<&str> {
    let (scheme, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    ["bearer", "token"].contains(&scheme.to_ascii_lowercase().as_str()).then_some(credentials)
}

fn call(method: &Method, path: &str, body: &[u8], headers: &HeaderMap) -> Call {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Call {
        method: method.to_string(),
        path: path.into(),
        body: String::from_utf8_lossy(body).into(),
        user_agent: text(header::USER_AGENT),
        authorization: text(header::AUTHORIZATION),
    }
}

fn http_date(at_s: i64) -> String {
    let at = Timestamp::from_second(at_s).unwrap();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap()
}
