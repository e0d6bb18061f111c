//! A Sidekiq-compatible build worker.
//!
//! ```text
//! Redis list ──fetch──▶ UnitOfWork ──parse──▶ BuildJob
//!    ▲                                            │  perform
//!    │                       rails     ▶ the native object, when the job carries only an id
//!    │                       github    ▶ InstallationToken
//!    │                       source    ▶ Worktree
//!    │                       builder   ▶ Placement
//!    │                       bake      ▶ Outcome (steps, digests)       ──events──▶ journal ▶ terminal, log
//!    │                                            ▼
//!    └──────────── settle: done │ retry │ dead │ requeue ◀── Report ──▶ callback, in the same step
//! ```
//!
//! Start at [`worker`] (what starts and stops), then [`processor`] (one job), then [`perform`] (the integrations in order).
//! `ARCHITECTURE.md` has the map.

// Words.
pub mod bounds;
pub mod event;
pub mod job;
pub mod json;
pub mod reason;
pub mod report;
pub mod secret;
pub mod settings;
pub mod text;

// Tools.
pub mod beneath;
pub mod body;
pub mod clock;
pub mod connections;
pub mod process;
pub mod redis;
pub mod sandbox;
pub mod state;
pub mod stop;
pub mod systemd;

// Everything that happens is told here.
pub mod journal;

// Integrations: each knows exactly one outside world, and no other integration.
pub mod bake;
pub mod builder;
pub mod github;
pub mod rails;
pub mod sidekiq;
pub mod source;

// The line.
pub mod cli;
pub mod health;
pub mod perform;
pub mod processor;
pub mod worker;
