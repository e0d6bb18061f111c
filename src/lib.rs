//! A Sidekiq-compatible build worker.
//!
//! ```text
//! Rails ──perform_async──▶ queue in Redis
//!                             │ sidekiq     fetch under a token of custody
//!                             ▼
//!                          in flight: sidebake:inflight:<identity>
//!                             │ processor   payload, arguments
//!                             │ rails       build request, when the job carries only an id
//!                             │
//!                             │ perform     puts these in order:
//!                             │   github      installation token
//!                             │   source      worktree, while github checks the ref   emit events
//!                             │   bake        definition, resolved and validated       │
//!                             │ ┌ builder     session: one pod ◀─┐                     ▼
//!                             │ │ fence       still owned?       │ another pod, up    journal
//!                             │ └ bake        images ────────────┘ to three times      │
//!                             │                                                        │
//!                             │ processor   disposition                                │
//!                             │ rails       callback job ◀── Report ◀── record ◀───────┼─▶ log, metrics,
//!                             ▼                                                            terminal, progress
//!                          settled by sidekiq in one script
//!                            done │ retry set │ dead set │ requeued
//! ```
//!
//! Start at [`worker`] (what starts and stops), then [`processor`] (one job), then [`perform`] (the integrations in order).
//! `ARCHITECTURE.md` has the map.
//!
//! # Log messages
//!
//! A message is a short fact in the past or present tense; its values are fields. A message that a test or an alert relies on has
//! a field `event` in snake case, which never changes. The words may change, so nothing matches them. `docs/operating.md` lists
//! the events.

// Domain types: no I/O, no clock.
pub mod attestation;
pub mod bounds;
pub mod cache;
pub mod dockerfile;
pub mod event;
pub mod field_error;
pub mod job;
pub mod json;
pub mod log_record;
pub mod metric;
pub mod name;
pub mod platform;
pub mod reason;
pub mod report;
pub mod secret;
pub mod settings;
pub mod shard;
pub mod text;
pub mod version;
pub mod warmth;

// Infrastructure: one mechanism each.
pub mod beneath;
pub mod body;
pub mod clock;
pub mod configuration;
pub mod connections;
pub mod environment;
pub mod hex;
pub mod network;
pub mod process;
pub mod redis;
pub mod sandbox;
pub mod secret_file;
pub mod state;
pub mod stop;
pub mod systemd;

// Events go here, and to every listener.
pub mod journal;

// Integrations: one outside system each, and never another integration.
pub mod bake;
pub mod builder;
pub mod github;
pub mod last_builds;
pub mod log_archive;
pub mod log_stream;
pub mod own_pod;
pub mod rails;
pub mod sidekiq;
pub mod source;
pub mod statsd;
pub mod traces;

// The pipeline: puts the integrations in order.
pub mod cli;
pub mod health;
pub mod perform;
pub mod processor;
pub mod worker;
