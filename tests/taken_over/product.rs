//! The product's worker with taken-over children.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sidebake::bake::{Bake, BakeRequest, Definition, Goal, admit};
use sidebake::builder::{Builders, PlaceRequest};
use sidebake::job::{Build, Naming, Recipe, Repository, RepositoryFiles, Sha, Trust};
use sidebake::journal::{Journal, Record};
use sidebake::report::Report;
use sidebake::source::{Origin, Revision, SourceError, Spent, Submodule, Worktree, Worktrees};
use sidebake::state::{JobDirectory, StateDirectory};
use sidebake::text::paths::WorkerPaths;
use tokio_util::sync::CancellationToken;

use crate::careless::other_repository;
use crate::case::{CANARY, CONTENT, Case, is_locked, is_source, read, until_there};
use crate::roles::{MARK, give_up_capabilities};

pub async fn has_harm(case: &Case<'_>) -> bool {
    let worker = Worker::new(case);
    if is_source(case.attack) { worker.source().await } else { worker.buildx().await }
}

struct Worker<'a> {
    case: &'a Case<'a>,
    state: Arc<StateDirectory>,
    source: Worktrees,
    bake: Bake,
    builders: Builders,
    record: Arc<Record>,
    journal: Journal,
}

impl<'a> Worker<'a> {
    fn new(case: &'a Case<'a>) -> Self {
        let settings = case.settings();
        let record = Arc::new(Record::new(Report::default()));
        Self {
            case,
            state: StateDirectory::open(&case.home.join("state"), "worker").unwrap().into(),
            source: Worktrees::new(&settings),
            bake: Bake::new(&settings),
            builders: Builders::new(&settings),
            journal: Journal::new(vec![record.clone()], WorkerPaths::default()),
            record,
        }
    }

    fn job(&self) -> JobDirectory {
        self.state.job_directory().unwrap()
    }

    /// Checks out a commit, by a taken-over child or by an honest one.
    async fn check_out(
        &self,
        job: &JobDirectory,
        is_attack: bool,
        trust: Trust,
        sha: &str,
    ) -> Result<Worktree, SourceError> {
        let mark = job.join(MARK);
        if is_attack {
            std::fs::write(&mark, serde_json::to_string(&self.case.ground).unwrap()).unwrap();
        }
        let worktree = job.vacancy("tree", "app").unwrap();
        let origin = Origin {
            url: self.case.url(),
            token: None,
            mirror: "7".into(),
            trust,
            directory: job,
            worktree: &worktree,
            revision: Revision::Sha(Sha::parse(sha).unwrap()),
            mtimes_key: None,
            since: Vec::new(),
            git_dir: None,
            spent: Spent::default(),
        };
        self.source.check_out(&origin, &self.state, &self.journal, &CancellationToken::new()).await
    }

    async fn source(&self) -> bool {
        let (case, sha) = (self.case, self.case.range.sha.as_str());
        match case.attack.name {
            "mirror_lock" => return self.locks().await,
            "mirror_alternates" => return self.reads_alternates().await,
            name if name.starts_with("mirror_") => return self.poisons().await,
            _ => {}
        }
        let job = self.job();
        let made = self.check_out(&job, true, Trust::Branch, sha).await;
        let tree = job.join("tree").join("app");
        match case.attack.name {
            "tree_link" => made.is_ok_and(|worktree| read(&worktree.path.join("canary")) == CANARY),
            "parent_link" => {
                let _ = job.subdirectory("secrets");
                case.outside("secrets").exists()
            }
            "submodule_link" => {
                let submodule: Submodule =
                    serde_json::from_value(json!({"path": "libs/x", "sha": sha, "url": null})).unwrap();
                let _ = made.unwrap().make_room(&submodule);
                !case.outside("x").exists()
            }
            // The patterns of a file of the host excluded a file.
            "ignore_link" | "ignore_fifo" | "ignore_sparse" => {
                let definition = self.resolve(&job, &tree).await;
                definition.inputs(&["file".into()]).is_empty()
            }
            "definition_link" | "definition_fifo" => {
                let paths = vec!["compose.yaml".into()];
                let files = RepositoryFiles { paths, directory: String::new(), naming: Naming::File };
                let build = Build::new(repository(), Trust::Branch, Recipe::Files(files));
                // Through a link, buildx would print the lines of the file.
                admit(&BakeRequest { build: &build, worktree: &tree, commit: None }).is_ok()
            }
            "claims_commit" => made.unwrap().commit.unwrap().sha.to_string() != sha,
            // Checks that the worker kills it for its output, not at its time limit.
            "endless_output" => !made.is_err_and(|error| error.to_string().contains("printed too much")),
            "nest" | "locked" | "odd_names" => {
                let path = job.join("");
                let remove = move || {
                    give_up_capabilities();
                    drop(job);
                };
                std::thread::spawn(remove).join().unwrap();
                path.exists()
            }
            "setuid" => case.is_run_by_others(&tree.join("program")),
            "outlive" => case.outlives(),
            other => unreachable!("no case of {other}"),
        }
    }

    /// Whether a child can hold the lock that other children wait for.
    async fn locks(&self) -> bool {
        let job = self.job();
        let mirror = self.state.mirror(Trust::Branch, &self.host(), "7").unwrap().content().to_owned();
        let held = async {
            until_there(&mirror.join("is-locked")).await;
            is_locked(mirror.parent().unwrap())
        };
        // Dropping the future kills the child.
        tokio::select! {
            _ = self.check_out(&job, true, Trust::Branch, &self.case.range.sha) => panic!("the child ended"),
            is_locked = held => is_locked,
        }
    }

    fn host(&self) -> String {
        self.case.url().split('/').nth(2).unwrap().to_owned()
    }

    async fn reads_alternates(&self) -> bool {
        let other = other_repository(self.case).to_string();
        for is_attack in [false, true] {
            let _ = self.check_out(&self.job(), is_attack, Trust::Branch, &self.case.range.sha).await;
        }
        self.check_out(&self.job(), false, Trust::Branch, &other).await.is_ok()
    }

    /// What an honest child checks out after a taken-over one. A failure counts as harm only when it persists.
    async fn poisons(&self) -> bool {
        let sha = &self.case.range.sha;
        let (theirs, next) = match self.case.attack.name {
            "mirror_objects_fork" => (Trust::Fork, Trust::Fork),
            "mirror_objects_trust" => (Trust::Fork, Trust::Branch),
            _ => (Trust::Branch, Trust::Branch),
        };
        self.check_out(&self.job(), false, theirs, sha).await.unwrap();
        let _ = self.check_out(&self.job(), true, theirs, sha).await;
        for _ in 0..2 {
            let job = self.job();
            if let Ok(worktree) = self.check_out(&job, false, next, sha).await {
                return read(&worktree.path.join("file")) != CONTENT;
            }
        }
        true
    }

    async fn resolve(&self, job: &JobDirectory, tree: &Path) -> Definition {
        let build = self.build(job);
        let request = BakeRequest { build: &build, worktree: tree, commit: None };
        self.bake.resolve(&request, job, &self.journal, &CancellationToken::new()).await.unwrap()
    }

    /// A build of one target, whose definition tells docker-buildx what to do.
    fn build(&self, job: &JobDirectory) -> Build {
        let ground = serde_json::to_string(&self.case.ground).unwrap();
        let definition = json!({"target": {"app": {"context": ".", "dockerfile-inline": "FROM scratch", "args": {"ground": ground, "print": job.join("print")}}}});
        let recipe = Recipe::Inline(definition.to_string());
        Build { targets: vec!["app".into()], ..Build::new(repository(), Trust::Branch, recipe) }
    }

    async fn buildx(&self) -> bool {
        let (case, job) = (self.case, self.job());
        let build = self.build(&job);
        let tree = case.home.join("tree");
        std::fs::create_dir(&tree).unwrap();
        let definition = self.resolve(&job, &tree).await;
        if case.attack.name == "print_leftover" {
            self.resolve(&job, &tree).await;
            return job.join("print").join("tmp/seen").exists();
        }
        let request = PlaceRequest::new(&build, &self.state, &job);
        let place = self.builders.place(request).await.unwrap();
        let targets = definition.names();
        let solve = async || {
            let goal = Goal { definition: &definition, targets: &targets };
            let stop = CancellationToken::new();
            self.bake.solve(&build, goal, &place.location, &job, &self.journal, &stop).await.unwrap();
        };
        solve().await;
        match case.attack.name {
            name if name.starts_with("metadata_") => {
                self.record.report().targets.iter().any(|target| target.digest.is_some())
            }
            "kubeconfig_plugin" | "kubeconfig_server" | "instance_endpoint" => {
                // Its docker-buildx has no builder that would answer.
                let _ = place.dial().await;
                case.has_run() || case.has_connected()
            }
            "credential_helper" => {
                solve().await;
                case.has_run()
            }
            "solve_leftover" => {
                solve().await;
                job.join("solve").join("tmp/seen").exists()
            }
            other => unreachable!("no case of {other}"),
        }
    }
}

fn repository() -> Repository {
    Repository::parse("acme/app").unwrap()
}
